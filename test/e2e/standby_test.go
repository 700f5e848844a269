package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"modeld/client"
	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/natsserver"
)

// A second daemon for the slot stands by, refuses calls and says who owns; it
// takes over when the first one is told to stop.
func TestStandbyTakesOver(t *testing.T) {
	nats, err := natsserver.Start(t.Context(), natsserver.Options{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nats.Shutdown(after(t, 10*time.Second)) })
	find := client.Options{URL: nats.ClientURL(), Slot: "default"}
	config := writeConfig(t, "none: {echo: true}")
	args := []string{"--backend", "none", "--config", config, "--nats", nats.ClientURL()}

	first := serve(t, args...)
	dir := stateDir(t)
	second := launch(t, append(args, "--state-dir", dir)...)
	if _, err := second.AwaitLog(within(t, 20*time.Second), "lease observed"); err != nil {
		t.Fatal(err)
	}

	direct, err := wire.DialLeader("unix:"+dir+"/modeld.sock", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = direct.Close() })
	health, err := direct.Health(within(t, 10*time.Second))
	if err != nil || health.Ready || health.Backend != "none" {
		t.Errorf("the standby's health: %+v, %v; want not ready", health, err)
	}
	_, err = direct.OpenSession(within(t, 10*time.Second), transport.OpenSessionRequest{})
	if !errors.Is(err, transport.ErrNotOwner) || !strings.Contains(err.Error(), first.Instance) || !strings.Contains(err.Error(), first.Endpoint) {
		t.Errorf("a call to the standby: %v, want ErrNotOwner that names %s at %s", err, first.Instance, first.Endpoint)
	}

	old, err := client.Open(within(t, 10*time.Second), find)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Close() })
	stopped := time.Now()
	if err := first.Stop(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := second.AwaitServing(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("taken over %s after SIGTERM", time.Since(stopped).Round(time.Millisecond))
	next, err := client.Open(within(t, 10*time.Second), find)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.Close() })
	if next.Owner().Instance != second.Instance || next.Owner().Epoch <= old.Owner().Epoch {
		t.Errorf("the owner is %+v now; it was %+v", next.Owner(), old.Owner())
	}
	if text, _ := generate(t, open(t, next), "hello", 5); text != "hello" {
		t.Errorf("the new owner says %q", text)
	}

	// Who still means the old owner is told so by the new one.
	stale, err := wire.DialLeader(second.Endpoint, first.Instance)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stale.Close() })
	if _, err := stale.OpenSession(within(t, 10*time.Second), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrStaleFence) {
		t.Errorf("a call for the old owner: %v, want ErrStaleFence", err)
	}
}
