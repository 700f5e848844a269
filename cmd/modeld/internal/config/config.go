// Package config is modeld's configuration: defaults, file, environment and
// flags, in this order, with the origin of every value. It is the only user of
// koanf.
package config

import (
	_ "embed"
	"errors"
	"log/slog"
	"maps"
	"time"

	"modeld/core/transport"
)

// Defaults is the commented file of every key with its default.
//
//go:embed defaults.yaml
var Defaults []byte

// Config is the configuration as it is in force. Field by field it is
// described in Defaults.
type Config struct {
	Backend      string        `koanf:"backend"`
	Model        string        `koanf:"model"`
	Models       []Model       `koanf:"models"`
	ModelConfig  ModelConfig   `koanf:"model_config"`
	AllowPaths   bool          `koanf:"allow_paths"`
	Slot         string        `koanf:"slot"`
	Listen       string        `koanf:"listen"`
	StateDir     string        `koanf:"state_dir"`
	DrainTimeout time.Duration `koanf:"drain_timeout"`
	NATS         NATS          `koanf:"nats"`
	Lease        Lease         `koanf:"lease"`
	Plugins      Plugins       `koanf:"plugins"`
	Limits       Limits        `koanf:"limits"`
	Engine       Engine        `koanf:"engine"`
	Log          Log           `koanf:"log"`

	Llama    map[string]any            `koanf:"llama"`
	OpenVINO map[string]any            `koanf:"openvino"`
	None     map[string]any            `koanf:"none"`
	Backends map[string]map[string]any `koanf:"backends"`

	values  map[string]any
	origins map[string]string
}

// Model is one of the node's models.
type Model struct {
	Name   string      `koanf:"name"`
	Path   string      `koanf:"path"`
	Type   string      `koanf:"type"`
	Digest string      `koanf:"digest"`
	Config ModelConfig `koanf:"config"`
}

// ModelConfig is transport.Config as it is written in a file.
type ModelConfig struct {
	NumCtx                  int       `koanf:"num_ctx"`
	HotContextTokens        int       `koanf:"hot_context_tokens"`
	PlannerEffectiveContext int       `koanf:"planner_effective_context"`
	NumBatch                int       `koanf:"num_batch"`
	NumThreads              int       `koanf:"num_threads"`
	NumGpuLayers            int       `koanf:"num_gpu_layers"`
	TensorSplit             []float32 `koanf:"tensor_split"`
	FlashAttn               bool      `koanf:"flash_attn"`
	KVCacheType             string    `koanf:"kv_cache_type"`
	PromptFormat            string    `koanf:"prompt_format"`
	PromptTemplateDigest    string    `koanf:"prompt_template_digest"`
	DisableBOS              bool      `koanf:"disable_bos"`
	ReasoningFormat         string    `koanf:"reasoning_format"`
}

// Transport is the same as the contract has it.
func (c ModelConfig) Transport() transport.Config { return transport.Config(c) }

// NATS is the section of that name, and so are the next ones.
type NATS struct {
	URL            string        `koanf:"url"`
	ConnectTimeout time.Duration `koanf:"connect_timeout"`
	Credentials    string        `koanf:"credentials"`
	User           string        `koanf:"user"`
	Password       string        `koanf:"password"`
	Token          string        `koanf:"token"`
	Embedded       Embedded      `koanf:"embedded"`
}

// Embedded is nats.embedded.
type Embedded struct {
	Port     int  `koanf:"port"`
	MaxStore Size `koanf:"max_store"`
}

// Lease is the lease's bucket and timers.
type Lease struct {
	Bucket   string        `koanf:"bucket"`
	Wait     time.Duration `koanf:"wait"`
	Deadline time.Duration `koanf:"deadline"`
	Renew    time.Duration `koanf:"renew"`
	Try      time.Duration `koanf:"try"`
}

// Plugins says where the backends' binaries are.
type Plugins struct {
	Dir          string            `koanf:"dir"`
	SHA256       map[string]string `koanf:"sha256"`
	StartTimeout time.Duration     `koanf:"start_timeout"`
	Env          []string          `koanf:"env"`
}

// Limits are the daemon's.
type Limits struct {
	Sessions              int `koanf:"sessions"`
	SessionsPerConnection int `koanf:"sessions_per_connection"`
}

// Engine has the engine's limits, which are passed to the plugin. 0 leaves one
// to the engine.
type Engine struct {
	MaxSessions    int           `koanf:"max_sessions" json:"max_sessions,omitempty"`
	QueueLimit     int           `koanf:"queue_limit" json:"queue_limit,omitempty"`
	PrefillChunk   int           `koanf:"prefill_chunk" json:"prefill_chunk,omitempty"`
	StreamInterval time.Duration `koanf:"stream_interval" json:"stream_interval"`
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level `koanf:"level"`
	Format string     `koanf:"format"`
}

// ErrInvalid is every error of Load: somebody has to change the configuration.
var ErrInvalid = errors.New("configuration")

// Size is a number of bytes, written as 1048576, 1MiB or 1MB.
type Size int64

// PluginSettings is what the backend's plugin is given: its own section and,
// where one is set, the engine's limits. The backend none has no engine.
func (c *Config) PluginSettings() map[string]any {
	section := c.Backends[c.Backend]
	switch c.Backend {
	case "llama":
		section = c.Llama
	case "openvino":
		section = c.OpenVINO
	case "none":
		section = c.None
	}
	settings := map[string]any{}
	maps.Copy(settings, section)
	if c.Engine != (Engine{}) && c.Backend != "none" {
		settings["engine"] = c.Engine
	}
	return settings
}
