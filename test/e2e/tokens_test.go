package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modeld/bench/barellama"
	"modeld/client"
	"modeld/core/transport"
)

// generate decodes greedily after a raw prompt.
func generate(t *testing.T, sess transport.Session, prompt string, n int) (text string, tokens int) {
	t.Helper()
	ctx := within(t, time.Minute)
	if _, err := sess.EnsurePrefix(ctx, transport.PrefixInput{Text: prompt}); err != nil {
		t.Fatalf("EnsurePrefix: %v", err)
	}
	chunks, err := sess.Decode(ctx, transport.DecodeConfig{MaxTokens: n, Temperature: new(float64)})
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	var b strings.Builder
	for chunk := range chunks {
		if chunk.Error != nil {
			t.Fatalf("after %q: %v", b.String(), chunk.Error)
		}
		b.WriteString(chunk.Text)
		tokens += chunk.Tokens
	}
	return b.String(), tokens
}

// The same tokens come out at the end of the whole path as out of a bare loop
// over the same library.
func TestGreedyTextEqualsTheBareLoops(t *testing.T) {
	bare, err := barellama.Open(filepath.Join(binDir, "lib", "llama"), gguf, barellama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	sess := open(t, dial(t, serveLlama(t)))
	prompts := map[string]string{
		"code":             "<|im_start|>user\nWrite a Go function that adds two numbers.<|im_end|>\n<|im_start|>assistant\n",
		"non-Latin script": "東京は日本の首都で",
		"emoji":            "I ❤️ 🍕 and 👩‍👩‍👧",
		"long":             strings.Repeat("A long road goes up the hill, and the hill goes on and on. ", 40),
		"one token":        "The",
	}
	for kind, prompt := range prompts {
		t.Run(kind, func(t *testing.T) {
			want, err := bare.Generate(prompt, 48)
			if err != nil {
				t.Fatal(err)
			}
			got, tokens := generate(t, sess, prompt, 48)
			if got != wholeUTF8(want.Text) || tokens != len(want.Tokens) {
				t.Errorf("modeld: %d tokens %q\nbare:   %d tokens %q", tokens, got, len(want.Tokens), want.Text)
			}
		})
	}
}

// wholeUTF8 is a text as it is streamed: a character that the last token leaves
// incomplete is replaced.
func wholeUTF8(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// A conversation's second turn reuses what the first one computed.
func TestAConversationStaysWarm(t *testing.T) {
	chat := client.NewChat(open(t, dial(t, serveLlama(t))), client.Message{Role: "system", Content: "You answer briefly."})
	cfg := transport.DecodeConfig{MaxTokens: 24, Temperature: new(float64)}
	first, err := chat.Send(within(t, time.Minute), "Name a color.", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.Text == "" || first.Tokens == 0 || first.FinishReason == "" {
		t.Fatalf("the first turn gave nothing: %+v", first)
	}
	resident := first.Suffix.ResidentTokens
	second, err := chat.Send(within(t, time.Minute), "And another one?", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := second.Prefix
	if p.ReusedTokens+p.PrefilledTokens != p.PrefixTokens {
		t.Errorf("%d reused + %d prefilled is not the prefix of %d", p.ReusedTokens, p.PrefilledTokens, p.PrefixTokens)
	}
	if p.ReusedTokens < resident {
		t.Errorf("the second turn reused %d tokens; the first one's prompt had %d", p.ReusedTokens, resident)
	}
	if second.Text == "" {
		t.Error("the second turn gave nothing")
	}
}
