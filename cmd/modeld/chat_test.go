package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

// timings hides what differs from run to run.
func timings(notes string) string {
	notes = regexp.MustCompile(`[0-9.]+ tokens/s`).ReplaceAllString(notes, "X tokens/s")
	return regexp.MustCompile(`after \d+ ms`).ReplaceAllString(notes, "after X ms")
}

func TestChatOnce(t *testing.T) {
	n := newNode(t)
	fake := says("a small boat")
	n.own(t, fake)
	got := n.run(t, "", "chat", "--prompt", "What came home?", "--system", "Be brief.", "--max-tokens", "9",
		"--temperature", "0", "--top-p", "0.5", "--top-k", "7", "--seed", "1")
	if got.code != exitOK || got.out != "a small boat\n" ||
		timings(got.notes) != "[3 tokens at X tokens/s (stop); context: 0 reused, 5 prefilled; first token after X ms]\n" {
		t.Errorf("%+v", got)
	}
	zero, half, one := 0.0, 0.5, 1
	want := transport.DecodeConfig{MaxTokens: 9, Temperature: &zero, TopP: &half, TopK: 7, Seed: &one}
	for _, call := range fake.Calls() {
		if cfg, ok := call.Arg.(transport.DecodeConfig); ok && !reflect.DeepEqual(cfg, want) {
			t.Errorf("decoded with %+v, want %+v", cfg, want)
		}
	}
	if err := fake.WaitSessions(0); err != nil {
		t.Error(err)
	}
}

func TestChatJSON(t *testing.T) {
	n := newNode(t)
	n.own(t, says("a small boat"))
	got := n.run(t, "What came home?", "chat", "--json", "--prompt", "-")
	got.want(t, exitOK, "")
	a := decodeJSON[answer](t, got.out)
	if a.Seconds < a.FirstSeconds || a.FirstSeconds <= 0 || a.TokensPerSecond <= 0 {
		t.Errorf("times: %+v", a)
	}
	a.Seconds, a.FirstSeconds, a.TokensPerSecond = 0, 0, 0
	if want := (answer{Text: "a small boat", Tokens: 3, FinishReason: "stop", Prefilled: 3}); !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, want %+v", a, want)
	}
}

// The second turn reuses what the first one computed. A message that can't be
// taken is told, and the chat goes on.
func TestChatInteractive(t *testing.T) {
	n := newNode(t)
	fake := says(" a small boat")
	n.own(t, fake)
	got := n.run(t, "What came home?\n\n  \nbad \xff\n and then?\n", "chat")
	if got.code != exitOK || got.out != " a small boat\n a small boat\n" {
		t.Errorf("%+v", got)
	}
	want := "[3 tokens at X tokens/s (stop); context: 0 reused, 3 prefilled; first token after X ms]\n" +
		"modeld: the message is not valid UTF-8 at byte 4; convert it first, with iconv for example\n" +
		"[3 tokens at X tokens/s (stop); context: 6 reused, 2 prefilled; first token after X ms]\n"
	if timings(got.notes) != want {
		t.Errorf("noted\n%swant\n%s", got.notes, want)
	}
}

func TestChatTooLong(t *testing.T) {
	n := newNode(t)
	fake := says("yes")
	fake.NumCtx = 8
	n.own(t, fake)
	const long = "1 2 3 4 5 6 7 8 9"
	const overflow = "modeld: suffix: context overflow at suffix: 0 resident + 9 additional tokens exceed the context of 8; " +
		"shorten the input, or serve with a larger num_ctx"
	n.run(t, "", "chat", "--prompt", long).want(t, exitRefused, overflow)
	got := n.run(t, long+"\nshort\n", "chat")
	if got.code != exitOK || got.out != "yes\n" || !strings.HasPrefix(got.notes, overflow+"\n[1 tokens") {
		t.Errorf("%+v", got)
	}
}

// An owner that is gone between two messages is looked for, and the next one
// gets the whole conversation.
func TestChatFollowsTheSlot(t *testing.T) {
	n := newNode(t)
	first := n.own(t, says("one"))
	next := says("two")
	in, messages := io.Pipe()
	out, answers := io.Pipe()
	t.Setenv("XDG_CONFIG_HOME", "/none/such")
	var notes strings.Builder
	code := make(chan int, 1)
	go func() {
		defer answers.Close()
		code <- run(context.Background(), []string{"chat", "--state-dir", n.dir}, in, answers, &notes)
	}()
	say := func(text, want string) {
		t.Helper()
		if _, err := io.WriteString(messages, text+"\n"); err != nil {
			t.Fatal(err)
		}
		if want == "" {
			return
		}
		line := make([]byte, len(want)+1)
		if _, err := io.ReadFull(out, line); err != nil || string(line) != want+"\n" {
			t.Fatalf("answer %q, %v; want %q", line, err, want)
		}
	}
	say("first message", "one")
	first.stop()
	second := n.own(t, next)
	say("second message", "")    // it finds the first owner gone
	say("second message", "two") // it was to be sent again
	_ = messages.Close()
	if c := <-code; c != exitOK {
		t.Errorf("exit code %d\n%s", c, notes.String())
	}
	if want := fmt.Sprintf("[%s goes on with the conversation; send the message again]\n", second.Instance()); !strings.Contains(notes.String(), want) {
		t.Errorf("noted %q, want %q in it", notes.String(), want)
	}
	for _, call := range next.Calls() {
		if prefix, ok := call.Arg.(transport.PrefixInput); ok && prefix.Text != "first messageone" {
			t.Errorf("the second owner got the conversation %q", prefix.Text)
		}
	}
}

// interruptedAt makes a fake that presses Ctrl-C in the middle of its answer
// number decode, which then goes on until it is cancelled.
func interruptedAt(t *testing.T, decode int32) *transporttest.Fake {
	t.Helper()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	fake := says("one two three")
	var decodes atomic.Int32
	fake.BeforeChunk = func(ctx context.Context, chunk int) error {
		if chunk == 0 {
			decodes.Add(1)
		}
		if decodes.Load() != decode || chunk != 1 {
			return nil
		}
		if err := self.Signal(os.Interrupt); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return fake
}

func TestCtrlCEndsTheOneAnswer(t *testing.T) {
	n := newNode(t)
	fake := interruptedAt(t, 1)
	n.own(t, fake)
	got := n.run(t, "", "chat", "--prompt", "count")
	got.want(t, exitInterrupted, "modeld: interrupted")
	if err := fake.WaitSessions(0); err != nil {
		t.Error(err)
	}
}

func TestCtrlCEndsOneAnswerOfAChat(t *testing.T) {
	n := newNode(t)
	fake := interruptedAt(t, 2)
	n.own(t, fake)
	got := n.run(t, "count\nto three\nand again\n", "chat")
	if got.code != exitOK || strings.Count(got.notes, "[stopped]\n") != 1 || strings.Count(got.out, "one two three\n") != 2 {
		t.Errorf("%+v", got)
	}
	if err := fake.WaitSessions(0); err != nil {
		t.Error(err)
	}
}
