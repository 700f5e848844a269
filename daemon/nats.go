package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"modeld/natslease"
	"modeld/natsserver"
)

// connection is one to an outside NATS server or to an embedded one.
type connection struct {
	*nats.Conn
	embedded *natsserver.Server // nil for an outside one
}

// connect connects to the outside NATS server or to an embedded one, which it
// starts.
func (d *daemon) connect(ctx context.Context) (*connection, error) {
	if d.opts.NATS.URL != "" {
		nc, err := d.dial(ctx, d.opts.NATS.URL)
		if err != nil {
			return nil, err
		}
		return &connection{Conn: nc}, nil
	}
	server, err := natsserver.Start(ctx, natsserver.Options{
		StateDir: d.opts.StateDir,
		Port:     d.opts.NATS.Port,
		MaxStore: d.opts.NATS.MaxStore,
		Logger:   d.opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	c := &connection{embedded: server}
	if c.Conn, err = d.dial(ctx, server.ClientURL()); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// fresh reports that nobody can own anything yet: the server is new.
func (c *connection) fresh() bool { return c.embedded != nil && c.embedded.Fresh() }

func (c *connection) close() error {
	if c.Conn != nil {
		c.Close()
	}
	if c.embedded == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return c.embedded.Shutdown(ctx)
}

// dial connects, trying for ConnectTimeout where the server is not up yet.
func (d *daemon) dial(ctx context.Context, addr string) (*nats.Conn, error) {
	deadline := time.Now().Add(d.opts.NATS.ConnectTimeout)
	options := append(natslease.ConnectOptions(), nats.Name("modeld "+d.opts.Slot),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				d.log.Warn("nats connection lost; reconnecting", "err", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { d.log.Info("nats connection is back") }),
	)
	options = append(options, d.opts.NATS.Options...)
	for told := false; ; {
		nc, err := nats.Connect(addr, options...)
		if err == nil {
			return nc, nil
		}
		if time.Now().After(deadline) || errors.Is(err, nats.ErrAuthorization) {
			return nil, fmt.Errorf("nats server %s: %w (tried for %s; is it running, and are nats.url and its credentials right?)",
				redacted(addr), err, d.opts.NATS.ConnectTimeout)
		}
		if !told {
			d.log.Warn("nats server can't be reached yet; trying", "url", redacted(addr), "for", d.opts.NATS.ConnectTimeout, "err", err)
			told = true
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("nats server %s: %w (%w)", redacted(addr), ctx.Err(), err)
		}
	}
}

// redacted hides the credentials in a list of URLs as the NATS client reads it:
// with commas between, and nats:// where a scheme is missing.
func redacted(addrs string) string {
	var clean []string
	for addr := range strings.SplitSeq(addrs, ",") {
		addr = strings.TrimSpace(addr)
		if !strings.Contains(addr, "://") {
			addr = "nats://" + addr
		}
		u, err := url.Parse(addr)
		if err != nil {
			return "(a URL that can't be parsed)"
		}
		if u.User != nil {
			u.User = url.User("hidden")
		}
		clean = append(clean, u.String())
	}
	return strings.Join(clean, ",")
}
