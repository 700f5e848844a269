package nearest_test

import (
	"testing"

	"modeld/core/nearest"
)

func TestOf(t *testing.T) {
	known := []string{"nats.url", "nats.user", "lease.wait", "slot"}
	for _, tt := range []struct{ name, want string }{
		{"nats.ulr", "nats.url"},
		{"nats.usr", "nats.user"},
		{"lease.wiat", "lease.wait"},
		{"slots", "slot"},
		{"slot", "slot"},
	} {
		if got := nearest.Of(tt.name, known); got != tt.want {
			t.Errorf("Of(%q) = %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := nearest.Of("x", nil); got != "" {
		t.Errorf("with nothing known: %q", got)
	}
}
