package engine

import "time"

// Settings are the Options that a user may set: a plugin has them as the key
// "engine" of its own settings. Zero fields take Options' defaults.
type Settings struct {
	MaxSessions  int `json:"max_sessions"`
	QueueLimit   int `json:"queue_limit"`
	PrefillChunk int `json:"prefill_chunk"`
	// StreamInterval is in nanoseconds.
	StreamInterval time.Duration `json:"stream_interval"`
}

// Options returns them as Options.
func (s Settings) Options() Options {
	return Options{MaxSessions: s.MaxSessions, QueueLimit: s.QueueLimit, PrefillChunk: s.PrefillChunk, StreamInterval: s.StreamInterval}
}
