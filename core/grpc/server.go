package grpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"modeld/core/transport"
)

// ownerKey is the fence's metadata.
const ownerKey = "x-contenox-owner-instance"

// ServerOptions are what a server may be given beyond NewServer's arguments.
type ServerOptions struct {
	// Valid is the ownership check. It is called before a call is accepted,
	// before its reply and before every streamed chunk, so it must be quick;
	// an error (an ErrNotOwner, as a rule) is what the caller gets, and ends
	// every session. Nil means that there is no lease to lose.
	Valid func() error
	// Lost, where not nil, is closed when the lease is lost for good: calls
	// and streams under way then end at once with Valid's error, or
	// ErrNotOwner.
	Lost <-chan struct{}
	// MaxSessions is the most sessions at once, 0 for 4096, and
	// MaxSessionsPerConn on one connection, 0 for 1024. Beyond them
	// OpenSession gives ErrModelBusy.
	MaxSessions        int
	MaxSessionsPerConn int
	// DrainTimeout is how long ServeWithOptions lets calls run on once its
	// context has ended, 0 for 10 seconds.
	DrainTimeout time.Duration
	// Logger gets panics and what happens to sessions; nil discards.
	Logger *slog.Logger
	// GRPC is passed on to the gRPC server that ServeWithOptions makes, for
	// transport credentials for example.
	GRPC []grpc.ServerOption
}

// The defaults of ServerOptions.
const (
	DefaultMaxSessions        = 4096
	DefaultMaxSessionsPerConn = 1024
	DefaultDrainTimeout       = 10 * time.Second
)

func (o ServerOptions) withDefaults() ServerOptions {
	if o.MaxSessions <= 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.MaxSessionsPerConn <= 0 {
		o.MaxSessionsPerConn = DefaultMaxSessionsPerConn
	}
	if o.DrainTimeout <= 0 {
		o.DrainTimeout = DefaultDrainTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Server serves a transport.Service. It is a stats.Handler: the gRPC server
// that it is registered with must be given it with grpc.StatsHandler, else
// sessions outlive the connection that opened them.
type Server struct {
	svc        transport.Service
	instanceID string
	backend    string
	opts       ServerOptions
	log        *slog.Logger

	life context.Context // ends with Close, or the loss of the lease
	end  context.CancelCauseFunc
	wg   sync.WaitGroup // what runs beside the calls

	mu       sync.Mutex
	seq      uint64
	reserved int // sessions that are open or being opened
	sessions map[string]*session
	closed   bool
}

var _ stats.Handler = (*Server)(nil)

// NewServer returns a server for svc. An empty instanceID switches fencing off.
func NewServer(svc transport.Service, instanceID, backend string) *Server {
	return NewServerWithOptions(svc, instanceID, backend, ServerOptions{})
}

// NewServerWithOptions is NewServer with options. A server with Lost must be
// closed.
func NewServerWithOptions(svc transport.Service, instanceID, backend string, opts ServerOptions) *Server {
	opts = opts.withDefaults()
	life, end := context.WithCancelCause(context.Background())
	s := &Server{
		svc:        svc,
		instanceID: instanceID,
		backend:    backend,
		opts:       opts,
		log:        opts.Logger.With("instance", instanceID),
		life:       life,
		end:        end,
		sessions:   make(map[string]*session),
	}
	if instanceID == "" {
		// Without an instance id only the number tells this server's
		// handles from those of the one before it.
		s.seq = uint64(rand.Uint32()) //nolint:gosec // no secret: a handle is of use on its own connection only
	}
	if opts.Lost != nil {
		s.beside(s.watchLease)
	}
	return s
}

// Register registers the Compute service.
func (s *Server) Register(r grpc.ServiceRegistrar) { r.RegisterService(&serviceDesc, s) }

var errServerClosed = fmt.Errorf("%w: the server has shut down", transport.ErrSessionFatal)

// Close ends every call, closes every session and waits for them. The gRPC
// server is the caller's to stop.
func (s *Server) Close() error {
	s.end(errServerClosed) // no session is added from here on
	s.endSessions(context.Cause(s.life))
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// beside runs f beside the caller; Close waits for it.
func (s *Server) beside(f func()) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		f()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		f()
	}()
}

func (s *Server) watchLease() {
	select {
	case <-s.opts.Lost:
		err := s.valid()
		if err == nil {
			err = transport.ErrNotOwner
		}
		s.end(err) // no session is added from here on
		s.endSessions(err)
	case <-s.life.Done():
	}
}

func (s *Server) valid() error {
	if s.opts.Valid == nil {
		return nil
	}
	return s.opts.Valid()
}

// check is the ownership check; where it fails sessions die.
func (s *Server) check() error {
	if err := over(s.life); err != nil {
		return err
	}
	if err := s.valid(); err != nil {
		s.endSessions(err)
		return err
	}
	return nil
}

// accept is what every call but Health must pass.
func (s *Server) accept(ctx context.Context) error {
	if s.instanceID != "" {
		md, _ := metadata.FromIncomingContext(ctx)
		switch got := md.Get(ownerKey); {
		case len(got) == 0:
			return fmt.Errorf("%w: the call names no owner; send %s=%s if that is who it is for",
				transport.ErrStaleFence, ownerKey, s.instanceID)
		case len(got) > 1:
			return fmt.Errorf("%w: the call names %d owners", transport.ErrStaleFence, len(got))
		case got[0] != s.instanceID:
			return fmt.Errorf("%w: the call is for %q, this is %q; find the owner anew",
				transport.ErrStaleFence, clip(got[0]), s.instanceID)
		}
	}
	return s.check()
}

// join returns a context that ends with ctx and with life, which then is its
// cause. release must be called.
func join(ctx, life context.Context) (joined context.Context, release func()) {
	joined, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	return joined, func() { stop(); cancel(nil) }
}

// because returns why a call failed where that is the end of life, and err
// otherwise. It asks life itself: a context joined with it ends a little later.
func because(life context.Context, err error) error {
	if err == nil || life.Err() == nil {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, transport.ErrSessionClosed) {
		return context.Cause(life)
	}
	return err
}

// over returns why a life has ended, nil before that.
func over(life context.Context) error {
	if life.Err() == nil {
		return nil
	}
	return context.Cause(life)
}

// ready reports whether the service can take work.
func (s *Server) ready(ctx context.Context) error {
	if err := over(s.life); err != nil { //nolint:contextcheck // it is asked, not used
		return err
	}
	if err := s.valid(); err != nil {
		return err
	}
	if r, ok := s.svc.(transport.ReadyReporter); ok {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		return r.Ready(ctx)
	}
	return nil
}

const readyTimeout = 2 * time.Second
