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
	// All four must run at once: a generation that has ended needs no room, and
	// one whose reader lags is evicted, not preempted.
	slow := func(context.Context, []engine.Span) error { time.Sleep(200 * time.Microsecond); return nil }
	svc, _ := newService(t, enginetest.Options{NumCtx: 100, KVTokens: 160, NoEnd: true, BeforeForward: slow},
		engine.Options{StreamInterval: -1, StreamBuffer: 1000})
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
