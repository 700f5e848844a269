package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"modeld/core/nearest"
)

// Settings decodes the backend's settings, which the host passes in the
// environment, into the struct that into points to. What they leave out keeps
// its value, so defaults are set beforehand. A key that the struct does not
// have is an error that names it and the nearest one it has.
func Settings(into any) error {
	text := os.Getenv(EnvConfig)
	if text == "" {
		return nil
	}
	return decodeSettings([]byte(text), into)
}

func decodeSettings(data []byte, into any) error {
	var raw any
	if err := json.Unmarshal(data, &raw); err != nil {
		return fmt.Errorf("backend settings: %s is not valid JSON: %w", EnvConfig, err)
	}
	if _, ok := raw.(map[string]any); !ok {
		return fmt.Errorf("backend settings: %s must be a JSON object", EnvConfig)
	}
	if err := unknownKey(raw, reflect.TypeOf(into), ""); err != nil {
		return fmt.Errorf("backend settings: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("backend settings: %s must be of type %s, not a JSON %s",
				typeErr.Field, typeErr.Type, typeErr.Value)
		}
		return fmt.Errorf("backend settings: %w", err)
	}
	return nil
}

// unknownKey returns an error for the first key of raw, in order, that has no
// field in t. Only structs know their keys; maps and interfaces take any.
func unknownKey(raw any, t reflect.Type, path string) error {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		if list, ok := raw.([]any); ok {
			for i, item := range list {
				if err := unknownKey(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
					return err
				}
			}
			return nil
		}
		t = t.Elem()
	}
	object, ok := raw.(map[string]any)
	if !ok || t == nil || t.Kind() != reflect.Struct || t.Implements(unmarshalerType) || reflect.PointerTo(t).Implements(unmarshalerType) {
		return nil
	}
	if path != "" {
		path += "."
	}
	fields := jsonFields(t)
	for _, key := range slices.Sorted(maps.Keys(object)) {
		field, ok := fields[key]
		if !ok {
			known := slices.Sorted(maps.Keys(fields))
			return fmt.Errorf("unknown key %q%s", path+key, suggestion(path, key, known))
		}
		if err := unknownKey(object[key], field, path+key); err != nil {
			return err
		}
	}
	return nil
}

var unmarshalerType = reflect.TypeFor[json.Unmarshaler]()

func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported() || name == "-", f.Anonymous && name == "":
			continue
		case name == "":
			name = f.Name
		}
		fields[name] = f.Type
	}
	return fields
}

func suggestion(path, key string, known []string) string {
	if len(known) == 0 {
		return ": there are no settings here"
	}
	return fmt.Sprintf(": the nearest known one is %q", path+nearest.Of(key, known))
}
