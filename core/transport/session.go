package transport

// Fence names the owner that a request is meant for. On the wire the owner's
// instance id also travels as metadata, which is what counts.
type Fence struct {
	OwnerInstanceID string
}

// OpenSessionRequest names a model. An empty ModelName, Type and Path is the
// server's configured model.
type OpenSessionRequest struct {
	Fence
	ModelName string
	// Type is the backend that the model is for: "llama", "openvino", ...
	Type string
	// Digest, where set, must be the model's ("sha256:<hex>" or bare hex).
	Digest string
	// Path is a GGUF file or an IR folder on the server. Servers take only
	// configured models and their store unless their configuration allows
	// more.
	Path     string
	Config   Config
	Adapters []AdapterSpec `json:"adapters,omitempty"`
	// ReclaimableBytes is memory that the caller knows will be free by the
	// time of loading; it counts as free for admission.
	ReclaimableBytes int64 `json:"reclaimable_bytes,omitempty"`
}

// Config is how a model is loaded. Zero values leave it to the backend.
type Config struct {
	// NumCtx is the context of one session, in tokens.
	NumCtx int
	// HotContextTokens is how much of it is kept in fast memory, where a
	// backend distinguishes.
	HotContextTokens int
	// PlannerEffectiveContext is the context that the caller plans for; see
	// ResolvePlannerEffectiveContext.
	PlannerEffectiveContext int
	// NumBatch is the most tokens in one forward pass.
	NumBatch int
	// NumThreads is the number of compute threads.
	NumThreads int
	// NumGpuLayers is how many layers go to the GPU; negative means all.
	NumGpuLayers int
	// TensorSplit is each GPU's share.
	TensorSplit []float32
	FlashAttn   bool
	// KVCacheType is the KV cache's element type, in the runtime's own name
	// ("f16", "q8_0", "u8", ...).
	KVCacheType          string
	PromptFormat         string
	PromptTemplateDigest string
	// DisableBOS keeps the model's beginning-of-sequence token out of raw
	// text.
	DisableBOS      bool
	ReasoningFormat string
}

// AdapterSpec is a LoRA adapter. Scale 0 means 1.
type AdapterSpec struct {
	Name   string  `json:"name,omitempty"`
	Path   string  `json:"path,omitempty"`
	Digest string  `json:"digest,omitempty"`
	Scale  float32 `json:"scale,omitempty"`
}

// EmbedRequest names a model as OpenSessionRequest does, and a text.
type EmbedRequest struct {
	Fence
	ModelName string
	Type      string
	Digest    string
	Path      string
	Config    Config
	Text      string
}

// EmbedResult is a text's embedding, of length 1 (Euclidean).
type EmbedResult struct {
	Vector []float32 `json:"vector,omitempty"`
}

// PrefixInput is the stable part of a context.
type PrefixInput struct {
	Text     string
	Manifest ContextManifest
	// Tools is a JSON array of tool definitions for the chat template.
	Tools  string      `json:"Tools,omitempty"`
	Images []ImagePart `json:"images,omitempty"`
}

// SuffixInput is the volatile part of a context: what comes after the prefix.
type SuffixInput struct {
	Text     string
	Manifest ContextManifest
	// EnableThinking and ReasoningEffort are passed to the chat template.
	EnableThinking  *bool       `json:"EnableThinking,omitempty"`
	ReasoningEffort string      `json:"ReasoningEffort,omitempty"`
	Images          []ImagePart `json:"images,omitempty"`
}

// ImagePart is one image; it replaces one MediaMarker in the text.
type ImagePart struct {
	Data     []byte `json:"data,omitempty"`
	MimeType string `json:"mime_type,omitempty"`
}

// PrefixStatus says what EnsurePrefix did, in tokens, exactly.
type PrefixStatus struct {
	// ReusedTokens of the prefix had their KV already, PrefilledTokens were
	// computed: together they are PrefixTokens.
	ReusedTokens    int
	PrefilledTokens int
	// DroppedTokens were resident before and are not in the prefix.
	DroppedTokens int
	PrefixTokens  int
	// ResidentTokens are all tokens of the context now, AvailableTokens how
	// many more fit.
	ResidentTokens  int
	AvailableTokens int
	// StableByteHash repeats the manifest's; StableTokenHash is HashTokens
	// of the prefix.
	StableByteHash  string
	StableTokenHash string
	ManifestDigest  string
}

// SuffixStatus says what PrefillSuffix did, in tokens, exactly.
type SuffixStatus struct {
	SuffixTokens    int
	PrefixTokens    int
	ResidentTokens  int
	AvailableTokens int
	ManifestDigest  string
}

// DecodeConfig is how to generate.
type DecodeConfig struct {
	// MaxTokens is the most tokens to generate; 0 is until the end of
	// generation or a full context.
	MaxTokens int
	// Temperature nil is the model's default; 0 is greedy.
	Temperature *float64
	// TopP nil and TopK 0 are off.
	TopP *float64
	TopK int
	// Seed makes sampling repeatable; nil takes a random one.
	Seed *int
	// ParserProtocols names the formats by which tool calls are parsed.
	ParserProtocols  []string
	ReasoningFormat  string
	StructuredOutput StructuredOutputConfig
}

// StructuredOutputConfig constrains what is generated. An empty Protocol is off.
type StructuredOutputConfig struct {
	Protocol string
	Payload  string
	ToolName string
}

// The reasons for which a generation ends.
const (
	FinishStop   = "stop"   // the model ended it
	FinishLength = "length" // MaxTokens or the context is used up
)

// StreamChunk is a piece of a generation. Text is whole UTF-8. A chunk with an
// Error is the last.
type StreamChunk struct {
	Text      string
	Thinking  string
	ToolCalls []ToolCall
	Error     error
	// Tokens is how many tokens were generated for this chunk. 0 from a
	// server that does not say.
	Tokens int
	// FinishReason is set in the last chunk of a generation that ended well.
	// Empty from a server that does not say.
	FinishReason string
}

// ToolCall is a call that the model asks for. Type is "function".
type ToolCall struct {
	ID       string           `json:"id,omitempty"`
	Type     string           `json:"type"`
	Function ToolCallFunction `json:"function"`
}

// ToolCallFunction names the function; Arguments is a JSON object as text.
type ToolCallFunction struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// ContextReport tells what a session holds and what was done for it, in tokens.
type ContextReport struct {
	ResidentTokens          int
	PrefixTokens            int
	NumCtx                  int
	HotContextTokens        int
	PlannerEffectiveContext int
	AvailableTokens         int
	StableByteHash          string
	StableTokenHash         string
	ManifestDigest          string
	Manifest                ContextManifest
	Closed                  bool
	FatalError              string `json:"fatal_error,omitempty"`
	// PhysicalPrefillCalls and PhysicalPrefillTokens count forward passes
	// and tokens of prefill in this session's life; the Deferred ones are
	// put off to the next decode.
	PhysicalPrefillCalls  int `json:"physical_prefill_calls,omitempty"`
	PhysicalPrefillTokens int `json:"physical_prefill_tokens,omitempty"`
	DeferredPrefillCalls  int `json:"deferred_prefill_calls,omitempty"`
	DeferredPrefillTokens int `json:"deferred_prefill_tokens,omitempty"`
	// DecodeCalls counts forward passes that continued a generation,
	// DecodePromptTokens the tokens that Decode had to compute first.
	DecodeCalls        int              `json:"decode_calls,omitempty"`
	DecodePromptTokens int              `json:"decode_prompt_tokens,omitempty"`
	Residency          *ResidencyReport `json:"residency,omitempty"`
}

// ResidencyReport tells where a context's KV is.
type ResidencyReport struct {
	BudgetTokens    int                   `json:"budget_tokens,omitempty"`
	TotalTokens     int                   `json:"total_tokens,omitempty"`
	HotTokens       int                   `json:"hot_tokens,omitempty"`
	ColdTokens      int                   `json:"cold_tokens,omitempty"`
	ProtectedTokens int                   `json:"protected_tokens,omitempty"`
	HotBlocks       int                   `json:"hot_blocks,omitempty"`
	ColdBlocks      int                   `json:"cold_blocks,omitempty"`
	OverBudget      bool                  `json:"over_budget,omitempty"`
	Capabilities    ResidencyCapabilities `json:"capabilities"`
	Diagnostics     []string              `json:"diagnostics,omitempty"`
	Error           string                `json:"error,omitempty"`
}

// ResidencyCapabilities says what the backend can do with this model's KV.
type ResidencyCapabilities struct {
	RemoveTail                   bool `json:"remove_tail,omitempty"`
	RemoveMiddle                 bool `json:"remove_middle,omitempty"`
	PositionShift                bool `json:"position_shift,omitempty"`
	SparseAttention              bool `json:"sparse_attention,omitempty"`
	SlidingWindowAttentionTokens int  `json:"sliding_window_attention_tokens,omitempty"`
	ColdStore                    bool `json:"cold_store,omitempty"`
	RecomputeRange               bool `json:"recompute_range,omitempty"`
}

// SessionSnapshot is a saved context. State is the KV in the runtime's format:
// it does not cross the wire; StateID names it in the process that has it.
// ResidentTokenIDs suffice to recompute it.
type SessionSnapshot struct {
	StateID          string          `json:"state_id,omitempty"`
	State            []byte          `json:"-"`
	ResidentTokens   int             `json:"resident_tokens,omitempty"`
	PrefixTokens     int             `json:"prefix_tokens,omitempty"`
	NumCtx           int             `json:"num_ctx,omitempty"`
	ResidentTokenIDs []int           `json:"resident_token_ids,omitempty"`
	ColdKVBlocks     []ColdKVBlock   `json:"cold_kv_blocks,omitempty"`
	StableText       string          `json:"stable_text,omitempty"`
	PrefixText       string          `json:"prefix_text,omitempty"`
	Tools            string          `json:"tools,omitempty"`
	Manifest         ContextManifest `json:"manifest"`
}

// ColdKVBlock is the KV of positions [Start, End), moved out of fast memory.
// PrefixTokens are the tokens before it that it depends on. LastUsed is Unix
// time in nanoseconds.
type ColdKVBlock struct {
	Start        int    `json:"start,omitempty"`
	End          int    `json:"end,omitempty"`
	Tokens       []int  `json:"tokens,omitempty"`
	PrefixTokens []int  `json:"prefix_tokens,omitempty"`
	TokenHash    string `json:"token_hash,omitempty"`
	KV           []byte `json:"kv,omitempty"`
	CacheClass   string `json:"cache_class,omitempty"`
	LastUsed     int64  `json:"last_used,omitempty"`
}
