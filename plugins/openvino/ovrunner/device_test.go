package ovrunner_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
	"modeld/plugins/openvino/ovrunner"
)

// Every KV precision gives right text in the memory that it says. bf16 is not
// among them: not every CPU computes in it.
func TestKVPrecisions(t *testing.T) {
	kinds, bytes := []string{"f16", "f32", "u8"}, map[string]int64{}
	if runtime.GOARCH == "arm64" {
		kinds = kinds[1:]
	}
	for _, kv := range kinds {
		r := load(t, ovrunner.Settings{KVPrecision: kv}, transport.Config{NumCtx: 256})
		tokens, err := r.Tokenize("The capital of France is", r.Info().AddBOS)
		if err != nil {
			t.Fatal(err)
		}
		if got := enginetest.Text(t, r, enginetest.Greedy(t, r, 0, tokens, 2)); got != " Paris." {
			t.Errorf("%s: the capital of France is%q", kv, got)
		}
		bytes[kv] = r.Info().Model.KVBytesPerToken
	}
	if bytes["f16"] != 0 && bytes["f32"] != 2*bytes["f16"] || bytes["u8"] >= bytes["f32"]/2 {
		t.Errorf("bytes per token: %v", bytes)
	}
}

// Where nothing rounds by a batch's shape, nothing may differ: no near tie
// excuses the block tables here.
func TestRunnerKeepsTheWaistExactly(t *testing.T) {
	enginetest.RunRunner(t, func(t *testing.T) engine.Runner {
		return load(t, ovrunner.Settings{Exact: true}, transport.Config{NumCtx: 1024})
	})
}

func TestWhatIsNotSupported(t *testing.T) {
	tests := []struct {
		name     string
		settings ovrunner.Settings
		config   transport.Config
		says     string
	}{
		{"a GPU", ovrunner.Settings{Device: "GPU.1"}, transport.Config{}, "GPU.1"},
		{"an NPU", ovrunner.Settings{Device: "AUTO:NPU,CPU"}, transport.Config{}, "AUTO:NPU,CPU"},
		{"a KV type of another runtime", ovrunner.Settings{}, transport.Config{KVCacheType: "q8_0"}, "q8_0"},
		{"exact beside f16", ovrunner.Settings{Exact: true, KVPrecision: "f16"}, transport.Config{}, "exact"},
		{"f32 beside bf16", ovrunner.Settings{KVPrecision: "f32", InferencePrecision: "bf16"}, transport.Config{}, "f32 beside computing in bf16"},
		{"bf16 beside f32", ovrunner.Settings{InferencePrecision: "f32"}, transport.Config{KVCacheType: "bf16"}, "bf16 beside computing in f32"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.settings.LibDir = libDir
			r, err := ovrunner.New(tt.settings).Load(t.Context(), engine.ModelSpec{Path: modelDir(t), Config: tt.config})
			if err == nil {
				_ = r.Close()
				t.Fatal("it was loaded")
			}
			if !errors.Is(err, transport.ErrUnsupportedFeature) || errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want ErrUnsupportedFeature that says %q", err, tt.says)
			}
		})
	}
}

// AUTO is as good as the CPU where it chooses that, and refused where it
// chooses another device.
func TestAutoRunsOnTheCPUOrNotAtAll(t *testing.T) {
	b := ovrunner.New(ovrunner.Settings{LibDir: libDir, Device: "AUTO"})
	spec := engine.ModelSpec{Path: modelDir(t), Config: transport.Config{NumCtx: 256}}
	info, err := b.Describe(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Load(t.Context(), spec)
	if err == nil {
		defer r.Close()
	}
	switch alone := len(info.Devices) == 1; {
	case alone && err != nil:
		t.Errorf("%v, though the CPU is the only device", err)
	case !alone && !errors.Is(err, transport.ErrUnsupportedFeature):
		t.Errorf("%v, want ErrUnsupportedFeature beside %+v", err, info.Devices)
	}
}
