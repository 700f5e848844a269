package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"modeld/bench/barellama"
	"modeld/core/transport"
	"modeld/test/modeldproc"
)

// prompts are of different kinds; the whole path must give the bare loop's text
// for each, greedily.
var prompts = []struct{ kind, text string }{
	{"code", "<|im_start|>user\nWrite a Go function that reverses a string.<|im_end|>\n<|im_start|>assistant\n"},
	{"non-Latin script", "Столица Франции — это"},
	{"emoji", "<|im_start|>user\nAnswer with emoji: how is the weather? ☀️🌧️👩‍👩‍👧<|im_end|>\n<|im_start|>assistant\n"},
	{"long", strings.Repeat("The quick brown fox jumps over the lazy dog, and the dog does not mind. ", 60) + "The fox"},
	{"one token", "The"},
}

const sessionTokens = 128

// session compares one session through the whole path with the bare loop.
func (b *bench) session(ctx context.Context) error {
	d, err := modeldproc.Start(ctx, b.bin, "--backend", "llama", "--model", b.model)
	if err != nil {
		return err
	}
	defer os.RemoveAll(d.StateDir)
	err = b.sessionOn(ctx, d)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return errors.Join(err, d.Stop(stop))
}

func (b *bench) sessionOn(ctx context.Context, d *modeldproc.Daemon) error {
	bare, err := barellama.Open(b.libDir, b.model, barellama.Options{})
	if err != nil {
		return err
	}
	defer bare.Close()
	c, err := d.Client(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	sess, err := c.OpenSession(ctx, transport.OpenSessionRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = sess.Close() }()

	if err := b.idle("daemon, resident and idle, llama", d.PID()); err != nil {
		return err
	}
	for _, p := range prompts {
		want, err := bare.Generate(p.text, sessionTokens)
		if err != nil {
			return err
		}
		got, err := generate(ctx, sess, p.text, sessionTokens)
		if err != nil {
			return err
		}
		if got.text != strings.ToValidUTF8(want.Text, "\uFFFD") {
			return fmt.Errorf("greedy text differs from the bare loop's for the %s prompt:\nmodeld: %q\nbare:   %q", p.kind, got.text, want.Text)
		}
	}
	b.add(result{Name: "greedy texts equal to the bare loop's", Unit: "prompts", Modeld: float64(len(prompts)), Goal: ">= 5"})

	prompt := prompts[0].text
	speed, err := measure(b.rounds, func() (float64, error) {
		r, err := generate(ctx, sess, prompt, sessionTokens)
		return r.tokensPerSecond(), err
	}, func() (float64, error) {
		r, err := bare.Generate(prompt, sessionTokens)
		return r.TokensPerSecond(), err
	})
	if err != nil {
		return err
	}
	b.add(speed.result("one session, whole path", "tokens/s", "ratio >= 0.97"))

	long := prompts[3].text
	var cold, coldBare int // every prompt is new, so that nothing is reused
	first, err := measure(b.rounds, func() (float64, error) {
		cold++
		r, err := generate(ctx, sess, fmt.Sprint(cold, ". ", long), 2)
		return ms(r.first), err
	}, func() (float64, error) {
		coldBare++
		r, err := bare.Generate(fmt.Sprint(coldBare, ". ", long), 2)
		return ms(r.Prefill), err
	})
	if err != nil {
		return err
	}
	b.add(first.result("time to first token, ~1,000-token prompt, cold", "ms", ""))
	return b.warm(ctx, sess, fmt.Sprint(cold, ". ", long))
}

// warm measures the first token where the whole prompt is resident.
func (b *bench) warm(ctx context.Context, sess transport.Session, prompt string) error {
	var times []float64
	for range b.rounds {
		r, err := generate(ctx, sess, prompt, 2)
		if err != nil {
			return err
		}
		times = append(times, ms(r.first))
	}
	b.add(result{Name: "time to first token, the same prompt, warm", Unit: "ms", Modeld: median(times)})
	return nil
}

// generation is what one session made.
type generation struct {
	text         string
	tokens       int
	first, total time.Duration // from the call; to the first and last chunk
}

func (g generation) tokensPerSecond() float64 {
	return float64(g.tokens-1) / (g.total - g.first).Seconds()
}

// generate decodes greedily after prompt.
func generate(ctx context.Context, sess transport.Session, prompt string, n int) (generation, error) {
	var g generation
	start := time.Now()
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: prompt}); err != nil {
		return g, err
	}
	greedy := 0.0
	chunks, err := sess.Decode(ctx, transport.DecodeConfig{MaxTokens: n, Temperature: &greedy})
	if err != nil {
		return g, err
	}
	var text strings.Builder
	for chunk := range chunks {
		if chunk.Error != nil {
			return g, chunk.Error
		}
		if g.tokens += chunk.Tokens; chunk.Tokens > 0 {
			g.total = time.Since(start)
			if g.first == 0 {
				g.first = g.total
			}
		}
		text.WriteString(chunk.Text)
	}
	g.text = text.String()
	return g, nil
}

func (b *bench) idle(name string, pid int) error {
	bytes, err := modeldproc.ResidentBytes(pid)
	if err != nil {
		return err
	}
	b.add(result{Name: name, Unit: "MiB", Modeld: float64(bytes) / (1 << 20)})
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
