package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

const (
	// maxLine is how much of one line is kept; the rest is skipped.
	maxLine = 16 << 10
	// tailLines and tailLineBytes bound what is kept for reports of a death.
	tailLines     = 20
	tailLineBytes = 500
)

// eachLine calls fn with every line of r, without its end and cut at maxLine,
// until r ends. Lines may be of any length and hold any bytes.
func eachLine(r io.Reader, fn func(line string)) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		text := cleanLine(line)
		if errors.Is(err, bufio.ErrBufferFull) {
			skipped := 0
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = in.ReadSlice('\n')
				skipped += len(line)
			}
			text = fmt.Sprintf("%s… (%d bytes cut)", text, skipped)
		}
		if text != "" {
			fn(text)
		}
		if err != nil {
			return
		}
	}
}

// cleanLine is a line without its end, as valid UTF-8.
func cleanLine(line []byte) string {
	return strings.ToValidUTF8(string(bytes.TrimRight(line, "\r\n")), "�")
}

// pluginLog turns a plugin's lines into records of the host's log.
type pluginLog struct {
	log     *slog.Logger
	tail    *tail
	inPanic bool
}

// line logs one line of standard error.
func (p *pluginLog) line(text string) {
	level, message, attrs := parseLine(text)
	if attrs == nil && !p.inPanic && startsPanic(text) {
		p.inPanic = true // the stack below it has no marks of its own
		p.tail.pin()
	}
	if p.inPanic {
		level = slog.LevelError
	}
	p.tail.add(message)
	p.log.LogAttrs(context.Background(), level, message, attrs...)
}

// parseLine reads a line of hclog's JSON; anything else is a message at debug
// level. Nothing about the line's types is trusted.
func parseLine(text string) (slog.Level, string, []slog.Attr) {
	if !strings.HasPrefix(text, "{") {
		return slog.LevelDebug, text, nil
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return slog.LevelDebug, text, nil
	}
	message, ok := fields["@message"].(string)
	if !ok {
		return slog.LevelDebug, text, nil
	}
	name, _ := fields["@level"].(string)
	attrs := []slog.Attr{}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !strings.HasPrefix(key, "@") {
			attrs = append(attrs, slog.Any(key, fields[key]))
		}
	}
	return parseLevel(name), message, attrs
}

func parseLevel(name string) slog.Level {
	switch strings.ToLower(name) {
	case "info":
		return slog.LevelInfo
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal":
		return slog.LevelError
	}
	return slog.LevelDebug
}

// logLevel is the least level that log takes, by the plugins' name for it.
func logLevel(log *slog.Logger) string {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), l) {
			return strings.ToLower(l.String())
		}
	}
	return "error"
}

// startsPanic tells whether line is the first of Go's report of a crash.
func startsPanic(line string) bool {
	for _, prefix := range []string{"panic: ", "fatal error: ", "SIGSEGV: ", "SIGABRT: ", "SIGILL: ", "SIGBUS: ", "SIGFPE: "} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}

// tail keeps the last lines, or the first ones after pin. It is safe for
// concurrent use.
type tail struct {
	mu     sync.Mutex
	lines  []string
	pinned bool
}

// pin starts afresh and from now on keeps the first lines: of a crash the
// reason comes first, then pages of stack.
func (t *tail) pin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines, t.pinned = nil, true
}

func (t *tail) add(line string) {
	if len(line) > tailLineBytes {
		line = strings.ToValidUTF8(line[:tailLineBytes], "") + "…"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == tailLines {
		if t.pinned {
			return
		}
		t.lines = slices.Delete(t.lines, 0, 1)
	}
	t.lines = append(t.lines, line)
}

func (t *tail) last() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

// words is what an error says of them.
func (t *tail) words() string {
	const show = 4
	lines := t.last()
	switch {
	case len(lines) == 0:
		return "; it printed nothing on standard error"
	case len(lines) > show && t.isPinned():
		lines = lines[:show]
	case len(lines) > show:
		lines = lines[len(lines)-show:]
	}
	return "; its last words: " + strings.Join(lines, " | ")
}

func (t *tail) isPinned() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pinned
}

// lineLogger is an io.Writer that logs each whole line written to it. Writes
// must not overlap.
type lineLogger struct {
	buf bytes.Buffer
	fn  func(line string)
}

func (w *lineLogger) Write(data []byte) (int, error) {
	for part := range bytes.SplitAfterSeq(data, []byte{'\n'}) {
		if room := maxLine - w.buf.Len(); room > 0 {
			w.buf.Write(part[:min(room, len(part))])
		}
		if bytes.HasSuffix(part, []byte{'\n'}) {
			if text := cleanLine(w.buf.Bytes()); text != "" {
				w.fn(text)
			}
			w.buf.Reset()
		}
	}
	return len(data), nil
}
