package llamarunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/engine"
	"modeld/core/transport"
)

// Runner is one loaded model with one KV cache.
type Runner struct {
	lib   *library
	facts *facts
	plan  plan
	info  engine.Info

	model llama.Model
	vocab llama.Vocab
	ctx   llama.Context
	pool  llama.Threadpool // 0 where llama.cpp has none
	mem   llama.Memory     // 0 for a model without a KV cache
	batch batch
	rows  [][]float32
	embed embedder
}

var (
	_ engine.Runner   = (*Runner)(nil)
	_ engine.Embedder = (*Runner)(nil)
)

// abortable is the least number of tokens in a batch for which llama.cpp asks
// whether to go on. Asking takes a call into Go for every node of the graph,
// which a short batch is not worth.
const abortable = 64

// init reads the loaded model's facts. On an error the caller frees r.
func (r *Runner) init(spec engine.ModelSpec) error {
	r.vocab = llama.ModelGetVocab(r.model)
	n := int(llama.VocabNTokens(r.vocab))
	if n <= 0 {
		return errNoVocab
	}
	r.mem, _ = llama.GetMemory(r.ctx)
	r.batch = newBatch(r.plan.batch)
	r.startThreads()
	recurrent := llama.ModelIsRecurrent(r.model) || llama.ModelIsHybrid(r.model)
	r.info = engine.Info{
		VocabSize:    n,
		NumCtx:       min(r.plan.numCtx, int(llama.NCtxSeq(r.ctx))),
		KVTokens:     int(llama.NCtx(r.ctx)),
		MaxSeqs:      r.plan.seqs,
		MaxBatch:     r.plan.batch,
		AddBOS:       llama.VocabGetAddBOS(r.vocab) && !spec.Config.DisableBOS,
		BOSText:      r.specialText(llama.VocabBOS(r.vocab)),
		EOSText:      r.specialText(llama.VocabEOS(r.vocab)),
		ChatTemplate: r.facts.template,
		Caps: engine.Caps{
			Truncate: r.mem != 0 && !recurrent,
			Share:    r.mem != 0 && !recurrent && !r.plan.split,
			Save:     r.mem != 0,
		},
		Digest: spec.Digest,
	}
	if r.info.Digest == "" {
		r.info.Digest = r.facts.digest
	}
	for t := range llama.Token(n) {
		if llama.VocabIsEOG(r.vocab, t) {
			r.info.EOG = append(r.info.EOG, engine.Token(t))
		}
	}
	return nil
}

// startThreads gives the context threads that live as long as it. Without them
// llama.cpp starts new ones for every batch, which costs a single stream about
// 5 % of its speed. They sleep between batches instead of polling, because the
// rest of modeld needs the cores then.
func (r *Runner) startThreads() {
	params := llama.ThreadpoolParamsDefault(int32(r.plan.threads))
	params.Poll = 0
	pool, err := llama.ThreadpoolNew(&params)
	if err != nil {
		return
	}
	r.pool = pool
	llama.AttachThreadpool(r.ctx, uintptr(pool), uintptr(pool))
}

// specialText is the text of a token, "" for none.
func (r *Runner) specialText(t llama.Token) string {
	if t == llama.TokenNull {
		return ""
	}
	return llama.VocabGetText(r.vocab, t)
}

// Info returns the loaded model's facts.
func (r *Runner) Info() engine.Info { return r.info }

// Forward computes spans in one llama_decode. See engine.Runner.
func (r *Runner) Forward(ctx context.Context, spans []engine.Span) ([][]float32, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.mem == 0 {
		return nil, fmt.Errorf("llama: %w: this model only gives embeddings", transport.ErrUnsupportedFeature)
	}
	n, err := r.fill(spans)
	if err != nil || n == 0 {
		return nil, err
	}
	if n >= abortable {
		id, forget := r.lib.cancel.watch(ctx)
		r.lib.abortOn(r.ctx, id)
		defer func() { r.lib.abortOn(r.ctx, 0); forget() }()
	}
	if code, err := llama.Decode(r.ctx, r.batch.native); err != nil || code != 0 {
		r.dropFrom(spans)
		return nil, r.decodeError(ctx, code, n, err)
	}
	return r.collect(spans)
}

// fill writes spans into the batch and returns the number of tokens.
func (r *Runner) fill(spans []engine.Span) (int, error) {
	r.batch.clear()
	for i, s := range spans {
		switch {
		case s.Seq < 0 || s.Seq >= r.info.MaxSeqs:
			return 0, fmt.Errorf("llama: span %d: sequence %d of %d", i, s.Seq, r.info.MaxSeqs)
		case slices.ContainsFunc(spans[:i], func(o engine.Span) bool { return o.Seq == s.Seq }):
			return 0, fmt.Errorf("llama: span %d: sequence %d is there twice", i, s.Seq)
		case s.Logits < 0 || s.Logits > len(s.Tokens):
			return 0, fmt.Errorf("llama: span %d: %d rows of logits for %d tokens", i, s.Logits, len(s.Tokens))
		case s.Pos != r.length(s.Seq):
			return 0, fmt.Errorf("llama: span %d: position %d, but sequence %d has %d", i, s.Pos, s.Seq, r.length(s.Seq))
		case s.Pos+len(s.Tokens) > r.info.NumCtx:
			return 0, fmt.Errorf("llama: span %d: %w", i, transport.NewContextOverflowError("decode", s.Pos, len(s.Tokens), r.info.NumCtx))
		case r.batch.n+len(s.Tokens) > r.info.MaxBatch:
			return 0, fmt.Errorf("llama: the batch has more than %d tokens", r.info.MaxBatch)
		}
		for j, t := range s.Tokens {
			if t < 0 || int(t) >= r.info.VocabSize {
				return 0, fmt.Errorf("llama: span %d: token %d is not in the vocabulary of %d", i, t, r.info.VocabSize)
			}
			r.batch.add(t, s.Pos+j, s.Seq, j >= len(s.Tokens)-s.Logits)
		}
	}
	r.batch.native.NTokens = int32(r.batch.n)
	return r.batch.n, nil
}

// collect returns the requested rows where llama.cpp keeps them.
func (r *Runner) collect(spans []engine.Span) ([][]float32, error) {
	rows := r.rows[:0]
	end := 0
	for _, s := range spans {
		end += len(s.Tokens)
		for i := end - s.Logits; i < end; i++ {
			row, err := llama.GetLogitsIth(r.ctx, int32(i), r.info.VocabSize)
			if err != nil || row == nil {
				return nil, fmt.Errorf("llama: %w: llama.cpp kept no logits for token %d of the batch", transport.ErrSessionFatal, i)
			}
			rows = append(rows, row)
		}
	}
	r.rows = rows
	return rows, nil
}

// decodeError says what a return code of llama_decode means.
func (r *Runner) decodeError(ctx context.Context, code int32, n int, err error) error {
	why := r.lib.log.takeErrors()
	switch {
	case err != nil:
		return fmt.Errorf("llama: %w: %w", transport.ErrSessionFatal, err)
	case code == 1:
		return fmt.Errorf("llama: %w: the KV cache of %d tokens has no room for %d more", transport.ErrInsufficientMemory, r.info.KVTokens, n)
	case code == 2 && ctx.Err() != nil:
		return ctx.Err()
	case code == -1:
		return fmt.Errorf("llama: llama.cpp refuses the batch: %s", why)
	default:
		return fmt.Errorf("llama: %w: llama_decode returned %d: %s", transport.ErrSessionFatal, code, why)
	}
}

// dropFrom takes away what a failed batch may have left.
func (r *Runner) dropFrom(spans []engine.Span) {
	for _, s := range spans {
		_, _ = llama.MemorySeqRm(r.mem, llama.SeqId(s.Seq), llama.Pos(s.Pos), -1)
	}
}

// length is the number of positions that seq has.
func (r *Runner) length(seq int) int {
	last, err := llama.MemorySeqPosMax(r.mem, llama.SeqId(seq))
	if err != nil {
		return 0
	}
	return int(last) + 1
}

var errNoKV = errors.New("llama: this model has no KV cache")

// checkSeq fails unless seq exists and has at least n positions.
func (r *Runner) checkSeq(seq, n int) error {
	if r.mem == 0 {
		return errNoKV
	}
	if seq < 0 || seq >= r.info.MaxSeqs {
		return fmt.Errorf("llama: sequence %d of %d", seq, r.info.MaxSeqs)
	}
	if have := r.length(seq); n < 0 || n > have {
		return fmt.Errorf("llama: position %d of sequence %d, which has %d", n, seq, have)
	}
	return nil
}

// Share makes the first n positions of dst those of src. With split KV they
// are copied.
func (r *Runner) Share(dst, src, n int) error {
	if err := r.checkSeq(src, n); err != nil {
		return err
	}
	if err := r.checkSeq(dst, 0); err != nil {
		return err
	}
	if have := r.length(dst); have != 0 || dst == src {
		return fmt.Errorf("llama: sequence %d is not empty, it has %d positions", dst, have)
	}
	if n == 0 {
		return nil
	}
	whole := n == r.length(src)
	if !whole && !r.info.Caps.Truncate {
		return fmt.Errorf("llama: %w: this model can only share a whole sequence", transport.ErrUnsupportedFeature)
	}
	if !r.plan.split {
		return llama.MemorySeqCp(r.mem, llama.SeqId(src), llama.SeqId(dst), 0, llama.Pos(n))
	}
	// Between streams llama.cpp copies whole sequences only.
	if err := llama.MemorySeqCp(r.mem, llama.SeqId(src), llama.SeqId(dst), -1, -1); err != nil {
		return err
	}
	return r.Truncate(dst, n)
}

// Truncate drops the KV of seq from position n on.
func (r *Runner) Truncate(seq, n int) error {
	if err := r.checkSeq(seq, n); err != nil {
		return err
	}
	if n == r.length(seq) {
		return nil
	}
	if n > 0 && !r.info.Caps.Truncate {
		return fmt.Errorf("llama: %w: this model can't drop a part of its context", transport.ErrUnsupportedFeature)
	}
	ok, err := llama.MemorySeqRm(r.mem, llama.SeqId(seq), llama.Pos(n), -1)
	if err == nil && !ok {
		err = fmt.Errorf("llama: %w: llama.cpp can't cut sequence %d at %d", transport.ErrUnsupportedFeature, seq, n)
	}
	return err
}

// Close frees the model and its contexts.
func (r *Runner) Close() error {
	r.free()
	return nil
}

func (r *Runner) free() {
	r.embed.free()
	r.batch.free()
	if r.ctx != 0 {
		_ = llama.Free(r.ctx)
		r.ctx, r.mem = 0, 0
	}
	if r.pool != 0 {
		llama.ThreadpoolFree(r.pool)
		r.pool = 0
	}
	if r.model != 0 {
		_ = llama.ModelFree(r.model)
		r.model = 0
	}
}

// batch is a llama_batch whose arrays are written in place and reused.
type batch struct {
	native llama.Batch
	n      int
	token  []llama.Token
	pos    []llama.Pos
	seq    []*llama.SeqId
	logits []int8
}

func newBatch(capacity int) batch {
	b := batch{native: llama.BatchInit(int32(capacity), 0, 1)}
	b.token = unsafe.Slice(b.native.Token, capacity)
	b.pos = unsafe.Slice(b.native.Pos, capacity)
	b.seq = unsafe.Slice(b.native.SeqId, capacity)
	b.logits = unsafe.Slice(b.native.Logits, capacity)
	for i := range unsafe.Slice(b.native.NSeqId, capacity) {
		unsafe.Slice(b.native.NSeqId, capacity)[i] = 1
	}
	return b
}

func (b *batch) clear() { b.n = 0 }

func (b *batch) add(t engine.Token, pos, seq int, logits bool) {
	b.token[b.n], b.pos[b.n], *b.seq[b.n] = llama.Token(t), llama.Pos(pos), llama.SeqId(seq)
	b.logits[b.n] = 0
	if logits {
		b.logits[b.n] = 1
	}
	b.n++
}

func (b *batch) free() {
	if b.native.Token != nil {
		_ = llama.BatchFree(b.native)
		*b = batch{}
	}
}
