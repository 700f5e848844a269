package transport

import (
	"errors"
	"strings"
	"testing"
)

func TestManifestIdentity(t *testing.T) {
	base := ContextManifest{
		ProfileID: "p", Backend: "llama", BackendVersion: "1", ModelDigest: "m", PromptFormat: "chatml",
		PromptTemplateDigest: "t", RuntimeDigest: "r", AddBOS: true,
	}
	change := func(f func(*ContextManifest)) ContextManifest {
		m := base
		f(&m)
		return m
	}
	for _, c := range []struct {
		name string
		next ContextManifest
		want string // the field that the error names
	}{
		{"itself", base, ""},
		{"none claimed", ContextManifest{}, ""},
		{"none claimed, with text facts", ContextManifest{StableBytes: 3, AddBOS: true, Segments: []ManifestSegment{{Kind: "user"}}}, ""},
		{"another text", change(func(m *ContextManifest) { m.StableBytes, m.TotalBytes, m.StableByteHash = 1, 2, "h" }), ""},
		{"profile", change(func(m *ContextManifest) { m.ProfileID = "q" }), "profile_id"},
		{"backend", change(func(m *ContextManifest) { m.Backend = "openvino" }), "backend"},
		{"backend version", change(func(m *ContextManifest) { m.BackendVersion = "" }), "backend_version"},
		{"model", change(func(m *ContextManifest) { m.ModelDigest = "n" }), "model_digest"},
		{"format", change(func(m *ContextManifest) { m.PromptFormat = "raw" }), "prompt_format"},
		{"template", change(func(m *ContextManifest) { m.PromptTemplateDigest = "u" }), "prompt_template_digest"},
		{"runtime", change(func(m *ContextManifest) { m.RuntimeDigest = "s" }), "runtime_digest"},
		{"bos", change(func(m *ContextManifest) { m.AddBOS = false }), "add_bos"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, err := range []error{base.CheckIdentity(c.next), c.next.CheckIdentity(base)} {
				if c.want == "" {
					if err != nil {
						t.Error(err)
					}
					continue
				}
				if !errors.Is(err, ErrManifestMismatch) || !strings.Contains(err.Error(), ": "+c.want+" is ") {
					t.Errorf("%v, want ErrManifestMismatch that names %s", err, c.want)
				}
			}
		})
	}
}

func TestManifestDigest(t *testing.T) {
	if d := (ContextManifest{StableBytes: 5}).Digest(); d != "" {
		t.Errorf("a manifest without an identity has the digest %q", d)
	}
	a, b := ContextManifest{ProfileID: "p"}, ContextManifest{ProfileID: "p", StableBytes: 1}
	if same := (ContextManifest{ProfileID: "p"}); a.Digest() != same.Digest() || len(a.Digest()) != 64 {
		t.Errorf("digest %q", a.Digest())
	}
	if a.Digest() == b.Digest() {
		t.Error("two manifests have one digest")
	}
}

func TestHashTokens(t *testing.T) {
	for _, c := range []struct {
		tokens []int32
		want   string
	}{
		// SHA-256 of no bytes, and of 0x01000000ffffffff.
		{nil, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{[]int32{1, -1}, "b15348c8f462384c01e83b6d499c6faf3f96808f5aa07c6bab4b65b36b4445d4"},
	} {
		if got := HashTokens(c.tokens); got != c.want {
			t.Errorf("HashTokens(%v) = %s, want %s", c.tokens, got, c.want)
		}
	}
}

func TestSegmentIsRole(t *testing.T) {
	for kind, want := range map[string]bool{
		SegmentSystem: true, SegmentUser: true, SegmentAssistant: true, SegmentTool: true,
		SegmentAssistantPrompt: false, "": false, "User": false,
	} {
		if got := (ManifestSegment{Kind: kind}).IsRole(); got != want {
			t.Errorf("IsRole of %q is %t", kind, got)
		}
	}
}
