package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

const (
	delim     = "."
	envPrefix = "MODELD_"
)

// ownEnv are variables of modeld's that are no settings.
var ownEnv = []string{"MODELD_CONFIG", "MODELD_CACHE"}

// Sources say where a configuration comes from.
type Sources struct {
	// File is the file's path; it must exist. Empty: the first of
	// DefaultFiles that exists, if any.
	File string
	// Environ is the environment, as os.Environ has it.
	Environ []string
	// Flags are the keys that flags set, and their values.
	Flags map[string]any
}

// DefaultFiles are the files that are looked for where none is named.
func DefaultFiles() []string {
	files := []string{"/etc/modeld/config.yaml"}
	if dir, err := os.UserConfigDir(); err == nil {
		files = slices.Insert(files, 0, filepath.Join(dir, "modeld", "config.yaml"))
	}
	return files
}

// layer is one source. Its keys are what it sets, even where a later key of
// the same layer has replaced the value.
type layer struct {
	values *koanf.Koanf
	keys   []string
	origin func(key string) string
}

func newLayer(values map[string]any, origin func(string) string) (layer, error) {
	k := koanf.New(delim)
	if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
		return layer{}, err
	}
	return layer{values: k, keys: k.Keys(), origin: origin}, nil
}

// readLayers reads the sources, the defaults first.
func readLayers(src Sources) ([]layer, error) {
	defaults, err := parse(Defaults, "default")
	if err != nil {
		return nil, err
	}
	layers := []layer{defaults}
	file, err := findFile(src.File)
	if err != nil {
		return nil, err
	}
	if file != "" {
		l, err := readFile(file)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	env, err := environment(src.Environ)
	if err != nil {
		return nil, err
	}
	flags := koanf.New(delim)
	if err := flags.Load(confmap.Provider(src.Flags, delim), nil); err != nil {
		return nil, fmt.Errorf("flags: %w", err)
	}
	return append(layers, env, layer{values: flags, keys: flags.Keys(), origin: func(key string) string {
		return "flag --" + flagName(key)
	}}), nil
}

// findFile returns the named file, or the first default one that is there.
func findFile(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	for _, name := range DefaultFiles() {
		_, err := os.Stat(name)
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w; make it readable, or name another file with --config", err)
		}
	}
	return "", nil
}

func readFile(path string) (layer, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return layer{}, fmt.Errorf("there is no file %s; `modeld config --defaults` prints one to start from", path)
	}
	if err != nil {
		return layer{}, err
	}
	return parse(data, "file "+path)
}

// flagName is the flag that sets a key.
func flagName(key string) string {
	if key == "nats.url" {
		return "nats"
	}
	return strings.ReplaceAll(key, "_", "-")
}

func parse(data []byte, name string) (layer, error) {
	values := map[string]any{}
	if len(bytes.TrimSpace(data)) > 0 {
		var err error
		if values, err = yaml.Parser().Unmarshal(data); err != nil {
			return layer{}, fmt.Errorf("%s: %s", name, strings.Join(strings.Fields(err.Error()), " "))
		}
	}
	withoutNull(values)
	if key := dotted(values, ""); key != "" {
		return layer{}, fmt.Errorf("%s: the key %q has a dot in it; write its parts as sections, one within the other", name, key)
	}
	return newLayer(values, func(string) string { return name })
}

// withoutNull removes keys without a value, so that a section whose keys are
// all commented out changes nothing.
func withoutNull(m map[string]any) {
	for key, value := range m {
		switch value := value.(type) {
		case nil:
			delete(m, key)
		case map[string]any:
			withoutNull(value)
		}
	}
}

// dotted finds a key that would be taken for a path of keys.
func dotted(m map[string]any, prefix string) string {
	for key, value := range m {
		if strings.Contains(key, delim) {
			return prefix + key
		}
		if sub, ok := value.(map[string]any); ok {
			if found := dotted(sub, prefix+key+delim); found != "" {
				return found
			}
		}
	}
	return ""
}

// environment turns MODELD_NATS__URL into nats.url.
func environment(environ []string) (layer, error) {
	values := koanf.New(delim)
	names := map[string]string{}
	var keys []string
	// Sorted, so that MODELD_LLAMA__THREADS is put into what MODELD_LLAMA has.
	for _, kv := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(kv, "=")
		rest, ours := strings.CutPrefix(name, envPrefix)
		// MODELD_PLUGIN… is the protocol between host and plugin.
		if !ours || slices.Contains(ownEnv, name) || strings.HasPrefix(rest, "PLUGIN_") || rest == "PLUGIN" {
			continue
		}
		key := strings.ReplaceAll(strings.ToLower(rest), "__", delim)
		names[key] = name
		keys = append(keys, key)
		if err := values.Set(key, fromText(key, value)); err != nil {
			return layer{}, fmt.Errorf("env %s: %w", name, err)
		}
	}
	return layer{values: values, keys: keys, origin: func(key string) string {
		for at := key; at != ""; at = parent(at) {
			if name := names[at]; name != "" {
				return "env " + name
			}
		}
		return "environment"
	}}, nil
}

// parent is the key that holds key, "" at the top.
func parent(key string) string {
	return key[:max(0, strings.LastIndexAny(key, ".["))]
}

// fromText is the value of a variable. Lists, whole sections, and settings
// that only a backend knows are read as YAML; everything else stays text until
// its type is known.
func fromText(key, text string) any {
	if !inBackend(key) && !slices.Contains(yamlKeys, key) {
		return text
	}
	parsed, err := yaml.Parser().Unmarshal([]byte("v: " + text))
	if err != nil || parsed["v"] == nil {
		return text
	}
	return parsed["v"]
}

// yamlKeys are lists and sections that one variable can set as a whole.
var yamlKeys = []string{"models", "model_config", "plugins.sha256", "plugins.env"}

// backendSections have keys that only backends know.
var backendSections = []string{"llama", "openvino", "none", "backends"}

func inBackend(key string) bool {
	top, _, _ := strings.Cut(key, delim)
	return slices.Contains(backendSections, top)
}

// isOpen reports keys that the defaults can't list.
func isOpen(key string) bool {
	for _, open := range []string{"model_config", "plugins.sha256"} {
		if key == open || strings.HasPrefix(key, open+delim) {
			return true
		}
	}
	return inBackend(key)
}

// fields are the keys of a struct, with their types.
func fields(t reflect.Type) map[string]reflect.Type {
	m := map[string]reflect.Type{}
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("koanf"); name != "" {
			m[name] = t.Field(i).Type
		}
	}
	return m
}
