package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// resolvePaths makes every path absolute, so that it means the same to the
// plugin, which runs elsewhere.
func (c *Config) resolvePaths() error {
	if c.StateDir == "" {
		dir, err := stateHome()
		if err != nil {
			return c.bad("state_dir", "%v; set it", err)
		}
		c.StateDir = filepath.Join(dir, "modeld")
	}
	if c.Plugins.Dir == "" {
		exe, err := os.Executable()
		if err != nil {
			return c.bad("plugins.dir", "%v; set it", err)
		}
		if target, err := filepath.EvalSymlinks(exe); err == nil {
			exe = target
		}
		c.Plugins.Dir = filepath.Join(filepath.Dir(exe), "plugins")
	}
	paths := map[string]*string{"state_dir": &c.StateDir, "plugins.dir": &c.Plugins.Dir, "nats.credentials": &c.NATS.Credentials}
	for i := range c.Models {
		paths[fmt.Sprintf("models[%d].path", i)] = &c.Models[i].Path
	}
	for key, path := range paths {
		if *path == "" {
			continue
		}
		if err := absolute(path); err != nil {
			return c.bad(key, "%v; use an absolute path", err)
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
		return nil, "", fmt.Errorf("%w: %w", ErrInvalid, c.bad("model", "%v; use an absolute path", err))
	}
	if _, err := os.Stat(path); err != nil {
		known := "it is no file that can be read"
		if len(names) > 0 {
			known = fmt.Sprintf("it is none of the models (%s) and no file that can be read", strings.Join(names, ", "))
		}
		return nil, "", fmt.Errorf("%w: %w", ErrInvalid, c.bad("model", "%s: %v; pass --model PATH with a GGUF file or an IR folder", known, err))
	}
	name = strings.TrimSuffix(filepath.Base(path), ".gguf")
	return append(c.Models, Model{Name: name, Path: path, Config: c.ModelConfig}), name, nil
}
