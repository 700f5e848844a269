package natslease

import (
	"slices"
	"time"
)

// observer is a standby's decision: may the slot be taken, and if not, when.
// It is a plain state machine: what was seen and when goes in, the decision
// comes out. The caller serializes.
type observer struct {
	wait       time.Duration // this process's own Wait
	freshStore bool
	provenDead func(Record) bool

	seen    bool
	last    snapshot
	since   time.Duration // when last was seen first
	caution time.Duration // before this time nothing is taken

	goneSince time.Duration // when the bucket was first found gone; 0: it is there

	epoch   uint64        // highest epoch ever seen
	recWait time.Duration // wait of the last readable record
	ended   []string      // instances of this process whose lease has ended
}

// observe takes in what was seen at time now. It reports whether that is
// something else than before; only then the silence starts anew.
//
// Time runs from when a revision was *seen*, never from when it was written:
// its writer sent it before that, so its deadline is over before ours.
func (o *observer) observe(now time.Duration, s snapshot) (changed bool) {
	if s.created.IsZero() {
		s.created = o.last.created
	} else {
		o.goneSince = 0
	}
	if o.seen && s.rev == o.last.rev && s.kind == o.last.kind &&
		s.rec.Nonce == o.last.rec.Nonce && s.created.Equal(o.last.created) {
		return false
	}
	// An older copy of the record, or another bucket: an owner that we don't
	// see may be within its term whatever the record says.
	recreated := !o.last.created.IsZero() && !s.created.Equal(o.last.created)
	if o.seen && (s.rev < o.last.rev || recreated) {
		o.caution = now + o.silence()
	}
	o.seen, o.last, o.since = true, s, now
	if s.kind == readable {
		o.epoch = max(o.epoch, s.rec.Epoch)
		o.recWait = s.rec.Wait()
	}
	return true
}

// gone takes in that the bucket does not exist, and reports whether it may be
// made now. One that was there before is left alone for a while: somebody is
// deleting it, and nats-server 2.15 breaks a stream that is made while its
// predecessor's files are being removed (writes to it are never answered).
func (o *observer) gone(now time.Duration) (mayMake bool) {
	if o.last.created.IsZero() {
		return true
	}
	if o.goneSince == 0 {
		o.goneSince = now
	}
	return now-o.goneSince >= o.silence()
}

// hint takes in what a watch saw. Watches may be behind: what is not newer is
// ignored.
func (o *observer) hint(now time.Duration, s snapshot) (changed bool) {
	return o.seen && s.rev > o.last.rev && o.observe(now, s)
}

// endOf remembers that this process's own lease instance has ended, or never
// began: its record need not be waited out.
func (o *observer) endOf(instance string) {
	if o.ended = append(o.ended, instance); len(o.ended) > 8 {
		o.ended = o.ended[1:]
	}
}

// freeAt returns the time from which on the slot may be taken by
// compare-and-set on the last revision seen; 0 is at once.
func (o *observer) freeAt() time.Duration {
	var at time.Duration
	switch o.last.kind {
	case readable:
		if !o.abandoned(o.last.rec) {
			at = o.since + o.silence()
		}
	case absent:
		if !o.freshStore || !o.last.untouched {
			at = o.since + o.silence()
		}
	default:
		at = o.since + o.silence()
	}
	return max(at, o.caution)
}

func (o *observer) abandoned(r Record) bool {
	return r.State == Released || slices.Contains(o.ended, r.Instance) ||
		o.provenDead != nil && o.provenDead(r)
}

func (o *observer) silence() time.Duration { return max(o.wait, o.recWait) }
