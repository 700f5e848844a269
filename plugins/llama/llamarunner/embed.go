package llamarunner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/engine"
	"modeld/core/transport"
)

// embedder computes embeddings in a context of its own, made at the first use
// and again, larger, when an input needs it: a whole input must be one batch.
type embedder struct {
	ctx   llama.Context
	size  int // most tokens of an input
	batch batch
}

func (e *embedder) free() {
	e.batch.free()
	if e.ctx != 0 {
		_ = llama.Free(e.ctx)
	}
	*e = embedder{}
}

// leastEmbed is the size of the first embedding context.
const leastEmbed = 512

// Embed returns one vector of length 1 for each input, pooled as the model
// says, or by the mean where it says nothing.
//
// Errors: ErrUnsupportedFeature, ErrContextOverflow.
func (r *Runner) Embed(ctx context.Context, inputs [][]engine.Token) ([][]float32, error) {
	if r.facts.pooling == int(llama.PoolingTypeRank) {
		return nil, fmt.Errorf("llama: %w: this model ranks texts, it gives no embeddings", transport.ErrUnsupportedFeature)
	}
	out := make([][]float32, 0, len(inputs))
	for _, in := range inputs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, err := r.embedOne(ctx, r.complete(in))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// complete adds the tokens that the model wants around a text.
func (r *Runner) complete(in []engine.Token) []engine.Token {
	in = slices.Clone(in)
	if t := engine.Token(llama.VocabBOS(r.vocab)); llama.VocabGetAddBOS(r.vocab) && t >= 0 && (len(in) == 0 || in[0] != t) {
		in = slices.Insert(in, 0, t)
	}
	end := llama.Token(llama.TokenNull)
	switch {
	case llama.VocabGetAddSEP(r.vocab):
		end = llama.VocabSEP(r.vocab)
	case llama.VocabGetAddEOS(r.vocab):
		end = llama.VocabEOS(r.vocab)
	}
	if t := engine.Token(end); t >= 0 && (len(in) == 0 || in[len(in)-1] != t) {
		in = append(in, t)
	}
	return in
}

func (r *Runner) embedOne(ctx context.Context, in []engine.Token) ([]float32, error) {
	if len(in) == 0 {
		return nil, errors.New("llama: an empty text has no embedding")
	}
	if len(in) > r.info.NumCtx {
		return nil, fmt.Errorf("llama: embedding: %w", transport.NewContextOverflowError("prefix", 0, len(in), r.info.NumCtx))
	}
	if err := r.embedContext(len(in)); err != nil {
		return nil, err
	}
	e := &r.embed
	if mem, err := llama.GetMemory(e.ctx); err == nil && mem != 0 {
		_ = llama.MemoryClear(mem, true)
	}
	e.batch.clear()
	for i, t := range in {
		if t < 0 || int(t) >= r.info.VocabSize {
			return nil, fmt.Errorf("llama: token %d is not in the vocabulary of %d", t, r.info.VocabSize)
		}
		e.batch.add(t, i, 0, true)
	}
	e.batch.native.NTokens = int32(len(in))
	id, forget := r.lib.cancel.watch(ctx)
	defer forget()
	r.lib.abortOn(e.ctx, id)
	defer r.lib.abortOn(e.ctx, 0)
	if code, err := llama.Decode(e.ctx, e.batch.native); err != nil || code != 0 {
		return nil, r.decodeError(ctx, code, len(in), err)
	}
	v, err := llama.GetEmbeddingsSeq(e.ctx, 0, llama.ModelNEmbdOut(r.model))
	if err != nil || v == nil {
		return nil, fmt.Errorf("llama: %w: this model gives no embedding of a text", transport.ErrUnsupportedFeature)
	}
	return normalised(v), nil
}

// embedContext makes sure that an input of n tokens fits.
func (r *Runner) embedContext(n int) error {
	if n <= r.embed.size {
		return nil
	}
	r.embed.free()
	size := leastEmbed
	for size < n {
		size *= 2
	}
	size = max(min(size, r.info.NumCtx), n)
	p := r.plan
	p.cells, p.seqs, p.batch, p.split = roundUp(size, cellMultiple), 1, size, false
	cp := contextParams(p, transport.Config{})
	cp.Embeddings = 1
	// The default is the model's own pooling.
	if r.facts.pooling <= int(llama.PoolingTypeNone) {
		cp.PoolingType = llama.PoolingTypeMean
	}
	lctx, err := llama.InitFromModel(r.model, cp)
	if err != nil {
		return fmt.Errorf("llama: %w: a context for embeddings of %d tokens: %s", transport.ErrInsufficientMemory, size, r.lib.log.takeErrors())
	}
	if r.pool != 0 {
		llama.AttachThreadpool(lctx, uintptr(r.pool), uintptr(r.pool))
	}
	r.embed = embedder{ctx: lctx, size: size, batch: newBatch(size)}
	return nil
}

// normalised returns a copy of v with length 1; a zero vector stays.
func normalised(v []float32) []float32 {
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	out := slices.Clone(v)
	if sum > 0 {
		scale := float32(1 / math.Sqrt(sum))
		for i := range out {
			out[i] *= scale
		}
	}
	return out
}
