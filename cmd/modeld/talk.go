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
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/client"
	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
)

// reopenTime is how long a chat looks for the slot's next owner: longer than a
// lease's wait and a restart of the backend.
const reopenTime = 20 * time.Second

// talk is one chat on a terminal or in a pipe.
type talk struct {
	config     *config.Config
	decode     transport.DecodeConfig
	out, notes io.Writer
	json       bool

	conn    *client.Client
	session transport.Session
	chat    *client.Chat
}

// open finds the slot's owner and starts a session with the conversation so
// far. Ctrl-C ends the search.
func (t *talk) open(ctx context.Context, messages []client.Message) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	conn, err := dial(ctx, t.config)
	if err != nil {
		return err
	}
	session, err := conn.OpenSession(ctx, transport.OpenSessionRequest{})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	t.conn, t.session, t.chat = conn, session, client.NewChat(session, messages...)
	return nil
}

// close may be called at any time, more than once.
func (t *talk) close() {
	if t.conn != nil {
		_ = t.session.Close() // the connection's end closes it too
		_ = t.conn.Close()
		t.conn = nil
	}
}

// reopen goes on with the conversation on a new session, wherever the slot's
// owner is now.
func (t *talk) reopen(ctx context.Context) error {
	messages := t.chat.Messages()
	t.close()
	end := time.Now().Add(reopenTime)
	for {
		err := t.open(ctx, messages)
		if err == nil || errors.Is(err, context.Canceled) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// isLost reports that the session is gone, but not what it was about.
func isLost(err error) bool {
	for _, lost := range []error{
		transport.ErrSessionFatal, transport.ErrSessionClosed, transport.ErrStaleFence, transport.ErrNotOwner,
	} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return status.Code(err) == codes.Unavailable
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
	var written error
	emit := func(c transport.StreamChunk) {
		if _, err := io.WriteString(t.out, c.Thinking+c.Text); err != nil && written == nil {
			written = err
		}
	}
	if t.json {
		emit = nil
	}
	turn, err := t.chat.Send(ctx, text, t.decode, emit)
	if err != nil {
		if turn.Text+turn.Thinking != "" && !t.json {
			_, _ = fmt.Fprintln(t.out)
		}
		return err
	}
	if written != nil {
		return fmt.Errorf("write the answer: %w", written)
	}
	if t.json {
		return json.NewEncoder(t.out).Encode(newAnswer(turn))
	}
	if _, err := fmt.Fprintln(t.out); err != nil {
		return err
	}
	return t.note(turn)
}

func newAnswer(turn client.Turn) answer {
	return answer{
		Text: turn.Text, Thinking: turn.Thinking, ToolCalls: turn.ToolCalls,
		Tokens: turn.Tokens, FinishReason: turn.FinishReason,
		Reused: turn.Prefix.ReusedTokens, Prefilled: turn.Prefix.PrefilledTokens + turn.Suffix.SuffixTokens,
		Dropped:      turn.Prefix.DroppedTokens,
		FirstSeconds: turn.FirstChunk.Seconds(), Seconds: (turn.FirstChunk + turn.Decode).Seconds(),
		TokensPerSecond: turn.TokensPerSecond(),
	}
}

// note says below an answer what it took, dimly on a terminal.
func (t *talk) note(turn client.Turn) error {
	a := newAnswer(turn)
	line := fmt.Sprintf("[%d tokens at %.1f tokens/s (%s); context: %d reused, %d prefilled; first token after %d ms]",
		a.Tokens, a.TokensPerSecond, a.FinishReason, a.Reused, a.Prefilled, turn.FirstChunk.Milliseconds())
	if isTerminal(t.notes) {
		line = "\x1b[2m" + line + "\x1b[0m"
	}
	_, err := fmt.Fprintln(t.notes, line)
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
			if errors.Is(lines.Err(), bufio.ErrTooLong) {
				return usageError{fmt.Errorf("a message is longer than %d MiB", maxInput>>20)}
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
		if err := t.handle(ctx, err); err != nil {
			return err
		}
	}
}

// handle tells an error of one message, and returns it where no other message
// can follow.
func (t *talk) handle(ctx context.Context, err error) error {
	_, isUsage := errors.AsType[usageError](err)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		_, _ = fmt.Fprintln(t.notes, "[stopped]")
	case errors.Is(err, transport.ErrContextOverflow), errors.Is(err, transport.ErrModelBusy), isUsage:
		_, _ = fmt.Fprintln(t.notes, "modeld:", oneLine(err))
	case isLost(err):
		_, _ = fmt.Fprintf(t.notes, "modeld: %v\n[looking for the slot's owner]\n", err)
		if err := t.reopen(ctx); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(t.notes, "[%s goes on with the conversation; send the message again]\n", t.conn.Owner().Instance)
	default:
		return err
	}
	return nil
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
