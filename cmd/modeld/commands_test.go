package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

var update = flag.Bool("update", false, "write testdata/help anew")

// The help texts are documentation: a change of one is seen in review.
func TestHelp(t *testing.T) {
	for _, name := range []string{"", "serve", "status", "chat", "describe", "embed", "config", "version"} {
		t.Run("modeld "+name, func(t *testing.T) {
			got := modeld(t, "", append(strings.Fields(name), "--help")...)
			got.want(t, exitOK, "")
			path := filepath.Join("testdata", "help", "modeld"+strings.TrimSuffix("-"+name, "-")+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got.out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got.out != string(want) {
				t.Errorf("the help differs from %s; after a look, run go test -update\n%s", path, got.out)
			}
			if name != "version" && !strings.Contains(got.out, "Examples:\n") {
				t.Error("it has no example")
			}
		})
	}
}

func TestCompletions(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := modeld(t, "", "completion", shell); got.code != exitOK || !strings.Contains(got.out, "modeld") {
			t.Errorf("%s: exit code %d, %d bytes", shell, got.code, len(got.out))
		}
	}
	if got := modeld(t, "", "__complete", "serve", "--backend", ""); got.out != "llama\nopenvino\nnone\n:4\n" {
		t.Errorf("backends: %q", got.out)
	}
}

func TestVersion(t *testing.T) {
	got := modeld(t, "", "version")
	got.want(t, exitOK, "")
	if !strings.HasPrefix(got.out, "modeld dev, protocol 1, go1.") {
		t.Errorf("%q", got.out)
	}
}

func TestConfig(t *testing.T) {
	if got := modeld(t, "", "config", "--defaults"); got.out != string(config.Defaults) {
		t.Errorf("--defaults: %q", got.out)
	}
	t.Setenv("MODELD_LOG__LEVEL", "debug")
	got := modeld(t, "", "config", "--backend", "none", "--nats", "nats://bob:geheim@127.0.0.1", "--slot", "b")
	got.want(t, exitOK, "")
	for _, want := range []string{
		"backend none flag --backend", "slot b flag --slot", "nats.url nats://hidden@127.0.0.1 flag --nats",
		"log.level debug env MODELD_LOG__LEVEL", "limits.sessions 4096 default",
	} {
		if !strings.Contains(strings.Join(strings.Fields(got.out), " "), want) {
			t.Errorf("%q is not in\n%s", want, got.out)
		}
	}
}

// What is wrong with a command line is one line with a next step, and code 2.
func TestWrongUsage(t *testing.T) {
	t.Setenv("MODELD_STATE_DIR", t.TempDir())
	tests := []struct {
		args  string
		stdin string
		want  string
	}{
		{args: "stauts", want: `unknown argument "stauts"; did you mean status?`},
		{args: "frobnicate", want: `unknown argument "frobnicate"; see modeld --help`},
		{args: "chat hello", want: `unknown argument "hello"; see modeld chat --help`},
		{args: "--bakend none", want: "unknown flag: --bakend; see modeld --help"},
		{args: "chat --top-k many", want: `invalid argument "many" for "--top-k" flag: must be an integer; see modeld chat --help`},
		{args: "chat --prompt x --max-tokens -1", want: "--max-tokens -1: it must be at least 0, where 0 sets no limit"},
		{args: "chat --prompt x --top-k -1", want: "--top-k -1: it must be at least 0, where 0 is off"},
		{args: "chat --prompt x --temperature -1", want: "--temperature -1: it must be at least 0, where 0 is greedy"},
		{args: "chat --prompt x --temperature nan", want: "--temperature NaN: it must be at least 0, where 0 is greedy"},
		{args: "chat --prompt x --top-p 0", want: "--top-p 0: it must be above 0 and at most 1"},
		{args: "chat --prompt -", want: "the prompt is empty; leave --prompt out to chat interactively"},
		{args: "chat --prompt -", stdin: "ab\xff", want: "the prompt is not valid UTF-8 at byte 2; convert it first, with iconv for example"},
		{args: "chat --prompt -", stdin: strings.Repeat("x", maxInput+1), want: "the prompt on standard input is longer than 16 MiB"},
		{args: "chat --prompt x --system \xff", want: "the system message is not valid UTF-8 at byte 0; convert it first, with iconv for example"},
		{args: "embed", want: "--text is missing or empty"},
		{args: "embed --text \xff", want: "the text is not valid UTF-8 at byte 0; convert it first, with iconv for example"},
		{args: "serve", want: "there is no model to serve: pass --model PATH, or list one under models in the configuration"},
		{args: "--backend llama --model /none/such.gguf",
			want: "configuration: model = /none/such.gguf (flag --model): it is no file that can be read: stat /none/such.gguf: no such file or directory; pass --model PATH with a GGUF file or an IR folder"},
		{args: "serve --backend none --listen 0.0.0.0:1",
			want: "configuration: listen = 0.0.0.0:1 (flag --listen): it would be reached from other machines, and there is no TLS and no authentication yet; use 127.0.0.1, [::1] or unix:/PATH"},
		{args: "status --config /none/such.yaml", want: "configuration: there is no file /none/such.yaml; `modeld config --defaults` prints one to start from"},
		{args: "status --slot a.b", want: "configuration: slot = a.b (flag --slot): use 1 to 64 letters, digits, - and _"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			modeld(t, tt.stdin, strings.Split(tt.args, " ")...).want(t, exitUsage, "modeld: "+tt.want)
		})
	}
}

func TestDescribe(t *testing.T) {
	n := newNode(t)
	fake := &transporttest.Fake{NumCtx: 300}
	n.own(t, fake)
	got := n.run(t, "", "describe")
	got.want(t, exitOK, "")
	if want := "model_max_context  300\neffective_context  300\ndevice_kind        cpu\nruntime_name       fake\n"; got.out != want {
		t.Errorf("got\n%swant\n%s", got.out, want)
	}
	got = n.run(t, "", "describe", "--json", "--name", "small")
	if info := decodeJSON[transport.ModelInfo](t, got.out); info.EffectiveContext != 300 {
		t.Errorf("%+v", info)
	}
	calls := fake.Calls()
	if req := calls[len(calls)-1].Arg.(transport.OpenSessionRequest); req.ModelName != "small" {
		t.Errorf("asked for %q", req.ModelName)
	}
}

func TestEmbed(t *testing.T) {
	n := newNode(t)
	fake := &transporttest.Fake{}
	n.own(t, fake)
	want, err := fake.Embed(t.Context(), transport.EmbedRequest{Text: "a text"})
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []ended{n.run(t, "", "embed", "--text", "a text"), n.run(t, "a text", "embed", "--text", "-")} {
		got.want(t, exitOK, "")
		if v := decodeJSON[[]float32](t, got.out); len(v) != 2 || v[0] != want.Vector[0] || v[1] != want.Vector[1] {
			t.Errorf("%v, want %v", v, want.Vector)
		}
	}
}

// A refusal has its sentinel's code and a next step.
func TestRefusals(t *testing.T) {
	n := newNode(t)
	fake := &transporttest.Fake{}
	n.own(t, fake)
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{transport.ErrUnsupportedFeature, exitRefused, "modeld: unsupported feature; modeld describe shows what the model can do"},
		{transport.ErrModelBusy, exitRefused, "modeld: model busy; try again in a moment"},
		{transport.NewContextOverflowError("prefix", 1, 2, 3), exitRefused,
			"modeld: context overflow at prefix: 1 resident + 2 additional tokens exceed the context of 3; shorten the input, or serve with a larger num_ctx"},
		{os.ErrInvalid, exitFailure, "modeld: invalid argument"},
	} {
		fake.Before = func(context.Context, transporttest.Call) error { return tt.err }
		n.run(t, "", "embed", "--text", "x").want(t, tt.code, tt.want)
	}
}
