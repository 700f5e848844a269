package transport

import (
	"errors"
	"fmt"
)

// The sentinel errors of the contract. They cross the wire: errors.Is works on
// both sides. Text around them says what, where and what to do.
var (
	// ErrStaleFence: the call names another owner instance than the one that
	// got it. Find the owner anew and open a new session.
	ErrStaleFence = errors.New("stale fence")
	// ErrNotOwner: this process does not own the slot (any more).
	ErrNotOwner = errors.New("not the owner of the slot")
	// ErrSessionClosed: the session was closed or never existed here.
	ErrSessionClosed = errors.New("session closed")
	// ErrSessionFatal: the backend failed under the session. Open a new one.
	ErrSessionFatal = errors.New("session lost")
	// ErrModelBusy: the model is in use, or its queue is full. Try later.
	ErrModelBusy = errors.New("model busy")
	// ErrModelNotActive: the call needs an active model and there is none.
	ErrModelNotActive = errors.New("model not active")
	// ErrModelSwitchRequired: another model is active. Load the wanted one.
	ErrModelSwitchRequired = errors.New("another model is active")
	// ErrSlotGenerationStale: the slot has changed since the caller looked.
	ErrSlotGenerationStale = errors.New("slot generation is stale")
	// ErrBackendMismatch: the model is of another type than the backend.
	ErrBackendMismatch = errors.New("backend mismatch")
	// ErrManifestMismatch: a context's identity differs from what is resident.
	ErrManifestMismatch = errors.New("manifest mismatch")
	// ErrDigestMismatch: the bytes are not those that the digest names.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrContextOverflow: the tokens don't fit; see [ContextOverflowError].
	ErrContextOverflow = errors.New("context overflow")
	// ErrDeviceBusy: the device is used by something else.
	ErrDeviceBusy = errors.New("device busy")
	// ErrInsufficientMemory: the model or its KV does not fit into memory.
	ErrInsufficientMemory = errors.New("insufficient memory")
	// ErrModelLoadFailed: the model is there but can't be loaded.
	ErrModelLoadFailed = errors.New("model load failed")
	// ErrUnsupportedFeature: this backend, model or build lacks the feature.
	ErrUnsupportedFeature = errors.New("unsupported feature")
	// ErrModelNotFound: no such model here.
	ErrModelNotFound = errors.New("model not found")
	// ErrUnsupportedModelType: no backend here loads this type of model.
	ErrUnsupportedModelType = errors.New("unsupported model type")
)

// ContextOverflowDetail says what did not fit, in tokens. Stage is "prefix",
// "suffix", "decode" or "restore".
type ContextOverflowDetail struct {
	Stage            string `json:"stage"`
	ResidentTokens   int    `json:"resident_tokens"`
	AdditionalTokens int    `json:"additional_tokens"`
	NumCtx           int    `json:"num_ctx"`
}

// ContextOverflowError is an ErrContextOverflow with its counts.
type ContextOverflowError struct {
	Detail ContextOverflowDetail
}

// NewContextOverflowError makes a ContextOverflowError: additional tokens
// asked for at stage, on top of resident ones, in a context of numCtx.
func NewContextOverflowError(stage string, resident, additional, numCtx int) error {
	return &ContextOverflowError{Detail: ContextOverflowDetail{
		Stage: stage, ResidentTokens: resident, AdditionalTokens: additional, NumCtx: numCtx,
	}}
}

func (e *ContextOverflowError) Error() string {
	d := e.Detail
	return fmt.Sprintf("%v at %s: %d resident + %d additional tokens exceed the context of %d",
		ErrContextOverflow, d.Stage, d.ResidentTokens, d.AdditionalTokens, d.NumCtx)
}

// Is makes errors.Is(err, ErrContextOverflow) true.
func (e *ContextOverflowError) Is(target error) bool { return target == ErrContextOverflow }

// ContextOverflowDetailFromError returns the counts in err, if it has any.
func ContextOverflowDetailFromError(err error) (ContextOverflowDetail, bool) {
	var overflow *ContextOverflowError
	if errors.As(err, &overflow) {
		return overflow.Detail, true
	}
	return ContextOverflowDetail{}, false
}
