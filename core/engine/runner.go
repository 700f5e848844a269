// Package engine turns a runtime that maps tokens to logits (a [Runner]) into a
// [transport.Service]: sessions, scheduling, KV bookkeeping, sampling, chat
// templates and streaming. Nothing in it knows which runtime is below.
package engine

import (
	"context"
	"io"

	"modeld/core/transport"
)

// Token is an index into a model's vocabulary.
type Token = int32

// Backend is what a runtime gives the engine: it describes and loads models.
// A Backend is safe for concurrent use.
type Backend interface {
	// Type is the model type it accepts, such as "llama" or "openvino". It is
	// also the backend's name in manifests.
	Type() string
	// Describe reads a model's facts (context ceiling, memory, chat template,
	// devices) without loading its weights where the format allows it.
	//
	// Errors: ErrModelNotFound, ErrModelLoadFailed.
	Describe(ctx context.Context, spec ModelSpec) (transport.ModelInfo, error)
	// Load loads a model. The engine owns the Runner and closes it.
	//
	// Errors: ErrModelNotFound, ErrModelLoadFailed, ErrInsufficientMemory,
	// ErrUnsupportedFeature.
	Load(ctx context.Context, spec ModelSpec) (Runner, error)
}

// ModelSpec names a model on this machine and how to load it. A zero field of
// Config means that the backend decides.
type ModelSpec struct {
	Name     string
	Digest   string
	Path     string // file or folder, absolute
	Config   transport.Config
	Adapters []transport.AdapterSpec
}

// Runner is the narrow waist between the engine and a runtime: tokens in,
// logits out, and the KV cache as sequences of positions. The engine calls it
// from one goroutine at a time (its scheduler), except for Info, Tokenize and
// Detokenize, which must be safe for concurrent use with everything but Close.
//
// A sequence is a KV cache of consecutive positions from 0, named by a number
// in [0, Info().MaxSeqs). Every sequence exists from the start and is empty.
type Runner interface {
	// Info returns the loaded model's facts. It never changes.
	Info() Info

	// Tokenize splits text into tokens. Text of special tokens (such as
	// "<|im_start|>") becomes those tokens. With addBOS, the model's
	// beginning-of-sequence token goes first, where the model has one and
	// the text does not already start with it.
	Tokenize(text string, addBOS bool) ([]Token, error)
	// Detokenize returns the text of tokens; special tokens give nothing.
	// Where the tokens end within a character, so does the text, or U+FFFD
	// stands for what there is of it: streaming callers decode a growing
	// tail, and must see that it is not whole.
	Detokenize(tokens []Token) (string, error)

	// Forward computes a batch of spans, at most one for a sequence and at
	// most Info().MaxBatch tokens in all, and appends their KV. It returns
	// one row of Info().VocabSize logits for each requested one, in order
	// of spans. Rows stay valid until the next call of Forward or Close.
	//
	// If it fails, the KV of the batch's sequences is undefined from each
	// span's Pos on; the engine drops it from there. ErrSessionFatal means
	// that the Runner is unusable from then on. ctx may end a batch early
	// where the runtime can; the engine keeps batches short.
	Forward(ctx context.Context, batch []Span) ([][]float32, error)

	// Share makes the first n positions of dst those of src, in shared
	// memory where the runtime can. dst is empty before.
	Share(dst, src, n int) error
	// Truncate drops the KV of seq from position n on; 0 empties it. Where
	// Info().Caps.Truncate is false only 0 and the current length work, and
	// others give ErrUnsupportedFeature.
	Truncate(seq, n int) error

	// Save writes the KV of seq's first n positions in the runtime's own
	// format.
	Save(seq, n int, w io.Writer) error
	// Load fills the empty seq with what Save wrote, n positions, by the same
	// runtime and model. On an error seq is empty again.
	Load(seq, n int, r io.Reader) error

	// Close frees the model and everything of it. It is called once.
	Close() error
}

// Span is a run of consecutive tokens of one sequence. Pos is the position of
// its first token and equals the sequence's length before the call. Logits is
// how many of the last tokens need a row of logits, 0 to len(Tokens).
type Span struct {
	Seq    int
	Pos    int
	Tokens []Token
	Logits int
}

// Info is what the engine needs to know of a loaded model.
type Info struct {
	VocabSize int
	// NumCtx is the most positions that one sequence may have.
	NumCtx int
	// KVTokens is the most positions that all sequences may have together;
	// shared positions count once.
	KVTokens int
	// MaxSeqs is the number of sequences, MaxBatch the most tokens in one
	// Forward.
	MaxSeqs  int
	MaxBatch int

	// AddBOS says whether the model wants a beginning-of-sequence token.
	AddBOS bool
	// BOSText and EOSText are the texts of those tokens, for templates.
	BOSText string
	EOSText string
	// EOG are the tokens that end a generation.
	EOG []Token
	// ChatTemplate is the model's Jinja template, "" where it has none.
	ChatTemplate string
	// Sampling is the model's own default sampling; nil fields are the
	// engine's defaults.
	Sampling SamplingDefaults

	Caps Caps
	// Model repeats what Backend.Describe says, now resolved by the load.
	Model transport.ModelInfo
	// Digest identifies the model in manifests.
	Digest string
}

// SamplingDefaults are a model's recommended sampling parameters.
type SamplingDefaults struct {
	Temperature *float64
	TopP        *float64
	TopK        int
}

// Caps says what a Runner can do with its KV.
type Caps struct {
	Truncate bool // drop a tail at any position
	Share    bool // share a prefix between sequences without copying
	Save     bool // Save and Load work
}

// Embedder is implemented by Runners whose model gives embeddings. The engine
// calls it from its scheduler.
type Embedder interface {
	// Embed returns one normalised vector for each input.
	Embed(ctx context.Context, inputs [][]Token) ([][]float32, error)
}
