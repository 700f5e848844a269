package natslease_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"modeld/natslease"
)

// exampleServer starts a NATS server on a loopback port.
func exampleServer() (nc *nats.Conn, stop func()) {
	dir, err := os.MkdirTemp("", "natslease")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("the NATS server is not ready")
	}
	nc, err = nats.Connect(s.ClientURL(), natslease.ConnectOptions()...)
	if err != nil {
		log.Fatal(err)
	}
	return nc, func() {
		nc.Close()
		s.Shutdown()
		s.WaitForShutdown()
		_ = os.RemoveAll(dir)
	}
}

// A process owns a slot, works under the lease, and hands over.
func Example() {
	nc, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	m, err := natslease.New(nc, natslease.Options{
		Slot: "default", Host: "example", FreshStore: true,
		Info:   natslease.Info{Endpoint: "127.0.0.1:7700"},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	lease, err := m.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("epoch", lease.Epoch(), "valid:", lease.Valid() == nil)

	owner, err := natslease.Resolve(ctx, nc, natslease.DefaultBucket, "default")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("clients find", owner.Endpoint)

	if err := lease.Release(ctx); err != nil {
		log.Fatal(err)
	}
	<-lease.Done()
	fmt.Println("ended by release:", errors.Is(context.Cause(lease.Context()), natslease.ErrReleased))

	_, err = natslease.Resolve(ctx, nc, natslease.DefaultBucket, "default")
	fmt.Println("no owner:", errors.Is(err, natslease.ErrNoOwner))
	// Output:
	// epoch 1 valid: true
	// clients find 127.0.0.1:7700
	// ended by release: true
	// no owner: true
}

// A standby that does not want to wait learns who owns the slot.
func ExampleManager_TryAcquire() {
	nc, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	manager := func(host, endpoint string) *natslease.Manager {
		m, err := natslease.New(nc, natslease.Options{
			Slot: "default", Host: host, FreshStore: true,
			Info:   natslease.Info{Endpoint: endpoint},
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			log.Fatal(err)
		}
		return m
	}
	owner, standby := manager("one", "127.0.0.1:7701"), manager("two", "127.0.0.1:7702")
	defer owner.Close()
	defer standby.Close()
	if _, err := owner.TryAcquire(ctx); err != nil {
		log.Fatal(err)
	}
	_, err := standby.TryAcquire(ctx)
	if held, ok := errors.AsType[*natslease.HeldError](err); ok {
		fmt.Println("held by", held.Owner.Host, "at", held.Owner.Endpoint)
	}
	// Output:
	// held by one at 127.0.0.1:7701
}
