package natslease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// fakeBucket is a bucket in memory whose clients see faults.
type fakeBucket struct {
	mu      sync.Mutex
	rng     *rand.Rand
	calm    bool // no more faults
	rev     uint64
	data    []byte // nil: never written
	history []version
	subs    map[chan snapshot]struct{}
	faults  map[string]int
}

type version struct {
	rev  uint64
	data []byte
}

func newFakeBucket(seed uint64) *fakeBucket {
	return &fakeBucket{rng: rand.New(rand.NewPCG(seed, 1)), subs: map[chan snapshot]struct{}{}, faults: map[string]int{}}
}

// chance is true in p of 100 cases, which it counts by name.
func (b *fakeBucket) chance(p int, name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calm || b.rng.IntN(100) >= p {
		return false
	}
	b.faults[name]++
	return true
}

func (b *fakeBucket) upTo(d time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calm {
		return 0
	}
	return time.Duration(b.rng.Int64N(int64(d)))
}

func (b *fakeBucket) apply(data []byte, rev uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if rev != b.rev {
		return 0, fmt.Errorf("%w: at %d, expected %d", errConflict, b.rev, rev)
	}
	b.set(version{b.rev + 1, data})
	return b.rev, nil
}

// set stores and announces; the caller holds mu.
func (b *fakeBucket) set(v version) {
	b.rev, b.data = v.rev, v.data
	b.history = append(b.history, v)
	for ch := range b.subs {
		select {
		case ch <- fromValue(v.rev, v.data, false):
		default: // a watch that is behind misses it
		}
	}
}

// restore puts back the version before the last one, as from an older copy
// of the store.
func (b *fakeBucket) restore() {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.history[len(b.history)-2]
	b.history = b.history[:len(b.history)-2]
	b.set(old)
}

func (b *fakeBucket) settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calm = true
}

// fakeStore is one client's view of the bucket.
type fakeStore struct {
	b      *fakeBucket
	try    time.Duration
	length time.Duration // of a term, to size pauses by
	late   sync.WaitGroup
	drop   atomic.Bool // drop the next write
}

var _ store = (*fakeStore)(nil)

func (s *fakeStore) write(ctx context.Context, data []byte, rev uint64) (uint64, error) {
	sleep(ctx, s.b.upTo(s.try/20))
	switch b := s.b; {
	case s.drop.CompareAndSwap(true, false), b.chance(4, "request dropped"):
		return s.noAnswer(ctx)
	case b.chance(4, "applied, no answer"):
		_, _ = b.apply(data, rev)
		return s.noAnswer(ctx)
	case b.chance(4, "request late"):
		// Applied whenever it arrives, whether or not somebody still waits.
		delay := b.upTo(3 * s.try)
		arrived := make(chan error, 1)
		s.late.Go(func() {
			time.Sleep(delay)
			_, err := b.apply(data, rev)
			arrived <- err
		})
		select {
		case err := <-arrived:
			return rev + 1, err
		case <-ctx.Done():
			return s.noAnswer(ctx)
		}
	case b.chance(6, "answer late"):
		got, err := b.apply(data, rev)
		sleep(ctx, b.upTo(s.try))
		return got, err
	case b.chance(2, "client paused"):
		// A stopped process: the answer is there when it wakes up.
		got, err := b.apply(data, rev)
		time.Sleep(b.upTo(s.length * 3 / 2))
		return got, err
	case b.chance(2, "refused"):
		return 0, errNotApplied
	default:
		return b.apply(data, rev)
	}
}

func (s *fakeStore) noAnswer(ctx context.Context) (uint64, error) {
	<-ctx.Done()
	return 0, fmt.Errorf("%w: %w", errUnknown, ctx.Err())
}

func (s *fakeStore) read(ctx context.Context) (snapshot, error) {
	sleep(ctx, s.b.upTo(s.try/20))
	if s.b.chance(4, "read dropped") {
		_, err := s.noAnswer(ctx)
		return snapshot{}, err
	}
	stale := s.b.chance(4, "read stale")
	s.b.mu.Lock()
	v := version{s.b.rev, s.b.data}
	if n := len(s.b.history); stale && n > 1 {
		v = s.b.history[n-2]
	}
	s.b.mu.Unlock()
	sleep(ctx, s.b.upTo(s.try/20))
	if v.data == nil {
		return snapshot{kind: absent, untouched: true}, nil
	}
	return fromValue(v.rev, v.data, false), nil
}

func (s *fakeStore) watch(ctx context.Context, put func(snapshot)) error {
	ch := make(chan snapshot, 4)
	s.b.mu.Lock()
	s.b.subs[ch] = struct{}{}
	s.b.mu.Unlock()
	defer func() {
		s.b.mu.Lock()
		defer s.b.mu.Unlock()
		delete(s.b.subs, ch)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case sn := <-ch:
			if s.b.chance(5, "watch broken") {
				return errUnknown
			}
			put(sn)
		}
	}
}

func (s *fakeStore) create(context.Context) error { return nil }
