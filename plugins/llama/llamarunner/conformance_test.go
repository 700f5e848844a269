package llamarunner_test

import (
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
	"modeld/internal/testparts"
	"modeld/plugins/llama/llamarunner"
)

// llama.cpp keeps the waist's promises exactly: the same tokens alone, in a
// batch, after a cut, shared and restored.
func TestRunnerKeepsTheWaist(t *testing.T) {
	enginetest.RunRunner(t, func(t *testing.T) engine.Runner {
		return open(t, settings(t), transport.Config{NumCtx: 1024})
	})
}

// The engine over llama.cpp keeps the contract.
func TestConformance(t *testing.T) {
	svc := engine.New(llamarunner.New(settings(t)), engine.Options{})
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	transporttest.Run(t, func(*testing.T) transport.Service { return svc }, transporttest.Options{
		Lacks:   []transporttest.Feature{transporttest.Store},
		Request: transport.OpenSessionRequest{Path: testparts.Model(t), Config: transport.Config{NumCtx: 512}},
	})
}
