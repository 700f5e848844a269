package main

import (
	"errors"
	"testing"

	"modeld/core/plugin"
	"modeld/core/transport"
	"modeld/plugins/none/echo"
)

func TestSettings(t *testing.T) {
	t.Setenv(plugin.EnvConfig, `{"echo":true,"text":"hi","tokens_per_second":2,"max_ctx":9}`)
	var s settings
	if err := plugin.Settings(&s); err != nil {
		t.Fatal(err)
	}
	if want := (settings{true, echo.Settings{Text: "hi", TokensPerSecond: 2, MaxCtx: 9}}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	svc, err := newService(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := svc.(*echo.Service); !ok {
		t.Errorf("echo gives a %T", svc)
	}
	s.MaxCtx = -1
	if _, err := newService(s); err == nil {
		t.Error("a negative context was taken")
	}
}

// TestNoBackend: without echo everything is refused with a reason, and nothing
// is ready.
func TestNoBackend(t *testing.T) {
	svc, err := newService(settings{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	ctl := svc.(transport.ModelController)
	for name, call := range map[string]func() error{
		"OpenSession": func() error { _, err := svc.OpenSession(ctx, transport.OpenSessionRequest{}); return err },
		"Describe":    func() error { _, err := svc.Describe(ctx, transport.OpenSessionRequest{}); return err },
		"Embed":       func() error { _, err := svc.Embed(ctx, transport.EmbedRequest{}); return err },
		"LoadModel":   func() error { _, err := ctl.LoadModel(ctx, transport.LoadModelRequest{}); return err },
		"Ready":       func() error { return svc.(transport.ReadyReporter).Ready(ctx) },
	} {
		if err := call(); !errors.Is(err, transport.ErrUnsupportedFeature) {
			t.Errorf("%s = %v, want ErrUnsupportedFeature", name, err)
		}
	}
	if err := ctl.UnloadModel(ctx, transport.UnloadModelRequest{}); !errors.Is(err, transport.ErrModelNotActive) {
		t.Errorf("UnloadModel = %v, want ErrModelNotActive", err)
	}
	if st, err := ctl.Status(ctx); err != nil || st.State != transport.SlotEmpty {
		t.Errorf("Status = %+v, %v", st, err)
	}
}
