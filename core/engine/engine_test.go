package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
)

func open(t *testing.T, svc *engine.Service) transport.Session {
	t.Helper()
	sess, err := svc.OpenSession(t.Context(), request)
	if err != nil {
		t.Fatalf("OpenSession: %v", err)
	}
	t.Cleanup(func() { _ = sess.Close() })
	return sess
}

func prefix(t *testing.T, sess transport.Session, text string) transport.PrefixStatus {
	t.Helper()
	st, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: text})
	if err != nil {
		t.Fatalf("EnsurePrefix: %v", err)
	}
	return st
}

func greedy(n int) transport.DecodeConfig {
	zero := 0.0
	return transport.DecodeConfig{MaxTokens: n, Temperature: &zero}
}

// collect reads a stream to its end.
func collect(ch <-chan transport.StreamChunk) (text, finish string, tokens int, err error) {
	var b strings.Builder
	for c := range ch {
		b.WriteString(c.Text)
		tokens += c.Tokens
		finish, err = c.FinishReason, c.Error
	}
	return b.String(), finish, tokens, err
}

func decode(t *testing.T, sess transport.Session, n int) string {
	t.Helper()
	ch, err := sess.Decode(t.Context(), greedy(n))
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	text, _, _, err := collect(ch)
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	return text
}

// alone returns what a fresh context of a fresh Runner generates.
func alone(t *testing.T, text string, n int) string {
	t.Helper()
	r := enginetest.NewRunner(enginetest.Options{NumCtx: 4096, KVTokens: 4096})
	tokens, err := r.Tokenize(text, false)
	if err != nil {
		t.Fatal(err)
	}
	return enginetest.Text(t, r, enginetest.Greedy(t, r, 0, tokens, n))
}

// TestSharing checks exact numbers of reuse between sessions, and that it is
// physical: the Runner computes nothing twice.
func TestSharing(t *testing.T) {
	svc, backend := newService(t, enginetest.Options{}, engine.Options{})
	text := strings.Repeat("a long common context. ", 8)
	first := open(t, svc)
	st := prefix(t, first, text)
	n := st.PrefixTokens
	if st.ReusedTokens != 0 || st.PrefilledTokens != n {
		t.Errorf("the first: %+v", st)
	}
	before, _ := backend.Last().Computed()

	live := prefix(t, open(t, svc), text+"and more")
	if live.ReusedTokens != n || live.PrefilledTokens != 8 {
		t.Errorf("beside a live session: %+v, want %d reused and 8 prefilled", live, n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	closed := open(t, svc)
	if st := prefix(t, closed, text); st.ReusedTokens != n || st.PrefilledTokens != 0 {
		t.Errorf("after the first has closed: %+v, want all reused", st)
	}
	if after, _ := backend.Last().Computed(); after != before+8 {
		t.Errorf("the Runner computed %d tokens, want 8", after-before)
	}
	if got, want := decode(t, closed, 20), alone(t, text, 20); got != want {
		t.Errorf("on a shared prefix %q, alone %q", got, want)
	}
	if after, _ := backend.Last().Computed(); after > before+8+20 {
		t.Errorf("a generation on a shared prefix computed %d tokens", after-before-8)
	}
}

// TestIdentity checks that KV is not shared between identities that differ.
func TestIdentity(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{}, engine.Options{})
	for i, want := range []int{0, 9, 0, 9} {
		m := transport.ContextManifest{ProfileID: []string{"a", "a", "b", "b"}[i]}
		st, err := open(t, svc).EnsurePrefix(t.Context(), transport.PrefixInput{Text: "same text", Manifest: m})
		if err != nil || st.ReusedTokens != want {
			t.Errorf("session %d of profile %q: %+v, %v; want %d reused", i, m.ProfileID, st, err, want)
		}
	}
}

// TestConcurrentPrefixes checks that sessions which come at once with a common
// prefix compute it once.
func TestConcurrentPrefixes(t *testing.T) {
	svc, backend := newService(t, enginetest.Options{BeforeForward: slow(time.Millisecond)}, engine.Options{})
	text := strings.Repeat("the same system prompt. ", 15)
	var wg sync.WaitGroup
	for i := range 6 {
		sess := open(t, svc)
		wg.Go(func() { prefix(t, sess, fmt.Sprintf("%s%d", text, i)) })
	}
	wg.Wait()
	one := len(text)
	if n, _ := backend.Last().Computed(); n > one+one/2 {
		t.Errorf("six sessions computed %d tokens for a prefix of about %d", n, one)
	}
}

func TestMaxSessions(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{}, engine.Options{MaxSessions: 3})
	sessions := []transport.Session{open(t, svc), open(t, svc), open(t, svc)}
	if _, err := svc.OpenSession(t.Context(), request); !errors.Is(err, transport.ErrModelBusy) || !strings.Contains(err.Error(), "max_sessions") {
		t.Errorf("a fourth session: %v, want ErrModelBusy that names max_sessions", err)
	}
	_ = sessions[1].Close()
	open(t, svc)
}

func TestForwardErrors(t *testing.T) {
	var fail error
	svc, _ := newService(t, enginetest.Options{BeforeForward: func(context.Context, []engine.Span) error { return fail }}, engine.Options{})
	sess := open(t, svc)
	prefix(t, sess, "healthy")
	fail = errors.New("the device hiccups")
	if _, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: " and more"}); !errors.Is(err, fail) {
		t.Fatalf("PrefillSuffix: %v, want the Runner's error", err)
	}
	fail = nil
	if got, want := decode(t, sess, 10), alone(t, "healthy", 10); got != want {
		t.Errorf("after a failed batch %q, want %q", got, want)
	}
	if err := svc.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}

	fail = fmt.Errorf("%w: the device is gone", transport.ErrSessionFatal)
	bystander := open(t, svc)
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "anything else"}); !errors.Is(err, transport.ErrSessionFatal) {
		t.Fatalf("EnsurePrefix: %v, want ErrSessionFatal", err)
	}
	if _, err := bystander.Decode(t.Context(), greedy(1)); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("another session: %v, want ErrSessionFatal", err)
	}
	if r := sess.ExplainContext(); !strings.Contains(r.FatalError, "the device is gone") {
		t.Errorf("FatalError is %q", r.FatalError)
	}
	if err := svc.Ready(t.Context()); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("Ready: %v, want ErrSessionFatal", err)
	}
	_ = sess.Close()
	_ = bystander.Close()
	fail = nil
	if err := svc.UnloadModel(t.Context(), transport.UnloadModelRequest{}); err != nil {
		t.Fatalf("UnloadModel: %v", err)
	}
	prefix(t, open(t, svc), "a new Runner works")
}

func TestBadInput(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{}, engine.Options{})
	sess := open(t, svc)
	prefix(t, sess, "ok")
	minus, nan := -1.0, 0.0
	nan /= nan
	for name, c := range map[string]struct {
		call func() error
		is   error
		text string
	}{
		"prefix that is not UTF-8": {func() error {
			_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "ab\xffcd"})
			return err
		}, nil, "prefix: invalid UTF-8 at byte 2"},
		"suffix cut in a character": {func() error {
			_, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: "é\xc3"})
			return err
		}, nil, "suffix: invalid UTF-8 at byte 2"},
		"image": {func() error {
			_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x", Images: make([]transport.ImagePart, 1)})
			return err
		}, transport.ErrUnsupportedFeature, "image"},
		"negative temperature": {func() error {
			_, err := sess.Decode(t.Context(), transport.DecodeConfig{Temperature: &minus})
			return err
		}, nil, "Temperature"},
		"top-p that is no number": {func() error {
			_, err := sess.Decode(t.Context(), transport.DecodeConfig{TopP: &nan})
			return err
		}, nil, "TopP"},
		"negative top-k":      {func() error { _, err := sess.Decode(t.Context(), transport.DecodeConfig{TopK: -1}); return err }, nil, "TopK"},
		"negative max tokens": {func() error { _, err := sess.Decode(t.Context(), transport.DecodeConfig{MaxTokens: -1}); return err }, nil, "MaxTokens"},
		"structured output": {func() error {
			_, err := sess.Decode(t.Context(), transport.DecodeConfig{StructuredOutput: transport.StructuredOutputConfig{Protocol: "json_schema"}})
			return err
		}, transport.ErrUnsupportedFeature, "json_schema"},
		"unknown parser": {func() error {
			_, err := sess.Decode(t.Context(), transport.DecodeConfig{ParserProtocols: []string{"hermes"}})
			return err
		}, transport.ErrUnsupportedFeature, "hermes"},
		"another backend": {func() error {
			_, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{Type: "llama", Path: "/x"})
			return err
		}, transport.ErrBackendMismatch, "llama"},
		"another model": {func() error {
			_, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{Path: "/other"})
			return err
		}, transport.ErrModelSwitchRequired, "/other"},
		"a larger context": {func() error {
			_, err := svc.OpenSession(t.Context(), transport.OpenSessionRequest{Path: request.Path, Config: transport.Config{NumCtx: 100_000}})
			return err
		}, transport.ErrModelSwitchRequired, "NumCtx"},
		"chat without a template": {func() error {
			_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x", Manifest: chat("system", "x")})
			return err
		}, transport.ErrUnsupportedFeature, "chat template"},
	} {
		if err := c.call(); err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %v that says %q", name, err, c.is, c.text)
		}
	}
	if st := prefix(t, sess, "ok"); st.ReusedTokens != 2 {
		t.Errorf("refused calls left %+v", st)
	}
}

func TestWholeCharacters(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{NumCtx: 2000, NoEnd: true}, engine.Options{})
	sess := open(t, svc)
	prefix(t, sess, "accents")
	ch, err := sess.Decode(t.Context(), greedy(1000))
	if err != nil {
		t.Fatal(err)
	}
	accents := 0
	for c := range ch {
		if strings.ContainsRune(c.Text, '\uFFFD') {
			t.Fatalf("a chunk is broken: %q", c.Text)
		}
		accents += strings.Count(c.Text, "é")
	}
	if accents < 20 {
		t.Errorf("only %d accents; the test does not test characters of two tokens", accents)
	}
}

func TestSeeds(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{}, engine.Options{})
	run := func(seed *int) string {
		sess := open(t, svc)
		prefix(t, sess, "once upon")
		warm := 1.5
		ch, err := sess.Decode(t.Context(), transport.DecodeConfig{MaxTokens: 40, Temperature: &warm, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		text, _, _, _ := collect(ch)
		return text
	}
	one, two := 1, 2
	if a, b := run(&one), run(&one); a != b {
		t.Errorf("the same seed gave %q and %q", a, b)
	}
	if a, b := run(nil), run(nil); a == b || run(&one) == run(&two) {
		t.Error("different seeds gave the same text")
	}
}

// chat is a manifest of messages, given as role and content in turn.
func chat(parts ...string) transport.ContextManifest {
	var m transport.ContextManifest
	for i := 0; i+1 < len(parts); i += 2 {
		m.Segments = append(m.Segments, transport.ManifestSegment{
			Kind: parts[i], Stable: true, ByteStart: m.TotalBytes, ByteEnd: m.TotalBytes + len(parts[i+1]),
		})
		m.TotalBytes += len(parts[i+1])
	}
	m.StableBytes = m.TotalBytes
	return m
}
