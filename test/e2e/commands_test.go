package e2e

import (
	"bytes"
	"io"
	"math"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"modeld/test/modeldproc"
)

// answer is what chat --json prints.
type answer struct {
	Text            string  `json:"text"`
	Tokens          int     `json:"tokens"`
	Reused          int     `json:"reused"`
	Prefilled       int     `json:"prefilled"`
	FinishReason    string  `json:"finish_reason"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

func TestCommands(t *testing.T) {
	d := serveLlama(t)
	here := []string{"--state-dir", d.StateDir}
	ask := func(args ...string) answer {
		t.Helper()
		return decodeJSON[answer](t, runOK(t, append(append([]string{"chat", "--json"}, args...), here...)...))
	}

	t.Run("chat once", func(t *testing.T) {
		a := ask("--prompt", "Count to five.", "--max-tokens", "12", "--temperature", "0")
		if a.Text == "" || a.Tokens == 0 || a.Tokens > 12 || a.Prefilled == 0 || a.FinishReason == "" || a.TokensPerSecond <= 0 {
			t.Errorf("%+v", a)
		}
		if b := ask("--prompt", "Count to five.", "--max-tokens", "12", "--temperature", "0"); b.Text != a.Text {
			t.Errorf("greedily %q, and %q the second time", a.Text, b.Text)
		}
	})
	t.Run("a seed repeats, another does not", func(t *testing.T) {
		seeded := func(seed string) string {
			return ask("--prompt", "Invent a name.", "--max-tokens", "16", "--temperature", "1.5", "--top-p", "0.95", "--seed", seed).Text
		}
		first := seeded("7")
		if again := seeded("7"); again != first {
			t.Errorf("seed 7 gives %q and %q", first, again)
		}
		if other := seeded("8"); other == first {
			t.Errorf("seeds 7 and 8 both give %q", first)
		}
	})
	t.Run("chat from standard input", func(t *testing.T) {
		o := run(t, "Say hi.", append([]string{"chat", "--prompt", "-", "--max-tokens", "4"}, here...)...)
		if o.code != 0 || strings.TrimSpace(o.stdout) == "" || !strings.Contains(o.stderr, "tokens/s") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("an interactive chat stays warm", func(t *testing.T) {
		o := run(t, "Name a fruit.\nAnd another.\n", append([]string{"chat", "--json", "--max-tokens", "8", "--temperature", "0"}, here...)...)
		lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
		if o.code != 0 || len(lines) != 2 {
			t.Fatalf("%+v", o)
		}
		first, second := decodeJSON[answer](t, lines[0]), decodeJSON[answer](t, lines[1])
		if second.Reused < first.Prefilled || second.Prefilled >= first.Prefilled {
			t.Errorf("the first turn prefilled %d; the second reused %d and prefilled %d", first.Prefilled, second.Reused, second.Prefilled)
		}
	})
	t.Run("status", func(t *testing.T) {
		type report struct {
			Slot  string
			Owner struct {
				Instance string
				Epoch    uint64
			}
			Health struct {
				Ready   bool
				Backend string
			}
			Status struct{ State string }
		}
		r := decodeJSON[report](t, runOK(t, append([]string{"status", "--json"}, here...)...))
		if r.Slot != "default" || r.Owner.Instance != d.Instance || r.Owner.Epoch == 0 || !r.Health.Ready || r.Health.Backend != "llama" || r.Status.State == "" {
			t.Errorf("%+v", r)
		}
		text := runOK(t, append([]string{"status"}, here...)...)
		for _, want := range []string{d.Instance, "llama", "SmolLM2"} {
			if !strings.Contains(text, want) {
				t.Errorf("status does not say %q:\n%s", want, text)
			}
		}
	})
	t.Run("describe", func(t *testing.T) {
		text := runOK(t, append([]string{"describe"}, here...)...)
		for _, want := range []string{"model_max_context", "8192", "llama.cpp", "chatml"} {
			if !strings.Contains(text, want) {
				t.Errorf("describe does not say %q:\n%s", want, text)
			}
		}
	})
	t.Run("embed", func(t *testing.T) {
		var sum float64
		for _, x := range decodeJSON[[]float64](t, runOK(t, append([]string{"embed", "--text", "a short text"}, here...)...)) {
			sum += x * x
		}
		if math.Abs(sum-1) > 1e-3 {
			t.Errorf("the vector's length is %f", math.Sqrt(sum))
		}
	})
	t.Run("what the model refuses", func(t *testing.T) {
		o := run(t, strings.Repeat("word ", 20000), append([]string{"chat", "--prompt", "-"}, here...)...)
		if o.code != 4 || !strings.Contains(o.stderr, "context overflow") || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("%+v", o)
		}
	})
	t.Run("text that is no UTF-8", func(t *testing.T) {
		o := run(t, "ab\xff", append([]string{"chat", "--prompt", "-"}, here...)...)
		if o.code != 2 || !strings.Contains(o.stderr, "UTF-8 at byte 2") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("Ctrl-C ends a chat", func(t *testing.T) { interrupt(t, d) })
}

// interrupt sends SIGINT to a chat that is answering.
func interrupt(t *testing.T, d *modeldproc.Daemon) {
	cmd := exec.CommandContext(within(t, time.Minute), modeld, "chat", "--state-dir", d.StateDir, "--prompt", "Tell a very long story.")
	cmd.Env = modeldproc.Env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 4)); err != nil {
		t.Fatalf("no text: %v: %s", err, stderr.String())
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130: %s", code, stderr.String())
	}
	awaitSessions(t, d, 0)
}

func TestCommandsWithoutAnOwner(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"chat", "--prompt", "x"}, {"describe"}, {"embed", "--text", "x"}} {
		o := run(t, "", append(args, "--state-dir", stateDir(t))...)
		if o.code != 3 || !strings.Contains(o.stderr, "start one") {
			t.Errorf("modeld %v: %+v, want exit code 3 and what to do", args, o)
		}
	}
	for _, args := range [][]string{{"--bogus"}, {"statsu"}, {"chat", "--max-tokens", "many"}} {
		if o := run(t, "", args...); o.code != 2 || strings.Count(o.stderr, "\n") != 1 {
			t.Errorf("modeld %v: %+v, want exit code 2 and one line", args, o)
		}
	}
	if text := runOK(t, "version"); !strings.HasPrefix(text, "modeld ") || !strings.Contains(text, "protocol 1") {
		t.Errorf("version says %q", text)
	}
	if text := runOK(t, "completion", "bash"); !strings.Contains(text, "modeld") {
		t.Error("no completion for bash")
	}
	if text := runOK(t, "config", "--slot", "chat"); !strings.Contains(text, "flag --slot") {
		t.Errorf("config does not tell where slot comes from:\n%s", text)
	}
}

// With flags and no command, modeld serves.
func TestFlagsWithoutACommandServe(t *testing.T) {
	cmd := exec.CommandContext(within(t, time.Minute), modeld, "--backend", "none", "--state-dir", stateDir(t))
	cmd.Env = modeldproc.Env()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(log.String(), "msg=serving") {
		n, err := stderr.Read(buf)
		log.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v:\n%s", err, log.String())
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, stderr)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%s", err, log.String())
	}
}
