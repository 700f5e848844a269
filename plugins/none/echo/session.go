package echo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"

	"modeld/core/transport"
)

// session holds its context as characters.
type session struct {
	service *Service
	numCtx  int

	life context.Context // ends with Close
	end  context.CancelFunc
	turn chan struct{} // holds one element while a call runs

	mu       sync.Mutex
	resident []int32
	prefix   int
	source   int // where the part that a generation repeats begins
	said     int // how many tokens of the generation are said since the last prefill
	manifest transport.ContextManifest
	report   transport.ContextReport // the counters alone
}

func newSession(s *Service, numCtx int) *session {
	life, end := context.WithCancel(context.Background())
	return &session{service: s, numCtx: numCtx, life: life, end: end, turn: make(chan struct{}, 1)}
}

// begin takes the session for one call; done gives it back.
func (s *session) begin(ctx context.Context) (done func(), err error) {
	if s.life.Err() != nil {
		return nil, transport.ErrSessionClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	default:
		return nil, fmt.Errorf("%w: the session is in another call", transport.ErrModelBusy)
	}
}

func (s *session) EnsurePrefix(ctx context.Context, in transport.PrefixInput) (transport.PrefixStatus, error) {
	done, err := s.begin(ctx)
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens, err := s.admit(in.Text, in.Manifest, in.Images)
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	if len(tokens) > s.numCtx {
		return transport.PrefixStatus{}, transport.NewContextOverflowError("prefix", 0, len(tokens), s.numCtx)
	}
	reused := common(s.resident, tokens)
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
	s.resident = append(s.resident[:reused], tokens[reused:]...)
	s.prefix, s.source, s.said = len(tokens), 0, 0
	s.adopt(in.Manifest)
	s.count(st.PrefilledTokens)
	return st, nil
}

func (s *session) PrefillSuffix(ctx context.Context, in transport.SuffixInput) (transport.SuffixStatus, error) {
	done, err := s.begin(ctx)
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens, err := s.admit(in.Text, in.Manifest, in.Images)
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	if len(s.resident)+len(tokens) > s.numCtx {
		return transport.SuffixStatus{}, transport.NewContextOverflowError("suffix", len(s.resident), len(tokens), s.numCtx)
	}
	if len(tokens) > 0 {
		s.source, s.said = len(s.resident), 0
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

// admit returns the tokens of an input that this context can take.
func (s *session) admit(text string, m transport.ContextManifest, images []transport.ImagePart) ([]int32, error) {
	if len(images) > 0 {
		return nil, fmt.Errorf("%w: echo sees no images", transport.ErrUnsupportedFeature)
	}
	if err := s.manifest.CheckIdentity(m); err != nil {
		return nil, err
	}
	return tokenize(text)
}

func (s *session) adopt(m transport.ContextManifest) {
	if len(s.resident) == 0 {
		s.manifest = transport.ContextManifest{}
	}
	if !m.IsZero() {
		s.manifest = m
	}
}

func (s *session) count(tokens int) {
	if tokens > 0 {
		s.report.PhysicalPrefillCalls++
		s.report.PhysicalPrefillTokens += tokens
	}
}

func (s *session) ExplainContext() transport.ContextReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.ResidentTokens, r.PrefixTokens = len(s.resident), s.prefix
	r.NumCtx, r.AvailableTokens = s.numCtx, s.numCtx-len(s.resident)
	r.StableTokenHash = transport.HashTokens(s.resident[:s.prefix])
	r.StableByteHash, r.ManifestDigest, r.Manifest = s.manifest.StableByteHash, s.manifest.Digest(), s.manifest
	r.Closed = s.life.Err() != nil
	return r
}

func (s *session) Snapshot(ctx context.Context) (transport.SessionSnapshot, error) {
	done, err := s.begin(ctx)
	if err != nil {
		return transport.SessionSnapshot{}, err
	}
	defer done()
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

func (s *session) Restore(ctx context.Context, snap transport.SessionSnapshot) error {
	done, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	tokens, err := tokensOf(snap)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(tokens) > s.numCtx {
		return transport.NewContextOverflowError("restore", 0, len(tokens), s.numCtx)
	}
	s.count(len(tokens) - common(s.resident, tokens))
	s.resident, s.prefix, s.manifest = tokens, snap.PrefixTokens, snap.Manifest
	s.source, s.said = snap.PrefixTokens, 0
	if s.source == len(tokens) { // no suffix to repeat
		s.source = 0
	}
	return nil
}

// Close ends the session; a running Decode ends with ErrSessionClosed.
func (s *session) Close() error {
	s.end()
	s.service.mu.Lock()
	defer s.service.mu.Unlock()
	delete(s.service.sessions, s)
	return nil
}

// errInvalidUTF8 has no sentinel in the contract: it is a caller's mistake.
var errInvalidUTF8 = errors.New("the text is not valid UTF-8")

// tokenize returns a text's characters.
func tokenize(text string) ([]int32, error) {
	if !utf8.ValidString(text) {
		return nil, errInvalidUTF8
	}
	return []int32(text), nil
}

// tokensOf returns a snapshot's tokens if it can be one of ours.
func tokensOf(snap transport.SessionSnapshot) ([]int32, error) {
	n := len(snap.ResidentTokenIDs)
	if snap.ResidentTokens != n || snap.PrefixTokens < 0 || snap.PrefixTokens > n {
		return nil, fmt.Errorf("%w: the snapshot's counts don't agree with its %d tokens", transport.ErrManifestMismatch, n)
	}
	tokens := make([]int32, n)
	for i, id := range snap.ResidentTokenIDs {
		if id < 0 || id > utf8.MaxRune || !utf8.ValidRune(rune(id)) {
			return nil, fmt.Errorf("%w: token %d of the snapshot is no character", transport.ErrManifestMismatch, id)
		}
		tokens[i] = int32(id)
	}
	return tokens, nil
}

func common(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
