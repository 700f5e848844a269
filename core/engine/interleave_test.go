package engine_test

import (
	"context"
	"errors"
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
	var held, snapped []engine.Token
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
		held = nil
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
			for lcp < min(len(want), len(held)) && want[lcp] == held[lcp] {
				lcp++
			}
			if st.ReusedTokens+st.PrefilledTokens != len(want) || st.PrefixTokens != len(want) || st.DroppedTokens != len(held)-lcp {
				t.Errorf("EnsurePrefix of %d tokens over %d with %d in common: %+v", len(want), len(held), lcp, st)
			}
			held = want
		case op < 5:
			text := prefixes[rng.IntN(3)]
			if len(held)+len(text) > 250 {
				break
			}
			if _, err := sess.PrefillSuffix(ctx, transport.SuffixInput{Text: text}); err == nil {
				held = append(slices.Clone(held), tokens(text)...)
			} else if !cancelled || !errors.Is(err, context.Canceled) {
				t.Errorf("PrefillSuffix: %v", err)
			}
		case op < 8:
			if len(held) == 0 || len(held) > 250 {
				break
			}
			n := 1 + rng.IntN(30)
			r := enginetest.NewRunner(enginetest.Options{})
			want := enginetest.Greedy(t, r, 0, held, n)
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
				t.Errorf("a generation of %d on %d tokens: %q (%d tokens), %v; alone %q", n, len(held), text, count, err, wantText)
			}
			held = append(slices.Clone(held), want...)
		case op == 8:
			if s, err := sess.Snapshot(context.Background()); err == nil {
				snap, snapped = s, held
			} else {
				t.Errorf("Snapshot: %v", err)
			}
			if snap.ResidentTokens != 0 && rng.IntN(2) == 0 {
				reopen()
				if err := sess.Restore(context.Background(), snap); err != nil {
					t.Errorf("Restore: %v", err)
				}
				held = snapped
			}
		default:
			reopen()
		}
		if r := sess.ExplainContext(); r.ResidentTokens != len(held) || r.Residency.HotTokens+r.Residency.ColdTokens != len(held) {
			t.Errorf("the report says %d resident tokens (%d hot, %d cold), there are %d", r.ResidentTokens, r.Residency.HotTokens, r.Residency.ColdTokens, len(held))
		}
		cancel()
	}
}
