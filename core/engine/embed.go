package engine

import (
	"context"
	"errors"
	"fmt"

	"modeld/core/transport"
)

// maxEmbedBatch is the most texts of one Embed of the Runner.
const maxEmbedBatch = 32

// embedJob is one text to embed.
type embedJob struct {
	ctx    context.Context
	tokens []Token
	done   chan embedOutcome
}

type embedOutcome struct {
	vector []float32
	err    error
}

// Embed embeds a text with the model that req names, loading it where none is
// loaded. Texts that come at once are computed together.
func (s *Service) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	if err := checkInput("embed", req.Text, nil); err != nil {
		return transport.EmbedResult{}, err
	}
	want, err := s.spec(req.ModelName, req.Type, req.Digest, req.Path, req.Config, nil)
	if err != nil {
		return transport.EmbedResult{}, err
	}
	m, err := s.use(ctx, want, false)
	if err != nil {
		return transport.EmbedResult{}, err
	}
	defer s.unuse(m, nil)
	if _, ok := m.runner.(Embedder); !ok {
		return transport.EmbedResult{}, fmt.Errorf("%w: the backend gives no embeddings", transport.ErrUnsupportedFeature)
	}
	if err := m.sched.enter(); err != nil {
		return transport.EmbedResult{}, err
	}
	defer m.sched.leave()
	tokens, err := m.runner.Tokenize(req.Text, m.info.AddBOS && !req.Config.DisableBOS)
	if err != nil {
		return transport.EmbedResult{}, fmt.Errorf("embed: tokenize %d bytes: %w", len(req.Text), err)
	}
	switch {
	case len(tokens) == 0:
		return transport.EmbedResult{}, errors.New("embed: the text is empty")
	case len(tokens) > m.info.NumCtx:
		return transport.EmbedResult{}, transport.NewContextOverflowError("embed", 0, len(tokens), m.info.NumCtx)
	}
	vector, err := m.sched.embedText(ctx, tokens)
	return transport.EmbedResult{Vector: vector}, err
}

// embedText queues a text and waits for its vector.
func (s *scheduler) embedText(ctx context.Context, tokens []Token) ([]float32, error) {
	e := &embedJob{ctx: ctx, tokens: tokens, done: make(chan embedOutcome, 1)}
	s.mu.Lock()
	if err := s.admissibleLocked(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.queued++
	s.inbox = append(s.inbox, func() { s.embeds = append(s.embeds, e) })
	s.signal()
	s.mu.Unlock()
	select {
	case out := <-e.done:
		return out.vector, out.err
	case <-ctx.Done():
		return nil, ctxError(ctx)
	}
}

// embed computes the texts that wait, at most a batch of them. It reports
// whether there were any.
func (s *scheduler) embed() bool {
	n := min(len(s.embeds), maxEmbedBatch)
	if n == 0 {
		return false
	}
	var batch []*embedJob
	var inputs [][]Token
	for _, e := range s.embeds[:n] {
		if e.ctx.Err() != nil {
			s.settleEmbed(e, embedOutcome{err: ctxError(e.ctx)})
			continue
		}
		batch, inputs = append(batch, e), append(inputs, e.tokens)
	}
	s.embeds = append(s.embeds[:0], s.embeds[n:]...)
	if len(batch) == 0 {
		return true
	}
	vectors, err := s.runner.(Embedder).Embed(s.ctx, inputs)
	if err == nil && len(vectors) != len(inputs) {
		err = fmt.Errorf("the runtime returned %d vectors for %d texts", len(vectors), len(inputs))
	}
	for i, e := range batch {
		if err != nil {
			s.settleEmbed(e, embedOutcome{err: fmt.Errorf("embed: %w", err)})
		} else {
			s.settleEmbed(e, embedOutcome{vector: vectors[i]})
		}
	}
	return true
}

func (s *scheduler) failEmbeds(err error) {
	for _, e := range s.embeds {
		s.settleEmbed(e, embedOutcome{err: err})
	}
	s.embeds = nil
}

func (s *scheduler) settleEmbed(e *embedJob, out embedOutcome) {
	s.mu.Lock()
	s.queued--
	s.mu.Unlock()
	e.done <- out
}
