package transport

// ModelInfo describes a model on this machine, as far as the backend knows it;
// a zero field is unknown. Sizes are in bytes, contexts in tokens.
type ModelInfo struct {
	// ModelMaxContext is the model's own ceiling. EffectiveContext is what a
	// session gets here; Clamped and Reason say why it is less than asked.
	ModelMaxContext         int `json:"model_max_context"`
	EffectiveContext        int `json:"effective_context"`
	MemoryContextTokens     int `json:"memory_context_tokens,omitempty"`
	HotContextTokens        int `json:"hot_context_tokens,omitempty"`
	PlannerEffectiveContext int `json:"planner_effective_context,omitempty"`

	// RequiredBytes is what loading takes: weights, overhead and the KV of
	// EffectiveContext. UsableBytes is what may be taken of FreeBytes, after
	// ReservedBytes, MinFreeBytes and the limit of UserLimitBytes.
	KVBytesPerToken     int64 `json:"kv_bytes_per_token,omitempty"`
	FreeBytes           int64 `json:"free_bytes,omitempty"`
	WeightsBytes        int64 `json:"weights_bytes,omitempty"`
	OverheadBytes       int64 `json:"overhead_bytes,omitempty"`
	ReservedBytes       int64 `json:"reserved_bytes,omitempty"`
	UserLimitBytes      int64 `json:"user_limit_bytes,omitempty"`
	MinFreeBytes        int64 `json:"min_free_bytes,omitempty"`
	HostColdBudgetBytes int64 `json:"host_cold_budget_bytes,omitempty"`
	UsableBytes         int64 `json:"usable_bytes,omitempty"`
	RequiredBytes       int64 `json:"required_bytes,omitempty"`

	Clamped bool   `json:"clamped,omitempty"`
	Reason  string `json:"reason,omitempty"`

	DeviceKind         string `json:"device_kind,omitempty"`
	DeviceID           string `json:"device_id,omitempty"`
	DeviceTotalBytes   int64  `json:"device_total_bytes,omitempty"`
	SharedWithDisplay  bool   `json:"shared_with_display,omitempty"`
	RequestedGpuLayers int    `json:"requested_gpu_layers,omitempty"`
	ResolvedGpuLayers  int    `json:"resolved_gpu_layers,omitempty"`

	SparseAttention              bool `json:"sparse_attention,omitempty"`
	SlidingWindowAttentionTokens int  `json:"sliding_window_attention_tokens,omitempty"`
	SupportsVision               bool `json:"supports_vision,omitempty"`
	VisionTokensPerImage         int  `json:"vision_tokens_per_image,omitempty"`

	ChatTemplateFormat                  string `json:"chat_template_format,omitempty"`
	ChatTemplateThinkingStartTag        string `json:"chat_template_thinking_start_tag,omitempty"`
	ChatTemplateReasoningFormat         string `json:"chat_template_reasoning_format,omitempty"`
	ChatTemplateSupportsToolCalls       bool   `json:"chat_template_supports_tool_calls,omitempty"`
	ChatTemplateSupportsThinking        bool   `json:"chat_template_supports_thinking,omitempty"`
	ChatTemplateSupportsReasoningEffort bool   `json:"chat_template_supports_reasoning_effort,omitempty"`

	RuntimeName        string       `json:"runtime_name,omitempty"`
	RuntimeDigest      string       `json:"runtime_digest,omitempty"`
	RuntimeSystemInfo  string       `json:"runtime_system_info,omitempty"`
	SupportsGPUOffload bool         `json:"supports_gpu_offload,omitempty"`
	Devices            []DeviceInfo `json:"devices,omitempty"`
}

// DeviceInfo is a device that the backend can compute on.
type DeviceInfo struct {
	Index            int    `json:"index"`
	Name             string `json:"name,omitempty"`
	Description      string `json:"description,omitempty"`
	Type             string `json:"type,omitempty"`
	MemoryFree       int64  `json:"memory_free,omitempty"`
	MemoryTotal      int64  `json:"memory_total,omitempty"`
	MemoryFreeKnown  bool   `json:"memory_free_known,omitempty"`
	MemoryTotalKnown bool   `json:"memory_total_known,omitempty"`
}

// ResolvePlannerEffectiveContext returns the context to plan for, in tokens:
// what was requested, else what info says, else numCtx; never above the
// model's ceiling where that is known, and never below numCtx.
func ResolvePlannerEffectiveContext(requested, numCtx int, info ModelInfo) int {
	resolved := requested
	if resolved <= 0 {
		resolved = info.PlannerEffectiveContext
	}
	if resolved <= 0 {
		resolved = numCtx
	}
	if info.ModelMaxContext > 0 {
		resolved = min(resolved, info.ModelMaxContext)
	}
	return max(resolved, numCtx)
}

// SlotState is the state of the active-model slot.
type SlotState string

// The states of a slot.
const (
	SlotEmpty        SlotState = "Empty"        // no model
	SlotLoading      SlotState = "Loading"      // a model is being loaded
	SlotReady        SlotState = "Ready"        // a model is loaded and in use
	SlotBusy         SlotState = "Busy"         // it is computing
	SlotSwitching    SlotState = "Switching"    // it is being replaced by another
	SlotUnloading    SlotState = "Unloading"    // it is being unloaded
	SlotFailed       SlotState = "Failed"       // the last load failed
	SlotShuttingDown SlotState = "ShuttingDown" // the daemon stops
	SlotLostOwner    SlotState = "LostOwner"    // the lease is gone
	SlotIdle         SlotState = "Idle"         // a model is loaded, without sessions
)

// ActiveModel is the model in the slot. Generation goes up with every change
// of the slot; sessions belong to one generation.
type ActiveModel struct {
	ModelName  string        `json:"model_name,omitempty"`
	Type       string        `json:"type,omitempty"`
	Digest     string        `json:"digest,omitempty"`
	Path       string        `json:"path,omitempty"`
	Config     Config        `json:"config"`
	Adapters   []AdapterSpec `json:"adapters,omitempty"`
	Generation uint64        `json:"generation"`
}

// DaemonStatus is the slot as its owner sees it.
type DaemonStatus struct {
	OwnerInstanceID string       `json:"owner_instance_id,omitempty"`
	Backend         string       `json:"backend,omitempty"`
	State           SlotState    `json:"state,omitempty"`
	Active          *ActiveModel `json:"active,omitempty"`
	BusyOperation   string       `json:"busy_operation,omitempty"`
	LastError       string       `json:"last_error,omitempty"`
	// Sessions is how many sessions are open, 0 from a server that does not
	// say.
	Sessions int `json:"sessions,omitempty"`
}

// LoadModelRequest names a model as OpenSessionRequest does.
// ExpectedGeneration 0 means any.
type LoadModelRequest struct {
	Fence
	ModelName          string
	Type               string
	Digest             string
	Path               string
	Config             Config
	Adapters           []AdapterSpec `json:"adapters,omitempty"`
	ExpectedGeneration uint64
}

// UnloadModelRequest asks for an empty slot. ExpectedGeneration 0 means any.
type UnloadModelRequest struct {
	Fence
	ExpectedGeneration uint64
}

// NodeModel is a model in a node's store.
type NodeModel struct {
	Name          string `json:"name"`
	Type          string `json:"type"`
	Digest        string `json:"digest,omitempty"`
	SizeBytes     int64  `json:"size_bytes,omitempty"`
	ContextLength int    `json:"context_length,omitempty"`
}

// NodeDiskStats is the space of a node's store, in bytes.
type NodeDiskStats struct {
	FreeBytes  int64 `json:"free_bytes"`
	UsedBytes  int64 `json:"used_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// PushFormat is how a pushed model's bytes are packed.
type PushFormat string

// The formats of a push.
const (
	PushFormatFile PushFormat = "file" // one file
	PushFormatTar  PushFormat = "tar"  // a tar of a folder
)

// PushManifest announces a pushed model. Digest is of the bytes as sent.
type PushManifest struct {
	Name       string     `json:"name"`
	Type       string     `json:"type"`
	Digest     string     `json:"digest,omitempty"`
	TotalBytes int64      `json:"total_bytes,omitempty"`
	Format     PushFormat `json:"format"`
}

// PushResult tells what became of a push.
type PushResult struct {
	AlreadyPresent bool  `json:"already_present,omitempty"`
	BytesWritten   int64 `json:"bytes_written,omitempty"`
}
