package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"modeld/core/engine"
	"modeld/core/transport"
)

func checkVocabulary(s *suite) {
	for _, text := range []string{story, "func main() {\n\tprintln(\"hi\")\n}\n", "Grüße, 世界! Привет", "👩‍🚀 and 🎉", "  two  spaces"} {
		tokens, err := s.r.Tokenize(text, false)
		if err != nil || len(tokens) == 0 {
			s.Fatalf("Tokenize(%q): %d tokens, %v", text, len(tokens), err)
		}
		back, err := s.r.Detokenize(tokens)
		if err != nil || strings.TrimPrefix(back, " ") != strings.TrimPrefix(text, " ") {
			s.Errorf("Detokenize(Tokenize(%q)) is %q, %v", text, back, err)
		}
		// Streaming decodes a growing tail: a part of a character must show,
		// and what is whole never changes.
		first, err := s.r.Detokenize(tokens[:1])
		if err != nil {
			s.Fatalf("Detokenize: %v", err)
		}
		for n, t := range tokens[1:] {
			if pair, err := s.r.Detokenize([]engine.Token{tokens[0], t}); err != nil || len(pair) <= len(first) {
				s.Errorf("token %d of %q gives nothing: %q after %q, %v", n+1, text, pair, first, err)
			}
		}
		for n := range tokens {
			part, err := s.r.Detokenize(tokens[:n+1])
			if err != nil {
				s.Fatalf("Detokenize: %v", err)
			}
			whole := strings.TrimRight(part, "\uFFFD")
			for len(whole) > 0 && !utf8.ValidString(whole) {
				whole = whole[:len(whole)-1]
			}
			if !strings.HasPrefix(back, whole) {
				s.Errorf("%d tokens of %q are %q", n+1, text, part)
			}
		}
	}
	if tokens, err := s.r.Tokenize("", false); err != nil || len(tokens) != 0 {
		s.Errorf("Tokenize of nothing: %v, %v", tokens, err)
	}
	if text, err := s.r.Detokenize(nil); err != nil || text != "" {
		s.Errorf("Detokenize of nothing: %q, %v", text, err)
	}
	if s.info.BOSText != "" && s.info.AddBOS {
		once, _ := s.r.Tokenize("x", true)
		twice, _ := s.r.Tokenize(s.info.BOSText+"x", true)
		if !slices.Equal(once, twice) {
			s.Errorf("a text that begins with %q gets it again: %v and %v", s.info.BOSText, once, twice)
		}
	}
}

func checkRows(s *suite) {
	tokens := s.tokens(story)[:8]
	all := forward(s, s.r, engine.Span{Seq: 0, Tokens: tokens, Logits: len(tokens)})
	var rows [][]float32
	for _, r := range all {
		if len(r) != s.info.VocabSize {
			s.Fatalf("a row of %d logits, VocabSize is %d", len(r), s.info.VocabSize)
		}
		for i, v := range r {
			if math.IsNaN(float64(v)) {
				s.Fatalf("logit %d is not a number", i)
			}
		}
		rows = append(rows, slices.Clone(r))
	}
	// Rows come in order of spans, and none for spans that need none.
	batch := forward(s, s.r,
		engine.Span{Seq: 1, Tokens: tokens, Logits: 1},
		engine.Span{Seq: 2, Tokens: tokens[:5]},
		engine.Span{Seq: 3, Tokens: tokens[:3], Logits: 2})
	for i, at := range []int{7, 1, 2} {
		var got, want run
		got.add(batch[i])
		want.add(rows[at])
		s.same(fmt.Sprintf("row %d, for position %d", i, at), got, want)
	}
}

func checkBatch(s *suite) {
	tokens := s.tokens(story)
	want := s.reference(tokens)
	s.same("prefilled in pieces of 7", s.generate(1, len(tokens), s.prefill(1, 0, tokens, 7)), want)
	s.truncate(1, 0)

	// Among others of other lengths, which begin while it runs.
	var among run
	row := s.prefill(1, 0, tokens, s.info.MaxBatch)
	next, lens := among.add(row), []int{0, len(tokens), 0, 0}
	for len(among.tokens) < generated {
		batch := []engine.Span{{Seq: 1, Pos: lens[1], Tokens: []engine.Token{next}, Logits: 1}}
		for _, seq := range []int{0, 2, 3} {
			n := min(1+(seq+len(among.tokens))%3, len(tokens)-lens[seq]-1)
			if n > 0 {
				batch = append(batch, engine.Span{Seq: seq, Pos: lens[seq], Tokens: tokens[1+lens[seq]:][:n], Logits: n})
				lens[seq] += n
			}
		}
		lens[1]++
		if len(among.tokens)%2 == 0 { // not always the first span
			batch = append(batch[1:], batch[0])
			rows := forward(s, s.r, batch...)
			next = among.add(rows[len(rows)-1])
		} else {
			next = among.add(forward(s, s.r, batch...)[0])
		}
	}
	s.same("among others", among, want)
}

func checkTruncate(s *suite) {
	tokens := s.tokens(story)
	want := s.reference(tokens)
	if !s.info.Caps.Truncate {
		s.prefill(0, 0, tokens, s.info.MaxBatch)
		if err := s.r.Truncate(0, 3); !errors.Is(err, transport.ErrUnsupportedFeature) {
			s.Errorf("Truncate without Caps.Truncate: %v, want ErrUnsupportedFeature", err)
		}
		s.truncate(0, len(tokens))
		s.truncate(0, 0)
		s.same("after emptying", s.reference(tokens), want)
		return
	}
	other := s.tokens("Something quite different, " + story)
	for _, keep := range []int{len(tokens) - 1, len(tokens) / 2, 1, 0} {
		s.prefill(1, 0, append(slices.Clone(tokens[:keep]), other...), s.info.MaxBatch)
		s.truncate(1, keep)
		row := s.prefill(1, keep, tokens[keep:], s.info.MaxBatch)
		s.same(fmt.Sprintf("after a cut to %d of %d", keep, len(tokens)), s.generate(1, len(tokens), row), want)
		s.truncate(1, 0)
	}
}

func checkShare(s *suite) {
	if !s.info.Caps.Share {
		return
	}
	tokens := s.tokens(story)
	other := s.tokens(" But nobody knew it, so the others went home.")
	want := s.reference(tokens)
	lengths := []int{len(tokens)}
	if s.info.Caps.Truncate {
		lengths = append(lengths, len(tokens)/2, 1)
	}
	for _, n := range lengths {
		row := s.prefill(0, 0, tokens, s.info.MaxBatch)
		if err := s.r.Share(1, 0, n); err != nil {
			s.Fatalf("Share of %d: %v", n, err)
		}
		// Both go on: what one writes must not reach the other.
		s.prefill(1, n, other, s.info.MaxBatch)
		s.same(fmt.Sprintf("the source, after sharing %d", n), s.generate(0, len(tokens), row), want)
		s.truncate(0, 0)
		if s.info.Caps.Truncate {
			s.truncate(1, n)
			if n == len(tokens) {
				s.truncate(1, n-1)
				n--
			}
			row = s.prefill(1, n, tokens[n:], s.info.MaxBatch)
			s.same(fmt.Sprintf("the copy of %d, without its source", n), s.generate(1, len(tokens), row), want)
		}
		s.truncate(1, 0)
	}
}

func checkSave(s *suite) {
	if !s.info.Caps.Save {
		return
	}
	tokens := s.tokens(story)
	want := s.reference(tokens)
	n := len(tokens) - 1
	s.prefill(0, 0, tokens[:n], s.info.MaxBatch)
	var kv bytes.Buffer
	if err := s.r.Save(0, n, &kv); err != nil {
		s.Fatalf("Save: %v", err)
	}
	s.truncate(0, 0)
	if err := s.r.Load(2, n, bytes.NewReader(kv.Bytes())); err != nil {
		s.Fatalf("Load: %v", err)
	}
	s.same("after Load", s.generate(2, len(tokens), s.prefill(2, n, tokens[n:], 1)), want)
}

func checkLoadDamaged(s *suite) {
	if !s.info.Caps.Save {
		return
	}
	tokens := s.tokens(story)
	want := s.reference(tokens)
	s.prefill(0, 0, tokens, s.info.MaxBatch)
	var kv bytes.Buffer
	if err := s.r.Save(0, len(tokens), &kv); err != nil {
		s.Fatalf("Save: %v", err)
	}
	s.truncate(0, 0)
	for name, data := range map[string][]byte{
		"nothing": nil, "half": kv.Bytes()[:kv.Len()/2], "noise": bytes.Repeat([]byte{0xA5}, 4096),
	} {
		if err := s.r.Load(1, len(tokens), bytes.NewReader(data)); err == nil {
			s.Errorf("Load of %s gave no error", name)
		}
		s.same("after a refused Load", s.generate(1, len(tokens), s.prefill(1, 0, tokens, s.info.MaxBatch)), want)
		s.truncate(1, 0)
	}
}

// checkFull fills one sequence to the last position.
func checkFull(s *suite) {
	tokens := s.tokens(story)
	for len(tokens) < s.info.NumCtx {
		tokens = append(tokens, tokens[1:]...)
	}
	row := s.prefill(0, 0, tokens[:s.info.NumCtx], s.info.MaxBatch)
	if len(row) != s.info.VocabSize {
		s.Errorf("the last position's row has %d logits", len(row))
	}
	s.truncate(0, 0)
	short := s.tokens(story)
	s.same("after a full context", s.reference(short), s.reference(short))
}

func checkEmbed(s *suite) {
	e, ok := s.r.(engine.Embedder)
	if !ok {
		return
	}
	one, two := s.tokens(story), s.tokens("Quite another text.")
	vectors, err := e.Embed(s.Context(), [][]engine.Token{one, two, one})
	if errors.Is(err, transport.ErrUnsupportedFeature) {
		return
	}
	if err != nil || len(vectors) != 3 {
		s.Fatalf("Embed of 3 texts: %d vectors, %v", len(vectors), err)
	}
	for i, v := range vectors {
		var square float64
		for _, x := range v {
			square += float64(x) * float64(x)
		}
		if math.Abs(math.Sqrt(square)-1) > 1e-3 {
			s.Errorf("vector %d has length %g, want 1", i, math.Sqrt(square))
		}
	}
	var same, other float64
	for i := range vectors[0] {
		same += float64(vectors[0][i]) * float64(vectors[2][i])
		other += float64(vectors[0][i]) * float64(vectors[1][i])
	}
	if same < 0.999 || other > 0.9999 {
		s.Errorf("cosine of the same text %g, of another %g", same, other)
	}
	// Sequences are as they were: empty, and good for generations.
	s.reference(one)
}
