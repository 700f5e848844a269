package natslease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What the simulation asserts about every run:
//   - no two leases are valid at the same time,
//   - a lease that was invalid once is never valid again,
//   - epochs of acquisitions grow, instances differ,
//   - when the faults stop, somebody owns within a bounded time.

// history watches all leases of one run.
type history struct {
	mu       sync.Mutex
	leases   []*Lease
	over     map[*Lease]bool
	epoch    uint64
	problems []string
}

func (h *history) acquired(l *Lease) {
	h.mu.Lock()
	if l.Epoch() <= h.epoch {
		h.problem("epoch %d after %d", l.Epoch(), h.epoch)
	}
	h.epoch = max(h.epoch, l.Epoch())
	h.leases = append(h.leases, l)
	h.mu.Unlock()
	h.check()
}

// check looks at all leases at one moment (the bubble's clock stands still).
func (h *history) check() (valid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var owners []string
	for _, l := range h.leases {
		switch ok := l.Valid() == nil; {
		case ok && h.over[l]:
			h.problem("%s is valid again", l.Instance())
		case ok:
			owners = append(owners, l.Instance())
		default:
			h.over[l] = true
		}
	}
	if len(owners) > 1 {
		h.problem("overlap: %s", strings.Join(owners, " and "))
	}
	return len(owners)
}

// problem notes one; the caller holds mu.
func (h *history) problem(format string, args ...any) {
	if len(h.problems) < 3 {
		h.problems = append(h.problems, fmt.Sprintf(format, args...))
	}
}

// simulate runs three nodes over a faulty bucket for a simulated minute.
func simulate(t *testing.T, seed uint64, p policy) (problems []string, leases int, faults map[string]int) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 2))
		wait := time.Duration(500+rng.IntN(4000)) * time.Millisecond
		// Renew and Try anywhere within what is allowed.
		deadline := wait / 4 * 3
		renew := deadline/10 + time.Duration(rng.Int64N(int64(deadline*7/10)))
		try := max(time.Millisecond, time.Duration(rng.Int64N(int64(deadline-renew))))

		b := newFakeBucket(seed)
		h := &history{over: map[*Lease]bool{}}
		ctx, cancel := context.WithCancel(t.Context())
		var nodes sync.WaitGroup
		for i := range 3 {
			n := &simNode{
				b: b, h: h, rng: rand.New(rand.NewPCG(seed, uint64(10+i))),
				opts: Options{
					Slot: "s", Host: fmt.Sprint("node", i), policy: p, Clock: skewed(rng.Float64()*0.1 + 0.95),
					Wait: wait, Deadline: deadline, Renew: renew, Try: try,
					Logger: slog.New(slog.DiscardHandler),
				},
			}
			nodes.Go(func() { n.run(ctx, t) })
		}
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			h.check()
		}
		b.settle()
		// All may have fallen silent just now: one wait, and slack for tries.
		owned := false
		for end := time.Now().Add(4*wait + time.Second); !owned && time.Now().Before(end); {
			time.Sleep(wait / 50)
			owned = h.check() == 1
		}
		if !owned {
			h.problems = append(h.problems, "nobody owns after the faults have stopped")
		}
		cancel()
		nodes.Wait()
		problems, leases, faults = h.problems, len(h.leases), b.faults
	})
	return problems, leases, faults
}

// skewed is a clock that runs at another rate than the others'.
func skewed(rate float64) Clock {
	start := time.Now()
	return func() time.Duration { return time.Hour + time.Duration(float64(time.Since(start))*rate) }
}

// simNode is a process that acquires, owns for a while, and ends its lease in
// one of several ways, again and again.
type simNode struct {
	b    *fakeBucket
	h    *history
	rng  *rand.Rand
	opts Options
}

func (n *simNode) run(ctx context.Context, t *testing.T) {
	st := &fakeStore{b: n.b, try: n.opts.Try, length: n.opts.Deadline}
	defer st.late.Wait()
	for ctx.Err() == nil {
		o, err := n.opts.withDefaults()
		if err != nil {
			t.Error(err)
			return
		}
		m, err := newManager(st, o)
		if err != nil {
			t.Error(err)
			return
		}
		for terms := 1 + n.rng.IntN(3); terms > 0 && ctx.Err() == nil; terms-- {
			n.term(ctx, m)
		}
		m.Close() // as a crash would, if a lease is held
		sleep(ctx, time.Duration(n.rng.Int64N(int64(n.opts.Wait))))
	}
}

func (n *simNode) term(ctx context.Context, m *Manager) {
	l, err := m.Acquire(ctx)
	if err != nil {
		return // ctx has ended
	}
	n.h.acquired(l)
	timer := time.NewTimer(time.Duration(n.rng.Int64N(int64(6 * n.opts.Wait))))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-l.Done():
	case <-timer.C:
		if n.rng.IntN(2) == 0 {
			rctx, cancel := context.WithTimeout(ctx, n.opts.Wait)
			defer cancel()
			_ = l.Release(rctx)
		}
	}
}

const simSeeds = 300

func TestSimulatedFaults(t *testing.T) {
	total, terms := map[string]int{}, 0
	for seed := range uint64(simSeeds) {
		problems, leases, faults := simulate(t, seed, policy{})
		for _, p := range problems {
			t.Errorf("seed %d: %s", seed, p)
		}
		for name, n := range faults {
			total[name] += n
		}
		terms += leases
	}
	t.Logf("%d seeds, %d leases, faults: %v", simSeeds, terms, total)
	for _, name := range []string{"request dropped", "applied, no answer", "request late", "answer late",
		"client paused", "refused", "read dropped", "read stale", "watch broken"} {
		if total[name] == 0 {
			t.Errorf("fault %q was never made", name)
		}
	}
}

// The simulation finds each of these mistakes, so it would find others.
func TestSimulationCatchesMutants(t *testing.T) {
	for name, p := range map[string]policy{
		"deadline from the acknowledgement's time": {deadlineFromAck: true},
		"a late acknowledgement revives":           {unfenceOnLateAck: true},
		"standbys do not wait":                     {noWait: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4 * simSeeds) {
				if problems, _, _ := simulate(t, seed, p); len(problems) > 0 {
					t.Logf("caught by seed %d: %s", seed, problems[0])
					return
				}
			}
			t.Errorf("not caught by %d seeds", 4*simSeeds)
		})
	}
}

// An older copy of the store is put back right after a renewal, and the next
// renewal's fate is unknown. The record that the owner then reads is of its
// own instance, but not the one that it wrote last: the standby's clock has
// run since the copy was put back, so the owner must not count on it.
func TestRestoredCopyIsNotAdopted(t *testing.T) {
	for _, c := range []struct {
		name    string
		policy  policy
		overlap bool
	}{
		{"protocol", policy{}, false},
		{"mutant: any record of the instance is adopted", policy{ignoreNonce: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newFakeBucket(1)
				b.settle()
				h := &history{over: map[*Lease]bool{}}
				node := func(host string, fresh bool) (*Manager, *fakeStore) {
					o, err := Options{
						Slot: "s", Host: host, policy: c.policy, Clock: skewed(1), FreshStore: fresh,
						Wait: 4 * time.Second, Renew: 2300 * time.Millisecond, Try: 400 * time.Millisecond,
						Logger: slog.New(slog.DiscardHandler),
					}.withDefaults()
					must(t, err)
					st := &fakeStore{b: b, try: o.Try, length: o.Deadline}
					m, err := newManager(st, o)
					must(t, err)
					return m, st
				}
				a, ast := node("a", true)
				la, err := a.Acquire(t.Context())
				must(t, err)
				h.acquired(la)
				standby, _ := node("b", false)
				done := make(chan struct{})
				go func() {
					defer close(done)
					lb, err := standby.Acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					h.acquired(lb)
				}()
				time.Sleep(2350 * time.Millisecond) // renewed at 2.3 s
				b.restore()
				ast.drop.Store(true)
				<-done
				if overlap := len(h.problems) > 0; overlap != c.overlap {
					t.Errorf("problems: %q", h.problems)
				}
				if err := la.Valid(); !c.overlap && !errors.Is(err, ErrSuperseded) {
					t.Errorf("the owner's lease: %v, want ErrSuperseded", err)
				}
				a.Close()
				standby.Close()
			})
		})
	}
}
