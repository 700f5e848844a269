package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var someDay = func() time.Time { return time.Date(2026, 11, 23, 7, 5, 0, 0, time.UTC) }

func parseTemplate(t *testing.T, source string) *chatTemplate {
	t.Helper()
	tmpl, err := parseChatTemplate(source, "<s>", "</s>", someDay)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

// TestRendered compares with what Jinja2 itself renders, with the settings of
// the Hugging Face libraries: trim_blocks, lstrip_blocks, tojson by json.dumps
// with ensure_ascii off, and a clock at someDay.
func TestRendered(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "rendered.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name           string
		Template       string
		Messages       json.RawMessage
		Tools          json.RawMessage
		Prompt         bool
		EnableThinking *bool `json:"enable_thinking"`
		Want, Error    string
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			source, err := os.ReadFile(filepath.Join("testdata", c.Template))
			if err != nil {
				t.Fatal(err)
			}
			in := chatInput{prompt: c.Prompt, enableThinking: c.EnableThinking, order: make(keyOrder)}
			messages, err := in.order.decodeJSON(string(c.Messages))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages.([]any) {
				in.messages = append(in.messages, m.(message))
			}
			if c.Tools != nil {
				if in.tools, err = in.order.decodeJSON(string(c.Tools)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := parseTemplate(t, string(source)).render(in)
			if c.Error != "" {
				if err == nil || err.Error() != "chat template: "+c.Error {
					t.Errorf("got %q, %v; want the error %q", got, err, c.Error)
				}
				return
			}
			if err != nil || got != c.Want {
				t.Errorf("got  %q, %v\nwant %q", got, err, c.Want)
			}
		})
	}
}

func TestTemplateIdioms(t *testing.T) {
	one := []message{{"role": "user", "content": "hi"}}
	for source, want := range map[string]string{
		"{{ messages[-1].content }}{{ messages[-1]['role'] }}":                                                "hiuser",
		"{{ ['a', 'b'][-2] }}{{ 'x[-1]' }}{{ [-1][0] }}":                                                      "ax[-1]-1",
		"{{ ('a' if messages else 'b') + ('c' if 0 else 'd' if 0 else 'e') }}":                                "ae",
		"{{ '(x if y else z)' }}{{ 'yes' if messages|length == 1 else 'no' }}":                                "(x if y else z)yes",
		"{% set x = 'one' if messages | length == 1 else 'more' %}{{ x }}":                                    "one",
		"{% for m in messages if m.role == 'system' %}{{ m }}{% else %}-{% endfor %}":                         "-",
		"{{ {'a': 1 if true else 2}['a'] }}{{ [1 if false else 2][0] }}":                                      "12",
		"{{ (messages[5].role if messages|length > 5 else 'short') }}":                                        "short",
		"{{ ' a b '.split() | join(',') }}{{ ' x '.strip() }}{{ '--y'.lstrip('-') }}":                         "a,bxy",
		"{{ 'k=v=w'.split('=', 1)[1] }}{{ 'k=v=w'.rsplit('=', 1)[0] }}":                                       "v=wk=v",
		"{{ ''.split('</think>')[-1] }}{{ 'a</think>b'.split('</think>')[-1] }}":                              "b",
		"{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ f('b') }}":                                        "<a><b>",
		"{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}": "3",
		"{% for m in messages %}{% if true %}{% continue %}{% endif %}x{% endfor %}.":                         ".",
		"{{ strftime_now('%d %b %Y') }}":                                                                      "23 Nov 2026",
		"{# if else ( #}ok":                                                                                   "ok",
		"{%- if (messages[0].role == 'user') != (1 % 2 == 0) %}ok{% endif %}":                                 "ok",
		"{{ tools is defined }}{{ bos_token }}{{ enable_thinking is defined }}":                               "False<s>False",
	} {
		got, err := parseTemplate(t, source).render(chatInput{messages: one})
		if err != nil || got != want {
			t.Errorf("%s\n got %q, %v\nwant %q", source, got, err, want)
		}
	}
}

// TestHostileTemplates checks that what a model file brings can't hang or crash
// the process or read files.
func TestHostileTemplates(t *testing.T) {
	for name, c := range map[string]struct{ source, want string }{
		"endless recursion":   {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deep"},
		"mutual recursion":    {"{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}", "deep"},
		"a huge range":        {"{% for i in range(1000000000) %}{% endfor %}", "range"},
		"includes a file":     {"{% include '/etc/hostname' %}", "include"},
		"imports a file":      {"{% import '/etc/hostname' as x %}", "import"},
		"recursive loop":      {"{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "recursive"},
		"unknown tag":         {"{% nonsense %}", "nonsense"},
		"unclosed":            {"{% if x %}", ""},
		"not a template":      {"{{ ( }}", ""},
		"far too long":        {strings.Repeat("x", maxTemplateBytes+1), "bytes"},
		"an unknown filter":   {"{{ 1 | nonsense }}", "nonsense"},
		"raises":              {"{{ raise_exception('no such role') }}", "no such role"},
		"nested far too deep": {"{{ " + strings.Repeat("(", 60000) + "1" + strings.Repeat(")", 60000) + " }}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tmpl, err := parseChatTemplate(c.source, "", "", someDay)
			if err == nil {
				var text string
				if text, err = tmpl.render(chatInput{messages: []message{{"role": "user", "content": "x"}}}); err == nil && name != "nested far too deep" {
					t.Fatalf("rendered %q, want an error", text)
				}
			}
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want it to name %q", err, c.want)
			}
		})
	}
}

func TestRenderingIsBoundInTime(t *testing.T) {
	tmpl := parseTemplate(t, "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}")
	start := time.Now()
	if _, err := tmpl.render(chatInput{}); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("got %v, want an error that says it takes too long", err)
	}
	if d := time.Since(start); d > 4*maxRenderTime {
		t.Errorf("it took %v", d)
	}
}

func FuzzTemplate(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.jinja"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no templates: %v", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, source string) {
		tmpl, err := parseChatTemplate(source, "<s>", "</s>", someDay)
		if err != nil {
			return
		}
		_, _ = tmpl.render(chatInput{messages: []message{{"role": "user", "content": "x"}}, prompt: true})
	})
}
