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

// The engine over llama.cpp keeps the contract. Texts are not compared where
// prefills of several sessions meet in one batch: the kernels round by the
// batch's shape, and a gap of 0.009 between the two likeliest logits was seen to
// flip. What one session generates is exact, as the waist's suite checks.
func TestConformance(t *testing.T) {
	svc := engine.New(llamarunner.New(settings(t)), engine.Options{})
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	transporttest.Run(t, func(*testing.T) transport.Service { return svc }, transporttest.Options{
		Lacks:   []transporttest.Feature{transporttest.Store, transporttest.ExactDecode},
		Request: transport.OpenSessionRequest{Path: testparts.Model(t), Config: transport.Config{NumCtx: 512}},
	})
}
