package natslease

import (
	"context"
	"log/slog"
	"time"
)

// EventKind says what happened.
type EventKind string

// The events of a manager and its leases.
const (
	// EventObserved: another record was seen; Record is it, zero where the
	// slot has no readable one.
	EventObserved EventKind = "observed"
	// EventAcquired: a lease was acquired.
	EventAcquired EventKind = "acquired"
	// EventRenewed: a renewal was acknowledged, Took after it was sent.
	EventRenewed EventKind = "renewed"
	// EventAdopted: a renewal of unknown outcome proved to have been applied.
	EventAdopted EventKind = "adopted"
	// EventRetry: a request failed with Err and will be tried again.
	EventRetry EventKind = "retry"
	// EventLost: a lease ended other than by release; Err is its LostError.
	EventLost EventKind = "lost"
	// EventReleased: a lease was released and its record says so.
	EventReleased EventKind = "released"
	// EventAlarm: something that an operator should look at, in Err: the
	// bucket is gone, recreated or misconfigured, a permission is missing, the
	// record was purged or is unreadable.
	EventAlarm EventKind = "alarm"
)

// Event is passed to Options.OnEvent. Instance and Epoch are those of this
// process's lease, zero where there is none.
type Event struct {
	Kind     EventKind
	Slot     string
	Instance string
	Epoch    uint64
	Record   Record
	Took     time.Duration
	Err      error
}

func (e Event) log(l *slog.Logger) {
	level := slog.LevelInfo
	switch e.Kind {
	case EventRenewed, EventRetry:
		level = slog.LevelDebug
	case EventLost, EventAlarm:
		level = slog.LevelWarn
	}
	if !l.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.String("slot", e.Slot)}
	if e.Instance != "" {
		attrs = append(attrs, slog.String("instance", e.Instance), slog.Uint64("epoch", e.Epoch))
	}
	if e.Kind == EventObserved {
		attrs = append(attrs, slog.String("state", string(e.Record.State)),
			slog.String("owner", e.Record.Instance), slog.Uint64("owner_epoch", e.Record.Epoch))
	}
	if e.Took != 0 {
		attrs = append(attrs, slog.Duration("took", e.Took))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	l.LogAttrs(context.Background(), level, "lease "+string(e.Kind), attrs...)
}
