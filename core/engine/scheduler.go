package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"modeld/core/transport"
)

// scheduler owns a Runner: its goroutine makes every call to it but Info,
// Tokenize and Detokenize. Each step packs one token of every generation and
// chunks of the prefills into one batch.
type scheduler struct {
	runner Runner
	info   Info
	opts   Options
	log    *slog.Logger
	stats  *Stats
	eog    map[Token]bool

	ctx    context.Context // ends a Forward when the scheduler stops
	cancel context.CancelFunc
	wake   chan struct{}
	done   chan struct{}  // closed when the goroutine has ended
	users  sync.WaitGroup // calls and streams that use the Runner's vocabulary

	mu       sync.Mutex
	inbox    []func()
	queued   int // jobs that have not begun
	stopping bool
	exited   bool
	fatal    error

	// The goroutine's own.
	kv      *kvCache
	waiting []*job // first come, first served
	running []*job // the oldest first
	embeds  []*embedJob
	active  int // waiting and running
	turn    int // where in running the next batch starts
	spare   []func()
	batch   []*job
	prefill []*job
	spans   []Span
}

func newScheduler(r Runner, opts Options, stats *Stats) *scheduler {
	s := &scheduler{
		runner: r, info: r.Info(), opts: opts, log: opts.Logger, stats: stats,
		eog:  make(map[Token]bool),
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
		kv:   newKVCache(r),
	}
	for _, t := range s.info.EOG {
		s.eog[t] = true
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run()
	return s
}

// close ends all work, the goroutine and the Runner.
func (s *scheduler) close() error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.cancel()
	s.signal()
	<-s.done
	s.users.Wait()
	return s.runner.Close()
}

// enter announces a use of the Runner's vocabulary; the caller calls leave.
func (s *scheduler) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fatal != nil {
		return s.fatal
	}
	if s.stopping {
		return errSessionClosed
	}
	s.users.Add(1)
	return nil
}

func (s *scheduler) leave() { s.users.Done() }

// fault is the error after which the Runner is unusable, nil before.
func (s *scheduler) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fatal
}

// signal makes the goroutine look at everything again.
func (s *scheduler) signal() { signal(s.wake) }

func (s *scheduler) run() {
	defer close(s.done)
	for {
		s.drainInbox()
		if s.ctx.Err() != nil {
			break
		}
		s.reap()
		worked := s.embed()
		s.admit()
		if s.step() || worked {
			continue
		}
		<-s.wake
	}
	s.failAll(errSessionClosed)
	s.mu.Lock()
	s.exited = true
	s.mu.Unlock()
	s.drainInbox()
	s.failAll(errSessionClosed)
}

func (s *scheduler) drainInbox() {
	s.mu.Lock()
	ops := s.inbox
	s.inbox = s.spare[:0]
	s.mu.Unlock()
	for _, op := range ops {
		op()
	}
	clear(ops)
	s.spare = ops
}

// failAll ends every job with err.
func (s *scheduler) failAll(err error) {
	jobs := slices.Concat(s.running, s.waiting)
	s.running, s.waiting = s.running[:0], s.waiting[:0]
	for _, j := range jobs {
		s.finish(j, err)
	}
	s.failEmbeds(err)
}

// fail makes the scheduler refuse all work: the Runner is unusable.
func (s *scheduler) fail(err error) {
	s.mu.Lock()
	if s.fatal == nil {
		s.fatal = fatalError(err)
	}
	err = s.fatal
	s.mu.Unlock()
	s.log.Error("the runtime has failed; all its sessions are lost", "err", err)
	s.failAll(err)
}

// step advances all running jobs by one batch. It reports false where there is
// nothing to do.
func (s *scheduler) step() bool {
	changed := s.settle()
	s.plan()
	if len(s.batch) == 0 || s.fault() != nil {
		return changed
	}
	s.spans = s.spans[:0]
	for _, j := range s.batch {
		q, tokens := j.sess.seq, j.sess.tokens
		span := Span{Seq: q.id, Pos: len(q.tokens), Tokens: tokens[len(q.tokens) : len(q.tokens)+j.span]}
		if span.Pos+j.span == len(tokens) {
			span.Logits = 1
		}
		s.spans = append(s.spans, span)
	}
	rows, err := s.runner.Forward(s.ctx, s.spans)
	s.stats.Steps.Add(1)
	if err != nil {
		s.batchFailed(err)
		return true
	}
	for i, j := range s.batch {
		s.commit(j, s.spans[i])
		if s.spans[i].Logits == 0 {
			continue
		}
		if len(rows) == 0 {
			s.fail(errors.New("engine: the runtime returned too few rows of logits"))
			return true
		}
		s.advance(j, rows[0])
		rows = rows[1:]
	}
	return true
}

// settle moves on what needs no Forward: prefills that are resident and
// generations whose logits are there. It reports whether anything changed.
func (s *scheduler) settle() bool {
	changed := false
	for i := len(s.running) - 1; i >= 0; i-- {
		j := s.running[i]
		q := j.sess.seq
		switch {
		case q == nil && len(j.sess.tokens) > 0: // lost its sequence while paused
			s.requeue(i)
		case j.todo() > 0 || j.paused():
			continue
		case j.stream == nil:
			s.complete(j)
		case q.hasRow:
			s.advance(j, q.row)
		default: // compute the last token again, for its logits
			if err := s.kv.cut(q, len(q.tokens)-1); err != nil {
				s.end(j, err)
			}
		}
		changed = true
	}
	return changed
}

// requeue puts running[i] before the waiting ones; it computes again what it
// had.
func (s *scheduler) requeue(i int) {
	j := s.running[i]
	s.running = slices.Delete(s.running, i, i+1)
	j.running = false
	s.waiting = slices.Insert(s.waiting, 0, j)
}

// plan fills s.batch: first one token of every generation, then chunks of the
// prefills, the shorter ones first and none more than its fair share.
func (s *scheduler) plan() {
	s.batch, s.prefill = s.batch[:0], s.prefill[:0]
	budget, used := s.info.MaxBatch, 0
	for i := range s.running {
		j := s.running[(s.turn+i)%len(s.running)]
		switch todo := j.todo(); {
		case todo == 0 || j.paused():
		case todo > 1 || j.stream == nil:
			s.prefill = append(s.prefill, j)
		case used < budget:
			used += s.grant(j, 1, used)
		}
	}
	left := budget - used
	if used > 0 {
		left = min(left, s.opts.PrefillChunk)
	}
	slices.SortStableFunc(s.prefill, func(a, b *job) int { return cmp.Compare(a.todo(), b.todo()) })
	for i, j := range s.prefill {
		if left == 0 {
			break
		}
		if !j.running { // preempted meanwhile
			continue
		}
		share := max(1, left/(len(s.prefill)-i))
		n := s.grant(j, min(j.todo(), share), used)
		used, left = used+n, left-n
	}
	s.turn += used // where there are more generations than a batch takes
	s.dropPreempted()
}

// grant puts up to n tokens of j into the batch, which has used others already;
// it makes room by evicting and, for older jobs, by preempting younger ones.
func (s *scheduler) grant(j *job, n, used int) int {
	for {
		room, err := s.kv.makeRoom(used + n)
		if err != nil {
			s.fail(err)
			return 0
		}
		if got := min(n, room-used); got > 0 {
			j.span = got
			s.batch = append(s.batch, j)
			return got
		}
		if !s.preemptYounger(j) {
			return 0
		}
	}
}

// preemptYounger takes the sequence of the youngest job that came after j and is
// not in the batch. It will compute its tokens again later.
func (s *scheduler) preemptYounger(j *job) bool {
	for i := len(s.running) - 1; i >= 0 && s.running[i] != j; i-- {
		victim := s.running[i]
		if !victim.running || victim.span > 0 || victim.sess.seq == nil {
			continue
		}
		if err := s.kv.clear(victim.sess.seq); err != nil {
			s.fail(err)
			return false
		}
		victim.running = false
		s.stats.Preemptions.Add(1)
		return true
	}
	return false
}

// dropPreempted moves preempted jobs back to the waiting ones.
func (s *scheduler) dropPreempted() {
	for i := len(s.running) - 1; i >= 0; i-- {
		if !s.running[i].running {
			s.requeue(i)
		}
	}
}

// commit books what Forward has appended for j.
func (s *scheduler) commit(j *job, span Span) {
	sess, n := j.sess, len(span.Tokens)
	s.kv.appendTokens(sess.seq, span.Tokens)
	j.span = 0
	generated := j.generated > 0 && n == 1
	sess.forwarded = max(sess.forwarded, len(sess.seq.tokens))
	sess.mu.Lock()
	switch {
	case generated:
		sess.counts.DecodeCalls++
	case j.stream != nil:
		sess.counts.DecodePromptTokens += n
	default:
		sess.counts.PhysicalPrefillCalls++
		sess.counts.PhysicalPrefillTokens += n
	}
	sess.mu.Unlock()
	if !generated {
		s.stats.PrefillTokens.Add(int64(n))
	}
	sess.publish()
}

// advance moves on a job whose tokens are all resident; row is the logits after
// the last one.
func (s *scheduler) advance(j *job, row []float32) {
	sess := j.sess
	if j.stream == nil {
		sess.seq.keepRow(row)
		s.complete(j)
		return
	}
	t := j.sampler.sample(row, sess.tokens)
	if s.eog[t] {
		if !sess.seq.hasRow {
			sess.seq.keepRow(row)
		}
		j.reason = transport.FinishStop
		s.end(j, nil)
		return
	}
	sess.tokens = append(sess.tokens, t)
	j.generated++
	s.stats.GeneratedTokens.Add(1)
	j.stream.push(t)
	if j.generated == j.most {
		j.reason = transport.FinishLength
		s.end(j, nil)
	}
}

func (s *scheduler) complete(j *job) {
	var err error
	if j.complete != nil {
		err = j.complete()
	}
	s.end(j, err)
}

// batchFailed ends the jobs of a failed batch. What Forward left of their
// sequences beyond the books is cut off.
func (s *scheduler) batchFailed(err error) {
	if errors.Is(err, transport.ErrSessionFatal) {
		s.fail(err)
		return
	}
	s.log.Warn("a forward pass has failed", "sessions", len(s.batch), "err", err)
	for _, j := range slices.Clone(s.batch) {
		n := len(j.sess.seq.tokens)
		if !s.info.Caps.Truncate {
			n = 0
		}
		if cerr := s.kv.forceCut(j.sess.seq, n); cerr != nil {
			s.fail(cerr)
			return
		}
		s.end(j, fmt.Errorf("engine: forward pass: %w", err))
	}
}
