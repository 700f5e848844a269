package e2e

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"modeld/client"
	"modeld/core/transport"
)

// The same commands and the same client run on OpenVINO, with nothing rebuilt.
func TestOpenVINOBackend(t *testing.T) {
	model, err := part("openvino-model")
	if err != nil {
		t.Fatal(err)
	}
	d := serve(t, "--backend", "openvino", "--model", model)
	c := dial(t, d)
	if health, err := c.Health(within(t, 10*time.Second)); err != nil || !health.Ready || health.Backend != "openvino" {
		t.Errorf("health: %+v, %v", health, err)
	}
	if _, err := c.OpenSession(within(t, 10*time.Second), transport.OpenSessionRequest{Type: "llama"}); !errors.Is(err, transport.ErrBackendMismatch) {
		t.Errorf("a llama model: %v, want ErrBackendMismatch", err)
	}

	chat := client.NewChat(open(t, c))
	cfg := transport.DecodeConfig{MaxTokens: 24, Temperature: new(float64)}
	first, err := chat.Send(within(t, time.Minute), "What is the capital of France?", cfg, nil)
	if err != nil || !strings.Contains(first.Text, "Paris") {
		t.Errorf("the first turn: %q, %v", first.Text, err)
	}
	second, err := chat.Send(within(t, time.Minute), "And of Italy?", cfg, nil)
	if err != nil || second.Prefix.ReusedTokens < first.Suffix.ResidentTokens {
		t.Errorf("the second turn reused %d tokens of %d: %v", second.Prefix.ReusedTokens, first.Suffix.ResidentTokens, err)
	}

	if err := syscall.Kill(onlyPlugin(t, d), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := chat.Send(within(t, time.Minute), "Still there?", cfg, nil); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("after the plugin's death: %v, want ErrSessionFatal", err)
	}
	if text, _ := generate(t, reopen(t, c), "The capital of France is", 8); !strings.Contains(text, "Paris") {
		t.Errorf("after the restart: %q", text)
	}
}
