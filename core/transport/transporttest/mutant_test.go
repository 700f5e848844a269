package transporttest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"modeld/core/transport"
)

// mutant is a Fake with one fault.
type mutant struct {
	Fake
	embed  func(transport.EmbedResult) transport.EmbedResult
	wrap   func(*mutantSession)
	opened func(*mutant, context.Context, transport.OpenSessionRequest) (transport.Session, error)
}

func (m *mutant) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	if m.opened != nil {
		return m.opened(m, ctx, req)
	}
	sess, err := m.Fake.OpenSession(ctx, req)
	if err != nil || m.wrap == nil {
		return sess, err
	}
	s := &mutantSession{Session: sess}
	m.wrap(s)
	return s, nil
}

func (m *mutant) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	res, err := m.Fake.Embed(ctx, req)
	if m.embed != nil {
		res = m.embed(res)
	}
	return res, err
}

// mutantSession changes what a session answers; nil fields change nothing.
type mutantSession struct {
	transport.Session
	prefix  func(transport.PrefixStatus, error) (transport.PrefixStatus, error)
	suffix  func(transport.SuffixStatus, error) (transport.SuffixStatus, error)
	config  func(transport.DecodeConfig) transport.DecodeConfig
	chunks  func(context.Context, <-chan transport.StreamChunk) <-chan transport.StreamChunk
	decode  func(error) error
	explain func(transport.ContextReport) transport.ContextReport
	restore func(transport.SessionSnapshot) transport.SessionSnapshot
	close   func(error) error
	blind   bool // to manifests
}

func (s *mutantSession) EnsurePrefix(ctx context.Context, in transport.PrefixInput) (transport.PrefixStatus, error) {
	if s.blind {
		in.Manifest = transport.ContextManifest{}
	}
	st, err := s.Session.EnsurePrefix(ctx, in)
	if s.prefix != nil {
		return s.prefix(st, err)
	}
	return st, err
}

func (s *mutantSession) PrefillSuffix(ctx context.Context, in transport.SuffixInput) (transport.SuffixStatus, error) {
	if s.blind {
		in.Manifest = transport.ContextManifest{}
	}
	st, err := s.Session.PrefillSuffix(ctx, in)
	if s.suffix != nil {
		return s.suffix(st, err)
	}
	return st, err
}

func (s *mutantSession) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	if s.config != nil {
		cfg = s.config(cfg)
	}
	ch, err := s.Session.Decode(ctx, cfg)
	if s.decode != nil {
		err = s.decode(err)
	}
	if err == nil && s.chunks != nil {
		return s.chunks(ctx, ch), nil
	}
	return ch, err
}

func (s *mutantSession) ExplainContext() transport.ContextReport {
	r := s.Session.ExplainContext()
	if s.explain != nil {
		return s.explain(r)
	}
	return r
}

func (s *mutantSession) Restore(ctx context.Context, snap transport.SessionSnapshot) error {
	if s.restore != nil {
		snap = s.restore(snap)
	}
	return s.Session.Restore(ctx, snap)
}

func (s *mutantSession) Close() error {
	err := s.Session.Close()
	if s.close != nil {
		return s.close(err)
	}
	return err
}

// filter passes a stream through f, which may drop chunks.
func filter(f func(*transport.StreamChunk) bool) func(context.Context, <-chan transport.StreamChunk) <-chan transport.StreamChunk {
	return func(_ context.Context, in <-chan transport.StreamChunk) <-chan transport.StreamChunk {
		out := make(chan transport.StreamChunk, 64)
		go func() {
			defer close(out)
			for c := range in {
				if f(&c) {
					out <- c
				}
			}
		}()
		return out
	}
}

func faulty(f func(*mutantSession)) transport.Service { return &mutant{wrap: f} }

// mutants are faults and the check that must find each.
var mutants = []struct {
	name  string
	check string
	svc   func() transport.Service
}{
	{"reuse counted twice", "prefix/numbers", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.prefix = func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				st.ReusedTokens *= 2
				return st, err
			}
		})
	}},
	{"nothing is ever reused", "prefix/numbers", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.prefix = func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				st.PrefilledTokens, st.ReusedTokens = st.PrefixTokens, 0
				return st, err
			}
		})
	}},
	{"drops are not counted", "prefix/numbers", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.prefix = func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				st.DroppedTokens = 0
				return st, err
			}
		})
	}},
	{"a suffix's tokens are off by one", "suffix/numbers", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.suffix = func(st transport.SuffixStatus, err error) (transport.SuffixStatus, error) {
				st.SuffixTokens++
				return st, err
			}
		})
	}},
	{"an overflow without counts", "prefix/overflow", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.prefix = func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				if errors.Is(err, transport.ErrContextOverflow) {
					err = transport.ErrContextOverflow
				}
				return st, err
			}
		})
	}},
	{"manifests are ignored", "prefix/manifest", func() transport.Service {
		return faulty(func(s *mutantSession) { s.blind = true })
	}},
	{"one token too many", "decode/max tokens", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.config = func(cfg transport.DecodeConfig) transport.DecodeConfig {
				if cfg.MaxTokens > 0 {
					cfg.MaxTokens++
				}
				return cfg
			}
		})
	}},
	{"texts that differ every time", "decode/greedy is deterministic", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.chunks = filter(func(c *transport.StreamChunk) bool {
				c.Text += time.Now().Format("15:04:05.000000000")
				return true
			})
		})
	}},
	{"text that is cut within a character", "decode/max tokens", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.chunks = filter(func(c *transport.StreamChunk) bool { c.Text += "\xe6\x97"; return true })
		})
	}},
	{"generated tokens are not counted as resident", "decode/becomes resident", func() transport.Service {
		return faulty(func(s *mutantSession) {
			prefix := 0
			s.prefix = func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				prefix = st.ResidentTokens
				return st, err
			}
			s.explain = func(r transport.ContextReport) transport.ContextReport {
				r.ResidentTokens, r.AvailableTokens = prefix, r.NumCtx-prefix
				return r
			}
		})
	}},
	{"a stream that never closes", "decode/cancelled", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.chunks = func(ctx context.Context, in <-chan transport.StreamChunk) <-chan transport.StreamChunk {
				out := make(chan transport.StreamChunk, 64)
				go func() {
					for c := range in {
						out <- c
					}
					if ctx.Err() == nil {
						close(out)
					}
				}()
				return out
			}
		})
	}},
	{"a cut stream that looks complete", "decode/session closed under it", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.chunks = filter(func(c *transport.StreamChunk) bool { return c.Error == nil })
		})
	}},
	{"an empty context is decoded", "decode/empty context refused", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.decode = func(error) error { return nil }
			s.chunks = func(context.Context, <-chan transport.StreamChunk) <-chan transport.StreamChunk {
				out := make(chan transport.StreamChunk)
				close(out)
				return out
			}
		})
	}},
	{"the full context has another error", "decode/until the context is full", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.decode = func(err error) error {
				if err != nil {
					err = errors.New("full")
				}
				return err
			}
		})
	}},
	{"a second Close fails", "session/open and close", func() transport.Service {
		return faulty(func(s *mutantSession) {
			n := 0
			s.close = func(err error) error {
				if n++; n > 1 {
					return transport.ErrSessionClosed
				}
				return err
			}
		})
	}},
	{"a closed session's report says nothing of it", "session/use after close", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.explain = func(r transport.ContextReport) transport.ContextReport { r.Closed = false; return r }
		})
	}},
	{"the report forgets the prefix", "session/explain", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.explain = func(r transport.ContextReport) transport.ContextReport { r.PrefixTokens = 0; return r }
		})
	}},
	{"sessions share one context", "session/independent", func() transport.Service {
		var shared transport.Session
		return &mutant{opened: func(m *mutant, ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
			if shared != nil {
				return shared, nil
			}
			sess, err := m.Fake.OpenSession(ctx, req)
			shared = sess
			return sess, err
		}}
	}},
	{"sessions end with the context that opened them", "session/outlives the context that opened it", func() transport.Service {
		return &mutant{opened: func(m *mutant, ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
			sess, err := m.Fake.OpenSession(ctx, req)
			return &mutantSession{Session: sess, prefix: func(st transport.PrefixStatus, err error) (transport.PrefixStatus, error) {
				return st, errors.Join(err, ctx.Err())
			}}, err
		}}
	}},
	{"a snapshot is restored without its last token", "snapshot/round trip", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.restore = func(snap transport.SessionSnapshot) transport.SessionSnapshot {
				if n := len(snap.ResidentTokenIDs) - 1; n > 0 {
					snap.ResidentTokenIDs, snap.ResidentTokens = snap.ResidentTokenIDs[:n], n
				}
				return snap
			}
		})
	}},
	{"damaged snapshots are taken", "snapshot/damaged", func() transport.Service {
		return faulty(func(s *mutantSession) {
			s.restore = func(transport.SessionSnapshot) transport.SessionSnapshot { return transport.SessionSnapshot{} }
		})
	}},
	{"embeddings of another length", "embed", func() transport.Service {
		return &mutant{embed: func(r transport.EmbedResult) transport.EmbedResult {
			for i := range r.Vector {
				r.Vector[i] *= 2
			}
			return r
		}}
	}},
	{"one embedding for all", "embed", func() transport.Service {
		return &mutant{embed: func(transport.EmbedResult) transport.EmbedResult {
			return transport.EmbedResult{Vector: []float32{1, 0}}
		}}
	}},
	{"control is missing and nobody says so", "control", func() transport.Service { return &mutant{} }},
}

const mutantEnv = "TRANSPORTTEST_MUTANT"

// TestSuiteFindsFaults runs the suite against every mutant, in a process of its
// own since the suite must fail there, and wants the right check to fail.
func TestSuiteFindsFaults(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMutant$/^"+strings.ReplaceAll(rewrite(m.check), "/", "$/^")+"$")
			cmd.Env = append(os.Environ(), mutantEnv+"="+m.name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestMutant/"+rewrite(m.check)) {
				t.Errorf("%q was not found by %q (%v):\n%s", m.name, m.check, err, out)
			}
		})
	}
}

// rewrite makes of a check's name what the testing package does.
func rewrite(name string) string { return strings.ReplaceAll(name, " ", "_") }

// TestMutant is TestSuiteFindsFaults' other process; by itself it checks that a
// mutant without a fault passes.
func TestMutant(t *testing.T) {
	svc := func() transport.Service { return &mutant{} }
	lacks := []Feature{ModelControl, Store}
	for _, m := range mutants {
		if m.name == os.Getenv(mutantEnv) {
			svc = m.svc
			if m.check == "control" {
				lacks = nil
			}
		}
	}
	Run(t, func(*testing.T) transport.Service { return svc() }, Options{Lacks: lacks, Timeout: 2 * time.Second})
}
