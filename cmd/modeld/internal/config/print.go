package config

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
)

const hidden = "(hidden)"

// Print writes every value that is in force, and where it comes from. Secrets
// are hidden.
func (c *Config) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		if _, err := fmt.Fprintf(tw, "%s\t%s\t%s\n", key, c.effective(key), c.origin(key)); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// effective is what a key amounts to where its value is empty or relative.
func (c *Config) effective(key string) string {
	switch {
	case key == "state_dir":
		return c.StateDir
	case key == "plugins.dir":
		return c.Plugins.Dir
	case key == "listen" && c.Listen == "":
		return "unix:" + c.StateDir + "/modeld.sock"
	}
	return c.shown(key)
}

// shown is a value as it was written, on one line and without secrets.
func (c *Config) shown(key string) string {
	value := c.values[key]
	text, isText := value.(string)
	switch {
	case value == "":
		return `""`
	case isSecret(key):
		return hidden
	case key == "plugins.env":
		return namesOnly(c.Plugins.Env)
	case key == "nats.url":
		if isText {
			return withoutUserinfo(text)
		}
		return hidden
	}
	if isText && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
		return text
	}
	data, err := json.Marshal(withoutSecrets(value))
	if err != nil {
		return fmt.Sprintf("a value of type %T", value)
	}
	return string(data)
}

// withoutSecrets hides the secrets within a list or a section.
func withoutSecrets(value any) any {
	switch value := value.(type) {
	case map[string]any:
		clean := map[string]any{}
		for key, v := range value {
			if clean[key] = withoutSecrets(v); isSecret(key) {
				clean[key] = hidden
			}
		}
		return clean
	case []any:
		clean := make([]any, len(value))
		for i, v := range value {
			clean[i] = withoutSecrets(v)
		}
		return clean
	}
	return value
}

// namesOnly hides the values of plugins.env's NAME=value.
func namesOnly(env []string) string {
	names := make([]string, len(env))
	for i, entry := range env {
		name, _, isValue := strings.Cut(entry, "=")
		if names[i] = name; isValue {
			names[i] += "=" + hidden
		}
	}
	return strings.Join(names, ",")
}

// withoutUserinfo hides what stands before the @ in a list of URLs. What can't
// be parsed may have a secret anywhere.
func withoutUserinfo(urls string) string {
	var clean []string
	for part := range strings.SplitSeq(urls, ",") {
		u, err := parseNATSURL(part)
		if err != nil {
			return hidden
		}
		if u.User != nil {
			u.User = url.User("hidden")
		}
		clean = append(clean, u.String())
	}
	return strings.Join(clean, ",")
}

// isSecret knows nats.password and nats.token, and guesses in sections that
// only a backend knows.
func isSecret(key string) bool {
	name := strings.ToLower(key[strings.LastIndex(key, delim)+1:])
	for _, part := range []string{"password", "passwd", "secret", "apikey", "api_key"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return strings.HasSuffix(name, "token")
}
