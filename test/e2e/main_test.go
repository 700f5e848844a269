// Package e2e tests modeld as its users run it: the real binaries, the real
// llama.cpp and model, real plugin processes, a real NATS server.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"modeld/client"
	"modeld/core/transport"
	"modeld/test/modeldproc"
)

// What TestMain builds and finds.
var (
	binDir string // modeld, plugins/, lib/
	modeld string
	gguf   string
)

func TestMain(m *testing.M) {
	code, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// prepare builds what is tested, so that it is never an older build.
func prepare(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binDir, modeld = dir, filepath.Join(dir, "modeld")
	for out, pkg := range map[string]string{
		modeld: "modeld/cmd/modeld",
		filepath.Join(dir, "plugins", "modeld-llama"):    "modeld/plugins/llama",
		filepath.Join(dir, "plugins", "modeld-none"):     "modeld/plugins/none",
		filepath.Join(dir, "plugins", "modeld-openvino"): "modeld/plugins/openvino",
	} {
		cmd := exec.Command("go", "build", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	lib, err := part("llama")
	if err != nil {
		return 0, err
	}
	if err := os.Mkdir(filepath.Join(dir, "lib"), 0o755); err != nil {
		return 0, err
	}
	if err := os.Symlink(lib, filepath.Join(dir, "lib", "llama")); err != nil {
		return 0, err
	}
	if err := prepareOpenVINO(filepath.Join(dir, "lib", "openvino")); err != nil {
		return 0, err
	}
	model, err := part("model")
	if err != nil {
		return 0, err
	}
	found, err := filepath.Glob(filepath.Join(model, "*.gguf"))
	if err != nil || len(found) != 1 {
		return 0, fmt.Errorf("one GGUF file expected in %s, found %v; run make deps", model, found)
	}
	gguf = found[0]
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		return 0, err
	}
	return code, nil
}

// prepareOpenVINO builds the shim and puts what it needs beside it.
func prepareOpenVINO(dir string) error {
	runtime, err := part("openvino")
	if err != nil {
		return err
	}
	if text, err := exec.Command("../../native/openvino/build.sh", runtime, filepath.Join(dir, "libmodeld_ov.so")).CombinedOutput(); err != nil {
		return fmt.Errorf("build the OpenVINO shim: %w\n%s", err, text)
	}
	tokenizers, err := part("openvino-tokenizers")
	if err != nil {
		return err
	}
	const extension = "libopenvino_tokenizers.so"
	return os.Symlink(filepath.Join(tokenizers, extension), filepath.Join(dir, extension))
}

// part returns where a fetched part is.
func part(name string) (string, error) {
	out, err := exec.Command("../../scripts/deps.sh", "--print-dir", name).Output()
	dir := strings.TrimSpace(string(out))
	if err == nil {
		_, err = os.Stat(dir)
	}
	if err != nil {
		return "", fmt.Errorf("the part %q is missing (%w); run make deps", name, err)
	}
	return dir, nil
}

// serve starts a daemon that ends with the test, cleanly.
func serve(t *testing.T, args ...string) *modeldproc.Daemon {
	t.Helper()
	d := launch(t, args...)
	if err := d.AwaitServing(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return d
}

// launch is serve for one that does not serve yet.
func launch(t *testing.T, args ...string) *modeldproc.Daemon {
	t.Helper()
	d, err := modeldproc.Launch(modeld, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
		if err := d.Stop(after(t, 20*time.Second)); err != nil {
			t.Errorf("stop: %v", err)
		}
		_ = os.RemoveAll(d.StateDir)
	})
	return d
}

func serveLlama(t *testing.T, args ...string) *modeldproc.Daemon {
	t.Helper()
	return serve(t, append([]string{"--backend", "llama", "--model", gguf}, args...)...)
}

// serveEcho starts a daemon whose backend answers with words and computes
// nothing. settings are more of the none backend's, in YAML.
func serveEcho(t *testing.T, settings ...string) *modeldproc.Daemon {
	t.Helper()
	return serve(t, "--backend", "none", "--config", writeConfig(t, "none:\n  echo: true\n  "+strings.Join(settings, "\n  ")))
}

func writeConfig(t *testing.T, yaml string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(yaml+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func dial(t *testing.T, d *modeldproc.Daemon) *client.Client {
	t.Helper()
	c, err := d.Client(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func open(t *testing.T, svc transport.Service) transport.Session {
	t.Helper()
	sess, err := svc.OpenSession(within(t, 30*time.Second), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sess.Close() })
	return sess
}

// within is the test's context with a deadline.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// after is a context for a cleanup, when the test's own has ended.
func after(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// outcome is how a command ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// run runs a modeld command to its end.
func run(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), modeld, args...)
	cmd.Env = modeldproc.Env()
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("modeld %v: %v", args, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// runOK runs a command that has to succeed and returns what it printed.
func runOK(t *testing.T, args ...string) string {
	t.Helper()
	o := run(t, "", args...)
	if o.code != 0 {
		t.Fatalf("modeld %v: exit code %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	return o.stdout
}

func decodeJSON[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
