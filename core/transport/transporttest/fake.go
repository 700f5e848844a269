package transporttest

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"modeld/core/transport"
)

// Fake is a transport.Service without a model. Its tokens are words, its
// replies depend on nothing but the context, and its hooks let a test delay,
// fail, block or panic at any call. Set the fields before the first call.
//
// It lacks ModelController, NodeAdmin and ReadyReporter; embed it together with
// [FakeController], [FakeNode] or [FakeReady] where a test needs them, or take
// a [FullFake].
type Fake struct {
	// NumCtx is a session's context in tokens, 0 for 256. A request may ask
	// for less.
	NumCtx int
	// ReplyTokens is after how many tokens a generation ends by itself, 0
	// for 16.
	ReplyTokens int
	// Before is called at the start of every call; an error fails the call.
	// It may block (until ctx ends, if it is well-behaved) and panic.
	Before func(ctx context.Context, call Call) error
	// Script, where set, replaces the chunks that Decode streams. They
	// become resident with one token for each word.
	Script func(cfg transport.DecodeConfig) []transport.StreamChunk
	// BeforeChunk is called before chunk n (from 0) is streamed; an error
	// ends the stream with it.
	BeforeChunk func(ctx context.Context, n int) error
	// NoEmbed makes Embed give ErrUnsupportedFeature.
	NoEmbed bool

	mu     sync.Mutex
	calls  []Call
	open   int
	opened int
	vocab  vocabulary
}

// Call is a recorded call. Session counts from 1 in order of opening; it is 0
// for calls of the service itself. Arg is the request, nil where there is none.
type Call struct {
	Method  string
	Session int
	Arg     any
}

var _ transport.Service = (*Fake)(nil)

// Calls returns the calls so far.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Sessions returns how many sessions are open.
func (f *Fake) Sessions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// WaitSessions waits until n sessions are open, for at most ten seconds.
func (f *Fake) WaitSessions(n int) error {
	deadline := time.Now().Add(10 * time.Second)
	for f.Sessions() != n {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d sessions are open, want %d", f.Sessions(), n)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// OpenSession opens a session with an empty context.
func (f *Fake) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	if err := f.enter(ctx, Call{Method: "OpenSession", Arg: req}); err != nil {
		return nil, err
	}
	numCtx := f.numCtx()
	if req.Config.NumCtx > 0 {
		numCtx = min(numCtx, req.Config.NumCtx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.opened++
	return newFakeSession(f, f.opened, numCtx), nil
}

// Describe describes the fake.
func (f *Fake) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	if err := f.enter(ctx, Call{Method: "Describe", Arg: req}); err != nil {
		return transport.ModelInfo{}, err
	}
	return transport.ModelInfo{
		ModelMaxContext:  f.numCtx(),
		EffectiveContext: f.numCtx(),
		DeviceKind:       "cpu",
		RuntimeName:      "fake",
	}, nil
}

// Embed returns a vector that depends on the text alone.
func (f *Fake) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	if err := f.enter(ctx, Call{Method: "Embed", Arg: req}); err != nil {
		return transport.EmbedResult{}, err
	}
	if f.NoEmbed {
		return transport.EmbedResult{}, fmt.Errorf("%w: the fake gives no embeddings", transport.ErrUnsupportedFeature)
	}
	angle := float64(hashString(req.Text)%1_000_000) / 1_000_000 * 2 * math.Pi
	return transport.EmbedResult{Vector: []float32{float32(math.Cos(angle)), float32(math.Sin(angle))}}, nil
}

func (f *Fake) enter(ctx context.Context, call Call) error {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.mu.Unlock()
	if f.Before != nil {
		if err := f.Before(ctx, call); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *Fake) numCtx() int {
	if f.NumCtx > 0 {
		return f.NumCtx
	}
	return 256
}

func (f *Fake) replyTokens() int {
	if f.ReplyTokens > 0 {
		return f.ReplyTokens
	}
	return 16
}

func (f *Fake) tokenize(text string) []int32 {
	words := splitWords(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	tokens := make([]int32, len(words))
	for i, w := range words {
		tokens[i] = f.vocab.id(w)
	}
	return tokens
}

// vocabulary numbers words in the order in which they are first seen.
type vocabulary struct {
	ids   map[string]int32
	words []string
}

func (v *vocabulary) id(word string) int32 {
	if id, ok := v.ids[word]; ok {
		return id
	}
	if v.ids == nil {
		v.ids = make(map[string]int32)
	}
	id := int32(len(v.words))
	v.ids[word] = id
	v.words = append(v.words, word)
	return id
}

// splitWords cuts a text into words with the space before them, so that the
// words of a text followed by another are the words of both.
func splitWords(text string) []string {
	var words []string
	start, inWord := 0, false
	for i, r := range text {
		if unicode.IsSpace(r) {
			if inWord {
				words = append(words, text[start:i])
				start, inWord = i, false
			}
			continue
		}
		inWord = true
	}
	if start < len(text) {
		words = append(words, text[start:])
	}
	return words
}

var replyWords = strings.Fields("the sea was calm and a small boat came home over quiet water under many stars")

// nextWord is the fake's model: what follows is a function of the context.
func nextWord(context []string) string {
	h := fnv.New64a()
	for _, w := range context {
		h.Write([]byte(w))
		h.Write([]byte{0})
	}
	return " " + replyWords[h.Sum64()%uint64(len(replyWords))]
}

func hashString(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
