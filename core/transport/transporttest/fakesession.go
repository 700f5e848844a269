package transporttest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"modeld/core/transport"
)

// fakeSession holds its context as words. Overlapping calls get ErrModelBusy.
type fakeSession struct {
	fake   *Fake
	id     int
	numCtx int

	life   context.Context // ends with Close
	cancel context.CancelFunc
	turn   chan struct{} // holds one element while a call runs

	mu       sync.Mutex
	resident []int32
	prefix   int
	manifest transport.ContextManifest
	prefills int
	computed int
	closed   bool
}

func newFakeSession(f *Fake, id, numCtx int) *fakeSession {
	life, cancel := context.WithCancel(context.Background())
	return &fakeSession{fake: f, id: id, numCtx: numCtx, life: life, cancel: cancel, turn: make(chan struct{}, 1)}
}

// begin takes the session for one call; end gives it back.
func (s *fakeSession) begin(ctx context.Context, method string, arg any) (end func(), err error) {
	if s.life.Err() != nil {
		return nil, transport.ErrSessionClosed
	}
	select {
	case s.turn <- struct{}{}:
	default:
		return nil, fmt.Errorf("%w: the session is in another call", transport.ErrModelBusy)
	}
	end = func() { <-s.turn }
	defer func() {
		if p := recover(); p != nil {
			end()
			panic(p)
		}
	}()
	if err := s.fake.enter(ctx, Call{method, s.id, arg}); err != nil {
		end()
		return nil, err
	}
	if s.life.Err() != nil {
		end()
		return nil, transport.ErrSessionClosed
	}
	return end, nil
}

func (s *fakeSession) EnsurePrefix(ctx context.Context, in transport.PrefixInput) (transport.PrefixStatus, error) {
	end, err := s.begin(ctx, "EnsurePrefix", in)
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	defer end()
	tokens, err := s.admit(in.Text, in.Manifest, in.Images)
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(tokens) > s.numCtx {
		return transport.PrefixStatus{}, transport.NewContextOverflowError("prefix", 0, len(tokens), s.numCtx)
	}
	reused := commonPrefix(s.resident, tokens)
	st := transport.PrefixStatus{
		ReusedTokens:    reused,
		PrefilledTokens: len(tokens) - reused,
		DroppedTokens:   len(s.resident) - reused,
		PrefixTokens:    len(tokens),
		ResidentTokens:  len(tokens),
		AvailableTokens: s.numCtx - len(tokens),
		StableByteHash:  in.Manifest.StableByteHash,
		StableTokenHash: transport.HashTokens(tokens),
		ManifestDigest:  in.Manifest.Digest(),
	}
	s.resident, s.prefix = tokens, len(tokens)
	s.adopt(in.Manifest)
	s.count(st.PrefilledTokens)
	return st, nil
}

func (s *fakeSession) PrefillSuffix(ctx context.Context, in transport.SuffixInput) (transport.SuffixStatus, error) {
	end, err := s.begin(ctx, "PrefillSuffix", in)
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	defer end()
	tokens, err := s.admit(in.Text, in.Manifest, in.Images)
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.resident)+len(tokens) > s.numCtx {
		return transport.SuffixStatus{}, transport.NewContextOverflowError("suffix", len(s.resident), len(tokens), s.numCtx)
	}
	s.resident = append(s.resident, tokens...)
	s.adopt(in.Manifest)
	s.count(len(tokens))
	return transport.SuffixStatus{
		SuffixTokens:    len(tokens),
		PrefixTokens:    s.prefix,
		ResidentTokens:  len(s.resident),
		AvailableTokens: s.numCtx - len(s.resident),
		ManifestDigest:  in.Manifest.Digest(),
	}, nil
}

func (s *fakeSession) admit(text string, m transport.ContextManifest, images []transport.ImagePart) ([]int32, error) {
	if len(images) > 0 {
		return nil, fmt.Errorf("%w: the fake sees no images", transport.ErrUnsupportedFeature)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.manifest.CheckIdentity(m); err != nil {
		return nil, err
	}
	return s.fake.tokenize(text), nil
}

func (s *fakeSession) adopt(m transport.ContextManifest) {
	if len(s.resident) == 0 {
		s.manifest = transport.ContextManifest{}
	}
	if !m.IsZero() {
		s.manifest = m
	}
}

func (s *fakeSession) count(tokens int) {
	if tokens > 0 {
		s.prefills++
		s.computed += tokens
	}
}

func (s *fakeSession) ExplainContext() transport.ContextReport {
	_ = s.fake.enter(context.Background(), Call{Method: "ExplainContext", Session: s.id})
	s.mu.Lock()
	defer s.mu.Unlock()
	return transport.ContextReport{
		ResidentTokens:        len(s.resident),
		PrefixTokens:          s.prefix,
		NumCtx:                s.numCtx,
		AvailableTokens:       s.numCtx - len(s.resident),
		StableByteHash:        s.manifest.StableByteHash,
		StableTokenHash:       transport.HashTokens(s.resident[:s.prefix]),
		ManifestDigest:        s.manifest.Digest(),
		Manifest:              s.manifest,
		Closed:                s.closed,
		PhysicalPrefillCalls:  s.prefills,
		PhysicalPrefillTokens: s.computed,
	}
}

func (s *fakeSession) Snapshot(ctx context.Context) (transport.SessionSnapshot, error) {
	end, err := s.begin(ctx, "Snapshot", nil)
	if err != nil {
		return transport.SessionSnapshot{}, err
	}
	defer end()
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]int, len(s.resident))
	for i, t := range s.resident {
		ids[i] = int(t)
	}
	return transport.SessionSnapshot{
		ResidentTokens:   len(s.resident),
		PrefixTokens:     s.prefix,
		NumCtx:           s.numCtx,
		ResidentTokenIDs: ids,
		Manifest:         s.manifest,
	}, nil
}

func (s *fakeSession) Restore(ctx context.Context, snap transport.SessionSnapshot) error {
	end, err := s.begin(ctx, "Restore", snap)
	if err != nil {
		return err
	}
	defer end()
	tokens, err := s.fake.known(snap)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(tokens) > s.numCtx {
		return transport.NewContextOverflowError("restore", 0, len(tokens), s.numCtx)
	}
	s.count(len(tokens) - commonPrefix(s.resident, tokens))
	s.resident, s.prefix, s.manifest = tokens, snap.PrefixTokens, snap.Manifest
	return nil
}

// known returns a snapshot's tokens if they are of this fake.
func (f *Fake) known(snap transport.SessionSnapshot) ([]int32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(snap.ResidentTokenIDs)
	if snap.ResidentTokens != n || snap.PrefixTokens < 0 || snap.PrefixTokens > n {
		return nil, fmt.Errorf("%w: the snapshot's counts don't agree with its %d tokens", transport.ErrManifestMismatch, n)
	}
	tokens := make([]int32, n)
	for i, id := range snap.ResidentTokenIDs {
		if id < 0 || id >= len(f.vocab.words) {
			return nil, fmt.Errorf("%w: token %d of the snapshot is unknown", transport.ErrManifestMismatch, id)
		}
		tokens[i] = int32(id)
	}
	return tokens, nil
}

// Close ends the session; a running Decode ends with ErrSessionClosed.
func (s *fakeSession) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	if first {
		_ = s.fake.enter(context.Background(), Call{Method: "Close", Session: s.id})
		s.fake.mu.Lock()
		s.fake.open--
		s.fake.mu.Unlock()
	}
	return nil
}

// wordsOf returns the texts of tokens.
func (f *Fake) wordsOf(tokens []int32) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	words := make([]string, len(tokens))
	for i, t := range tokens {
		words[i] = f.vocab.words[t]
	}
	return words
}

func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func (s *fakeSession) tokens() []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.resident)
}
