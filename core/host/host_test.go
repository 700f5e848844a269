//go:build unix

package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

var noModel transport.OpenSessionRequest

type m = map[string]any

// sayOnce has a fresh session of an echoing plugin say text.
func sayOnce(t *testing.T, h *Host, text string) string {
	t.Helper()
	sess, err := h.OpenSession(t.Context(), noModel)
	if err != nil {
		t.Fatalf("OpenSession: %v", err)
	}
	defer sess.Close()
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: text}); err != nil {
		t.Fatalf("EnsurePrefix: %v", err)
	}
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	var said strings.Builder
	for c := range ch {
		if c.Error != nil {
			t.Fatalf("chunk: %v", c.Error)
		}
		said.WriteString(c.Text)
	}
	return said.String()
}

// decodeLong starts a generation that does not end by itself and returns after
// its first chunk.
func decodeLong(t *testing.T, h *Host) (transport.Session, <-chan transport.StreamChunk) {
	t.Helper()
	sess, err := h.OpenSession(t.Context(), noModel)
	if err != nil {
		t.Fatalf("OpenSession: %v", err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x"}); err != nil {
		t.Fatalf("EnsurePrefix: %v", err)
	}
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	if c := <-ch; c.Error != nil {
		t.Fatalf("first chunk: %v", c.Error)
	}
	return sess, ch
}

// lastError drains a stream, which must end soon, and returns its error.
func lastError(t *testing.T, ch <-chan transport.StreamChunk) (err error) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case c, more := <-ch:
			if !more {
				return err
			}
			err = c.Error
		case <-timeout:
			t.Fatal("the stream did not end")
		}
	}
}

var endless = m{"echo": true, "text": "on and on ", "loop": true, "tokens_per_second": 100}

func TestConformance(t *testing.T) {
	o, _ := options(t, "none", m{"echo": true, "max_ctx": 2048})
	h := start(t, o)
	transporttest.Run(t, func(*testing.T) transport.Service { return h },
		transporttest.Options{Lacks: []transporttest.Feature{transporttest.Store}})
}

func TestReady(t *testing.T) {
	o, _ := options(t, "none", m{"echo": true})
	h := New(o)
	if err := h.Ready(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("before Start: %v", err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Ready(t.Context()); err != nil {
		t.Errorf("with echo: %v", err)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Ready(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	for _, call := range []func() error{
		func() error { _, err := h.OpenSession(t.Context(), noModel); return err },
		func() error { _, err := h.Describe(t.Context(), noModel); return err },
		func() error { _, err := h.Embed(t.Context(), transport.EmbedRequest{}); return err },
		func() error { _, err := h.Status(t.Context()); return err },
		func() error { _, err := h.LoadModel(t.Context(), transport.LoadModelRequest{}); return err },
		func() error { return h.UnloadModel(t.Context(), transport.UnloadModelRequest{}) },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("a call after Close: %v", err)
		}
	}
	if err := h.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestNoBackend: modeld-none without echo answers, but takes no work.
func TestNoBackend(t *testing.T) {
	o, _ := options(t, "none", nil)
	h := start(t, o)
	if err := h.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "can't take work") {
		t.Errorf("Ready = %v", err)
	}
	if _, err := h.OpenSession(t.Context(), noModel); !errors.Is(err, transport.ErrUnsupportedFeature) || !strings.Contains(err.Error(), "--backend llama") {
		t.Errorf("OpenSession = %v", err)
	}
	if _, err := h.Embed(t.Context(), transport.EmbedRequest{}); !errors.Is(err, transport.ErrUnsupportedFeature) {
		t.Errorf("Embed = %v", err)
	}
	if st, err := h.Status(t.Context()); err != nil || st.State != transport.SlotEmpty {
		t.Errorf("Status = %+v, %v", st, err)
	}
}

// TestNoisyPlugin: a plugin of go-plugin alone, without this project's guards,
// may print anything.
func TestNoisyPlugin(t *testing.T) {
	o, r := options(t, "faulty", m{"mode": "noisy"})
	h := start(t, o)
	r.waitLog(t, "noise 1 ends")
	r.waitLog(t, "noise 2 ends")
	if got := sayOnce(t, h, "still here"); got != "still here" {
		t.Errorf("it said %q", got)
	}
	if log := r.logged(); !strings.Contains(log, "level=WARN msg=fine") || !strings.Contains(log, "bytes cut)") {
		t.Errorf("the log lacks lines of the noise:\n%.3000s", log)
	}
	if h.Generation() != 1 {
		t.Errorf("generation %d, want 1", h.Generation())
	}
}

// TestEnvironment: a plugin sees neither the host's secrets nor its own
// settings twice.
func TestEnvironment(t *testing.T) {
	t.Setenv("MODELD_NATS__PASSWORD", "secret")
	t.Setenv("EXTRA_ONE", "1")
	o, r := options(t, "faulty", m{"mode": "environment"})
	o.Env = []string{"EXTRA_*", "EXTRA_TWO=2"}
	start(t, o)
	r.waitLog(t, "EXTRA_ONE=1")
	log := r.logged()
	for text, want := range map[string]bool{"EXTRA_TWO=2": true, "PATH=": true, "MODELD_PLUGIN_LOG_LEVEL=debug": true, "NATS__PASSWORD": false} {
		if strings.Contains(log, text) != want {
			t.Errorf("%q in the plugin's environment: %t, want %t", text, !want, want)
		}
	}
}

// TestCloseIsGraceful: a plugin is given its time to close, and a stream that
// breaks meanwhile is no reason to kill it.
func TestCloseIsGraceful(t *testing.T) {
	o, r := options(t, "faulty", m{"mode": "polite"})
	h := New(o)
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, ch := decodeLong(t, h)
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lastError(t, ch); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("the stream ended with %v, want ErrSessionFatal", err)
	}
	if !strings.Contains(r.logged(), "msg=goodbye") {
		t.Error("the plugin's Close was not awaited")
	}
	if ev := r.wait(t, EventStopped, 1); ev.ExitCode != 0 || ev.Err != nil {
		t.Errorf("event %+v", ev)
	}
	nothingLeft(t, o)
}

func TestCloseKillsStubborn(t *testing.T) {
	o, r := options(t, "faulty", m{"mode": "stubborn"})
	o.StopGrace = 300 * time.Millisecond
	h := New(o)
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
	if ev := r.wait(t, EventStopped, 1); ev.Signal != "SIGKILL" {
		t.Errorf("event %+v", ev)
	}
	nothingLeft(t, o)
}

// TestCrashLoop: after a few failures calls no longer wait, and an event says so.
func TestCrashLoop(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "modeld-none"+exeSuffix())
	copyFile(t, filepath.Join(plugins, "modeld-none"+exeSuffix()), path)
	o, r := options(t, "none", m{"echo": true, "crash_after_tokens": 1})
	o.Dir, o.CrashLoopAfter = dir, 3
	h := start(t, o)

	sess, err := h.OpenSession(t.Context(), noModel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "crash"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil { // no restart can succeed
		t.Fatal(err)
	}
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err == nil { // it may crash before Decode returns
		err = lastError(t, ch)
	}
	if !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("the stream ended with %v, want ErrSessionFatal", err)
	}
	exited := r.wait(t, EventExited, 1)
	if exited.ExitCode != 2 || exited.Failures != 1 || !strings.Contains(strings.Join(exited.Stderr, "\n"), "crash_after_tokens is reached") {
		t.Errorf("event of the crash: %+v", exited)
	}
	loop := r.wait(t, EventCrashLoop, 1)
	if loop.Failures != 3 || !strings.Contains(loop.Err.Error(), "modeld-none") || loop.NextStart <= 0 {
		t.Errorf("event of the loop: %+v", loop)
	}
	_, err = h.OpenSession(t.Context(), noModel)
	if !errors.Is(err, ErrDown) || !errors.Is(err, transport.ErrModelBusy) || !strings.Contains(err.Error(), dir) {
		t.Errorf("OpenSession in a crash loop = %v", err)
	}
	if err := h.Ready(t.Context()); !errors.Is(err, ErrDown) {
		t.Errorf("Ready in a crash loop = %v", err)
	}
	// Once the cause is gone it serves again.
	copyFile(t, filepath.Join(plugins, "modeld-none"+exeSuffix()), path)
	r.wait(t, EventUp, 2)
	sess, err = h.OpenSession(t.Context(), noModel)
	if err != nil {
		t.Fatalf("OpenSession after the loop = %v", err)
	}
	sess.Close()
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to+".new", data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(to+".new", to); err != nil {
		t.Fatal(err)
	}
}

// TestCallsWaitForRestart: a call in the gap between two launches waits, within
// its bounds.
func TestCallsWaitForRestart(t *testing.T) {
	o, r := options(t, "none", m{"echo": true})
	o.BackoffMin, o.BackoffMax, o.CallWait = time.Second, time.Second, 100*time.Millisecond
	h := start(t, o)
	killPlugin(t, r.wait(t, EventUp, 1).PID)
	r.wait(t, EventExited, 1)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.OpenSession(ctx, noModel); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("OpenSession within 10 ms = %v", err)
	}
	if _, err := h.OpenSession(t.Context(), noModel); !errors.Is(err, ErrDown) {
		t.Errorf("OpenSession within CallWait = %v", err)
	}
	h.opts.CallWait = 20 * time.Second
	if got := sayOnce(t, h, "back"); got != "back" {
		t.Errorf("it said %q", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.ups, []uint64{1, 2}) || h.Generation() != 2 {
		t.Errorf("OnUp got %v and the generation is %d", r.ups, h.Generation())
	}
}
