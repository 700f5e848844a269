package host

import (
	"log/slog"
	"strings"
	"time"
)

// EventKind says what happened to a plugin.
type EventKind string

// The kinds of events.
const (
	EventUp          EventKind = "up"           // a launch succeeded; no model is loaded in it
	EventExited      EventKind = "exited"       // a plugin that was up died, or was killed for not answering
	EventStartFailed EventKind = "start_failed" // a restart failed
	EventCrashLoop   EventKind = "crash_loop"   // it fails time after time; sent once, until a stable spell
	EventStopped     EventKind = "stopped"      // the host was closed
)

// Event is news of a plugin.
type Event struct {
	Kind    EventKind
	Backend string
	Path    string
	// Generation is the launch's number, see [Host.Generation].
	Generation uint64
	PID        int
	// ExitCode and Signal tell how the process ended; the code is -1 after a
	// signal, the signal ("SIGSEGV") "" without one.
	ExitCode int
	Signal   string
	// Stderr holds the plugin's last lines of standard error.
	Stderr []string
	// Err says in words what went wrong and what to do, nil when nothing did.
	Err error
	// Failures counts launches that failed or did not last, since the last
	// stable spell; the next launch comes after NextStart.
	Failures  int
	NextStart time.Duration
}

func (e Event) log(l *slog.Logger) {
	attrs := []any{"event", string(e.Kind), "generation", e.Generation}
	if e.PID != 0 {
		attrs = append(attrs, "plugin_pid", e.PID)
	}
	switch e.Kind {
	case EventUp, EventStopped:
		l.Info("backend "+string(e.Kind), attrs...)
	default:
		attrs = append(attrs, "error", e.Err, "failures", e.Failures, "next_start", e.NextStart)
		l.Error("backend "+strings.ReplaceAll(string(e.Kind), "_", " "), attrs...)
	}
}
