package enginetest

import (
	"math"
	"slices"
	"testing"

	"modeld/core/engine"
)

// RunnerOption changes what RunRunner expects.
type RunnerOption func(*suite)

// NearTies lets greedy tokens differ where the kernels round by a batch's shape:
// the first difference must then be a near tie, with the two best logits at
// most gap apart in both runs. Without it tokens must be the same.
func NearTies(gap float32) RunnerOption { return func(s *suite) { s.gap = gap } }

// suite is one Runner under test.
type suite struct {
	*testing.T
	r    engine.Runner
	info engine.Info
	gap  float32
}

// RunRunner checks that a Runner keeps the contract of engine.Runner. load
// returns one that nobody else uses, with at least four sequences and a context
// of at least 512 tokens; the suite closes it. Each check begins with empty
// sequences.
func RunRunner(t *testing.T, load func(t *testing.T) engine.Runner, opts ...RunnerOption) {
	t.Helper()
	r := load(t)
	defer func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	info := r.Info()
	if !t.Run("info", func(t *testing.T) { checkInfo(t, info) }) {
		return
	}
	for _, c := range []struct {
		name string
		run  func(*suite)
	}{
		{"tokenize and detokenize", checkVocabulary},
		{"rows", checkRows},
		{"greedy alone, in pieces, in a batch", checkBatch},
		{"truncate", checkTruncate},
		{"share", checkShare},
		{"save and load", checkSave},
		{"load of damaged data", checkLoadDamaged},
		{"full context", checkFull},
		{"embed", checkEmbed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t, r: r, info: info}
			for _, o := range opts {
				o(s)
			}
			defer s.empty()
			c.run(s)
		})
	}
}

func checkInfo(t *testing.T, info engine.Info) {
	switch {
	case info.VocabSize <= 0:
		t.Errorf("VocabSize is %d", info.VocabSize)
	case info.NumCtx < 512 || info.MaxSeqs < 4:
		t.Errorf("a context of %d and %d sequences; load it with at least 512 and 4", info.NumCtx, info.MaxSeqs)
	case info.KVTokens < info.NumCtx:
		t.Errorf("KVTokens %d is less than one context of %d", info.KVTokens, info.NumCtx)
	case info.MaxBatch < info.MaxSeqs:
		t.Errorf("MaxBatch %d is less than one token for each of %d sequences", info.MaxBatch, info.MaxSeqs)
	case len(info.EOG) == 0:
		t.Error("no end-of-generation token")
	}
	for _, e := range info.EOG {
		if e < 0 || int(e) >= info.VocabSize {
			t.Errorf("end-of-generation token %d is not in the vocabulary of %d", e, info.VocabSize)
		}
	}
}

const story = "Once upon a time there was a small house by the sea. In it lived an old man with his cat, " +
	"who liked to look at the boats that came home in the evening."

func (s *suite) tokens(text string) []engine.Token {
	s.Helper()
	tokens, err := s.r.Tokenize(text, s.info.AddBOS)
	if err != nil {
		s.Fatalf("Tokenize: %v", err)
	}
	return tokens
}

// empty drops all KV.
func (s *suite) empty() {
	for seq := range s.info.MaxSeqs {
		s.truncate(seq, 0)
	}
}

func (s *suite) truncate(seq, n int) {
	s.Helper()
	if err := s.r.Truncate(seq, n); err != nil {
		s.Fatalf("Truncate(%d, %d): %v", seq, n, err)
	}
}

// run is a greedy generation: its tokens, and how far the best logit was from
// the second at each.
type run struct {
	tokens []engine.Token
	gaps   []float32
}

func (r *run) add(row []float32) engine.Token {
	best := argmax(row)
	second := float32(math.Inf(-1))
	for i, v := range row {
		if engine.Token(i) != best && v > second {
			second = v
		}
	}
	r.tokens, r.gaps = append(r.tokens, best), append(r.gaps, row[best]-second)
	return best
}

// prefill feeds tokens from pos on, in pieces, and returns the last row.
func (s *suite) prefill(seq, pos int, tokens []engine.Token, piece int) []float32 {
	s.Helper()
	var row []float32
	for at := 0; at < len(tokens); at += piece {
		part := tokens[at:min(at+piece, len(tokens))]
		row = forward(s, s.r, engine.Span{Seq: seq, Pos: pos + at, Tokens: part, Logits: 1})[0]
	}
	return slices.Clone(row)
}

// generate goes on from row, the logits at position pos-1.
func (s *suite) generate(seq, pos int, row []float32) run {
	s.Helper()
	var out run
	for next := out.add(row); len(out.tokens) < generated; next = out.add(row) {
		row = forward(s, s.r, engine.Span{Seq: seq, Pos: pos, Tokens: []engine.Token{next}, Logits: 1})[0]
		pos++
	}
	return out
}

const generated = 24

// reference is what a fresh sequence generates after tokens.
func (s *suite) reference(tokens []engine.Token) run {
	s.Helper()
	out := s.generate(0, len(tokens), s.prefill(0, 0, tokens, s.info.MaxBatch))
	s.truncate(0, 0)
	return out
}

// same checks that two generations agree, but for near ties where allowed.
func (s *suite) same(what string, got, want run) {
	s.Helper()
	for i := range want.tokens {
		if got.tokens[i] == want.tokens[i] {
			continue
		}
		if s.gap > 0 && got.gaps[i] <= s.gap && want.gaps[i] <= s.gap {
			s.Logf("%s: a near tie at token %d (gaps %g and %g)", what, i, got.gaps[i], want.gaps[i])
			return
		}
		s.Errorf("%s: token %d is %d, alone %d (top-2 gaps %g and %g)", what, i, got.tokens[i], want.tokens[i], got.gaps[i], want.gaps[i])
		return
	}
}
