package host

import (
	"context"
	"fmt"

	"modeld/core/transport"
)

// OpenSession opens a session in the plugin that runs now.
func (h *Host) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	b, err := h.backend(ctx)
	if err != nil {
		return nil, err
	}
	return b.OpenSession(ctx, req)
}

// Describe asks the plugin for facts about a model.
func (h *Host) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	b, err := h.backend(ctx)
	if err != nil {
		return transport.ModelInfo{}, err
	}
	return b.Describe(ctx, req)
}

// Embed asks the plugin for an embedding.
func (h *Host) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	b, err := h.backend(ctx)
	if err != nil {
		return transport.EmbedResult{}, err
	}
	return b.Embed(ctx, req)
}

// Status is the plugin's own view of its model; one without a
// ModelController gives ErrUnsupportedFeature.
func (h *Host) Status(ctx context.Context) (transport.DaemonStatus, error) {
	b, err := h.backend(ctx)
	if err != nil {
		return transport.DaemonStatus{}, err
	}
	return b.Status(ctx)
}

// LoadModel loads a model in the plugin. It has no time limit but ctx's. The
// next launch of the plugin does not have the model; see Options.OnUp.
func (h *Host) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	b, err := h.backend(ctx)
	if err != nil {
		return transport.ActiveModel{}, err
	}
	return b.LoadModel(ctx, req)
}

// UnloadModel unloads the plugin's model.
func (h *Host) UnloadModel(ctx context.Context, req transport.UnloadModelRequest) error {
	b, err := h.backend(ctx)
	if err != nil {
		return err
	}
	return b.UnloadModel(ctx, req)
}

// Ready returns nil while the plugin is up, answers, and says that it can take
// work. It does not wait for a restart.
func (h *Host) Ready(ctx context.Context) error {
	h.mu.Lock()
	s := h.state
	h.mu.Unlock()
	if s.launch == nil || s.launch.proc.gone() {
		return h.down(s.err)
	}
	ctx, cancel := context.WithTimeout(ctx, h.opts.PingTimeout)
	defer cancel()
	health, err := s.launch.client.Health(ctx)
	if err != nil {
		return fmt.Errorf("backend %s: %w", h.opts.Backend, err)
	}
	if !health.Ready {
		return fmt.Errorf("backend %s answers but can't take work", h.opts.Backend)
	}
	return nil
}
