package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"modeld/core/transport"
)

// job is one call's work on a session: to make tokens resident, and to generate
// where it has a stream. Once submitted it is the scheduler's.
type job struct {
	ctx  context.Context
	sess *session
	// target is what shall be resident, nil for what the session has already;
	// manifest is its identity.
	target   []Token
	manifest transport.ContextManifest

	// start runs at the job's first admission, before the session's tokens
	// become target; reused is how much of it is resident then. May be nil.
	start func(reused int)
	// load fills the session's sequence beyond what is resident, where it can;
	// it says how much is resident then. May be nil.
	load func(reused int) (int, error)
	// complete runs when everything is resident. May be nil.
	complete func() error
	// abandon puts the session right after a failure. May be nil.
	abandon func()
	// done gets the outcome, once.
	done func(error)

	stream    *stream
	sampler   *sampler
	generated int    // tokens so far,
	most      int    // and how many there may be
	reason    string // why the generation ended well

	begun   bool // no longer counted as waiting
	running bool // has been admitted
	span    int  // its tokens in the batch under way
}

// paused reports whether the job generates for a reader that is too far behind.
func (j *job) paused() bool { return j.stream != nil && j.stream.full() }

// todo is how many tokens are to be computed. Only for running jobs.
func (j *job) todo() int { return len(j.sess.tokens) - j.sess.physical() }

// submit queues a job. It refuses where too many wait, or the session or the
// scheduler has ended.
func (s *scheduler) submit(j *job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admissibleLocked(); err != nil {
		return err
	}
	s.queued++
	s.inbox = append(s.inbox, func() { s.accept(j) })
	s.signal()
	return nil
}

// admissibleLocked says why no more work is taken.
func (s *scheduler) admissibleLocked() error {
	switch {
	case s.fatal != nil:
		return s.fatal
	case s.stopping:
		return errSessionClosed
	case s.queued >= s.opts.QueueLimit:
		return fmt.Errorf("%w: %d calls wait already, the most that queue_limit allows; try again later",
			transport.ErrModelBusy, s.queued)
	}
	return nil
}

// call runs fn on the scheduler's goroutine, between two steps, and waits for
// it. It reports false where the scheduler has ended.
func (s *scheduler) call(fn func()) bool {
	done := make(chan struct{})
	s.mu.Lock()
	if s.exited {
		s.mu.Unlock()
		return false
	}
	s.inbox = append(s.inbox, func() { defer close(done); fn() })
	s.signal()
	s.mu.Unlock()
	<-done
	return true
}

func (s *scheduler) accept(j *job) {
	s.active++
	j.sess.job = j
	if j.sess.closed.Load() {
		s.finish(j, errSessionClosed)
		return
	}
	s.waiting = append(s.waiting, j)
}

// begin takes a job out of the count of waiting ones.
func (s *scheduler) begin(j *job) {
	if j.begun {
		return
	}
	j.begun = true
	s.mu.Lock()
	s.queued--
	s.mu.Unlock()
}

// finish ends a job that is in neither list any more.
func (s *scheduler) finish(j *job, err error) {
	s.begin(j)
	s.active--
	j.running, j.span = false, 0
	if err != nil && j.abandon != nil {
		j.abandon()
	}
	j.sess.job = nil
	if j.sess.seq != nil {
		s.kv.touch(j.sess.seq)
	}
	j.sess.publish()
	j.done(err)
}

// remove takes a job out of the lists.
func (s *scheduler) remove(j *job) {
	is := func(other *job) bool { return other == j }
	s.running = slices.DeleteFunc(s.running, is)
	s.waiting = slices.DeleteFunc(s.waiting, is)
}

// end finishes a running job.
func (s *scheduler) end(j *job, err error) {
	s.remove(j)
	s.finish(j, err)
}

// reap ends the jobs whose caller has gone or whose stream has a fault.
func (s *scheduler) reap() {
	for _, list := range []*[]*job{&s.running, &s.waiting} {
		for i := 0; i < len(*list); {
			j := (*list)[i]
			err := j.verdict()
			if err == nil {
				i++
				continue
			}
			*list = slices.Delete(*list, i, i+1)
			s.finish(j, err)
		}
	}
}

// verdict says why a job should not go on.
func (j *job) verdict() error {
	if j.ctx.Err() != nil {
		return ctxError(j.ctx)
	}
	if j.stream != nil {
		return j.stream.fault()
	}
	return nil
}

// ctxError is ctx's error, or its cause where that is of the contract.
func ctxError(ctx context.Context) error {
	cause := context.Cause(ctx)
	for _, known := range []error{transport.ErrNotOwner, transport.ErrStaleFence, transport.ErrSessionClosed, transport.ErrSessionFatal} {
		if errors.Is(cause, known) {
			return cause
		}
	}
	return ctx.Err()
}

// admit gives waiting jobs a sequence, in their order. It stops at the first
// that can't have one, so that nobody is overtaken for ever; only those whose
// readers sleep are passed over.
func (s *scheduler) admit() {
	for i := 0; i < len(s.waiting); {
		j := s.waiting[i]
		if j.begun && j.paused() {
			i++
			continue
		}
		ok, err := s.tryAdmit(j)
		if !ok && err == nil {
			return
		}
		s.waiting = slices.Delete(s.waiting, i, i+1)
		if err != nil {
			s.finish(j, err)
			s.fail(err)
			return
		}
		s.begin(j)
		j.running = true
		s.running = append(s.running, j)
	}
}

// tryAdmit gives j's session a sequence that holds what is resident of the
// job's tokens; ok is false where the job must wait.
func (s *scheduler) tryAdmit(j *job) (ok bool, err error) {
	sess, target := j.sess, j.target
	if target == nil {
		target = sess.tokens
	}
	n := 0
	if len(target) == 0 {
		s.kv.detach(sess)
	} else {
		if len(s.running) > 0 && s.shouldWait(j, target) {
			return false, nil
		}
		if n, ok, err = s.kv.attach(sess, target, j.manifest); err != nil || !ok {
			return false, err
		}
	}
	if j.load != nil {
		if n, err = j.load(n); err != nil {
			return false, err
		}
	}
	if j.start != nil {
		j.start(n)
		j.start = nil
	}
	if j.target != nil {
		sess.tokens, j.target = j.target, nil
		sess.forwarded = n
	}
	s.stats.ReusedTokens.Add(int64(n))
	return true, nil
}

// shouldWait reports whether a job is better off later: when there is no room
// for its tokens, or a running job is about to compute tokens that both have in
// common, which can be shared then.
func (s *scheduler) shouldWait(j *job, target []Token) bool {
	_, have := s.kv.find(j.sess, target, j.manifest)
	if s.kv.available() < len(target)-have {
		return true
	}
	if caps := s.info.Caps; !caps.Share || !caps.Truncate {
		return false
	}
	for _, r := range s.running {
		if r.todo() < 2 || r.paused() || r.manifest.CheckIdentity(j.manifest) != nil {
			continue
		}
		if n := commonPrefix(r.sess.tokens, target); n-have >= worthSharing && r.sess.physical() < n {
			return true
		}
	}
	return false
}

// worthSharing is the least number of tokens for whose KV a job waits.
const worthSharing = 16
