// Package natsserver runs the NATS server that modeld brings along: inside
// the daemon's process, on the loopback only, with credentials that are new
// at every start, and with its data in the daemon's state folder.
//
// One process at a time may use a folder. The server itself does not see to
// that: two of them on one folder both start and hand out the same revisions.
// So a lock on the folder is taken before the server starts and held until it
// has stopped.
//
// While it runs, the folder's file nats.url (mode 0600) holds the URL for
// clients of the same user; see [ReadURL].
package natsserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Defaults of Options.
const (
	DefaultMaxStore     = 1 << 30
	DefaultStartTimeout = 30 * time.Second

	stopTimeout = 10 * time.Second // after a start that failed

	user      = "modeld"
	host      = "127.0.0.1"
	maxMemory = 64 << 20 // of streams in memory
)

// Options of a server. Only StateDir is required.
type Options struct {
	// StateDir is the daemon's state folder; it is made (mode 0700) if it does
	// not exist. The server's data goes into its folder nats.
	StateDir string
	// Port on 127.0.0.1; any free one if 0.
	Port int
	// MaxStore bounds the data on disk, in bytes; DefaultMaxStore if 0.
	MaxStore int64
	// StartTimeout bounds Start, which reads the data; DefaultStartTimeout if 0.
	StartTimeout time.Duration
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

// Server is a running NATS server.
type Server struct {
	stateDir string
	url      string
	fresh    bool
	lock     *os.File
	s        *server.Server
	started  chan struct{} // closed when s.Start has returned
	stopping chan struct{} // holds a token once Shutdown began
	stopped  chan struct{} // closed when all is over
	stopErr  error         // written before stopped is closed
}

// Start takes the state folder, starts the server and returns when clients
// can connect. ctx bounds the start, not the server's life. It returns an
// *InUseError if another process has the folder.
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("natsserver: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, o Options) (_ *Server, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFolder(ctx, o.StateDir)
	if err != nil {
		return nil, err
	}
	n := &Server{stateDir: o.StateDir, lock: lock, stopping: make(chan struct{}, 1), stopped: make(chan struct{})}
	if err := n.run(ctx, o); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, n.Shutdown(stop))
	}
	return n, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.MaxStore == 0 {
		o.MaxStore = DefaultMaxStore
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = DefaultStartTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case o.StateDir == "":
		return o, errors.New("option StateDir is empty: name the folder for the data")
	case o.Port < 0 || o.Port > 65535:
		return o, fmt.Errorf("option Port: %d is not within 0 to 65535", o.Port)
	case o.MaxStore < 1<<20:
		return o, fmt.Errorf("option MaxStore: %d bytes is less than 1 MiB", o.MaxStore)
	case o.StartTimeout < 0:
		return o, fmt.Errorf("option StartTimeout: %s is negative", o.StartTimeout)
	}
	return o, nil
}

// run starts the server in the locked folder.
func (n *Server) run(ctx context.Context, o Options) (err error) {
	// What a server that died has left names its port, which is anybody's now.
	if err := removeURL(o.StateDir); err != nil {
		return err
	}
	storeDir := filepath.Join(o.StateDir, storeName)
	if n.fresh, err = empty(storeDir); err != nil {
		return err
	}
	if err := os.MkdirAll(storeDir, 0o700); err != nil {
		return err
	}
	password := newPassword()
	log := &serverLog{log: o.Logger, secret: password, fatal: make(chan error, 1)}
	if n.s, err = server.NewServer(serverOptions(o, storeDir, password)); err != nil {
		return err
	}
	n.s.SetLoggerV2(log, false, false, false)
	if err := n.await(ctx, log); err != nil {
		return err
	}
	addr, ok := n.s.Addr().(*net.TCPAddr)
	if !ok {
		return errors.New("the server does not listen on TCP")
	}
	u := url.URL{Scheme: "nats", User: url.UserPassword(user, password), Host: addr.String()}
	n.url = u.String()
	return writeURL(o.StateDir, n.url)
}

func serverOptions(o Options, storeDir, password string) *server.Options {
	port := o.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return &server.Options{
		ServerName: "modeld-" + strconv.Itoa(os.Getpid()),
		Host:       host, Port: port,
		Username: user, Password: password,
		JetStream: true, StoreDir: storeDir, SyncAlways: true,
		JetStreamMaxStore: o.MaxStore, JetStreamMaxMemory: maxMemory,
		NoSigs: true, DisableJetStreamBanner: true,
	}
}

func newPassword() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// await starts the server and waits until it serves with JetStream.
func (n *Server) await(ctx context.Context, log *serverLog) error {
	n.started = make(chan struct{})
	go func() {
		defer close(n.started)
		n.s.Start()
	}()
	ready := func() bool {
		select {
		case <-n.started:
			return n.s.ReadyForConnections(time.Millisecond) && n.s.JetStreamEnabled()
		default:
			return false
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case err := <-log.fatal:
			return fmt.Errorf("the server does not start: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// ClientURL is the URL for clients, credentials included: a secret.
func (n *Server) ClientURL() string { return n.url }

// Fresh reports that this start made the store: nobody ever wrote to it.
func (n *Server) Fresh() bool { return n.fresh }

// Shutdown removes nats.url, stops the server and gives the folder free. If
// ctx ends before that it returns ctx's error, and the rest goes on in the
// background. It may be called again, also concurrently.
func (n *Server) Shutdown(ctx context.Context) error {
	select {
	case n.stopping <- struct{}{}:
		go func() {
			defer close(n.stopped)
			n.stopErr = n.finish()
		}()
	default:
	}
	select {
	case <-n.stopped:
		return n.stopErr
	case <-ctx.Done():
		return fmt.Errorf("natsserver: shutdown: %w", ctx.Err())
	}
}

// finish undoes what was done, in reverse order.
func (n *Server) finish() error {
	err := removeURL(n.stateDir)
	if n.s != nil {
		n.s.Shutdown()
		n.s.WaitForShutdown()
	}
	if n.started != nil {
		<-n.started
	}
	return errors.Join(err, n.lock.Close())
}
