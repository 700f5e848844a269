package slot

import (
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"modeld/core/transport"
)

// Model is a model of this node. Name must be unique, Path absolute. An empty
// Type is the slot's backend.
type Model struct {
	Name     string
	Type     string
	Digest   string
	Path     string
	Config   transport.Config
	Adapters []transport.AdapterSpec
}

// catalog resolves what requests name to the models of this node.
type catalog struct {
	backend    string
	allowPaths bool
	byName     map[string]transport.ActiveModel
	standard   transport.ActiveModel // zero: none
}

func newCatalog(opts Options) (catalog, error) {
	c := catalog{backend: opts.Backend, allowPaths: opts.AllowPaths, byName: make(map[string]transport.ActiveModel)}
	for _, m := range opts.Models {
		if m.Type == "" {
			m.Type = opts.Backend
		}
		if m.Name == "" || m.Path == "" {
			return c, fmt.Errorf("model %q at %q: a model needs a name and a path", m.Name, m.Path)
		}
		if !filepath.IsAbs(m.Path) {
			return c, fmt.Errorf("model %q: path %q is not absolute", m.Name, m.Path)
		}
		if _, twice := c.byName[m.Name]; twice {
			return c, fmt.Errorf("model %q is listed twice", m.Name)
		}
		c.byName[m.Name] = transport.ActiveModel{
			ModelName: m.Name, Type: m.Type, Digest: m.Digest, Path: filepath.Clean(m.Path),
			Config: m.Config, Adapters: m.Adapters,
		}
	}
	if opts.Modelless {
		c.standard = transport.ActiveModel{ModelName: opts.Backend, Type: opts.Backend}
	}
	if opts.Default != "" {
		standard, ok := c.byName[opts.Default]
		if !ok {
			return c, fmt.Errorf("%w: the default model %q is not among the configured ones (%s)",
				transport.ErrModelNotFound, opts.Default, c.names())
		}
		c.standard = standard
	}
	return c, nil
}

// resolve finds the model that a request names, with the request's load
// settings on top of its own.
func (c catalog) resolve(req Model) (transport.ActiveModel, error) {
	found, _, err := c.lookup(req)
	return found, err
}

// resolveForSession is resolve for a session, whose smaller context must not
// make the model load with less than its own setting.
func (c catalog) resolveForSession(req Model) (transport.ActiveModel, error) {
	found, own, err := c.lookup(req)
	found.Config.NumCtx = max(found.Config.NumCtx, own.NumCtx)
	return found, err
}

// lookup returns the model that a request names, with the request's load
// settings on top, and the model's own settings.
func (c catalog) lookup(req Model) (found transport.ActiveModel, own transport.Config, err error) {
	if err := c.checkType(req.Type); err != nil {
		return transport.ActiveModel{}, own, err
	}
	found, err = c.find(req)
	if err != nil {
		return transport.ActiveModel{}, own, err
	}
	if err := c.checkType(found.Type); err != nil {
		return transport.ActiveModel{}, own, fmt.Errorf("model %q: %w", found.ModelName, err)
	}
	if req.Digest != "" {
		if !transport.SameDigest(req.Digest, found.Digest) {
			return transport.ActiveModel{}, own, fmt.Errorf("%w: model %q is %s here, the request wants %s",
				transport.ErrDigestMismatch, found.ModelName, found.Digest, req.Digest)
		}
		found.Digest = req.Digest
	}
	own = found.Config
	found.Config = own.Overlay(req.Config)
	if len(req.Adapters) > 0 {
		found.Adapters = req.Adapters
	}
	return found, own, nil
}

func (c catalog) find(req Model) (transport.ActiveModel, error) {
	switch {
	case req.Name == "" && req.Path == "":
		if c.standard.ModelName == "" {
			return transport.ActiveModel{}, fmt.Errorf("%w: the request names no model and none is configured; configured: %s",
				transport.ErrModelNotFound, c.names())
		}
		return c.standard, nil
	case req.Path == "":
		found, ok := c.byName[req.Name]
		if !ok {
			return found, fmt.Errorf("%w: %q is not configured here; configured: %s", transport.ErrModelNotFound, req.Name, c.names())
		}
		return found, nil
	}
	path := filepath.Clean(req.Path)
	for _, m := range c.byName {
		if m.Path == path && (req.Name == "" || req.Name == m.ModelName) {
			return m, nil
		}
	}
	if !c.allowPaths {
		return transport.ActiveModel{}, fmt.Errorf("%w: path %q is not that of a configured model; configure it, or set allow_paths",
			transport.ErrModelNotFound, req.Path)
	}
	if !filepath.IsAbs(path) {
		return transport.ActiveModel{}, fmt.Errorf("%w: path %q is not absolute", transport.ErrModelNotFound, req.Path)
	}
	name := req.Name
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	}
	return transport.ActiveModel{ModelName: name, Type: c.backend, Path: path}, nil
}

func (c catalog) checkType(t string) error {
	switch t {
	case "", c.backend:
		return nil
	case "llama", "openvino":
		return fmt.Errorf("%w: a model of type %q was asked of backend %q", transport.ErrBackendMismatch, t, c.backend)
	}
	return fmt.Errorf("%w: %q; this daemon's backend is %q", transport.ErrUnsupportedModelType, t, c.backend)
}

func (c catalog) names() string {
	if len(c.byName) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(c.byName)), ", ")
}

// fits reports whether a session that wants one model can run on another that
// is loaded: nil, or an ErrModelSwitchRequired that names what differs. A
// smaller context than the loaded one fits.
func fits(loaded, want transport.ActiveModel) error {
	differs := func(what string, have, wanted any) error {
		return fmt.Errorf("%w: %s with %s %v is active, %s with %v was asked for; unload it or load the other",
			transport.ErrModelSwitchRequired, loaded.ModelName, what, have, want.ModelName, wanted)
	}
	if loaded.Path != want.Path {
		return differs("path", loaded.Path, want.Path)
	}
	if !transport.SameDigest(loaded.Digest, want.Digest) {
		return differs("digest", loaded.Digest, want.Digest)
	}
	if (len(want.Adapters) > 0 || len(loaded.Adapters) > 0) && !reflect.DeepEqual(loaded.Adapters, want.Adapters) {
		return differs("adapters", loaded.Adapters, want.Adapters)
	}
	if name, have, wanted := loaded.Config.Unfit(want.Config, loaded.Config.NumCtx); name != "" {
		return differs(name, have, wanted)
	}
	return nil
}
