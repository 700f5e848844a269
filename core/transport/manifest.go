package transport

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// ContextManifest is the identity under which KV may be reused. Its identity
// fields are ProfileID to AddBOS; a zero manifest claims no identity, and
// reuse then goes by tokens and the model alone.
type ContextManifest struct {
	ProfileID            string `json:"profile_id,omitempty"`
	Backend              string `json:"backend"`
	BackendVersion       string `json:"backend_version,omitempty"`
	ModelDigest          string `json:"model_digest,omitempty"`
	PromptFormat         string `json:"prompt_format"`
	PromptTemplateDigest string `json:"prompt_template_digest"`
	RuntimeDigest        string `json:"runtime_digest"`
	// AddBOS asks for the model's beginning-of-sequence token before the
	// prefix.
	AddBOS bool `json:"add_bos"`
	// StableBytes is the length of the prefix's text, TotalBytes that of
	// prefix and suffix together.
	StableBytes       int               `json:"stable_bytes"`
	TotalBytes        int               `json:"total_bytes"`
	StableByteHash    string            `json:"stable_byte_hash"`
	StableTokenHash   string            `json:"stable_token_hash,omitempty"`
	VolatileTokenHash string            `json:"volatile_token_hash,omitempty"`
	Segments          []ManifestSegment `json:"segments,omitempty"`
}

// ManifestSegment is a part of the text, bytes [ByteStart, ByteEnd) of prefix
// and suffix taken together; Stable ones lie in the prefix.
//
// A Kind of "system", "user", "assistant" or "tool" is a message with that
// role: the backend renders all messages with the model's chat template.
// "assistant_prompt" marks the place where the assistant is to answer; other
// kinds carry no text of their own and are skipped in rendering.
type ManifestSegment struct {
	Kind         string `json:"kind"`
	Stable       bool   `json:"stable"`
	CacheClass   string `json:"cache_class,omitempty"`
	Invalidation string `json:"invalidation,omitempty"`
	ByteStart    int    `json:"byte_start"`
	ByteEnd      int    `json:"byte_end"`
	ByteHash     string `json:"byte_hash"`
	// TokenStart, TokenEnd and TokenHash are filled in by the backend.
	TokenStart int    `json:"token_start,omitempty"`
	TokenEnd   int    `json:"token_end,omitempty"`
	TokenHash  string `json:"token_hash,omitempty"`
	// ToolCallsJSON is an assistant message's calls, as a JSON array;
	// ToolCallID names the call that a tool message answers.
	ToolCallsJSON string `json:"tool_calls_json,omitempty"`
	ToolCallID    string `json:"tool_call_id,omitempty"`
}

// The kinds of segments that matter to rendering.
const (
	SegmentSystem          = "system"
	SegmentUser            = "user"
	SegmentAssistant       = "assistant"
	SegmentTool            = "tool"
	SegmentAssistantPrompt = "assistant_prompt"
)

// IsRole reports whether the segment is a chat message.
func (s ManifestSegment) IsRole() bool {
	switch s.Kind {
	case SegmentSystem, SegmentUser, SegmentAssistant, SegmentTool:
		return true
	}
	return false
}

// IsZero reports whether the manifest claims no identity. Byte ranges and
// segments don't count: they describe text, not what its KV depends on.
func (m ContextManifest) IsZero() bool {
	return m.ProfileID == "" && m.Backend == "" && m.BackendVersion == "" && m.ModelDigest == "" &&
		m.PromptFormat == "" && m.PromptTemplateDigest == "" && m.RuntimeDigest == ""
}

// CheckIdentity returns nil where KV made under m may be reused under next, and
// an ErrManifestMismatch that names the first differing field otherwise. A
// manifest without an identity fits every other.
func (m ContextManifest) CheckIdentity(next ContextManifest) error {
	if m.IsZero() || next.IsZero() {
		return nil
	}
	fields := []struct{ name, have, want string }{
		{"profile_id", m.ProfileID, next.ProfileID},
		{"backend", m.Backend, next.Backend},
		{"backend_version", m.BackendVersion, next.BackendVersion},
		{"model_digest", m.ModelDigest, next.ModelDigest},
		{"prompt_format", m.PromptFormat, next.PromptFormat},
		{"prompt_template_digest", m.PromptTemplateDigest, next.PromptTemplateDigest},
		{"runtime_digest", m.RuntimeDigest, next.RuntimeDigest},
	}
	for _, f := range fields {
		if f.have != f.want {
			return fmt.Errorf("%w: %s is %q here and %q in the request", ErrManifestMismatch, f.name, f.have, f.want)
		}
	}
	if m.AddBOS != next.AddBOS {
		return fmt.Errorf("%w: add_bos is %t here and %t in the request", ErrManifestMismatch, m.AddBOS, next.AddBOS)
	}
	return nil
}

// Digest is the hex SHA-256 of the manifest's JSON, "" without an identity.
func (m ContextManifest) Digest() string {
	if m.IsZero() {
		return ""
	}
	// A struct of strings, numbers and booleans always marshals.
	data, _ := json.Marshal(m)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// HashTokens is the hex SHA-256 of tokens as little-endian 32-bit numbers.
func HashTokens(tokens []int32) string {
	h := sha256.New()
	var buf [4]byte
	for _, t := range tokens {
		binary.LittleEndian.PutUint32(buf[:], uint32(t))
		h.Write(buf[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
