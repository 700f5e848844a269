package transport_test

import (
	"reflect"
	"testing"

	"modeld/core/transport"
)

func TestConfigOverlayAndForSession(t *testing.T) {
	model := transport.Config{NumCtx: 4096, NumThreads: 2, KVCacheType: "f16"}
	request := transport.Config{NumCtx: 512, NumThreads: 8, PromptFormat: "chat", DisableBOS: true}
	if got, want := model.Overlay(request), (transport.Config{NumCtx: 512, NumThreads: 8, KVCacheType: "f16", PromptFormat: "chat", DisableBOS: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("Overlay = %+v, want %+v", got, want)
	}
	if got, want := request.ForSession(model), (transport.Config{NumCtx: 512, NumThreads: 2, KVCacheType: "f16", PromptFormat: "chat", DisableBOS: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("ForSession = %+v, want %+v", got, want)
	}
	if got := (transport.Config{}).ForSession(model); !reflect.DeepEqual(got, model) {
		t.Errorf("ForSession of nothing = %+v, want the model's", got)
	}
}

func TestConfigUnfit(t *testing.T) {
	loaded := transport.Config{NumThreads: 2, TensorSplit: []float32{1, 2}}
	tests := []struct {
		name   string
		want   transport.Config
		numCtx int
		unfit  string
	}{
		{"nothing asked for", transport.Config{}, 4096, ""},
		{"the same", loaded, 4096, ""},
		{"a session's settings", transport.Config{PromptFormat: "x", DisableBOS: true, HotContextTokens: 9}, 4096, ""},
		{"a smaller context", transport.Config{NumCtx: 4096}, 4096, ""},
		{"a larger context", transport.Config{NumCtx: 4097}, 4096, "NumCtx"},
		{"a context where it is unknown", transport.Config{NumCtx: 1 << 20}, 0, ""},
		{"other threads", transport.Config{NumThreads: 3}, 4096, "NumThreads"},
		{"another split", transport.Config{TensorSplit: []float32{2, 1}}, 4096, "TensorSplit"},
	}
	for _, tt := range tests {
		if got, _, _ := loaded.Unfit(tt.want, tt.numCtx); got != tt.unfit {
			t.Errorf("%s: %q does not fit, want %q", tt.name, got, tt.unfit)
		}
	}
}

func TestSameDigest(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"sha256:AA", "aa", true}, {"aa", "aa", true}, {"", "aa", true}, {"aa", "", true}, {"aa", "ab", false},
	} {
		if got := transport.SameDigest(tt.a, tt.b); got != tt.same {
			t.Errorf("SameDigest(%q, %q) = %t", tt.a, tt.b, got)
		}
	}
}
