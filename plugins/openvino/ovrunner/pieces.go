package ovrunner

import (
	"math/rand/v2"
	"strings"

	"modeld/core/engine"
)

// pieces are the texts of a vocabulary's tokens, where a text is no more than
// those of its tokens, joined. That saves streams the detokenizer, which takes
// some 60 µs for each token that they send.
type pieces struct {
	text []string
	// trims: the detokenizer drops a space from the front of a text, as those
	// made from SentencePiece do.
	trims bool
}

func (p *pieces) join(tokens []engine.Token) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(p.text[t])
	}
	if p.trims {
		return strings.TrimPrefix(b.String(), " ")
	}
	return b.String()
}

// detokenizer returns the texts of rows of so many tokens each.
type detokenizer func(tokens []engine.Token, columns int) ([]string, error)

// learnPieces asks the detokenizer for every token of the vocabulary, behind
// anchor, which has a text, and by itself. It returns nil where joining them
// does not give what the detokenizer does.
func learnPieces(detokenize detokenizer, vocab int, anchor engine.Token) (*pieces, error) {
	alone, behind := make([]engine.Token, vocab), make([]engine.Token, 2*vocab)
	for t := range vocab {
		alone[t] = engine.Token(t)
		behind[2*t], behind[2*t+1] = anchor, engine.Token(t)
	}
	solo, err := detokenize(alone, 1)
	if err != nil {
		return nil, err
	}
	pairs, err := detokenize(behind, 2)
	if err != nil {
		return nil, err
	}
	p := &pieces{text: make([]string, vocab)}
	var silent []engine.Token // special tokens
	for t, pair := range pairs {
		piece, ok := strings.CutPrefix(pair, solo[anchor])
		if !ok {
			return nil, nil
		}
		if p.text[t] = piece; piece != solo[t] {
			p.trims = true
		}
		if piece == "" {
			silent = append(silent, engine.Token(t))
		}
	}
	for t := range vocab {
		if p.join(alone[t:t+1]) != solo[t] {
			return nil, nil
		}
	}
	if ok, err := p.agrees(detokenize, silent); err != nil || !ok {
		return nil, err
	}
	return p, nil
}

// agrees compares joined texts with the detokenizer's for a sample of tokens
// beside each other, special ones among them.
func (p *pieces) agrees(detokenize detokenizer, silent []engine.Token) (bool, error) {
	const rows, columns = 512, 8
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a sample, the same at every load
	tokens := make([]engine.Token, rows*columns)
	for i := range tokens {
		if tokens[i] = engine.Token(r.IntN(len(p.text))); len(silent) > 0 && r.IntN(8) == 0 {
			tokens[i] = silent[r.IntN(len(silent))]
		}
	}
	texts, err := detokenize(tokens, columns)
	if err != nil {
		return false, err
	}
	for i, want := range texts {
		if p.join(tokens[i*columns:(i+1)*columns]) != want {
			return false, nil
		}
	}
	return true, nil
}
