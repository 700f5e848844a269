package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"modeld/core/nearest"
)

// finish fills in what depends on the machine, and checks every value.
func (c *Config) finish() error {
	if err := c.resolvePaths(); err != nil {
		return err
	}
	for _, check := range []func() error{c.checkNames, c.checkNumbers, c.checkNATS, c.checkListen, c.checkModels} {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return nil
}

// bad says what is wrong with a key's value.
func (c *Config) bad(key, format string, args ...any) error {
	origin := c.origins[key]
	if origin == "" {
		origin = "default"
	}
	return fmt.Errorf("%s (%s): %s", key, origin, fmt.Sprintf(format, args...))
}

var (
	backendRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	slotRE    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

func (c *Config) checkNames() error {
	switch {
	case !backendRE.MatchString(c.Backend):
		return c.bad("backend", "%q: use lower-case letters, digits, - and _", c.Backend)
	case !slotRE.MatchString(c.Slot):
		return c.bad("slot", "%q: use 1 to 64 letters, digits, - and _", c.Slot)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return c.bad("log.format", "%q: use text or json", c.Log.Format)
	}
	for name, sum := range c.Plugins.SHA256 {
		if b, err := hex.DecodeString(strings.TrimPrefix(sum, "sha256:")); err != nil || len(b) != 32 {
			return c.bad("plugins.sha256."+name, "%q is no SHA-256; sha256sum prints it", sum)
		}
	}
	return nil
}

func (c *Config) checkNumbers() error {
	for _, n := range []struct {
		key   string
		value int64
		least int64
	}{
		{"drain_timeout", int64(c.DrainTimeout), 1},
		{"nats.connect_timeout", int64(c.NATS.ConnectTimeout), 1},
		{"nats.embedded.max_store", int64(c.NATS.Embedded.MaxStore), 1 << 20},
		{"plugins.start_timeout", int64(c.Plugins.StartTimeout), 1},
		{"limits.sessions", int64(c.Limits.Sessions), 1},
		{"limits.sessions_per_connection", int64(c.Limits.SessionsPerConnection), 1},
		{"engine.max_sessions", int64(c.Engine.MaxSessions), 1},
		{"engine.queue_limit", int64(c.Engine.QueueLimit), 1},
		{"engine.prefill_chunk", int64(c.Engine.PrefillChunk), 1},
	} {
		if n.value < n.least {
			return c.bad(n.key, "it must be at least %d", n.least)
		}
	}
	if p := c.NATS.Embedded.Port; p < 0 || p > 65535 {
		return c.bad("nats.embedded.port", "%d is no port", p)
	}
	return nil
}

func (c *Config) checkNATS() error {
	ways := 0
	for _, set := range []bool{c.NATS.Credentials != "", c.NATS.User != "" || c.NATS.Password != "", c.NATS.Token != ""} {
		if set {
			ways++
		}
	}
	switch {
	case ways > 1:
		return errors.New("nats: credentials, user with password, and token exclude each other; keep one")
	case ways > 0 && c.NATS.URL == "":
		return errors.New("nats: credentials are set without nats.url; the embedded server makes its own")
	case c.NATS.Password != "" && c.NATS.User == "":
		return c.bad("nats.password", "nats.user is missing")
	}
	return nil
}

// checkListen keeps the listener on this machine: there is no authentication.
func (c *Config) checkListen() error {
	if c.Listen == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return c.bad("listen", "the socket's path %q is not absolute", path)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return c.bad("listen", "%v; use HOST:PORT or unix:/PATH", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return c.bad("listen", "%q is reached from other machines, and there is no TLS and no authentication yet; use 127.0.0.1, [::1] or unix:/PATH", c.Listen)
	}
	return nil
}

func (c *Config) checkModels() error {
	seen := map[string]bool{}
	for i, m := range c.Models {
		key := fmt.Sprintf("models[%d]", i)
		switch {
		case m.Name == "":
			return c.bad("models", "%s has no name", key)
		case m.Path == "":
			return c.bad("models", "%s (%s) has no path", key, m.Name)
		case seen[m.Name]:
			return c.bad("models", "two are named %s", m.Name)
		}
		seen[m.Name] = true
	}
	return nil
}

// checkModelKeys looks at keys that koanf sees as part of one value.
func (c *Config) checkModelKeys() error {
	list, _ := c.raw("models").([]any)
	for i, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("%w: %w", ErrInvalid, c.bad("models", "models[%d] must have keys such as name and path", i))
		}
		if err := c.checkFields("models", fmt.Sprintf("models[%d].", i), m, reflect.TypeFor[Model]()); err != nil {
			return err
		}
	}
	for key := range c.values {
		if field, ok := strings.CutPrefix(key, "model_config."); ok {
			if err := c.checkFields(key, "model_config.", map[string]any{field: nil}, reflect.TypeFor[ModelConfig]()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Config) checkFields(origin, prefix string, m map[string]any, t reflect.Type) error {
	fields := map[string]reflect.Type{}
	var known []string
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("koanf")
		fields[name] = t.Field(i).Type
		known = append(known, name)
	}
	for key, value := range m {
		field, ok := fields[key]
		if !ok {
			return fmt.Errorf("%w: %w", ErrInvalid, c.bad(origin, "unknown key %q; the nearest known one is %q",
				prefix+key, prefix+nearest.Of(key, known)))
		}
		if sub, ok := value.(map[string]any); ok && field.Kind() == reflect.Struct {
			if err := c.checkFields(origin, prefix+key+".", sub, field); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolvePaths makes every path absolute, so that it means the same to the
// plugin, which runs elsewhere.
func (c *Config) resolvePaths() error {
	if c.StateDir == "" {
		dir, err := stateHome()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, c.bad("state_dir", "%v; set it", err))
		}
		c.StateDir = filepath.Join(dir, "modeld")
	}
	if c.Plugins.Dir == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, c.bad("plugins.dir", "%v; set it", err))
		}
		if target, err := filepath.EvalSymlinks(exe); err == nil {
			exe = target
		}
		c.Plugins.Dir = filepath.Join(filepath.Dir(exe), "plugins")
	}
	paths := []*string{&c.StateDir, &c.Plugins.Dir}
	if c.NATS.Credentials != "" {
		paths = append(paths, &c.NATS.Credentials)
	}
	for i := range c.Models {
		if c.Models[i].Path != "" {
			paths = append(paths, &c.Models[i].Path)
		}
	}
	for _, p := range paths {
		if err := absolute(p); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return nil
}

// absolute expands ~/ and makes a path absolute.
func absolute(p *string) error {
	if rest, ok := strings.CutPrefix(*p, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		*p = filepath.Join(home, rest)
	}
	abs, err := filepath.Abs(*p)
	*p = abs
	return err
}

// stateHome is where the user's programs keep their state (XDG base directory
// specification).
func stateHome() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "state"), nil
}

// DefaultModel returns the node's models and the name of the one to serve. A
// model that is given by its path becomes one of them.
func (c *Config) DefaultModel() (models []Model, name string, err error) {
	if c.Model == "" {
		if len(c.Models) > 0 {
			name = c.Models[0].Name
		}
		return c.Models, name, nil
	}
	var names []string
	for _, m := range c.Models {
		if m.Name == c.Model {
			return c.Models, m.Name, nil
		}
		names = append(names, m.Name)
	}
	path := c.Model
	if err := absolute(&path); err != nil {
		return nil, "", err
	}
	if _, err := os.Stat(path); err != nil {
		what := "and there is no such file"
		if len(names) > 0 {
			what = fmt.Sprintf("(%s) and there is no such file", strings.Join(names, ", "))
		}
		return nil, "", fmt.Errorf("%w: %w", ErrInvalid, c.bad("model", "%q is none of the models %s: %v", c.Model, what, err))
	}
	name = strings.TrimSuffix(filepath.Base(path), ".gguf")
	return append(c.Models, Model{Name: name, Path: path, Config: c.ModelConfig}), name, nil
}
