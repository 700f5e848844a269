// Package testparts finds the native libraries and models that tests use. They
// are fetched by scripts/deps.sh; a missing one fails the test.
package testparts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Dir returns the folder of a set's only part, such as "llama".
func Dir(tb testing.TB, set string) string {
	tb.Helper()
	script := filepath.Join(Root(tb), "scripts", "deps.sh")
	out, err := exec.CommandContext(tb.Context(), script, "--print-dir", set).Output()
	if err != nil {
		tb.Fatalf("%s --print-dir %s: %v", script, set, err)
	}
	dir := strings.TrimSpace(string(out))
	if _, err := os.Stat(dir); err != nil {
		tb.Fatalf("the part %q is missing: run `make deps` (%v)", set, err)
	}
	return dir
}

// LlamaLib returns the folder of the llama.cpp libraries.
func LlamaLib(tb testing.TB) string { tb.Helper(); return Dir(tb, "llama") }

// Model returns the path of the test model, a small GGUF with a chat template.
func Model(tb testing.TB) string {
	tb.Helper()
	found, err := filepath.Glob(filepath.Join(Dir(tb, "model"), "*.gguf"))
	if err != nil || len(found) != 1 {
		tb.Fatalf("want one GGUF file in %s, found %v", Dir(tb, "model"), found)
	}
	return found[0]
}

// Root returns the repository's root, the folder of go.mod.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		tb.Fatal("no go.mod above the test's folder")
	}
}
