// Package host runs a backend's plugin for the daemon: it finds the binary,
// verifies and launches it, watches it, restarts it, and gives the rest of the
// daemon one transport.Service that survives all of that.
package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	wire "modeld/core/grpc"
	"modeld/core/transport"
)

// Host runs one plugin. Its methods are safe for concurrent use.
//
// Sessions belong to one launch of the plugin: when it dies, decodes under way
// and later calls on them end with ErrSessionFatal, and a new session is to be
// opened. Calls on the Host wait, bounded, for the next launch. A fresh launch
// has no model loaded; Options.OnUp tells.
type Host struct {
	opts Options
	gen  atomic.Uint64

	mu      sync.Mutex
	state   state
	changed chan struct{} // closed and renewed with every change of state

	starting sync.Mutex // guards what Start sets
	dir      *runDir
	cancel   context.CancelFunc
	stopped  chan struct{} // closed when the supervisor has ended; nil before Start
}

// state is what calls need to know of the plugin.
type state struct {
	launch   *launch // nil while there is none
	err      error   // why there is none
	hopeless bool    // waiting for the next launch makes no sense
}

var (
	_ transport.Service         = (*Host)(nil)
	_ transport.ModelController = (*Host)(nil)
	_ transport.ReadyReporter   = (*Host)(nil)
)

// New makes a Host; Start starts it.
func New(opts Options) *Host {
	return &Host{
		opts:    opts.withDefaults(),
		state:   state{err: ErrClosed, hopeless: true},
		changed: make(chan struct{}),
	}
}

// Start launches the plugin and returns when it answers; ctx bounds that. An
// error, which names the file and says what to do, leaves nothing running, and
// Start may be called again. From then on the plugin is restarted whenever it
// dies, until Close.
//
// Errors: fs.ErrNotExist, fs.ErrPermission, ErrChecksum, ErrNotPlugin,
// ErrVersion, ErrStart.
func (h *Host) Start(ctx context.Context) error {
	h.starting.Lock()
	defer h.starting.Unlock()
	if h.stopped != nil {
		return errors.New("plugin host: started twice")
	}
	dir, err := newRunDir(h.opts.RunDir)
	if err != nil {
		return err
	}
	h.dir = dir
	first, err := h.start(ctx, h.gen.Add(1))
	if err != nil {
		_ = dir.remove()
		return err
	}
	running, cancel := context.WithCancel(context.Background())
	h.cancel, h.stopped = cancel, make(chan struct{})
	h.up(first)
	go h.supervise(running, first)
	return nil
}

// Close ends the plugin, by force where it does not end within
// Options.StopGrace, and waits until nothing of it is left, or ctx ends. Close
// is idempotent; a closed Host stays closed.
func (h *Host) Close(ctx context.Context) error {
	h.starting.Lock()
	cancel, stopped := h.cancel, h.stopped
	h.starting.Unlock()
	if stopped == nil {
		return nil
	}
	cancel()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("backend %s: still stopping: %w", h.opts.Backend, ctx.Err())
	}
}

// Generation counts the launches, from 1.
func (h *Host) Generation() uint64 { return h.gen.Load() }

// supervise is the only one to launch, replace and stop plugins.
func (h *Host) supervise(ctx context.Context, l *launch) {
	defer close(h.stopped)
	defer func() { _ = h.dir.remove() }()
	failures := 0
	for {
		h.watch(ctx, l)
		if ctx.Err() != nil {
			h.set(state{err: ErrClosed, hopeless: true})
			l.stop(h.opts.StopGrace, h.dir)
			h.emit(h.ended(l, EventStopped, nil))
			return
		}
		if time.Since(l.started) >= h.opts.StableAfter {
			failures = 0
		}
		failures++
		h.set(state{err: errRestarting})
		l.stop(0, h.dir)
		ev := h.ended(l, EventExited, l.deathError())
		if l = h.relaunch(ctx, ev, &failures); l == nil {
			h.set(state{err: ErrClosed, hopeless: true})
			h.emit(Event{Kind: EventStopped, Backend: h.opts.Backend})
			return
		}
		h.up(l)
	}
}

// relaunch reports the event of a failure and launches until it succeeds; nil
// means that ctx ended.
func (h *Host) relaunch(ctx context.Context, ev Event, failures *int) *launch {
	for {
		ev.Failures, ev.NextStart = *failures, h.opts.backoff(*failures)
		h.set(state{err: ev.Err, hopeless: *failures >= h.opts.CrashLoopAfter})
		h.emit(ev)
		if *failures == h.opts.CrashLoopAfter {
			loop := ev
			loop.Kind = EventCrashLoop
			loop.Err = fmt.Errorf("backend %s failed %d times in a row: %w", h.opts.Backend, *failures, ev.Err)
			h.emit(loop)
		}
		pause := time.NewTimer(ev.NextStart)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		generation := h.gen.Add(1)
		l, err := h.start(ctx, generation)
		if err == nil {
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		*failures++
		ev = Event{Kind: EventStartFailed, Backend: h.opts.Backend, Path: h.path(), Generation: generation, Err: err}
	}
}

// up announces a launch and then lets calls through to it.
func (h *Host) up(l *launch) {
	h.emit(Event{Kind: EventUp, Backend: h.opts.Backend, Path: l.path, Generation: l.generation, PID: l.proc.cmd.Process.Pid})
	h.opts.OnUp(l.generation)
	h.set(state{launch: l})
}

// watch returns when the plugin is dead or ctx has ended. A plugin that does
// not answer is killed.
func (h *Host) watch(ctx context.Context, l *launch) {
	ticker := time.NewTicker(h.opts.PingInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.proc.exited:
			return
		case <-ticker.C:
		}
		timed, cancel := context.WithTimeout(ctx, h.opts.PingTimeout)
		err := l.ping(timed)
		cancel()
		if err != nil && ctx.Err() == nil && !l.proc.gone() {
			h.opts.Logger.Warn("the backend did not answer its health check", "timeout", h.opts.PingTimeout, "err", err)
			l.proc.kill(reasonPing)
			<-l.proc.exited
		}
	}
}

// ended is the event of a launch that is over.
func (h *Host) ended(l *launch, kind EventKind, err error) Event {
	code, signal, _ := l.proc.exit()
	return Event{
		Kind: kind, Backend: h.opts.Backend, Path: l.path, Generation: l.generation, PID: l.proc.cmd.Process.Pid,
		ExitCode: code, Signal: signal, Stderr: l.tail.last(), Err: err,
	}
}

func (h *Host) emit(ev Event) {
	ev.log(h.opts.Logger)
	h.opts.OnEvent(ev)
}

var errRestarting = errors.New("it died and is being restarted")

func (h *Host) set(s state) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = s
	close(h.changed)
	h.changed = make(chan struct{})
}

// backend returns the plugin's client. While there is no plugin it waits for
// one, bounded by ctx and Options.CallWait.
func (h *Host) backend(ctx context.Context) (*wire.Client, error) {
	var timeout <-chan time.Time
	for {
		h.mu.Lock()
		s, changed := h.state, h.changed
		h.mu.Unlock()
		if s.launch != nil && !s.launch.proc.gone() {
			return s.launch.client, nil
		}
		if s.hopeless {
			return nil, h.down(s.err)
		}
		if timeout == nil {
			timer := time.NewTimer(h.opts.CallWait)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout:
			return nil, h.down(s.err)
		}
	}
}

// down is the error of a call that no plugin can take. It is an ErrModelBusy
// too, which tells clients to come back.
func (h *Host) down(reason error) error {
	if errors.Is(reason, ErrClosed) {
		return fmt.Errorf("backend %s: %w", h.opts.Backend, ErrClosed)
	}
	if reason == nil {
		reason = errRestarting
	}
	return fmt.Errorf("%w: %w: %s: %w", transport.ErrModelBusy, ErrDown, h.opts.Backend, reason)
}
