package engine

import (
	"fmt"
	"slices"

	"modeld/core/transport"
)

// sequence is one of the Runner's sequences: the tokens whose KV it holds, and
// whose it is. Without an owner it is free where empty, and cache otherwise.
type sequence struct {
	id       int
	tokens   []Token
	cells    []int32 // the cell of each position, for counting shared ones once
	manifest transport.ContextManifest
	owner    *session
	lastUsed uint64
	// row is the logits after the last token, where hasRow.
	row    []float32
	hasRow bool
}

// kvCache keeps the books of the Runner's KV. The scheduler's goroutine alone
// uses it. Its books change only after the Runner has done its part.
type kvCache struct {
	runner Runner
	info   Info
	seqs   []*sequence
	refs   []int32 // how many sequences hold each cell
	free   []int32 // cells that nobody holds
	clock  uint64
}

func newKVCache(r Runner) *kvCache {
	info := r.Info()
	kv := &kvCache{runner: r, info: info, refs: make([]int32, info.KVTokens), free: make([]int32, info.KVTokens)}
	for i := range kv.free {
		kv.free[i] = int32(info.KVTokens - 1 - i)
	}
	for i := range info.MaxSeqs {
		kv.seqs = append(kv.seqs, &sequence{id: i})
	}
	return kv
}

// touch makes q the most recently used.
func (kv *kvCache) touch(q *sequence) {
	kv.clock++
	q.lastUsed = kv.clock
}

// appendTokens books tokens that Forward has appended to q.
func (kv *kvCache) appendTokens(q *sequence, tokens []Token) {
	n := len(kv.free) - len(tokens)
	for _, c := range kv.free[n:] {
		kv.refs[c] = 1
		q.cells = append(q.cells, c)
	}
	kv.free = kv.free[:n]
	q.tokens = append(q.tokens, tokens...)
	q.hasRow = false
	kv.touch(q)
}

// keepRow copies the logits after q's last token.
func (q *sequence) keepRow(row []float32) {
	q.row = append(q.row[:0], row...)
	q.hasRow = true
}

// cut drops q's positions from n on; where the model can't, it drops them all.
func (kv *kvCache) cut(q *sequence, n int) error {
	if n >= len(q.tokens) {
		return nil
	}
	if !kv.info.Caps.Truncate {
		n = 0
	}
	return kv.forceCut(q, n)
}

// forceCut tells the Runner to cut even where the books already agree, as
// after a failed Forward.
func (kv *kvCache) forceCut(q *sequence, n int) error {
	if err := kv.runner.Truncate(q.id, n); err != nil {
		return fmt.Errorf("engine: cut sequence %d to %d tokens: %w", q.id, n, err)
	}
	for _, c := range q.cells[n:] {
		if kv.refs[c]--; kv.refs[c] == 0 {
			kv.free = append(kv.free, c)
		}
	}
	q.cells, q.tokens, q.hasRow = q.cells[:n], q.tokens[:n], false
	return nil
}

// release takes q from its owner; what it holds stays as cache.
func (kv *kvCache) release(q *sequence) {
	if c := q.owner; c != nil {
		c.seq, q.owner = nil, nil
		c.publish()
	}
}

// clear empties q and takes it from its owner.
func (kv *kvCache) clear(q *sequence) error {
	kv.release(q)
	return kv.cut(q, 0)
}

// usable is how many of q's positions serve a context of tokens under m,
// before and without changing q.
func (kv *kvCache) usable(q *sequence, tokens []Token, m transport.ContextManifest) int {
	if q.manifest.CheckIdentity(m) != nil {
		return 0
	}
	n := commonPrefix(q.tokens, tokens)
	if n < len(q.tokens) && !kv.info.Caps.Truncate {
		return 0
	}
	return n
}

// find returns the sequence that serves most of tokens for sess, and how many.
// Others' sequences serve by sharing alone, cached ones also by taking them.
func (kv *kvCache) find(sess *session, tokens []Token, m transport.ContextManifest) (best *sequence, n int) {
	if own := sess.seq; own != nil {
		best, n = own, kv.usable(own, tokens, m)
	}
	for _, q := range kv.seqs {
		if q.owner == sess || (q.owner != nil && !kv.info.Caps.Share) {
			continue
		}
		if u := kv.usable(q, tokens, m); u > n {
			best, n = q, u
		}
	}
	return best, n
}

// attach gives sess a sequence that holds as much of tokens as is resident
// anywhere, and nothing else; it returns how much. ok is false where every
// sequence is in use.
func (kv *kvCache) attach(sess *session, tokens []Token, m transport.ContextManifest) (n int, ok bool, err error) {
	src, n := kv.find(sess, tokens, m)
	switch {
	case src != nil && src == sess.seq:
		// its own serves best
	case src != nil && n > 0 && kv.info.Caps.Share:
		err = kv.share(sess, src, n)
	case src != nil && n > 0:
		kv.detach(sess)
		src.owner, sess.seq = sess, src
	case sess.seq == nil:
		err = kv.take(sess, nil)
	}
	if err != nil || sess.seq == nil {
		return 0, false, err
	}
	q := sess.seq
	if err := kv.cut(q, n); err != nil {
		return 0, false, err
	}
	q.manifest = merge(q.manifest, m, n)
	kv.touch(q)
	return n, true, nil
}

// share gives sess a sequence with the first n positions of src. Where no other
// sequence can be had it takes src itself, if that may be evicted.
func (kv *kvCache) share(sess *session, src *sequence, n int) error {
	kv.detach(sess)
	if err := kv.take(sess, src); err != nil {
		return err
	}
	dst := sess.seq
	if dst == nil {
		if src.evictRank() >= 0 {
			kv.release(src)
			src.owner, sess.seq = sess, src
		}
		return nil
	}
	if err := kv.runner.Share(dst.id, src.id, n); err != nil {
		return fmt.Errorf("engine: share %d tokens of sequence %d with %d: %w", n, src.id, dst.id, err)
	}
	dst.tokens = append(dst.tokens[:0], src.tokens[:n]...)
	dst.cells = append(dst.cells[:0], src.cells[:n]...)
	for _, c := range dst.cells {
		kv.refs[c]++
	}
	dst.manifest = src.manifest
	if src.hasRow && n == len(src.tokens) {
		dst.keepRow(src.row)
	}
	kv.touch(src)
	return nil
}

// detach lets sess's sequence go, if it has one.
func (kv *kvCache) detach(sess *session) {
	if sess.seq != nil {
		kv.release(sess.seq)
	}
}

// take gives sess an empty sequence: a free one, else the least recently used
// evictable one other than keep, else none.
func (kv *kvCache) take(sess *session, keep *sequence) error {
	q := kv.victim(func(q *sequence) bool { return q != keep })
	for _, free := range kv.seqs {
		if free.owner == nil && len(free.tokens) == 0 {
			q = free
			break
		}
	}
	if q == nil {
		return nil
	}
	if err := kv.clear(q); err != nil {
		return err
	}
	q.owner, sess.seq = sess, q
	q.manifest = transport.ContextManifest{}
	return nil
}

// victim is the sequence to evict next: cache first, then idle sessions', then
// those of generations that wait for a slow reader; the least recently used of
// each. nil: none can go.
func (kv *kvCache) victim(may func(*sequence) bool) *sequence {
	var best *sequence
	for _, q := range kv.seqs {
		rank := q.evictRank()
		if rank < 0 || len(q.tokens) == 0 && q.owner == nil || !may(q) {
			continue
		}
		if best == nil || rank < best.evictRank() || rank == best.evictRank() && q.lastUsed < best.lastUsed {
			best = q
		}
	}
	return best
}

// evictRank orders what may be evicted: cache, sessions that don't compute, and
// generations that wait for their reader; -1 may not.
func (q *sequence) evictRank() int {
	switch {
	case q.owner == nil:
		return 0
	case q.owner.job == nil, !q.owner.job.running:
		return 1
	case q.owner.job.paused():
		return 2
	}
	return -1
}

// makeRoom evicts until n cells are free, and returns how many are, at most n.
func (kv *kvCache) makeRoom(n int) (int, error) {
	for len(kv.free) < n {
		q := kv.victim(func(q *sequence) bool { return len(q.tokens) > 0 })
		if q == nil {
			break
		}
		if err := kv.clear(q); err != nil {
			return 0, err
		}
	}
	return min(n, len(kv.free)), nil
}

// available is how many cells are free or would be after evicting all that can
// go: a lower bound, since cells that evictable sequences share don't count.
func (kv *kvCache) available() int {
	n := len(kv.free)
	for _, q := range kv.seqs {
		if q.evictRank() < 0 {
			continue
		}
		for _, c := range q.cells {
			if kv.refs[c] == 1 {
				n++
			}
		}
	}
	return n
}

// merge is the identity of a sequence whose first n positions have one and
// whose rest will have another; a zero manifest claims none.
func merge(have, next transport.ContextManifest, n int) transport.ContextManifest {
	if n > 0 && next.IsZero() {
		return have
	}
	return next
}

func commonPrefix(a, b []Token) int {
	n := min(len(a), len(b))
	if slices.Equal(a[:n], b[:n]) {
		return n
	}
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
