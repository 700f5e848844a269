package daemon

import (
	"context"
	"fmt"

	wire "modeld/core/grpc"
	"modeld/core/transport"
)

// serveStandby answers every call but health with ErrNotOwner, and says who
// owns, until the returned function is called.
func (d *daemon) serveStandby() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := wire.ServeWithOptions(ctx, d.gate.open(), standby{d}, "", d.opts.Plugin.Backend, wire.ServerOptions{
			Valid:  d.notOwner,
			Logger: d.log,
		})
		if err != nil && ctx.Err() == nil {
			d.log.Error("standing by: the listener failed", "err", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// notOwner says who is.
func (d *daemon) notOwner() error {
	if owner, ok := d.leases.Current().Owner(); ok {
		return fmt.Errorf("%w: slot %s is owned by %s at %s", transport.ErrNotOwner, d.opts.Slot, owner.Instance, owner.Endpoint)
	}
	return fmt.Errorf("%w: slot %s has no owner that is known here; try again", transport.ErrNotOwner, d.opts.Slot)
}

// standby is the Service of one that does not own. The server's check refuses
// calls before they get here; should it change its mind, so does this.
type standby struct{ d *daemon }

func (s standby) OpenSession(context.Context, transport.OpenSessionRequest) (transport.Session, error) {
	return nil, s.d.notOwner()
}

func (s standby) Describe(context.Context, transport.OpenSessionRequest) (transport.ModelInfo, error) {
	return transport.ModelInfo{}, s.d.notOwner()
}

func (s standby) Embed(context.Context, transport.EmbedRequest) (transport.EmbedResult, error) {
	return transport.EmbedResult{}, s.d.notOwner()
}
