// Package client reaches the owner of a slot: it asks the lease who that is,
// dials it, and talks to it under its fence. A call to an owner that has been
// replaced is refused with ErrStaleFence or ErrNotOwner; open a new Client
// then.
package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"

	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/natslease"
)

// ErrNoOwner: nobody owns the slot now.
var ErrNoOwner = natslease.ErrNoOwner

// Options say which slot to reach.
type Options struct {
	// URL is the NATS server's. Required.
	URL string
	// NATS are options for the connection: credentials, TLS.
	NATS []nats.Option
	// Slot is the slot's name. Required.
	Slot string
	// Bucket is the leases' bucket. Default natslease.DefaultBucket.
	Bucket string
	// Dial are options for the connection to the owner.
	Dial []grpc.DialOption
	// Timeout bounds each step of Open: reaching NATS, reading the lease,
	// reaching the owner. Default 5 s.
	Timeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	return o
}

// Client is a connection to a slot's owner. It is a transport.Service,
// ModelController and more, by the wire's client. It is safe for concurrent
// use.
type Client struct {
	*wire.Client
	owner natslease.Record
}

// Open finds the slot's owner and dials it. It returns ErrNoOwner where nobody
// owns the slot, and an error that names the endpoint where the owner that the
// lease names does not answer.
func Open(ctx context.Context, opts Options) (*Client, error) {
	opts = opts.withDefaults()
	owner, err := Owner(ctx, opts)
	if err != nil {
		return nil, err
	}
	conn, err := wire.DialLeader(owner.Endpoint, owner.Instance, opts.Dial...)
	if err != nil {
		return nil, fmt.Errorf("owner %s at %s: %w", owner.Instance, owner.Endpoint, err)
	}
	c := &Client{Client: conn, owner: owner}
	if err := c.check(ctx, opts.Timeout); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// check asks whoever answers at the endpoint whether it is the owner.
func (c *Client) check(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	health, err := c.Health(ctx)
	if err != nil {
		return fmt.Errorf("owner %s at %s does not answer: %w", c.owner.Instance, c.owner.Endpoint, err)
	}
	if health.InstanceID != c.owner.Instance {
		return fmt.Errorf("%w: the lease names %s, but %q answers at %s; try again when the lease is settled",
			transport.ErrStaleFence, c.owner.Instance, health.InstanceID, c.owner.Endpoint)
	}
	return nil
}

// Owner returns the owner's record as the lease has it at this moment.
func (c *Client) Owner() natslease.Record { return c.owner }

// Owner reads the slot's record, without dialing its owner.
func Owner(ctx context.Context, opts Options) (natslease.Record, error) {
	opts = opts.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	options := append(natslease.ConnectOptions(), nats.Name("modeld client"), nats.Timeout(opts.Timeout), nats.NoReconnect())
	nc, err := nats.Connect(opts.URL, append(options, opts.NATS...)...)
	if err != nil {
		return natslease.Record{}, fmt.Errorf("the lease: %w", err)
	}
	defer nc.Close()
	rec, err := natslease.Resolve(ctx, nc, opts.Bucket, opts.Slot)
	if err != nil {
		return natslease.Record{}, fmt.Errorf("owner of slot %s: %w", opts.Slot, err)
	}
	return rec, nil
}
