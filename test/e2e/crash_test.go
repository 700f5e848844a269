package e2e

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"modeld/client"
	"modeld/core/transport"
	"modeld/natslease"
	"modeld/natsserver"
	"modeld/test/modeldproc"
)

// onlyPlugin returns the process id of the daemon's one plugin.
func onlyPlugin(t *testing.T, d *modeldproc.Daemon) int {
	t.Helper()
	pids, err := d.Plugins()
	if err != nil || len(pids) != 1 {
		t.Fatalf("the daemon's plugins: %v, %v; want one", pids, err)
	}
	return pids[0]
}

// gone waits for a process to end.
func gone(t *testing.T, pid int, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); modeldproc.Alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d still runs after %s", pid, within)
		}
	}
}

// Native code crashes: the stream that ran says so, and the daemon serves on.
func TestPluginKilledInTheMiddleOfADecode(t *testing.T) {
	d := serveLlama(t)
	c := dial(t, d)
	sess := open(t, c)
	ctx := within(t, time.Minute)
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "Once upon a time"}); err != nil {
		t.Fatal(err)
	}
	chunks, err := sess.Decode(ctx, transport.DecodeConfig{Temperature: new(float64)})
	if err != nil {
		t.Fatal(err)
	}
	<-chunks // it runs
	pid := onlyPlugin(t, d)
	killed := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var last error
	for chunk := range chunks {
		last = chunk.Error
	}
	if !errors.Is(last, transport.ErrSessionFatal) {
		t.Errorf("the stream ended with %v, want ErrSessionFatal", last)
	}
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "x"}); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("a call on the lost session: %v, want ErrSessionFatal", err)
	}
	text, _ := generate(t, reopen(t, c), "The sky is", 4)
	t.Logf("serving again %s after the kill: %q", time.Since(killed).Round(time.Millisecond), text)
	if text == "" {
		t.Error("no text after the restart")
	}
}

// reopen opens a session while the backend restarts.
func reopen(t *testing.T, svc transport.Service) transport.Session {
	t.Helper()
	ctx := within(t, 20*time.Second)
	for {
		sess, err := svc.OpenSession(ctx, transport.OpenSessionRequest{})
		if err == nil {
			t.Cleanup(func() { _ = sess.Close() })
			return sess
		}
		if ctx.Err() != nil {
			t.Fatalf("no session after the restart: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A daemon that is killed leaves no plugin behind, and the next one on the same
// state folder takes over with a higher epoch.
func TestDaemonKilled(t *testing.T) {
	d, err := modeldproc.Start(within(t, time.Minute), modeld, "--backend", "llama", "--model", gguf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d.StateDir) })
	pid := onlyPlugin(t, d)
	before := dial(t, d)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid, 3*time.Second)
	if _, err := before.OpenSession(within(t, 5*time.Second), transport.OpenSessionRequest{}); err == nil {
		t.Error("a dead daemon opened a session")
	}
	next := serveLlama(t, "--state-dir", d.StateDir)
	if old, now := before.Owner(), dial(t, next).Owner(); now.Epoch <= old.Epoch || now.Instance == old.Instance {
		t.Errorf("after %s (epoch %d) came %s (epoch %d)", old.Instance, old.Epoch, now.Instance, now.Epoch)
	}
}

// SIGTERM ends what runs, releases the lease, and leaves nothing behind.
func TestSIGTERM(t *testing.T) {
	server, err := natsserver.Start(t.Context(), natsserver.Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Shutdown(after(t, 10*time.Second)) }()
	d, err := modeldproc.Start(within(t, time.Minute), modeld, "--backend", "llama", "--model", gguf, "--nats", server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d.StateDir) })
	pid := onlyPlugin(t, d)
	if err := d.Stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if modeldproc.Alive(pid) {
		t.Errorf("the plugin, process %d, outlived the daemon", pid)
	}
	if _, err := client.Owner(within(t, 5*time.Second), client.Options{URL: server.ClientURL(), Slot: "default"}); !errors.Is(err, natslease.ErrNoOwner) {
		t.Errorf("the lease after the stop: %v, want ErrNoOwner", err)
	}
	left, err := os.ReadDir(d.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Type()&os.ModeSocket != 0 || e.Name() == "nats.url" {
			t.Errorf("%s was left in the state folder", e.Name())
		}
	}
}

// A decode that runs when SIGTERM comes may finish.
func TestSIGTERMLetsWorkFinish(t *testing.T) {
	d := serveEcho(t, "loop: true", "tokens_per_second: 100")
	sess := open(t, dial(t, d))
	ctx := within(t, time.Minute)
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "a b c"}); err != nil {
		t.Fatal(err)
	}
	chunks, err := sess.Decode(ctx, transport.DecodeConfig{MaxTokens: 100})
	if err != nil {
		t.Fatal(err)
	}
	<-chunks
	stopped := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		stopped <- d.Stop(ctx)
	}()
	tokens := 1
	for chunk := range chunks {
		if chunk.Error != nil {
			t.Fatalf("after %d tokens: %v", tokens, chunk.Error)
		}
		tokens += chunk.Tokens
	}
	if tokens != 100 {
		t.Errorf("%d tokens came, want all 100", tokens)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
