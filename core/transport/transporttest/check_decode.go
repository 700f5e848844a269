package transporttest

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"modeld/core/transport"
)

func checkDecodeEmpty(s *suite) {
	if g := s.tryDecode(s.open(), 4); g.err == nil {
		s.Errorf("Decode of an empty context gave %q, want an error", g.text)
	}
}

func checkMaxTokens(s *suite) {
	for _, n := range []int{1, 3, 8} {
		sess := s.open()
		s.prefix(sess, s.Prompt(8))
		g := s.decode(sess, n)
		if g.tokens > n || g.chunks > n+1 {
			s.Errorf("MaxTokens %d gave %d tokens in %d chunks", n, g.tokens, g.chunks)
		}
		if g.tokens == n && g.finish == transport.FinishStop {
			continue // the model's own end, on the last token
		}
		if g.finish == transport.FinishLength && g.tokens != n {
			s.Errorf("MaxTokens %d ended for length after %d tokens", n, g.tokens)
		}
	}
}

func checkGreedy(s *suite) {
	generate := func(sess transport.Session) string {
		s.prefix(sess, s.Prompt(10))
		s.suffix(sess, " "+s.Prompt(3))
		return s.decode(sess, 8).text
	}
	sess := s.open()
	first, again, fresh := generate(sess), generate(sess), generate(s.open())
	if (first != again || first != fresh) && !s.lacks(ExactDecode) {
		s.Errorf("greedy decoding gave %q, then %q, and %q in a new session", first, again, fresh)
	}
}

func checkDecodeResident(s *suite) {
	sess := s.open()
	text := s.Prompt(10)
	st := s.prefix(sess, text)
	g := s.decode(sess, 8)
	r := s.report(sess)
	if g.finish == transport.FinishLength && r.ResidentTokens != st.ResidentTokens+g.tokens {
		s.Errorf("%d tokens are resident after %d and a generation of %d", r.ResidentTokens, st.ResidentTokens, g.tokens)
	}
	if g.text == "" {
		s.Fatalf("the model says nothing after %q; set Options.Prompt to something it goes on with", text)
	}
	next := s.prefix(sess, text+g.text)
	if next.ReusedTokens <= st.PrefixTokens && !s.lacks(KVTruncation) {
		s.Errorf("a prefix that repeats %q after %d tokens reused %d", g.text, st.PrefixTokens, next.ReusedTokens)
	}
	if next.ReusedTokens < st.PrefixTokens && !s.lacks(KVTruncation) {
		s.Errorf("it reused fewer than the prompt's tokens: %+v", next)
	}
}

// checkDecodeFull fills the context to the last token. The model may end a
// generation before that, so words are appended until none fits.
func checkDecodeFull(s *suite) {
	sess := s.open()
	numCtx := s.report(sess).NumCtx
	st := s.prefix(sess, s.Prompt(min(numCtx/2, 256)))
	perWord := float64(st.PrefixTokens) / float64(min(numCtx/2, 256))
	if words := int(float64(st.AvailableTokens)/perWord*0.9) - 1; words > 0 {
		s.suffix(sess, " "+s.Prompt(words))
	}
	for s.fill(sess) {
	}
	r := s.report(sess)
	if r.AvailableTokens > 0 {
		g := s.decode(sess, 0)
		if r = s.report(sess); g.finish == transport.FinishLength && r.AvailableTokens != 0 {
			s.Errorf("Decode ended for length with %d tokens available", r.AvailableTokens)
		}
		if r.AvailableTokens > 0 {
			s.Logf("the model ended by itself %d tokens before the end of its context", r.AvailableTokens)
			return
		}
	}
	s.overflow(s.tryDecode(sess, 1).err, "decode", numCtx)
	// The session is as usable as before.
	s.prefix(sess, s.Prompt(4))
	s.decode(sess, 2)
}

// fill appends one of a few short texts, if any fits.
func (s *suite) fill(sess transport.Session) bool {
	for _, text := range []string{" the sea and the boats", " the", " a", "a", ".", "\n"} {
		st, err := sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: text})
		if err == nil {
			return st.SuffixTokens > 0 && st.AvailableTokens > 0
		}
		if !errors.Is(err, transport.ErrContextOverflow) {
			s.Fatalf("PrefillSuffix: %v", err)
		}
	}
	return false
}

func checkDecodeCancelled(s *suite) {
	sess := s.open()
	for range 3 {
		s.prefix(sess, s.Prompt(8))
		ctx, cancel := context.WithCancel(s.Context())
		ch, err := sess.Decode(ctx, greedy(0))
		if err != nil {
			cancel()
			s.Fatalf("Decode: %v", err)
		}
		<-ch
		cancel()
		if g := s.drain(ch); g.err != nil && !errors.Is(g.err, context.Canceled) {
			s.Errorf("a cancelled stream ended with %v, want context.Canceled or nothing", g.err)
		}
	}
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if ch, err := sess.Decode(ctx, greedy(4)); err == nil {
		s.drain(ch)
	} else if !errors.Is(err, context.Canceled) {
		s.Errorf("Decode with an ended context: %v, want context.Canceled", err)
	}
	st := s.prefix(sess, s.Prompt(8))
	if r := s.report(sess); r.ResidentTokens != st.PrefixTokens {
		s.Errorf("%d tokens are resident after a prefix of %d", r.ResidentTokens, st.PrefixTokens)
	}
	s.decode(sess, 2)
}

// checkDecodeClosed closes sessions at different moments of a stream. A stream
// that was cut must not look complete.
func checkDecodeClosed(s *suite) {
	for i := range 4 {
		sess := s.open()
		s.prefix(sess, s.Prompt(8))
		ch, err := sess.Decode(s.ctx(), greedy(0))
		if err != nil {
			s.Fatalf("Decode: %v", err)
		}
		for range i {
			<-ch
		}
		if i == 3 {
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) //nolint:gosec // any moment will do
		}
		if err := sess.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
		g := s.drain(ch)
		if g.err == nil && g.finish == "" {
			s.Error("the stream of a closed session ended without an error and without a reason, as if complete")
		}
		if g.err != nil && !errors.Is(g.err, transport.ErrSessionClosed) {
			s.Errorf("a closed session's stream ended with %v, want ErrSessionClosed", g.err)
		}
	}
}
