package enginetest

import (
	"slices"
	"testing"

	"modeld/core/engine"
)

// Greedy is the bare loop that everything is compared with: it prefills tokens
// into the empty sequence seq, and returns up to n tokens by the greatest logit,
// without the one that ends the generation.
func Greedy(t testing.TB, r engine.Runner, seq int, tokens []engine.Token, n int) []engine.Token {
	t.Helper()
	info := r.Info()
	var row []float32
	for at := 0; at < len(tokens); {
		part := tokens[at:min(at+info.MaxBatch, len(tokens))]
		rows := forward(t, r, engine.Span{Seq: seq, Pos: at, Tokens: part, Logits: 1})
		row, at = rows[0], at+len(part)
	}
	var out []engine.Token
	for len(out) < n {
		next := argmax(row)
		if slices.Contains(info.EOG, next) {
			break
		}
		out = append(out, next)
		if len(out) < n {
			row = forward(t, r, engine.Span{Seq: seq, Pos: len(tokens) + len(out) - 1, Tokens: out[len(out)-1:], Logits: 1})[0]
		}
	}
	return out
}

// Text is the text of tokens.
func Text(t testing.TB, r engine.Runner, tokens []engine.Token) string {
	t.Helper()
	text, err := r.Detokenize(tokens)
	if err != nil {
		t.Fatalf("Detokenize: %v", err)
	}
	return text
}

func forward(t testing.TB, r engine.Runner, batch ...engine.Span) [][]float32 {
	t.Helper()
	rows, err := r.Forward(t.Context(), batch)
	if err != nil {
		t.Fatalf("Forward: %v", err)
	}
	want := 0
	for _, s := range batch {
		want += s.Logits
	}
	if len(rows) != want {
		t.Fatalf("Forward returned %d rows, want %d", len(rows), want)
	}
	return rows
}

func argmax(row []float32) engine.Token {
	best := 0
	for i, v := range row {
		if v > row[best] {
			best = i
		}
	}
	return engine.Token(best)
}
