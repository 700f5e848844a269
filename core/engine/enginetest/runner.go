// Package enginetest has what engines and Runners are tested with: a
// deterministic Runner that watches how it is used, and [RunRunner], the checks
// that every Runner must pass.
package enginetest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"

	"modeld/core/engine"
	"modeld/core/transport"
)

// The fake's vocabulary: 256 bytes, then these.
const (
	BOS engine.Token = 256 + iota
	EOS
	imStart
	imEnd
	mergedTh // "th", which the fake model itself writes as two bytes
	mergedThe
	vocabSize
)

var specials = map[engine.Token]string{BOS: "<s>", EOS: "</s>", imStart: "<|im_start|>", imEnd: "<|im_end|>"}

// Options configure a fake Runner. Zero fields take the stated defaults.
type Options struct {
	NumCtx   int // default: 512
	KVTokens int // default: 2048
	MaxSeqs  int // default: 8
	MaxBatch int // default: 64
	// Caps defaults to all of them.
	Caps         *engine.Caps
	AddBOS       bool
	ChatTemplate string
	Sampling     engine.SamplingDefaults
	Digest       string

	// Misuse is told of every breach of the Runner contract; the call then
	// fails too. Default: panic.
	Misuse func(string)
	// BeforeForward runs at the start of every Forward; its error fails it,
	// with half of the batch's KV written. May block.
	BeforeForward func(ctx context.Context, batch []engine.Span) error
	// NoEnd makes the model never end a generation by itself.
	NoEnd bool
	// LoadErr is returned by the Backend's Load.
	LoadErr error
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		v   *int
		def int
	}{{&o.NumCtx, 512}, {&o.KVTokens, 2048}, {&o.MaxSeqs, 8}, {&o.MaxBatch, 64}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if o.Caps == nil {
		o.Caps = &engine.Caps{Truncate: true, Share: true, Save: true}
	}
	if o.Misuse == nil {
		o.Misuse = func(s string) { panic("enginetest: " + s) }
	}
	if o.Digest == "" {
		o.Digest = "fa4e"
	}
	return o
}

// Backend is an engine.Backend of fake Runners.
type Backend struct {
	opts Options

	mu      sync.Mutex
	runners []*Runner
}

// NewBackend returns a Backend that loads any path.
func NewBackend(opts Options) *Backend { return &Backend{opts: opts.withDefaults()} }

// Type is "fake".
func (b *Backend) Type() string { return "fake" }

// Describe describes the fake model.
func (b *Backend) Describe(ctx context.Context, _ engine.ModelSpec) (transport.ModelInfo, error) {
	return transport.ModelInfo{ModelMaxContext: b.opts.NumCtx, EffectiveContext: b.opts.NumCtx}, ctx.Err()
}

// Load returns a new Runner.
func (b *Backend) Load(context.Context, engine.ModelSpec) (engine.Runner, error) {
	if b.opts.LoadErr != nil {
		return nil, b.opts.LoadErr
	}
	r := NewRunner(b.opts)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runners = append(b.runners, r)
	return r, nil
}

// Last returns the Runner of the last Load.
func (b *Backend) Last() *Runner {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runners[len(b.runners)-1]
}

// Runner is a fake model. Its logits are made from the KV that a sequence
// really holds, so that wrong books give wrong tokens. Every breach of the
// contract goes to Options.Misuse.
type Runner struct {
	opts Options

	mu     sync.Mutex
	busy   bool
	closed bool
	seqs   [][]*cell
	used   int // cells with a holder
	// Computed counts the tokens of all Forwards, Batches the Forwards.
	computed, batches int
}

// cell is one position's KV: its token, and a hash of it and all before it.
type cell struct {
	token engine.Token
	hash  uint64
	refs  int
}

var (
	_ engine.Runner   = (*Runner)(nil)
	_ engine.Embedder = (*Runner)(nil)
)

// NewRunner returns a fake Runner.
func NewRunner(opts Options) *Runner {
	opts = opts.withDefaults()
	return &Runner{opts: opts, seqs: make([][]*cell, opts.MaxSeqs)}
}

// Computed is how many tokens all Forwards have computed, and in how many.
func (r *Runner) Computed() (tokens, batches int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.computed, r.batches
}

// Closed reports whether the Runner was closed.
func (r *Runner) Closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Info returns the fake model's facts.
func (r *Runner) Info() engine.Info {
	return engine.Info{
		VocabSize: int(vocabSize), NumCtx: r.opts.NumCtx, KVTokens: r.opts.KVTokens,
		MaxSeqs: r.opts.MaxSeqs, MaxBatch: r.opts.MaxBatch,
		AddBOS: r.opts.AddBOS, BOSText: specials[BOS], EOSText: specials[EOS],
		EOG: []engine.Token{EOS, imEnd}, ChatTemplate: r.opts.ChatTemplate,
		Sampling: r.opts.Sampling, Caps: *r.opts.Caps, Digest: r.opts.Digest,
		Model: transport.ModelInfo{ModelMaxContext: r.opts.NumCtx, EffectiveContext: r.opts.NumCtx},
	}
}

// Tokenize takes the longest vocabulary entry at each byte.
func (r *Runner) Tokenize(text string, addBOS bool) ([]engine.Token, error) {
	var tokens []engine.Token
	if addBOS && !strings.HasPrefix(text, specials[BOS]) {
		tokens = append(tokens, BOS)
	}
next:
	for text != "" {
		for t, s := range specials {
			if strings.HasPrefix(text, s) {
				tokens, text = append(tokens, t), text[len(s):]
				continue next
			}
		}
		switch {
		case strings.HasPrefix(text, "the"):
			tokens, text = append(tokens, mergedThe), text[3:]
		case strings.HasPrefix(text, "th"):
			tokens, text = append(tokens, mergedTh), text[2:]
		default:
			tokens, text = append(tokens, engine.Token(text[0])), text[1:]
		}
	}
	return tokens, nil
}

// Detokenize joins bytes; special tokens give nothing.
func (r *Runner) Detokenize(tokens []engine.Token) (string, error) {
	var b strings.Builder
	for _, t := range tokens {
		switch {
		case t < 0 || t >= vocabSize:
			return "", fmt.Errorf("token %d is not in the vocabulary", t)
		case t < 256:
			b.WriteByte(byte(t))
		case t == mergedTh:
			b.WriteString("th")
		case t == mergedThe:
			b.WriteString("the")
		}
	}
	return b.String(), nil
}

// begin guards against overlapping calls and calls after Close.
func (r *Runner) begin(what string) (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy || r.closed {
		return nil, r.misuse("%s while another call runs (%t) or after Close (%t)", what, r.busy, r.closed)
	}
	r.busy = true
	return func() {
		r.mu.Lock()
		r.busy = false
		r.mu.Unlock()
	}, nil
}

func (r *Runner) misuse(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	r.opts.Misuse(text)
	return fmt.Errorf("misuse: %s", text)
}

// Forward appends the batch and returns its logits.
func (r *Runner) Forward(ctx context.Context, batch []engine.Span) ([][]float32, error) {
	end, err := r.begin("Forward")
	if err != nil {
		return nil, err
	}
	defer end()
	if err := r.check(batch); err != nil {
		return nil, err
	}
	fail := error(nil)
	if r.opts.BeforeForward != nil {
		fail = r.opts.BeforeForward(ctx, batch)
	}
	var rows [][]float32
	for _, s := range batch {
		for i, t := range s.Tokens {
			if fail != nil && i >= len(s.Tokens)/2 {
				break
			}
			r.append(s.Seq, t)
			if i >= len(s.Tokens)-s.Logits {
				rows = append(rows, r.logits(s.Seq))
			}
		}
	}
	if fail != nil {
		return nil, fail
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches++
	for _, s := range batch {
		r.computed += len(s.Tokens)
	}
	return rows, nil
}

func (r *Runner) check(batch []engine.Span) error {
	total, seen := 0, map[int]bool{}
	for _, s := range batch {
		switch {
		case s.Seq < 0 || s.Seq >= len(r.seqs):
			return r.misuse("sequence %d of %d", s.Seq, len(r.seqs))
		case seen[s.Seq]:
			return r.misuse("two spans for sequence %d", s.Seq)
		case s.Pos != len(r.seqs[s.Seq]):
			return r.misuse("position %d for sequence %d of length %d", s.Pos, s.Seq, len(r.seqs[s.Seq]))
		case len(s.Tokens) == 0:
			return r.misuse("an empty span for sequence %d", s.Seq)
		case s.Logits < 0 || s.Logits > len(s.Tokens):
			return r.misuse("%d rows of %d tokens", s.Logits, len(s.Tokens))
		case s.Pos+len(s.Tokens) > r.opts.NumCtx:
			return r.misuse("position %d beyond the context of %d", s.Pos+len(s.Tokens), r.opts.NumCtx)
		}
		for _, t := range s.Tokens {
			if t < 0 || t >= vocabSize {
				return r.misuse("token %d is not in the vocabulary", t)
			}
		}
		seen[s.Seq] = true
		total += len(s.Tokens)
	}
	switch {
	case total == 0:
		return r.misuse("an empty batch")
	case total > r.opts.MaxBatch:
		return r.misuse("%d tokens in a batch of %d", total, r.opts.MaxBatch)
	case r.used+total > r.opts.KVTokens:
		return r.misuse("%d tokens on top of %d in a KV of %d", total, r.used, r.opts.KVTokens)
	}
	return nil
}

func (r *Runner) append(seq int, t engine.Token) {
	h := uint64(0x9e3779b97f4a7c15)
	if q := r.seqs[seq]; len(q) > 0 {
		h = q[len(q)-1].hash
	}
	r.seqs[seq] = append(r.seqs[seq], &cell{token: t, hash: mix(h ^ uint64(t+1)), refs: 1})
	r.used++
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// logits writes words of small letters, an "é" of two tokens now and then, and
// an end after some dozens of tokens.
func (r *Runner) logits(seq int) []float32 {
	q := r.seqs[seq]
	last := q[len(q)-1]
	row := make([]float32, vocabSize)
	for t := range row {
		u := mix(last.hash + uint64(t)*0x9e3779b97f4a7c15)
		row[t] = float32(u>>40) / (1 << 24) * 4
		if t >= 'a' && t <= 'z' || t == ' ' {
			row[t] += 6
		}
	}
	switch {
	case last.token == 0xC3:
		row[0xA9] = 40
	case last.hash%12 == 0:
		row[0xC3] = 30
	case last.hash%40 == 1 && !r.opts.NoEnd:
		row[EOS] = 30
	}
	if r.opts.NoEnd {
		row[EOS], row[imEnd] = float32(math.Inf(-1)), float32(math.Inf(-1))
	}
	return row
}
