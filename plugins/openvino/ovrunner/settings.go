package ovrunner

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Defaults of Settings.
const (
	DefaultMaxSeqs     = 16
	DefaultBatchTokens = 512
	DefaultContext     = 8192
)

// Settings are the backend's own settings, the same for every model. Zero
// fields take the stated defaults.
type Settings struct {
	// LibDir holds the shim libmodeld_ov.so and libopenvino_tokenizers.so.
	// Default: ../lib/openvino, seen from the executable's folder.
	LibDir string `json:"lib_dir"`
	// Device is OpenVINO's name of a device: CPU, or AUTO where that chooses
	// the CPU. KV blocks are in host memory, so that models on a GPU or an NPU
	// are refused with ErrUnsupportedFeature. Default: CPU.
	Device string `json:"device"`
	// KVPrecision is the KV cache's element type: f16, f32, bf16 or u8. With
	// u8 a prefix that is cut within a block keeps parameters of quantisation
	// that were made with the dropped tokens. f32 is computed with in f32, and
	// bf16 needs a CPU that computes in it. Default: f16, on
	// ARM f32, where there are only f32 and u8, and those on CPUs with SVE.
	KVPrecision string `json:"kv_precision"`
	// InferencePrecision is the type computed in, such as f32 or bf16.
	// Default: f32 for a KV cache of f32, otherwise the device's.
	InferencePrecision string `json:"inference_precision"`
	// Exact computes in f32 and quantises no activations, on a KV cache of f32:
	// a context goes on with the same tokens, whether it was computed alone,
	// in a batch, in pieces or after a cut. Otherwise the CPU's kernels round
	// by a batch's shape, and logits differ by up to about 1. It takes up to
	// twice the time. Default: false.
	Exact bool `json:"exact"`
	// Threads is the number of compute threads. Default: the cores that this
	// process may use.
	Threads int `json:"threads"`
	// MaxSeqs is the number of KV sequences. Default: 16.
	MaxSeqs int `json:"max_seqs"`
	// KVTokens is the size of the KV cache in tokens, for all sequences
	// together. Default: the context of one session.
	KVTokens int `json:"kv_tokens"`
	// BatchTokens is the most tokens in one forward pass. Default: 512.
	BatchTokens int `json:"batch_tokens"`
	// CacheDir keeps compiled models between starts. Default: none.
	CacheDir string `json:"cache_dir"`
}

// Validate says which setting can't be.
func (s Settings) Validate() error {
	for _, f := range []struct {
		name string
		n    int
	}{{"threads", s.Threads}, {"max_seqs", s.MaxSeqs}, {"kv_tokens", s.KVTokens}, {"batch_tokens", s.BatchTokens}} {
		if f.n < 0 {
			return fmt.Errorf("openvino: %s is %d; it must be positive, or 0 for the default", f.name, f.n)
		}
	}
	for _, f := range []struct{ name, value string }{
		{"device", s.Device}, {"kv_precision", s.KVPrecision}, {"inference_precision", s.InferencePrecision}, {"cache_dir", s.CacheDir},
	} {
		if strings.ContainsAny(f.value, "\n\x00") {
			return fmt.Errorf("openvino: %s has a line break in it", f.name)
		}
	}
	return nil
}

func (s Settings) withDefaults() Settings {
	if s.LibDir == "" {
		s.LibDir = "lib/openvino"
		if exe, err := os.Executable(); err == nil {
			s.LibDir = filepath.Join(filepath.Dir(filepath.Dir(exe)), "lib", "openvino")
		}
	}
	if s.Device == "" {
		s.Device = "CPU"
	}
	if s.KVPrecision == "" {
		s.KVPrecision = "f16"
		if s.Exact || runtime.GOARCH == "arm64" {
			s.KVPrecision = "f32"
		}
	}
	if s.Threads == 0 {
		s.Threads = runtime.GOMAXPROCS(0)
	}
	if s.MaxSeqs == 0 {
		s.MaxSeqs = DefaultMaxSeqs
	}
	if s.BatchTokens == 0 {
		s.BatchTokens = DefaultBatchTokens
	}
	return s
}
