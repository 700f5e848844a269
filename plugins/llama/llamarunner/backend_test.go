package llamarunner_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"modeld/core/engine"
	"modeld/core/transport"
	"modeld/internal/testparts"
	"modeld/plugins/llama/gguf"
	"modeld/plugins/llama/llamarunner"
)

// headOf returns the test model's header and the size of the whole file.
func headOf(t *testing.T) ([]byte, int64) {
	t.Helper()
	path := testparts.Model(t)
	file, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, file.DataOffset)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	return head, file.Size
}

// writeModel writes a file that starts with head and is size bytes long; the
// weights are zeros and take no space.
func writeModel(t *testing.T, path string, head []byte, size int64) string {
	t.Helper()
	if err := os.WriteFile(path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTruncatedModelsAreRefused(t *testing.T) {
	head, size := headOf(t)
	b := llamarunner.New(settings(t))
	path := filepath.Join(t.TempDir(), "cut.gguf")
	cuts := []int64{0, 1, 3, 4, 8, 16, 23, 24, 25, 100, 4096, 1 << 20, int64(len(head)) - 1, int64(len(head)), int64(len(head)) + 1, size / 2, size - 1}
	for _, n := range cuts {
		writeModel(t, path, head[:min(n, int64(len(head)))], n)
		spec := engine.ModelSpec{Path: path}
		if _, err := b.Describe(context.Background(), spec); !errors.Is(err, transport.ErrModelLoadFailed) {
			t.Errorf("Describe of %d bytes: %v", n, err)
		}
		if _, err := b.Load(context.Background(), spec); !errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), path) {
			t.Errorf("Load of %d bytes: %v", n, err)
		}
	}
}

// TestDamagedModelsLeaveTheProcessAlive flips bits all over the header. A
// damage may go unnoticed (a letter of a name), but whatever is refused is
// refused with an error, and this process goes on.
func TestDamagedModelsLeaveTheProcessAlive(t *testing.T) {
	head, size := headOf(t)
	b := llamarunner.New(settings(t))
	path := filepath.Join(t.TempDir(), "damaged.gguf")
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	positions := []int{4, 5, 8, 16, 24, len(head) - 100}
	for range 12 {
		positions = append(positions, random.IntN(6000), len(head)-1-random.IntN(15000))
	}
	for _, at := range positions {
		damaged := bytes.Clone(head)
		damaged[at] ^= 1 << random.IntN(8)
		writeModel(t, path, damaged, size)
		r, err := b.Load(context.Background(), engine.ModelSpec{Path: path, Config: transport.Config{NumCtx: 256}})
		if err == nil {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		refused++
		if !errors.Is(err, transport.ErrModelLoadFailed) {
			t.Errorf("byte %d flipped: %v", at, err)
		}
	}
	if refused < len(positions)/3 {
		t.Errorf("only %d of %d damaged files were refused", refused, len(positions))
	}
}

// TestProbeTakesTheCrash gives llama.cpp a well-formed header on which it
// aborts the process: more layers than it has room for.
func TestProbeTakesTheCrash(t *testing.T) {
	head, size := headOf(t)
	key := "llama.block_count"
	at := bytes.Index(head, []byte(key)) + len(key) + 4
	binary.LittleEndian.PutUint32(head[at:], 513)
	path := writeModel(t, filepath.Join(t.TempDir(), "crash.gguf"), head, size)
	_, err := llamarunner.New(settings(t)).Load(context.Background(), engine.ModelSpec{Path: path})
	if !errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), "GGML_ASSERT") {
		t.Errorf("error %v, want an ErrModelLoadFailed with the assertion that ended the probe", err)
	}
}

func TestModelsThatAreNot(t *testing.T) {
	head, size := headOf(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, path string
		is         error
		says       string
	}{
		{"missing", filepath.Join(dir, "none.gguf"), transport.ErrModelNotFound, "none.gguf"},
		{"folder", dir, transport.ErrBackendMismatch, "--backend openvino"},
		{"empty", write("empty.gguf", ""), transport.ErrModelLoadFailed, "truncated"},
		{"text", write("text.gguf", "hello, this is not a model"), transport.ErrModelLoadFailed, `instead of "GGUF"`},
		{"second part missing", writeModel(t, filepath.Join(dir, "m-00001-of-00002.gguf"), head, size), transport.ErrModelLoadFailed, "part 2 of 2 is missing"},
		{"part number beyond", write("n-00003-of-00002.gguf", "x"), transport.ErrModelLoadFailed, "part"},
		{"unknown architecture", writeModel(t, filepath.Join(dir, "arch.gguf"), bytes.ReplaceAll(head, []byte("llama"), []byte("lhama")), size), transport.ErrModelLoadFailed, "unknown model architecture: 'lhama'"},
	}
	b := llamarunner.New(settings(t))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := b.Load(context.Background(), engine.ModelSpec{Path: tt.path})
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %v that says %q", err, tt.is, tt.says)
			}
		})
	}
}

func TestOnePartOfOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model-00001-of-00001.gguf")
	if err := os.Symlink(testparts.Model(t), path); err != nil {
		t.Fatal(err)
	}
	if _, err := llamarunner.New(settings(t)).Describe(context.Background(), engine.ModelSpec{Path: path}); err != nil {
		t.Error(err)
	}
}

func TestDescribe(t *testing.T) {
	b := llamarunner.New(settings(t))
	spec := engine.ModelSpec{Path: testparts.Model(t)}
	info, err := b.Describe(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if info.ModelMaxContext != 8192 || info.EffectiveContext != 8192 || info.Clamped {
		t.Errorf("context: %+v", info)
	}
	// 30 layers, 3 KV heads, keys and values of 64 numbers of 2 bytes.
	if want := int64(30 * 3 * (64 + 64) * 2); info.KVBytesPerToken != want {
		t.Errorf("KV bytes a token %d, want %d", info.KVBytesPerToken, want)
	}
	if info.WeightsBytes < 90<<20 || info.WeightsBytes > 98362432 {
		t.Errorf("weights %d", info.WeightsBytes)
	}
	if info.RequiredBytes != info.WeightsBytes+info.OverheadBytes+8192*info.KVBytesPerToken || info.FreeBytes <= 0 {
		t.Errorf("memory: %+v", info)
	}
	if info.RuntimeName != "llama.cpp" || !strings.HasPrefix(info.RuntimeDigest, "sha256:") || info.RuntimeSystemInfo == "" {
		t.Errorf("runtime: %+v", info)
	}
	if len(info.Devices) == 0 || info.DeviceKind != info.Devices[0].Type || info.SupportsGPUOffload != (info.ResolvedGpuLayers > 0) {
		t.Errorf("devices: %+v", info)
	}
	if info.ChatTemplateFormat != "chatml" || info.ChatTemplateSupportsThinking || info.ChatTemplateSupportsToolCalls {
		t.Errorf("template: %+v", info)
	}
}

func TestConfig(t *testing.T) {
	tests := []struct {
		name   string
		s      llamarunner.Settings
		c      transport.Config
		ctx    int
		reason string
		is     error
	}{
		{"context", llamarunner.Settings{}, transport.Config{NumCtx: 1000}, 1000, "", nil},
		{"beyond the model", llamarunner.Settings{}, transport.Config{NumCtx: 100000}, 8192, "beyond the model's 8192", nil},
		{"beyond the cells", llamarunner.Settings{KVCells: 2000}, transport.Config{}, 2048, "2048 KV cells", nil},
		{"split share", llamarunner.Settings{KVCells: 8192, KVSplit: true}, transport.Config{}, 1024, "1024 KV cells", nil},
		{"q8_0", llamarunner.Settings{}, transport.Config{KVCacheType: "q8_0"}, 8192, "", nil},
		{"unknown KV type", llamarunner.Settings{}, transport.Config{KVCacheType: "q9"}, 0, `"q9"; there are: f16`, transport.ErrUnsupportedFeature},
		{"negative", llamarunner.Settings{}, transport.Config{NumCtx: -1}, 0, "NumCtx is -1", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.LibDir = testparts.LlamaLib(t)
			info, err := llamarunner.New(tt.s).Describe(context.Background(), engine.ModelSpec{Path: testparts.Model(t), Config: tt.c})
			if tt.ctx == 0 {
				if err == nil || !strings.Contains(err.Error(), tt.reason) || (tt.is != nil && !errors.Is(err, tt.is)) {
					t.Errorf("error %v, want one that says %q", err, tt.reason)
				}
				return
			}
			if err != nil || info.EffectiveContext != tt.ctx || !strings.Contains(info.Reason, tt.reason) || info.Clamped != (tt.reason != "") {
				t.Errorf("context %d (%q), %v; want %d (%q)", info.EffectiveContext, info.Reason, err, tt.ctx, tt.reason)
			}
		})
	}
}

func TestQuantizedKVDecodes(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 256, KVCacheType: "q8_0"})
	tokens := tokenize(t, r, codePrompt)
	if got := fresh(t, r, 0, tokens, 4); len(got) != 4 {
		t.Errorf("%v", got)
	}
}

func TestLoadRefuses(t *testing.T) {
	b := llamarunner.New(settings(t))
	spec := engine.ModelSpec{Path: testparts.Model(t), Adapters: []transport.AdapterSpec{{Name: "style"}}}
	if _, err := b.Load(context.Background(), spec); !errors.Is(err, transport.ErrUnsupportedFeature) || !strings.Contains(err.Error(), "style") {
		t.Errorf("adapter: %v", err)
	}
	s := settings(t)
	s.KVCells = 1 << 30 // 24 TB
	if _, err := llamarunner.New(s).Load(context.Background(), engine.ModelSpec{Path: testparts.Model(t)}); !errors.Is(err, transport.ErrInsufficientMemory) || !strings.Contains(err.Error(), "MiB are free") {
		t.Errorf("too large a KV cache: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Load(ctx, engine.ModelSpec{Path: testparts.Model(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := (llamarunner.Settings{Threads: -1}).Validate(); err == nil || !strings.Contains(err.Error(), "threads") {
		t.Errorf("negative threads: %v", err)
	}
}

// TestLibraries opens libraries in a process that has none yet.
func TestLibraries(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	missing := t.TempDir()
	older := fakeLibrary(t, `const char *llama_version(void) { return "0.4.2"; }`, "libllama.v0.4.2.so")
	silent := fakeLibrary(t, `int nothing;`, "libllama.v0.3.0.so")
	broken := fakeLibrary(t, `const char *llama_version(void) { return "0.5.0"; }`, "libllama.v0.5.0.so")
	tests := []struct {
		name, dir string
		code      int
		says      []string
	}{
		{"right", testparts.LlamaLib(t), 0, nil},
		{"missing", missing, 1, []string{missing, "make deps build", "v0.5.0"}},
		{"older", older, 1, []string{"llama.cpp 0.4.2", "built for v0.5.0"}},
		{"too old to say its version", silent, 1, []string{"llama.cpp v0.3.0", "built for v0.5.0"}},
		{"right version, wrong contents", broken, 1, []string{"opening llama.cpp in " + broken}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(exe, llamarunner.ProbeArg, tt.dir, testparts.Model(t))
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Fatalf("exit code %d, want %d (%v):\n%s", code, tt.code, err, out)
			}
			for _, says := range tt.says {
				if !strings.Contains(string(out), says) {
					t.Errorf("it does not say %q:\n%s", says, out)
				}
			}
		})
	}
}

// fakeLibrary compiles a libllama.so of its own making.
func fakeLibrary(t *testing.T, source, name string) string {
	t.Helper()
	dir := t.TempDir()
	c := filepath.Join(dir, "fake.c")
	if err := os.WriteFile(c, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", filepath.Join(dir, name), c).CombinedOutput(); err != nil {
		t.Fatalf("gcc is needed for this test (apt-get install gcc): %v\n%s", err, out)
	}
	for _, link := range []string{"libllama.so", "libggml.so", "libggml-base.so"} {
		if err := os.Symlink(name, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadingAgainAndAgainLeaksNothing(t *testing.T) {
	s := settings(t)
	s.ProbeCommand = nil
	once := func() {
		r, err := llamarunner.New(s).Load(context.Background(), engine.ModelSpec{Path: testparts.Model(t), Config: transport.Config{NumCtx: 512}})
		if err != nil {
			t.Fatal(err)
		}
		prefill(t, r, 0, 0, []engine.Token{1, 2, 3})
		if _, err := r.(engine.Embedder).Embed(context.Background(), [][]engine.Token{{1, 2, 3}}); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	once()
	once()
	memory, files := residentMiB(t), openFiles(t)
	for range 4 {
		once()
	}
	// One model takes about 200 MiB, so a leak of one would show.
	if grown := residentMiB(t) - memory; grown > 100 {
		t.Errorf("four more loads left %d MiB", grown)
	}
	if got := openFiles(t); got > files {
		t.Errorf("four more loads left %d open files", got-files)
	}
}

func residentMiB(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
