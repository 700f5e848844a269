package engine

import (
	"fmt"
	"reflect"

	"modeld/core/transport"
)

// spec is the model that a request names; an empty Path is the loaded one.
func (s *Service) spec(name, typ, digest, path string, cfg transport.Config, adapters []transport.AdapterSpec) (ModelSpec, error) {
	if typ != "" && typ != s.backend.Type() {
		return ModelSpec{}, fmt.Errorf("%w: the model %q is of type %q, this backend runs %q", transport.ErrBackendMismatch, name, typ, s.backend.Type())
	}
	return ModelSpec{Name: name, Digest: digest, Path: path, Config: cfg, Adapters: adapters}, nil
}

// fits returns nil where a session that wants one model can run on m. A zero
// setting and a smaller context fit any.
func (m *model) fits(want ModelSpec) error {
	differs := func(what string, have, wanted any) error {
		return fmt.Errorf("%w: %s is loaded with %s %v, %v was asked for; unload it first",
			transport.ErrModelSwitchRequired, m.active.ModelName, what, have, wanted)
	}
	have := m.spec
	switch {
	case want.Path != "" && want.Path != have.Path:
		return differs("path", have.Path, want.Path)
	case want.Path == "" && want.Name != "" && want.Name != have.Name:
		return differs("name", have.Name, want.Name)
	case !transport.SameDigest(want.Digest, m.active.Digest):
		return differs("digest", m.active.Digest, want.Digest)
	case want.Path != "" && len(want.Adapters)+len(have.Adapters) > 0 && !reflect.DeepEqual(want.Adapters, have.Adapters):
		return differs("adapters", have.Adapters, want.Adapters)
	}
	if name, loaded, wanted := have.Config.Unfit(want.Config, m.info.NumCtx); name != "" {
		return differs(name, loaded, wanted)
	}
	return nil
}
