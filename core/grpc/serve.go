package grpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"modeld/core/transport"
)

// GRPCOptions are what a gRPC server needs to serve Compute, except for the
// stats handler, which is the Server itself.
//
//nolint:revive // Options would be anybody's
func GRPCOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(connWindow),
	}
}

// DialOptions are what a connection to a server of Compute is better for.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(connWindow),
	}
}

// Fixed flow-control windows. The default, which estimates the bandwidth, pings
// for every chunk of a slow stream: that doubles the system calls of a token.
const (
	window     = 1 << 20
	connWindow = 8 << 20
)

const (
	// A peer whose host is gone is noticed in about 40 seconds.
	peerIdle    = 30 * time.Second
	peerTimeout = 10 * time.Second
	// maxStreams bounds the calls under way on one connection.
	maxStreams = 8192
	// lastWords is how long calls that were cut short may take to say so.
	lastWords = time.Second
)

// Serve serves svc on lis until ctx ends, and then stops gracefully: calls under
// way have ten seconds to end. It closes lis.
func Serve(ctx context.Context, lis net.Listener, svc transport.Service, instanceID, backend string) error {
	return ServeWithOptions(ctx, lis, svc, instanceID, backend, ServerOptions{})
}

// ServeWithOptions is Serve with options. It returns nil once ctx has ended and
// every call and session has too.
func ServeWithOptions(ctx context.Context, lis net.Listener, svc transport.Service, instanceID, backend string, opts ServerOptions) error {
	s := NewServerWithOptions(svc, instanceID, backend, opts)
	defer s.Close()
	g := grpc.NewServer(append(append(GRPCOptions(),
		grpc.StatsHandler(s),
		grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: peerIdle, Timeout: peerTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	), opts.GRPC...)...)
	s.Register(g)

	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{})
	defer close(ended)
	wg.Go(func() {
		select {
		case <-ctx.Done():
			s.drain(g)
		case <-ended:
			g.Stop()
		}
	})
	err := g.Serve(lis)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving on %s: %w", lis.Addr(), err)
}

// drain lets calls end, tells those that take too long, and stops.
func (s *Server) drain(g *grpc.Server) {
	var wg sync.WaitGroup
	defer wg.Wait()
	drained := make(chan struct{})
	wg.Go(func() {
		g.GracefulStop()
		close(drained)
	})
	select {
	case <-drained:
		return
	case <-time.After(s.opts.DrainTimeout):
		s.log.Warn("calls took too long to end and are cut short", "after", s.opts.DrainTimeout)
	}
	s.end(errServerClosed)
	s.endSessions(errServerClosed)
	select {
	case <-drained:
	case <-time.After(lastWords):
		g.Stop()
	}
}
