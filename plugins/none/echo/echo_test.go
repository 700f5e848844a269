package echo

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newService(t *testing.T, s Settings) *Service {
	t.Helper()
	svc, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { svc.Close() })
	return svc
}

func TestConformance(t *testing.T) {
	for name, s := range map[string]Settings{
		"prompt":   {MaxCtx: 2048},
		"scripted": {MaxCtx: 2048, Text: "Grüße, 世界 🙂!"},
		"looping":  {MaxCtx: 2048, Text: "la ", Loop: true},
	} {
		t.Run(name, func(t *testing.T) {
			transporttest.Run(t, func(t *testing.T) transport.Service { return newService(t, s) },
				transporttest.Options{Lacks: []transporttest.Feature{transporttest.Store}})
		})
	}
}

// say prefills and decodes, and returns text, finish reason and error.
func say(t *testing.T, svc *Service, prefix, suffix string, maxTokens int) (string, string, error) {
	t.Helper()
	sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: prefix}); err != nil {
		t.Fatal(err)
	}
	if _, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: suffix}); err != nil {
		t.Fatal(err)
	}
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{MaxTokens: maxTokens})
	if err != nil {
		t.Fatal(err)
	}
	return collect(ch)
}

func collect(ch <-chan transport.StreamChunk) (text, finish string, err error) {
	var b strings.Builder
	for c := range ch {
		b.WriteString(c.Text)
		finish, err = c.FinishReason, c.Error
	}
	return b.String(), finish, err
}

func TestSays(t *testing.T) {
	tests := []struct {
		name           string
		settings       Settings
		prefix, suffix string
		maxTokens      int
		text, finish   string
		err            error
	}{
		{"suffix", Settings{}, "You are kind. ", "Grüße 🙂", 0, "Grüße 🙂", transport.FinishStop, nil},
		{"prefix without a suffix", Settings{}, "hello", "", 0, "hello", transport.FinishStop, nil},
		{"cut", Settings{}, "a", "世界!", 2, "世界", transport.FinishLength, nil},
		{"last token of both", Settings{}, "a", "bc", 2, "bc", transport.FinishStop, nil},
		{"script", Settings{Text: "yes"}, "a", "b", 0, "yes", transport.FinishStop, nil},
		{"loop", Settings{Text: "ab", Loop: true}, "a", "b", 5, "ababa", transport.FinishLength, nil},
		{"full context", Settings{Text: "ab", Loop: true, MaxCtx: 6}, "a", "b", 0, "abab", transport.FinishLength, nil},
		{"failure", Settings{Text: "abc", FailAfterTokens: 2}, "a", "b", 0, "ab", "", transport.ErrSessionFatal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, finish, err := say(t, newService(t, tt.settings), tt.prefix, tt.suffix, tt.maxTokens)
			if text != tt.text || finish != tt.finish || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %q, %v; want %q, %q, %v", text, finish, err, tt.text, tt.finish, tt.err)
			}
		})
	}
}

func TestSaysOnWhereItWasCut(t *testing.T) {
	svc := newService(t, Settings{Text: "abcdef"})
	sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x"}); err != nil {
		t.Fatal(err)
	}
	var parts []string
	for range 3 {
		ch, err := sess.Decode(t.Context(), transport.DecodeConfig{MaxTokens: 4})
		if err != nil {
			t.Fatal(err)
		}
		text, finish, err := collect(ch)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, text+"/"+finish)
	}
	if got := strings.Join(parts, " "); got != "abcd/length ef/stop abcd/length" {
		t.Errorf("got %q", got)
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := newService(t, Settings{Text: "0123456789", TokensPerSecond: 5})
		start := time.Now()
		if _, _, err := say(t, svc, "a", "b", 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("10 tokens at 5/s took %v", took)
		}
	})
}

func TestFaults(t *testing.T) {
	t.Run("open", func(t *testing.T) {
		svc := newService(t, Settings{FailOpen: true})
		if _, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{}); !errors.Is(err, transport.ErrModelLoadFailed) {
			t.Errorf("OpenSession = %v", err)
		}
	})
	t.Run("crash", func(t *testing.T) {
		svc := newService(t, Settings{Text: "abc", CrashAfterTokens: 2})
		crashed := 0
		svc.crash = func() { crashed++ }
		if text, _, err := say(t, svc, "a", "b", 0); text != "abc" || err != nil || crashed != 1 {
			t.Errorf("got %q, %v and %d crashes", text, err, crashed)
		}
	})
	t.Run("hang", func(t *testing.T) {
		svc := newService(t, Settings{Text: "abc", HangAfterTokens: 1})
		sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x"}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ch, err := sess.Decode(ctx, transport.DecodeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		<-ch
		cancel()
		if text, _, err := collect(ch); text != "" || err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("got %q, %v", text, err)
		}
	})
}

func TestInvalidInput(t *testing.T) {
	svc := newService(t, Settings{})
	sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a\xff"}); !errors.Is(err, errInvalidUTF8) {
		t.Errorf("EnsurePrefix of invalid UTF-8 = %v", err)
	}
	for _, s := range []Settings{{MaxCtx: -1}, {TokensPerSecond: -1}, {HangAfterTokens: -1}, {Text: "\xff"}} {
		if _, err := New(s); err == nil {
			t.Errorf("New(%+v) took it", s)
		}
	}
}

func TestModelInUse(t *testing.T) {
	svc := newService(t, Settings{})
	if _, err := svc.LoadModel(t.Context(), transport.LoadModelRequest{ModelName: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{ModelName: "two"}); !errors.Is(err, transport.ErrModelSwitchRequired) {
		t.Errorf("OpenSession of another model = %v", err)
	}
	if _, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{ModelName: "one"}); err != nil {
		t.Errorf("OpenSession of the active model = %v", err)
	}
	if _, err := svc.LoadModel(t.Context(), transport.LoadModelRequest{ModelName: "two"}); !errors.Is(err, transport.ErrModelBusy) {
		t.Errorf("LoadModel of another model in use = %v", err)
	}
}

func TestClosed(t *testing.T) {
	svc := newService(t, Settings{})
	sess, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Ready(t.Context()); err != nil {
		t.Errorf("Ready = %v", err)
	}
	svc.Close()
	if !sess.ExplainContext().Closed {
		t.Error("a session outlives its service")
	}
	if svc.Ready(t.Context()) == nil {
		t.Error("a closed service is ready")
	}
	if _, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{}); err == nil {
		t.Error("a closed service opens sessions")
	}
}

// BenchmarkDecode is the service's own ceiling, without a wire.
func BenchmarkDecode(b *testing.B) {
	svc, err := New(Settings{Text: "x", Loop: true, MaxCtx: b.N + 2})
	if err != nil {
		b.Fatal(err)
	}
	defer svc.Close()
	sess, err := svc.OpenSession(b.Context(), transport.OpenSessionRequest{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(b.Context(), transport.PrefixInput{Text: "x"}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	ch, err := sess.Decode(b.Context(), transport.DecodeConfig{MaxTokens: b.N})
	if err != nil {
		b.Fatal(err)
	}
	for range ch {
	}
}
