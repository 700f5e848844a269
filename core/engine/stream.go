package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"modeld/core/transport"
)

// stream carries one generation from the scheduler to its reader: tokens in,
// whole UTF-8 out. Its goroutine does the detokenizing, off the scheduler's
// path, and waits for slow readers. It ends soon after the scheduler has called
// end, and not before, so that a closed channel means a settled session.
type stream struct {
	limit    int
	interval time.Duration // the least time between two chunks
	wake     func()        // tells the scheduler to look at the stream again
	out      chan transport.StreamChunk
	ready    chan struct{} // one pending signal for the goroutine
	crowded  chan struct{} // the same, when half of limit is pending
	ended    chan struct{} // closed by end

	mu      sync.Mutex
	pending []Token
	reason  string // why it finished well
	err     error  // why it did not
	broken  error  // why this side can't go on
}

func newStream(limit int, interval time.Duration, wake func()) *stream {
	return &stream{
		limit: limit, interval: interval, wake: wake,
		out:     make(chan transport.StreamChunk, 1),
		ready:   make(chan struct{}, 1),
		crowded: make(chan struct{}, 1),
		ended:   make(chan struct{}),
	}
}

// push hands over a token.
func (st *stream) push(t Token) {
	st.mu.Lock()
	st.pending = append(st.pending, t)
	crowded := 2*len(st.pending) >= st.limit
	st.mu.Unlock()
	signal(st.ready)
	if crowded {
		signal(st.crowded)
	}
}

// signal leaves one signal pending.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// full reports whether the reader is so far behind that nothing more should be
// generated for it.
func (st *stream) full() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.pending) >= st.limit
}

// fault is an error on the stream's side, for which the generation should end.
func (st *stream) fault() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.broken
}

// end ends the stream, after what was pushed: well for a reason, or with err.
// It is called once.
func (st *stream) end(reason string, err error) {
	st.mu.Lock()
	st.reason, st.err = reason, err
	st.mu.Unlock()
	close(st.ended)
}

// run delivers until the stream has ended and closes out. ctx is the reader's.
func (st *stream) run(ctx context.Context, text *textDecoder) {
	defer close(st.out)
	var (
		tokens []Token
		held   transport.StreamChunk // generated and not delivered
		pause  = time.NewTimer(0)
	)
	defer pause.Stop()
	for {
		ended := false
		select {
		case <-st.ready:
		case <-st.ended:
			ended = true
		}
		tokens = st.take(tokens)
		st.decode(&held, tokens, text)
		if ended {
			break
		}
		if held.Text == "" {
			continue
		}
		select {
		case st.out <- held:
			held = transport.StreamChunk{}
			st.gather(pause)
		case <-ctx.Done(): // the scheduler ends it
		case <-st.ended:
		}
	}
	held.Text += text.rest()
	held.FinishReason, held.Error = st.reason, st.err
	st.deliverLast(held)
}

// gather lets tokens collect for the next chunk: what a chunk costs on its way to
// the client, it takes from the cores that compute.
func (st *stream) gather(pause *time.Timer) {
	if st.interval <= 0 {
		return
	}
	pause.Reset(st.interval)
	select {
	case <-pause.C:
	case <-st.crowded:
	case <-st.ended:
	}
}

// take returns what is pending, in buf's memory.
func (st *stream) take(buf []Token) []Token {
	st.mu.Lock()
	buf = append(buf[:0], st.pending...)
	wasFull := len(st.pending) >= st.limit
	st.pending = st.pending[:0]
	st.mu.Unlock()
	if wasFull {
		st.wake()
	}
	return buf
}

// decode adds tokens to a chunk.
func (st *stream) decode(c *transport.StreamChunk, tokens []Token, text *textDecoder) {
	for _, t := range tokens {
		piece, err := text.next(t)
		if err != nil {
			st.mu.Lock()
			st.broken = err
			st.mu.Unlock()
			st.wake()
			return
		}
		c.Text += piece
		c.Tokens++
	}
}

// deliverLast sends the last chunk without waiting: it takes back a chunk that
// the reader has not fetched and makes one of both. Nobody else sends.
func (st *stream) deliverLast(c transport.StreamChunk) {
	select {
	case unread := <-st.out:
		c.Text, c.Tokens = unread.Text+c.Text, unread.Tokens+c.Tokens
	default:
	}
	st.out <- c
}

// textDecoder turns tokens into text by decoding a growing tail, so that
// characters of several tokens come out whole and spaces between tokens are
// right. What it has returned never changes.
type textDecoder struct {
	detokenize func([]Token) (string, error)
	tail       []Token // the last returned tokens, then those not returned yet
	done       int     // how many of tail are returned
	doneText   string  // their text
}

const (
	// contextTokens of what comes before a generation go into the tail, since
	// some tokenizers drop the space of a text's first word.
	contextTokens = 4
	// maxHeldTokens is how many tokens may wait for the rest of a character: a
	// byte each of the longest. Beyond it the bytes are no UTF-8.
	maxHeldTokens = utf8.UTFMax
)

func newTextDecoder(detokenize func([]Token) (string, error), before []Token) (*textDecoder, error) {
	d := &textDecoder{detokenize: detokenize}
	before = before[max(0, len(before)-contextTokens):]
	text, err := detokenize(before)
	if err != nil {
		return nil, fmt.Errorf("engine: detokenize the context: %w", err)
	}
	if whole(text) {
		d.tail, d.done, d.doneText = append(d.tail, before...), len(before), text
	}
	return d, nil
}

// next returns the text that t completes, "" where a character needs more.
func (d *textDecoder) next(t Token) (string, error) {
	d.tail = append(d.tail, t)
	text, err := d.detokenize(d.tail)
	if err != nil {
		return "", fmt.Errorf("engine: detokenize: %w", err)
	}
	if !whole(text) && len(d.tail)-d.done < maxHeldTokens {
		return "", nil
	}
	piece := text[commonBytes(d.doneText, text):]
	d.tail = append(d.tail[:0], d.tail[d.done:]...)
	d.done = len(d.tail)
	d.doneText, err = d.detokenize(d.tail)
	if err != nil {
		return "", fmt.Errorf("engine: detokenize: %w", err)
	}
	return strings.ToValidUTF8(piece, "\uFFFD"), nil
}

// rest returns the text of what next still holds, at the end of a generation.
func (d *textDecoder) rest() string {
	if d.done == len(d.tail) {
		return ""
	}
	text, err := d.detokenize(d.tail)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(text[commonBytes(d.doneText, text):], "\uFFFD")
}

// whole reports whether text does not end within a character.
func whole(text string) bool {
	if text == "" {
		return true
	}
	r, size := utf8.DecodeLastRuneInString(text)
	return r != utf8.RuneError || size == 0
}

func commonBytes(a, b string) int {
	n := min(len(a), len(b))
	if a[:n] == b[:n] {
		return n
	}
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
