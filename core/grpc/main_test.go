package grpc

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testOwner = "host-7-abcd"

// network is a way to reach a server.
type network struct {
	name   string
	listen func(t testing.TB) (net.Listener, string, []grpc.DialOption)
}

var networks = []network{
	{"bufconn", listenBufconn},
	{"tcp", func(t testing.TB) (net.Listener, string, []grpc.DialOption) {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return lis, lis.Addr().String(), nil
	}},
	{"unix", func(t testing.TB) (net.Listener, string, []grpc.DialOption) {
		path := filepath.Join(t.TempDir(), "s")
		lis, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return lis, "unix:" + path, nil
	}},
}

func listenBufconn(testing.TB) (net.Listener, string, []grpc.DialOption) {
	lis := bufconn.Listen(1 << 20)
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }
	return lis, "bufconn", []grpc.DialOption{grpc.WithContextDialer(dial)}
}

// serving is a server under test.
type serving struct {
	endpoint string
	dial     []grpc.DialOption
	stop     context.CancelFunc
	done     chan struct{}
	err      error
}

// serve serves svc until the test ends.
func serve(t testing.TB, nw network, svc transport.Service, owner string, opts ServerOptions) *serving {
	t.Helper()
	lis, endpoint, dial := nw.listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{endpoint: endpoint, dial: dial, stop: cancel, done: make(chan struct{})}
	if opts.DrainTimeout == 0 {
		opts.DrainTimeout = 200 * time.Millisecond
	}
	go func() {
		defer close(s.done)
		s.err = ServeWithOptions(ctx, lis, svc, owner, "fake", opts)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.done
		if s.err != nil {
			t.Errorf("Serve: %v", s.err)
		}
	})
	return s
}

// client dials the server; the client is closed with the test.
func (s *serving) client(t testing.TB, owner string) *Client {
	t.Helper()
	c, err := DialLeader(s.endpoint, owner, s.dial...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// fenced serves svc on bufconn and returns a client of it.
func fenced(t testing.TB, svc transport.Service, opts ServerOptions) *Client {
	t.Helper()
	return serve(t, networks[0], svc, testOwner, opts).client(t, testOwner)
}

// open opens a session whose context is text.
func open(t testing.TB, svc transport.Service, text string) transport.Session {
	t.Helper()
	sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if text != "" {
		if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	return sess
}

func TestConformance(t *testing.T) {
	for _, nw := range networks {
		t.Run(nw.name, func(t *testing.T) {
			transporttest.Run(t, func(t *testing.T) transport.Service {
				return serve(t, nw, transporttest.NewFullFake(nil), testOwner, ServerOptions{}).client(t, testOwner)
			}, transporttest.Options{})
		})
	}
	t.Run("unfenced", func(t *testing.T) {
		transporttest.Run(t, func(t *testing.T) transport.Service {
			return serve(t, networks[0], transporttest.NewFullFake(nil), "", ServerOptions{}).client(t, "")
		}, transporttest.Options{})
	})
	t.Run("without optional interfaces", func(t *testing.T) {
		transporttest.Run(t, func(t *testing.T) transport.Service {
			return fenced(t, &transporttest.Fake{NoEmbed: true}, ServerOptions{})
		}, transporttest.Options{Lacks: []transporttest.Feature{
			transporttest.Embeddings, transporttest.ModelControl, transporttest.Store,
		}})
	})
	t.Run("two hops", func(t *testing.T) {
		transporttest.Run(t, func(t *testing.T) transport.Service {
			plugin := serve(t, networks[2], transporttest.NewFullFake(nil), "", ServerOptions{}).client(t, "")
			return fenced(t, plugin, ServerOptions{})
		}, transporttest.Options{})
	})
}
