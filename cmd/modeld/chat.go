package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/spf13/cobra"

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
func (f chatFlags) decodeConfig(given func(string) bool) (transport.DecodeConfig, error) {
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
	bad := func(flag string, value any, rule string) error {
		return usageError{fmt.Errorf("--%s %v: it must be %s", flag, value, rule)}
	}
	switch {
	case f.maxTokens < 0:
		return cfg, bad("max-tokens", f.maxTokens, "at least 0, where 0 sets no limit")
	case f.topK < 0:
		return cfg, bad("top-k", f.topK, "at least 0, where 0 is off")
	case !(f.temperature >= 0) || math.IsInf(f.temperature, 0): // nor NaN
		return cfg, bad("temperature", f.temperature, "at least 0, where 0 is greedy")
	case given("top-p") && !(f.topP > 0 && f.topP <= 1):
		return cfg, bad("top-p", f.topP, "above 0 and at most 1")
	}
	return cfg, nil
}

func runChat(cmd *cobra.Command, src *sources, f chatFlags) error {
	once := cmd.Flags().Changed("prompt")
	decode, err := f.decodeConfig(cmd.Flags().Changed)
	if err != nil {
		return err
	}
	prompt, err := readText("prompt", f.prompt, cmd.InOrStdin())
	if err != nil {
		return err
	}
	if once && prompt == "" {
		return usageError{errors.New("the prompt is empty; leave --prompt out to chat interactively")}
	}
	if err := checkUTF8("system message", f.system); err != nil {
		return err
	}
	cfg, err := src.load(cmd.Flags())
	if err != nil {
		return err
	}
	t := &talk{config: cfg, decode: decode, out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), json: f.json}
	defer t.close()
	var messages []client.Message
	if f.system != "" {
		messages = append(messages, client.Message{Role: transport.SegmentSystem, Content: f.system})
	}
	if err := t.open(cmd.Context(), messages); err != nil {
		return err
	}
	if once {
		return t.turn(cmd.Context(), prompt)
	}
	return t.loop(cmd.Context(), cmd.InOrStdin())
}

// readText returns a flag's text, or standard input where it is "-".
func readText(what, text string, stdin io.Reader) (string, error) {
	if text == "-" {
		data, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
		if err != nil {
			return "", fmt.Errorf("read the %s from standard input: %w", what, err)
		}
		if len(data) > maxInput {
			return "", usageError{fmt.Errorf("the %s on standard input is longer than %d MiB", what, maxInput>>20)}
		}
		text = string(data)
	}
	return text, checkUTF8(what, text)
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
