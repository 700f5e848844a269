package transporttest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"modeld/core/transport"
)

// Feature is something that a Service may lack.
type Feature string

// The features that a Service may lack. The suite then checks that it says so
// with ErrUnsupportedFeature.
const (
	Embeddings   Feature = "embeddings"
	Snapshots    Feature = "snapshots"
	ModelControl Feature = "model control"
	Store        Feature = "model store"
	// ExactDecode is that greedy decoding of a context gives the same text
	// however its KV came to be. Without it the suite compares no texts.
	ExactDecode Feature = "exact decode"
	// KVTruncation is that part of a context can be dropped. Without it a
	// shorter prefix may be computed anew, and the numbers must say so.
	KVTruncation Feature = "KV truncation"
)

// Options tell the suite about a Service. The zero value is right for one with
// every feature.
type Options struct {
	// Lacks names what the Service can't do.
	Lacks []Feature
	// Request opens every session; its zero value is the Service's own model.
	// A context of a few hundred tokens keeps the suite quick.
	Request transport.OpenSessionRequest
	// Prompt returns a text of n words whose tokens begin with those of
	// Prompt(m), for every m < n. It defaults to the words of a story.
	Prompt func(n int) string
	// Manifest is an identity that the Service accepts. It defaults to one
	// with a ProfileID alone.
	Manifest transport.ContextManifest
	// Timeout bounds every step, 0 is one minute.
	Timeout time.Duration
}

// Run checks that a Service keeps the contract. open is called once for each
// check and may return the same Service every time; it owns what it opens.
// Every session that the suite opens is closed at the end of its check.
//
// Token counts come from the Service's own statuses, so that any tokenizer will
// do.
func Run(t *testing.T, open func(t *testing.T) transport.Service, opts Options) {
	t.Helper()
	if opts.Prompt == nil {
		opts.Prompt = StoryPrompt
	}
	if opts.Manifest.IsZero() {
		opts.Manifest.ProfileID = "transporttest"
	}
	if opts.Timeout == 0 {
		opts.Timeout = time.Minute
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			c.run(&suite{T: t, Options: opts, svc: open(t)})
		})
	}
}

var checks = []struct {
	name string
	run  func(*suite)
}{
	{"session/open and close", checkOpenClose},
	{"session/use after close", checkUseAfterClose},
	{"session/open with ended context", checkOpenCancelled},
	{"session/outlives the context that opened it", checkOutlivesOpen},
	{"session/explain", checkExplain},
	{"session/independent", checkIndependent},
	{"session/concurrent", checkConcurrent},
	{"prefix/numbers", checkPrefixNumbers},
	{"prefix/empty text empties", checkEmptyPrefix},
	{"prefix/cancelled", checkPrefixCancelled},
	{"prefix/overflow", checkPrefixOverflow},
	{"prefix/manifest", checkManifest},
	{"suffix/numbers", checkSuffixNumbers},
	{"suffix/overflow", checkSuffixOverflow},
	{"decode/empty context refused", checkDecodeEmpty},
	{"decode/max tokens", checkMaxTokens},
	{"decode/greedy is deterministic", checkGreedy},
	{"decode/becomes resident", checkDecodeResident},
	{"decode/until the context is full", checkDecodeFull},
	{"decode/cancelled", checkDecodeCancelled},
	{"decode/session closed under it", checkDecodeClosed},
	{"snapshot/round trip", checkSnapshot},
	{"snapshot/damaged", checkSnapshotDamaged},
	{"describe", checkDescribe},
	{"embed", checkEmbed},
	{"control", checkControl},
	{"store", checkStore},
}

// suite is one check's view of the Service under test.
type suite struct {
	*testing.T
	Options
	svc transport.Service
}

func (s *suite) lacks(f Feature) bool { return slices.Contains(s.Lacks, f) }

// ctx returns a context for one step.
func (s *suite) ctx() context.Context {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), s.Timeout)
	s.Cleanup(cancel)
	return ctx
}

// open opens a session that is closed with the check.
func (s *suite) open() transport.Session {
	s.Helper()
	sess, err := s.svc.OpenSession(s.ctx(), s.Request)
	if err != nil {
		s.Fatalf("OpenSession: %v", err)
	}
	s.Cleanup(func() {
		if err := sess.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	})
	return sess
}

// prefix makes text the context of sess and checks that the numbers add up.
func (s *suite) prefix(sess transport.Session, text string) transport.PrefixStatus {
	s.Helper()
	before := s.report(sess)
	st, err := sess.EnsurePrefix(s.ctx(), transport.PrefixInput{Text: text})
	if err != nil {
		s.Fatalf("EnsurePrefix of %d bytes: %v", len(text), err)
	}
	switch {
	case st.ReusedTokens+st.PrefilledTokens != st.PrefixTokens:
		s.Fatalf("reused %d + prefilled %d is not the prefix's %d tokens", st.ReusedTokens, st.PrefilledTokens, st.PrefixTokens)
	case st.ResidentTokens != st.PrefixTokens:
		s.Fatalf("%d tokens are resident after a prefix of %d", st.ResidentTokens, st.PrefixTokens)
	case st.ReusedTokens < 0, st.PrefilledTokens < 0, st.DroppedTokens < 0, st.AvailableTokens < 0:
		s.Fatalf("negative count in %+v", st)
	case st.DroppedTokens > before.ResidentTokens:
		s.Fatalf("dropped %d of %d resident tokens", st.DroppedTokens, before.ResidentTokens)
	case st.ResidentTokens+st.AvailableTokens != before.NumCtx:
		s.Fatalf("resident %d + available %d is not the context of %d", st.ResidentTokens, st.AvailableTokens, before.NumCtx)
	case st.PrefixTokens > 0 && st.StableTokenHash == "":
		s.Fatal("StableTokenHash is empty")
	}
	return st
}

// suffix appends text to the context of sess and checks that the numbers add up.
func (s *suite) suffix(sess transport.Session, text string) transport.SuffixStatus {
	s.Helper()
	before := s.report(sess)
	st, err := sess.PrefillSuffix(s.ctx(), transport.SuffixInput{Text: text})
	if err != nil {
		s.Fatalf("PrefillSuffix of %d bytes: %v", len(text), err)
	}
	switch {
	case st.ResidentTokens != before.ResidentTokens+st.SuffixTokens:
		s.Fatalf("%d tokens are resident after a suffix of %d on top of %d", st.ResidentTokens, st.SuffixTokens, before.ResidentTokens)
	case st.PrefixTokens != before.PrefixTokens:
		s.Fatalf("the prefix has %d tokens after a suffix, %d before", st.PrefixTokens, before.PrefixTokens)
	case st.ResidentTokens+st.AvailableTokens != before.NumCtx:
		s.Fatalf("resident %d + available %d is not the context of %d", st.ResidentTokens, st.AvailableTokens, before.NumCtx)
	}
	return st
}

// report returns the context report of an open, healthy session.
func (s *suite) report(sess transport.Session) transport.ContextReport {
	s.Helper()
	r := sess.ExplainContext()
	switch {
	case r.FatalError != "":
		s.Fatalf("ExplainContext: %s", r.FatalError)
	case r.Closed:
		s.Fatal("ExplainContext says Closed of an open session")
	case r.NumCtx <= 0:
		s.Fatalf("ExplainContext: NumCtx is %d", r.NumCtx)
	case r.ResidentTokens+r.AvailableTokens != r.NumCtx:
		s.Fatalf("ExplainContext: resident %d + available %d is not the context of %d", r.ResidentTokens, r.AvailableTokens, r.NumCtx)
	}
	return r
}

// generation is what a Decode gave.
type generation struct {
	text   string
	tokens int
	chunks int
	finish string
	err    error
}

// decode generates greedily to the end.
func (s *suite) decode(sess transport.Session, maxTokens int) generation {
	s.Helper()
	g := s.tryDecode(sess, maxTokens)
	if g.err != nil {
		s.Fatalf("Decode: %v", g.err)
	}
	return g
}

func (s *suite) tryDecode(sess transport.Session, maxTokens int) generation {
	s.Helper()
	ch, err := sess.Decode(s.ctx(), greedy(maxTokens))
	if err != nil {
		return generation{err: err}
	}
	return s.drain(ch)
}

// drain reads a stream to its end, which must come in time.
func (s *suite) drain(ch <-chan transport.StreamChunk) generation {
	s.Helper()
	var g generation
	var text strings.Builder
	late := time.After(s.Timeout)
	for {
		select {
		case chunk, more := <-ch:
			if !more {
				g.text = text.String()
				return g
			}
			if g.err != nil || g.finish != "" {
				s.Fatalf("a chunk after the last: %+v", chunk)
			}
			if !strings.HasPrefix(strings.ToValidUTF8(chunk.Text, "\x00"), chunk.Text) {
				s.Fatalf("a chunk is not whole UTF-8: %q", chunk.Text)
			}
			text.WriteString(chunk.Text)
			g.chunks++
			g.tokens += chunk.Tokens
			g.finish, g.err = chunk.FinishReason, chunk.Error
		case <-late:
			s.Fatalf("the stream did not end within %v", s.Timeout)
		}
	}
}

func greedy(maxTokens int) transport.DecodeConfig {
	zero := 0.0
	return transport.DecodeConfig{MaxTokens: maxTokens, Temperature: &zero}
}

var story = strings.Fields("Once upon a time there was a small house by the sea and in it lived an old man with his cat " +
	"who liked to look at the boats that came home in the evening when the light was low and the water was still")

// StoryPrompt returns n words of a story that repeats itself.
func StoryPrompt(n int) string {
	words := make([]string, n)
	for i := range words {
		words[i] = story[i%len(story)]
	}
	return strings.Join(words, " ")
}
