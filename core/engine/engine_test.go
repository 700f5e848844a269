package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

func TestMoreSessionsThanSequences(t *testing.T) {
	for _, caps := range []engine.Caps{{Truncate: true, Share: true}, {Truncate: true}, {}} {
		svc, _ := newService(t, enginetest.Options{MaxSeqs: 2, KVTokens: 512, Caps: &caps}, engine.Options{})
		var sessions []transport.Session
		for i := range 7 {
			sess := open(t, svc)
			prefix(t, sess, fmt.Sprintf("session %d says:", i))
			sessions = append(sessions, sess)
		}
		var wg sync.WaitGroup
		for i, sess := range sessions {
			wg.Go(func() {
				want := alone(t, fmt.Sprintf("session %d says:", i), 30)
				if got := decode(t, sess, 30); got != want {
					t.Errorf("%+v: session %d of 7 on 2 sequences: %q, alone %q", caps, i, got, want)
				}
			})
		}
		wg.Wait()
		r := sessions[0].ExplainContext().Residency
		if r.HotTokens+r.ColdTokens != r.TotalTokens {
			t.Errorf("%+v does not add up", r)
		}
	}
}

// TestPreemption lets generations together outgrow the KV: younger ones are put
// back and must still end with the right text.
func TestPreemption(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{NumCtx: 100, KVTokens: 160, NoEnd: true}, engine.Options{})
	var wg sync.WaitGroup
	for i := range 4 {
		sess := open(t, svc)
		wg.Go(func() {
			text := fmt.Sprintf("%d begins", i)
			prefix(t, sess, text)
			ch, err := sess.Decode(t.Context(), greedy(0))
			if err != nil {
				t.Error(err)
				return
			}
			got, finish, tokens, err := collect(ch)
			if err != nil || finish != transport.FinishLength || tokens != 100-8 {
				t.Errorf("%d: %d tokens, %q, %v", i, tokens, finish, err)
			}
			r := enginetest.NewRunner(enginetest.Options{NumCtx: 100, NoEnd: true})
			in, _ := r.Tokenize(text, false)
			if want := enginetest.Text(t, r, enginetest.Greedy(t, r, 0, in, 92)); got != want {
				t.Errorf("%d: %q, alone %q", i, got, want)
			}
		})
	}
	wg.Wait()
	if svc.Stats().Preemptions.Load() == 0 {
		t.Error("nothing was preempted; the test does not test it")
	}
}

// TestPrefillDoesNotStallDecodes counts the prefill tokens of every step in
// which a generation runs.
func TestPrefillDoesNotStallDecodes(t *testing.T) {
	const chunk = 16
	var mu sync.Mutex
	worst, mixed := 0, 0
	watch := func(_ context.Context, batch []engine.Span) error {
		mu.Lock()
		defer mu.Unlock()
		decodes, prefill := 0, 0
		for _, s := range batch {
			if len(s.Tokens) == 1 && s.Logits == 1 {
				decodes++
			} else {
				prefill += len(s.Tokens)
			}
		}
		if decodes > 0 && prefill > 0 {
			worst, mixed = max(worst, prefill), mixed+1
		}
		time.Sleep(100 * time.Microsecond)
		return nil
	}
	svc, _ := newService(t, enginetest.Options{NumCtx: 1000, KVTokens: 4000, NoEnd: true, BeforeForward: watch}, engine.Options{PrefillChunk: chunk})
	sess := open(t, svc)
	prefix(t, sess, "go")
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := sess.Decode(ctx, greedy(0))
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	go func() {
		for range ch {
		}
	}()
	prefix(t, open(t, svc), strings.Repeat("long ", 150))
	cancel()
	if worst > chunk || mixed < 750/chunk {
		t.Errorf("steps with a generation took up to %d prefill tokens, in %d steps; want at most %d", worst, mixed, chunk)
	}
}

// TestSlowReader checks that a reader who stops does not stop others, and loses
// nothing when it goes on.
func TestSlowReader(t *testing.T) {
	for _, seqs := range []int{1, 8} {
		svc, _ := newService(t, enginetest.Options{NumCtx: 2000, KVTokens: 4000, NoEnd: true, MaxSeqs: seqs}, engine.Options{StreamBuffer: 8})
		sleeper := open(t, svc)
		prefix(t, sleeper, "sleeper")
		ch, err := sleeper.Decode(t.Context(), greedy(600))
		if err != nil {
			t.Fatal(err)
		}
		other := open(t, svc)
		prefix(t, other, "other")
		decode(t, other, 300)
		if n := sleeper.ExplainContext().ResidentTokens; n > 7+4*8 {
			t.Errorf("%d tokens are resident for a reader who has read nothing", n)
		}
		text, finish, tokens, err := collect(ch)
		if err != nil || finish != transport.FinishLength || tokens != 600 {
			t.Errorf("the slow reader got %d tokens, %q, %v", tokens, finish, err)
		}
		r := enginetest.NewRunner(enginetest.Options{NumCtx: 2000, NoEnd: true})
		in, _ := r.Tokenize("sleeper", false)
		if want := enginetest.Text(t, r, enginetest.Greedy(t, r, 0, in, 600)); text != want {
			t.Error("the slow reader's text differs from that of one alone")
		}
	}
}

// TestCancelWithinAStep holds a Forward and counts those after the cancellation.
func TestCancelWithinAStep(t *testing.T) {
	gate := make(chan struct{}, 1000)
	svc, backend := newService(t, enginetest.Options{NoEnd: true, BeforeForward: func(ctx context.Context, _ []engine.Span) error {
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return nil
	}}, engine.Options{})
	sess := open(t, svc)
	for range 3 {
		gate <- struct{}{}
	}
	prefix(t, sess, "short")
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := sess.Decode(ctx, greedy(0))
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	cancel()
	_, before := backend.Last().Computed()
	for range 100 {
		gate <- struct{}{}
	}
	if _, _, _, err := collect(ch); !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v, want context.Canceled", err)
	}
	if _, after := backend.Last().Computed(); after > before+3 {
		t.Errorf("%d steps after the cancellation", after-before)
	}
	if st := prefix(t, sess, "short"); st.ReusedTokens != 5 {
		t.Errorf("after a cancelled generation: %+v", st)
	}
}

func TestCancelledPrefill(t *testing.T) {
	var steps int
	ctx, cancel := context.WithCancel(t.Context())
	svc, _ := newService(t, enginetest.Options{MaxBatch: 10, BeforeForward: func(context.Context, []engine.Span) error {
		if steps++; steps == 2 {
			cancel()
		}
		return nil
	}}, engine.Options{})
	sess := open(t, svc)
	text := strings.Repeat("0123456789", 10)
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: text}); !errors.Is(err, context.Canceled) {
		t.Fatalf("EnsurePrefix: %v, want context.Canceled", err)
	}
	if r := sess.ExplainContext(); r.ResidentTokens != 20 || r.PrefixTokens != 20 {
		t.Errorf("%d tokens are resident, %d prefix; want 20", r.ResidentTokens, r.PrefixTokens)
	}
	if st := prefix(t, sess, text); st.ReusedTokens != 20 || st.PrefilledTokens != 80 {
		t.Errorf("afterwards: %+v, want 20 reused", st)
	}
	// A cancelled suffix leaves the context as it was.
	steps = 0
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	if _, err := sess.PrefillSuffix(ctx, transport.SuffixInput{Text: strings.Repeat("x", 50)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("PrefillSuffix: %v, want context.Canceled", err)
	}
	if r := sess.ExplainContext(); r.ResidentTokens != 100 || r.Residency.HotTokens != 100 {
		t.Errorf("%d tokens are resident, %d hot; want 100", r.ResidentTokens, r.Residency.HotTokens)
	}
	if got, want := decode(t, sess, 10), alone(t, text, 10); got != want {
		t.Errorf("after a cancelled suffix %q, want %q", got, want)
	}
}

func TestQueueLimit(t *testing.T) {
	gate := make(chan struct{})
	svc, _ := newService(t, enginetest.Options{BeforeForward: func(ctx context.Context, _ []engine.Span) error {
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return nil
	}}, engine.Options{QueueLimit: 3})
	var wg sync.WaitGroup
	results := make(chan error, 20)
	for i := range 8 {
		sess := open(t, svc)
		wg.Go(func() {
			_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: fmt.Sprintf("%d text", i)})
			results <- err
		})
		time.Sleep(5 * time.Millisecond)
	}
	for range 4 { // one runs, three wait
		if err := <-results; !errors.Is(err, transport.ErrModelBusy) {
			t.Errorf("beyond the limit: %v, want ErrModelBusy", err)
		}
	}
	close(gate)
	wg.Wait()
	for range 4 {
		if err := <-results; err != nil {
			t.Errorf("within the limit: %v", err)
		}
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
	if run(&one) == run(&two) || run(nil) == run(nil) {
		t.Error("different seeds gave the same text")
	}
}

// TestInterleavings is the engine's main promise: whatever else happens, each
// session's text is that of a fresh context, and the numbers add up.
func TestInterleavings(t *testing.T) {
	for _, c := range []struct {
		name string
		opts enginetest.Options
	}{
		{"roomy", enginetest.Options{NumCtx: 300, KVTokens: 4000, MaxSeqs: 16}},
		{"tight", enginetest.Options{NumCtx: 300, KVTokens: 400, MaxSeqs: 3, MaxBatch: 17}},
		{"no cutting", enginetest.Options{NumCtx: 300, KVTokens: 900, MaxSeqs: 4, Caps: &engine.Caps{Share: true, Save: true}}},
		{"no sharing", enginetest.Options{NumCtx: 300, KVTokens: 900, MaxSeqs: 4, Caps: &engine.Caps{Truncate: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			svc, _ := newService(t, c.opts, engine.Options{PrefillChunk: 8, StreamBuffer: 4})
			var wg sync.WaitGroup
			for worker := range 8 {
				wg.Go(func() { interleave(t, svc, rand.New(rand.NewPCG(uint64(worker), 7)), 60) })
			}
			wg.Wait()
		})
	}
}

var prefixes = []string{
	"the quick brown fox", "the quick brown fox jumps over the lazy dog", "the quick", "another beginning",
	strings.Repeat("the quick brown fox ", 6),
}

// interleave does random things with sessions of its own. It knows what each
// context holds, as text, and so what must come next.
func interleave(t *testing.T, svc *engine.Service, rng *rand.Rand, steps int) {
	var sess transport.Session
	var snap transport.SessionSnapshot
	var context_, snapped []engine.Token
	tokenizer := enginetest.NewRunner(enginetest.Options{})
	tokens := func(text string) []engine.Token {
		out, _ := tokenizer.Tokenize(text, false)
		return out
	}
	reopen := func() {
		if sess != nil {
			_ = sess.Close()
		}
		var err error
		if sess, err = svc.OpenSession(context.Background(), request); err != nil {
			t.Error(err)
		}
		context_ = nil
	}
	reopen()
	defer func() { _ = sess.Close() }()
	for range steps {
		ctx, cancel := context.WithCancel(context.Background())
		cancelled := rng.IntN(6) == 0
		if cancelled {
			time.AfterFunc(time.Duration(rng.IntN(300))*time.Microsecond, cancel)
		}
		switch op := rng.IntN(10); {
		case op < 3:
			text := prefixes[rng.IntN(len(prefixes))]
			st, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: text})
			want := tokens(text)
			if err != nil {
				if !cancelled || !errors.Is(err, context.Canceled) {
					t.Errorf("EnsurePrefix: %v", err)
				}
				reopen()
				break
			}
			lcp := 0
			for lcp < min(len(want), len(context_)) && want[lcp] == context_[lcp] {
				lcp++
			}
			if st.ReusedTokens+st.PrefilledTokens != len(want) || st.PrefixTokens != len(want) || st.DroppedTokens != len(context_)-lcp {
				t.Errorf("EnsurePrefix of %d tokens over %d with %d in common: %+v", len(want), len(context_), lcp, st)
			}
			context_ = want
		case op < 5:
			text := prefixes[rng.IntN(3)]
			if len(context_)+len(text) > 250 {
				break
			}
			if _, err := sess.PrefillSuffix(ctx, transport.SuffixInput{Text: text}); err == nil {
				context_ = append(slices.Clone(context_), tokens(text)...)
			} else if !cancelled || !errors.Is(err, context.Canceled) {
				t.Errorf("PrefillSuffix: %v", err)
			}
		case op < 8:
			if len(context_) == 0 || len(context_) > 250 {
				break
			}
			n := 1 + rng.IntN(30)
			r := enginetest.NewRunner(enginetest.Options{})
			want := enginetest.Greedy(t, r, 0, context_, n)
			ch, err := sess.Decode(ctx, greedy(n))
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Decode: %v", err)
				}
				break
			}
			text, _, count, err := collect(ch)
			wantText := strings.ToValidUTF8(enginetest.Text(t, r, want), "\uFFFD")
			if err != nil && cancelled {
				if !strings.HasPrefix(wantText, strings.TrimSuffix(text, "\uFFFD")) {
					t.Errorf("a cancelled generation: %q, alone %q", text, wantText)
				}
				reopen() // how far it got is not known here
				break
			}
			if err != nil || text != wantText || count != len(want) {
				t.Errorf("a generation of %d on %d tokens: %q (%d tokens), %v; alone %q", n, len(context_), text, count, err, wantText)
			}
			context_ = append(slices.Clone(context_), want...)
		case op == 8:
			if s, err := sess.Snapshot(context.Background()); err == nil {
				snap, snapped = s, context_
			} else {
				t.Errorf("Snapshot: %v", err)
			}
			if snap.ResidentTokens != 0 && rng.IntN(2) == 0 {
				reopen()
				if err := sess.Restore(context.Background(), snap); err != nil {
					t.Errorf("Restore: %v", err)
				}
				context_ = snapped
			}
		default:
			reopen()
		}
		if r := sess.ExplainContext(); r.ResidentTokens != len(context_) || r.Residency.HotTokens+r.Residency.ColdTokens != len(context_) {
			t.Errorf("the report says %d resident tokens (%d hot, %d cold), there are %d", r.ResidentTokens, r.Residency.HotTokens, r.Residency.ColdTokens, len(context_))
		}
		cancel()
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
