package natslease

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

func TestAcquireRenewRelease(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	var renewed atomic.Int32
	o := fast("a")
	o.OnEvent = func(e Event) {
		if e.Kind == EventRenewed {
			renewed.Add(1)
		}
	}
	nc := d.connect()
	if _, err := Resolve(t.Context(), nc, "", "s"); !errors.Is(err, ErrNoOwner) {
		t.Fatalf("resolve before: %v, want ErrNoOwner", err)
	}
	m := newTestManager(t, nc, o)
	l := acquire(t, m)
	if l.Epoch() != 1 || !strings.HasPrefix(l.Instance(), "a-1-") || l.Valid() != nil {
		t.Fatalf("lease %s, epoch %d, %v", l.Instance(), l.Epoch(), l.Valid())
	}
	if _, err := m.Acquire(t.Context()); !errors.Is(err, ErrAlreadyHeld) {
		t.Fatalf("second acquire: %v, want ErrAlreadyHeld", err)
	}
	// Longer than the deadline: only renewals keep it.
	time.Sleep(2 * o.Wait)
	if err := l.Valid(); err != nil || renewed.Load() < 3 {
		t.Fatalf("after twice the wait: %v, %d renewals", err, renewed.Load())
	}
	rec, err := Resolve(t.Context(), nc, "", "s")
	if err != nil || rec.Instance != l.Instance() || rec.Endpoint != o.Endpoint || rec.BootID != bootID() {
		t.Fatalf("resolve: %+v, %v", rec, err)
	}
	if err := l.Release(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatalf("released again: %v", err)
	}
	if err := l.Valid(); !errors.Is(err, ErrLost) || !errors.Is(err, ErrReleased) {
		t.Fatalf("valid after release: %v", err)
	}
	if cause := context.Cause(l.Context()); !errors.Is(cause, ErrReleased) {
		t.Fatalf("cause: %v", cause)
	}
	if _, err := Resolve(t.Context(), nc, "", "s"); !errors.Is(err, ErrNoOwner) {
		t.Fatalf("resolve after: %v, want ErrNoOwner", err)
	}
	if again := acquire(t, m); again.Epoch() <= l.Epoch() || again.Instance() == l.Instance() {
		t.Fatalf("second term: %s, epoch %d", again.Instance(), again.Epoch())
	}
}

func TestHandOffByRelease(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	a := newTestManager(t, d.connect(), fast("a"))
	la := acquire(t, a)
	b := newTestManager(t, d.connect(), fast("b"))
	_, err := b.TryAcquire(t.Context())
	if held, ok := errors.AsType[*HeldError](err); !ok || held.Owner.Instance != la.Instance() || held.RetryAfter <= 0 {
		t.Fatalf("try: %v, want a HeldError with the owner", err)
	}
	next := acquiring(t, b)
	select {
	case <-next:
		t.Fatal("two owners")
	case <-time.After(2 * a.o.Wait):
	}
	if owner, ok := b.Current().Owner(); !ok || owner.Instance != la.Instance() {
		t.Fatalf("the standby does not know the owner: %+v", b.Current())
	}
	start := time.Now()
	if err := la.Release(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	lb := <-next
	took := time.Since(start)
	if lb == nil || took > a.o.Wait {
		t.Fatalf("hand-off took %s: the standby waited for silence", took)
	}
	t.Logf("hand-off took %s", took)
	if lb.Epoch() <= la.Epoch() {
		t.Fatalf("epoch %d after %d", lb.Epoch(), la.Epoch())
	}
}

func TestTakeoverAfterSilence(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	nc := d.connect()
	a := newTestManager(t, nc, fast("a"))
	la := acquire(t, a)
	next := acquiring(t, newTestManager(t, d.connect(), fast("b")))
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	nc.Close() // the owner falls silent without a word
	mustEnd(t, la, a.o.Wait)
	if err := la.Valid(); !errors.Is(err, ErrExpired) {
		t.Fatalf("valid: %v, want ErrExpired", err)
	}
	lb := <-next
	if lb == nil || lb.Epoch() <= la.Epoch() {
		t.Fatal("no takeover")
	}
	t.Logf("takeover %s after the owner's silence began, wait %s", time.Since(start), a.o.Wait)
}

func TestProvenDeadIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	a := newTestManager(t, d.connect(), fast("a"))
	la := acquire(t, a)
	a.Close()
	o := fast("b")
	o.Wait, o.ProvenDead = time.Minute, func(r Record) bool { return r.Instance == la.Instance() }
	if lb, err := newTestManager(t, d.connect(), o).TryAcquire(t.Context()); err != nil || lb.Epoch() <= la.Epoch() {
		t.Fatalf("not taken at once: %v", err)
	}
}

// An absent record proves nothing unless the store is known to be new.
func TestAbsentRecordIsWaitedOut(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	o := fast("a")
	o.FreshStore = false
	m := newTestManager(t, d.connect(), o)
	_, err := m.TryAcquire(t.Context())
	if held, ok := errors.AsType[*HeldError](err); !ok || held.RetryAfter <= 0 {
		t.Fatalf("%v, want a HeldError", err)
	}
	acquire(t, m)
}

func TestOperators(t *testing.T) {
	for _, c := range []struct {
		name   string
		act    func(t *testing.T, d *natsd, kv jetstream.KeyValue, js jetstream.JetStream)
		reason error
	}{
		{"purge", func(t *testing.T, _ *natsd, kv jetstream.KeyValue, _ jetstream.JetStream) {
			must(t, kv.Purge(t.Context(), "slot.s"))
		}, ErrSuperseded},
		{"delete key", func(t *testing.T, _ *natsd, kv jetstream.KeyValue, _ jetstream.JetStream) {
			must(t, kv.Delete(t.Context(), "slot.s"))
		}, ErrSuperseded},
		{"junk", func(t *testing.T, _ *natsd, kv jetstream.KeyValue, _ jetstream.JetStream) {
			_, err := kv.PutString(t.Context(), "slot.s", "junk")
			must(t, err)
		}, ErrSuperseded},
		{"delete bucket", func(t *testing.T, _ *natsd, _ jetstream.KeyValue, js jetstream.JetStream) {
			must(t, js.DeleteKeyValue(t.Context(), DefaultBucket))
		}, ErrLost},
		{"recreate bucket", func(t *testing.T, _ *natsd, _ jetstream.KeyValue, js jetstream.JetStream) {
			must(t, js.DeleteKeyValue(t.Context(), DefaultBucket))
			_, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: DefaultBucket})
			if !errors.Is(err, jetstream.ErrBucketExists) { // the standby may have been faster
				must(t, err)
			}
		}, ErrLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := startNATS(t)
			nc := d.connect()
			a := newTestManager(t, nc, fast("a"))
			la := acquire(t, a)
			ob := fast("b")
			var alarms atomic.Int32
			ob.OnEvent = func(e Event) {
				if e.Kind == EventAlarm {
					alarms.Add(1)
				}
			}
			b := newTestManager(t, d.connect(), ob)
			next := acquiring(t, b)
			time.Sleep(300 * time.Millisecond)

			js, err := jetstream.New(nc)
			must(t, err)
			kv := d.kv(nc)
			start := time.Now()
			c.act(t, d, kv, js)
			mustEnd(t, la, a.o.Wait)
			if err := la.Valid(); !errors.Is(err, c.reason) {
				t.Fatalf("valid: %v, want %v", err, c.reason)
			}
			lb := <-next
			if lb == nil {
				t.Fatal("not taken over")
			}
			if lb.Epoch() <= la.Epoch() {
				t.Fatalf("epoch %d after %d", lb.Epoch(), la.Epoch())
			}
			if took := time.Since(start); took < a.o.Wait {
				t.Fatalf("taken over %s after the deed: the owner may still have owned", took)
			}
		})
	}
}

func TestServerRestart(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	var reasons atomic.Pointer[error]
	o := fast("a")
	o.Wait = 3 * time.Second
	o.OnEvent = func(e Event) {
		if e.Kind == EventLost {
			reasons.Store(&e.Err)
		}
	}
	a := newTestManager(t, d.connect(), o)
	la := acquire(t, a)
	b := newTestManager(t, d.connect(), o)
	next := acquiring(t, b)
	time.Sleep(200 * time.Millisecond)
	d.stop()
	d.start()
	time.Sleep(2 * o.Wait)
	if err := la.Valid(); err != nil {
		t.Fatalf("a short restart ended the lease: %v", err)
	}
	// The standby's watch works again: far sooner than its silence would end.
	start := time.Now()
	must(t, la.Release(within(t, 5*time.Second)))
	if lb := <-next; lb == nil || time.Since(start) > o.Wait {
		t.Fatalf("hand-off after a restart took %s", time.Since(start))
	}
}

func TestServerGone(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	a := newTestManager(t, d.connect(), fast("a"))
	la := acquire(t, a)
	d.stop()
	mustEnd(t, la, 2*a.o.Wait)
	if err := la.Valid(); !errors.Is(err, ErrExpired) {
		t.Fatalf("valid: %v, want ErrExpired", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("acquire without a server: %v, want DeadlineExceeded", err)
	}
	next := acquiring(t, a)
	d.start()
	if again := <-next; again == nil || again.Epoch() <= la.Epoch() {
		t.Fatal("not acquired again after the server's return")
	}
}

func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	read := &server.Permissions{
		Publish:   &server.SubjectPermission{Deny: []string{"$KV.>"}},
		Subscribe: &server.SubjectPermission{Allow: []string{">"}},
	}
	d := startNATS(t, &server.User{Username: "all", Password: "p"},
		&server.User{Username: "reader", Password: "p", Permissions: read})
	reader := newTestManager(t, d.connect("reader", "p"), fast("r"))
	_, err := reader.Acquire(within(t, 10*time.Second))
	if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "$KV.modeld-leases.slot.s") {
		t.Fatalf("acquire: %v, want ErrDenied naming the subject", err)
	}
}

func TestBucketWithTTLIsRefused(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	nc := d.connect()
	js, err := jetstream.New(nc)
	must(t, err)
	_, err = js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: DefaultBucket, TTL: time.Minute})
	must(t, err)
	_, err = newTestManager(t, nc, fast("a")).Acquire(within(t, 5*time.Second))
	if !errors.Is(err, ErrBucketConfig) || !strings.Contains(err.Error(), "TTL") {
		t.Fatalf("acquire: %v, want ErrBucketConfig about the TTL", err)
	}
}

func TestSetInfoAndFollow(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	ctx, cancel := context.WithCancel(t.Context())
	seen, err := Follow(ctx, d.connect(), FollowOptions{Slot: "s", Wait: 2 * time.Second})
	must(t, err)
	next := func(what string, want func(Observation) bool) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			select {
			case o := <-seen:
				if want(o) {
					return
				}
			case <-timeout:
				t.Fatalf("not seen: %s", what)
			}
		}
	}
	next("nothing", func(o Observation) bool { return o.Seen && o.Record == Record{} })
	m := newTestManager(t, d.connect(), fast("a"))
	l := acquire(t, m)
	next("owner", func(o Observation) bool { r, ok := o.Owner(); return ok && r.Instance == l.Instance() })
	must(t, m.SetInfo(Info{Endpoint: "127.0.0.1:2"}))
	next("endpoint", func(o Observation) bool { r, ok := o.Owner(); return ok && r.Endpoint == "127.0.0.1:2" })
	m.Close()
	next("stale", func(o Observation) bool { _, ok := o.Owner(); return !ok && o.Stale })
	must(t, l.Release(t.Context())) // after a crash as good as after a loss
	next("released", func(o Observation) bool { return o.Record.State == Released })
	cancel()
	for range seen {
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	d := startNATS(t)
	a := newTestManager(t, d.connect(), fast("a"))
	la := acquire(t, a)
	b := newTestManager(t, d.connect(), fast("b"))
	failed := make(chan error, 1)
	go func() { _, err := b.Acquire(t.Context()); failed <- err }()
	time.Sleep(100 * time.Millisecond)
	b.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Fatalf("acquire: %v, want ErrClosed", err)
	}
	a.Close()
	if err := la.Valid(); !errors.Is(err, ErrClosed) {
		t.Fatalf("valid: %v, want ErrClosed", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkValid(b *testing.B) {
	o, err := Options{Slot: "s", Host: "h"}.withDefaults()
	if err != nil {
		b.Fatal(err)
	}
	m, err := newManager(&fakeStore{b: newFakeBucket(1), try: o.Try, length: o.Deadline}, o)
	if err != nil {
		b.Fatal(err)
	}
	l := newLease(m, testRecord("h", "n"), term{deadline: BootTime() + time.Hour}, time.Time{})
	for b.Loop() {
		if err := l.Valid(); err != nil {
			b.Fatal(err)
		}
	}
}
