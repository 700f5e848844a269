package transport

import (
	"reflect"
	"strings"
)

// sessionSettings are the settings of Config that concern a session and not how
// its model is loaded.
var sessionSettings = map[string]bool{
	"HotContextTokens": true, "PlannerEffectiveContext": true, "PromptFormat": true,
	"PromptTemplateDigest": true, "DisableBOS": true, "ReasoningFormat": true,
}

// Overlay returns c with the non-zero settings of top.
func (c Config) Overlay(top Config) Config {
	b, t := reflect.ValueOf(&c).Elem(), reflect.ValueOf(top)
	for i := range t.NumField() {
		if !t.Field(i).IsZero() {
			b.Field(i).Set(t.Field(i))
		}
	}
	return c
}

// ForSession returns the settings of a session that wants c on a model that is
// loaded with loaded: c's own where they concern the session, with its context
// among them, else the model's.
func (c Config) ForSession(loaded Config) Config {
	out, own := reflect.ValueOf(&loaded).Elem(), reflect.ValueOf(c)
	for i := range own.NumField() {
		name := own.Type().Field(i).Name
		if (sessionSettings[name] || name == "NumCtx") && !own.Field(i).IsZero() {
			out.Field(i).Set(own.Field(i))
		}
	}
	return loaded
}

// Unfit names the first setting for which a session that wants one Config can't
// run on a model that is loaded with c and has a context of numCtx tokens, 0
// where that is unknown; "" where it can. A zero setting and a smaller context
// fit any.
func (c Config) Unfit(want Config, numCtx int) (setting string, have, wanted any) {
	h, w := reflect.ValueOf(c), reflect.ValueOf(want)
	for i := range h.NumField() {
		name := h.Type().Field(i).Name
		have, wanted = h.Field(i).Interface(), w.Field(i).Interface()
		switch {
		case sessionSettings[name], w.Field(i).IsZero(), reflect.DeepEqual(have, wanted):
		case name == "NumCtx" && (numCtx == 0 || want.NumCtx <= numCtx):
		default:
			return name, have, wanted
		}
	}
	return "", nil, nil
}

// SameDigest reports whether two digests, "sha256:<hex>" or bare hex, are the
// same. An empty one is the same as any.
func SameDigest(a, b string) bool {
	bare := func(d string) string { return strings.ToLower(strings.TrimPrefix(d, "sha256:")) }
	return a == "" || b == "" || bare(a) == bare(b)
}
