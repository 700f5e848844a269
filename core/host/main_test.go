//go:build unix

package host

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// plugins is the folder of the binaries under test: modeld-none and
// modeld-faulty.
var plugins string

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helperHost())
	}
	dir, err := os.MkdirTemp("", "plugins-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	plugins = dir
	for name, source := range map[string]string{"none": "../../plugins/none", "faulty": "./testdata/faulty"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "modeld-"+name+exeSuffix()), source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the plugin %s: %v\n%s", name, err, out)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// record collects what a Host tells.
type record struct {
	mu     sync.Mutex
	events []Event
	ups    []uint64
	logs   bytes.Buffer
	news   chan struct{}
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.Write(p)
}

func (r *record) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.String()
}

func (r *record) event(ev Event) {
	r.mu.Lock()
	r.events = append(r.events, ev)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// wait waits for the n-th event of a kind, from 1.
func (r *record) wait(t *testing.T, kind EventKind, n int) Event {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		seen := 0
		r.mu.Lock()
		for _, ev := range r.events {
			if ev.Kind == kind {
				if seen++; seen == n {
					r.mu.Unlock()
					return ev
				}
			}
		}
		r.mu.Unlock()
		select {
		case <-r.news:
		case <-timeout:
			t.Fatalf("no event %q number %d; log:\n%s", kind, n, r.logged())
		}
	}
}

// waitLog waits for a text in the log.
func (r *record) waitLog(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(r.logged(), text); {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not in the log:\n%.4000s", text, r.logged())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// options are for tests: quick and talkative.
func options(t *testing.T, backend string, settings any) (Options, *record) {
	t.Helper()
	r := &record{news: make(chan struct{}, 1)}
	runs := t.TempDir()
	if len(runs) > maxRunDirBase {
		var err error
		if runs, err = os.MkdirTemp("", "h-"); err != nil { //nolint:usetesting // sockets need short paths
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(runs) })
	}
	return Options{
		Backend: backend, Dir: plugins, Settings: settings, RunDir: runs,
		Logger:  slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OnEvent: r.event,
		OnUp: func(generation uint64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ups = append(r.ups, generation)
		},
		BackoffMin: 10 * time.Millisecond,
	}, r
}

// start runs a Host that is closed with the test, leaving nothing behind.
func start(t *testing.T, o Options) *Host {
	t.Helper()
	h := New(o)
	if err := h.Start(t.Context()); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothingLeft(t, o)
	})
	return h
}

func nothingLeft(t *testing.T, o Options) {
	t.Helper()
	if left, _ := os.ReadDir(o.RunDir); len(left) > 0 {
		t.Errorf("%d entries are left in the folder of sockets, among them %s", len(left), left[0].Name())
	}
}
