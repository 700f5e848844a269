package plugin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxLogLine is under the 64 KiB at which hosts give up on a line, and
	// maxLogValue keeps one long value from using it up.
	maxLogLine  = 60 << 10
	maxLogValue = 8 << 10
	logTime     = "2006-01-02T15:04:05.000000Z07:00"
)

// stderr is the real one: go-plugin puts a pipe of its own, whose last lines are
// lost when the process ends, in the place of os.Stderr.
var stderr = os.Stderr

// Logger returns a logger whose lines the host takes over with their level and
// attributes. It writes to standard error, at the level that the host asks for.
func Logger() *slog.Logger {
	return newLogger(stderr, os.Getenv(EnvLogLevel))
}

func newLogger(w io.Writer, level string) *slog.Logger {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		least = slog.LevelInfo
	}
	return slog.New(lineHandler{slog.NewJSONHandler(lineWriter{w}, &slog.HandlerOptions{
		Level: least, ReplaceAttr: hostNames,
	})})
}

// hostNames gives slog's own keys the names that hosts look for.
func hostNames(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return shorten(a)
	}
	switch a.Key {
	case slog.TimeKey:
		return slog.String("@timestamp", a.Value.Time().Format(logTime))
	case slog.LevelKey:
		level, _ := a.Value.Any().(slog.Level)
		return slog.String("@level", levelName(level))
	case slog.MessageKey:
		return shorten(slog.Attr{Key: "@message", Value: a.Value})
	}
	return shorten(a)
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	}
	return "error"
}

func shorten(a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindString && len(a.Value.String()) > maxLogValue {
		return slog.String(a.Key, cut(a.Value.String(), maxLogValue))
	}
	return a
}

// cut shortens s to at most n bytes of whole UTF-8 and a note.
func cut(s string, n int) string {
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d bytes cut)", s[:n], len(s)-n)
}

// lineHandler keeps attributes from posing as the record's own keys: hosts
// take those for strings, and some panic where they are not.
type lineHandler struct{ slog.Handler }

func (h lineHandler) Handle(ctx context.Context, r slog.Record) error {
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	clean := slog.NewRecord(at, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(safeKey(a))
		return true
	})
	return h.Handler.Handle(ctx, clean)
}

func (h lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	safe := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		safe[i] = safeKey(a)
	}
	return lineHandler{h.Handler.WithAttrs(safe)}
}

func (h lineHandler) WithGroup(name string) slog.Handler {
	return lineHandler{h.Handler.WithGroup(safeKey(slog.String(name, "")).Key)}
}

func safeKey(a slog.Attr) slog.Attr {
	a.Key = strings.TrimLeft(a.Key, "@")
	switch a.Key {
	case slog.TimeKey, slog.LevelKey, slog.MessageKey:
		a.Key += "_"
	}
	return a
}

// lineWriter replaces a line that is too long by its beginning, as plain text.
type lineWriter struct{ w io.Writer }

func (l lineWriter) Write(line []byte) (int, error) {
	if len(line) <= maxLogLine {
		return l.w.Write(line)
	}
	if _, err := io.WriteString(l.w, cut(string(line), maxLogLine)+"\n"); err != nil {
		return 0, err
	}
	return len(line), nil
}
