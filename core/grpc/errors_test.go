package grpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

// wireErrors is the contract's table.
var wireErrors = []struct {
	token    string
	code     codes.Code
	sentinel error
}{
	{"context_canceled", codes.Canceled, context.Canceled},
	{"deadline_exceeded", codes.DeadlineExceeded, context.DeadlineExceeded},
	{"stale_fence", codes.FailedPrecondition, transport.ErrStaleFence},
	{"not_owner", codes.FailedPrecondition, transport.ErrNotOwner},
	{"session_closed", codes.FailedPrecondition, transport.ErrSessionClosed},
	{"model_busy", codes.FailedPrecondition, transport.ErrModelBusy},
	{"model_not_active", codes.FailedPrecondition, transport.ErrModelNotActive},
	{"model_switch_required", codes.FailedPrecondition, transport.ErrModelSwitchRequired},
	{"slot_generation_stale", codes.FailedPrecondition, transport.ErrSlotGenerationStale},
	{"backend_mismatch", codes.FailedPrecondition, transport.ErrBackendMismatch},
	{"manifest_mismatch", codes.FailedPrecondition, transport.ErrManifestMismatch},
	{"digest_mismatch", codes.FailedPrecondition, transport.ErrDigestMismatch},
	{"context_overflow", codes.ResourceExhausted, transport.ErrContextOverflow},
	{"device_busy", codes.ResourceExhausted, transport.ErrDeviceBusy},
	{"insufficient_memory", codes.ResourceExhausted, transport.ErrInsufficientMemory},
	{"session_fatal", codes.Aborted, transport.ErrSessionFatal},
	{"model_load_failed", codes.Internal, transport.ErrModelLoadFailed},
	{"unsupported_feature", codes.Unimplemented, transport.ErrUnsupportedFeature},
	{"model_not_found", codes.NotFound, transport.ErrModelNotFound},
	{"unsupported_model_type", codes.InvalidArgument, transport.ErrUnsupportedModelType},
}

// TestErrorsCross sends every error of the table through a server, as a call's
// failure, as a stream's refusal and in the midst of a stream.
func TestErrorsCross(t *testing.T) {
	var fail error
	stage := ""
	fake := &transporttest.Fake{
		Before: func(_ context.Context, c transporttest.Call) error {
			if c.Method == stage {
				return fail
			}
			return nil
		},
		BeforeChunk: func(_ context.Context, n int) error {
			if stage == "chunk" && n == 2 {
				return fail
			}
			return nil
		},
	}
	c := fenced(t, fake, ServerOptions{})
	for _, row := range wireErrors {
		t.Run(row.token, func(t *testing.T) {
			fail = fmt.Errorf("at 3: of 4: %w: so there", row.sentinel)
			check := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, row.sentinel) {
					t.Fatalf("%s: %v is not %v", what, err, row.sentinel)
				}
				for _, other := range wireErrors {
					if other.token != row.token && errors.Is(err, other.sentinel) {
						t.Errorf("%s: %v is %v too", what, err, other.sentinel)
					}
				}
				if err.Error() != fail.Error() {
					t.Errorf("%s: it reads %q, want %q", what, err, fail)
				}
				st := status.Convert(err)
				if st.Code() != row.code || st.Message() != row.token+": "+fail.Error() {
					t.Errorf("%s: the status is %v %q", what, st.Code(), st.Message())
				}
			}
			stage = ""
			sess := open(t, c, "once upon")
			defer sess.Close()
			stage = "EnsurePrefix"
			_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a"})
			check("call", err)
			stage = "Decode"
			_, err = sess.Decode(t.Context(), transport.DecodeConfig{})
			check("refused stream", err)
			stage = "chunk"
			chunks := collect(t, sess, transport.DecodeConfig{})
			if len(chunks) != 3 {
				t.Fatalf("%d chunks, want 2 and an error", len(chunks))
			}
			check("stream", chunks[2].Error)
			stage = ""
		})
	}
}

func collect(t *testing.T, sess transport.Session, cfg transport.DecodeConfig) []transport.StreamChunk {
	t.Helper()
	ch, err := sess.Decode(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var chunks []transport.StreamChunk
	for c := range ch {
		chunks = append(chunks, c)
	}
	return chunks
}

func TestErrorsWithoutSentinel(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"disk on fire", "disk on fire"},
		{"model_busy: in its text", "model_busy: in its text"},
		{"", ""},
		{"bad \xff byte", "bad \uFFFD byte"},
	} {
		st := status.Convert(toStatus(errors.New(c.text)))
		if st.Code() != codes.Internal || st.Message() != "internal: "+c.want {
			t.Errorf("%q crosses as %v %q", c.text, st.Code(), st.Message())
		}
		err := fromStatus(st.Err())
		if err.Error() != c.want {
			t.Errorf("%q comes back as %q", c.text, err)
		}
		for _, row := range wireErrors {
			if errors.Is(err, row.sentinel) {
				t.Errorf("%q comes back as %v", c.text, row.sentinel)
			}
		}
	}
}

func TestErrorsOfForeignServers(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		is   error
		text string
	}{
		{"nil", nil, nil, ""},
		{"a new token", status.Error(codes.Internal, "new_token: text"), nil, "new_token: text"},
		{"no token", status.Error(codes.Unavailable, "connection refused"), nil, "connection refused"},
		{"gRPC's own cancellation", status.Error(codes.Canceled, "context canceled"), context.Canceled, "context canceled"},
		{"gRPC's own deadline", status.Error(codes.DeadlineExceeded, "x"), context.DeadlineExceeded, "x"},
		{"an old server", status.Error(codes.Unimplemented, "unknown method Snapshot"), transport.ErrUnsupportedFeature, "unknown method Snapshot"},
		{"a token alone", status.Error(codes.Internal, "model_busy"), nil, "model_busy"},
		{"a token and no text", status.Error(codes.Internal, "model_busy: "), transport.ErrModelBusy, ""},
		{"overflow without counts", status.Error(codes.ResourceExhausted, "context_overflow: full"), transport.ErrContextOverflow, "full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := fromStatus(c.err)
			if c.err == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err.Error() != c.text {
				t.Errorf("it reads %q, want %q", err, c.text)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("it is not %v", c.is)
			}
			if _, ok := transport.ContextOverflowDetailFromError(err); ok {
				t.Error("it has counts")
			}
		})
	}
}

func TestOverflowCrosses(t *testing.T) {
	sent := fmt.Errorf("turn 2: %w", transport.NewContextOverflowError("suffix", 100, 50, 128))
	st := status.Convert(toStatus(sent))
	if got := fmt.Sprint(st.Details()); !strings.Contains(got, "context_overflow") || !strings.Contains(got, "contenox.transport") {
		t.Errorf("details %s", got)
	}
	var b chunkBody
	b.set(&transport.StreamChunk{Error: sent})
	for name, err := range map[string]error{"call": fromStatus(st.Err()), "chunk": b.chunk().Error} {
		got, ok := transport.ContextOverflowDetailFromError(err)
		want := transport.ContextOverflowDetail{Stage: "suffix", ResidentTokens: 100, AdditionalTokens: 50, NumCtx: 128}
		if !ok || got != want || !errors.Is(err, transport.ErrContextOverflow) || err.Error() != sent.Error() {
			t.Errorf("%s: %v with %+v, want %v with %+v", name, err, got, sent, want)
		}
		// It crosses a second hop as it is.
		if again := status.Convert(toStatus(err)); again.Message() != st.Message() || len(again.Details()) != 1 {
			t.Errorf("%s: the next hop sends %v", name, again)
		}
	}
}

func FuzzFromStatus(f *testing.F) {
	f.Add(uint32(9), "model_busy: text")
	f.Add(uint32(8), "context_overflow: ")
	f.Add(uint32(13), ": ")
	f.Fuzz(func(t *testing.T, code uint32, message string) {
		if code == 0 {
			return
		}
		err := fromStatus(status.Error(codes.Code(code), message))
		if err == nil {
			t.Fatal("a failure became nil")
		}
		if !strings.HasSuffix(message, err.Error()) {
			t.Fatalf("%q reads %q", message, err)
		}
	})
}
