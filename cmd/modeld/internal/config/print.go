package config

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
)

// secrets are keys whose values are never printed.
var secrets = []string{"nats.password", "nats.token"}

// raw is a value as it was written.
func (c *Config) raw(key string) any { return c.values[key] }

// Print writes every value that is in force, and where it comes from. Secrets
// are hidden.
func (c *Config) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		value, note := c.shown(key), c.origins[key]
		if _, err := fmt.Fprintf(tw, "%s\t%s\t%s\n", key, value, note); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func (c *Config) shown(key string) string {
	value := fmt.Sprint(c.values[key])
	switch {
	case value == "":
		switch key {
		case "state_dir":
			return c.StateDir
		case "plugins.dir":
			return c.Plugins.Dir
		case "listen":
			return "unix:" + c.StateDir + "/modeld.sock"
		}
		return `""`
	case slices.Contains(secrets, key), isSecretName(key):
		return "(hidden)"
	case key == "nats.url":
		if u, err := url.Parse(value); err == nil && u.User != nil {
			u.User = url.User("(hidden)")
			return u.Redacted()
		}
	}
	return value
}

// isSecretName guesses in sections that only a backend knows.
func isSecretName(key string) bool {
	name := strings.ToLower(key[strings.LastIndex(key, delim)+1:])
	return strings.Contains(name, "password") || strings.Contains(name, "secret") || strings.Contains(name, "token") && !strings.Contains(name, "tokens")
}
