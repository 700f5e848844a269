package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	wire "modeld/core/grpc"
	"modeld/core/host"
	"modeld/core/slot"
	"modeld/core/transport"
	"modeld/natslease"
)

// term is one spell of ownership: everything in it ends with the lease.
type term struct {
	d     *daemon
	lease *natslease.Lease
	log   *slog.Logger
	host  *host.Host
	slot  *slot.Slot
	// restarted has room for one: the plugin was launched anew.
	restarted chan struct{}
}

// own serves under the lease until ctx ends or the lease is lost. On return
// the plugin is dead, and the lease is released where it was not lost. An
// error means that this daemon can't serve at all.
func (d *daemon) own(ctx context.Context, lease *natslease.Lease) (err error) {
	t := &term{
		d: d, lease: lease, restarted: make(chan struct{}, 1),
		log: d.log.With("instance", lease.Instance(), "epoch", lease.Epoch()),
	}
	// What runs under the lease ends with it, and with ctx before it serves.
	leased, cancel := context.WithCancelCause(lease.Context())
	defer cancel(nil)

	defer func() { err = errors.Join(err, t.release()) }()
	opts := d.opts.Plugin
	opts.Logger = t.log
	opts.OnUp = t.up
	t.host = host.New(opts)
	if t.slot, err = t.newSlot(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stopPlugin()) }()

	starting := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	if err := t.start(leased); err != nil {
		if ctx.Err() != nil || lease.Valid() != nil {
			return nil // told to stop, or no longer the owner
		}
		return err
	}
	if !starting() {
		return nil
	}
	return t.serve(ctx, leased)
}

func (t *term) newSlot() (*slot.Slot, error) {
	return slot.New(t.host, slot.Options{
		InstanceID: t.lease.Instance(),
		Backend:    t.d.opts.Plugin.Backend,
		Models:     t.d.opts.Models,
		Default:    t.d.opts.Default,
		AllowPaths: t.d.opts.AllowPaths,
		Modelless:  t.d.opts.Modelless,
		Logger:     t.log,
	})
}

// start brings plugin and model up.
func (t *term) start(ctx context.Context) error {
	if err := t.host.Start(ctx); err != nil {
		return err
	}
	return t.slot.Reload(ctx)
}

// up is told of every launch of the plugin.
func (t *term) up(generation uint64) {
	if generation == 1 {
		return // start loads the model
	}
	t.slot.BackendRestarted()
	select {
	case t.restarted <- struct{}{}:
	default:
	}
}

// serve answers clients until ctx ends (it then drains) or the lease is lost.
func (t *term) serve(ctx, leased context.Context) error {
	serving, stop := context.WithCancel(leased)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // drain

	reloaded := make(chan struct{})
	go func() {
		defer close(reloaded)
		t.reloadAfterRestarts(serving)
	}()
	defer func() { stop(); <-reloaded }()

	t.log.Info("serving", "endpoint", t.d.endpoint, "backend", t.d.opts.Plugin.Backend, "model", t.d.opts.Default)
	err := wire.ServeWithOptions(serving, t.d.gate.open(), t.slot, t.lease.Instance(), t.d.opts.Plugin.Backend, wire.ServerOptions{
		Valid:              t.valid,
		Lost:               t.lease.Done(),
		MaxSessions:        t.d.opts.MaxSessions,
		MaxSessionsPerConn: t.d.opts.MaxSessionsPerConn,
		DrainTimeout:       t.d.opts.DrainTimeout,
		Logger:             t.log,
	})
	if lost := t.lease.Valid(); lost != nil {
		t.log.Warn("ownership lost; standing by", "err", lost)
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", t.d.endpoint, err)
	}
	return nil
}

// valid is the fence's check: it stands before every call and every chunk.
func (t *term) valid() error {
	if err := t.lease.Valid(); err != nil {
		return fmt.Errorf("%w: %w", transport.ErrNotOwner, err)
	}
	return nil
}

// reloadAfterRestarts loads the model again whenever the plugin came back.
func (t *term) reloadAfterRestarts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.restarted:
		}
		if err := t.slot.Reload(ctx); err != nil && ctx.Err() == nil {
			t.log.Error("the model could not be loaded after the backend's restart", "err", err)
		}
	}
}

// stopPlugin ends the plugin, which must be dead before the lease is released.
func (t *term) stopPlugin() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return t.host.Close(ctx)
}

func (t *term) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := t.lease.Release(ctx)
	if errors.Is(err, natslease.ErrLost) {
		return nil
	}
	if err != nil {
		// Not worth an error: others take over when its silence is waited out.
		t.log.Warn("the lease could not be released; a standby takes over in the lease's wait", "err", err)
	}
	return nil
}
