package llamarunner_test

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"

	"modeld/bench/barellama"
	"modeld/core/engine"
	"modeld/core/transport"
	"modeld/internal/testparts"
	"modeld/plugins/llama/llamarunner"
)

// TestMain makes the test binary its own probe, as modeld-llama is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == llamarunner.ProbeArg {
		os.Exit(llamarunner.ProbeMain(os.Args[2:], os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

func settings(t testing.TB) llamarunner.Settings {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// One thread: llama.cpp's threads spin, which is slow on a busy machine.
	return llamarunner.Settings{Threads: 1, LibDir: testparts.LlamaLib(t), ProbeCommand: []string{exe, llamarunner.ProbeArg}}
}

// open loads the test model.
func open(t testing.TB, s llamarunner.Settings, c transport.Config) engine.Runner {
	t.Helper()
	r, err := llamarunner.New(s).Load(context.Background(), engine.ModelSpec{Path: testparts.Model(t), Config: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func tokenize(t testing.TB, r engine.Runner, text string) []engine.Token {
	t.Helper()
	tokens, err := r.Tokenize(text, r.Info().AddBOS)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// prefill computes tokens of seq from position pos on, in batches, and returns
// the likeliest next token.
func prefill(t testing.TB, r engine.Runner, seq, pos int, tokens []engine.Token) engine.Token {
	t.Helper()
	for {
		n := min(len(tokens), r.Info().MaxBatch)
		rows, err := r.Forward(context.Background(), []engine.Span{{Seq: seq, Pos: pos, Tokens: tokens[:n], Logits: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if pos, tokens = pos+n, tokens[n:]; len(tokens) == 0 {
			return engine.Token(barellama.Argmax(rows[0]))
		}
	}
}

// decode goes on greedily from next at position pos, n tokens with next.
func decode(t testing.TB, r engine.Runner, seq, pos int, next engine.Token, n int) []engine.Token {
	t.Helper()
	out := []engine.Token{next}
	for len(out) < n {
		next = prefill(t, r, seq, pos, []engine.Token{next})
		out = append(out, next)
		pos++
	}
	return out
}

// fresh is what greedy decoding gives for tokens in an empty sequence.
func fresh(t testing.TB, r engine.Runner, seq int, tokens []engine.Token, n int) []engine.Token {
	t.Helper()
	if err := r.Truncate(seq, 0); err != nil {
		t.Fatal(err)
	}
	return decode(t, r, seq, len(tokens), prefill(t, r, seq, 0, tokens), n)
}
