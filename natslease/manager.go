package natslease

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Manager acquires the leases of one slot for one process, one after the
// other. It is safe for concurrent use.
type Manager struct {
	o      Options
	st     store
	bootID string
	epochs epochFile
	obs    *lockedObserver
	turn   chan struct{} // holds a token while somebody acquires
	told   snapshot      // what was told last; guarded by turn

	life context.Context // ends with Close
	kill context.CancelFunc

	mu    sync.Mutex
	info  Info
	epoch uint64 // highest used or persisted by this node
	lease *Lease // the latest
}

// New makes a manager over a connection, best made with [ConnectOptions]. It
// sends nothing yet. Its errors are *OptionError and ErrEpochFile. The
// connection stays the caller's and must outlive the manager.
func New(nc *nats.Conn, opts Options) (*Manager, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	st, err := newNATSStore(nc, o.Bucket, o.Slot, o.Replicas, 4*o.Try)
	if err != nil {
		return nil, err
	}
	return newManager(st, o)
}

func newManager(st store, o Options) (*Manager, error) {
	epochs := epochFile(o.EpochFile)
	epoch, err := epochs.load()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		o: o, st: st, bootID: bootID(), epochs: epochs, epoch: epoch, info: o.Info,
		obs:  &lockedObserver{o: observer{wait: o.Wait, freshStore: o.FreshStore, provenDead: o.ProvenDead}},
		turn: make(chan struct{}, 1),
	}
	m.life, m.kill = context.WithCancel(context.Background())
	return m, nil
}

// Acquire follows the slot as a standby until it is free and then takes it.
// It returns when the slot is owned, ctx has ended, the manager is closed
// (ErrClosed), this manager already owns it (ErrAlreadyHeld), or an operator
// has to act first: ErrDenied, ErrBucketConfig, ErrEpochFile. While the server
// is away it keeps trying; the error of an ended ctx tells the last problem.
// ctx does not bound the lease.
func (m *Manager) Acquire(ctx context.Context) (*Lease, error) {
	return m.acquire(ctx, false)
}

// TryAcquire takes the slot if it is free now, and returns a *HeldError
// (ErrHeld) if it is not. What this manager saw before counts: a slot that is
// tried again after Wait and did not change is free.
func (m *Manager) TryAcquire(ctx context.Context) (*Lease, error) {
	return m.acquire(ctx, true)
}

func (m *Manager) acquire(ctx context.Context, once bool) (*Lease, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return nil, m.errorf("acquire: %w", ctx.Err())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.life, cancel)()
	f := &follower{st: m.st, clock: m.o.Clock, every: m.o.Wait / 4, try: m.o.Try, make: true}
	if !once {
		f.start(ctx)
		defer f.close()
	}
	var last error // the last problem
	for {
		if err := m.mayAcquire(); err != nil {
			return nil, m.errorf("acquire: %w", err)
		}
		if ctx.Err() != nil {
			return nil, m.ended(ctx.Err(), last)
		}
		changed, err := f.read(ctx, m.obs)
		if changed {
			m.noticed()
		}
		var l *Lease
		if err == nil {
			l, err = m.take(ctx)
		}
		switch {
		case l != nil:
			return l, nil
		case err == nil:
			if once {
				return nil, m.held()
			}
			m.stand(ctx, f)
			continue
		case errors.Is(err, ErrDenied), errors.Is(err, ErrBucketConfig), errors.Is(err, ErrEpochFile):
			m.emit(Event{Kind: EventAlarm, Err: err})
			return nil, m.errorf("acquire: %w", err)
		}
		if last = err; once && !errors.Is(err, errConflict) {
			return nil, m.errorf("acquire: %w", err)
		}
		m.emit(Event{Kind: EventRetry, Err: err})
		if errors.Is(err, errConflict) {
			sleep(ctx, pause/20)
		} else {
			sleep(ctx, pause)
		}
	}
}

// stand waits until the slot may be free or has to be read anew.
func (m *Manager) stand(ctx context.Context, f *follower) {
	until := m.o.Clock() + f.every
	for ctx.Err() == nil && m.mayAcquire() == nil {
		_, free, _ := m.obs.look()
		now := m.o.Clock()
		if free <= now || until <= now {
			return
		}
		if f.wait(ctx, m.obs, min(until, free)-now) {
			m.noticed()
		}
	}
}

// take tries to take the slot at the revision seen last. It returns neither
// lease nor error if the slot is not free yet.
func (m *Manager) take(ctx context.Context) (*Lease, error) {
	seen, free, epoch := m.obs.look()
	if m.o.Clock() < free && !m.o.policy.noWait {
		return nil, nil
	}
	rec, err := m.newRecord(epoch)
	if err != nil {
		return nil, err
	}
	if err := m.epochs.save(rec.Epoch); err != nil {
		return nil, err
	}
	try, cancel := context.WithTimeout(ctx, m.o.Try)
	defer cancel()
	sent := m.o.Clock()
	rev, err := m.st.write(try, rec.encode(), seen.rev)
	if err != nil {
		// Even one of unknown outcome is never served: if it turns out to have
		// been written, the next take replaces it.
		if !errors.Is(err, errConflict) {
			m.obs.endOf(rec.Instance)
		}
		return nil, err
	}
	t := term{length: m.o.Deadline, rev: rev, nonce: rec.Nonce, deadline: sent + m.o.Deadline, policy: m.o.policy}
	if err := t.check(m.o.Clock()); err != nil {
		m.obs.endOf(rec.Instance)
		return nil, err
	}
	return m.begin(rec, t, seen.created, m.o.Clock()-sent), nil
}

// begin makes the lease and starts to renew it.
func (m *Manager) begin(rec Record, t term, created time.Time, took time.Duration) *Lease {
	l := newLease(m, rec, t, created)
	m.mu.Lock()
	m.lease = l
	m.mu.Unlock()
	m.emit(Event{Kind: EventAcquired, Instance: rec.Instance, Epoch: rec.Epoch, Record: rec, Took: took})
	l.start()
	return l
}

// newRecord is the record of a new acquisition. Its epoch is above every one
// that is known, and is not used again even if the acquisition fails.
func (m *Manager) newRecord(seen uint64) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	epoch := max(seen, m.epoch) + 1
	if epoch > MaxEpoch {
		return Record{}, fmt.Errorf("%w: epoch %d is the last one: have an operator purge %s in bucket %s, "+
			"and remove the epoch files", ErrBucketConfig, uint64(MaxEpoch), key(m.o.Slot), m.o.Bucket)
	}
	m.epoch = epoch
	return Record{
		State: Owned, Epoch: epoch, Instance: newInstance(m.o.Host, epoch),
		Host: m.o.Host, BootID: m.bootID, PID: os.Getpid(), WaitMS: m.o.Wait.Milliseconds(),
		Endpoint: m.info.Endpoint, Backend: m.info.Backend, Version: m.info.Version,
		Nonce: randomHex(),
	}, nil
}

// SetInfo changes what the record tells clients. A lease that is held writes
// it at once, in a renewal; [Manager.Current] and EventRenewed show when it is
// done.
func (m *Manager) SetInfo(info Info) error {
	if err := info.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.info = info
	if m.lease != nil {
		m.lease.nudge()
	}
	return nil
}

func (m *Manager) currentInfo() Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.info
}

// Current returns what this manager knows about the slot: its own record
// while it owns it, else what it saw last as a standby. It sends nothing.
func (m *Manager) Current() Observation {
	m.mu.Lock()
	l := m.lease
	m.mu.Unlock()
	if l != nil && l.Valid() == nil {
		rec, rev := l.acknowledged()
		return Observation{Seen: true, Record: rec, Revision: rev}
	}
	return m.obs.observation(m.o.Clock())
}

// Resolve reads the slot's record, once; see the function [Resolve].
func (m *Manager) Resolve(ctx context.Context) (Record, error) {
	return resolve(ctx, m.st, m.o.Slot)
}

// Follow sends what becomes known about the slot; see the function [Follow].
func (m *Manager) Follow(ctx context.Context) <-chan Observation {
	return follow(ctx, m.st, m.o)
}

// Close ends a held lease without releasing it, as a crash would (others wait
// out its silence), and makes Acquire fail with ErrClosed. It returns when
// nothing of the manager runs any more, at the latest about Try from then. To
// hand over at once, release the lease first.
func (m *Manager) Close() {
	m.kill()
	m.turn <- struct{}{} // nobody acquires any more
	defer func() { <-m.turn }()
	m.mu.Lock()
	l := m.lease
	m.mu.Unlock()
	if l != nil {
		l.end(ErrClosed)
		<-l.stopped
	}
}

func (m *Manager) mayAcquire() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.life.Err() != nil:
		return ErrClosed
	case m.lease != nil && m.lease.Valid() == nil:
		return ErrAlreadyHeld
	}
	return nil
}

// noticed tells about a record that was not seen before and is more than a
// renewal.
func (m *Manager) noticed() {
	seen, _, _ := m.obs.look()
	if m.told.rev != 0 && seen.kind == m.told.kind && sameTerm(seen.rec, m.told.rec) {
		return
	}
	m.told = seen
	switch seen.kind {
	case deleted:
		m.emit(Event{Kind: EventAlarm, Err: m.errorf("its record was deleted or purged")})
	case unreadable:
		m.emit(Event{Kind: EventAlarm, Err: m.errorf("%w", seen.err)})
	default:
		m.emit(Event{Kind: EventObserved, Record: seen.rec})
	}
}

func (m *Manager) held() error {
	seen, free, _ := m.obs.look()
	return &HeldError{Slot: m.o.Slot, Owner: seen.rec, RetryAfter: max(0, free-m.o.Clock())}
}

func (m *Manager) ended(reason, last error) error {
	if last == nil {
		last = m.held()
	}
	return m.errorf("acquire: %w (%w)", reason, last)
}

func (m *Manager) errorf(format string, args ...any) error {
	return fmt.Errorf("natslease: slot %s: "+format, append([]any{m.o.Slot}, args...)...)
}

func (m *Manager) emit(e Event) {
	e.Slot = m.o.Slot
	e.log(m.o.Logger)
	m.o.OnEvent(e)
}
