package main

import (
	"context"
	"fmt"

	"modeld/core/transport"
)

// noBackend is a transport.Service that takes no work. It is not ready: a
// daemon may own its slot with it, but clients must not be sent there.
type noBackend struct{}

var errNoBackend = fmt.Errorf("%w: there is no backend here: start modeld with --backend llama or another that runs models", transport.ErrUnsupportedFeature)

func (noBackend) OpenSession(context.Context, transport.OpenSessionRequest) (transport.Session, error) {
	return nil, errNoBackend
}

func (noBackend) Describe(context.Context, transport.OpenSessionRequest) (transport.ModelInfo, error) {
	return transport.ModelInfo{}, errNoBackend
}

func (noBackend) Embed(context.Context, transport.EmbedRequest) (transport.EmbedResult, error) {
	return transport.EmbedResult{}, errNoBackend
}

//nolint:unparam // an interface's method
func (noBackend) Status(context.Context) (transport.DaemonStatus, error) {
	return transport.DaemonStatus{Backend: "none", State: transport.SlotEmpty}, nil
}

func (noBackend) LoadModel(context.Context, transport.LoadModelRequest) (transport.ActiveModel, error) {
	return transport.ActiveModel{}, errNoBackend
}

func (noBackend) UnloadModel(context.Context, transport.UnloadModelRequest) error {
	return fmt.Errorf("%w: there is no backend here", transport.ErrModelNotActive)
}

func (noBackend) Ready(context.Context) error { return errNoBackend }
