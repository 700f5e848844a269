// Package transport is modeld's contract: the interfaces that a backend
// implements and a client calls, their types, and the errors that both sides
// know. Its comments are the specification; package transporttest checks it.
//
// The same contract is used twice: by clients of the daemon over the fenced
// wire of core/grpc, and by the daemon towards its backend plugin.
//
// # A conversation
//
// A client opens a [Session], gives it the stable part of its context with
// EnsurePrefix, the volatile turn with PrefillSuffix, and reads what the model
// generates from Decode. Generated tokens become resident, so that the next
// EnsurePrefix that repeats them reuses their KV. The statuses say exactly how
// many tokens were reused, prefilled and dropped.
//
// # Text and manifests
//
// Text is raw by default: it is tokenized as it stands, special tokens
// included. Where a [ContextManifest] has segments whose kind is a chat role
// ("system", "user", "assistant", "tool"), the text is message contents and
// the backend renders them with the model's own chat template; see
// [ManifestSegment].
package transport

// ProtocolVersion is the version of this contract, MinProtocol the oldest one
// that is still understood.
const (
	ProtocolVersion = 1
	MinProtocol     = 1
)

// Supported reports whether a peer that speaks protocol p can be served.
func Supported(p int) bool { return p >= MinProtocol && p <= ProtocolVersion }

// MediaMarker stands in a text for the place of one image of its Images.
const MediaMarker = "<__media__>"
