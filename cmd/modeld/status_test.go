package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

func TestStatus(t *testing.T) {
	n := newNode(t)
	fake := transporttest.NewFullFake(nil)
	o := n.own(t, fake)
	if _, err := fake.LoadModel(t.Context(), transport.LoadModelRequest{ModelName: "small", Path: "/m/small.gguf"}); err != nil {
		t.Fatal(err)
	}
	got := n.run(t, "", "status")
	got.want(t, exitOK, "")
	rec := o.Record()
	want := strings.Join([]string{
		"slot      default",
		fmt.Sprintf("owner     %s, epoch %d", o.Instance(), o.Epoch()),
		"endpoint  " + o.endpoint,
		fmt.Sprintf("host      here, process %d, modeld v1", rec.PID),
		"backend   fake, ready",
		"state     Ready",
		"model     small, /m/small.gguf, generation 1",
		"sessions  0", "",
	}, "\n")
	if got.out != want {
		t.Errorf("got\n%swant\n%s", got.out, want)
	}

	fake.SetReady(errors.New("the backend restarts"))
	r := decodeJSON[report](t, n.run(t, "", "status", "--json").out)
	if r.Owner == nil || r.Owner.Instance != o.Instance() || r.Health == nil || r.Health.Ready || r.Status == nil || r.Status.Active.Generation != 1 || r.Error != "" {
		t.Errorf("%+v", r)
	}
}

// Whatever is missing, status says so, on both channels, with code 3.
func TestStatusWithoutAnswer(t *testing.T) {
	check := func(t *testing.T, run func(args ...string) ended, out, errText string) {
		t.Helper()
		got := run("status")
		got.want(t, exitUnreachable, "modeld: "+errText)
		if got.out != out {
			t.Errorf("printed\n%swant\n%s", got.out, out)
		}
		got = run("status", "--json")
		got.want(t, exitUnreachable, "modeld: "+errText)
		if r := decodeJSON[report](t, got.out); r.Slot != "default" || r.Error != errText {
			t.Errorf("%+v", r)
		}
	}
	const nobody = "slot   default\nowner  none\n"

	t.Run("no daemon", func(t *testing.T) {
		dir := t.TempDir()
		check(t, func(args ...string) ended { return modeld(t, "", append(args, "--state-dir", dir)...) }, nobody,
			"no modeld serves from this state folder ("+dir+"): start one, or pass --nats")
	})
	t.Run("no NATS server", func(t *testing.T) {
		check(t, func(args ...string) ended { return modeld(t, "", append(args, "--nats", "nats://127.0.0.1:1")...) }, nobody,
			"unreachable: the lease: nats: no servers available for connection; is the NATS server up, and are nats.url and its credentials right?")
	})
	n := newNode(t)
	run := func(args ...string) ended { return n.run(t, "", args...) }
	t.Run("no owner", func(t *testing.T) {
		check(t, run, nobody, "nobody owns the slot default (in the bucket modeld-leases); start one with modeld serve")
	})
	lease, endpoint := n.acquire(t)
	owned := fmt.Sprintf("slot      default\nowner     %s, epoch %d\nendpoint  %s\nhost      here, process %d, modeld v1\n",
		lease.Instance(), lease.Epoch(), endpoint, lease.Record().PID)
	t.Run("the owner does not answer", func(t *testing.T) {
		got := run("status")
		if got.code != exitUnreachable || got.out != owned ||
			!strings.HasPrefix(got.notes, "modeld: unreachable: owner "+lease.Instance()+" at "+endpoint+" does not answer: ") ||
			strings.Count(got.notes, "\n") != 1 {
			t.Errorf("%+v, want\n%s", got, owned)
		}
	})
	t.Run("another one answers", func(t *testing.T) {
		lis, err := net.Listen("unix", strings.TrimPrefix(endpoint, "unix:"))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- wire.Serve(t.Context(), lis, &transporttest.Fake{}, "somebody-else", "fake") }()
		check(t, run, owned, fmt.Sprintf("unreachable: stale fence: the lease names %s, but %q answers at %s; try again when the lease is settled; modeld status shows what the lease has",
			lease.Instance(), "somebody-else", endpoint))
		t.Cleanup(func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	})
}
