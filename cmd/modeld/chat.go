package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"modeld/client"
	"modeld/core/transport"
)

// maxInput bounds a prompt that is read from standard input.
const maxInput = 16 << 20

// chatFlags are the flags of chat.
type chatFlags struct {
	prompt, system    string
	maxTokens         int
	temperature, topP float64
	topK, seed        int
	json              bool
}

func newChat(src *sources) *cobra.Command {
	var f chatFlags
	cmd := &cobra.Command{
		Use:   "chat",
		Short: "Talk with the model",
		Long: `Chat sends what you write to the slot's owner and streams the answer. With
--prompt it answers once; without, it reads lines until end of input and keeps
the conversation's context warm: after each answer it shows how many tokens of
the context were reused and how many were computed. Ctrl-C stops an answer,
Ctrl-D ends the chat.`,
		Example: `  modeld chat
  modeld chat --prompt "Name three rivers." --max-tokens 50 --temperature 0
  cat question.txt | modeld chat --prompt -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runChat(cmd, src, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.prompt, "prompt", "", "answer this once; - reads standard input")
	flags.StringVar(&f.system, "system", "", "system message")
	flags.IntVar(&f.maxTokens, "max-tokens", 0, "most tokens of an answer (default: until it ends or the context is full)")
	flags.Float64Var(&f.temperature, "temperature", 0, "0 is greedy (default: the model's)")
	flags.Float64Var(&f.topP, "top-p", 0, "sample from the likeliest tokens of this total probability (default: off)")
	flags.IntVar(&f.topK, "top-k", 0, "sample from this many likeliest tokens (default: off)")
	flags.IntVar(&f.seed, "seed", 0, "makes sampling repeatable (default: random)")
	flags.BoolVar(&f.json, "json", false, "print one JSON object for each answer")
	return cmd
}

// decodeConfig takes only what was given.
func (f chatFlags) decodeConfig(given func(string) bool) transport.DecodeConfig {
	cfg := transport.DecodeConfig{MaxTokens: f.maxTokens, TopK: f.topK}
	if given("temperature") {
		cfg.Temperature = &f.temperature
	}
	if given("top-p") {
		cfg.TopP = &f.topP
	}
	if given("seed") {
		cfg.Seed = &f.seed
	}
	return cfg
}

func runChat(cmd *cobra.Command, src *sources, f chatFlags) error {
	once := cmd.Flags().Changed("prompt")
	prompt, err := readPrompt(f.prompt, cmd.InOrStdin())
	if err != nil {
		return err
	}
	if once && prompt == "" {
		return usageError{errors.New("the prompt is empty; leave --prompt out to chat interactively")}
	}
	cfg, err := src.load(cmd.Flags())
	if err != nil {
		return err
	}
	// Ctrl-C ends the command here, and only the answer while one is coming.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	conn, err := dial(ctx, cfg)
	stop()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	session, err := conn.OpenSession(cmd.Context(), transport.OpenSessionRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	var messages []client.Message
	if f.system != "" {
		messages = append(messages, client.Message{Role: transport.SegmentSystem, Content: f.system})
	}
	t := &talk{
		chat: client.NewChat(session, messages...), cfg: f.decodeConfig(cmd.Flags().Changed),
		out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), json: f.json,
	}
	if once {
		return t.turn(cmd.Context(), prompt)
	}
	return t.loop(cmd.Context(), cmd.InOrStdin())
}

func readPrompt(prompt string, stdin io.Reader) (string, error) {
	if prompt == "-" {
		data, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
		if err != nil {
			return "", fmt.Errorf("read the prompt from standard input: %w", err)
		}
		if len(data) > maxInput {
			return "", usageError{fmt.Errorf("the prompt on standard input is longer than %d MiB", maxInput>>20)}
		}
		prompt = string(data)
	}
	return prompt, checkUTF8("prompt", prompt)
}

func checkUTF8(what, text string) error {
	for i, r := range text {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(text[i:]); size == 1 {
				return usageError{fmt.Errorf("the %s is not valid UTF-8 at byte %d; convert it first, with iconv for example", what, i)}
			}
		}
	}
	return nil
}

// talk is one chat on a terminal or in a pipe.
type talk struct {
	chat       *client.Chat
	cfg        transport.DecodeConfig
	out, notes io.Writer
	json       bool
}

// answer is an answer in JSON.
type answer struct {
	Text            string               `json:"text"`
	Thinking        string               `json:"thinking,omitempty"`
	ToolCalls       []transport.ToolCall `json:"tool_calls,omitempty"`
	Tokens          int                  `json:"tokens"`
	FinishReason    string               `json:"finish_reason"`
	Reused          int                  `json:"reused"`
	Prefilled       int                  `json:"prefilled"`
	Dropped         int                  `json:"dropped"`
	FirstSeconds    float64              `json:"first_seconds"`
	Seconds         float64              `json:"seconds"`
	TokensPerSecond float64              `json:"tokens_per_second"`
}

// turn sends one message and prints the answer. Ctrl-C stops it.
func (t *talk) turn(ctx context.Context, text string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	emit := func(c transport.StreamChunk) { _, _ = io.WriteString(t.out, c.Thinking+c.Text) }
	if t.json {
		emit = nil
	}
	turn, err := t.chat.Send(ctx, text, t.cfg, emit)
	if err != nil {
		if turn.Text != "" && !t.json {
			_, _ = fmt.Fprintln(t.out)
		}
		return err
	}
	prefilled := turn.Prefix.PrefilledTokens + turn.Suffix.SuffixTokens
	if t.json {
		return json.NewEncoder(t.out).Encode(answer{
			Text: turn.Text, Thinking: turn.Thinking, ToolCalls: turn.ToolCalls,
			Tokens: turn.Tokens, FinishReason: turn.FinishReason,
			Reused: turn.Prefix.ReusedTokens, Prefilled: prefilled, Dropped: turn.Prefix.DroppedTokens,
			FirstSeconds: turn.FirstChunk.Seconds(), Seconds: (turn.FirstChunk + turn.Decode).Seconds(),
			TokensPerSecond: turn.TokensPerSecond(),
		})
	}
	if _, err := fmt.Fprintln(t.out); err != nil {
		return err
	}
	note := fmt.Sprintf("[%d tokens at %.1f tokens/s (%s); context: %d reused, %d prefilled; first token after %d ms]",
		turn.Tokens, turn.TokensPerSecond(), turn.FinishReason, turn.Prefix.ReusedTokens, prefilled, turn.FirstChunk.Milliseconds())
	if isTerminal(t.notes) {
		note = "\x1b[2m" + note + "\x1b[0m"
	}
	_, err = fmt.Fprintln(t.notes, note)
	return err
}

// loop reads lines until the input ends. A message that fails is told, and the
// conversation goes on where that makes sense.
func (t *talk) loop(ctx context.Context, in io.Reader) error {
	prompt := ""
	if isTerminal(in) {
		prompt = "> "
		_, _ = fmt.Fprintln(t.notes, "Ctrl-C stops an answer, Ctrl-D ends the chat.")
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxInput)
	for {
		_, _ = io.WriteString(t.notes, prompt)
		if !lines.Scan() {
			if prompt != "" {
				_, _ = fmt.Fprintln(t.notes)
			}
			return lines.Err()
		}
		text := strings.TrimSpace(lines.Text())
		if text == "" {
			continue
		}
		err := checkUTF8("message", text)
		if err == nil {
			err = t.turn(ctx, text)
		}
		switch {
		case errors.Is(err, context.Canceled) && ctx.Err() == nil:
			_, _ = fmt.Fprintln(t.notes, "[stopped]")
		case errors.Is(err, transport.ErrContextOverflow), errors.As(err, new(usageError)):
			_, _ = fmt.Fprintln(t.notes, "modeld:", oneLine(err))
		case err != nil:
			return err
		}
	}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
