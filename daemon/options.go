// Package daemon lives one slot's life: it listens, acquires the slot's lease,
// starts the backend's plugin, loads the model, serves, and on the way out
// drains and releases. In between it stands by and says who owns.
//
// Nothing here is the only one of its kind in a process: a process may run
// several daemons, each with its own slot, listener and plugin.
package daemon

import (
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"modeld/core/host"
	"modeld/core/slot"
)

// Options configure a daemon. Fields without a stated default are required.
type Options struct {
	// Slot is the name of what is owned.
	Slot string
	// StateDir keeps what must last, mode 0700: the embedded NATS server's
	// data, the socket, the epoch. It is created where missing.
	StateDir string
	// Listen is where clients dial: "HOST:PORT" or "unix:PATH". Default: the
	// socket modeld.sock in StateDir.
	Listen string
	// Version is the software's version, for status and lease.
	Version string

	// Plugin says how the backend is started. Backend names it; Logger and
	// OnEvent are set here.
	Plugin host.Options

	// Models are the node's models, Default the name of the one to load.
	// Modelless is for a backend that has none; see slot.Options.
	Models     []slot.Model
	Default    string
	AllowPaths bool
	Modelless  bool

	NATS  NATS
	Lease Lease

	// MaxSessions and MaxSessionsPerConn bound open sessions; 0 is the wire's
	// default.
	MaxSessions        int
	MaxSessionsPerConn int
	// DrainTimeout is how long running work may take to end at the stop.
	// Default 10 s.
	DrainTimeout time.Duration
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// NATS says where the lease lives.
type NATS struct {
	// URL of an outside server. Empty: an embedded server in StateDir.
	URL string
	// Options are for the connection: credentials, TLS.
	Options []nats.Option
	// ConnectTimeout is how long to wait for the server at the start. Default
	// 10 s.
	ConnectTimeout time.Duration
	// Port and MaxStore are the embedded server's: 0 is a free port and the
	// server's default size in bytes.
	Port     int
	MaxStore int64
}

// Lease has the lease's bucket and timers; zeros are natslease's defaults.
type Lease struct {
	Bucket   string
	Wait     time.Duration
	Deadline time.Duration
	Renew    time.Duration
	Try      time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Slot == "" || o.StateDir == "" || o.Plugin.Backend == "" {
		return o, errors.New("daemon: Slot, StateDir and Plugin.Backend are required")
	}
	if o.Listen == "" {
		o.Listen = DefaultListen(o.StateDir)
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 10 * time.Second
	}
	if o.NATS.ConnectTimeout == 0 {
		o.NATS.ConnectTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}
