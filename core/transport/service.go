package transport

import (
	"context"
	"io"
)

// Service opens sessions on models. It is safe for concurrent use.
type Service interface {
	// OpenSession opens a session on the model that req names, loading it
	// where the implementation does so. The session lives until Close, not
	// until ctx ends; ctx bounds only the opening.
	//
	// Errors: ErrStaleFence, ErrNotOwner, ErrModelNotFound,
	// ErrModelLoadFailed, ErrModelBusy, ErrModelSwitchRequired,
	// ErrBackendMismatch, ErrDigestMismatch, ErrUnsupportedModelType,
	// ErrUnsupportedFeature, ErrInsufficientMemory, ErrDeviceBusy.
	OpenSession(ctx context.Context, req OpenSessionRequest) (Session, error)
	// Describe returns facts about the model that req names, without
	// opening a session and without loading weights where it can.
	Describe(ctx context.Context, req OpenSessionRequest) (ModelInfo, error)
	// Embed returns the embedding of one text. A model that gives none:
	// ErrUnsupportedFeature.
	Embed(ctx context.Context, req EmbedRequest) (EmbedResult, error)
}

// Session is one conversation's context on a model. Calls on one session must
// not overlap, except Close, which may come at any time and ends what runs.
// After Close every method but Close gives ErrSessionClosed (ExplainContext
// says Closed); after the backend's death, ErrSessionFatal.
type Session interface {
	// EnsurePrefix makes the resident context equal to the prefix: it keeps
	// the longest run of tokens that is resident already, drops the rest,
	// and prefills what is new. An empty text empties the context.
	//
	// Errors: ErrContextOverflow (before any work), ErrManifestMismatch,
	// ErrUnsupportedFeature (images), ErrModelBusy (queue full).
	EnsurePrefix(ctx context.Context, in PrefixInput) (PrefixStatus, error)
	// PrefillSuffix appends the volatile turn to what is resident. An empty
	// text appends nothing, unless its manifest renders something.
	//
	// Errors: as for EnsurePrefix.
	PrefillSuffix(ctx context.Context, in SuffixInput) (SuffixStatus, error)
	// Decode generates from the resident context. The channel is always
	// closed, at the end of generation, with the first chunk that carries an
	// Error, or soon after ctx ends; a caller that stops reading must cancel
	// ctx. With an empty context it is refused.
	//
	// Errors: ErrContextOverflow (no room for one token), ErrModelBusy,
	// ErrUnsupportedFeature.
	Decode(ctx context.Context, cfg DecodeConfig) (<-chan StreamChunk, error)
	// ExplainContext reports what is resident and what was physically done.
	// It never fails: a fault is in the report.
	ExplainContext() ContextReport
	// Snapshot saves the context. State stays in the process and is found by
	// StateID, for as long as the process keeps it.
	Snapshot(ctx context.Context) (SessionSnapshot, error)
	// Restore replaces the context by a snapshot of the same model. What it
	// can't take as KV it recomputes from the tokens.
	//
	// Errors: ErrManifestMismatch (foreign or damaged snapshot),
	// ErrContextOverflow.
	Restore(ctx context.Context, snap SessionSnapshot) error
	// Close ends the session and what runs in it. It is idempotent.
	Close() error
}

// SlotGenerationer is implemented by sessions that belong to a generation of
// the active-model slot; it becomes part of their handle.
type SlotGenerationer interface {
	SlotGeneration() uint64
}

// ModelController is implemented by services whose active model can be changed.
// It is safe for concurrent use.
type ModelController interface {
	// Status reports the slot. It does not wait for work under way.
	Status(ctx context.Context) (DaemonStatus, error)
	// LoadModel makes a model the active one. ExpectedGeneration, where not
	// zero, must be the slot's: else ErrSlotGenerationStale. Where sessions
	// are open on another model: ErrModelBusy.
	LoadModel(ctx context.Context, req LoadModelRequest) (ActiveModel, error)
	// UnloadModel empties the slot. Without an active model:
	// ErrModelNotActive. With open sessions: ErrModelBusy.
	UnloadModel(ctx context.Context, req UnloadModelRequest) error
}

// NodeAdmin is implemented by services that keep a store of models.
// It is safe for concurrent use.
type NodeAdmin interface {
	ListModels(ctx context.Context) ([]NodeModel, error)
	// RemoveModel removes a stored model; an unknown one: ErrModelNotFound,
	// the active one: ErrModelBusy.
	RemoveModel(ctx context.Context, name string) error
	DiskStats(ctx context.Context) (NodeDiskStats, error)
	// ReceiveModel stores a model from r. It is verified against
	// m.Digest (ErrDigestMismatch) and installed atomically.
	ReceiveModel(ctx context.Context, m PushManifest, r io.Reader) (PushResult, error)
}

// ReadyReporter is implemented by services that know whether they can take
// work. Health is Ready only while Ready returns nil.
type ReadyReporter interface {
	Ready(ctx context.Context) error
}
