//go:build unix

package plugin

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// printer builds the plugin under test.
func printer(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "modeld-printer")
	build := exec.Command("go", "build", "-o", path, "./testdata/printer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestServeByHand: a person who runs a plugin is told what to do.
func TestServeByHand(t *testing.T) {
	out, err := exec.Command(printer(t)).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v, want status 1", err)
	}
	if !strings.Contains(string(out), "run modeld --backend printer") {
		t.Errorf("it said %q", out)
	}
}

// TestServe launches a plugin as a host of any language would, and then is gone.
func TestServe(t *testing.T) {
	path := printer(t)
	for name, hangs := range map[string]string{"closing in time": "", "hanging": "1"} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			cmd := exec.Command(path)
			cmd.Env = []string{
				CookieKey + "=" + CookieValue, EnvLifeline + "=3", "PLUGIN_PROTOCOL_VERSIONS=1",
				"PLUGIN_UNIX_SOCKET_DIR=" + t.TempDir(), "HANGS=" + hangs,
			}
			cmd.Stderr = &stderr
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			cmd.ExtraFiles = []*os.File{r}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r.Close()
			in := bufio.NewReader(stdout)
			line, err := in.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "1|1|unix|") || !strings.Contains(line, "|grpc|") {
				t.Errorf("the handshake is %q, %v", line, err)
			}
			time.Sleep(500 * time.Millisecond) // the library prints once more

			began := time.Now()
			w.Close()
			rest, _ := io.ReadAll(in)
			err = cmd.Wait()
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it outlived its host by %v", took)
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want status 1", err)
			}
			if len(rest) > 0 {
				t.Errorf("standard output goes on with %q", rest)
			}
			want := []string{"loading a library", "computing"}
			if hangs == "" {
				want = append(want, "closed, but not cleanly")
			}
			for _, text := range want {
				if !strings.Contains(stderr.String(), text) {
					t.Errorf("standard error lacks %q:\n%s", text, stderr.String())
				}
			}
		})
	}
}
