package host

import (
	"log/slog"
	"math/rand/v2"
	"time"
)

// Options say what a Host runs and how. The zero value of all but Backend and
// Dir or Path is a good default.
type Options struct {
	// Backend is the plugin's name: the binary is modeld-NAME in Dir, unless
	// Path names it.
	Backend string
	Dir     string
	Path    string
	// SHA256, where set, pins the binary: hex, with or without "sha256:".
	SHA256 string
	// Settings are the backend's own, passed to it as JSON. The plugin's
	// environment is readable by the same user: secrets belong into files.
	Settings any
	// Env lets more of the host's environment through than the defaults:
	// names, patterns ("MYRT_*"), or NAME=value.
	Env []string
	// RunDir is where the folder for the plugin's socket is made; the
	// default is the system's temporary folder.
	RunDir string
	// Logger gets the plugin's log lines and the host's. Default:
	// slog.Default().
	Logger *slog.Logger
	// OnEvent gets all events, in order, before their effects show in calls;
	// OnUp the generation of every launch, after OnEvent. Both must return
	// soon and must not call the Host: a slow one delays restarts.
	OnEvent func(Event)
	OnUp    func(generation uint64)

	// StartTimeout bounds a launch up to its first answer. Default 30 s.
	StartTimeout time.Duration
	// CallWait bounds how long a call waits for a plugin that is being
	// restarted. Default StartTimeout.
	CallWait time.Duration
	// StopGrace is how long a plugin may take to end by itself. Default 5 s.
	// go-plugin asks it to and allows at most that.
	StopGrace time.Duration
	// PingInterval is the pause between health checks, PingTimeout how long a
	// plugin may take to answer before it is killed. Default 5 s and 20 s.
	PingInterval, PingTimeout time.Duration
	// BackoffMin is the pause before the first restart; it doubles up to
	// BackoffMax, each with up to half taken off at random. Default 0.5 s
	// and 1 min.
	BackoffMin, BackoffMax time.Duration
	// StableAfter is how long a plugin must live to make its past failures
	// forgotten. Default 30 s.
	StableAfter time.Duration
	// CrashLoopAfter is the number of failures after which calls no longer
	// wait for the next launch. Default 5.
	CrashLoopAfter int
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.CrashLoopAfter <= 0 {
		o.CrashLoopAfter = 5
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.OnUp == nil {
		o.OnUp = func(uint64) {}
	}
	def(&o.StartTimeout, 30*time.Second)
	def(&o.CallWait, o.StartTimeout)
	def(&o.StopGrace, 5*time.Second)
	def(&o.PingInterval, 5*time.Second)
	def(&o.PingTimeout, 20*time.Second)
	def(&o.BackoffMin, 500*time.Millisecond)
	def(&o.BackoffMax, time.Minute)
	def(&o.StableAfter, 30*time.Second)
	return o
}

// backoff is the pause after the given number of failures.
func (o Options) backoff(failures int) time.Duration {
	pause := o.BackoffMin
	for i := 1; i < failures && pause < o.BackoffMax; i++ {
		pause *= 2
	}
	pause = min(pause, o.BackoffMax)
	return pause - time.Duration(rand.Int64N(int64(pause/2)+1)) //nolint:gosec // jitter needs no secrecy
}
