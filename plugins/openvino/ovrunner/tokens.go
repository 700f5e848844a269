package ovrunner

import (
	"fmt"
	"strings"

	"modeld/core/engine"
)

// Tokenize splits text with the model's own tokenizer. Bytes that are not UTF-8
// count as U+FFFD: the tokenizer would make special tokens of them.
func (r *Runner) Tokenize(text string, addBOS bool) ([]engine.Token, error) {
	tokens, err := r.tokens(strings.ToValidUTF8(text, "\uFFFD"))
	if err != nil {
		return nil, err
	}
	if r.ownBOS && len(tokens) > 0 && tokens[0] == r.bos {
		tokens = tokens[1:] // the tokenizer puts one before every text
	}
	if addBOS && r.bos >= 0 && (len(tokens) == 0 || tokens[0] != r.bos) {
		tokens = append([]engine.Token{r.bos}, tokens...)
	}
	return tokens, nil
}

func (r *Runner) tokens(text string) ([]engine.Token, error) {
	if text == "" {
		return nil, nil
	}
	// One for each byte and some that the tokenizer adds.
	ids := make([]int64, len(text)+8)
	data := []byte(text)
	for {
		var n int64
		if err := call(func(e *byte, c uint64) int32 {
			return r.lib.tokenize(r.model, &data[0], uint64(len(data)), &ids[0], int64(len(ids)), &n, e, c)
		}); err != nil {
			return nil, fmt.Errorf("openvino: tokenize %d bytes: %w", len(text), err)
		}
		if n > int64(len(ids)) {
			ids = make([]int64, n)
			continue
		}
		tokens := make([]engine.Token, n)
		for i, id := range ids[:n] {
			tokens[i] = engine.Token(id)
		}
		return tokens, nil
	}
}

// Detokenize returns the text of tokens without special ones. It ends within a
// character where the tokens do.
func (r *Runner) Detokenize(tokens []engine.Token) (string, error) {
	for _, t := range tokens {
		if t < 0 || int(t) >= r.vocab {
			return "", fmt.Errorf("openvino: token %d is not within the vocabulary of %d", t, r.vocab)
		}
	}
	switch {
	case len(tokens) == 0:
		return "", nil
	case r.pieces != nil:
		return r.pieces.join(tokens), nil
	}
	texts, err := r.detokenize(tokens, len(tokens))
	if err != nil {
		return "", err
	}
	return texts[0], nil
}

// detokenize asks the model's detokenizer for the texts of rows of so many
// columns each.
func (r *Runner) detokenize(tokens []engine.Token, columns int) ([]string, error) {
	ids := make([]int64, len(tokens))
	for i, t := range tokens {
		ids[i] = int64(t)
	}
	rows := len(tokens) / columns
	ends := make([]uint64, rows)
	out := make([]byte, 16*len(tokens)+64)
	for {
		var n uint64
		if err := call(func(e *byte, c uint64) int32 {
			return r.lib.detokenize(r.model, &ids[0], int64(rows), int64(columns), &out[0], uint64(len(out)), &ends[0], &n, e, c)
		}); err != nil {
			return nil, fmt.Errorf("openvino: detokenize %d tokens: %w", len(tokens), err)
		}
		if n > uint64(len(out)) {
			out = make([]byte, n)
			continue
		}
		all := string(out[:n])
		texts, at := make([]string, rows), uint64(0)
		for i, end := range ends {
			texts[i], at = all[at:end], end
		}
		return texts, nil
	}
}
