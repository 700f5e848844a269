package e2e

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"modeld/client"
	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/test/modeldproc"
)

// Bad calls are refused with the error that names what is wrong, and the daemon
// serves on.
func TestBadCalls(t *testing.T) {
	d := serveLlama(t)
	c := dial(t, d)
	ctx := within(t, 2*time.Minute)
	prefix := func(text string) error {
		_, err := open(t, c).EnsurePrefix(ctx, transport.PrefixInput{Text: text})
		return err
	}
	decode := func(cfg transport.DecodeConfig) error {
		sess := open(t, c)
		if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "The"}); err != nil {
			return err
		}
		chunks, err := sess.Decode(ctx, cfg)
		if err != nil {
			return err
		}
		for chunk := range chunks {
			err = chunk.Error
		}
		return err
	}
	nan, negative := math.NaN(), -1.0
	tests := []struct {
		name string
		call func() error
		is   error
		says string
	}{
		{"an oversized prompt", func() error { return prefix(strings.Repeat("word ", 20000)) }, transport.ErrContextOverflow, "8192"},
		{"text that is no UTF-8", func() error { return prefix("ab\xff") }, nil, "UTF-8"},
		{"a negative temperature", func() error { return decode(transport.DecodeConfig{Temperature: &negative}) }, nil, "emperature"},
		{"a temperature that is no number", func() error { return decode(transport.DecodeConfig{Temperature: &nan}) }, nil, ""},
		{"negative max tokens", func() error { return decode(transport.DecodeConfig{MaxTokens: -1}) }, nil, "MaxTokens"},
		{"structured output", func() error {
			return decode(transport.DecodeConfig{StructuredOutput: transport.StructuredOutputConfig{Protocol: "json_schema", Payload: "{}"}})
		}, transport.ErrUnsupportedFeature, ""},
		{"an image", func() error {
			_, err := open(t, c).EnsurePrefix(ctx, transport.PrefixInput{Text: transport.MediaMarker, Images: []transport.ImagePart{{Data: []byte{1}}}})
			return err
		}, transport.ErrUnsupportedFeature, ""},
		{"an unknown model", func() error {
			_, err := c.OpenSession(ctx, transport.OpenSessionRequest{ModelName: "huge"})
			return err
		}, transport.ErrModelNotFound, "huge"},
		{"a path", func() error {
			_, err := c.OpenSession(ctx, transport.OpenSessionRequest{Path: "/etc/passwd"})
			return err
		}, transport.ErrModelNotFound, "allow_paths"},
		{"another backend's type", func() error {
			_, err := c.OpenSession(ctx, transport.OpenSessionRequest{Type: "openvino"})
			return err
		}, transport.ErrBackendMismatch, "llama"},
		{"a segment beyond the text", func() error {
			_, err := open(t, c).EnsurePrefix(ctx, transport.PrefixInput{Text: "x", Manifest: transport.ContextManifest{
				StableBytes: 1, TotalBytes: 1, Segments: []transport.ManifestSegment{{Kind: "user", Stable: true, ByteEnd: 99}}}})
			return err
		}, transport.ErrManifestMismatch, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call()
			if err == nil {
				t.Fatal("it was accepted")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q does not say %q", err, tt.says)
			}
		})
	}
	var overflow *transport.ContextOverflowError
	if err := prefix(strings.Repeat("word ", 20000)); !errors.As(err, &overflow) || overflow.Detail.AdditionalTokens < 20000 || overflow.Detail.NumCtx != 8192 {
		t.Errorf("the overflow's counts: %v", err)
	}
	if text, _ := generate(t, open(t, c), "The capital of France is", 4); text == "" {
		t.Error("no text after all that")
	}
}

// What a client makes up is refused on the raw wire.
func TestFenceAndHandlesOnTheWire(t *testing.T) {
	d := serveEcho(t)
	cc, err := grpc.NewClient(d.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	call := func(owners []string, handle string) error {
		ctx := within(t, 10*time.Second)
		for _, owner := range owners {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-contenox-owner-instance", owner)
		}
		var reply map[string]any
		return cc.Invoke(ctx, "/contenox.transport.v1.Compute/ExplainContext", map[string]any{"handle": handle}, &reply, grpc.CallContentSubtype(wire.CodecName))
	}
	me := []string{d.Instance}
	for _, tt := range []struct {
		name   string
		owners []string
		handle string
		token  string
	}{
		{"no fence", nil, d.Instance + "/1", "stale_fence"},
		{"another owner", []string{"other-1-ab"}, d.Instance + "/1", "stale_fence"},
		{"two owners", []string{d.Instance, d.Instance}, d.Instance + "/1", "stale_fence"},
		{"another owner's handle", me, "other-1-ab/1", "stale_fence"},
		{"a handle made up", me, d.Instance + "/123456789", "session_closed"},
		{"a handle with a generation made up", me, d.Instance + "/7/123", "session_closed"},
		{"no number", me, d.Instance + "/abc", "session_closed"},
		{"empty", me, "", "session_closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := call(tt.owners, tt.handle)
			if st := status.Convert(err); st.Code() != codes.FailedPrecondition || !strings.HasPrefix(st.Message(), tt.token+": ") {
				t.Errorf("%v, want %s", err, tt.token)
			}
		})
	}
}

// 10,000 sessions are more than a daemon gives: the rest is refused, and when
// the connections are closed nothing of them is left.
func TestTenThousandSessions(t *testing.T) {
	d := serveEcho(t)
	before := usage(t, d)
	var clients []*client.Client
	refused := 0
	for range 10 {
		c, err := d.Client(within(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		for range 1000 {
			_, err := c.OpenSession(within(t, 30*time.Second), transport.OpenSessionRequest{})
			if errors.Is(err, transport.ErrModelBusy) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	if refused != 10000-4096 {
		t.Errorf("%d sessions were refused, want all beyond 4096", refused)
	}
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	awaitSessions(t, d, 0)
	now := usage(t, d)
	t.Logf("before %+v, after 10,000 sessions %+v", before, now)
	if now.files > before.files+8 {
		t.Errorf("%d descriptors are open, %d were before", now.files, before.files)
	}
	if now.bytes > before.bytes+64<<20 {
		t.Errorf("%d MiB are resident, %d were before", now.bytes>>20, before.bytes>>20)
	}
	if text, _ := generate(t, open(t, dial(t, d)), "hello", 5); text != "hello" {
		t.Errorf("afterwards it says %q", text)
	}
}

// awaitSessions waits until the daemon has n sessions.
func awaitSessions(t *testing.T, d *modeldproc.Daemon, n int) {
	t.Helper()
	c := dial(t, d)
	ctx := within(t, 20*time.Second)
	for {
		st, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Sessions == n {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

type resources struct {
	files int
	bytes int64
}

// usage is what a daemon and its plugin hold.
func usage(t *testing.T, d *modeldproc.Daemon) (u resources) {
	t.Helper()
	for _, pid := range []int{d.PID(), onlyPlugin(t, d)} {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		bytes, err := modeldproc.ResidentBytes(pid)
		if err != nil {
			t.Fatal(err)
		}
		u.files, u.bytes = u.files+len(files), u.bytes+bytes
	}
	return u
}

// A client that dies in the middle of a generation leaves nothing running.
func TestClientKilledInTheMiddleOfADecode(t *testing.T) {
	d := serveEcho(t, "loop: true", "tokens_per_second: 100")
	cmd := exec.CommandContext(t.Context(), modeld, "chat", "--state-dir", d.StateDir, "--prompt", "on and on")
	cmd.Env = modeldproc.Env()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 8)); err != nil {
		t.Fatalf("no text: %v", err)
	}
	awaitSessions(t, d, 1)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitSessions(t, d, 0)
}
