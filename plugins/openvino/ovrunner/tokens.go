package ovrunner

import (
	"fmt"
	"strings"

	"modeld/core/engine"
)

// maxPieces bounds the texts of single tokens that are kept.
const maxPieces = 1 << 16

// Tokenize splits text with the model's own tokenizer.
func (r *Runner) Tokenize(text string, addBOS bool) ([]engine.Token, error) {
	tokens, err := r.tokens(text)
	if err != nil {
		return nil, err
	}
	has := len(tokens) > 0 && tokens[0] == r.bos
	switch {
	case r.bos < 0:
	case r.info.AddBOS && !addBOS && has:
		// The tokenizer puts it there by itself. Text that begins with it
		// gives it twice.
		return tokens[1:], nil
	case r.info.AddBOS && addBOS && len(tokens) > 1 && tokens[1] == r.bos:
		return tokens[1:], nil
	case !r.info.AddBOS && addBOS && !has:
		return append([]engine.Token{r.bos}, tokens...), nil
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

// Detokenize returns the text of tokens; the model's detokenizer drops special
// ones and puts U+FFFD for the bytes of an incomplete character.
func (r *Runner) Detokenize(tokens []engine.Token) (string, error) {
	if len(tokens) == 0 {
		return "", nil
	}
	if len(tokens) == 1 {
		r.mu.Lock()
		text, ok := r.pieces[tokens[0]]
		r.mu.Unlock()
		if ok {
			return text, nil
		}
	}
	text, err := r.detokenize(tokens)
	if err == nil && len(tokens) == 1 {
		r.mu.Lock()
		if len(r.pieces) < maxPieces {
			r.pieces[tokens[0]] = strings.Clone(text)
		}
		r.mu.Unlock()
	}
	return text, err
}

func (r *Runner) detokenize(tokens []engine.Token) (string, error) {
	ids := make([]int64, len(tokens))
	for i, t := range tokens {
		if t < 0 || int(t) >= r.vocab {
			return "", fmt.Errorf("openvino: token %d is not within the vocabulary of %d", t, r.vocab)
		}
		ids[i] = int64(t)
	}
	out := make([]byte, 16*len(tokens)+64)
	for {
		var n uint64
		if err := call(func(e *byte, c uint64) int32 {
			return r.lib.detokenize(r.model, &ids[0], int64(len(ids)), &out[0], uint64(len(out)), &n, e, c)
		}); err != nil {
			return "", fmt.Errorf("openvino: detokenize %d tokens: %w", len(tokens), err)
		}
		if n <= uint64(len(out)) {
			return string(out[:n]), nil
		}
		out = make([]byte, n)
	}
}
