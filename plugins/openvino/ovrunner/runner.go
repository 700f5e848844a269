package ovrunner

import (
	"context"
	"fmt"
	"unsafe"

	"modeld/core/engine"
	"modeld/core/transport"
)

// Runner is a loaded model.
type Runner struct {
	lib   *library
	facts *facts
	model unsafe.Pointer
	info  engine.Info

	vocab       int
	blockTokens int // positions in a KV block
	blockBytes  int // of a block, over all layers
	precision   string
	bos         engine.Token // -1: none
	ownBOS      bool         // the tokenizer puts one before every text
	pieces      *pieces      // nil where only the detokenizer knows
	tables      *blockTables
	batch       batch
}

// batch holds what a forward pass is given; its memory is used again.
type batch struct {
	ids, positions                      []int64
	past, begins, blockBegins, blockIDs []int32
	rows                                []int64
	logits                              []float32
	out                                 [][]float32
}

var _ engine.Runner = (*Runner)(nil)

// Info returns the model's facts.
func (r *Runner) Info() engine.Info { return r.info }

// Close frees the model.
func (r *Runner) Close() error {
	if r.model != nil {
		r.lib.close(r.model)
		r.model = nil
	}
	return nil
}

// Forward computes a batch. The runtime can't be interrupted; ctx is looked at
// before.
func (r *Runner) Forward(ctx context.Context, spans []engine.Span) ([][]float32, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := r.pack(spans); err != nil {
		return nil, err
	}
	b := &r.batch
	need := len(b.rows) * r.vocab
	if len(b.logits) < need {
		b.logits = make([]float32, need)
	}
	longest := int32(0)
	for _, sp := range spans {
		longest = max(longest, int32(sp.Pos+len(sp.Tokens)))
	}
	err := call(func(e *byte, n uint64) int32 {
		return r.lib.forward(r.model, int64(len(b.ids)), &b.ids[0], &b.positions[0], int64(len(spans)), &b.past[0],
			&b.begins[0], &b.blockBegins[0], &b.blockIDs[0], longest, int64(len(b.rows)), first(b.rows), first(b.logits), e, n)
	})
	if err != nil {
		return nil, fmt.Errorf("openvino: forward of %d tokens: %w", len(b.ids), err)
	}
	b.out = b.out[:0]
	for i := range b.rows {
		b.out = append(b.out, b.logits[i*r.vocab:(i+1)*r.vocab])
	}
	for _, sp := range spans {
		r.tables.seqs[sp.Seq].length += len(sp.Tokens)
	}
	return b.out, nil
}

// pack fills r.batch and gives every sequence the blocks that it needs.
func (r *Runner) pack(spans []engine.Span) error {
	b := &r.batch
	b.ids, b.positions, b.rows = b.ids[:0], b.positions[:0], b.rows[:0]
	b.past, b.blockIDs = b.past[:0], b.blockIDs[:0]
	b.begins, b.blockBegins = append(b.begins[:0], 0), append(b.blockBegins[:0], 0)
	for _, sp := range spans {
		if err := r.checkSpan(sp); err != nil {
			return err
		}
		copies, err := r.tables.extend(sp.Seq, len(sp.Tokens))
		for _, c := range copies {
			if err := call(func(e *byte, n uint64) int32 {
				return r.lib.copyBlock(r.model, int64(c.from), int64(c.to), e, n)
			}); err != nil {
				return fmt.Errorf("openvino: copy a KV block: %w", err)
			}
		}
		if err != nil {
			return err
		}
		for i, t := range sp.Tokens {
			if t < 0 || int(t) >= r.vocab {
				return fmt.Errorf("openvino: token %d is not within the vocabulary of %d", t, r.vocab)
			}
			b.ids = append(b.ids, int64(t))
			b.positions = append(b.positions, int64(sp.Pos+i))
		}
		for i := range sp.Logits {
			b.rows = append(b.rows, int64(len(b.ids)-sp.Logits+i))
		}
		b.past = append(b.past, int32(sp.Pos))
		b.begins = append(b.begins, int32(len(b.ids)))
		b.blockIDs = append(b.blockIDs, r.tables.seqs[sp.Seq].blocks...)
		b.blockBegins = append(b.blockBegins, int32(len(b.blockIDs)))
	}
	if len(b.ids) == 0 || len(b.ids) > r.info.MaxBatch {
		return fmt.Errorf("openvino: a batch of %d tokens; from 1 to %d are possible", len(b.ids), r.info.MaxBatch)
	}
	return nil
}

func (r *Runner) checkSpan(sp engine.Span) error {
	if err := r.checkSeq(sp.Seq); err != nil {
		return err
	}
	have := r.tables.seqs[sp.Seq].length
	switch {
	case sp.Pos != have:
		return fmt.Errorf("openvino: a span at position %d of sequence %d, which has %d", sp.Pos, sp.Seq, have)
	case len(sp.Tokens) == 0, sp.Logits < 0, sp.Logits > len(sp.Tokens):
		return fmt.Errorf("openvino: a span of %d tokens with %d rows of logits", len(sp.Tokens), sp.Logits)
	case sp.Pos+len(sp.Tokens) > r.info.NumCtx:
		return transport.NewContextOverflowError("decode", sp.Pos, len(sp.Tokens), r.info.NumCtx)
	}
	return nil
}

func (r *Runner) checkSeq(seq int) error {
	if seq < 0 || seq >= len(r.tables.seqs) {
		return fmt.Errorf("openvino: sequence %d of %d", seq, len(r.tables.seqs))
	}
	return nil
}

// Share makes the first n positions of dst those of src, by their blocks.
func (r *Runner) Share(dst, src, n int) error {
	for _, seq := range []int{dst, src} {
		if err := r.checkSeq(seq); err != nil {
			return err
		}
	}
	if n < 0 {
		return fmt.Errorf("openvino: share %d positions", n)
	}
	return r.tables.share(dst, src, n)
}

// Truncate drops the KV of seq from position n on.
func (r *Runner) Truncate(seq, n int) error {
	if err := r.checkSeq(seq); err != nil {
		return err
	}
	if have := r.tables.seqs[seq].length; n < 0 || n > have {
		return fmt.Errorf("openvino: cut sequence %d, which has %d positions, at %d", seq, have, n)
	}
	r.tables.truncate(seq, n)
	return nil
}

// first is the address of a slice's memory, nil for an empty one.
func first[T any](s []T) *T {
	if len(s) == 0 {
		return nil
	}
	return &s[0]
}
