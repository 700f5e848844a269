package llamarunner

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unsafe"

	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/jupiterrider/ffi"

	"modeld/core/engine"
)

// maxText is the most bytes in one call of the tokenizer.
const maxText = 256 << 20

// Tokenize splits text into tokens. Bytes that are not UTF-8 count as U+FFFD.
func (r *Runner) Tokenize(text string, addBOS bool) ([]engine.Token, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("llama: a text of %d bytes; the tokenizer takes %d", len(text), maxText)
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	out, err := r.rawTokens(text)
	if err != nil {
		return nil, err
	}
	if bos := engine.Token(llama.VocabBOS(r.vocab)); addBOS && bos >= 0 && (len(out) == 0 || out[0] != bos) {
		out = slices.Insert(out, 0, bos)
	}
	return out, nil
}

// rawTokens calls llama_tokenize, which returns the negated number of tokens
// where the buffer is too small.
func (r *Runner) rawTokens(text string) ([]engine.Token, error) {
	if text == "" {
		return nil, nil
	}
	data, size := unsafe.StringData(text), int32(len(text))
	var special, parse uint8 = 0, 1
	capacity := int32(len(text)/3 + 16)
	for range 2 {
		buf := make([]engine.Token, capacity, capacity+1) // room for BOS
		p := unsafe.SliceData(buf)
		var ret ffi.Arg
		r.lib.tokenize.Call(unsafe.Pointer(&ret), unsafe.Pointer(&r.vocab), unsafe.Pointer(&data), unsafe.Pointer(&size),
			unsafe.Pointer(&p), unsafe.Pointer(&capacity), unsafe.Pointer(&special), unsafe.Pointer(&parse))
		n := int32(ret)
		if n >= 0 {
			return buf[:n], nil
		}
		if n == math.MinInt32 {
			break
		}
		capacity = -n
	}
	return nil, fmt.Errorf("llama: the tokenizer refuses a text of %d bytes", size)
}

// Detokenize returns the text of tokens without special ones.
func (r *Runner) Detokenize(tokens []engine.Token) (string, error) {
	if len(tokens) == 0 {
		return "", nil
	}
	for _, t := range tokens {
		// llama.cpp throws through the Go stack at an unknown token.
		if t < 0 || int(t) >= r.info.VocabSize {
			return "", fmt.Errorf("llama: token %d is not in the vocabulary of %d", t, r.info.VocabSize)
		}
	}
	p, count := unsafe.SliceData(tokens), int32(len(tokens))
	var remove, unparse uint8 = 0, 0
	capacity := int32(len(tokens)*8 + 32)
	for range 2 {
		buf := make([]byte, capacity)
		text := unsafe.SliceData(buf)
		var ret ffi.Arg
		r.lib.detokenize.Call(unsafe.Pointer(&ret), unsafe.Pointer(&r.vocab), unsafe.Pointer(&p), unsafe.Pointer(&count),
			unsafe.Pointer(&text), unsafe.Pointer(&capacity), unsafe.Pointer(&remove), unsafe.Pointer(&unparse))
		n := int32(ret)
		if n >= 0 {
			return string(buf[:n]), nil
		}
		capacity = -n
	}
	return "", fmt.Errorf("llama: the detokenizer refuses %d tokens", len(tokens))
}
