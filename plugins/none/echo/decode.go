package echo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"modeld/core/transport"
)

// buffered is how many tokens a generation may be ahead of its reader.
const buffered = 32

// errEmpty has no sentinel in the contract: it is a caller's mistake.
var errEmpty = errors.New("decode needs a prefix or a suffix: the context is empty")

// Decode says the scripted text, or what it was given, a character a token.
func (s *session) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	done, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.generation(cfg)
	if err != nil {
		done()
		return nil, err
	}
	work, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	out := make(chan transport.StreamChunk, buffered)
	go func() {
		defer close(out)
		defer done()
		defer cancel()
		defer stop()
		err := g.run(work, out)
		if err == nil {
			return
		}
		if s.life.Err() != nil {
			err = transport.ErrSessionClosed
		}
		select {
		case out <- transport.StreamChunk{Error: err}:
		case <-ctx.Done():
		}
	}()
	return out, nil
}

// generation is one Decode.
type generation struct {
	*session
	script []int32
	limit  int // in tokens, 0 is none
}

func (s *session) generation(cfg transport.DecodeConfig) (*generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.resident)
	switch {
	case n == 0:
		return nil, errEmpty
	case n >= s.numCtx:
		return nil, transport.NewContextOverflowError("decode", n, 1, s.numCtx)
	case cfg.StructuredOutput.Protocol != "":
		return nil, fmt.Errorf("%w: echo constrains no output", transport.ErrUnsupportedFeature)
	}
	g := &generation{session: s, script: s.service.script, limit: cfg.MaxTokens}
	if len(g.script) == 0 {
		g.script = slices.Clone(s.resident[s.source : n-s.said])
	}
	if s.said >= len(g.script) && !s.service.settings.Loop {
		s.said = 0 // it was said to its end: say it again
	}
	return g, nil
}

// run sends chunks until the end of the generation, or returns why it can't.
func (g *generation) run(ctx context.Context, out chan<- transport.StreamChunk) error {
	var tick <-chan time.Time
	if rate := g.service.settings.TokensPerSecond; rate > 0 {
		ticker := time.NewTicker(max(1, time.Duration(float64(time.Second)/rate)))
		defer ticker.Stop()
		tick = ticker.C
	}
	for made := 0; ; {
		if err := g.fault(ctx, made); err != nil {
			return err
		}
		if tick != nil {
			select {
			case <-tick:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		made++
		chunk := g.next(made)
		select {
		case out <- chunk:
		case <-ctx.Done():
			return ctx.Err()
		}
		if chunk.FinishReason != "" {
			return nil
		}
	}
}

// next makes the next token resident and returns its chunk.
func (g *generation) next(made int) transport.StreamChunk {
	g.mu.Lock()
	defer g.mu.Unlock()
	token := g.script[g.said%len(g.script)]
	g.said++
	g.resident = append(g.resident, token)
	g.report.DecodeCalls++
	return transport.StreamChunk{Text: string(token), Tokens: 1, FinishReason: g.finish(made)}
}

// finish is the reason for which the generation has come to its end, or "".
func (g *generation) finish(made int) string {
	switch {
	case !g.service.settings.Loop && g.said == len(g.script):
		return transport.FinishStop
	case made == g.limit, len(g.resident) >= g.numCtx:
		return transport.FinishLength
	}
	return ""
}

// fault does what the settings ask for after a number of tokens.
func (g *generation) fault(ctx context.Context, made int) error {
	if made == 0 {
		return ctx.Err()
	}
	switch s := &g.service.settings; made {
	case s.FailAfterTokens:
		return fmt.Errorf("%w: fail_after_tokens is reached", transport.ErrSessionFatal)
	case s.CrashAfterTokens:
		g.service.crash()
	case s.HangAfterTokens:
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}
