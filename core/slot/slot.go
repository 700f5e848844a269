// Package slot is the active-model slot of one daemon: which model is loaded,
// since when (its generation), and who may use or change it. It stands between
// the wire and a backend, and gives the backend only requests that name a
// model of this node.
package slot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"modeld/core/transport"
)

// Backend is what the slot needs of a backend. A backend without a loaded model
// loads the one that OpenSession or Embed names.
type Backend interface {
	transport.Service
	transport.ModelController
}

// Options configure a Slot.
type Options struct {
	// InstanceID and Backend are reported in statuses. Backend is also the
	// only model type that is taken.
	InstanceID string
	Backend    string
	// Models are the node's models; Default names the one for requests that
	// name none. Empty: such requests get ErrModelNotFound.
	Models  []Model
	Default string
	// Modelless is for a backend that computes nothing: a request that names
	// no model gets a nameless one where there is no default.
	Modelless bool
	// AllowPaths lets clients name any path of the machine.
	AllowPaths bool
	// Logger defaults to discarding.
	Logger *slog.Logger
}

// Slot is a transport.Service and transport.ModelController with at most one
// active model. It is safe for concurrent use.
type Slot struct {
	backend Backend
	opts    Options
	models  catalog
	log     *slog.Logger

	mu         sync.Mutex
	state      transport.SlotState
	active     *transport.ActiveModel
	generation uint64
	lost       transport.ActiveModel // what a restarted backend had; zero: nothing
	change     *change               // the load or unload under way
	sessions   map[*session]struct{}
	lastErr    string
}

// change is a load or unload under way; done is closed at its end.
type change struct {
	what  string
	model transport.ActiveModel
	done  chan struct{}
}

var (
	_ transport.Service         = (*Slot)(nil)
	_ transport.ModelController = (*Slot)(nil)
	_ transport.ReadyReporter   = (*Slot)(nil)
)

// New returns an empty slot over backend.
func New(backend Backend, opts Options) (*Slot, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	models, err := newCatalog(opts)
	if err != nil {
		return nil, err
	}
	return &Slot{
		backend:  backend,
		opts:     opts,
		models:   models,
		log:      opts.Logger.With("instance", opts.InstanceID),
		state:    transport.SlotEmpty,
		sessions: make(map[*session]struct{}),
	}, nil
}

// OpenSession opens a session on the active model, loading it first where the
// slot is empty.
func (s *Slot) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	want, err := s.models.resolveForSession(Model{req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters})
	if err != nil {
		return nil, err
	}
	sess := &session{slot: s}
	active, err := s.hold(ctx, sess, want)
	if err != nil {
		return nil, err
	}
	req.Fence = transport.Fence{}
	req.ModelName, req.Type, req.Digest, req.Path = active.ModelName, active.Type, active.Digest, active.Path
	req.Config, req.Adapters = req.Config.ForSession(active.Config), active.Adapters
	sess.generation = active.Generation
	sess.Session, err = s.backend.OpenSession(ctx, req)
	if err != nil {
		s.letGo(sess)
		return nil, err
	}
	return sess, nil
}

// Describe describes a model of this node.
func (s *Slot) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	want, err := s.models.resolve(Model{req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters})
	if err != nil {
		return transport.ModelInfo{}, err
	}
	req.Fence = transport.Fence{}
	req.ModelName, req.Type, req.Digest, req.Path = want.ModelName, want.Type, want.Digest, want.Path
	req.Config, req.Adapters = want.Config, want.Adapters
	return s.backend.Describe(ctx, req)
}

// Embed embeds a text with the active model, loading it first where the slot is
// empty.
func (s *Slot) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	want, err := s.models.resolveForSession(Model{req.ModelName, req.Type, req.Digest, req.Path, req.Config, nil})
	if err != nil {
		return transport.EmbedResult{}, err
	}
	use := &session{slot: s}
	active, err := s.hold(ctx, use, want)
	if err != nil {
		return transport.EmbedResult{}, err
	}
	defer s.letGo(use)
	req.Fence = transport.Fence{}
	req.ModelName, req.Type, req.Digest, req.Path = active.ModelName, active.Type, active.Digest, active.Path
	req.Config = req.Config.ForSession(active.Config)
	return s.backend.Embed(ctx, req)
}

// Ready reports the backend's readiness, and why the slot can't serve where its
// last load failed.
func (s *Slot) Ready(ctx context.Context) error {
	s.mu.Lock()
	state, lastErr := s.state, s.lastErr
	s.mu.Unlock()
	if state == transport.SlotFailed {
		return fmt.Errorf("%w: %s", transport.ErrModelNotActive, lastErr)
	}
	if r, ok := s.backend.(transport.ReadyReporter); ok {
		return r.Ready(ctx)
	}
	return nil
}

// Status reports the slot. It never waits.
func (s *Slot) Status(context.Context) (transport.DaemonStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := transport.DaemonStatus{
		OwnerInstanceID: s.opts.InstanceID,
		Backend:         s.opts.Backend,
		State:           s.state,
		LastError:       s.lastErr,
		Sessions:        len(s.sessions),
	}
	if s.active != nil {
		active := *s.active
		st.Active = &active
		if s.state == transport.SlotReady && len(s.sessions) == 0 {
			st.State = transport.SlotIdle
		}
	}
	if s.change != nil {
		st.BusyOperation = s.change.what
	}
	return st, nil
}

// LoadModel makes a model the active one. Where another is active it is
// unloaded first, which needs its sessions to be closed.
func (s *Slot) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	want, err := s.models.resolve(Model{req.ModelName, req.Type, req.Digest, req.Path, req.Config, req.Adapters})
	if err != nil {
		return transport.ActiveModel{}, err
	}
	for {
		s.mu.Lock()
		if s.change != nil {
			if err := s.waitLocked(ctx); err != nil {
				return transport.ActiveModel{}, err
			}
			continue
		}
		if err := s.checkGenerationLocked(req.ExpectedGeneration); err != nil {
			s.mu.Unlock()
			return transport.ActiveModel{}, err
		}
		if s.active != nil && fits(*s.active, want) == nil {
			active := *s.active
			s.mu.Unlock()
			return active, nil
		}
		if n := len(s.sessions); s.active != nil && n > 0 {
			defer s.mu.Unlock()
			return transport.ActiveModel{}, fmt.Errorf("%w: %d sessions are open on %s; close them first",
				transport.ErrModelBusy, n, s.active.ModelName)
		}
		return s.loadLocked(ctx, want)
	}
}

// UnloadModel empties the slot.
func (s *Slot) UnloadModel(ctx context.Context, req transport.UnloadModelRequest) error {
	for {
		s.mu.Lock()
		if s.change != nil {
			if err := s.waitLocked(ctx); err != nil {
				return err
			}
			continue
		}
		if err := s.checkGenerationLocked(req.ExpectedGeneration); err != nil {
			s.mu.Unlock()
			return err
		}
		if s.active == nil {
			s.mu.Unlock()
			return fmt.Errorf("%w: the slot is empty", transport.ErrModelNotActive)
		}
		if n := len(s.sessions); n > 0 {
			defer s.mu.Unlock()
			return fmt.Errorf("%w: %d sessions are open on %s; close them first",
				transport.ErrModelBusy, n, s.active.ModelName)
		}
		return s.unloadLocked(ctx)
	}
}

// BackendRestarted tells the slot that the backend holds no model any more and
// that sessions on the old one are lost. It does not wait and does not call the
// backend. A request that comes before Reload loads the model too.
func (s *Slot) BackendRestarted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil {
		return
	}
	s.lost = *s.active
	s.active = nil
	s.generation++
	if s.change == nil {
		s.state = transport.SlotEmpty
	}
}

// Reload loads the model that a restarted backend lost, or else the default
// one, where none is active.
func (s *Slot) Reload(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.change != nil {
			if err := s.waitLocked(ctx); err != nil {
				return err
			}
			continue
		}
		want := s.lost
		if want.ModelName == "" {
			want = s.models.standard
		}
		if s.active != nil || want.Path == "" { // there is nothing to load
			s.mu.Unlock()
			return nil
		}
		_, err := s.loadLocked(ctx, want)
		return err
	}
}

// hold takes the active model for sess, loading want first where the slot is
// empty. A held model is not unloaded or switched.
func (s *Slot) hold(ctx context.Context, sess *session, want transport.ActiveModel) (transport.ActiveModel, error) {
	for {
		s.mu.Lock()
		switch {
		case s.change != nil:
			if fits(s.change.model, want) != nil {
				defer s.mu.Unlock()
				return transport.ActiveModel{}, fmt.Errorf("%w: %s is under way; try again when it has ended",
					transport.ErrModelBusy, s.change.what)
			}
			if err := s.waitLocked(ctx); err != nil {
				return transport.ActiveModel{}, err
			}
		case s.active == nil:
			if _, err := s.loadLocked(ctx, want); err != nil {
				return transport.ActiveModel{}, err
			}
		default:
			defer s.mu.Unlock()
			if err := fits(*s.active, want); err != nil {
				return transport.ActiveModel{}, err
			}
			s.sessions[sess] = struct{}{}
			return *s.active, nil
		}
	}
}

func (s *Slot) letGo(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess)
}

// waitLocked unlocks and waits for the change under way.
func (s *Slot) waitLocked(ctx context.Context) error {
	done := s.change.done
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Slot) checkGenerationLocked(expected uint64) error {
	if expected != 0 && expected != s.generation {
		return fmt.Errorf("%w: expected %d, the slot is at %d; ask for its status", transport.ErrSlotGenerationStale, expected, s.generation)
	}
	return nil
}

// loadLocked unlocks, replaces what is active by want, and tells the outcome.
func (s *Slot) loadLocked(ctx context.Context, want transport.ActiveModel) (transport.ActiveModel, error) {
	state := transport.SlotLoading
	if s.active != nil {
		state = transport.SlotSwitching
	}
	s.beginLocked(state, "loading "+want.ModelName, want)
	s.mu.Unlock()

	err := s.backend.UnloadModel(ctx, transport.UnloadModelRequest{})
	if errors.Is(err, transport.ErrModelNotActive) {
		err = nil
	}
	if err == nil {
		_, err = s.backend.LoadModel(ctx, transport.LoadModelRequest{
			ModelName: want.ModelName, Type: want.Type, Digest: want.Digest, Path: want.Path,
			Config: want.Config, Adapters: want.Adapters,
		})
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	if err != nil {
		s.endLocked(transport.SlotFailed, nil, err)
		return transport.ActiveModel{}, err
	}
	want.Generation = s.generation
	s.endLocked(transport.SlotReady, &want, nil)
	return want, nil
}

// unloadLocked unlocks and empties the slot.
func (s *Slot) unloadLocked(ctx context.Context) error {
	s.beginLocked(transport.SlotUnloading, "unloading "+s.active.ModelName, transport.ActiveModel{})
	s.mu.Unlock()

	err := s.backend.UnloadModel(ctx, transport.UnloadModelRequest{})
	if errors.Is(err, transport.ErrModelNotActive) {
		err = nil
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.endLocked(transport.SlotReady, s.active, err)
		return err
	}
	s.generation++
	s.endLocked(transport.SlotEmpty, nil, nil)
	return nil
}

func (s *Slot) beginLocked(state transport.SlotState, what string, m transport.ActiveModel) {
	s.state = state
	s.change = &change{what: what, model: m, done: make(chan struct{})}
}

func (s *Slot) endLocked(state transport.SlotState, active *transport.ActiveModel, err error) {
	what := s.change.what
	close(s.change.done)
	s.change, s.state, s.active, s.lastErr = nil, state, active, ""
	if active != nil || state == transport.SlotEmpty {
		s.lost = transport.ActiveModel{}
	}
	if err != nil {
		s.lastErr = what + ": " + err.Error()
		s.log.Warn("slot change failed", "what", what, "err", err)
		return
	}
	s.log.Info("slot changed", "what", what, "state", state, "generation", s.generation)
}
