// Package echo is a deterministic transport.Service without a model. Its
// tokens are the characters of the text, its KV cache is the list of them, and
// what it generates is what it was told or what it was given. It serves tests,
// also of faults, and measures the wire: at full speed it does nothing per
// token but hand it over.
package echo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"modeld/core/transport"
)

// DefaultMaxCtx is a session's context in tokens where Settings name none.
const DefaultMaxCtx = 1 << 16

// Settings script the service. The zero value echoes the prompt at full speed.
type Settings struct {
	// Text is what every generation says; "" repeats the suffix, or the
	// prefix where there is no suffix.
	Text string `json:"text"`
	// Loop says it again and again, until MaxTokens or a full context.
	Loop bool `json:"loop"`
	// TokensPerSecond is the rate of generation; 0 is as fast as possible.
	TokensPerSecond float64 `json:"tokens_per_second"`
	// MaxCtx is a session's context in tokens; 0 is DefaultMaxCtx.
	MaxCtx int `json:"max_ctx"`
	// FailOpen makes OpenSession give ErrModelLoadFailed.
	FailOpen bool `json:"fail_open"`
	// After this many tokens, where not 0, every generation fails with
	// ErrSessionFatal, crashes the process, or hangs until it is cancelled.
	FailAfterTokens  int `json:"fail_after_tokens"`
	CrashAfterTokens int `json:"crash_after_tokens"`
	HangAfterTokens  int `json:"hang_after_tokens"`
}

// Validate returns an error that names the first setting out of its range.
func (s Settings) Validate() error {
	if s.TokensPerSecond < 0 || math.IsNaN(s.TokensPerSecond) || math.IsInf(s.TokensPerSecond, 0) {
		return fmt.Errorf("tokens_per_second is %v: it must be 0 (as fast as possible) or more", s.TokensPerSecond)
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"max_ctx", s.MaxCtx}, {"fail_after_tokens", s.FailAfterTokens},
		{"crash_after_tokens", s.CrashAfterTokens}, {"hang_after_tokens", s.HangAfterTokens},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s is %d: it must be 0 or more", n.name, n.value)
		}
	}
	_, err := tokenize(s.Text)
	return err
}

// Service is the echoing transport.Service and transport.ModelController.
type Service struct {
	settings Settings
	script   []int32
	crash    func()

	mu         sync.Mutex
	active     *transport.ActiveModel
	generation uint64
	sessions   map[*session]struct{}
	closed     bool
}

var (
	_ transport.Service         = (*Service)(nil)
	_ transport.ModelController = (*Service)(nil)
	_ transport.ReadyReporter   = (*Service)(nil)
)

// New makes a Service; Close ends it.
func New(s Settings) (*Service, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	if s.MaxCtx == 0 {
		s.MaxCtx = DefaultMaxCtx
	}
	script, _ := tokenize(s.Text)
	return &Service{settings: s, script: script, crash: crash, sessions: map[*session]struct{}{}}, nil
}

// crash ends the process as a bug would: nothing recovers a panic on a
// goroutine of its own.
func crash() {
	go panic("crash_after_tokens is reached")
	select {}
}

// Ready returns nil until Close.
func (s *Service) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return nil
}

var errClosed = errors.New("echo: the service is closed")

// OpenSession opens a session with an empty context, whatever the model.
func (s *Service) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.settings.FailOpen {
		return nil, fmt.Errorf("%w: fail_open is set", transport.ErrModelLoadFailed)
	}
	numCtx := s.settings.MaxCtx
	if req.Config.NumCtx > 0 {
		numCtx = min(numCtx, req.Config.NumCtx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if err := s.isActive(req.ModelName, req.Path); err != nil {
		return nil, err
	}
	n := newSession(s, numCtx)
	s.sessions[n] = struct{}{}
	return n, nil
}

// isActive returns an error where another model than the named one is loaded.
func (s *Service) isActive(name, path string) error {
	if s.active == nil || (name == "" || name == s.active.ModelName) && (path == "" || path == s.active.Path) {
		return nil
	}
	return fmt.Errorf("%w: %q (%s) is loaded", transport.ErrModelSwitchRequired, s.active.ModelName, s.active.Path)
}

// Describe describes the service, whatever the model.
func (s *Service) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	effective := s.settings.MaxCtx
	if req.Config.NumCtx > 0 {
		effective = min(effective, req.Config.NumCtx)
	}
	return transport.ModelInfo{
		ModelMaxContext:  s.settings.MaxCtx,
		EffectiveContext: effective,
		KVBytesPerToken:  4,
		DeviceKind:       "cpu",
		RuntimeName:      "echo",
	}, ctx.Err()
}

// Embed returns a vector of length 1 that depends on the text alone: how often
// each character occurs in it, by the character's value modulo 16.
func (s *Service) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	tokens, err := tokenize(req.Text)
	if err != nil {
		return transport.EmbedResult{}, err
	}
	vector := make([]float32, 16)
	vector[0] = 1
	for _, t := range tokens {
		vector[t%16]++
	}
	var sum float64
	for _, v := range vector {
		sum += float64(v) * float64(v)
	}
	for i := range vector {
		vector[i] /= float32(math.Sqrt(sum))
	}
	return transport.EmbedResult{Vector: vector}, ctx.Err()
}

// Close ends all sessions and what runs in them.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	open := make([]*session, 0, len(s.sessions))
	for n := range s.sessions {
		open = append(open, n)
	}
	s.mu.Unlock()
	for _, n := range open {
		_ = n.Close()
	}
	return nil
}

// Status reports the remembered model.
func (s *Service) Status(context.Context) (transport.DaemonStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := transport.DaemonStatus{Backend: "none", State: transport.SlotEmpty, Sessions: len(s.sessions)}
	if s.active != nil {
		active := *s.active
		active.Adapters = slices.Clone(active.Adapters)
		st.Active, st.State = &active, transport.SlotIdle
		if len(s.sessions) > 0 {
			st.State = transport.SlotReady
		}
	}
	return st, nil
}

// LoadModel remembers any model as the active one.
func (s *Service) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	if err := ctx.Err(); err != nil {
		return transport.ActiveModel{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.expect(req.ExpectedGeneration); err != nil {
		return transport.ActiveModel{}, err
	}
	if len(s.sessions) > 0 && s.isActive(req.ModelName, req.Path) != nil {
		return transport.ActiveModel{}, s.inUse()
	}
	s.generation++
	s.active = &transport.ActiveModel{
		ModelName: req.ModelName, Type: req.Type, Digest: req.Digest, Path: req.Path,
		Config: req.Config, Adapters: slices.Clone(req.Adapters), Generation: s.generation,
	}
	return *s.active, nil
}

// UnloadModel forgets it.
func (s *Service) UnloadModel(_ context.Context, req transport.UnloadModelRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.expect(req.ExpectedGeneration); err != nil {
		return err
	}
	if s.active == nil {
		return fmt.Errorf("%w: there is nothing to unload", transport.ErrModelNotActive)
	}
	if len(s.sessions) > 0 {
		return s.inUse()
	}
	s.active = nil
	s.generation++
	return nil
}

func (s *Service) expect(generation uint64) error {
	if generation != 0 && generation != s.generation {
		return fmt.Errorf("%w: it is %d, the request expects %d", transport.ErrSlotGenerationStale, s.generation, generation)
	}
	return nil
}

func (s *Service) inUse() error {
	return fmt.Errorf("%w: %d sessions are open", transport.ErrModelBusy, len(s.sessions))
}
