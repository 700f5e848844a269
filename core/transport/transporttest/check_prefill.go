package transporttest

import (
	"context"
	"errors"
	"strings"
	"time"

	"modeld/core/transport"
)

// checkPrefixNumbers walks one session through the ways in which a prefix can
// change.
func checkPrefixNumbers(s *suite) {
	sess := s.open()
	first := s.prefix(sess, s.Prompt(12))
	if first.PrefixTokens < 12 {
		s.Fatalf("12 words are %d tokens", first.PrefixTokens)
	}
	if first.DroppedTokens != 0 {
		s.Errorf("a first prefix dropped %d tokens", first.DroppedTokens)
	}

	same := s.prefix(sess, s.Prompt(12))
	if same.ReusedTokens != first.PrefixTokens || same.PrefilledTokens != 0 || same.DroppedTokens != 0 {
		s.Errorf("the same prefix again: %+v, want all %d tokens reused", same, first.PrefixTokens)
	}
	if same.StableTokenHash != first.StableTokenHash {
		s.Errorf("the same prefix has token hashes %q and %q", first.StableTokenHash, same.StableTokenHash)
	}

	// More than the session's own may be reused, from other sessions' KV.
	longer := s.prefix(sess, s.Prompt(18))
	if longer.ReusedTokens < first.PrefixTokens || longer.DroppedTokens != 0 {
		s.Errorf("a longer prefix: %+v, want at least %d tokens reused and none dropped", longer, first.PrefixTokens)
	}
	if longer.StableTokenHash == first.StableTokenHash {
		s.Error("another prefix has the same token hash")
	}

	shorter := s.prefix(sess, s.Prompt(12))
	if shorter.PrefixTokens != first.PrefixTokens {
		s.Errorf("12 words are %d tokens now, %d before", shorter.PrefixTokens, first.PrefixTokens)
	}
	if !s.lacks(KVTruncation) {
		if drop := longer.PrefixTokens - first.PrefixTokens; shorter.DroppedTokens != drop || shorter.PrefilledTokens != 0 {
			s.Errorf("a shorter prefix: %+v, want %d tokens dropped and none prefilled", shorter, drop)
		}
	}

	other := s.prefix(sess, "Quite another text: "+s.Prompt(4))
	if other.ReusedTokens >= first.PrefixTokens || other.PrefilledTokens == 0 {
		s.Errorf("another prefix: %+v, want it to be prefilled", other)
	}
}

func checkEmptyPrefix(s *suite) {
	sess := s.open()
	full := s.prefix(sess, s.Prompt(8))
	empty := s.prefix(sess, "")
	if empty.PrefixTokens != 0 || empty.DroppedTokens != full.PrefixTokens {
		s.Errorf("an empty prefix: %+v, want %d tokens dropped and none left", empty, full.PrefixTokens)
	}
	if r := s.report(sess); r.ResidentTokens != 0 {
		s.Errorf("%d tokens are resident after an empty prefix", r.ResidentTokens)
	}
}

func checkPrefixCancelled(s *suite) {
	sess := s.open()
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: s.Prompt(8)}); !errors.Is(err, context.Canceled) {
		s.Errorf("EnsurePrefix with an ended context: %v, want context.Canceled", err)
	}
	// In the midst of it, or too late: both leave a usable session.
	ctx, cancel = context.WithTimeout(s.Context(), 5*time.Millisecond)
	defer cancel()
	_, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: s.Prompt(60)})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		s.Errorf("EnsurePrefix over its deadline: %v, want context.DeadlineExceeded", err)
	}
	st := s.prefix(sess, s.Prompt(8))
	if r := s.report(sess); r.ResidentTokens != st.PrefixTokens {
		s.Errorf("%d tokens are resident after a prefix of %d", r.ResidentTokens, st.PrefixTokens)
	}
}

func checkPrefixOverflow(s *suite) {
	sess := s.open()
	before := s.prefix(sess, s.Prompt(6))
	numCtx := s.report(sess).NumCtx
	_, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(numCtx + 8)})
	s.overflow(err, "prefix", numCtx)
	if again := s.prefix(sess, s.Prompt(6)); again.ReusedTokens != before.PrefixTokens {
		s.Errorf("a refused prefix left %d of %d tokens to reuse", again.ReusedTokens, before.PrefixTokens)
	}
}

func checkSuffixOverflow(s *suite) {
	sess := s.open()
	before := s.prefix(sess, s.Prompt(6))
	numCtx := s.report(sess).NumCtx
	_, err := sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: " " + s.Prompt(numCtx)})
	d := s.overflow(err, "suffix", numCtx)
	if d.ResidentTokens != before.ResidentTokens {
		s.Errorf("the overflow says %d resident tokens, there are %d", d.ResidentTokens, before.ResidentTokens)
	}
	if r := s.report(sess); r.ResidentTokens != before.ResidentTokens {
		s.Errorf("a refused suffix left %d resident tokens, before %d", r.ResidentTokens, before.ResidentTokens)
	}
}

// overflow checks that err is a context overflow whose counts make sense.
func (s *suite) overflow(err error, stage string, numCtx int) transport.ContextOverflowDetail {
	s.Helper()
	if !errors.Is(err, transport.ErrContextOverflow) {
		s.Fatalf("too many tokens: %v, want ErrContextOverflow", err)
	}
	d, ok := transport.ContextOverflowDetailFromError(err)
	if !ok {
		s.Fatalf("the overflow has no counts: %v", err)
	}
	if d.Stage != stage || d.NumCtx != numCtx || d.AdditionalTokens <= 0 || d.ResidentTokens+d.AdditionalTokens <= numCtx {
		s.Errorf("overflow counts %+v, want stage %q and more than %d tokens", d, stage, numCtx)
	}
	return d
}

func checkManifest(s *suite) {
	sess := s.open()
	mine, other := s.Manifest, s.Manifest
	other.ProfileID = mine.ProfileID + "-other"
	st, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(6), Manifest: mine})
	if err != nil {
		s.Fatalf("EnsurePrefix with a manifest: %v", err)
	}
	if st.ManifestDigest == "" {
		s.Error("ManifestDigest is empty for a manifest with an identity")
	}
	_, err = sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(6), Manifest: other})
	if !errors.Is(err, transport.ErrManifestMismatch) || err == nil || !strings.Contains(err.Error(), "profile_id") {
		s.Errorf("EnsurePrefix with another identity: %v, want ErrManifestMismatch that names profile_id", err)
	}
	_, err = sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: " " + s.Prompt(2), Manifest: other})
	if !errors.Is(err, transport.ErrManifestMismatch) {
		s.Errorf("PrefillSuffix with another identity: %v, want ErrManifestMismatch", err)
	}
	if again := s.prefix(sess, s.Prompt(6)); again.ReusedTokens != st.PrefixTokens {
		s.Errorf("a prefix that claims no identity reused %d of %d tokens", again.ReusedTokens, st.PrefixTokens)
	}
	if _, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(6), Manifest: mine}); err != nil {
		s.Errorf("EnsurePrefix with the same identity again: %v", err)
	}
}

func checkSuffixNumbers(s *suite) {
	sess := s.open()
	st := s.prefix(sess, s.Prompt(6))
	su := s.suffix(sess, " "+s.Prompt(5))
	if su.SuffixTokens < 5 {
		s.Errorf("5 words are %d tokens", su.SuffixTokens)
	}
	if empty := s.suffix(sess, ""); empty.SuffixTokens != 0 {
		s.Errorf("an empty suffix is %d tokens", empty.SuffixTokens)
	}
	// A new turn on the same prefix drops the old one.
	again := s.prefix(sess, s.Prompt(6))
	if again.DroppedTokens != su.SuffixTokens && !s.lacks(KVTruncation) {
		s.Errorf("the prefix without its suffix: %+v, want %d tokens dropped", again, su.SuffixTokens)
	}
	if again.PrefixTokens != st.PrefixTokens {
		s.Errorf("the prefix has %d tokens now, %d before", again.PrefixTokens, st.PrefixTokens)
	}
}
