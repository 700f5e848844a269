package engine

import (
	"log/slog"
	"math/rand/v2"
	"time"
)

// Defaults of Options.
const (
	DefaultMaxSessions    = 256
	DefaultQueueLimit     = 128
	DefaultPrefillChunk   = 256
	DefaultStreamBuffer   = 64
	DefaultStreamInterval = 20 * time.Millisecond
	DefaultSnapshots      = 64
	DefaultSnapshotBytes  = 512 << 20
)

// Options configure a Service. Zero fields take the stated defaults.
type Options struct {
	// MaxSessions is the most sessions open at once; beyond it OpenSession
	// gives ErrModelBusy. More sessions than the runtime has sequences are
	// fine: idle ones lose their KV and recompute it. Default: 256.
	MaxSessions int
	// QueueLimit is the most calls (prefills, generations, embeddings,
	// snapshots) that may wait for their first step; beyond it they get
	// ErrModelBusy. Default: 128.
	QueueLimit int
	// PrefillChunk is the most prefill tokens of one step while generations
	// run, so that they never wait for more. Without running generations a
	// step takes what the runtime takes. Default: 256.
	PrefillChunk int
	// StreamBuffer is the most generated tokens that wait for the reader of
	// one generation; a generation whose buffer is full pauses. Default: 64.
	StreamBuffer int
	// StreamInterval is the least time between two chunks of one generation;
	// tokens that come faster share a chunk, which leaves more of the cores
	// to the runtime. The first token never waits. Negative: a chunk for
	// every token. Default: 20 ms.
	StreamInterval time.Duration
	// Snapshots and SnapshotBytes bound the snapshots kept in memory; the
	// least recently used goes first. Defaults: 64 and 512 MiB.
	Snapshots     int
	SnapshotBytes int64
	// Logger defaults to discarding.
	Logger *slog.Logger
	// Now and Seed are the clock (it tells templates the date) and the
	// source of seeds for generations without one. Defaults: the machine's.
	Now  func() time.Time
	Seed func() uint64
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxSessions, DefaultMaxSessions)
	setDefault(&o.QueueLimit, DefaultQueueLimit)
	setDefault(&o.PrefillChunk, DefaultPrefillChunk)
	setDefault(&o.StreamBuffer, DefaultStreamBuffer)
	setDefault(&o.Snapshots, DefaultSnapshots)
	setDefault(&o.SnapshotBytes, DefaultSnapshotBytes)
	if o.StreamInterval == 0 {
		o.StreamInterval = DefaultStreamInterval
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Seed == nil {
		o.Seed = rand.Uint64
	}
	return o
}

func setDefault[T int | int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}
