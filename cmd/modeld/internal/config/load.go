package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/v2"

	"modeld/core/nearest"
)

// Load reads and checks the configuration. Errors name the key, its value,
// where it stands, and what to do.
func Load(src Sources) (*Config, error) {
	c, err := load(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

func load(src Sources) (*Config, error) {
	layers, err := readLayers(src)
	if err != nil {
		return nil, err
	}
	k := koanf.New(delim)
	c := &Config{origins: map[string]string{}}
	for i, l := range layers {
		if i > 0 {
			if err := checkKeys(l, layers[0].values); err != nil {
				return nil, err
			}
		}
		if err := k.Merge(l.values); err != nil {
			return nil, fmt.Errorf("%s: %w", l.origin(""), err)
		}
		for _, key := range l.values.Keys() {
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
	return c, c.finish()
}

// checkKeys refuses keys that the defaults don't have.
func checkKeys(l layer, defaults *koanf.Koanf) error {
	known := defaults.Keys()
	for _, key := range slices.Sorted(slices.Values(l.keys)) {
		if slices.Contains(known, key) || isOpen(key) {
			continue
		}
		if isSection(key, known) {
			return fmt.Errorf("%s (%s): this is a section and takes keys, not a value", key, l.origin(key))
		}
		return unknownKey(key, l.origin(key), known)
	}
	return nil
}

func isSection(key string, known []string) bool {
	return slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, key+delim) })
}

// unknownKey names the nearest known key: for a misspelt section that section.
func unknownKey(key, origin string, known []string) error {
	if top, _, nested := strings.Cut(key, delim); nested {
		sections := map[string]bool{}
		for _, k := range known {
			section, _, _ := strings.Cut(k, delim)
			sections[section] = true
		}
		if !sections[top] {
			key, known = top, slices.Sorted(maps.Keys(sections))
		}
	}
	return fmt.Errorf("%s: unknown key %q; the nearest known one is %q", origin, key, nearest.Of(key, known))
}

// checkModelKeys looks at keys that the defaults don't have.
func (c *Config) checkModelKeys() error {
	list, _ := c.values["models"].([]any)
	for i, item := range list {
		at := fmt.Sprintf("models[%d]", i)
		m, ok := item.(map[string]any)
		if !ok {
			return c.bad(at, "it must have keys such as name and path")
		}
		if err := c.checkFields(at, m, reflect.TypeFor[Model]()); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		if field, ok := strings.CutPrefix(key, "model_config."); ok {
			if err := c.checkFields("model_config", map[string]any{field: nil}, reflect.TypeFor[ModelConfig]()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Config) checkFields(at string, m map[string]any, t reflect.Type) error {
	known := fields(t)
	var names []string
	for name := range known {
		names = append(names, at+delim+name)
	}
	slices.Sort(names)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		full := at + delim + key
		field, ok := known[key]
		if !ok {
			return fmt.Errorf("%s: unknown key %q; the nearest known one is %q", c.origin(full), full, nearest.Of(full, names))
		}
		if sub, ok := m[key].(map[string]any); ok && field.Kind() == reflect.Struct {
			if err := c.checkFields(full, sub, field); err != nil {
				return err
			}
		}
	}
	return nil
}

// decode fills c.
func (c *Config) decode(k *koanf.Koanf) error {
	err := k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result:      c,
		ErrorUnused: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			durationHook, sizeHook, levelHook, listHook, numberHook,
		),
	}})
	if err == nil {
		return nil
	}
	wrong := decodeErrors(err)
	if len(wrong) == 0 {
		return err
	}
	first := slices.MinFunc(wrong, func(a, b *mapstructure.DecodeError) int { return strings.Compare(a.Name(), b.Name()) })
	return c.bad(first.Name(), "%s", whatIsWrong(first.Unwrap()))
}

// decodeErrors returns the innermost errors that name a key.
func decodeErrors(err error) []*mapstructure.DecodeError {
	var found []*mapstructure.DecodeError
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself
	case interface{ Unwrap() []error }:
		for _, sub := range e.Unwrap() {
			found = append(found, decodeErrors(sub)...)
		}
	case interface{ Unwrap() error }:
		found = decodeErrors(e.Unwrap())
	}
	if e, ok := err.(*mapstructure.DecodeError); ok && len(found) == 0 { //nolint:errorlint // as above
		return []*mapstructure.DecodeError{e}
	}
	return found
}

// whatIsWrong says it in terms of the file, without the value.
func whatIsWrong(err error) string {
	kind, ok := errors.AsType[*mapstructure.UnconvertibleTypeError](err)
	if !ok {
		return strings.Join(strings.Fields(err.Error()), " ")
	}
	switch kind.Expected.Kind() {
	case reflect.String:
		return "it must be text; put it in quotes"
	case reflect.Bool:
		return "use true or false"
	case reflect.Map, reflect.Struct:
		return "it must be a section with keys"
	default:
		return "it must be a number"
	}
}

var errDuration = errors.New("use a time with its unit, such as 500ms, 10s or 1m30s")

// durationHook reads a time. A bare number has no unit, so it is refused.
func durationHook(_, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[time.Duration]() {
		return value, nil
	}
	text, ok := value.(string)
	if !ok {
		return nil, errDuration
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return nil, errDuration
	}
	return d, nil
}

// sizeHook reads a Size.
func sizeHook(_, to reflect.Type, value any) (any, error) {
	text, ok := value.(string)
	if to != reflect.TypeFor[Size]() || !ok {
		return value, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return nil, errors.New("this is no size; write it as 1048576, 256MiB or 1GB")
	}
	return int64(n), nil
}

// levelHook reads a level of log/slog.
func levelHook(_, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[slog.Level]() {
		return value, nil
	}
	var level slog.Level
	if text, ok := value.(string); !ok || level.UnmarshalText([]byte(text)) != nil {
		return nil, errors.New("use debug, info, warn or error")
	}
	return level, nil
}

// listHook reads a list from text with commas.
func listHook(_, to reflect.Type, value any) (any, error) {
	if to.Kind() != reflect.Slice {
		return value, nil
	}
	switch value := value.(type) {
	case []any:
		return value, nil
	case string:
		if value == "" {
			return []string{}, nil
		}
		return strings.Split(value, ","), nil
	default:
		return nil, errors.New("it must be a list")
	}
}

// numberHook reads numbers and truth values from the text of a variable or a
// flag, and refuses to cut a number to fit.
func numberHook(_, to reflect.Type, value any) (any, error) {
	text, isText := value.(string)
	switch {
	case to.Kind() == reflect.Bool && isText:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, errors.New("use true or false")
		}
		return b, nil
	case to.Kind() == reflect.Float32 && isText:
		f, err := strconv.ParseFloat(strings.TrimSpace(text), 32)
		if err != nil {
			return nil, errors.New("it must be a number")
		}
		return f, nil
	case to != reflect.TypeFor[int]() && to != reflect.TypeFor[Size]():
		return value, nil
	}
	whole := errors.New("it must be a whole number, and not that large")
	switch v := value.(type) {
	case string:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, whole
		}
		return n, nil
	case uint64:
		return nil, whole // YAML has one only beyond int64
	case float64:
		if v != math.Trunc(v) || math.Abs(v) >= 1<<62 {
			return nil, whole
		}
		return int64(v), nil
	}
	return value, nil
}
