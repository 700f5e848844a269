package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// serverLog passes the server's log on to slog. Nothing that it logs holds
// the password, whatever the server says.
type serverLog struct {
	log    *slog.Logger
	secret string
	fatal  chan error // the first fatal error
}

func (l *serverLog) write(level slog.Level, format string, args ...any) string {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), l.secret, "[redacted]")
	l.log.Log(context.Background(), level, "nats-server: "+text)
	return text
}

// Noticef is for debugging here: the server tells a page at every start.
func (l *serverLog) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v...) }

func (l *serverLog) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	if strings.HasPrefix(format, "Plaintext passwords detected") {
		level = slog.LevelDebug // random, new at every start, in memory only
	}
	l.write(level, format, v...)
}

func (l *serverLog) Errorf(format string, v ...any) { l.write(slog.LevelError, format, v...) }

// Fatalf keeps the process alive, unlike the server's own logger: Start
// returns the error.
func (l *serverLog) Fatalf(format string, v ...any) {
	text := l.write(slog.LevelError, format, v...)
	select {
	case l.fatal <- errors.New(text):
	default:
	}
}

func (l *serverLog) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v...) }

// Tracef would show what clients send; tracing is never switched on.
func (l *serverLog) Tracef(string, ...any) {}
