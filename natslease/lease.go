package natslease

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Lease is one term of ownership. It renews itself until it is released or
// lost, and is never valid again after that. It is safe for concurrent use.
type Lease struct {
	m        *Manager
	instance string
	epoch    uint64
	created  time.Time // of the bucket

	ctx     context.Context
	cancel  context.CancelCauseFunc
	soon    chan struct{} // wakes the renewal loop
	stopped chan struct{} // closed when the renewal loop has ended
	turn    chan struct{} // holds a token while somebody releases

	mu     sync.Mutex
	rec    Record // as last acknowledged
	term   term
	expiry *time.Timer

	releasedBefore bool  // guarded by turn
	releaseErr     error // guarded by turn
}

func newLease(m *Manager, rec Record, t term, created time.Time) *Lease {
	l := &Lease{
		m: m, instance: rec.Instance, epoch: rec.Epoch, created: created, rec: rec, term: t,
		soon: make(chan struct{}, 1), stopped: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

func (l *Lease) start() {
	l.mu.Lock()
	l.expiry = time.AfterFunc(l.term.deadline-l.m.o.Clock(), l.expire)
	l.mu.Unlock()
	go l.keep()
}

// Context is cancelled when the lease ends, at its deadline at the latest.
// Its cause (context.Cause) is a *LostError.
func (l *Lease) Context() context.Context { return l.ctx }

// Done is closed when the lease ends, as Context().Done() is.
func (l *Lease) Done() <-chan struct{} { return l.ctx.Done() }

// Valid returns nil as long as this process owns the slot, by its own clock
// and without asking anybody; afterwards a *LostError. It costs well under a
// microsecond.
func (l *Lease) Valid() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check()
}

// check is Valid for holders of mu.
func (l *Lease) check() error {
	reason := l.term.check(l.m.o.Clock())
	if reason == nil {
		return nil
	}
	lost := &LostError{Slot: l.m.o.Slot, Instance: l.instance, Epoch: l.epoch, Reason: reason}
	l.cancel(lost) // the first cause stays
	return lost
}

// Epoch is the number of this acquisition: higher than any before it.
func (l *Lease) Epoch() uint64 { return l.epoch }

// Instance names this acquisition, and no other: <host>-<epoch>-<random>.
func (l *Lease) Instance() string { return l.instance }

// BucketCreated is when the bucket was made. Epochs of different buckets are
// comparable only as far as an EpochFile carries them over.
func (l *Lease) BucketCreated() time.Time { return l.created }

// Record is the record as it was last acknowledged by the server.
func (l *Lease) Record() Record {
	rec, _ := l.acknowledged()
	return rec
}

func (l *Lease) acknowledged() (Record, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec, l.term.rev
}

// Remaining is how long the lease is valid from now on if no further renewal
// succeeds; 0 if it has ended.
func (l *Lease) Remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.check() != nil {
		return 0
	}
	return l.term.deadline - l.m.o.Clock()
}

func (l *Lease) end(reason error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term.end(reason)
	_ = l.check() // cancels
}

// expire runs at what was the deadline when its timer was set.
func (l *Lease) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.check() == nil {
		l.expiry.Reset(l.term.deadline - l.m.o.Clock())
	}
}

// nudge has the next renewal done at once.
func (l *Lease) nudge() {
	select {
	case l.soon <- struct{}{}:
	default:
	}
}

// keep renews until the lease has ended.
func (l *Lease) keep() {
	defer close(l.stopped)
	timer := time.NewTimer(l.m.o.Renew)
	defer timer.Stop()
	for l.ctx.Err() == nil {
		select {
		case <-l.ctx.Done():
		case <-l.soon:
			timer.Reset(l.renew())
		case <-timer.C:
			timer.Reset(l.renew())
		}
	}
	l.expiry.Stop()
	l.m.obs.endOf(l.instance)
	l.tellEnd()
}

// tellEnd tells why the lease ended, unless by release: Release does that.
func (l *Lease) tellEnd() {
	lost := l.Valid()
	if errors.Is(lost, ErrReleased) {
		return
	}
	l.tell(Event{Kind: EventLost, Err: lost})
	if errors.Is(lost, ErrBucketGone) || errors.Is(lost, ErrDenied) || errors.Is(lost, ErrBucketConfig) {
		l.tell(Event{Kind: EventAlarm, Err: lost})
	}
}

func (l *Lease) tell(e Event) {
	e.Instance, e.Epoch = l.instance, l.epoch
	l.m.emit(e)
}

// renew makes one try and returns how long to wait for the next one.
func (l *Lease) renew() time.Duration {
	o, info := l.m.o, l.m.currentInfo()
	l.mu.Lock()
	if l.check() != nil {
		l.mu.Unlock()
		return o.Renew
	}
	sent := o.Clock()
	try := l.term.begin(sent, func() Record { return l.next(info) })
	rev, left := l.term.rev, l.term.deadline-sent
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(l.ctx, min(o.Try, left))
	newRev, err := l.m.st.write(ctx, try.data, rev)
	cancel()

	l.mu.Lock()
	v := l.term.result(o.Clock(), newRev, err)
	if v == readBack {
		l.mu.Unlock()
		var s snapshot
		s, err = l.readBack()
		l.mu.Lock()
		v = l.term.resolve(o.Clock(), s, err)
	}
	if v == extended || v == adopted {
		l.rec = try.rec
	}
	_ = l.check() // cancels
	l.mu.Unlock()
	return l.follow(v, sent, err)
}

// follow tells about a verdict and returns when to renew next.
func (l *Lease) follow(v verdict, sent time.Duration, err error) time.Duration {
	o, now := l.m.o, l.m.o.Clock()
	switch v {
	case extended:
		l.tell(Event{Kind: EventRenewed, Took: now - sent})
	case adopted:
		l.tell(Event{Kind: EventAdopted, Took: now - sent})
	case again:
		l.tell(Event{Kind: EventRetry, Took: now - sent, Err: err})
		return o.Renew / 10
	}
	if l.Record().Info() != l.m.currentInfo() {
		return 0 // the info changed meanwhile
	}
	return max(0, sent+o.Renew-now)
}

// next is the record of the next renewal.
func (l *Lease) next(info Info) Record {
	r := l.rec
	r.Endpoint, r.Backend, r.Version = info.Endpoint, info.Backend, info.Version
	r.Nonce = randomHex()
	return r
}

func (l *Lease) readBack() (snapshot, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.m.o.Try)
	defer cancel()
	return l.m.st.read(ctx)
}

// Release ends the lease and writes so into the record, so that the next one
// takes over at once. Call it when the work under the lease is over and what
// it drove is known to have stopped: the next owner starts right away.
//
// It returns nil when the record says so, also when called again. A lease
// that was lost before is released too if its record is still there; if
// someone else's is, Release returns the LostError. It tries until ctx ends.
func (l *Lease) Release(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return l.m.errorf("release: %w", ctx.Err())
	}
	if l.releasedBefore {
		return l.releaseErr
	}
	l.end(ErrReleased)
	select {
	case <-l.stopped:
	case <-ctx.Done():
		return l.m.errorf("release: %w", ctx.Err())
	}
	err := l.writeReleased(ctx)
	if lost := l.Valid(); errors.Is(err, ErrSuperseded) && !errors.Is(lost, ErrReleased) {
		err = lost
	}
	if err == nil || errors.Is(err, ErrLost) || errors.Is(err, ErrSuperseded) {
		l.releasedBefore, l.releaseErr = true, err
	}
	if err == nil {
		l.tell(Event{Kind: EventReleased})
	}
	return err
}

// writeReleased writes the record's last version. Renewals of unknown outcome
// may still be applied before it, so a conflict is read back and tried again
// as long as the record is this lease's.
func (l *Lease) writeReleased(ctx context.Context) error {
	rec, rev := l.acknowledged()
	rec.State, rec.Nonce = Released, randomHex()
	for {
		err := l.tryRelease(ctx, rec, &rev)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrSuperseded), errors.Is(err, ErrBucketGone), errors.Is(err, ErrDenied), errors.Is(err, ErrBucketConfig):
			return l.m.errorf("release: %w", err)
		case ctx.Err() != nil:
			return l.m.errorf("release: %w (%w)", ctx.Err(), err)
		}
		l.tell(Event{Kind: EventRetry, Err: err})
		sleep(ctx, l.m.o.Renew/10)
	}
}

func (l *Lease) tryRelease(ctx context.Context, rec Record, rev *uint64) error {
	ctx, cancel := context.WithTimeout(ctx, l.m.o.Try)
	defer cancel()
	_, err := l.m.st.write(ctx, rec.encode(), *rev)
	if !errors.Is(err, errConflict) {
		return err
	}
	s, err := l.m.st.read(ctx)
	switch {
	case err != nil:
		return err
	case s.kind != readable || s.rec.Instance != rec.Instance:
		return ErrSuperseded
	case s.rec.State == Released:
		return nil // an earlier try was applied
	}
	*rev = s.rev
	return errConflict
}
