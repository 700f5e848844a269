package grpc

import "modeld/core/transport"

// The bodies of requests and replies. Replies that are not here are the structs
// of core/transport themselves.

type empty struct{}

type ownerBody struct {
	OwnerInstanceID string `json:"owner_instance_id"`
}

// modelBody is the request of OpenSession and Describe.
type modelBody struct {
	OwnerInstanceID  string                  `json:"owner_instance_id"`
	ModelName        string                  `json:"model_name"`
	Type             string                  `json:"type"`
	Digest           string                  `json:"digest"`
	Path             string                  `json:"path"`
	Config           transport.Config        `json:"config"`
	Adapters         []transport.AdapterSpec `json:"adapters,omitempty"`
	ReclaimableBytes int64                   `json:"reclaimable_bytes,omitempty"`
	// OpenID names the session in a CloseSession by a client that gave up
	// before it got the handle.
	OpenID string `json:"open_id,omitempty"`
}

func (b *modelBody) request() transport.OpenSessionRequest {
	return transport.OpenSessionRequest{
		Fence:     transport.Fence{OwnerInstanceID: b.OwnerInstanceID},
		ModelName: b.ModelName, Type: b.Type, Digest: b.Digest, Path: b.Path,
		Config: b.Config, Adapters: b.Adapters, ReclaimableBytes: b.ReclaimableBytes,
	}
}

func newModelBody(owner string, r transport.OpenSessionRequest) *modelBody {
	return &modelBody{
		OwnerInstanceID: owner,
		ModelName:       r.ModelName, Type: r.Type, Digest: r.Digest, Path: r.Path,
		Config: r.Config, Adapters: r.Adapters, ReclaimableBytes: r.ReclaimableBytes,
	}
}

type loadBody struct {
	OwnerInstanceID    string                  `json:"owner_instance_id"`
	ModelName          string                  `json:"model_name"`
	Type               string                  `json:"type"`
	Digest             string                  `json:"digest"`
	Path               string                  `json:"path"`
	Config             transport.Config        `json:"config"`
	Adapters           []transport.AdapterSpec `json:"adapters,omitempty"`
	ExpectedGeneration uint64                  `json:"expected_generation"`
}

type unloadBody struct {
	OwnerInstanceID    string `json:"owner_instance_id"`
	ExpectedGeneration uint64 `json:"expected_generation"`
}

type embedBody struct {
	OwnerInstanceID string           `json:"owner_instance_id"`
	ModelName       string           `json:"model_name"`
	Type            string           `json:"type"`
	Digest          string           `json:"digest"`
	Path            string           `json:"path"`
	Config          transport.Config `json:"config"`
	Text            string           `json:"text"`
}

type handleBody struct {
	Handle string `json:"handle"`
}

// closeBody has an OpenID where the client does not know the handle.
type closeBody struct {
	Handle string `json:"handle"`
	OpenID string `json:"open_id,omitempty"`
}

type prefixBody struct {
	Handle string                `json:"handle"`
	Prefix transport.PrefixInput `json:"prefix"`
}

type suffixBody struct {
	Handle string                `json:"handle"`
	Suffix transport.SuffixInput `json:"suffix"`
}

type decodeBody struct {
	Handle string                 `json:"handle"`
	Config transport.DecodeConfig `json:"config"`
}

type restoreBody struct {
	Handle   string                    `json:"handle"`
	Snapshot transport.SessionSnapshot `json:"snapshot"`
}

type modelsBody struct {
	Models []transport.NodeModel `json:"models"`
}

type removeBody struct {
	OwnerInstanceID string `json:"owner_instance_id"`
	Name            string `json:"name"`
}

// pushBody is a frame of PushModel: the first has the manifest, any has data.
type pushBody struct {
	OwnerInstanceID string                  `json:"owner_instance_id,omitempty"`
	Manifest        *transport.PushManifest `json:"manifest,omitempty"`
	Data            []byte                  `json:"data,omitempty"`
}

type pushReply struct {
	AlreadyPresent bool  `json:"already_present"`
	BytesWritten   int64 `json:"bytes_written"`
}

type healthBody struct {
	InstanceID string `json:"instance_id"`
	Ready      bool   `json:"ready"`
	Backend    string `json:"backend"`
}
