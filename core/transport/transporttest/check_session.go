package transporttest

import (
	"context"
	"errors"
	"sync"

	"modeld/core/transport"
)

func checkOpenClose(s *suite) {
	sess := s.open()
	if r := s.report(sess); r.ResidentTokens != 0 || r.PrefixTokens != 0 {
		s.Errorf("a new session has %d resident and %d prefix tokens", r.ResidentTokens, r.PrefixTokens)
	}
	for range 3 {
		if err := sess.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
}

func checkUseAfterClose(s *suite) {
	sess := s.open()
	s.prefix(sess, s.Prompt(4))
	if err := sess.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	calls := map[string]func() error{
		"EnsurePrefix": func() error {
			_, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(4)})
			return err
		},
		"PrefillSuffix": func() error {
			_, err := sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: s.Prompt(4)})
			return err
		},
		"Decode": func() error {
			return s.tryDecode(sess, 1).err
		},
		"Snapshot": func() error {
			_, err := sess.Snapshot(s.ctx())
			return err
		},
		"Restore": func() error {
			return sess.Restore(s.ctx(), transport.SessionSnapshot{})
		},
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, transport.ErrSessionClosed) {
			s.Errorf("%s after Close: %v, want ErrSessionClosed", name, err)
		}
	}
	if r := sess.ExplainContext(); !r.Closed {
		s.Errorf("ExplainContext after Close does not say Closed: %+v", r)
	}
}

func checkOpenCancelled(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	sess, err := s.svc.OpenSession(ctx, s.Request)
	if !errors.Is(err, context.Canceled) {
		s.Errorf("OpenSession with an ended context: %v, want context.Canceled", err)
	}
	if err == nil {
		sess.Close()
	}
}

func checkOutlivesOpen(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	sess, err := s.svc.OpenSession(ctx, s.Request)
	cancel()
	if err != nil {
		s.Fatalf("OpenSession: %v", err)
	}
	defer sess.Close()
	s.prefix(sess, s.Prompt(4))
}

func checkExplain(s *suite) {
	sess := s.open()
	st := s.prefix(sess, s.Prompt(8))
	r := s.report(sess)
	if r.ResidentTokens != st.ResidentTokens || r.PrefixTokens != st.PrefixTokens || r.AvailableTokens != st.AvailableTokens {
		s.Errorf("ExplainContext says %d resident, %d prefix, %d available; EnsurePrefix said %d, %d, %d",
			r.ResidentTokens, r.PrefixTokens, r.AvailableTokens, st.ResidentTokens, st.PrefixTokens, st.AvailableTokens)
	}
	if r.StableTokenHash != st.StableTokenHash {
		s.Errorf("ExplainContext's StableTokenHash is %q, EnsurePrefix's %q", r.StableTokenHash, st.StableTokenHash)
	}
	if st.PrefilledTokens > 0 && r.PhysicalPrefillTokens+r.DeferredPrefillTokens == 0 {
		s.Errorf("%d tokens were prefilled and the report counts none", st.PrefilledTokens)
	}
	su := s.suffix(sess, " "+s.Prompt(3))
	r = s.report(sess)
	if r.ResidentTokens != su.ResidentTokens || r.PrefixTokens != st.PrefixTokens {
		s.Errorf("ExplainContext says %d resident, %d prefix; want %d, %d", r.ResidentTokens, r.PrefixTokens, su.ResidentTokens, st.PrefixTokens)
	}
}

func checkIndependent(s *suite) {
	one, two := s.open(), s.open()
	st := s.prefix(one, s.Prompt(8))
	if r := s.report(two); r.ResidentTokens != 0 {
		s.Errorf("a prefix of one session made %d tokens resident in another", r.ResidentTokens)
	}
	s.prefix(two, s.Prompt(3))
	if err := two.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	if again := s.prefix(one, s.Prompt(8)); again.ReusedTokens != st.PrefixTokens {
		s.Errorf("another session's end left %d of %d tokens to reuse", again.ReusedTokens, st.PrefixTokens)
	}
}

// checkConcurrent compares what sessions generate at once with what each
// generates alone.
func checkConcurrent(s *suite) {
	const sessions = 4
	generate := func(i int) (string, error) {
		sess, err := s.svc.OpenSession(s.ctx(), s.Request)
		if err != nil {
			return "", err
		}
		defer sess.Close()
		if _, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: s.Prompt(6 + 3*i)}); err != nil {
			return "", err
		}
		if _, err := sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: " " + s.Prompt(2)}); err != nil {
			return "", err
		}
		g := s.tryDecode(sess, 6)
		return g.text, g.err
	}
	var alone, together [sessions]string
	for i := range sessions {
		text, err := generate(i)
		if err != nil {
			s.Fatalf("session %d alone: %v", i, err)
		}
		alone[i] = text
	}
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			text, err := generate(i)
			if err != nil {
				s.Errorf("session %d among others: %v", i, err)
			}
			together[i] = text
		})
	}
	wg.Wait()
	if alone != together && !s.lacks(ExactDecode) {
		s.Errorf("sessions generate %q alone and %q together", alone, together)
	}
}
