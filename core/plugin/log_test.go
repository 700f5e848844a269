package plugin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestLoggerSpeaksHclog checks that every line has the three keys as strings,
// whatever an author logs: hosts panic on others.
func TestLoggerSpeaksHclog(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, "debug")
	log.Debug("plain", "n", 1)
	log.Warn("posing", "@message", 5, "msg", []int{1}, "level", 3, "time", "never")
	log.With("@level", 9).WithGroup("@message").Error("grouped", "k", "v")

	var got []map[string]any
	for line := range strings.Lines(out.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if _, err := time.Parse(logTime, entry["@timestamp"].(string)); err != nil {
			t.Error(err)
		}
		got = append(got, entry)
	}
	want := [][2]string{{"debug", "plain"}, {"warn", "posing"}, {"error", "grouped"}}
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
	for i, w := range want {
		if got[i]["@level"] != w[0] || got[i]["@message"] != w[1] {
			t.Errorf("line %d: %v, want level %q and message %q", i, got[i], w[0], w[1])
		}
	}
	if got[1]["message"] != float64(5) {
		t.Errorf("the attribute @message was lost: %v", got[1])
	}
}

func TestLoggerLevel(t *testing.T) {
	for level, want := range map[string]bool{"debug": true, "info": true, "": true, "warn": false, "error": false} {
		if got := newLogger(&bytes.Buffer{}, level).Enabled(t.Context(), slog.LevelInfo); got != want {
			t.Errorf("level %q: info enabled = %t, want %t", level, got, want)
		}
	}
}

func TestLoggerLongLines(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, "")
	log.Info("one long value", "value", strings.Repeat("é", 1<<20))
	var entry map[string]any
	if err := json.Unmarshal(out.Bytes(), &entry); err != nil {
		t.Errorf("a line with one long value is not JSON any more: %v", err)
	}
	out.Reset()

	var many []any
	for range 100 {
		many = append(many, "value", strings.Repeat("x", 4<<10))
	}
	log.Info("many values", many...)
	if n := out.Len(); n > 64<<10 || n < maxLogLine || out.Bytes()[n-1] != '\n' {
		t.Errorf("a line of %d bytes, want one cut to about %d", n, maxLogLine)
	}
}
