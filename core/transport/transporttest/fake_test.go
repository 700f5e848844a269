package transporttest

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"modeld/core/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	Run(t, func(*testing.T) transport.Service { return &Fake{} }, Options{Lacks: []Feature{ModelControl, Store}})
}

func TestFullFakeConforms(t *testing.T) {
	Run(t, func(*testing.T) transport.Service { return NewFullFake(nil) }, Options{})
}

func TestFakeWithoutEmbeddingsConforms(t *testing.T) {
	Run(t, func(*testing.T) transport.Service { return &Fake{NoEmbed: true} },
		Options{Lacks: []Feature{Embeddings, ModelControl, Store}})
}

func TestFakeLacksOptionalInterfaces(t *testing.T) {
	var svc transport.Service = &Fake{}
	if _, ok := svc.(transport.ModelController); ok {
		t.Error("Fake is a ModelController")
	}
	if _, ok := svc.(transport.NodeAdmin); ok {
		t.Error("Fake is a NodeAdmin")
	}
	if _, ok := svc.(transport.ReadyReporter); ok {
		t.Error("Fake is a ReadyReporter")
	}
}

func TestSplitWords(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"one", []string{"one"}},
		{"one two", []string{"one", " two"}},
		{" one  two ", []string{" one", "  two", " "}},
		{"é\n日本", []string{"é", "\n日本"}},
	} {
		got := splitWords(c.text)
		if len(got) != len(c.want) {
			t.Errorf("splitWords(%q) = %q, want %q", c.text, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("splitWords(%q) = %q, want %q", c.text, got, c.want)
			}
		}
	}
}

func TestFakeHooks(t *testing.T) {
	boom := errors.New("boom")
	f := &Fake{
		Before: func(_ context.Context, c Call) error {
			if c.Method == "PrefillSuffix" {
				return boom
			}
			return nil
		},
		Script: func(transport.DecodeConfig) []transport.StreamChunk {
			return []transport.StreamChunk{{Text: "one two"}, {Text: " three", FinishReason: transport.FinishStop}}
		},
		BeforeChunk: func(_ context.Context, n int) error {
			if n == 1 {
				return transport.ErrDeviceBusy
			}
			return nil
		},
	}
	sess, err := f.OpenSession(t.Context(), transport.OpenSessionRequest{ModelName: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "a b"}); err != nil {
		t.Fatal(err)
	}
	if _, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{}); !errors.Is(err, boom) {
		t.Errorf("PrefillSuffix: %v, want boom", err)
	}
	ch, err := sess.Decode(t.Context(), transport.DecodeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var got []transport.StreamChunk
	for c := range ch {
		got = append(got, c)
	}
	if len(got) != 2 || got[0].Text != "one two" || !errors.Is(got[1].Error, transport.ErrDeviceBusy) {
		t.Errorf("chunks %+v", got)
	}
	if r := sess.ExplainContext(); r.ResidentTokens != 4 {
		t.Errorf("%d tokens are resident, want 4", r.ResidentTokens)
	}
	if f.Sessions() != 1 {
		t.Errorf("%d sessions are open, want 1", f.Sessions())
	}
	sess.Close()
	sess.Close()
	if f.Sessions() != 0 {
		t.Errorf("%d sessions are open, want 0", f.Sessions())
	}
	var methods []string
	for _, c := range f.Calls() {
		methods = append(methods, c.Method)
	}
	want := []string{"OpenSession", "EnsurePrefix", "PrefillSuffix", "Decode", "ExplainContext", "Close"}
	if len(methods) != len(want) {
		t.Fatalf("calls %q, want %q", methods, want)
	}
	for i := range want {
		if methods[i] != want[i] {
			t.Errorf("calls %q, want %q", methods, want)
		}
	}
}
