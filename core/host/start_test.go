//go:build unix

package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStartFailures: an error names the file, says what is wrong and what to
// do, and nothing is left.
func TestStartFailures(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	faulty := filepath.Join(plugins, "modeld-faulty")
	mode := func(m string) any { return map[string]string{"mode": m} }
	tests := []struct {
		name string
		set  func(*Options)
		is   error
		says []string
	}{
		{"missing", func(o *Options) { o.Backend = "lama" }, fs.ErrNotExist,
			[]string{plugins, "modeld-lama", "backends there: faulty, none", "plugins.dir"}},
		{"missing folder", func(o *Options) { o.Dir = filepath.Join(dir, "gone") }, fs.ErrNotExist,
			[]string{filepath.Join(dir, "gone"), "does not exist", "plugins.dir"}},
		{"not executable", func(o *Options) { o.Path = write("plain", "x", 0o644) }, fs.ErrPermission,
			[]string{filepath.Join(dir, "plain"), "not executable", "chmod +x"}},
		{"a folder", func(o *Options) { o.Path = dir }, nil, []string{dir, "is a folder"}},
		{"no program", func(o *Options) { o.Path = write("noprogram", "\x00\x01\x02", 0o755) }, nil,
			[]string{filepath.Join(dir, "noprogram"), "is not a program for", "install the build for this machine"}},
		{"wrong checksum", func(o *Options) { o.SHA256 = strings.Repeat("ab", 32) }, ErrChecksum,
			[]string{faulty, "abababab", "install the pinned build"}},
		{"malformed checksum", func(o *Options) { o.SHA256 = "abc" }, nil, []string{faulty, "64 hex digits"}},
		{"exits", func(o *Options) { o.Settings = mode("exit") }, ErrStart,
			[]string{faulty, "exited with status 1", "libexample.so is missing: run make deps"}},
		{"panics", func(o *Options) { o.Settings = mode("panic") }, ErrStart,
			[]string{faulty, "exited with status 2", "panic: a bug"}},
		{"unknown setting", func(o *Options) { o.Settings = map[string]string{"mod": "exit"} }, ErrStart,
			[]string{faulty, `unknown key "mod": the nearest known one is "mode"`}},
		{"no plugin", func(o *Options) { o.Settings = mode("text") }, ErrNotPlugin,
			[]string{faulty, "usage: faulty [options]", "core/plugin"}},
		{"other version", func(o *Options) { o.Settings = mode("version") }, ErrVersion,
			[]string{faulty, "version 99", "install the modeld-faulty that belongs"}},
		{"no handshake", func(o *Options) { o.Settings, o.StartTimeout = mode("sleep"), 500*time.Millisecond }, ErrStart,
			[]string{faulty, "no handshake within 500ms", "waiting for something", "plugins.start_timeout"}},
		{"dies after its handshake", func(o *Options) { o.Settings = mode("die after handshake") }, ErrStart,
			[]string{faulty, "exited with status 7", "out of luck"}},
		{"settings too long", func(o *Options) { o.Settings = mode(strings.Repeat("x", 200<<10)) }, nil,
			[]string{"at most", "put long values into files"}},
		{"settings not JSON", func(o *Options) { o.Settings = func() {} }, nil, []string{"backend settings"}},
		{"environment", func(o *Options) { o.Env = []string{"[a"} }, nil, []string{"plugin environment", `"[a"`}},
		{"long folder of sockets", func(o *Options) { o.RunDir = "/" + strings.Repeat("d", 90) }, nil, []string{"too long for a Unix socket"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, _ := options(t, "faulty", nil)
			runs := o.RunDir
			tt.set(&o)
			h := New(o)
			began := time.Now()
			err := h.Start(t.Context())
			if err == nil {
				_ = h.Close(t.Context())
				t.Fatal("Start succeeded")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Start = %v, want one that is %v", err, tt.is)
			}
			for _, text := range tt.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("Start = %v\nwant %q in it", err, text)
				}
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if _, err := h.OpenSession(t.Context(), noModel); !errors.Is(err, ErrClosed) {
				t.Errorf("OpenSession of a host that did not start = %v", err)
			}
			o.RunDir = runs
			nothingLeft(t, o)
			noChildren(t)
		})
	}
}

func TestStartCancelled(t *testing.T) {
	o, _ := options(t, "faulty", map[string]string{"mode": "sleep"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := New(o).Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start = %v, want %v", err, context.DeadlineExceeded)
	}
	nothingLeft(t, o)
	noChildren(t)
}

func TestPinnedBinary(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(plugins, "modeld-none"+exeSuffix()))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	o, _ := options(t, "none", map[string]any{"echo": true})
	o.SHA256 = "sha256:" + hex.EncodeToString(sum[:])
	h := start(t, o)
	if got := sayOnce(t, h, "pinned"); got != "pinned" {
		t.Errorf("it said %q", got)
	}
}

func TestFindRefusesPaths(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../none", "a/b", `a\b`, "none\x00", "-x", strings.Repeat("a", 64)} {
		if _, err := Find(plugins, name); err == nil || !strings.Contains(err.Error(), "backend name") {
			t.Errorf("Find(%q) = %v", name, err)
		}
	}
	path, err := Find(plugins, "none")
	if err != nil || filepath.Dir(path) != plugins {
		t.Errorf("Find(none) = %q, %v", path, err)
	}
}
