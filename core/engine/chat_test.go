package engine_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
)

func template(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// turn is a chat's prefix and suffix, cut from one manifest: the first stable
// messages are the prefix.
func turn(stable int, parts ...string) (transport.PrefixInput, transport.SuffixInput) {
	m := chat(parts...)
	var b strings.Builder
	for i := range m.Segments {
		m.Segments[i].Stable = i < stable
		if i < stable {
			m.StableBytes = m.Segments[i].ByteEnd
		}
		b.WriteString(parts[2*i+1])
	}
	text := b.String()
	if stable == 0 {
		m.StableBytes = 0
	}
	m.Segments = append(m.Segments, transport.ManifestSegment{Kind: transport.SegmentAssistantPrompt, ByteStart: m.TotalBytes, ByteEnd: m.TotalBytes})
	return transport.PrefixInput{Text: text[:m.StableBytes], Manifest: m}, transport.SuffixInput{Text: text[m.StableBytes:], Manifest: m}
}

// TestChat checks that what is resident after a turn is the whole conversation,
// rendered as one, however it was cut into prefix and suffix.
func TestChat(t *testing.T) {
	conversation := []string{"system", "Be brief.", "user", "Hi é", "assistant", "Yes?", "user", "More"}
	for _, c := range []struct {
		template, want string
	}{
		{"chatml.jinja", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi é<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"},
		{"strict.jinja", "<s><turn>user\nBe brief.\n\nHi é</turn>\n<turn>model\nYes?</turn>\n<turn>user\nMore</turn>\n<turn>model\n"},
	} {
		for stable := range 4 {
			svc, _ := newService(t, enginetest.Options{ChatTemplate: template(t, c.template), AddBOS: true}, engine.Options{})
			sess := open(t, svc)
			pre, suf := turn(stable, conversation...)
			st, err := sess.EnsurePrefix(t.Context(), pre)
			if err != nil {
				t.Fatalf("%s, %d stable messages: EnsurePrefix: %v", c.template, stable, err)
			}
			su, err := sess.PrefillSuffix(t.Context(), suf)
			if err != nil {
				t.Fatalf("%s, %d stable messages: PrefillSuffix: %v", c.template, stable, err)
			}
			r := enginetest.NewRunner(enginetest.Options{})
			want, _ := r.Tokenize(c.want, false)
			if su.ResidentTokens != len(want) || st.PrefixTokens+su.SuffixTokens != len(want) {
				t.Errorf("%s, %d stable: %d tokens are resident (%d + %d), want %d", c.template, stable, su.ResidentTokens, st.PrefixTokens, su.SuffixTokens, len(want))
			}
			if got, want := decode(t, sess, 20), alone(t, c.want, 20); got != want {
				t.Errorf("%s, %d stable: %q, want %q", c.template, stable, got, want)
			}
		}
	}
}

// TestNextTurnReusesTheLast repeats what was generated, as chats do.
func TestNextTurnReusesTheLast(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{ChatTemplate: template(t, "chatml.jinja")}, engine.Options{})
	sess := open(t, svc)
	pre, suf := turn(1, "system", "Be brief.", "user", "Hi")
	if _, err := sess.EnsurePrefix(t.Context(), pre); err != nil {
		t.Fatal(err)
	}
	if _, err := sess.PrefillSuffix(t.Context(), suf); err != nil {
		t.Fatal(err)
	}
	answer := decode(t, sess, 10)
	before := sess.ExplainContext().ResidentTokens
	pre, suf = turn(3, "system", "Be brief.", "user", "Hi", "assistant", answer, "user", "More")
	st, err := sess.EnsurePrefix(t.Context(), pre)
	if err != nil {
		t.Fatal(err)
	}
	// The last token of a generation is not computed before it is needed.
	if st.ReusedTokens < before-1 || st.DroppedTokens > 0 {
		t.Errorf("the next turn, over %d resident tokens: %+v", before, st)
	}
	if _, err := sess.PrefillSuffix(t.Context(), suf); err != nil {
		t.Fatal(err)
	}
}

func TestThinkingAndTools(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{ChatTemplate: template(t, "thinking.jinja")}, engine.Options{})
	off := false
	for _, c := range []struct {
		in   transport.SuffixInput
		want string
	}{
		{transport.SuffixInput{}, "[USER]Hi[/U]\n[A]"},
		{transport.SuffixInput{EnableThinking: &off}, "[USER]Hi[/U]\n[A]<think></think>"},
		{transport.SuffixInput{ReasoningEffort: "low"}, "[USER]Hi[/U]\n[A]<think effort=low>"},
	} {
		sess := open(t, svc)
		_, suf := turn(0, "user", "Hi")
		c.in.Text, c.in.Manifest = suf.Text, suf.Manifest
		if _, err := sess.PrefillSuffix(t.Context(), c.in); err != nil {
			t.Fatal(err)
		}
		if got, want := decode(t, sess, 12), alone(t, c.want, 12); got != want {
			t.Errorf("%+v: %q, want what follows %q: %q", c.in, got, c.want, want)
		}
	}

	svc, _ = newService(t, enginetest.Options{ChatTemplate: `{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id or '' }}]{% endfor %}`}, engine.Options{})
	sess := open(t, svc)
	pre, _ := turn(3, "user", "weather?", "assistant", "", "tool", "rain")
	pre.Tools = `[{"type": "function", "function": {"name": "w", "b": 1, "a": 2.0}}]`
	pre.Manifest.Segments[1].ToolCallsJSON = `[{"id": "1", "type": "function", "function": {"name": "w", "arguments": "{\"z\": 1, \"a\": \"é\"}"}}]`
	pre.Manifest.Segments[2].ToolCallID = "1"
	if _, err := sess.EnsurePrefix(t.Context(), pre); err != nil {
		t.Fatal(err)
	}
	want := `{"type": "function", "function": {"name": "w", "b": 1, "a": 2.0}}[user:weather?][assistant:w{"z": 1, "a": "é"}][tool:rain1]`
	if got, want := decode(t, sess, 12), alone(t, want, 12); got != want {
		t.Errorf("with tools: %q, want %q", got, want)
	}
}

func TestBadManifests(t *testing.T) {
	svc, _ := newService(t, enginetest.Options{ChatTemplate: template(t, "chatml.jinja")}, engine.Options{})
	seg := func(kind string, start, end int) transport.ManifestSegment {
		return transport.ManifestSegment{Kind: kind, Stable: true, ByteStart: start, ByteEnd: end}
	}
	calls := seg("assistant", 0, 2)
	calls.ToolCallsJSON = "{nonsense"
	for name, c := range map[string]struct {
		segments []transport.ManifestSegment
		want     string
	}{
		"beyond the text":        {[]transport.ManifestSegment{seg("user", 0, 9)}, "0 to 9"},
		"negative":               {[]transport.ManifestSegment{seg("user", -1, 2)}, "-1 to 2"},
		"backwards":              {[]transport.ManifestSegment{seg("user", 2, 1)}, "2 to 1"},
		"overlapping":            {[]transport.ManifestSegment{seg("system", 0, 3), seg("user", 2, 4)}, "before the end"},
		"within a character":     {[]transport.ManifestSegment{seg("user", 0, 5)}, "character at byte 4"},
		"after the prompt":       {[]transport.ManifestSegment{seg("assistant_prompt", 0, 0), seg("user", 0, 2)}, "assistant_prompt"},
		"calls that aren't JSON": {[]transport.ManifestSegment{calls}, "tool_calls_json"},
	} {
		sess := open(t, svc)
		_, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "texté", Manifest: transport.ContextManifest{Segments: c.segments}})
		if !errors.Is(err, transport.ErrManifestMismatch) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrManifestMismatch that says %q", name, err, c.want)
		}
	}
	broken, _ := newService(t, enginetest.Options{ChatTemplate: "{% if %}"}, engine.Options{})
	_, err := open(t, broken).EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x", Manifest: chat("user", "x")})
	if !errors.Is(err, transport.ErrUnsupportedFeature) || !strings.Contains(err.Error(), "can't be parsed") {
		t.Errorf("a broken template: %v", err)
	}
}

func TestBOS(t *testing.T) {
	raw := "hello"
	for _, c := range []struct {
		addBOS  bool
		disable bool
		m       transport.ContextManifest
		want    int
	}{
		{true, false, transport.ContextManifest{}, 6},
		{true, true, transport.ContextManifest{}, 5},
		{false, false, transport.ContextManifest{}, 5},
		{true, false, transport.ContextManifest{ProfileID: "p"}, 5},
		{false, false, transport.ContextManifest{ProfileID: "p", AddBOS: true}, 6},
	} {
		svc, _ := newService(t, enginetest.Options{AddBOS: c.addBOS}, engine.Options{})
		req := request
		req.Config.DisableBOS = c.disable
		sess, err := svc.OpenSession(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		st, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: raw, Manifest: c.m})
		if err != nil || st.PrefixTokens != c.want {
			t.Errorf("%+v: %+v, %v", c, st, err)
		}
		// Nothing more of it before a suffix.
		su, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: raw})
		if err != nil || su.SuffixTokens != 5 {
			t.Errorf("%+v: suffix %+v, %v", c, su, err)
		}
		_ = sess.Close()
	}
}

// TestSnapshots restores with the KV of this process, and from tokens alone.
func TestSnapshots(t *testing.T) {
	for _, keep := range []int64{0, 1} { // 1 byte: no KV is kept
		svc, backend := newService(t, enginetest.Options{MaxSeqs: 1}, engine.Options{SnapshotBytes: keep})
		sess := open(t, svc)
		text := strings.Repeat("remember me. ", 10)
		prefix(t, sess, text)
		snap, err := sess.Snapshot(t.Context())
		if err != nil || (snap.StateID == "") != (keep == 1) {
			t.Fatalf("Snapshot: state %q, %v", snap.StateID, err)
		}
		prefix(t, sess, "something else")
		before, _ := backend.Last().Computed()
		if err := sess.Restore(t.Context(), snap); err != nil {
			t.Fatalf("Restore: %v", err)
		}
		after, _ := backend.Last().Computed()
		if want := len(text) * int(keep); after-before != want {
			t.Errorf("Restore with %d bytes of snapshots computed %d tokens, want %d", keep, after-before, want)
		}
		if got, want := decode(t, sess, 15), alone(t, text, 15); got != want {
			t.Errorf("after Restore %q, want %q", got, want)
		}
		foreign := snap
		foreign.Manifest.ModelDigest = "0123"
		if err := sess.Restore(t.Context(), foreign); !errors.Is(err, transport.ErrManifestMismatch) {
			t.Errorf("a foreign snapshot: %v, want ErrManifestMismatch", err)
		}
		if keep == 0 {
			damaged := snap
			damaged.ResidentTokenIDs = append([]int{99}, snap.ResidentTokenIDs[1:]...)
			if err := sess.Restore(t.Context(), damaged); !errors.Is(err, transport.ErrManifestMismatch) {
				t.Errorf("a damaged snapshot: %v, want ErrManifestMismatch", err)
			}
		}
	}
}
