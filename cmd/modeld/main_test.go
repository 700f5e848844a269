package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
	"modeld/natslease"
	"modeld/natsserver"
)

// untilSecondSignal makes the test binary a process that is to be signalled;
// see TestSecondSignal.
const untilSecondSignal = "CMD_MODELD_TEST_SIGNALS"

func TestMain(m *testing.M) {
	if os.Getenv(untilSecondSignal) != "" {
		ctx, stop := untilSignalled(context.Background())
		defer stop()
		println("ready")
		<-ctx.Done()
		println("draining")
		select {} // work that does not end
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "MODELD_") {
			_ = os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m)
}

// ended is how a command ended.
type ended struct {
	code       int
	out, notes string
}

// modeld runs one command in this process, with nobody's configuration.
func modeld(t *testing.T, stdin string, args ...string) ended {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", "/none/such")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, notes bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &out, &notes)
	return ended{code, out.String(), notes.String()}
}

// want fails the test unless the command ended with code, and errText, a whole
// line where it is not empty, is all that it noted.
func (e ended) want(t *testing.T, code int, errText string) {
	t.Helper()
	if errText != "" {
		errText += "\n"
	}
	if e.code != code || e.notes != errText {
		t.Errorf("exit code %d, noted %q\nwant      %d, noted %q", e.code, e.notes, code, errText)
	}
}

// node is a state folder with a NATS server, where fakes own the slot.
type node struct {
	dir string
	nc  *nats.Conn
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "modeld") //nolint:usetesting // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	quiet := slog.New(slog.DiscardHandler)
	server, err := natsserver.Start(t.Context(), natsserver.Options{StateDir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	nc, err := nats.Connect(server.ClientURL(), natslease.ConnectOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return &node{dir: dir, nc: nc}
}

// run is modeld's run on this node.
func (n *node) run(t *testing.T, stdin string, args ...string) ended {
	t.Helper()
	return modeld(t, stdin, append(args, "--state-dir", n.dir)...)
}

// owner is a fake daemon that owns the slot.
type owner struct {
	*natslease.Lease
	endpoint string
	stop     func()
}

// own makes svc the service of the slot's owner until the test ends, or stop
// is called, which gives the slot back.
func (n *node) own(t *testing.T, svc transport.Service) *owner {
	t.Helper()
	lease, endpoint := n.acquire(t)
	lis, err := net.Listen("unix", strings.TrimPrefix(endpoint, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- wire.Serve(ctx, lis, svc, lease.Instance(), "fake") }()
	stopped := false
	o := &owner{Lease: lease, endpoint: endpoint, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := lease.Release(context.Background()); err != nil {
			t.Error(err)
		}
	}}
	t.Cleanup(o.stop)
	return o
}

// acquire takes the slot's lease, for an endpoint where nobody listens yet.
func (n *node) acquire(t *testing.T) (*natslease.Lease, string) {
	t.Helper()
	endpoint := "unix:" + filepath.Join(n.dir, "modeld.sock")
	leases, err := natslease.New(n.nc, natslease.Options{
		Slot: "default", Host: "here", FreshStore: true, Logger: slog.New(slog.DiscardHandler),
		Info: natslease.Info{Endpoint: endpoint, Backend: "fake", Version: "v1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leases.Close)
	lease, err := leases.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return lease, endpoint
}

func decodeJSON[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

// says makes a fake that answers with the words of text and then stops.
func says(text string) *transporttest.Fake {
	return &transporttest.Fake{Script: func(transport.DecodeConfig) []transport.StreamChunk {
		var chunks []transport.StreamChunk
		for i, word := range strings.Split(text, " ") {
			if i > 0 {
				word = " " + word
			}
			if word != "" {
				chunks = append(chunks, transport.StreamChunk{Text: word, Tokens: 1})
			}
		}
		chunks[len(chunks)-1].FinishReason = transport.FinishStop
		return chunks
	}}
}
