package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"modeld/core/transport"
)

// errSessionClosed is a variable so that every place says the same.
var errSessionClosed = fmt.Errorf("%w: open a new one", transport.ErrSessionClosed)

// fatalError marks err as the end of all sessions of a Runner.
func fatalError(err error) error {
	if errors.Is(err, transport.ErrSessionFatal) {
		return err
	}
	return fmt.Errorf("%w: %w", transport.ErrSessionFatal, err)
}

// session is a transport.Session. Its fields belong, in this order, to
// everyone, to the call under way (busy), to the scheduler while a job of the
// session is under way and to the call otherwise, and to who holds mu.
type session struct {
	model      *model
	sched      *scheduler
	numCtx     int
	config     transport.Config
	closed     atomic.Bool
	busy       atomic.Bool
	snapshots  *snapshotStore
	release    func() // takes the session out of its model's books
	closedDone chan struct{}

	prompt   prompt
	manifest transport.ContextManifest // identity of what is resident

	tokens    []Token // the context
	forwarded int     // how many of tokens have ever been computed for it
	prefixN   int     // how many of them are the prefix
	seq       *sequence
	job       *job

	mu     sync.Mutex
	counts transport.ContextReport
	hot    int // tokens that have KV now
}

var _ transport.Session = (*session)(nil)

// physical is how many of the session's tokens have KV now. Scheduler only.
func (c *session) physical() int {
	if c.seq == nil {
		return 0
	}
	return len(c.seq.tokens)
}

// publish makes the session's numbers visible to ExplainContext.
func (c *session) publish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.ResidentTokens = len(c.tokens)
	c.counts.PrefixTokens = c.prefixN
	// Only the last token of a generation has never been computed: the next
	// call does it.
	c.counts.DeferredPrefillTokens = len(c.tokens) - c.forwarded
	c.counts.DeferredPrefillCalls = c.counts.DeferredPrefillTokens
	c.hot = c.physical()
}

// start begins a call; the caller ends it with the returned function.
func (c *session) start() (end func(), err error) {
	if c.closed.Load() {
		return nil, errSessionClosed
	}
	if err := c.sched.enter(); err != nil {
		return nil, err
	}
	if !c.busy.CompareAndSwap(false, true) {
		c.sched.leave()
		return nil, fmt.Errorf("%w: another call on this session is under way; wait for its end", transport.ErrModelBusy)
	}
	return func() {
		c.busy.Store(false)
		c.sched.leave()
	}, nil
}

// do submits a job and waits for its outcome, which comes within a step after
// ctx has ended.
func (c *session) do(ctx context.Context, j *job) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	outcome := make(chan error, 1)
	j.ctx, j.sess, j.done = ctx, c, func(err error) { outcome <- err }
	defer context.AfterFunc(ctx, c.sched.signal)()
	if err := c.sched.submit(j); err != nil {
		return err
	}
	return <-outcome
}

func (c *session) EnsurePrefix(ctx context.Context, in transport.PrefixInput) (transport.PrefixStatus, error) {
	end, err := c.start()
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	defer end()
	if len(c.tokens) > 0 {
		if err := c.manifest.CheckIdentity(in.Manifest); err != nil {
			return transport.PrefixStatus{}, err
		}
	}
	next, target, err := c.prompt.prefix(in)
	if err != nil {
		return transport.PrefixStatus{}, err
	}
	kept := commonPrefix(c.tokens, target)
	if len(target) > c.numCtx {
		return transport.PrefixStatus{}, transport.NewContextOverflowError("prefix", kept, len(target)-kept, c.numCtx)
	}
	st := transport.PrefixStatus{
		DroppedTokens: len(c.tokens) - kept,
		PrefixTokens:  len(target), ResidentTokens: len(target), AvailableTokens: c.numCtx - len(target),
		StableByteHash: in.Manifest.StableByteHash, StableTokenHash: transport.HashTokens(target),
		ManifestDigest: in.Manifest.Digest(),
	}
	j := &job{target: target, manifest: in.Manifest}
	j.start = func(reused int) {
		st.ReusedTokens, st.PrefilledTokens = reused, len(target)-reused
		c.prompt, c.prefixN, c.manifest = next, len(target), in.Manifest
	}
	j.abandon = func() {
		if j.start != nil {
			return // never begun: nothing has changed
		}
		c.tokens = c.tokens[:c.physical()]
		c.forwarded, c.prefixN = len(c.tokens), len(c.tokens)
		c.prompt = c.prompt.forgotten()
	}
	if err := c.do(ctx, j); err != nil {
		return transport.PrefixStatus{}, err
	}
	c.describe(in.Manifest, st.StableTokenHash, "")
	return st, nil
}

func (c *session) PrefillSuffix(ctx context.Context, in transport.SuffixInput) (transport.SuffixStatus, error) {
	end, err := c.start()
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	defer end()
	if len(c.tokens) > 0 {
		if err := c.manifest.CheckIdentity(in.Manifest); err != nil {
			return transport.SuffixStatus{}, err
		}
	}
	suffix, whole, err := c.prompt.suffix(in, len(c.tokens) == 0)
	if err != nil {
		return transport.SuffixStatus{}, err
	}
	old, oldForwarded, oldPrefix := c.tokens, c.forwarded, c.prefixN
	kept := len(old)
	target := slices.Concat(old, suffix)
	if whole {
		// The template renders the prefix's messages otherwise now.
		target = clone(suffix)
		kept = commonPrefix(old, target)
	}
	if len(target) > c.numCtx {
		return transport.SuffixStatus{}, transport.NewContextOverflowError("suffix", kept, len(target)-kept, c.numCtx)
	}
	manifest := in.Manifest
	if manifest.IsZero() {
		manifest = c.manifest
	}
	j := &job{target: target, manifest: manifest}
	j.start = func(int) {
		c.prefixN = min(c.prefixN, kept)
		c.manifest = manifest
	}
	j.abandon = func() {
		if j.start != nil {
			return
		}
		// Back to before: a half suffix would be a wrong context for the next.
		c.tokens, c.forwarded, c.prefixN = old, oldForwarded, oldPrefix
		c.sched.cutBack(c)
	}
	if err := c.do(ctx, j); err != nil {
		return transport.SuffixStatus{}, err
	}
	c.describe(in.Manifest, "", transport.HashTokens(target[kept:]))
	return transport.SuffixStatus{
		SuffixTokens: len(target) - kept, PrefixTokens: c.prefixN,
		ResidentTokens: len(target), AvailableTokens: c.numCtx - len(target),
		ManifestDigest: in.Manifest.Digest(),
	}, nil
}

// cutBack drops KV of c beyond its tokens. Scheduler only.
func (s *scheduler) cutBack(c *session) {
	if c.seq == nil {
		return
	}
	if err := s.kv.cut(c.seq, commonPrefix(c.seq.tokens, c.tokens)); err != nil {
		s.fail(err)
	}
}

func (c *session) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	end, err := c.start()
	if err != nil {
		return nil, err
	}
	j, text, err := c.generation(ctx, cfg)
	if err != nil {
		end()
		return nil, err
	}
	st := j.stream
	stopWatch := context.AfterFunc(ctx, c.sched.signal)
	c.sched.users.Add(1) // for the stream; start holds another until the end
	j.done = func(err error) {
		stopWatch()
		end()
		st.end(j.reason, err)
	}
	if err := c.sched.submit(j); err != nil {
		stopWatch()
		c.sched.leave()
		end()
		return nil, err
	}
	go func() {
		defer c.sched.leave()
		st.run(ctx, text)
	}()
	return st.out, nil
}

// generation prepares the job of a Decode.
func (c *session) generation(ctx context.Context, cfg transport.DecodeConfig) (*job, *textDecoder, error) {
	if err := checkDecodeConfig(cfg); err != nil {
		return nil, nil, err
	}
	params, err := resolveSampling(cfg, c.sched.info.Sampling, c.sched.opts.Seed)
	if err != nil {
		return nil, nil, err
	}
	n := len(c.tokens)
	if n == 0 {
		return nil, nil, errors.New("decode: the context is empty; call EnsurePrefix or PrefillSuffix with some text first")
	}
	if n >= c.numCtx {
		return nil, nil, transport.NewContextOverflowError("decode", n, 1, c.numCtx)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	text, err := newTextDecoder(c.sched.runner.Detokenize, c.tokens)
	if err != nil {
		return nil, nil, err
	}
	most := c.numCtx - n
	if cfg.MaxTokens > 0 {
		most = min(most, cfg.MaxTokens)
	}
	return &job{
		ctx: ctx, sess: c, manifest: c.manifest,
		stream:  newStream(c.sched.opts.StreamBuffer, c.sched.opts.StreamInterval, c.sched.signal),
		sampler: newSampler(params),
		most:    most,
	}, text, nil
}

// checkDecodeConfig refuses what this engine does not do yet.
func checkDecodeConfig(cfg transport.DecodeConfig) error {
	if p := cfg.StructuredOutput.Protocol; p != "" {
		return fmt.Errorf("%w: structured output (protocol %q) is not available in this build", transport.ErrUnsupportedFeature, p)
	}
	if len(cfg.ParserProtocols) > 0 {
		return fmt.Errorf("%w: no parser for the protocols %q; leave ParserProtocols empty to get plain text",
			transport.ErrUnsupportedFeature, cfg.ParserProtocols)
	}
	return nil
}

// describe puts a manifest into the report, with the hashes of its tokens.
func (c *session) describe(m transport.ContextManifest, stable, volatile string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.counts
	if stable != "" {
		r.StableTokenHash, r.StableByteHash = stable, m.StableByteHash
		r.Manifest = transport.ContextManifest{}
	}
	if !m.IsZero() || len(m.Segments) > 0 || stable != "" {
		r.Manifest, r.ManifestDigest = m, m.Digest()
	}
	if !r.Manifest.IsZero() {
		r.Manifest.StableTokenHash = r.StableTokenHash
		if volatile != "" {
			r.Manifest.VolatileTokenHash = volatile
		}
	}
}

// ExplainContext reports the session's numbers without waiting for work.
func (c *session) ExplainContext() transport.ContextReport {
	c.mu.Lock()
	r := c.counts
	residency := transport.ResidencyReport{
		TotalTokens: r.ResidentTokens,
		HotTokens:   c.hot,
		ColdTokens:  r.ResidentTokens - c.hot,
	}
	c.mu.Unlock()
	info := c.sched.info
	r.NumCtx = c.numCtx
	r.AvailableTokens = c.numCtx - r.ResidentTokens
	r.HotContextTokens = c.numCtx
	if h := c.config.HotContextTokens; h > 0 {
		r.HotContextTokens = min(h, c.numCtx)
	}
	r.PlannerEffectiveContext = transport.ResolvePlannerEffectiveContext(c.config.PlannerEffectiveContext, c.numCtx, info.Model)
	residency.BudgetTokens = info.KVTokens
	residency.Capabilities = transport.ResidencyCapabilities{
		RemoveTail:                   info.Caps.Truncate,
		SparseAttention:              info.Model.SparseAttention,
		SlidingWindowAttentionTokens: info.Model.SlidingWindowAttentionTokens,
		RecomputeRange:               info.Caps.Truncate,
	}
	r.Residency = &residency
	r.Closed = c.closed.Load()
	if err := c.sched.fault(); err != nil {
		r.FatalError = err.Error()
	}
	return r
}

// Close ends the session and what runs in it. What it had resident stays as
// cache until its space is needed.
func (c *session) Close() error {
	if c.closed.Swap(true) {
		<-c.closedDone
		return nil
	}
	defer close(c.closedDone)
	c.sched.call(func() { c.sched.evict(c) })
	c.release()
	return nil
}

// evict ends c's job and gives its sequence to the cache.
func (s *scheduler) evict(c *session) {
	if j := c.job; j != nil {
		s.remove(j)
		s.finish(j, errSessionClosed)
	}
	s.kv.detach(c)
}
