package grpc

import (
	"context"
	"errors"
	"fmt"

	"modeld/core/transport"
)

func (s *Server) health(ctx context.Context, _ *empty) (*healthBody, error) {
	return &healthBody{InstanceID: s.instanceID, Ready: s.ready(ctx) == nil, Backend: s.backend}, nil
}

func (s *Server) openSession(ctx context.Context, b *modelBody) (*handleBody, error) {
	sess, err := s.open(ctx, b.request(), b.OpenID)
	if err != nil {
		return nil, err
	}
	return &handleBody{Handle: sess.handle}, nil
}

func (s *Server) describe(ctx context.Context, b *modelBody) (*transport.ModelInfo, error) {
	info, err := s.svc.Describe(ctx, b.request())
	return &info, err
}

func (s *Server) embed(ctx context.Context, b *embedBody) (*transport.EmbedResult, error) {
	res, err := s.svc.Embed(ctx, transport.EmbedRequest{
		Fence:     transport.Fence{OwnerInstanceID: b.OwnerInstanceID},
		ModelName: b.ModelName, Type: b.Type, Digest: b.Digest, Path: b.Path, Config: b.Config, Text: b.Text,
	})
	return &res, err
}

// use runs f with a session that no other call has meanwhile.
func (s *Server) use(ctx context.Context, handle string, f func(context.Context, *session) error) error {
	sess, err := s.find(ctx, handle)
	if err != nil {
		return err
	}
	op, err := sess.begin(ctx)
	if err != nil {
		return err
	}
	defer op.end()
	return because(sess.life, f(op.ctx, sess)) //nolint:contextcheck // op.ctx is ctx, joined with the session's life
}

func (s *Server) ensurePrefix(ctx context.Context, b *prefixBody) (*transport.PrefixStatus, error) {
	st := new(transport.PrefixStatus)
	err := s.use(ctx, b.Handle, func(ctx context.Context, sess *session) (err error) {
		*st, err = sess.EnsurePrefix(ctx, b.Prefix)
		return err
	})
	return st, err
}

func (s *Server) prefillSuffix(ctx context.Context, b *suffixBody) (*transport.SuffixStatus, error) {
	st := new(transport.SuffixStatus)
	err := s.use(ctx, b.Handle, func(ctx context.Context, sess *session) (err error) {
		*st, err = sess.PrefillSuffix(ctx, b.Suffix)
		return err
	})
	return st, err
}

func (s *Server) explainContext(ctx context.Context, b *handleBody) (*transport.ContextReport, error) {
	report := new(transport.ContextReport)
	err := s.use(ctx, b.Handle, func(_ context.Context, sess *session) error {
		*report = sess.ExplainContext()
		return nil
	})
	return report, err
}

func (s *Server) snapshot(ctx context.Context, b *handleBody) (*transport.SessionSnapshot, error) {
	snap := new(transport.SessionSnapshot)
	err := s.use(ctx, b.Handle, func(ctx context.Context, sess *session) (err error) {
		*snap, err = sess.Snapshot(ctx)
		return err
	})
	return snap, err
}

func (s *Server) restore(ctx context.Context, b *restoreBody) (*empty, error) {
	return &empty{}, s.use(ctx, b.Handle, func(ctx context.Context, sess *session) error {
		return sess.Restore(ctx, b.Snapshot)
	})
}

// closeSessionCall is idempotent: a session of ours that is gone is closed.
func (s *Server) closeSessionCall(ctx context.Context, b *closeBody) (*empty, error) {
	sess, err := s.find(ctx, b.Handle)
	if b.OpenID != "" {
		sess, err = s.findOpened(ctx, b.OpenID)
	}
	switch {
	case err == nil:
		err = s.closeSession(sess)
	case errors.Is(err, transport.ErrSessionClosed):
		err = nil
	}
	return &empty{}, err
}

func (s *Server) controller() (transport.ModelController, error) {
	if c, ok := s.svc.(transport.ModelController); ok {
		return c, nil
	}
	return nil, fmt.Errorf("%w: this server's model can't be controlled", transport.ErrUnsupportedFeature)
}

func (s *Server) status(ctx context.Context, _ *ownerBody) (*transport.DaemonStatus, error) {
	c, err := s.controller()
	if err != nil {
		return nil, err
	}
	st, err := c.Status(ctx)
	return &st, err
}

func (s *Server) loadModel(ctx context.Context, b *loadBody) (*transport.ActiveModel, error) {
	c, err := s.controller()
	if err != nil {
		return nil, err
	}
	active, err := c.LoadModel(ctx, transport.LoadModelRequest{
		Fence:     transport.Fence{OwnerInstanceID: b.OwnerInstanceID},
		ModelName: b.ModelName, Type: b.Type, Digest: b.Digest, Path: b.Path,
		Config: b.Config, Adapters: b.Adapters, ExpectedGeneration: b.ExpectedGeneration,
	})
	return &active, err
}

func (s *Server) unloadModel(ctx context.Context, b *unloadBody) (*empty, error) {
	c, err := s.controller()
	if err != nil {
		return nil, err
	}
	return &empty{}, c.UnloadModel(ctx, transport.UnloadModelRequest{
		Fence:              transport.Fence{OwnerInstanceID: b.OwnerInstanceID},
		ExpectedGeneration: b.ExpectedGeneration,
	})
}

func (s *Server) node() (transport.NodeAdmin, error) {
	if n, ok := s.svc.(transport.NodeAdmin); ok {
		return n, nil
	}
	return nil, fmt.Errorf("%w: this server keeps no store of models", transport.ErrUnsupportedFeature)
}

func (s *Server) listModels(ctx context.Context, _ *ownerBody) (*modelsBody, error) {
	n, err := s.node()
	if err != nil {
		return nil, err
	}
	models, err := n.ListModels(ctx)
	return &modelsBody{Models: models}, err
}

func (s *Server) removeModel(ctx context.Context, b *removeBody) (*empty, error) {
	n, err := s.node()
	if err != nil {
		return nil, err
	}
	return &empty{}, n.RemoveModel(ctx, b.Name)
}

func (s *Server) diskStats(ctx context.Context, _ *ownerBody) (*transport.NodeDiskStats, error) {
	n, err := s.node()
	if err != nil {
		return nil, err
	}
	st, err := n.DiskStats(ctx)
	return &st, err
}
