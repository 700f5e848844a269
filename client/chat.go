package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"modeld/core/transport"
)

// Message is one message of a conversation. Role is "system", "user",
// "assistant" or "tool".
type Message struct {
	Role    string
	Content string
}

// Chat is a conversation on one session. It renders nothing: it sends message
// contents with a manifest that says what they are, and the backend renders
// them with the model's template. What earlier turns computed stays warm. It
// is not safe for concurrent use.
type Chat struct {
	session  transport.Session
	messages []Message
}

// NewChat starts a conversation on session with the messages so far, such as a
// system message. The caller closes the session.
func NewChat(session transport.Session, messages ...Message) *Chat {
	return &Chat{session: session, messages: slices.Clone(messages)}
}

// Messages returns the conversation so far.
func (c *Chat) Messages() []Message { return slices.Clone(c.messages) }

// Turn is what came of one message to the model.
type Turn struct {
	Text      string
	Thinking  string
	ToolCalls []transport.ToolCall
	// Prefix and Suffix say which tokens were reused and which were computed.
	Prefix transport.PrefixStatus
	Suffix transport.SuffixStatus
	// Tokens is how many tokens were generated, FinishReason why no more.
	Tokens       int
	FinishReason string
	// FirstChunk is the time from the call to the first text, Decode that from
	// the first text to the last.
	FirstChunk time.Duration
	Decode     time.Duration
}

// TokensPerSecond is the speed after the first token; 0 for less than two.
func (t Turn) TokensPerSecond() float64 {
	if t.Tokens < 2 || t.Decode <= 0 {
		return 0
	}
	return float64(t.Tokens-1) / t.Decode.Seconds()
}

// Send gives the model a user message and streams the answer to emit as it
// comes (emit may be nil). On success message and answer become part of the
// conversation; on an error it is as before, and the Turn holds what had come.
func (c *Chat) Send(ctx context.Context, text string, cfg transport.DecodeConfig, emit func(transport.StreamChunk)) (Turn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a decode that is left early ends
	start := time.Now()
	user := Message{Role: transport.SegmentUser, Content: text}
	stable, volatile, manifest := layout(c.messages, user)

	var turn Turn
	var err error
	turn.Prefix, err = c.session.EnsurePrefix(ctx, transport.PrefixInput{Text: stable, Manifest: manifest})
	if err != nil {
		return turn, fmt.Errorf("prefix: %w", err)
	}
	turn.Suffix, err = c.session.PrefillSuffix(ctx, transport.SuffixInput{Text: volatile, Manifest: manifest})
	if err != nil {
		return turn, fmt.Errorf("suffix: %w", err)
	}
	chunks, err := c.session.Decode(ctx, cfg)
	if err != nil {
		return turn, fmt.Errorf("decode: %w", err)
	}
	if err := turn.collect(chunks, start, emit); err != nil {
		return turn, fmt.Errorf("decode: %w", err)
	}
	// A cancelled decode may end without a last word.
	if err := ctx.Err(); err != nil && turn.FinishReason == "" {
		return turn, fmt.Errorf("decode: %w", err)
	}
	c.messages = append(c.messages, user, Message{Role: transport.SegmentAssistant, Content: turn.Text})
	return turn, nil
}

func (t *Turn) collect(chunks <-chan transport.StreamChunk, start time.Time, emit func(transport.StreamChunk)) error {
	var text, thinking strings.Builder
	var first time.Time
	defer func() { t.Text, t.Thinking = text.String(), thinking.String() }()
	for chunk := range chunks {
		if chunk.Error != nil {
			return chunk.Error
		}
		now := time.Now()
		if first.IsZero() {
			first, t.FirstChunk = now, now.Sub(start)
		}
		t.Decode = now.Sub(first)
		text.WriteString(chunk.Text)
		thinking.WriteString(chunk.Thinking)
		t.ToolCalls = append(t.ToolCalls, chunk.ToolCalls...)
		t.Tokens += chunk.Tokens
		if chunk.FinishReason != "" {
			t.FinishReason = chunk.FinishReason
		}
		if emit != nil {
			emit(chunk)
		}
	}
	return nil
}

// layout puts the conversation into the stable text, the new message and the
// place of the answer into the volatile one, and says which bytes are what.
func layout(history []Message, next Message) (stable, volatile string, m transport.ContextManifest) {
	var text strings.Builder
	for _, msg := range history {
		m.Segments = append(m.Segments, segment(msg, true, text.Len()))
		text.WriteString(msg.Content)
	}
	stable, volatile = text.String(), next.Content
	m.StableBytes, m.TotalBytes = len(stable), len(stable)+len(volatile)
	m.Segments = append(m.Segments,
		segment(next, false, m.StableBytes),
		segment(Message{Role: transport.SegmentAssistantPrompt}, false, m.TotalBytes))
	return stable, volatile, m
}

func segment(msg Message, stable bool, at int) transport.ManifestSegment {
	return transport.ManifestSegment{Kind: msg.Role, Stable: stable, ByteStart: at, ByteEnd: at + len(msg.Content)}
}
