package transport

import (
	"errors"
	"fmt"
	"testing"
)

func TestContextOverflowError(t *testing.T) {
	err := fmt.Errorf("turn 3: %w", NewContextOverflowError("suffix", 100, 30, 128))
	if !errors.Is(err, ErrContextOverflow) {
		t.Error("it is no ErrContextOverflow")
	}
	if errors.Is(err, ErrModelBusy) {
		t.Error("it is an ErrModelBusy")
	}
	if want := "turn 3: context overflow at suffix: 100 resident + 30 additional tokens exceed the context of 128"; err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
	got, ok := ContextOverflowDetailFromError(err)
	want := ContextOverflowDetail{Stage: "suffix", ResidentTokens: 100, AdditionalTokens: 30, NumCtx: 128}
	if !ok || got != want {
		t.Errorf("detail %+v, %t; want %+v", got, ok, want)
	}
}

func TestContextOverflowDetailFromOtherErrors(t *testing.T) {
	for _, err := range []error{nil, ErrContextOverflow, errors.New("x")} {
		if d, ok := ContextOverflowDetailFromError(err); ok {
			t.Errorf("%v has the detail %+v", err, d)
		}
	}
}

func TestSentinelsAreDistinct(t *testing.T) {
	all := []error{
		ErrStaleFence, ErrNotOwner, ErrSessionClosed, ErrSessionFatal, ErrModelBusy, ErrModelNotActive,
		ErrModelSwitchRequired, ErrSlotGenerationStale, ErrBackendMismatch, ErrManifestMismatch, ErrDigestMismatch,
		ErrContextOverflow, ErrDeviceBusy, ErrInsufficientMemory, ErrModelLoadFailed, ErrUnsupportedFeature,
		ErrModelNotFound, ErrUnsupportedModelType,
	}
	texts := map[string]bool{}
	for i, a := range all {
		for j, b := range all {
			if errors.Is(a, b) != (i == j) {
				t.Errorf("errors.Is(%v, %v) is %t", a, b, i != j)
			}
		}
		texts[a.Error()] = true
	}
	if len(texts) != len(all) {
		t.Errorf("%d sentinels have %d texts", len(all), len(texts))
	}
}

func TestSupported(t *testing.T) {
	for p, want := range map[int]bool{-1: false, 0: false, 1: true, 2: false} {
		if Supported(p) != want {
			t.Errorf("Supported(%d) is %t", p, !want)
		}
	}
}
