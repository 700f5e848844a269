package natslease

import (
	"errors"
	"time"
)

// term is an owner's decision: how long it owns, and what the result of a
// renewal means. It is a plain state machine: requests, results and the times
// of both go in, verdicts come out. The caller serializes.
type term struct {
	length   time.Duration // Options.Deadline
	rev      uint64        // revision of the record that is known to be ours
	nonce    string        // its nonce
	deadline time.Duration // valid before it, on the clock
	lost     error         // why the term is over; never cleared

	pending *attempt
	policy  policy
}

// attempt is one renewal: the same bytes on the same revision until its
// outcome is known.
type attempt struct {
	rec       Record
	data      []byte
	firstSent time.Duration // of the first try that may have been applied
	lastSent  time.Duration
	unknown   bool // an earlier try may have been applied, or still may be
}

// verdict says what to do after a result.
type verdict int

const (
	extended verdict = iota // the deadline moved
	adopted                 // so it did, by a write of formerly unknown outcome
	again                   // try the same bytes again
	readBack                // read the record from the leader, then resolve
	over                    // the term is over
)

// check ends the term if its deadline has passed and returns why it is over.
func (t *term) check(now time.Duration) error {
	if t.lost == nil && now >= t.deadline {
		t.end(ErrExpired)
	}
	return t.lost
}

// end ends the term; the first reason stays.
func (t *term) end(reason error) verdict {
	if t.lost == nil {
		t.lost = reason
	}
	return over
}

// begin starts a renewal, or the next try of one that is not resolved.
func (t *term) begin(now time.Duration, rec func() Record) *attempt {
	if t.pending == nil {
		r := rec()
		t.pending = &attempt{rec: r, data: r.encode()}
	}
	if !t.pending.unknown {
		t.pending.firstSent = now
	}
	t.pending.lastSent = now
	return t.pending
}

// result takes in what the store said to the write of the pending attempt.
func (t *term) result(now time.Duration, rev uint64, err error) verdict {
	if t.policy.unfenceOnLateAck && err == nil {
		t.lost = nil
		t.deadline = max(t.deadline, now+1)
	}
	// An acknowledgement after the deadline, too: somebody may own by now.
	if t.check(now) != nil {
		return over
	}
	switch {
	case err == nil:
		return t.extend(now, rev, t.pending.lastSent, extended)
	case errors.Is(err, errConflict):
		if t.pending.unknown {
			return readBack
		}
		return t.end(ErrSuperseded)
	case errors.Is(err, errNotApplied):
		return again
	case errors.Is(err, ErrBucketGone), errors.Is(err, ErrDenied), errors.Is(err, ErrBucketConfig):
		return t.end(err)
	default:
		t.pending.unknown = true
		return again
	}
}

// resolve takes in the record, read after a conflict that an earlier try of
// the pending attempt may have caused.
func (t *term) resolve(now time.Duration, s snapshot, err error) verdict {
	if t.check(now) != nil {
		return over
	}
	switch {
	case errors.Is(err, ErrBucketGone), errors.Is(err, ErrDenied), errors.Is(err, ErrBucketConfig):
		return t.end(err)
	case err != nil:
		return again
	case s.kind != readable || s.rec.Instance != t.pending.rec.Instance:
		return t.end(ErrSuperseded)
	case s.rec.Nonce == t.pending.rec.Nonce || t.policy.ignoreNonce:
		// The first try may have been the one that was applied.
		return t.extend(now, s.rev, t.pending.firstSent, adopted)
	case s.rev == t.rev && s.rec.Nonce == t.nonce:
		// Still the record before: the attempt is under way in the cluster.
		return again
	default:
		// Ours, but not what we wrote last: an older copy was restored.
		return t.end(ErrSuperseded)
	}
}

func (t *term) extend(now time.Duration, rev uint64, sent time.Duration, v verdict) verdict {
	t.rev, t.nonce, t.pending = rev, t.pending.rec.Nonce, nil
	if t.policy.deadlineFromAck {
		sent = now
	}
	// Measured from sending: a standby saw the renewal after that.
	t.deadline = sent + t.length
	if t.check(now) != nil {
		return over
	}
	return v
}
