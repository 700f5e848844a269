package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	wire "modeld/core/grpc"
	"modeld/core/transport"
)

const (
	// maxMessageBytes is the wire's limit; gRPC's own is 4 MiB.
	maxMessageBytes = 512 << 20
	// maxSessions lets the host's limits be the ones that count: all its
	// sessions come over one connection.
	maxSessions = 1 << 20
)

// Option changes how [Serve] serves.
type Option func(*server)

// WithBackend sets the name that health reports. The default is the binary's
// name without "modeld-".
func WithBackend(name string) Option { return func(s *server) { s.backend = name } }

// WithLogger sets where Serve's own few lines go. The default is [Logger].
func WithLogger(l *slog.Logger) Option { return func(s *server) { s.log = l } }

// Serve serves svc to the host that started this process and returns when the
// host asks it to end, having closed svc if it has a Close method. It ends the
// process by itself when the host is gone, and when no host started it.
//
// Serve takes over standard output: what native libraries print there from now
// on goes to standard error. Libraries that print earlier need [GuardStdout]
// first.
func Serve(svc transport.Service, opts ...Option) {
	if os.Getenv(CookieKey) != CookieValue {
		Fail(fmt.Errorf("this is a backend of modeld and not run by hand: put it into the plugins folder and run modeld --backend %s", defaultBackend()))
	}
	if err := GuardStdout(); err != nil {
		Fail(err)
	}
	nameProcess()
	s := &server{svc: svc, backend: defaultBackend(), log: Logger()}
	for _, opt := range opts {
		opt(s)
	}
	s.compute = wire.NewServerWithOptions(svc, "", s.backend, wire.ServerOptions{
		MaxSessions: maxSessions, MaxSessionsPerConn: maxSessions, Logger: s.log,
	})
	if pipe := lifeline(); pipe != nil {
		go watchLifeline(pipe, s.close, os.Exit)
	}
	s.serve()
	s.close()
}

// Fail prints err where the host shows it to the user, and ends the process.
func Fail(err error) {
	fmt.Fprintf(stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	os.Exit(1)
}

func defaultBackend() string {
	name := filepath.Base(os.Args[0])
	if runtime.GOOS == "windows" {
		name = strings.TrimSuffix(name, ".exe")
	}
	return strings.TrimPrefix(name, BinaryPrefix)
}

// server is one Serve.
type server struct {
	svc     transport.Service
	backend string
	log     *slog.Logger
	compute *wire.Server
	closing sync.Once
}

func (s *server) serve() {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: Versions(&registration{compute: s.compute}),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.StatsHandler(s.compute),
				grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{
			Name: "go-plugin", Level: hclog.Warn, Output: stderr, JSONFormat: true,
		}),
	})
}

// close closes what is open and then the service, once; a second caller waits
// for the first.
func (s *server) close() {
	s.closing.Do(func() {
		_ = s.compute.Close()
		var err error
		switch svc := s.svc.(type) {
		case io.Closer:
			err = svc.Close()
		case interface{ Close() }:
			svc.Close()
		}
		if err != nil {
			s.log.Error("the backend did not close cleanly", "error", err)
		}
	})
}

// registration puts the service onto go-plugin's server, which has registered
// health already.
type registration struct {
	goplugin.NetRPCUnsupportedPlugin
	compute *wire.Server
}

func (r *registration) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	r.compute.Register(s)
	return nil
}

func (r *registration) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin has no client side")
}
