package config

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"modeld/natslease"
)

// finish fills in what depends on the machine, and checks every value.
func (c *Config) finish() error {
	if err := c.resolvePaths(); err != nil {
		return err
	}
	for _, check := range []func() error{
		c.checkNames, c.checkNumbers, c.checkLease, c.checkNATS, c.checkListen, c.checkPlugins, c.checkModels, c.checkSections,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// bad says what is wrong with a key's value, and where that stands.
func (c *Config) bad(key, format string, args ...any) error {
	value := ""
	if _, ok := c.values[key]; ok {
		value = " = " + c.shown(key)
	}
	return fmt.Errorf("%s%s (%s): %s", key, value, c.origin(key), fmt.Sprintf(format, args...))
}

// origin says where a key stands: itself, a key of the section that it is, or
// the list or section that holds it.
func (c *Config) origin(key string) string {
	if origin := c.origins[key]; origin != "" {
		return origin
	}
	for _, sub := range slices.Sorted(maps.Keys(c.origins)) {
		if strings.HasPrefix(sub, key+delim) && c.origins[sub] != "default" {
			return c.origins[sub]
		}
	}
	if key == "" {
		return "default"
	}
	return c.origin(parent(key))
}

var (
	backendRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	nameRE    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	envRE     = regexp.MustCompile(`^[A-Za-z_*?][A-Za-z0-9_*?]*(=.*)?$`)
)

const (
	backendRule = "use 1 to 64 lower-case letters, digits, - and _"
	nameRule    = "use 1 to 64 letters, digits, - and _"
)

func (c *Config) checkNames() error {
	switch {
	case !backendRE.MatchString(c.Backend):
		return c.bad("backend", backendRule)
	case !nameRE.MatchString(c.Slot):
		return c.bad("slot", nameRule)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return c.bad("log.format", "use text or json")
	}
	return nil
}

func (c *Config) checkNumbers() error {
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"drain_timeout", c.DrainTimeout},
		{"nats.connect_timeout", c.NATS.ConnectTimeout},
		{"plugins.start_timeout", c.Plugins.StartTimeout},
	} {
		if d.value <= 0 {
			return c.bad(d.key, "it must be above 0, such as 10s")
		}
	}
	for _, n := range []struct {
		key          string
		value, least int
	}{
		{"limits.sessions", c.Limits.Sessions, 1},
		{"limits.sessions_per_connection", c.Limits.SessionsPerConnection, 1},
		{"engine.max_sessions", c.Engine.MaxSessions, 0},
		{"engine.queue_limit", c.Engine.QueueLimit, 0},
		{"engine.prefill_chunk", c.Engine.PrefillChunk, 0},
	} {
		if n.value < n.least {
			return c.bad(n.key, "it must be at least %d", n.least)
		}
	}
	if p := c.NATS.Embedded.Port; p < 0 || p > 65535 {
		return c.bad("nats.embedded.port", "use a port from 1 to 65535, or 0 for any free one")
	}
	if c.NATS.Embedded.MaxStore < 1<<20 {
		return c.bad("nats.embedded.max_store", "it must be at least 1MiB")
	}
	return nil
}

// checkLease keeps the order renew + try <= deadline <= 3/4 wait.
func (c *Config) checkLease() error {
	l := c.Lease
	switch {
	case !nameRE.MatchString(l.Bucket):
		return c.bad("lease.bucket", nameRule)
	case l.Wait < 10*time.Millisecond || l.Wait > natslease.MaxWait || l.Wait%time.Millisecond != 0:
		return c.bad("lease.wait", "use whole milliseconds from 10ms to %s", natslease.MaxWait)
	case l.Deadline <= 0 || l.Deadline > l.Wait/4*3:
		return c.bad("lease.deadline", "it must be above 0 and at most 3/4 of lease.wait, which is %s", l.Wait)
	case l.Renew <= 0 || l.Renew >= l.Deadline:
		return c.bad("lease.renew", "it must be above 0 and below lease.deadline, which is %s", l.Deadline)
	case l.Try <= 0 || l.Renew+l.Try > l.Deadline:
		return c.bad("lease.try", "it must be above 0 and, with lease.renew (%s), at most lease.deadline (%s)", l.Renew, l.Deadline)
	}
	return nil
}

func (c *Config) checkNATS() error {
	n := c.NATS
	if n.URL != "" {
		for part := range strings.SplitSeq(n.URL, ",") {
			if _, err := parseNATSURL(part); err != nil {
				return c.bad("nats.url", "%v", err)
			}
		}
	}
	var ways []string
	for _, way := range []struct{ key, value string }{
		{"nats.credentials", n.Credentials}, {"nats.user", n.User}, {"nats.token", n.Token},
	} {
		if way.value != "" {
			ways = append(ways, way.key)
		}
	}
	switch {
	case n.Password != "" && n.User == "":
		return c.bad("nats.password", "nats.user is missing; set it, or remove the password")
	case len(ways) > 1:
		return c.bad(ways[1], "%s is set too (%s), and they exclude each other; keep one", ways[0], c.origin(ways[0]))
	case len(ways) > 0 && n.URL == "":
		return c.bad(ways[0], "it is set without nats.url; the embedded server makes its own credentials")
	}
	return nil
}

var errNATSURL = errors.New("use nats://HOST:4222, tls://, ws:// or wss://, several with commas between")

// parseNATSURL reads one URL as the NATS client does: without a scheme it is
// nats://. The error has nothing of the text, which may hold a password.
func parseNATSURL(text string) (*url.URL, error) {
	text = strings.TrimSpace(text)
	if !strings.Contains(text, "://") {
		text = "nats://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
		return nil, errNATSURL
	}
	return u, nil
}

// checkListen keeps the listener on this machine: there is no authentication.
func (c *Config) checkListen() error {
	if c.Listen == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return c.bad("listen", "the socket's path is not absolute; use unix:/PATH")
		}
		return nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return c.bad("listen", "use HOST:PORT, such as 127.0.0.1:7070, or unix:/PATH")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return c.bad("listen", "%q is no port; use 1 to 65535, or 0 for any free one", port)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return c.bad("listen", "it would be reached from other machines, and there is no TLS and no authentication yet; use 127.0.0.1, [::1] or unix:/PATH")
	}
	return nil
}

func (c *Config) checkPlugins() error {
	for _, name := range slices.Sorted(maps.Keys(c.Plugins.SHA256)) {
		key := "plugins.sha256." + name
		if !backendRE.MatchString(name) {
			return c.bad(key, "%q names no backend; %s", name, backendRule)
		}
		if !isSHA256(c.Plugins.SHA256[name]) {
			return c.bad(key, "this is no SHA-256; sha256sum prints it")
		}
	}
	for _, entry := range c.Plugins.Env {
		if !envRE.MatchString(entry) {
			name, _, _ := strings.Cut(entry, "=")
			return c.bad("plugins.env", "%q is no variable; use NAME, PATTERN_* or NAME=value", name)
		}
	}
	return nil
}

func isSHA256(text string) bool {
	b, err := hex.DecodeString(strings.TrimPrefix(text, "sha256:"))
	return err == nil && len(b) == 32
}

func (c *Config) checkModels() error {
	if err := c.checkModelConfig("model_config", c.ModelConfig); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, m := range c.Models {
		at := fmt.Sprintf("models[%d]", i)
		switch {
		case m.Name == "":
			return c.bad(at, "it has no name; clients ask for the model by that")
		case m.Path == "":
			return c.bad(at, "%s has no path; name its GGUF file or IR folder", m.Name)
		case seen[m.Name]:
			return c.bad(at, "two are named %s; rename one", m.Name)
		case m.Type != "" && !backendRE.MatchString(m.Type):
			return c.bad(at+".type", "%q names no backend; use llama or openvino, or leave it out", m.Type)
		case m.Digest != "" && !isSHA256(m.Digest):
			return c.bad(at+".digest", "%q is no SHA-256; sha256sum prints it", m.Digest)
		}
		if err := c.checkModelConfig(at+".config", m.Config); err != nil {
			return err
		}
		seen[m.Name] = true
	}
	return nil
}

func (c *Config) checkModelConfig(at string, m ModelConfig) error {
	for _, n := range []struct {
		field string
		value int
	}{
		{"num_ctx", m.NumCtx},
		{"hot_context_tokens", m.HotContextTokens},
		{"planner_effective_context", m.PlannerEffectiveContext},
		{"num_batch", m.NumBatch},
		{"num_threads", m.NumThreads},
	} {
		if n.value < 0 {
			return c.bad(at+delim+n.field, "%d is below 0; use 0 to let the backend decide", n.value)
		}
	}
	for _, share := range m.TensorSplit {
		if !(share >= 0) { // nor NaN
			return c.bad(at+".tensor_split", "%v is no share of a GPU; use numbers from 0", share)
		}
	}
	return nil
}

// checkSections sees to it that the backends' own settings reach them.
func (c *Config) checkSections() error {
	for _, name := range slices.Sorted(maps.Keys(c.Backends)) {
		key := "backends." + name
		if slices.Contains(backendSections[:3], name) {
			return c.bad(key, "%s is not a third party's; use the section %s:", name, name)
		}
		if !backendRE.MatchString(name) {
			return c.bad(key, "%q names no backend; %s", name, backendRule)
		}
		if err := c.checkJSON(key, c.Backends[name]); err != nil {
			return err
		}
	}
	for i, section := range []map[string]any{c.Llama, c.OpenVINO, c.None} {
		if err := c.checkJSON(backendSections[i], section); err != nil {
			return err
		}
	}
	return nil
}

// checkJSON finds what a plugin can't be told: it gets its settings as JSON.
func (c *Config) checkJSON(at string, section map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(section)) {
		if _, err := json.Marshal(section[key]); err != nil {
			return c.bad(at+delim+key, "it can't be passed to the backend (%v); use text, numbers, lists and sections", err)
		}
	}
	return nil
}
