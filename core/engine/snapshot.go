package engine

import (
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	"modeld/core/transport"
)

// snapshotStore keeps the KV of snapshots in memory, bounded in number and
// bytes; the least recently used goes first.
type snapshotStore struct {
	maxCount int
	maxBytes int64

	mu    sync.Mutex
	byID  map[string]*list.Element
	order *list.List // of *savedState, the most recently used first
	bytes int64
}

// savedState is the KV of tokens in the format of one loaded model.
type savedState struct {
	id     string
	model  *model
	tokens []Token
	kv     []byte
	row    []float32
}

func (st *savedState) size() int64 { return int64(len(st.kv) + 4*len(st.tokens) + 4*len(st.row)) }

func newSnapshotStore(count int, bytes int64) *snapshotStore {
	return &snapshotStore{maxCount: count, maxBytes: bytes, byID: make(map[string]*list.Element), order: list.New()}
}

func (s *snapshotStore) put(st *savedState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.size() > s.maxBytes {
		return
	}
	s.byID[st.id] = s.order.PushFront(st)
	s.bytes += st.size()
	for s.order.Len() > s.maxCount || s.bytes > s.maxBytes {
		s.removeLocked(s.order.Back())
	}
}

func (s *snapshotStore) get(id string) *savedState {
	s.mu.Lock()
	defer s.mu.Unlock()
	el, ok := s.byID[id]
	if !ok {
		return nil
	}
	s.order.MoveToFront(el)
	return el.Value.(*savedState)
}

// forget drops the states of m, which no other model can read.
func (s *snapshotStore) forget(m *model) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for el := s.order.Front(); el != nil; {
		next := el.Next()
		if el.Value.(*savedState).model == m {
			s.removeLocked(el)
		}
		el = next
	}
}

func (s *snapshotStore) removeLocked(el *list.Element) {
	st := s.order.Remove(el).(*savedState)
	s.bytes -= st.size()
	delete(s.byID, st.id)
}

// Snapshot saves the context: its tokens, and its KV in this process for as
// long as there is space.
func (c *session) Snapshot(ctx context.Context) (transport.SessionSnapshot, error) {
	end, err := c.start()
	if err != nil {
		return transport.SessionSnapshot{}, err
	}
	defer end()
	st := &savedState{id: rand.Text(), model: c.model}
	j := &job{manifest: c.manifest}
	j.complete = func() error {
		st.tokens = clone(c.tokens)
		c.sched.save(c, st)
		return nil
	}
	if err := c.do(ctx, j); err != nil {
		return transport.SessionSnapshot{}, err
	}
	snap := transport.SessionSnapshot{
		ResidentTokens: len(st.tokens), PrefixTokens: c.prefixN, NumCtx: c.numCtx,
		ResidentTokenIDs: make([]int, len(st.tokens)),
		StableText:       c.prompt.text, PrefixText: c.prompt.rendered, Tools: c.prompt.tools,
		Manifest: c.model.claim(c.manifest),
	}
	for i, t := range st.tokens {
		snap.ResidentTokenIDs[i] = int(t)
	}
	if len(st.kv) > 0 {
		c.snapshots.put(st)
		snap.StateID = st.id
	}
	return snap, nil
}

// save writes c's KV into st, where the runtime can and the store takes it.
func (s *scheduler) save(c *session, st *savedState) {
	if !s.info.Caps.Save || c.seq == nil {
		return
	}
	w := &boundedBuffer{limit: c.snapshots.maxBytes}
	if err := s.runner.Save(c.seq.id, len(c.seq.tokens), w); err != nil {
		s.log.Warn("a snapshot keeps its tokens alone", "tokens", len(st.tokens), "err", err)
		return
	}
	st.kv = w.Bytes()
	if c.seq.hasRow {
		st.row = slices.Clone(c.seq.row)
	}
}

// boundedBuffer refuses to grow beyond limit.
type boundedBuffer struct {
	bytes.Buffer
	limit int64
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if int64(b.Len()+len(p)) > b.limit {
		return 0, fmt.Errorf("the KV exceeds the %d bytes for snapshots", b.limit)
	}
	return b.Buffer.Write(p)
}

// claim is m, or where it claims nothing the identity of the loaded model, so
// that a snapshot of another one is recognised.
func (m *model) claim(have transport.ContextManifest) transport.ContextManifest {
	if have.IsZero() {
		have.Backend, have.ModelDigest = m.active.Type, m.info.Digest
	}
	return have
}

// Restore replaces the context by a snapshot's. KV that is still resident or
// saved in this process is used; the rest is computed from the tokens.
func (c *session) Restore(ctx context.Context, snap transport.SessionSnapshot) error {
	end, err := c.start()
	if err != nil {
		return err
	}
	defer end()
	target, manifest, err := c.checkSnapshot(snap)
	if err != nil {
		return err
	}
	saved := c.snapshots.get(snap.StateID)
	if saved != nil && saved.model != c.model {
		saved = nil
	}
	if saved != nil && !slices.Equal(saved.tokens, target) {
		return fmt.Errorf("%w: the snapshot's tokens are not those of its state %s; it is damaged", transport.ErrManifestMismatch, snap.StateID)
	}
	next := c.prompt.forgotten()
	next.text, next.tools = snap.StableText, snap.Tools
	j := &job{target: target, manifest: manifest}
	j.load = func(reused int) (int, error) { return c.sched.load(c, saved, target, reused) }
	j.start = func(int) {
		c.prompt, c.prefixN, c.manifest = next, snap.PrefixTokens, manifest
	}
	j.abandon = func() {
		if j.start != nil {
			return
		}
		c.tokens = c.tokens[:c.physical()]
		c.forwarded, c.prefixN = len(c.tokens), min(c.prefixN, len(c.tokens))
		c.prompt = c.prompt.forgotten()
	}
	if err := c.do(ctx, j); err != nil {
		return err
	}
	c.describe(manifest, transport.HashTokens(target[:snap.PrefixTokens]), "")
	return nil
}

// checkSnapshot returns the tokens and identity of a snapshot that fits the
// session's model.
func (c *session) checkSnapshot(snap transport.SessionSnapshot) ([]Token, transport.ContextManifest, error) {
	manifest := snap.Manifest
	refuse := func(format string, args ...any) ([]Token, transport.ContextManifest, error) {
		return nil, manifest, fmt.Errorf("%w: restore: %s", transport.ErrManifestMismatch, fmt.Sprintf(format, args...))
	}
	n := len(snap.ResidentTokenIDs)
	switch {
	case n != snap.ResidentTokens:
		return refuse("the snapshot says %d resident tokens and has %d", snap.ResidentTokens, n)
	case snap.PrefixTokens < 0 || snap.PrefixTokens > n:
		return refuse("the snapshot says %d prefix tokens of %d", snap.PrefixTokens, n)
	}
	info := c.sched.info
	if d := manifest.ModelDigest; !transport.SameDigest(d, info.Digest) {
		return refuse("the snapshot is of model %s, this is %s", d, info.Digest)
	}
	if claim := c.model.claim(transport.ContextManifest{}); manifest.Backend != "" && manifest.Backend != claim.Backend && manifest.ModelDigest == "" {
		return refuse("the snapshot is of backend %q, this is %q", manifest.Backend, claim.Backend)
	} else if manifest.CheckIdentity(claim) == nil {
		// It claims nothing but the model itself: others may follow.
		manifest.Backend, manifest.ModelDigest = "", ""
	}
	if err := c.manifest.CheckIdentity(manifest); err != nil && len(c.tokens) > 0 {
		return nil, manifest, err
	}
	tokens := make([]Token, n)
	for i, id := range snap.ResidentTokenIDs {
		if id < 0 || id >= info.VocabSize {
			return refuse("token %d at position %d is not in the vocabulary of %d", id, i, info.VocabSize)
		}
		tokens[i] = Token(id)
	}
	if n > c.numCtx {
		return nil, manifest, transport.NewContextOverflowError("restore", 0, n, c.numCtx)
	}
	return tokens, manifest, nil
}

// load fills c's sequence from a saved state where that has more than the
// reused tokens that it holds.
func (s *scheduler) load(c *session, saved *savedState, target []Token, reused int) (int, error) {
	if saved == nil || len(saved.kv) == 0 || reused == len(target) || c.seq == nil {
		return reused, nil
	}
	if err := s.kv.cut(c.seq, 0); err != nil {
		return 0, err
	}
	if room, err := s.kv.makeRoom(len(target)); err != nil || room < len(target) {
		return 0, err
	}
	if err := s.runner.Load(c.seq.id, len(target), bytes.NewReader(saved.kv)); err != nil {
		s.log.Warn("a snapshot's KV can't be loaded; computing it", "tokens", len(target), "err", err)
		if errors.Is(err, transport.ErrSessionFatal) {
			return 0, err
		}
		return 0, nil
	}
	s.kv.appendTokens(c.seq, target)
	if len(saved.row) > 0 {
		c.seq.keepRow(saved.row)
	}
	return len(target), nil
}
