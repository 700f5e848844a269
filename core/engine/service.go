package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"modeld/core/transport"
)

// Service runs the models of a Backend, one at a time. It is the plugin's side
// of a slot and keeps it plain: a session or an embedding loads the model that
// it names where none is loaded, and changing it is the caller's decision, by
// UnloadModel and LoadModel.
type Service struct {
	backend Backend
	opts    Options
	stats   Stats
	snaps   *snapshotStore

	// gate is held while a model is loaded or unloaded.
	gate chan struct{}

	mu         sync.Mutex
	model      *model
	generation uint64
	state      transport.SlotState
	busy       string
	lastErr    string
	closed     bool
}

// model is a loaded model and what runs on it.
type model struct {
	spec   ModelSpec
	runner Runner
	info   Info
	sched  *scheduler
	active transport.ActiveModel
	// template is the model's chat template, parsed when it is first needed.
	template func() (*chatTemplate, error)

	uses int                   // open sessions and embeddings; guarded by Service.mu
	open map[*session]struct{} // guarded by Service.mu
}

var (
	_ transport.Service         = (*Service)(nil)
	_ transport.ModelController = (*Service)(nil)
	_ transport.ReadyReporter   = (*Service)(nil)
)

// New returns a Service without a loaded model. The caller closes it.
func New(backend Backend, opts Options) *Service {
	opts = opts.withDefaults()
	return &Service{
		backend: backend, opts: opts,
		snaps: newSnapshotStore(opts.Snapshots, opts.SnapshotBytes),
		gate:  make(chan struct{}, 1),
		state: transport.SlotEmpty,
	}
}

// Stats returns the counters of everything that the Service has run.
func (s *Service) Stats() *Stats { return &s.stats }

// OpenSession opens a session on the model that req names, loading it where
// none is loaded.
func (s *Service) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	want, err := s.spec(req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters)
	if err != nil {
		return nil, err
	}
	if req.Config.NumCtx < 0 {
		return nil, fmt.Errorf("open session: NumCtx is %d; it must be positive, or 0 for the model's", req.Config.NumCtx)
	}
	m, err := s.use(ctx, want, true)
	if err != nil {
		return nil, err
	}
	c := &session{
		model: m, sched: m.sched, config: req.Config,
		numCtx:     min(m.info.NumCtx, m.info.KVTokens),
		snapshots:  s.snaps,
		closedDone: make(chan struct{}),
	}
	if n := req.Config.NumCtx; n > 0 {
		c.numCtx = min(c.numCtx, n)
	}
	c.prompt = prompt{model: m, disableBOS: req.Config.DisableBOS}
	c.release = func() { s.unuse(m, c) }
	s.mu.Lock()
	m.open[c] = struct{}{}
	closed := s.closed
	s.mu.Unlock()
	if closed {
		_ = c.Close()
		return nil, errServiceClosed
	}
	return c, nil
}

// Describe describes a model: the loaded one from what is loaded, others by the
// Backend.
func (s *Service) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	want, err := s.spec(req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters)
	if err != nil {
		return transport.ModelInfo{}, err
	}
	s.mu.Lock()
	if s.model != nil && want.Path == "" {
		want = s.model.spec
	}
	s.mu.Unlock()
	if want.Path == "" {
		return transport.ModelInfo{}, errNoModel
	}
	return s.backend.Describe(ctx, want)
}

// LoadModel loads a model. Where another one is loaded: ErrModelSwitchRequired.
func (s *Service) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	want, err := s.spec(req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters)
	if err != nil {
		return transport.ActiveModel{}, err
	}
	if err := s.lock(ctx); err != nil {
		return transport.ActiveModel{}, err
	}
	defer s.unlock()
	if err := s.checkGeneration(req.ExpectedGeneration); err != nil {
		return transport.ActiveModel{}, err
	}
	m, err := s.loaded(ctx, want)
	if err != nil {
		return transport.ActiveModel{}, err
	}
	return m.active, nil
}

// UnloadModel unloads the model. With open sessions: ErrModelBusy.
func (s *Service) UnloadModel(ctx context.Context, req transport.UnloadModelRequest) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.checkGeneration(req.ExpectedGeneration); err != nil {
		return err
	}
	s.mu.Lock()
	m := s.model
	switch {
	case m == nil:
		s.mu.Unlock()
		return fmt.Errorf("%w: no model is loaded", transport.ErrModelNotActive)
	case m.uses > 0:
		defer s.mu.Unlock()
		return fmt.Errorf("%w: %d sessions or embeddings use %s; close them first", transport.ErrModelBusy, m.uses, m.active.ModelName)
	}
	s.model, s.state, s.busy = nil, transport.SlotUnloading, "unloading "+m.active.ModelName
	s.mu.Unlock()
	err := m.sched.close()
	s.snaps.forget(m)
	s.settle(transport.SlotEmpty, err)
	if err != nil {
		return fmt.Errorf("engine: unload %s: %w", m.active.ModelName, err)
	}
	return nil
}

// Status reports the loaded model without waiting.
func (s *Service) Status(context.Context) (transport.DaemonStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := transport.DaemonStatus{Backend: s.backend.Type(), State: s.state, BusyOperation: s.busy, LastError: s.lastErr}
	if m := s.model; m != nil {
		active := m.active
		st.Active, st.Sessions = &active, len(m.open)
		switch err := m.sched.fault(); {
		case err != nil:
			st.State, st.LastError = transport.SlotFailed, err.Error()
		case m.uses == 0:
			st.State = transport.SlotIdle
		}
	}
	return st, nil
}

// Ready returns nil while the Service can take work.
func (s *Service) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errServiceClosed
	}
	if s.model != nil {
		return s.model.sched.fault()
	}
	return nil
}

// Close ends all sessions, unloads the model and waits for both.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.gate <- struct{}{} // a load under way ends first
	defer s.unlock()
	s.mu.Lock()
	m := s.model
	s.model, s.state = nil, transport.SlotShuttingDown
	var open []*session
	if m != nil {
		for c := range m.open {
			open = append(open, c)
		}
	}
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	for _, c := range open {
		_ = c.Close()
	}
	return m.sched.close()
}

var (
	errServiceClosed = fmt.Errorf("%w: the backend is shutting down", transport.ErrModelNotActive)
	errNoModel       = fmt.Errorf("%w: the request names no model and none is loaded", transport.ErrModelNotFound)
)

// use takes the wanted model for a session or an embedding, loading it where
// none is loaded. The caller gives it back with unuse.
func (s *Service) use(ctx context.Context, want ModelSpec, session bool) (*model, error) {
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.unlock()
	m, err := s.loaded(ctx, want)
	if err != nil {
		return nil, err
	}
	if err := m.sched.fault(); err != nil {
		return nil, fmt.Errorf("%w: unload the model and load it again", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if session && len(m.open) >= s.opts.MaxSessions {
		return nil, fmt.Errorf("%w: %d sessions are open, the most that max_sessions allows; close one", transport.ErrModelBusy, len(m.open))
	}
	m.uses++
	return m, nil
}

func (s *Service) unuse(m *model, c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.uses--
	delete(m.open, c)
}

// lock takes the gate.
func (s *Service) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.gate
		return errServiceClosed
	}
	return nil
}

func (s *Service) unlock() { <-s.gate }

// loaded returns the loaded model if it is the wanted one, or loads it if there
// is none. The caller holds the gate.
func (s *Service) loaded(ctx context.Context, want ModelSpec) (*model, error) {
	s.mu.Lock()
	m := s.model
	s.mu.Unlock()
	if m != nil {
		return m, m.fits(want)
	}
	if want.Path == "" {
		return nil, errNoModel
	}
	s.mu.Lock()
	s.state, s.busy = transport.SlotLoading, "loading "+want.Name
	s.mu.Unlock()
	runner, err := s.backend.Load(ctx, want)
	if err == nil {
		err = checkInfo(runner.Info())
		if err != nil {
			err = errors.Join(err, runner.Close())
		}
	}
	if err != nil {
		s.settle(transport.SlotFailed, err)
		return nil, err
	}
	s.generation++
	m = s.newModel(want, runner)
	s.mu.Lock()
	s.model = m
	s.mu.Unlock()
	s.settle(transport.SlotReady, nil)
	s.opts.Logger.Info("model loaded", "model", want.Name, "generation", s.generation,
		"context", m.info.NumCtx, "kv_tokens", m.info.KVTokens, "sequences", m.info.MaxSeqs, "batch", m.info.MaxBatch)
	return m, nil
}

func (s *Service) newModel(want ModelSpec, runner Runner) *model {
	info := runner.Info()
	m := &model{
		spec: want, runner: runner, info: info,
		sched: newScheduler(runner, s.opts, &s.stats),
		open:  make(map[*session]struct{}),
		active: transport.ActiveModel{
			ModelName: want.Name, Type: s.backend.Type(), Digest: want.Digest, Path: want.Path,
			Config: want.Config, Adapters: want.Adapters, Generation: s.generation,
		},
	}
	m.template = sync.OnceValues(func() (*chatTemplate, error) {
		if info.ChatTemplate == "" {
			return nil, errNoTemplate
		}
		t, err := parseChatTemplate(info.ChatTemplate, info.BOSText, info.EOSText, s.opts.Now)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", transport.ErrUnsupportedFeature, err)
		}
		return t, nil
	})
	if m.active.Digest == "" {
		m.active.Digest = info.Digest
	}
	return m
}

func (s *Service) settle(state transport.SlotState, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.busy, s.lastErr = state, "", ""
	if err != nil {
		s.lastErr = err.Error()
		s.opts.Logger.Warn("model change failed", "err", err)
	}
}

func (s *Service) checkGeneration(expected uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if expected != 0 && expected != s.generation {
		return fmt.Errorf("%w: expected %d, it is %d; ask for the status", transport.ErrSlotGenerationStale, expected, s.generation)
	}
	return nil
}

// checkInfo refuses a Runner whose numbers can't be worked with.
func checkInfo(info Info) error {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"VocabSize", info.VocabSize}, {"NumCtx", info.NumCtx}, {"KVTokens", info.KVTokens},
		{"MaxSeqs", info.MaxSeqs}, {"MaxBatch", info.MaxBatch},
	} {
		if n.value <= 0 {
			return fmt.Errorf("%w: the runtime reports a %s of %d", transport.ErrModelLoadFailed, n.name, n.value)
		}
	}
	return nil
}
