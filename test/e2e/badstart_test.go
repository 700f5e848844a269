package e2e

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modeld/natsserver"
	"modeld/test/modeldproc"
)

// stateDir makes a short one: it holds a Unix socket.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "modeld") //nolint:usetesting // t.TempDir is too long a path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A daemon that can't start says in one line what is wrong and what to do, and
// leaves nothing running.
func TestServeThatCannotStart(t *testing.T) {
	dir := t.TempDir()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	model, err := os.ReadFile(gguf)
	if err != nil {
		t.Fatal(err)
	}
	truncated := filepath.Join(dir, "truncated.gguf")
	damaged := filepath.Join(dir, "damaged.gguf")
	script := filepath.Join(dir, "plugins", "modeld-script")
	for path, data := range map[string][]byte{
		truncated: model[:len(model)/2],
		damaged:   append(bytes.Repeat([]byte{'x'}, 64), model[64:1<<20]...),
		filepath.Join(dir, "plugins", "modeld-plain"): []byte("text"),
		script: []byte("#!/bin/sh\necho it broke >&2\nexit 3\n"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	nats, err := natsserver.Start(t.Context(), natsserver.Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nats.Shutdown(after(t, 10*time.Second)) }()
	wrong := strings.Replace(nats.ClientURL(), "nats://modeld:", "nats://modeld:wrong", 1)

	tests := []struct {
		name string
		args []string
		yaml string
		code int
		says []string
	}{
		{name: "unknown key", yaml: "slott: x", args: []string{"--model", gguf}, code: 2, says: []string{`"slott"`, `"slot"`}},
		{name: "no model", code: 2, says: []string{"--model PATH"}},
		{name: "model that is not there", args: []string{"--model", dir + "/none.gguf"}, code: 2, says: []string{"none.gguf", "no such file"}},
		{name: "truncated model", args: []string{"--model", truncated}, code: 4, says: []string{"truncated.gguf", "model load failed"}},
		{name: "damaged model", args: []string{"--model", damaged}, code: 4, says: []string{"damaged.gguf", "model load failed"}},
		{name: "a folder for llama", args: []string{"--model", dir}, code: 4, says: []string{"backend mismatch"}},
		{name: "busy port", args: []string{"--model", gguf, "--listen", busy.Addr().String()}, code: 1, says: []string{busy.Addr().String(), "in use", "--listen"}},
		{name: "a port for everybody", args: []string{"--model", gguf, "--listen", "0.0.0.0:0"}, code: 2, says: []string{"listen", "TLS"}},
		{name: "unknown backend", args: []string{"--model", gguf, "--backend", "abacus"}, code: 1, says: []string{"modeld-abacus", "llama"}},
		{name: "plugin that is no program", yaml: "plugins: {dir: " + dir + "/plugins}", args: []string{"--model", gguf, "--backend", "plain"}, code: 1, says: []string{"modeld-plain", "chmod"}},
		{name: "plugin that crashes", yaml: "plugins: {dir: " + dir + "/plugins}", args: []string{"--model", gguf, "--backend", "script"}, code: 1, says: []string{"modeld-script", "it broke", "3"}},
		{name: "plugin of another hash", yaml: "plugins: {sha256: {llama: " + strings.Repeat("ab", 32) + "}}", args: []string{"--model", gguf}, code: 1, says: []string{"modeld-llama", "abab"}},
		{name: "setting that the plugin lacks", yaml: "llama: {thraeds: 2}", args: []string{"--model", gguf}, code: 1, says: []string{`"thraeds"`, `"threads"`}},
		{name: "NATS down", yaml: "nats: {connect_timeout: 300ms}", args: []string{"--model", gguf, "--nats", "nats://127.0.0.1:1"}, code: 1, says: []string{"127.0.0.1:1", "is it running"}},
		{name: "wrong NATS password", yaml: "nats: {connect_timeout: 300ms}", args: []string{"--model", gguf, "--nats", wrong}, code: 1, says: []string{"Authorization", "credentials"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := modeldproc.Launch(modeld, append(tt.args, "--config", writeConfig(t, tt.yaml), "--state-dir", stateDir(t))...)
			if err != nil {
				t.Fatal(err)
			}
			code, err := d.ExitCode(within(t, 30*time.Second))
			if err != nil {
				_ = d.Kill()
				t.Fatal(err)
			}
			var lines []string
			for l := range strings.Lines(d.Log()) {
				if strings.HasPrefix(l, "modeld: ") {
					lines = append(lines, l)
				}
			}
			line := strings.Join(lines, "")
			if code != tt.code || len(lines) != 1 {
				t.Errorf("exit code %d, want %d; it said %q\n%s", code, tt.code, line, d.Log())
			}
			for _, want := range tt.says {
				if !strings.Contains(line, want) {
					t.Errorf("%q does not say %q", line, want)
				}
			}
			if strings.Contains(d.Log(), "modeld:wrong") {
				t.Error("the password is in the log")
			}
		})
	}
}

// Two daemons can't share a state folder; the second one says who has it.
func TestSecondDaemonOnOneStateFolder(t *testing.T) {
	first := serveEcho(t)
	second, err := modeldproc.Launch(modeld, "--backend", "none", "--state-dir", first.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	code, err := second.ExitCode(within(t, 30*time.Second))
	if err != nil || code != 1 {
		t.Errorf("exit code %d, %v; want 1", code, err)
	}
	if log := second.Log(); !strings.Contains(log, first.StateDir) || !strings.Contains(log, "process") {
		t.Errorf("it does not name the folder and the process:\n%s", log)
	}
	if text, _ := generate(t, open(t, dial(t, first)), "still here", 4); text == "" {
		t.Error("the first one serves no more")
	}
}
