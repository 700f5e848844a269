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
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"

	"modeld/core/nearest"
)

const (
	delim     = "."
	envPrefix = "MODELD_"
)

// ownEnv are variables of modeld's that are no settings.
var ownEnv = []string{"MODELD_CONFIG", "MODELD_CACHE"}

// openKeys take any keys below them: they are maps, or checked elsewhere.
var openKeys = []string{"model_config", "plugins.sha256", "llama", "openvino", "none", "backends"}

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

// layer is one source.
type layer struct {
	name   string
	values *koanf.Koanf
	origin func(key string) string
}

// Load reads and checks the configuration. Errors name the key, where it
// stands, and what to do.
func Load(src Sources) (*Config, error) {
	layers, err := readLayers(src)
	if err != nil {
		return nil, err
	}
	k := koanf.New(delim)
	c := &Config{origins: map[string]string{}}
	for _, l := range layers {
		if l.name != "default" {
			if err := checkKeys(l, layers[0].values); err != nil {
				return nil, err
			}
		}
		if err := k.Merge(l.values); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, l.name, err)
		}
		for key := range l.values.All() {
			c.origins[key] = l.origin(key)
		}
	}
	c.values = k.All()
	if err := c.checkModelKeys(); err != nil {
		return nil, err
	}
	if err := c.decode(k); err != nil {
		return nil, err
	}
	if err := c.finish(); err != nil {
		return nil, err
	}
	return c, nil
}

func readLayers(src Sources) ([]layer, error) {
	defaults, err := parse(Defaults, "default")
	if err != nil {
		return nil, err
	}
	layers := []layer{defaults}
	if src.File == "" {
		for _, name := range DefaultFiles() {
			if _, err := os.Stat(name); err == nil {
				src.File = name
				break
			}
		}
	}
	if src.File != "" {
		data, err := os.ReadFile(src.File)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: there is no file %s", ErrInvalid, src.File)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		file, err := parse(data, "file "+src.File)
		if err != nil {
			return nil, err
		}
		layers = append(layers, file)
	}
	layers = append(layers, environment(src.Environ))
	flags := koanf.New(delim)
	if err := flags.Load(confmap.Provider(src.Flags, delim), nil); err != nil {
		return nil, fmt.Errorf("%w: flags: %w", ErrInvalid, err)
	}
	return append(layers, layer{name: "flags", values: flags, origin: func(key string) string {
		return "flag --" + flagName(key)
	}}), nil
}

// flagName is the flag that sets a key.
func flagName(key string) string {
	if key == "nats.url" {
		return "nats"
	}
	return strings.ReplaceAll(key, "_", "-")
}

func parse(data []byte, name string) (layer, error) {
	l := layer{name: name, values: koanf.New(delim), origin: func(string) string { return name }}
	if len(bytes.TrimSpace(data)) == 0 {
		return l, nil
	}
	if err := l.values.Load(rawBytes(data), yaml.Parser()); err != nil {
		return l, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return l, nil
}

// rawBytes is a koanf.Provider.
type rawBytes []byte

func (b rawBytes) ReadBytes() ([]byte, error)  { return b, nil }
func (rawBytes) Read() (map[string]any, error) { return nil, errors.New("not a map") }

// environment turns MODELD_NATS__URL into nats.url.
func environment(environ []string) layer {
	values := koanf.New(delim)
	names := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		rest, ours := strings.CutPrefix(name, envPrefix)
		// MODELD_PLUGIN… is the protocol between host and plugin.
		if !ours || slices.Contains(ownEnv, name) || strings.HasPrefix(rest, "PLUGIN_") || rest == "PLUGIN" {
			continue
		}
		key := strings.ReplaceAll(strings.ToLower(rest), "__", delim)
		names[key] = name
		_ = values.Set(key, scalar(key, value)) // never fails for a new key
	}
	return layer{name: "environment", values: values, origin: func(key string) string { return "env " + names[key] }}
}

// scalar is the value of a variable. Settings that only a backend knows are read
// as YAML, since nobody here knows their types.
func scalar(key, text string) any {
	if !isOpen(key) {
		return text
	}
	parsed, err := yaml.Parser().Unmarshal([]byte("v: " + text))
	if err != nil {
		return text
	}
	return parsed["v"]
}

// checkKeys refuses keys that the defaults don't have.
func checkKeys(l layer, defaults *koanf.Koanf) error {
	known := defaults.Keys()
	for _, key := range l.values.Keys() {
		if slices.Contains(known, key) || isOpen(key) {
			continue
		}
		if section := key + delim; slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, section) }) {
			return fmt.Errorf("%w: %s: %s is a section and takes keys, not a value", ErrInvalid, l.origin(key), key)
		}
		return fmt.Errorf("%w: %s: unknown key %q; the nearest known one is %q", ErrInvalid, l.origin(key), key, nearest.Of(key, known))
	}
	return nil
}

func isOpen(key string) bool {
	return slices.ContainsFunc(openKeys, func(open string) bool {
		return key == open || strings.HasPrefix(key, open+delim)
	})
}

// decode fills c. What is wrong is told with its key and origin.
func (c *Config) decode(k *koanf.Koanf) error {
	err := k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result:           c,
		WeaklyTypedInput: true,
		ErrorUnused:      true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(),
			mapstructure.StringToSliceHookFunc(","),
			mapstructure.TextUnmarshallerHookFunc(),
			sizeHook,
		),
	}})
	if err == nil {
		return nil
	}
	var places []string
	for key, origin := range c.origins {
		if origin != "default" && strings.Contains(err.Error(), "'"+key+"'") {
			places = append(places, fmt.Sprintf("%s (%s): %q", key, origin, c.values[key]))
		}
	}
	slices.Sort(places)
	text := strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", " "))
	if len(places) > 0 {
		return fmt.Errorf("%w: %s: %s", ErrInvalid, strings.Join(places, ", "), text)
	}
	return fmt.Errorf("%w: %s", ErrInvalid, text)
}

// sizeHook reads a Size.
func sizeHook(from, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[Size]() || from.Kind() != reflect.String {
		return value, nil
	}
	text := value.(string)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return nil, fmt.Errorf("%q is no size; write it as 1048576, 256MiB or 1GB", text)
	}
	return int64(n), nil
}
