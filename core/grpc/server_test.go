package grpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

// within fails the test where f takes longer than ten seconds.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s took longer than 10s", what)
	}
}

// slow makes every chunk after the first wait for its stream's end.
func slow(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestSessionsDieWithTheirConnection(t *testing.T) {
	fake := &transporttest.Fake{BeforeChunk: slow}
	s := serve(t, networks[1], fake, testOwner, ServerOptions{})
	one, two := s.client(t, testOwner), s.client(t, testOwner)
	for range 5 {
		open(t, one, "a")
	}
	busy := open(t, one, "a")
	ch, err := busy.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	kept := open(t, two, "a")
	if n := fake.Sessions(); n != 7 {
		t.Fatalf("%d sessions are open, want 7", n)
	}
	one.Close()
	if err := fake.WaitSessions(1); err != nil {
		t.Fatal(err)
	}
	within(t, "the end of the stream", func() {
		for range ch {
		}
	})
	if _, err := kept.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a b"}); err != nil {
		t.Errorf("a session of another connection: %v", err)
	}
}

func TestHandlesAreOfNoUseToOthers(t *testing.T) {
	fake := &transporttest.Fake{}
	s := serve(t, networks[0], fake, testOwner, ServerOptions{})
	mine, theirs := s.client(t, testOwner), s.client(t, testOwner)
	open(t, mine, "a")
	stolen := theirs.newSession(testOwner + "/1")
	if _, err := stolen.EnsurePrefix(t.Context(), transport.PrefixInput{}); !errors.Is(err, transport.ErrSessionClosed) {
		t.Errorf("EnsurePrefix: %v, want ErrSessionClosed", err)
	}
	if err := stolen.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if fake.Sessions() != 1 {
		t.Error("it closed the other's session")
	}
}

func TestLostConnectionIsFatalToSessions(t *testing.T) {
	lis, endpoint, dial := listenBufconn(t)
	srv := NewServer(&transporttest.Fake{BeforeChunk: slow}, testOwner, "fake")
	g := grpc.NewServer(append(GRPCOptions(), grpc.StatsHandler(srv), grpc.WaitForHandlers(true))...)
	srv.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	c, err := DialLeader(endpoint, testOwner, dial...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sess := open(t, c, "a")
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	g.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	within(t, "the end of the stream", func() {
		var last transport.StreamChunk
		for chunk := range ch {
			last = chunk
		}
		if !errors.Is(last.Error, transport.ErrSessionFatal) || status.Code(last.Error) != codes.Unavailable {
			t.Errorf("the stream ended with %v, want ErrSessionFatal", last.Error)
		}
	})
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{}); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("EnsurePrefix: %v, want ErrSessionFatal", err)
	}
	if r := sess.ExplainContext(); r.FatalError == "" {
		t.Errorf("the report has no fault: %+v", r)
	}
	if err := sess.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
}

func TestOverlappingCallsAreRefused(t *testing.T) {
	fake := &transporttest.Fake{BeforeChunk: slow}
	c := fenced(t, fake, ServerOptions{})
	sess := open(t, c, "a b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := sess.Decode(ctx, transport.DecodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x"}); !errors.Is(err, transport.ErrModelBusy) {
		t.Errorf("EnsurePrefix during Decode: %v, want ErrModelBusy", err)
	}
	if _, err := sess.Decode(t.Context(), transport.DecodeConfig{}); !errors.Is(err, transport.ErrModelBusy) {
		t.Errorf("Decode during Decode: %v, want ErrModelBusy", err)
	}
	// A cancelled stream is waited for instead, at once and every time.
	for range 50 {
		cancel()
		if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a b"}); err != nil {
			t.Fatalf("EnsurePrefix after a cancelled Decode: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		if ch, err = sess.Decode(ctx, transport.DecodeConfig{}); err != nil {
			cancel()
			t.Fatal(err)
		}
		<-ch
	}
	cancel()
	if err := sess.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := fake.WaitSessions(0); err != nil {
		t.Error(err)
	}
}

func TestManySessions(t *testing.T) {
	const many = 10_000
	fake := &transporttest.Fake{}
	s := serve(t, networks[2], fake, testOwner, ServerOptions{MaxSessions: many, MaxSessionsPerConn: many})
	c := s.client(t, testOwner)
	var opened atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range many / 10 {
				if _, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{}); err != nil {
					t.Error(err)
					return
				}
				opened.Add(1)
			}
		})
	}
	wg.Wait()
	if n := fake.Sessions(); n != many || opened.Load() != many {
		t.Fatalf("%d sessions were opened and %d are open, want %d", opened.Load(), n, many)
	}
	_, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if !errors.Is(err, transport.ErrModelBusy) || !strings.Contains(err.Error(), "10000") {
		t.Errorf("one more: %v, want ErrModelBusy with the limit", err)
	}
	c.Close()
	if err := fake.WaitSessions(0); err != nil {
		t.Error(err)
	}
	if _, err := s.client(t, testOwner).OpenSession(t.Context(), transport.OpenSessionRequest{}); err != nil {
		t.Errorf("a new client's session: %v", err)
	}
}

func TestSessionLimits(t *testing.T) {
	fake := &transporttest.Fake{Before: func(_ context.Context, c transporttest.Call) error {
		if req, ok := c.Arg.(transport.OpenSessionRequest); ok && req.ModelName == "bad" {
			return transport.ErrModelNotFound
		} else if ok && req.ModelName == "worse" {
			panic("worse")
		}
		return nil
	}}
	s := serve(t, networks[0], fake, testOwner, ServerOptions{MaxSessions: 3, MaxSessionsPerConn: 2})
	one, two := s.client(t, testOwner), s.client(t, testOwner)
	for range 5 { // failed ones don't count
		for _, name := range []string{"bad", "worse"} {
			if _, err := one.OpenSession(t.Context(), transport.OpenSessionRequest{ModelName: name}); err == nil {
				t.Fatal("a bad model was opened")
			}
		}
	}
	first := open(t, one, "")
	open(t, one, "")
	full := func(c *Client, what string) {
		t.Helper()
		if _, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrModelBusy) {
			t.Errorf("%s: %v, want ErrModelBusy", what, err)
		}
	}
	full(one, "a third session on one connection")
	open(t, two, "")
	full(two, "a fourth session")
	first.Close()
	open(t, one, "")
	full(two, "a fourth session again")
}

func TestPanicsStayInTheirCall(t *testing.T) {
	for _, method := range []string{"OpenSession", "Describe", "Embed", "EnsurePrefix", "PrefillSuffix", "Decode", "Snapshot", "Restore", "Close"} {
		t.Run(method, func(t *testing.T) {
			var log safeBuffer
			armed := atomic.Bool{}
			fake := &transporttest.Fake{Before: func(_ context.Context, c transporttest.Call) error {
				if c.Method == method && armed.CompareAndSwap(true, false) {
					panic("boom at " + method)
				}
				return nil
			}}
			c := fenced(t, fake, ServerOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			sess := open(t, c, "a b")
			armed.Store(true)
			err := callMethod(t, c, sess, method)
			if err == nil || !strings.Contains(err.Error(), "boom at "+method) || status.Code(err) != codes.Internal {
				t.Errorf("%v, want Internal with the panic", err)
			}
			if got := log.String(); !strings.Contains(got, "panicked") || !strings.Contains(got, "transporttest.") {
				t.Errorf("the log has no stack: %s", got)
			}
			if method == "Close" {
				return
			}
			if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a"}); err != nil {
				t.Errorf("the session afterwards: %v", err)
			}
		})
	}
}

func callMethod(t *testing.T, c *Client, sess transport.Session, method string) (err error) {
	ctx := t.Context()
	switch method {
	case "OpenSession":
		_, err = c.OpenSession(ctx, transport.OpenSessionRequest{})
	case "Describe":
		_, err = c.Describe(ctx, transport.OpenSessionRequest{})
	case "Embed":
		_, err = c.Embed(ctx, transport.EmbedRequest{})
	case "EnsurePrefix":
		_, err = sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "a"})
	case "PrefillSuffix":
		_, err = sess.PrefillSuffix(ctx, transport.SuffixInput{Text: "a"})
	case "Decode":
		_, err = sess.Decode(ctx, transport.DecodeConfig{})
	case "Snapshot":
		_, err = sess.Snapshot(ctx)
	case "Restore":
		err = sess.Restore(ctx, transport.SessionSnapshot{})
	case "Close":
		err = sess.Close()
	}
	return err
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestOwnershipLost takes the lease away in the two ways in which that can be
// noticed: by the check, and by the signal.
func TestOwnershipLost(t *testing.T) {
	gone := fmt.Errorf("%w: the lease ended", transport.ErrNotOwner)
	for _, signal := range []bool{false, true} {
		t.Run(fmt.Sprintf("signal=%t", signal), func(t *testing.T) {
			var lost atomic.Bool
			signalled := make(chan struct{})
			step := make(chan struct{})
			fake := &transporttest.Fake{ReplyTokens: 1000, NumCtx: 2000, BeforeChunk: func(ctx context.Context, n int) error {
				if n < 3 {
					return nil
				}
				select {
				case <-step:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
			c := fenced(t, fake, ServerOptions{Lost: signalled, Valid: func() error {
				if lost.Load() {
					return gone
				}
				return nil
			}})
			if h, err := c.Health(t.Context()); err != nil || !h.Ready {
				t.Errorf("Health before: %+v, %v", h, err)
			}
			sess, idle := open(t, c, "a b"), open(t, c, "a b")
			ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				<-ch
			}
			lost.Store(true)
			if signal {
				close(signalled)
			} else {
				close(step)
			}
			within(t, "the end of the stream", func() {
				var rest []transport.StreamChunk
				for chunk := range ch {
					rest = append(rest, chunk)
				}
				if len(rest) != 1 || !errors.Is(rest[0].Error, transport.ErrNotOwner) {
					t.Errorf("the stream went on with %+v, want only ErrNotOwner", rest)
				}
			})
			for what, err := range map[string]error{
				"OpenSession":  callMethod(t, c, idle, "OpenSession"),
				"EnsurePrefix": callMethod(t, c, idle, "EnsurePrefix"),
				"Decode":       callMethod(t, c, idle, "Decode"),
			} {
				if !errors.Is(err, transport.ErrNotOwner) || !strings.Contains(err.Error(), "the lease ended") {
					t.Errorf("%s afterwards: %v, want ErrNotOwner", what, err)
				}
			}
			if err := fake.WaitSessions(0); err != nil {
				t.Error(err)
			}
			if h, err := c.Health(t.Context()); err != nil || h.Ready {
				t.Errorf("Health afterwards: %+v, %v; want it not ready", h, err)
			}
		})
	}
}

// TestOwnershipLostDuringACall: its reply must not look like an owner's.
func TestOwnershipLostDuringACall(t *testing.T) {
	var lost atomic.Bool
	fake := &transporttest.Fake{Before: func(_ context.Context, c transporttest.Call) error {
		if c.Method == "EnsurePrefix" || c.Method == "Describe" {
			lost.Store(true)
		}
		return nil
	}}
	c := fenced(t, fake, ServerOptions{Valid: func() error {
		if lost.Load() {
			return transport.ErrNotOwner
		}
		return nil
	}})
	if _, err := c.Describe(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrNotOwner) {
		t.Errorf("Describe: %v, want ErrNotOwner", err)
	}
	lost.Store(false)
	sess, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{}); !errors.Is(err, transport.ErrNotOwner) {
		t.Errorf("EnsurePrefix: %v, want ErrNotOwner", err)
	}
}

func TestLostLeaseEndsWhatWaits(t *testing.T) {
	waiting := make(chan struct{}, 2)
	fake := &transporttest.Fake{Before: func(ctx context.Context, c transporttest.Call) error {
		if c.Method == "Describe" || c.Method == "PrefillSuffix" {
			waiting <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	lost := make(chan struct{})
	c := fenced(t, fake, ServerOptions{Lost: lost})
	sess := open(t, c, "a")
	errs := make(chan error, 2)
	go func() { errs <- callMethod(t, c, sess, "Describe") }()
	go func() { errs <- callMethod(t, c, sess, "PrefillSuffix") }()
	<-waiting
	<-waiting
	close(lost)
	for range 2 {
		if err := <-errs; !errors.Is(err, transport.ErrNotOwner) {
			t.Errorf("%v, want ErrNotOwner", err)
		}
	}
}

func TestHealthAsksTheService(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	c := fenced(t, fake, ServerOptions{})
	fake.SetReady(errors.New("the plugin is down"))
	if h, err := c.Health(t.Context()); err != nil || h.Ready || h.InstanceID != testOwner {
		t.Errorf("%+v, %v; want it not ready", h, err)
	}
	fake.SetReady(nil)
	if h, err := c.Health(t.Context()); err != nil || !h.Ready {
		t.Errorf("%+v, %v; want it ready", h, err)
	}
}
