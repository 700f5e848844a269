package engine_test

import (
	"context"
	"testing"
	"time"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

// newService returns a Service over a fake Runner that fails the test when it
// is misused.
func newService(t *testing.T, runner enginetest.Options, opts engine.Options) (*engine.Service, *enginetest.Backend) {
	t.Helper()
	if runner.Misuse == nil {
		runner.Misuse = func(s string) { t.Errorf("misuse of the Runner: %s", s) }
	}
	backend := enginetest.NewBackend(runner)
	svc := engine.New(backend, opts)
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return svc, backend
}

var request = transport.OpenSessionRequest{ModelName: "fake", Path: "/models/fake"}

// slow makes every Forward take a while.
func slow(d time.Duration) func(context.Context, []engine.Span) error {
	return func(context.Context, []engine.Span) error { time.Sleep(d); return nil }
}

func TestConformance(t *testing.T) {
	for name, caps := range map[string]engine.Caps{
		"every capability": {Truncate: true, Share: true, Save: true},
		"no sharing":       {Truncate: true, Save: true},
		"no cutting":       {Share: true, Save: true},
		"nothing":          {},
	} {
		t.Run(name, func(t *testing.T) {
			opts := transporttest.Options{Request: request, Lacks: []transporttest.Feature{transporttest.Store}}
			if !caps.Truncate {
				opts.Lacks = append(opts.Lacks, transporttest.KVTruncation)
			}
			transporttest.Run(t, func(t *testing.T) transport.Service {
				// The suite's text is a token a byte here; a generation must last
				// until the suite closes its session.
				svc, _ := newService(t, enginetest.Options{
					Caps: &caps, NumCtx: 2048, KVTokens: 8192, NoEnd: true, BeforeForward: slow(50 * time.Microsecond),
				}, engine.Options{})
				return svc
			}, opts)
		})
	}
}
