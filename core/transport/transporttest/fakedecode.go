package transporttest

import (
	"context"
	"errors"
	"fmt"

	"modeld/core/transport"
)

func (s *fakeSession) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	end, err := s.begin(ctx, "Decode", cfg)
	if err != nil {
		return nil, err
	}
	if err := s.canDecode(cfg); err != nil {
		end()
		return nil, err
	}
	work, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel) //nolint:contextcheck // the session's end ends it too
	out := make(chan transport.StreamChunk)
	go func() {
		defer close(out)
		defer end()
		defer cancel()
		defer stop()
		if err := s.stream(work, cfg, out); err != nil {
			s.fail(ctx, out, err)
		}
	}()
	return out, nil
}

// errEmptyContext has no sentinel in the contract: it is a caller's mistake.
var errEmptyContext = errors.New("decode needs a prefix or a suffix: the context is empty")

func (s *fakeSession) canDecode(cfg transport.DecodeConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.resident)
	switch {
	case n == 0:
		return errEmptyContext
	case n >= s.numCtx:
		return transport.NewContextOverflowError("decode", n, 1, s.numCtx)
	case cfg.StructuredOutput.Protocol != "":
		return fmt.Errorf("%w: the fake constrains no output", transport.ErrUnsupportedFeature)
	}
	return nil
}

// stream sends chunks until the end of the generation, or returns why it can't.
func (s *fakeSession) stream(ctx context.Context, cfg transport.DecodeConfig, out chan<- transport.StreamChunk) error {
	next := s.generate(cfg)
	if s.fake.Script != nil {
		next = s.scripted(cfg)
	}
	for n := 0; ; n++ {
		if err := s.beforeChunk(ctx, n); err != nil {
			return err
		}
		chunk, more := next()
		if !more {
			return nil
		}
		select {
		case out <- chunk:
		case <-ctx.Done():
			return ctx.Err()
		}
		if last := chunk.Error != nil || chunk.FinishReason != ""; last {
			return nil
		}
	}
}

func (s *fakeSession) beforeChunk(ctx context.Context, n int) error {
	if s.fake.BeforeChunk != nil {
		if err := s.fake.BeforeChunk(ctx, n); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// fail sends a last chunk, which a reader whose ctx has ended may miss.
func (s *fakeSession) fail(ctx context.Context, out chan<- transport.StreamChunk, err error) {
	if s.life.Err() != nil {
		err = transport.ErrSessionClosed
	}
	select {
	case out <- transport.StreamChunk{Error: err}:
	case <-ctx.Done():
	}
}

// generate makes one chunk for each word that follows from the context.
func (s *fakeSession) generate(cfg transport.DecodeConfig) func() (transport.StreamChunk, bool) {
	words := s.fake.wordsOf(s.tokens())
	made := 0
	return func() (transport.StreamChunk, bool) {
		word := nextWord(words)
		words = append(words, word)
		made++
		chunk := transport.StreamChunk{Text: word, Tokens: s.append(word)}
		switch {
		case cfg.MaxTokens > 0 && made >= cfg.MaxTokens, s.full():
			chunk.FinishReason = transport.FinishLength
		case made >= s.fake.replyTokens():
			chunk.FinishReason = transport.FinishStop
		}
		return chunk, true
	}
}

func (s *fakeSession) scripted(cfg transport.DecodeConfig) func() (transport.StreamChunk, bool) {
	chunks := s.fake.Script(cfg)
	return func() (transport.StreamChunk, bool) {
		if len(chunks) == 0 {
			return transport.StreamChunk{}, false
		}
		chunk := chunks[0]
		chunks = chunks[1:]
		s.append(chunk.Text)
		return chunk, true
	}
}

// append makes text resident, as far as the context has room, and returns how
// many tokens it is.
func (s *fakeSession) append(text string) int {
	tokens := s.fake.tokenize(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.numCtx - len(s.resident)
	s.resident = append(s.resident, tokens[:min(room, len(tokens))]...)
	return len(tokens)
}

func (s *fakeSession) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.resident) >= s.numCtx
}
