package host

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEachLine(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	in := "one\r\n\n\ntwo\n" + long + "\nbad \xff byte\nlast without end"
	var got []string
	eachLine(strings.NewReader(in), func(l string) { got = append(got, l) })
	want := []string{"one", "two", fmt.Sprintf("%s… (%d bytes cut)", long[:maxLine], 1<<20-maxLine+1), "bad � byte", "last without end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %d lines, %.60q", len(got), got)
	}
}

func TestParseLine(t *testing.T) {
	tests := []struct {
		line, message string
		level         slog.Level
		attrs         string
	}{
		{"plain", "plain", slog.LevelDebug, ""},
		{`{"@message":"m","@level":"warn","@timestamp":"x","b":1,"a":[2]}`, "m", slog.LevelWarn, "a=[2] b=1"},
		{`{"@message":"m","@level":7}`, "m", slog.LevelDebug, ""},
		{`{"@message":5,"@level":"error"}`, `{"@message":5,"@level":"error"}`, slog.LevelDebug, ""},
		{`{"other":"json"}`, `{"other":"json"}`, slog.LevelDebug, ""},
		{`{broken`, `{broken`, slog.LevelDebug, ""},
		{`[1]`, `[1]`, slog.LevelDebug, ""},
	}
	for _, tt := range tests {
		level, message, attrs := parseLine(tt.line)
		var texts []string
		for _, a := range attrs {
			texts = append(texts, a.String())
		}
		if level != tt.level || message != tt.message || strings.Join(texts, " ") != tt.attrs {
			t.Errorf("parseLine(%s) = %v, %q, %v", tt.line, level, message, texts)
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"@message":5}` + "\n" + `{"@message":"x","@level":"info"}`))
	f.Add([]byte("panic: x\n\n\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		log := pluginLog{log: slog.New(slog.DiscardHandler), tail: &tail{}}
		eachLine(bytes.NewReader(data), log.line)
		for _, l := range log.tail.last() {
			if !utf8.ValidString(l) || len(l) > tailLineBytes+4 {
				t.Fatalf("line %q", l)
			}
		}
	})
}

func TestTailKeepsTheReason(t *testing.T) {
	numbers := func(log *pluginLog, n int) {
		for i := range n {
			log.line(fmt.Sprint("line ", i))
		}
	}
	log := &pluginLog{log: slog.New(slog.DiscardHandler), tail: &tail{}}
	numbers(log, 50)
	if got := log.tail.words(); got != "; its last words: line 46 | line 47 | line 48 | line 49" {
		t.Errorf("without a panic: %s", got)
	}
	log.line("panic: a bug")
	numbers(log, 50)
	if got := log.tail.words(); got != "; its last words: panic: a bug | line 0 | line 1 | line 2" {
		t.Errorf("after a panic: %s", got)
	}
	if n := len(log.tail.last()); n != tailLines {
		t.Errorf("%d lines are kept", n)
	}
	if got := (&tail{}).words(); got != "; it printed nothing on standard error" {
		t.Errorf("without any: %s", got)
	}
}

func TestLineLogger(t *testing.T) {
	var got []string
	w := &lineLogger{fn: func(l string) { got = append(got, l) }}
	for _, part := range []string{"on", "e\ntw", "o\n", strings.Repeat("x", 1<<20), "\n", "cut"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if len(got) != 3 || got[0] != "one" || got[1] != "two" || len(got[2]) != maxLine {
		t.Errorf("got %.50q", got)
	}
}
