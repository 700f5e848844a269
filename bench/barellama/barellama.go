// Package barellama is the yardstick for the llama backend: the shortest greedy
// loop over the same binding and libraries, with no engine, no Runner and no
// wire. Nothing of modeld is in it.
package barellama

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// Options are those of the context. Zero fields take the stated defaults,
// which are those of modeld's llama backend.
type Options struct {
	Threads int  // default: usable cores
	Context int  // KV cells, default 8192
	Batch   int  // tokens in one llama_decode, default 512
	Seqs    int  // default 8
	Split   bool // each sequence its own share of the cells
}

// Result is one generation. Decode does not count the first token, which comes
// out of the prefill.
type Result struct {
	Tokens  []int32
	Text    string
	Prefill time.Duration
	Decode  time.Duration
}

// TokensPerSecond is the rate of decoding.
func (r Result) TokensPerSecond() float64 {
	if len(r.Tokens) < 2 || r.Decode <= 0 {
		return 0
	}
	return float64(len(r.Tokens)-1) / r.Decode.Seconds()
}

// Model is a loaded model. It is not safe for concurrent use.
type Model struct {
	model     llama.Model
	vocab     llama.Vocab
	ctx       llama.Context
	batch     llama.Batch
	size      int
	vocabSize int
}

// Open opens the libraries in libDir, unless the process has them already, and
// loads the GGUF file.
func Open(libDir, path string, o Options) (*Model, error) {
	if err := llama.Load(libDir); err != nil {
		return nil, err
	}
	if llama.GGMLBackendDeviceCount() == 0 {
		llama.LogSet(llama.LogSilent())
		llama.Init()
	}
	m := &Model{size: orDefault(o.Batch, 512)}
	var err error
	if m.model, err = llama.ModelLoadFromFile(path, llama.ModelDefaultParams()); err != nil {
		return nil, err
	}
	m.vocab = llama.ModelGetVocab(m.model)
	m.vocabSize = int(llama.VocabNTokens(m.vocab))
	cp := llama.ContextDefaultParams()
	cp.NCtx = uint32(orDefault(o.Context, 8192))
	cp.NBatch, cp.NUbatch = uint32(m.size), uint32(m.size)
	cp.NSeqMax = uint32(orDefault(o.Seqs, 8))
	cp.NThreads = int32(orDefault(o.Threads, runtime.GOMAXPROCS(0)))
	cp.NThreadsBatch = cp.NThreads
	cp.KVUnified = 1
	if o.Split {
		cp.KVUnified = 0
	}
	if m.ctx, err = llama.InitFromModel(m.model, cp); err != nil {
		m.Close()
		return nil, err
	}
	m.batch = llama.BatchInit(int32(m.size), 0, 1)
	return m, nil
}

// Close frees the model.
func (m *Model) Close() {
	if m.batch.Token != nil {
		_ = llama.BatchFree(m.batch)
	}
	if m.ctx != 0 {
		_ = llama.Free(m.ctx)
	}
	_ = llama.ModelFree(m.model)
}

// Generate decodes greedily at most n tokens after prompt, whose special tokens
// are parsed, from an empty context. It stops before an end-of-generation
// token.
func (m *Model) Generate(prompt string, n int) (Result, error) {
	var r Result
	mem, err := llama.GetMemory(m.ctx)
	if err != nil {
		return r, err
	}
	if err := llama.MemoryClear(mem, false); err != nil {
		return r, err
	}
	tokens := llama.Tokenize(m.vocab, prompt, llama.VocabGetAddBOS(m.vocab), true)
	start := time.Now()
	next, err := m.prefill(tokens)
	if err != nil {
		return r, err
	}
	r.Prefill = time.Since(start)
	start = time.Now()
	for pos := len(tokens); len(r.Tokens) < n && !llama.VocabIsEOG(m.vocab, next); pos++ {
		r.Tokens = append(r.Tokens, int32(next))
		if len(r.Tokens) == n {
			break
		}
		if next, err = m.step([]llama.Token{next}, pos, true); err != nil {
			return r, err
		}
	}
	r.Decode = time.Since(start)
	out := make([]llama.Token, len(r.Tokens))
	for i, t := range r.Tokens {
		out[i] = llama.Token(t)
	}
	r.Text = llama.Detokenize(m.vocab, out, false, false)
	return r, nil
}

func (m *Model) prefill(tokens []llama.Token) (next llama.Token, err error) {
	if len(tokens) == 0 {
		return 0, errors.New("the prompt has no tokens")
	}
	for pos := 0; pos < len(tokens); pos += m.size {
		end := min(pos+m.size, len(tokens))
		if next, err = m.step(tokens[pos:end], pos, end == len(tokens)); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// step computes tokens from position pos on and returns the likeliest next one
// where last says that the caller wants it.
func (m *Model) step(tokens []llama.Token, pos int, last bool) (llama.Token, error) {
	_ = m.batch.Clear()
	for i, t := range tokens {
		if err := m.batch.Add(t, llama.Pos(pos+i), []llama.SeqId{0}, last && i == len(tokens)-1); err != nil {
			return 0, err
		}
	}
	if code, err := llama.Decode(m.ctx, m.batch); err != nil || code != 0 {
		return 0, fmt.Errorf("llama_decode returned %d: %w", code, err)
	}
	if !last {
		return 0, nil
	}
	row, err := llama.GetLogitsIth(m.ctx, int32(len(tokens)-1), m.vocabSize)
	if err != nil {
		return 0, err
	}
	return llama.Token(Argmax(row)), nil
}

// Argmax is the index of the first largest value.
func Argmax(row []float32) int {
	best := 0
	for i, v := range row {
		if v > row[best] {
			best = i
		}
	}
	return best
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}
