package grpc

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

func TestServe(t *testing.T) {
	lis, endpoint, dial := listenBufconn(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, lis, &transporttest.Fake{}, "own", "none") }()
	c, err := DialLeader(endpoint, "own", dial...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if h, err := c.Health(t.Context()); err != nil || h != (HealthStatus{"own", true, "none"}) {
		t.Errorf("Health: %+v, %v", h, err)
	}
	cancel()
	within(t, "the end of Serve", func() {
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if _, err := c.Health(t.Context()); !unavailable(err) {
		t.Errorf("Health afterwards: %v, want it unavailable", err)
	}
}

func TestServeOnABrokenListener(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lis.Close()
	within(t, "Serve", func() {
		err := Serve(t.Context(), lis, &transporttest.Fake{}, "own", "none")
		if err == nil || !strings.Contains(err.Error(), lis.Addr().String()) {
			t.Errorf("%v, want an error that names the address", err)
		}
	})
}

func TestServeWithEndedContext(t *testing.T) {
	lis, _, _ := listenBufconn(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	within(t, "Serve", func() {
		if err := Serve(ctx, lis, &transporttest.Fake{}, "own", "none"); err != nil {
			t.Error(err)
		}
	})
}

// TestDrainLetsStreamsEnd stops a server in the midst of a stream, which still
// comes to its end.
func TestDrainLetsStreamsEnd(t *testing.T) {
	step := make(chan struct{})
	fake := &transporttest.Fake{BeforeChunk: func(ctx context.Context, n int) error {
		if n > 0 {
			<-step
		}
		return nil
	}}
	s := serve(t, networks[1], fake, testOwner, ServerOptions{DrainTimeout: 10 * time.Second})
	sess := open(t, s.client(t, testOwner), "a b")
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{MaxTokens: 5})
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	s.stop()
	close(step)
	within(t, "the stream", func() {
		var last transport.StreamChunk
		n := 1
		for last = range ch {
			n++
		}
		if n != 5 || last.FinishReason != transport.FinishLength || last.Error != nil {
			t.Errorf("%d chunks, the last %+v; want a whole generation", n, last)
		}
	})
	within(t, "the end of Serve", func() { <-s.done })
	if n := fake.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

func TestDrainHasADeadline(t *testing.T) {
	fake := &transporttest.Fake{BeforeChunk: slow}
	s := serve(t, networks[1], fake, testOwner, ServerOptions{DrainTimeout: 50 * time.Millisecond})
	sess := open(t, s.client(t, testOwner), "a b")
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	s.stop()
	within(t, "the end of Serve", func() { <-s.done })
	within(t, "the stream", func() {
		var last transport.StreamChunk
		for last = range ch {
		}
		if !errors.Is(last.Error, transport.ErrSessionFatal) {
			t.Errorf("the stream ended with %v, want ErrSessionFatal", last.Error)
		}
	})
	if n := fake.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

func TestServerClosesMoreThanOnce(t *testing.T) {
	lost := make(chan struct{})
	s := NewServerWithOptions(&transporttest.Fake{}, "own", "none", ServerOptions{Lost: lost})
	within(t, "Close", func() {
		s.Close()
		s.Close()
	})
}
