package ovrunner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
	"modeld/internal/testparts"
	"modeld/plugins/openvino/ovrunner"
)

// libDir holds the shim, built anew, and the tokenizers' extension.
var libDir string

func TestMain(m *testing.M) {
	code, err := withShim(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withShim(run func() int) (int, error) {
	dir, err := os.MkdirTemp("", "ov")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	libDir = dir
	parts := map[string]string{}
	for _, set := range []string{"openvino", "openvino-tokenizers"} {
		out, err := exec.Command("../../../scripts/deps.sh", "--print-dir", set).Output()
		if parts[set] = strings.TrimSpace(string(out)); err == nil {
			_, err = os.Stat(parts[set])
		}
		if err != nil {
			return 1, fmt.Errorf("the part %q is missing: run `make deps` (%w)", set, err)
		}
	}
	if text, err := exec.Command("../../../native/openvino/build.sh", parts["openvino"], filepath.Join(dir, "libmodeld_ov.so")).CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the shim: %w\n%s", err, text)
	}
	const extension = "libopenvino_tokenizers.so"
	if err := os.Symlink(filepath.Join(parts["openvino-tokenizers"], extension), filepath.Join(dir, extension)); err != nil {
		return 1, err
	}
	return run(), nil
}

func modelDir(t testing.TB) string { t.Helper(); return testparts.Dir(t, "openvino-model") }

func load(t testing.TB, s ovrunner.Settings, c transport.Config) engine.Runner {
	t.Helper()
	s.LibDir = libDir
	r, err := ovrunner.New(s).Load(context.Background(), engine.ModelSpec{Path: modelDir(t), Config: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// OpenVINO's kernels round by the shape of a batch, so that the same context
// may go on with another token where the two likeliest are nearly as likely.
func TestRunnerKeepsTheWaist(t *testing.T) {
	enginetest.RunRunner(t, func(t *testing.T) engine.Runner {
		return load(t, ovrunner.Settings{}, transport.Config{NumCtx: 1024})
	}, enginetest.NearTies(0.3))
}

// The engine over OpenVINO keeps the contract.
func TestConformance(t *testing.T) {
	svc := engine.New(ovrunner.New(ovrunner.Settings{LibDir: libDir}), engine.Options{})
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	transporttest.Run(t, func(*testing.T) transport.Service { return svc }, transporttest.Options{
		Lacks:   []transporttest.Feature{transporttest.Store, transporttest.Embeddings, transporttest.ExactDecode},
		Request: transport.OpenSessionRequest{Path: modelDir(t), Config: transport.Config{NumCtx: 512}},
	})
}

func TestText(t *testing.T) {
	r := load(t, ovrunner.Settings{}, transport.Config{NumCtx: 256})
	for _, text := range []string{"Hello, world", "東京 and 👩‍👩‍👧", " spaces  ", "a line\nand one", "a\x00b"} {
		tokens, err := r.Tokenize(text, false)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got, err := r.Detokenize(tokens); err != nil || got != text {
			t.Errorf("%q came back as %q, %v", text, got, err)
		}
	}
	chat, err := r.Tokenize("<|im_start|>user\nHi<|im_end|>", false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Detokenize(chat); err != nil || got != "user\nHi" {
		t.Errorf("special tokens: %q, %v; want none in the text", got, err)
	}
	if end := chat[len(chat)-1]; len(r.Info().EOG) != 1 || r.Info().EOG[0] != end {
		t.Errorf("the end of generation is %v, want %d", r.Info().EOG, end)
	}
	if !strings.Contains(r.Info().ChatTemplate, "<|im_start|>") {
		t.Errorf("the chat template is %q", r.Info().ChatTemplate)
	}
}

// The tokenizer of a model cuts a long text silently by itself; here it must
// come whole, so that the engine can say that it is too long.
func TestLongTextIsNotCut(t *testing.T) {
	r := load(t, ovrunner.Settings{}, transport.Config{NumCtx: 256})
	text := strings.Repeat("Once upon a time there was a small house by the sea. ", 3000)
	tokens, err := r.Tokenize(text, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Detokenize(tokens); err != nil || got != text {
		t.Errorf("%d bytes came back as %d from %d tokens, %v", len(text), len(got), len(tokens), err)
	}
}

// The tokenizer makes special tokens of bytes that are not UTF-8.
func TestBytesThatAreNoText(t *testing.T) {
	r := load(t, ovrunner.Settings{}, transport.Config{NumCtx: 256})
	tokens, err := r.Tokenize("\xff\xfe bad", false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Detokenize(tokens); err != nil || got != "\uFFFD bad" {
		t.Errorf("%v is %q, %v; want the replacement character", tokens, got, err)
	}
}

// What files beside the model say of it counts, and is checked.
func TestGenerationConfig(t *testing.T) {
	dir := copyModel(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("config.json", `{"max_position_embeddings": 300}`)
	write("tokenizer_config.json", `{"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}`)
	write("generation_config.json", `{"eos_token_id": [0, 7], "do_sample": true, "temperature": 0.6, "top_k": 20}`)
	backend := ovrunner.New(ovrunner.Settings{LibDir: libDir})
	r, err := backend.Load(t.Context(), engine.ModelSpec{Path: dir, Config: transport.Config{NumCtx: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	info := r.Info()
	if !slices.Equal(info.EOG, []engine.Token{0, 7, 2}) || info.NumCtx != 300 || !info.Model.Clamped ||
		info.BOSText != "<|im_start|>" || info.EOSText != "<|im_end|>" ||
		info.Sampling.Temperature == nil || *info.Sampling.Temperature != 0.6 || info.Sampling.TopK != 20 || info.Sampling.TopP != nil {
		t.Errorf("%+v", info)
	}
	write("generation_config.json", `{"eos_token_id": 49152}`)
	if _, err := backend.Load(t.Context(), engine.ModelSpec{Path: dir}); !errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), "49152") {
		t.Errorf("an end that is no token: %v", err)
	}
}

func TestMoreMemoryThanThereIs(t *testing.T) {
	_, err := ovrunner.New(ovrunner.Settings{LibDir: libDir, KVTokens: 1 << 30}).Load(t.Context(), engine.ModelSpec{Path: modelDir(t)})
	if !errors.Is(err, transport.ErrInsufficientMemory) || errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), "kv_tokens") {
		t.Errorf("%v, want ErrInsufficientMemory that says what to lower", err)
	}
}

func TestDescribe(t *testing.T) {
	b := ovrunner.New(ovrunner.Settings{LibDir: libDir})
	info, err := b.Describe(t.Context(), engine.ModelSpec{Path: modelDir(t), Config: transport.Config{NumCtx: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	if info.RuntimeName != "OpenVINO" || !strings.HasPrefix(info.RuntimeDigest, "2026.4.1") || info.EffectiveContext != 1000 ||
		info.ChatTemplateFormat != "chatml" || info.WeightsBytes < 80<<20 || len(info.Devices) == 0 || info.Devices[0].Name != "CPU" {
		t.Errorf("%+v", info)
	}
}

// copyModel copies the model's folder and returns the copy.
func copyModel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(modelDir(t))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What can't be loaded is refused by name, and the process lives.
func TestModelsThatCannotBeLoaded(t *testing.T) {
	change := func(file string, f func([]byte) []byte) string {
		dir := copyModel(t)
		path := filepath.Join(dir, file)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if data = f(data); data == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	half := func(data []byte) []byte { return data[:len(data)/2] }
	tests := []struct {
		name, path string
		is         error
		says       string
	}{
		{"nothing there", "/none/such", transport.ErrModelNotFound, "/none/such"},
		{"a GGUF file", testparts.Model(t), transport.ErrBackendMismatch, "convert-gguf.sh"},
		{"an empty folder", t.TempDir(), transport.ErrModelLoadFailed, "openvino_model.xml"},
		{"no tokenizer", change("openvino_tokenizer.xml", func([]byte) []byte { return nil }), transport.ErrModelLoadFailed, "openvino_tokenizer.xml"},
		{"half of the weights", change("openvino_model.bin", half), transport.ErrModelLoadFailed, ""},
		{"half of the graph", change("openvino_model.xml", half), transport.ErrModelLoadFailed, ""},
		{"another graph", change("openvino_model.xml", func([]byte) []byte { return []byte("<net/>") }), transport.ErrModelLoadFailed, ""},
		{"half of the tokenizer", change("openvino_tokenizer.bin", half), transport.ErrModelLoadFailed, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ovrunner.New(ovrunner.Settings{LibDir: libDir}).Load(t.Context(), engine.ModelSpec{Path: tt.path})
			if err == nil {
				_ = r.Close()
				t.Fatal("it was loaded")
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %v that says %q", err, tt.is, tt.says)
			}
		})
	}
}

func TestLibrariesThatCannotBeUsed(t *testing.T) {
	spec := engine.ModelSpec{Path: modelDir(t)}
	if _, err := ovrunner.New(ovrunner.Settings{LibDir: t.TempDir()}).Load(t.Context(), spec); !errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("no library: %v", err)
	}
	dir := t.TempDir()
	for _, name := range []string{"libmodeld_ov.so", "libopenvino_tokenizers.so"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ovrunner.New(ovrunner.Settings{LibDir: dir}).Load(t.Context(), spec); !errors.Is(err, transport.ErrModelLoadFailed) || !strings.Contains(err.Error(), "2026.4.1") {
		t.Errorf("a file that is no library: %v", err)
	}
}
