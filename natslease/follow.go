package natslease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// pause between tries that fail at once.
const pause = 100 * time.Millisecond

// follower feeds an observer: from the leader every so often, and from a
// watch in between.
type follower struct {
	st    store
	clock Clock
	every time.Duration // between reads
	try   time.Duration // bounds one read
	make  bool          // make the bucket if there is none

	hints chan snapshot
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// start begins to watch; close ends it.
func (f *follower) start(ctx context.Context) {
	ctx, f.stop = context.WithCancel(ctx)
	f.hints = make(chan snapshot, 1)
	f.done.Go(func() {
		for ctx.Err() == nil {
			err := f.st.watch(ctx, f.hint)
			if !errors.Is(err, errReconnected) {
				sleep(ctx, pause)
			}
		}
	})
}

func (f *follower) close() {
	f.stop()
	f.done.Wait()
}

// hint keeps the latest only; the watch's goroutine is its one caller.
func (f *follower) hint(s snapshot) {
	select {
	case <-f.hints:
	default:
	}
	f.hints <- s
}

// read asks the leader and tells the observer. Time is taken after the
// answer: that is when the record was seen.
func (f *follower) read(ctx context.Context, obs *lockedObserver) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.try)
	defer cancel()
	s, err := f.st.read(ctx)
	if errors.Is(err, ErrBucketGone) {
		if !f.make || !obs.gone(f.clock()) {
			return obs.observe(f.clock(), snapshot{kind: absent}), nil
		}
		if err = f.st.create(ctx); err == nil {
			s, err = f.st.read(ctx)
		}
	}
	if err != nil {
		return false, err
	}
	return obs.observe(f.clock(), s), nil
}

// wait waits for a hint, which it tells the observer, or for d.
func (f *follower) wait(ctx context.Context, obs *lockedObserver, d time.Duration) (changed bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case s := <-f.hints:
		return obs.hint(f.clock(), s)
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// lockedObserver is an observer that several goroutines may look at.
type lockedObserver struct {
	mu sync.Mutex
	o  observer
}

func (l *lockedObserver) observe(now time.Duration, s snapshot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.observe(now, s)
}

func (l *lockedObserver) gone(now time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.gone(now)
}

func (l *lockedObserver) hint(now time.Duration, s snapshot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.hint(now, s)
}

func (l *lockedObserver) endOf(instance string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.o.endOf(instance)
}

// look returns what was seen last and when the slot is free for taking.
func (l *lockedObserver) look() (last snapshot, freeAt time.Duration, epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.last, l.o.freeAt(), l.o.epoch
}

func (l *lockedObserver) observation(now time.Duration) Observation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.observation(now)
}

// Observation is what is known about a slot.
type Observation struct {
	// Seen is false as long as nothing is known.
	Seen bool
	// Record is the slot's record; zero where there is no readable one.
	Record Record
	// Revision is the record's in the bucket. A bucket that was made anew
	// starts again at 1.
	Revision uint64
	// Silent is for how long the record has been seen unchanged.
	Silent time.Duration
	// Stale: silent for so long that its owner, if it has one, has stopped.
	Stale bool
}

// Owner returns the record if it names an owner that is not known to have
// stopped.
func (o Observation) Owner() (Record, bool) {
	return o.Record, o.Seen && o.Record.State == Owned && !o.Stale
}

func (o *observer) observation(now time.Duration) Observation {
	if !o.seen {
		return Observation{}
	}
	silent := now - o.since
	return Observation{
		Seen: true, Record: o.last.rec, Revision: o.last.rev,
		Silent: silent, Stale: silent >= o.silence(),
	}
}

// FollowOptions are those of [Follow]. Only Slot is required.
type FollowOptions struct {
	// Bucket is DefaultBucket if empty.
	Bucket string
	Slot   string
	// Wait is how long a record must be silent to be called stale, if it does
	// not ask for more itself; DefaultWait if zero. A quarter of it passes
	// between two reads.
	Wait time.Duration
	// Clock is [BootTime] if nil.
	Clock Clock
}

// Follow sends what becomes known about a slot: first what is there, then
// every change, and once when an owner's record has become stale. Renewals
// that change nothing but nonce and revision are not sent. Of several
// observations that wait to be received only the latest is kept. The channel
// is closed when ctx has ended and everything that Follow started is gone.
func Follow(ctx context.Context, nc *nats.Conn, opts FollowOptions) (<-chan Observation, error) {
	o, err := Options{Bucket: opts.Bucket, Slot: opts.Slot, Clock: opts.Clock, Wait: opts.Wait, Host: "reader"}.withDefaults()
	if err != nil {
		return nil, err
	}
	st, err := newNATSStore(nc, o.Bucket, o.Slot, o.Replicas, 4*o.Try)
	if err != nil {
		return nil, err
	}
	return follow(ctx, st, o), nil
}

func follow(ctx context.Context, st store, o Options) <-chan Observation {
	f := &follower{st: st, clock: o.Clock, every: o.Wait / 4, try: o.Try}
	obs := &lockedObserver{o: observer{wait: o.Wait}}
	out := make(chan Observation, 1)
	f.start(ctx)
	go func() {
		defer close(out)
		defer f.close()
		var sent Observation
		for ctx.Err() == nil {
			_, _ = f.read(ctx, obs) // while it fails, silence grows
			for ctx.Err() == nil {
				now := obs.observation(o.Clock())
				if now.differs(sent) {
					sent = now
					select { // the latest replaces one that nobody has taken
					case <-out:
					default:
					}
					out <- now
				}
				if !f.wait(ctx, obs, f.every) {
					break
				}
			}
		}
	}()
	return out
}

// differs ignores what every renewal changes.
func (o Observation) differs(p Observation) bool {
	return o.Seen != p.Seen || o.Stale != p.Stale || !sameTerm(o.Record, p.Record)
}

// sameTerm: the records differ at most by a renewal.
func sameTerm(a, b Record) bool {
	a.Nonce = b.Nonce
	return a == b
}

// Resolve reads the slot's record from the stream's leader, once. It returns
// ErrNoOwner where the slot was released, or never owned, or its record is
// gone, and ErrBadRecord where something else lies in its place.
//
// The owner that the record names may have died or lost the slot since it
// wrote it. A client finds out when it dials: nobody answers at the endpoint,
// or whoever answers is another instance and refuses the call's fence. It then
// resolves again, until the record names another instance; [Follow] tells it
// when. Use a ctx with a deadline.
func Resolve(ctx context.Context, nc *nats.Conn, bucket, slot string) (Record, error) {
	o, err := Options{Bucket: bucket, Slot: slot, Host: "reader"}.withDefaults()
	if err != nil {
		return Record{}, err
	}
	st, err := newNATSStore(nc, o.Bucket, o.Slot, o.Replicas, o.Try)
	if err != nil {
		return Record{}, err
	}
	return resolve(ctx, st, o.Slot)
}

func resolve(ctx context.Context, st store, slot string) (Record, error) {
	s, err := st.read(ctx)
	switch {
	case errors.Is(err, ErrBucketGone):
		return Record{}, fmt.Errorf("natslease: slot %s: %w: %w", slot, ErrNoOwner, err)
	case err != nil:
		return Record{}, fmt.Errorf("natslease: slot %s: read its record: %w", slot, err)
	case s.kind == unreadable:
		return Record{}, fmt.Errorf("natslease: slot %s: %w", slot, s.err)
	case s.kind != readable:
		return Record{}, fmt.Errorf("natslease: slot %s: %w: it has no record", slot, ErrNoOwner)
	case s.rec.State != Owned:
		return Record{}, fmt.Errorf("natslease: slot %s: %w: %s released it", slot, ErrNoOwner, s.rec.Instance)
	}
	return s.rec, nil
}
