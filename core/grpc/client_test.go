package grpc

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

func TestDialNeedsAnEndpoint(t *testing.T) {
	if _, err := DialLeader("", "own"); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
		t.Errorf("%v, want an error that says what an endpoint is", err)
	}
}

func TestNobodyListens(t *testing.T) {
	for _, endpoint := range []string{"127.0.0.1:1", "unix:" + t.TempDir() + "/none"} {
		c, err := DialLeader(endpoint, "own")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := c.Health(ctx); !unavailable(err) {
			t.Errorf("%s: %v, want it unavailable", endpoint, err)
		}
		cancel()
		c.Close()
	}
}

// TestReaderLeaves leaves a stream in every way: without reading on and
// cancelling, by closing the session, and by closing the client.
func TestReaderLeaves(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(cancel func(), sess transport.Session, c *Client)
	}{
		{"cancel", func(cancel func(), _ transport.Session, _ *Client) { cancel() }},
		{"close session", func(_ func(), sess transport.Session, _ *Client) { sess.Close() }},
		{"close client", func(_ func(), _ transport.Session, c *Client) { c.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := &transporttest.Fake{NumCtx: 1 << 20, ReplyTokens: 1 << 20}
			s := serve(t, networks[1], fake, testOwner, ServerOptions{})
			client := s.client(t, testOwner)
			sess := open(t, client, "a")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ch, err := sess.Decode(ctx, transport.DecodeConfig{})
			if err != nil {
				t.Fatal(err)
			}
			<-ch
			time.Sleep(20 * time.Millisecond) // the stream runs into its bounds
			within(t, "leaving", func() { c.leave(cancel, sess, client) })
			within(t, "the end of the stream", func() {
				for chunk := range ch {
					if err := chunk.Error; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, transport.ErrSessionClosed) {
						t.Errorf("the stream ended with %v", err)
					}
				}
			})
			client.Close()
			if err := fake.WaitSessions(0); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClosedClient(t *testing.T) {
	c := fenced(t, &transporttest.Fake{}, ServerOptions{})
	sess := open(t, c, "a")
	for range 3 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{}); err == nil {
		t.Error("OpenSession works")
	}
	if _, err := sess.Decode(t.Context(), transport.DecodeConfig{}); !errors.Is(err, transport.ErrSessionClosed) {
		t.Errorf("Decode: %v, want ErrSessionClosed", err)
	}
	if err := sess.Close(); err != nil {
		t.Errorf("the session's Close: %v", err)
	}
}

func TestSharedConnectionStaysOpen(t *testing.T) {
	s := serve(t, networks[0], &transporttest.Fake{}, "", ServerOptions{})
	cc := rawConn(t, s)
	one := NewClientConn(cc, "")
	open(t, one, "a")
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	two := NewClientConn(cc, "")
	defer two.Close()
	if _, err := two.Health(t.Context()); err != nil {
		t.Errorf("Health over the connection: %v", err)
	}
}

func TestInvalidUTF8IsRefused(t *testing.T) {
	fake := &transporttest.Fake{}
	c := fenced(t, fake, ServerOptions{})
	sess := open(t, c, "")
	_, prefixErr := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "héllo\xffx"})
	_, toolsErr := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Tools: "\xff"})
	_, suffixErr := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: "abc\xc3"})
	_, embedErr := c.Embed(t.Context(), transport.EmbedRequest{Text: "\xff"})
	for _, c := range []struct {
		err  error
		want string
	}{
		{prefixErr, "the prefix is not valid UTF-8 at byte 6"},
		{toolsErr, "the tools is not valid UTF-8 at byte 0"},
		{suffixErr, "the suffix is not valid UTF-8 at byte 3"},
		{embedErr, "the text is not valid UTF-8 at byte 0"},
	} {
		if c.err == nil || c.err.Error() != c.want {
			t.Errorf("%v, want %q", c.err, c.want)
		}
	}
	if n := len(fake.Calls()); n != 1 {
		t.Errorf("the service got %d calls, want OpenSession alone", n)
	}
}

func TestExplainContextIsBounded(t *testing.T) {
	release := make(chan struct{})
	fake := &transporttest.Fake{Before: func(_ context.Context, c transporttest.Call) error {
		if c.Method == "ExplainContext" {
			<-release
		}
		return nil
	}}
	s := serve(t, networks[0], fake, testOwner, ServerOptions{})
	c, err := DialWithOptions(s.endpoint, testOwner, ClientOptions{ExplainTimeout: 50 * time.Millisecond}, s.dial...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sess := open(t, c, "a")
	within(t, "ExplainContext", func() {
		if r := sess.ExplainContext(); r.FatalError == "" || r.Closed {
			t.Errorf("%+v, want a fault", r)
		}
	})
	close(release)
}

func TestSlotGeneration(t *testing.T) {
	for _, owner := range []string{testOwner, ""} {
		s := serve(t, networks[0], &generations{}, owner, ServerOptions{})
		sess := open(t, s.client(t, owner), "")
		g, ok := sess.(transport.SlotGenerationer)
		if !ok || g.SlotGeneration() != 7 {
			t.Errorf("owner %q: %T has no generation 7", owner, sess)
		}
		if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a"}); err != nil {
			t.Error(err)
		}
	}
	sess := open(t, fenced(t, &transporttest.Fake{}, ServerOptions{}), "")
	if _, ok := sess.(transport.SlotGenerationer); ok {
		t.Error("a session without a generation has one")
	}
}

type generations struct{ transporttest.Fake }

func (s *generations) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	sess, err := s.Fake.OpenSession(ctx, req)
	return generationSession{sess}, err
}

// TestAbandonedOpenLeavesNoSession gives up on OpenSession at every moment of
// it: before, while and just after the service opens the session.
func TestAbandonedOpenLeavesNoSession(t *testing.T) {
	fake := &transporttest.Fake{}
	c := serve(t, networks[1], fake, testOwner, ServerOptions{}).client(t, testOwner)
	warm := open(t, c, "")
	var wg sync.WaitGroup
	var kept sync.Map
	for i := range 400 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*10)*time.Microsecond)
			defer cancel()
			if sess, err := c.OpenSession(ctx, transport.OpenSessionRequest{}); err == nil {
				kept.Store(sess, true)
			}
		})
	}
	wg.Wait()
	kept.Range(func(sess, _ any) bool {
		if err := sess.(transport.Session).Close(); err != nil {
			t.Error(err)
		}
		return true
	})
	if err := fake.WaitSessions(1); err != nil {
		t.Errorf("abandoned sessions: %v", err)
	}
	if _, err := warm.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a"}); err != nil {
		t.Error(err)
	}
}

func TestRequestsArriveWhole(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	c := fenced(t, fake, ServerOptions{})
	req := transport.OpenSessionRequest{
		ModelName: "m", Type: "llama", Digest: "d", Path: "/p",
		Config:           transport.Config{NumCtx: 9, TensorSplit: []float32{0.25, 0.75}, FlashAttn: true, KVCacheType: "q8_0"},
		Adapters:         []transport.AdapterSpec{{Name: "a", Scale: 0.5}},
		ReclaimableBytes: 77,
	}
	if _, err := c.OpenSession(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	got := fake.Calls()[0].Arg.(transport.OpenSessionRequest)
	if got.OwnerInstanceID != testOwner {
		t.Errorf("the body repeats the owner %q", got.OwnerInstanceID)
	}
	got.Fence = transport.Fence{}
	if gotJSON, want := mustJSON(t, got), mustJSON(t, req); gotJSON != want {
		t.Errorf("got  %s\nwant %s", gotJSON, want)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := codec{}.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data.Materialize())
}
