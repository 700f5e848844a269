package slot_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"modeld/core/slot"
	"modeld/core/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend holds at most one model, as a plugin does, and records what it is
// asked for.
type backend struct {
	transport.Service // not called
	mu                sync.Mutex
	loaded            string
	loads             []transport.LoadModelRequest
	opened            []transport.OpenSessionRequest
	loadErr           error
	openErr           error
	loading           chan struct{} // LoadModel waits for it where not nil
}

type backendSession struct{ transport.Session }

func (backendSession) Close() error { return nil }

func (b *backend) OpenSession(_ context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, req)
	return backendSession{}, b.openErr
}

func (b *backend) Describe(_ context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	return transport.ModelInfo{Reason: req.Path}, nil
}

func (b *backend) Status(context.Context) (transport.DaemonStatus, error) {
	return transport.DaemonStatus{}, nil
}

func (b *backend) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	if b.loading != nil {
		select {
		case <-b.loading:
		case <-ctx.Done():
			return transport.ActiveModel{}, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loadErr != nil {
		return transport.ActiveModel{}, b.loadErr
	}
	b.loaded, b.loads = req.Path, append(b.loads, req)
	return transport.ActiveModel{}, nil
}

func (b *backend) UnloadModel(context.Context, transport.UnloadModelRequest) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loaded == "" {
		return transport.ErrModelNotActive
	}
	b.loaded = ""
	return nil
}

func newSlot(t *testing.T, b *backend) *slot.Slot {
	t.Helper()
	s, err := slot.New(b, slot.Options{
		InstanceID: "host-1-abc",
		Backend:    "llama",
		Models: []slot.Model{
			{Name: "small", Path: "/models/small.gguf", Config: transport.Config{NumCtx: 4096}},
			{Name: "large", Path: "/models/large.gguf", Digest: "sha256:aa"},
			{Name: "ir", Path: "/models/ir", Type: "openvino"},
		},
		Default: "small",
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhichModelARequestMeans(t *testing.T) {
	tests := []struct {
		name string
		req  transport.OpenSessionRequest
		path string
		err  error
		text string // in the error
	}{
		{name: "nothing named is the default", path: "/models/small.gguf"},
		{name: "by name", req: transport.OpenSessionRequest{ModelName: "large"}, path: "/models/large.gguf"},
		{name: "by a configured path", req: transport.OpenSessionRequest{Path: "/models/../models/large.gguf"}, path: "/models/large.gguf"},
		{name: "by name and type", req: transport.OpenSessionRequest{ModelName: "large", Type: "llama"}, path: "/models/large.gguf"},
		{name: "the digest agrees", req: transport.OpenSessionRequest{ModelName: "large", Digest: "AA"}, path: "/models/large.gguf"},
		{name: "the digest differs", req: transport.OpenSessionRequest{ModelName: "large", Digest: "bb"}, err: transport.ErrDigestMismatch, text: "sha256:aa"},
		{name: "unknown name", req: transport.OpenSessionRequest{ModelName: "huge"}, err: transport.ErrModelNotFound, text: "ir, large, small"},
		{name: "path outside", req: transport.OpenSessionRequest{Path: "/etc/passwd"}, err: transport.ErrModelNotFound, text: "allow_paths"},
		{name: "path under another name", req: transport.OpenSessionRequest{ModelName: "small", Path: "/models/large.gguf"}, err: transport.ErrModelNotFound},
		{name: "other backend's type", req: transport.OpenSessionRequest{ModelName: "small", Type: "openvino"}, err: transport.ErrBackendMismatch, text: `backend "llama"`},
		{name: "other backend's model", req: transport.OpenSessionRequest{ModelName: "ir"}, err: transport.ErrBackendMismatch, text: `"ir"`},
		{name: "unknown type", req: transport.OpenSessionRequest{Type: "abacus"}, err: transport.ErrUnsupportedModelType, text: "abacus"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info, err := newSlot(t, &backend{}).Describe(t.Context(), tt.req)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error = %v, want %v", err, tt.err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", err, tt.text)
			}
			if info.Reason != tt.path {
				t.Errorf("described %q, want %q", info.Reason, tt.path)
			}
		})
	}
}

func TestPathsWhereTheyAreAllowed(t *testing.T) {
	s, err := slot.New(&backend{}, slot.Options{Backend: "llama", AllowPaths: true})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := s.Describe(t.Context(), transport.OpenSessionRequest{Path: "/any/model.gguf"}); err != nil || info.Reason != "/any/model.gguf" {
		t.Errorf("an absolute path: %v, %v", info.Reason, err)
	}
	if _, err := s.Describe(t.Context(), transport.OpenSessionRequest{Path: "model.gguf"}); !errors.Is(err, transport.ErrModelNotFound) {
		t.Errorf("a relative path: %v, want ErrModelNotFound", err)
	}
	if _, err := s.Describe(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrModelNotFound) {
		t.Errorf("no default model: %v, want ErrModelNotFound", err)
	}
}

func TestABackendWithoutModels(t *testing.T) {
	b := &backend{}
	s, err := slot.New(b, slot.Options{Backend: "none", InstanceID: "host-1-abc", Modelless: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err != nil || len(b.loads) != 0 {
		t.Errorf("a reload without a model: %v, %d loads", err, len(b.loads))
	}
	if _, err := s.OpenSession(t.Context(), transport.OpenSessionRequest{}); err != nil {
		t.Errorf("an unnamed model: %v", err)
	}
	if _, err := s.OpenSession(t.Context(), transport.OpenSessionRequest{ModelName: "large"}); !errors.Is(err, transport.ErrModelNotFound) {
		t.Errorf("a named one: %v, want ErrModelNotFound", err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, opts := range map[string]slot.Options{
		"two models of one name": {Models: []slot.Model{{Name: "a", Path: "/a"}, {Name: "a", Path: "/b"}}},
		"a relative path":        {Models: []slot.Model{{Name: "a", Path: "a"}}},
		"no path":                {Models: []slot.Model{{Name: "a"}}},
		"unknown default":        {Default: "a"},
	} {
		if _, err := slot.New(&backend{}, opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSessionsHoldTheModel(t *testing.T) {
	b := &backend{}
	s := newSlot(t, b)
	ctx := t.Context()

	sess, err := s.OpenSession(ctx, transport.OpenSessionRequest{Config: transport.Config{NumCtx: 1024, PromptFormat: "chat"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := sess.(transport.SlotGenerationer).SlotGeneration(); got != 1 {
		t.Errorf("the session's generation is %d, want 1", got)
	}
	// A smaller context than the configured one fits and does not shrink the
	// load; what concerns the session, its context among it, goes through.
	if _, err := s.OpenSession(ctx, transport.OpenSessionRequest{Config: transport.Config{NumCtx: 512}}); err != nil {
		t.Fatal(err)
	}
	want := transport.Config{NumCtx: 1024, PromptFormat: "chat"}
	if got := b.opened[0]; !reflect.DeepEqual(got.Config, want) || got.Path != "/models/small.gguf" || got.ModelName != "small" {
		t.Errorf("the backend was asked for %+v", got)
	}
	if got := b.loads[0].Config.NumCtx; got != 4096 {
		t.Errorf("the model was loaded with a context of %d, want its own 4096", got)
	}
	checkStatus(t, s, transport.SlotReady, 1, 2)

	for name, err := range map[string]error{
		"a larger context": second(s.OpenSession(ctx, transport.OpenSessionRequest{Config: transport.Config{NumCtx: 8192}})),
		"another model":    second(s.OpenSession(ctx, transport.OpenSessionRequest{ModelName: "large"})),
		"other threads":    second(s.OpenSession(ctx, transport.OpenSessionRequest{Config: transport.Config{NumThreads: 7}})),
	} {
		if !errors.Is(err, transport.ErrModelSwitchRequired) {
			t.Errorf("%s: %v, want ErrModelSwitchRequired", name, err)
		}
	}
	if _, err := s.LoadModel(ctx, transport.LoadModelRequest{ModelName: "large"}); !errors.Is(err, transport.ErrModelBusy) {
		t.Errorf("a switch under sessions: %v, want ErrModelBusy", err)
	}
	if err := s.UnloadModel(ctx, transport.UnloadModelRequest{}); !errors.Is(err, transport.ErrModelBusy) {
		t.Errorf("an unload under sessions: %v, want ErrModelBusy", err)
	}
	if err := errors.Join(sess.Close(), sess.Close()); err != nil {
		t.Fatal(err)
	}
	checkStatus(t, s, transport.SlotReady, 1, 1)
}

func TestGenerations(t *testing.T) {
	b := &backend{}
	s := newSlot(t, b)
	ctx := t.Context()

	checkStatus(t, s, transport.SlotEmpty, 0, 0)
	if err := s.UnloadModel(ctx, transport.UnloadModelRequest{}); !errors.Is(err, transport.ErrModelNotActive) {
		t.Errorf("unloading nothing: %v, want ErrModelNotActive", err)
	}
	first, err := s.LoadModel(ctx, transport.LoadModelRequest{})
	if err != nil || first.Generation != 1 || first.ModelName != "small" {
		t.Fatalf("first load: %+v, %v", first, err)
	}
	if again, err := s.LoadModel(ctx, transport.LoadModelRequest{}); err != nil || again.Generation != 1 {
		t.Errorf("loading what is loaded: %+v, %v; want generation 1", again, err)
	}
	if _, err := s.LoadModel(ctx, transport.LoadModelRequest{ModelName: "large", ExpectedGeneration: 7}); !errors.Is(err, transport.ErrSlotGenerationStale) {
		t.Errorf("a stale load: %v", err)
	}
	if err := s.UnloadModel(ctx, transport.UnloadModelRequest{ExpectedGeneration: 7}); !errors.Is(err, transport.ErrSlotGenerationStale) {
		t.Errorf("a stale unload: %v", err)
	}
	second, err := s.LoadModel(ctx, transport.LoadModelRequest{ModelName: "large", ExpectedGeneration: 1})
	if err != nil || second.Generation != 2 || b.loaded != "/models/large.gguf" {
		t.Fatalf("the switch: %+v, %v, loaded %s", second, err, b.loaded)
	}
	checkStatus(t, s, transport.SlotIdle, 2, 0)
	if err := s.UnloadModel(ctx, transport.UnloadModelRequest{ExpectedGeneration: 2}); err != nil || b.loaded != "" {
		t.Fatalf("the unload: %v, loaded %q", err, b.loaded)
	}
	checkStatus(t, s, transport.SlotEmpty, 0, 0)
}

func TestAFailedLoadIsToldAndCanBeRetried(t *testing.T) {
	b := &backend{loadErr: transport.ErrModelLoadFailed}
	s := newSlot(t, b)
	if _, err := s.OpenSession(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrModelLoadFailed) {
		t.Fatalf("open: %v, want ErrModelLoadFailed", err)
	}
	st := checkStatus(t, s, transport.SlotFailed, 0, 0)
	if !strings.Contains(st.LastError, "loading small") {
		t.Errorf("LastError = %q", st.LastError)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, transport.ErrModelNotActive) {
		t.Errorf("Ready = %v, want ErrModelNotActive", err)
	}
	b.loadErr = nil
	if _, err := s.OpenSession(t.Context(), transport.OpenSessionRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("Ready after a good load = %v", err)
	}
}

func TestAnOpenThatFailsHoldsNothing(t *testing.T) {
	s := newSlot(t, &backend{openErr: transport.ErrModelBusy})
	if _, err := s.OpenSession(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrModelBusy) {
		t.Fatalf("open: %v", err)
	}
	checkStatus(t, s, transport.SlotIdle, 1, 0)
}

func TestReloadAfterTheBackendRestarted(t *testing.T) {
	b := &backend{}
	s := newSlot(t, b)
	if err := s.Reload(t.Context()); err != nil || b.loaded != "/models/small.gguf" {
		t.Fatalf("the first load takes the default: %v, %q", err, b.loaded)
	}
	if _, err := s.LoadModel(t.Context(), transport.LoadModelRequest{ModelName: "large"}); err != nil {
		t.Fatal(err)
	}
	b.loaded = "" // the backend died and came back
	s.BackendRestarted()
	checkStatus(t, s, transport.SlotEmpty, 0, 0)
	if err := s.Reload(t.Context()); err != nil || b.loaded != "/models/large.gguf" {
		t.Fatalf("after a restart the active one comes back: %v, %q", err, b.loaded)
	}
	checkStatus(t, s, transport.SlotIdle, 4, 0)
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkStatus(t, s, transport.SlotIdle, 4, 0) // nothing to do
}

func TestCallsDuringALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{loading: make(chan struct{})}
		s := newSlot(t, b)
		ctx, cancel := context.WithCancel(t.Context())
		opened := make(chan error, 2)
		for range 2 { // both wait for one load
			go func() { opened <- second(s.OpenSession(ctx, transport.OpenSessionRequest{})) }()
		}
		synctest.Wait()
		if st := checkStatus(t, s, transport.SlotLoading, 0, 0); st.BusyOperation != "loading small" {
			t.Errorf("BusyOperation = %q", st.BusyOperation)
		}
		if _, err := s.OpenSession(ctx, transport.OpenSessionRequest{ModelName: "large"}); !errors.Is(err, transport.ErrModelBusy) {
			t.Errorf("another model during the load: %v, want ErrModelBusy", err)
		}
		waiter, giveUp := context.WithCancel(ctx)
		gaveUp := make(chan error, 1)
		go func() { gaveUp <- second(s.OpenSession(waiter, transport.OpenSessionRequest{})) }()
		synctest.Wait()
		giveUp()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("a waiter that gives up: %v", err)
		}
		close(b.loading)
		for range 2 {
			if err := <-opened; err != nil {
				t.Errorf("open: %v", err)
			}
		}
		checkStatus(t, s, transport.SlotReady, 1, 2)
		cancel()
	})
}

func checkStatus(t *testing.T, s *slot.Slot, state transport.SlotState, generation uint64, sessions int) transport.DaemonStatus {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got uint64
	if st.Active != nil {
		got = st.Active.Generation
	}
	if st.State != state || got != generation || st.Sessions != sessions || st.OwnerInstanceID != "host-1-abc" || st.Backend != "llama" {
		t.Errorf("status = %+v (generation %d), want %s, generation %d, %d sessions", st, got, state, generation, sessions)
	}
	return st
}

func second[T any](_ T, err error) error { return err }
