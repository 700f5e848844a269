package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"modeld/natslease"
)

// DefaultListen is where a daemon listens that is not told otherwise.
func DefaultListen(stateDir string) string {
	return unixPrefix + filepath.Join(stateDir, "modeld.sock")
}

// daemon is what lasts from term to term.
type daemon struct {
	opts     Options
	log      *slog.Logger
	endpoint string
	gate     *gate
	leases   *natslease.Manager
}

// Run serves the slot until ctx ends, then drains, releases the lease and
// returns nil. It returns an error where the daemon can't start or go on: the
// endpoint or the state folder is taken, NATS can't be reached, the plugin or
// the configured model does not start. When it returns, nothing of it is left:
// no goroutine, process or socket.
func Run(ctx context.Context, opts Options) (err error) {
	opts, err = opts.withDefaults()
	if err != nil {
		return err
	}
	d := &daemon{opts: opts, log: opts.Logger.With("slot", opts.Slot)}
	closeAll := func(f func() error) { err = errors.Join(err, f()) }

	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder %s: %w", opts.StateDir, err)
	}
	nc, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer closeAll(nc.close)

	lis, endpoint, err := listen(ctx, opts.Listen)
	if err != nil {
		return err
	}
	d.endpoint = endpoint
	d.gate = newGate(lis)
	defer closeAll(d.gate.Close)

	if d.leases, err = d.newManager(nc); err != nil {
		return err
	}
	defer d.leases.Close()
	return d.live(ctx)
}

func (d *daemon) newManager(nc *connection) (*natslease.Manager, error) {
	return natslease.New(nc.Conn, natslease.Options{
		Bucket: d.opts.Lease.Bucket,
		Slot:   d.opts.Slot,
		Info: natslease.Info{
			Endpoint: d.endpoint,
			Backend:  d.opts.Plugin.Backend,
			Version:  d.opts.Version,
		},
		Wait:       d.opts.Lease.Wait,
		Deadline:   d.opts.Lease.Deadline,
		Renew:      d.opts.Lease.Renew,
		Try:        d.opts.Lease.Try,
		FreshStore: nc.fresh(),
		EpochFile:  filepath.Join(d.opts.StateDir, "epoch-"+d.opts.Slot),
		Logger:     d.opts.Logger,
	})
}

// live alternates between standing by and owning until ctx ends.
func (d *daemon) live(ctx context.Context) error {
	for ctx.Err() == nil {
		lease, err := d.standBy(ctx)
		if err != nil || lease == nil {
			return err
		}
		if err := d.own(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

// standBy answers as one that does not own until the slot is acquired. It
// returns neither lease nor error where ctx ends first.
func (d *daemon) standBy(ctx context.Context) (*natslease.Lease, error) {
	stop := d.serveStandby()
	defer stop()
	lease, err := d.leases.Acquire(ctx)
	if lease == nil && ctx.Err() != nil {
		err = nil // told to stop: that is why
	}
	return lease, err
}
