package grpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

// raw is a message as bytes: what a client of another make sends and gets.
type raw []byte

// rawCodec has the wire's name and passes bytes through.
type rawCodec struct{}

func (rawCodec) Name() string { return CodecName }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(r)}, nil
	}
	return codec{}.Marshal(v)
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*raw); ok {
		*r = data.Materialize()
		return nil
	}
	return codec{}.Unmarshal(data, v)
}

func rawConn(t *testing.T, s *serving) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+s.endpoint, append(s.dial,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func withOwner(ctx context.Context, owners ...string) context.Context {
	for _, o := range owners {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-contenox-owner-instance", o)
	}
	return ctx
}

// TestWireOfServer plays a client that was written against the wire alone: what
// it sends and gets, byte for byte.
func TestWireOfServer(t *testing.T) {
	fake := transporttest.NewFullFake(&transporttest.Fake{NumCtx: 32, Script: func(transport.DecodeConfig) []transport.StreamChunk {
		return []transport.StreamChunk{
			{Text: " was", Tokens: 1},
			{Thinking: "hm"},
			{ToolCalls: []transport.ToolCall{{ID: "c1", Type: "function", Function: transport.ToolCallFunction{Name: "f", Arguments: "{}"}}}},
			{FinishReason: "stop"},
		}
	}})
	cc := rawConn(t, serve(t, networks[0], fake, "own", ServerOptions{}))
	ctx := withOwner(t.Context(), "own")

	const (
		config   = `{"NumCtx":16,"HotContextTokens":0,"PlannerEffectiveContext":0,"NumBatch":0,"NumThreads":0,"NumGpuLayers":0,"TensorSplit":null,"FlashAttn":false,"KVCacheType":"","PromptFormat":"","PromptTemplateDigest":"","DisableBOS":false,"ReasoningFormat":""}`
		manifest = `{"backend":"","prompt_format":"","prompt_template_digest":"","runtime_digest":"","add_bos":false,"stable_bytes":0,"total_bytes":0,"stable_byte_hash":""}`
		model    = `"owner_instance_id":"own","model_name":"m","type":"llama","digest":"","path":"","config":` + config
	)
	hash := func(words ...int32) string { return transport.HashTokens(words) }
	for _, c := range []struct{ method, request, reply string }{
		{"Health", `{}`, `{"instance_id":"own","ready":true,"backend":"fake"}`},
		{"OpenSession", `{` + model + `,"adapters":[{"name":"a","scale":0.5}]}`, `{"handle":"own/1"}`},
		{"Describe", `{` + model + `}`, `{"model_max_context":32,"effective_context":32,"device_kind":"cpu","runtime_name":"fake"}`},
		{"LoadModel", `{` + model + `,"expected_generation":0}`, `{"model_name":"m","type":"llama","config":` + config + `,"generation":1}`},
		{"Status", `{"owner_instance_id":"own"}`, `{"backend":"fake","state":"Ready","active":{"model_name":"m","type":"llama","config":` + config + `,"generation":1},"sessions":1}`},
		{"Embed", `{` + model + `,"text":"x"}`, `{"vector":[VECTOR]}`},
		{
			"EnsurePrefix", `{"handle":"own/1","prefix":{"Text":"once upon","Manifest":` + manifest + `}}`,
			`{"ReusedTokens":0,"PrefilledTokens":2,"DroppedTokens":0,"PrefixTokens":2,"ResidentTokens":2,"AvailableTokens":14,"StableByteHash":"","StableTokenHash":"` + hash(0, 1) + `","ManifestDigest":""}`,
		},
		{
			"PrefillSuffix", `{"handle":"own/1","suffix":{"Text":" a time","Manifest":` + manifest + `}}`,
			`{"SuffixTokens":2,"PrefixTokens":2,"ResidentTokens":4,"AvailableTokens":12,"ManifestDigest":""}`,
		},
		{
			"ExplainContext", `{"handle":"own/1"}`,
			`{"ResidentTokens":4,"PrefixTokens":2,"NumCtx":16,"HotContextTokens":0,"PlannerEffectiveContext":0,"AvailableTokens":12,"StableByteHash":"","StableTokenHash":"` + hash(0, 1) + `","ManifestDigest":"","Manifest":` + manifest + `,"Closed":false,"physical_prefill_calls":2,"physical_prefill_tokens":4}`,
		},
		{"Snapshot", `{"handle":"own/1"}`, `{"resident_tokens":4,"prefix_tokens":2,"num_ctx":16,"resident_token_ids":[0,1,2,3],"manifest":` + manifest + `}`},
		{"Restore", `{"handle":"own/1","snapshot":{"resident_tokens":1,"prefix_tokens":1,"resident_token_ids":[2],"manifest":` + manifest + `}}`, `{}`},
		{
			"Decode", `{"handle":"own/1","config":{"MaxTokens":3,"Temperature":0,"TopP":null,"TopK":0,"Seed":null,"ParserProtocols":null,"ReasoningFormat":"","StructuredOutput":{"Protocol":"","Payload":"","ToolName":""}}}`,
			`{"text":" was","tokens":1}` + "\n" + `{"thinking":"hm"}` + "\n" +
				`{"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]}` + "\n" + `{"finish_reason":"stop"}`,
		},
		{"CloseSession", `{"handle":"own/1"}`, `{}`},
		{"CloseSession", `{"handle":"own/1"}`, `{}`},
		{"UnloadModel", `{"owner_instance_id":"own","expected_generation":1}`, `{}`},
		{"ListModels", `{"owner_instance_id":"own"}`, `{"models":null}`},
		{
			"PushModel", `{"owner_instance_id":"own","manifest":{"name":"p","type":"llama","total_bytes":5,"format":"file"},"data":"aGU="}` + "\n" + `{"data":"bGxv"}`,
			`{"already_present":false,"bytes_written":5}`,
		},
		{
			"PushModel", `{"owner_instance_id":"own","manifest":{"name":"p","type":"llama","digest":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","format":"file"}}`,
			`{"already_present":true,"bytes_written":0}`,
		},
		{"ListModels", `{"owner_instance_id":"own"}`, `{"models":[{"name":"p","type":"llama","digest":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size_bytes":5}]}`},
		{"DiskStats", `{"owner_instance_id":"own"}`, `{"free_bytes":1073741819,"used_bytes":5,"total_bytes":1073741824}`},
		{"RemoveModel", `{"owner_instance_id":"own","name":"p"}`, `{}`},
	} {
		if !t.Run(c.method, func(t *testing.T) {
			got, err := exchange(ctx, cc, c.method, c.request)
			if err != nil {
				t.Fatal(err)
			}
			if c.method == "Embed" {
				got = regexp.MustCompile(`\[-?[0-9.]+,-?[0-9.]+\]`).ReplaceAllString(got, "[VECTOR]")
			}
			if got != c.reply {
				t.Errorf("%s\n  got %s\n want %s", c.request, got, c.reply)
			}
		}) {
			return
		}
	}
}

// exchange makes a call with one request for each line and returns the replies
// as lines.
func exchange(ctx context.Context, cc *grpc.ClientConn, method, request string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/contenox.transport.v1.Compute/"+method)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(request) {
		if err := stream.SendMsg(raw(strings.TrimSpace(line))); err != nil {
			break // the reply says why
		}
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	var replies []string
	for {
		var r raw
		if err := stream.RecvMsg(&r); err != nil {
			if err.Error() == "EOF" {
				return strings.Join(replies, "\n"), nil
			}
			return strings.Join(replies, "\n"), err
		}
		replies = append(replies, string(r))
	}
}

// TestWireOfClient holds still what our client sends, by listening in on it.
func TestWireOfClient(t *testing.T) {
	var sent []string
	listen := func(method string, msg any) {
		data, err := codec{}.Marshal(msg)
		if err != nil {
			t.Error(err)
		}
		sent = append(sent, strings.TrimPrefix(method, "/"+serviceName+"/")+" "+string(data.Materialize()))
	}
	s := serve(t, networks[0], transporttest.NewFullFake(nil), "own", ServerOptions{})
	s.dial = append(s.dial,
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			listen(method, req)
			return invoke(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, cc, method, opts...)
			return &listenedStream{stream, func(m any) { listen(method, m) }}, err
		}))
	c := s.client(t, "own")
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Health(ctx)
	must(err)
	sess, err := c.OpenSession(ctx, transport.OpenSessionRequest{ModelName: "m"})
	must(err)
	_, err = sess.EnsurePrefix(ctx, transport.PrefixInput{Text: "a", Tools: "[]"})
	must(err)
	_, err = sess.PrefillSuffix(ctx, transport.SuffixInput{Text: "b"})
	must(err)
	collect(t, sess, transport.DecodeConfig{MaxTokens: 1})
	if r := sess.ExplainContext(); r.FatalError != "" {
		t.Fatal(r.FatalError)
	}
	_, err = sess.Snapshot(ctx)
	must(err)
	must(sess.Restore(ctx, transport.SessionSnapshot{}))
	must(sess.Close())
	_, err = c.Status(ctx)
	must(err)
	_, err = c.LoadModel(ctx, transport.LoadModelRequest{ModelName: "m", ExpectedGeneration: 0})
	must(err)
	must(c.UnloadModel(ctx, transport.UnloadModelRequest{ExpectedGeneration: 1}))
	_, err = c.Embed(ctx, transport.EmbedRequest{Text: "e"})
	must(err)
	_, err = c.PushModel(ctx, transport.PushManifest{Name: "p", Type: "llama", Format: transport.PushFormatFile}, strings.NewReader("hello"))
	must(err)
	_, err = c.ListModels(ctx)
	must(err)
	_, err = c.DiskStats(ctx)
	must(err)
	must(c.RemoveModel(ctx, "p"))

	zero := func(v any) string { data, _ := json.Marshal(v); return string(data) }
	config, manifest := zero(transport.Config{}), zero(transport.ContextManifest{})
	model := func(name string) string {
		return `"owner_instance_id":"own","model_name":"` + name + `","type":"","digest":"","path":"","config":` + config
	}
	want := []string{
		`Health {}`,
		`OpenSession {` + model("m") + `,"open_id":"ID"}`,
		`EnsurePrefix {"handle":"own/1","prefix":{"Text":"a","Manifest":` + manifest + `,"Tools":"[]"}}`,
		`PrefillSuffix {"handle":"own/1","suffix":{"Text":"b","Manifest":` + manifest + `}}`,
		`Decode {"handle":"own/1","config":` + zero(transport.DecodeConfig{MaxTokens: 1}) + `}`,
		`ExplainContext {"handle":"own/1"}`,
		`Snapshot {"handle":"own/1"}`,
		`Restore {"handle":"own/1","snapshot":{"manifest":` + manifest + `}}`,
		`CloseSession {"handle":"own/1"}`,
		`Status {"owner_instance_id":"own"}`,
		`LoadModel {` + model("m") + `,"expected_generation":0}`,
		`UnloadModel {"owner_instance_id":"own","expected_generation":1}`,
		`Embed {` + model("") + `,"text":"e"}`,
		`PushModel {"owner_instance_id":"own","manifest":{"name":"p","type":"llama","format":"file"},"data":"aGVsbG8="}`,
		`ListModels {"owner_instance_id":"own"}`,
		`DiskStats {"owner_instance_id":"own"}`,
		`RemoveModel {"owner_instance_id":"own","name":"p"}`,
	}
	if len(sent) != len(want) {
		t.Fatalf("%d messages, want %d:\n%s", len(sent), len(want), strings.Join(sent, "\n"))
	}
	for i, got := range sent {
		if at := strings.Index(got, `"open_id":"`); at > 0 {
			got = got[:at] + `"open_id":"ID"}`
		}
		if got != want[i] {
			t.Errorf("message %d\n  got %s\n want %s", i, got, want[i])
		}
	}
}

type listenedStream struct {
	grpc.ClientStream
	listen func(any)
}

func (s *listenedStream) SendMsg(m any) error {
	s.listen(m)
	return s.ClientStream.SendMsg(m)
}

func TestBadRequests(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	cc := rawConn(t, serve(t, networks[0], fake, "own", ServerOptions{GRPC: []grpc.ServerOption{grpc.MaxRecvMsgSize(4096)}}))
	ctx := withOwner(t.Context(), "own")
	for _, c := range []struct{ name, method, request, want string }{
		{"not JSON", "OpenSession", `nonsense`, "code = Internal desc = grpc: failed to unmarshal the received message: invalid character"},
		{"another type", "EnsurePrefix", `{"handle":7}`, "cannot unmarshal number into Go struct field prefixBody.handle"},
		{"invalid UTF-8", "EnsurePrefix", "{\"handle\":\"own/1\",\"prefix\":{\"Text\":\"\xff\"}}", "not valid UTF-8"},
		{"invalid UTF-8 in a stream's request", "Decode", "{\"handle\":\"\xff\"}", "not valid UTF-8"},
		{"oversized", "EnsurePrefix", `{"handle":"` + strings.Repeat("x", 5000) + `"}`, "larger than max"},
		{"a made-up handle", "EnsurePrefix", `{"handle":"own/99"}`, "session_closed: "},
		{"a made-up handle in a stream", "Decode", `{"handle":"own/99"}`, "session_closed: "},
		{"a foreign handle", "Snapshot", `{"handle":"other/1"}`, "stale_fence: "},
		{"a foreign handle closed", "CloseSession", `{"handle":"other/1"}`, "stale_fence: "},
		{"no handle", "ExplainContext", `{}`, "session_closed: "},
		{"a push without a manifest", "PushModel", `{"data":"AAAA"}`, "internal: the first frame of PushModel has no manifest"},
		{"a push of nothing", "PushModel", ``, "internal: the first frame of PushModel: "},
		{"an unknown method", "Dance", `{}`, "unknown method Dance"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := exchange(ctx, cc, c.method, c.request)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
		})
	}
	if n := fake.Fake.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

func TestFence(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	for _, c := range []struct {
		name   string
		server string
		owners []string
		ok     bool
	}{
		{"the owner", "own", []string{"own"}, true},
		{"nobody", "own", nil, false},
		{"another", "own", []string{"other"}, false},
		{"empty", "own", []string{""}, false},
		{"a prefix of it", "own", []string{"ow"}, false},
		{"twice", "own", []string{"own", "own"}, false},
		{"it and another", "own", []string{"own", "other"}, false},
		{"an unfenced server, nobody", "", nil, true},
		{"an unfenced server, somebody", "", []string{"other"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cc := rawConn(t, serve(t, networks[0], fake, c.server, ServerOptions{}))
			ctx := withOwner(t.Context(), c.owners...)
			for _, m := range serviceDesc.Methods {
				_, err := exchange(ctx, cc, m.MethodName, `{"handle":"`+c.server+`/99"}`)
				stale := err != nil && errors.Is(fromStatus(err), transport.ErrStaleFence)
				if stale == (c.ok || m.MethodName == "Health") {
					t.Errorf("%s: %v", m.MethodName, err)
				}
			}
			for _, m := range serviceDesc.Streams {
				_, err := exchange(ctx, cc, m.StreamName, `{"handle":"`+c.server+`/99"}`)
				if stale := errors.Is(fromStatus(err), transport.ErrStaleFence); stale == c.ok {
					t.Errorf("%s: %v", m.StreamName, err)
				}
			}
		})
	}
}

func TestFencedOffCallsDoNotReachTheService(t *testing.T) {
	fake := &transporttest.Fake{}
	c := serve(t, networks[0], fake, "own", ServerOptions{}).client(t, "other")
	if _, err := c.OpenSession(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrStaleFence) {
		t.Errorf("OpenSession: %v, want ErrStaleFence", err)
	}
	if _, err := c.Embed(t.Context(), transport.EmbedRequest{}); !errors.Is(err, transport.ErrStaleFence) {
		t.Errorf("Embed: %v, want ErrStaleFence", err)
	}
	if calls := fake.Calls(); len(calls) != 0 {
		t.Errorf("the service was called: %+v", calls)
	}
	if h, err := c.Health(t.Context()); err != nil || h != (HealthStatus{InstanceID: "own", Ready: true, Backend: "fake"}) {
		t.Errorf("Health: %+v, %v", h, err)
	}
}

func TestClientReplacesAForwardedFence(t *testing.T) {
	c := fenced(t, transporttest.NewFullFake(nil), ServerOptions{})
	if _, err := c.Status(withOwner(t.Context(), "another-hop")); err != nil {
		t.Error(err)
	}
}

func TestPushLargeModel(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	c := fenced(t, fake, ServerOptions{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // several frames
	res, err := c.PushModel(t.Context(), transport.PushManifest{Name: "big", Format: transport.PushFormatFile}, bytes.NewReader(data))
	if err != nil || res.BytesWritten != int64(len(data)) {
		t.Fatalf("%+v, %v", res, err)
	}
	if !bytes.Equal(fake.Data("big"), data) {
		t.Error("it arrived changed")
	}
}

func TestPushThatBreaksOffIsNoModel(t *testing.T) {
	fake := transporttest.NewFullFake(nil)
	c := fenced(t, fake, ServerOptions{})
	boom := errors.New("disk gone")
	broken := &brokenReader{data: bytes.Repeat([]byte("x"), 3<<20), err: boom}
	_, err := c.PushModel(t.Context(), transport.PushManifest{Name: "half", Format: transport.PushFormatFile}, broken)
	if !errors.Is(err, boom) {
		t.Errorf("%v, want the reader's error", err)
	}
	models, err := c.ListModels(t.Context())
	if err != nil || len(models) != 0 {
		t.Errorf("models %+v, %v; want none", models, err)
	}
}

type brokenReader struct {
	data []byte
	err  error
}

func (r *brokenReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, r.err
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
