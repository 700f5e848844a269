package natslease

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsd is a real NATS server in this process, on a loopback port.
type natsd struct {
	t    *testing.T
	opts server.Options
	s    *server.Server
}

func startNATS(t *testing.T, users ...*server.User) *natsd {
	t.Helper()
	d := &natsd{t: t, opts: server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		SyncAlways: true, NoSigs: true, NoLog: true, JetStreamMaxStore: 64 << 20, Users: users,
	}}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *natsd) start() {
	d.t.Helper()
	opts := d.opts
	s, err := server.NewServer(&opts)
	if err != nil {
		d.t.Fatalf("NATS server: %v", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		d.t.Fatal("NATS server: not ready for connections within 10 s")
	}
	d.s = s
	d.opts.Port = opts.Port // the same after a restart
}

func (d *natsd) stop() {
	d.s.Shutdown()
	d.s.WaitForShutdown()
}

// connect connects as the given user, with the recommended options.
func (d *natsd) connect(userPassword ...string) *nats.Conn {
	d.t.Helper()
	opts := append(ConnectOptions(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if len(userPassword) == 2 {
		opts = append(opts, nats.UserInfo(userPassword[0], userPassword[1]))
	}
	nc, err := nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", d.opts.Port), opts...)
	if err != nil {
		d.t.Fatalf("connect: %v", err)
	}
	d.t.Cleanup(func() {
		nc.Close()
	})
	return nc
}

func (d *natsd) kv(nc *nats.Conn) jetstream.KeyValue {
	d.t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		d.t.Fatal(err)
	}
	kv, err := js.KeyValue(d.t.Context(), DefaultBucket)
	if err != nil {
		d.t.Fatal(err)
	}
	return kv
}

// fast are timers for tests: short, with room for a busy machine.
func fast(host string) Options {
	return Options{
		Slot: "s", Host: host, Wait: 2 * time.Second, FreshStore: true,
		Info:   Info{Endpoint: "127.0.0.1:1", Backend: "none", Version: "test"},
		Logger: slog.New(slog.DiscardHandler),
	}
}

func newTestManager(t *testing.T, nc *nats.Conn, o Options) *Manager {
	t.Helper()
	m, err := New(nc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// within bounds a step of a test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func acquire(t *testing.T, m *Manager) *Lease {
	t.Helper()
	l, err := m.Acquire(within(t, 20*time.Second))
	if err != nil {
		t.Fatalf("acquire: %v", err)
	}
	return l
}

// acquiring acquires in the background.
func acquiring(t *testing.T, m *Manager) <-chan *Lease {
	t.Helper()
	ctx, out := within(t, 20*time.Second), make(chan *Lease, 1)
	go func() {
		defer close(out)
		l, err := m.Acquire(ctx)
		if err != nil {
			t.Errorf("acquire: %v", err)
			return
		}
		out <- l
	}()
	return out
}

func mustEnd(t *testing.T, l *Lease, within time.Duration) {
	t.Helper()
	select {
	case <-l.Done():
	case <-time.After(within):
		t.Fatalf("the lease did not end within %s", within)
	}
}
