//go:build unix

package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"modeld/core/transport"
)

func killPlugin(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// waitDead waits until a process is gone, reaped and all.
func waitDead(t *testing.T, pid int, within time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(within); alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there after %v", pid, within)
		}
	}
}

// TestPluginKilled: kill -9 in the middle of a generation ends it at once with
// ErrSessionFatal, and the host serves again within two seconds at its default
// backoff.
func TestPluginKilled(t *testing.T) {
	o, r := options(t, "none", endless)
	o.BackoffMin = 0
	h := start(t, o)
	sess, ch := decodeLong(t, h)
	killed := time.Now()
	killPlugin(t, r.wait(t, EventUp, 1).PID)

	if err := lastError(t, ch); !errors.Is(err, transport.ErrSessionFatal) || !strings.Contains(err.Error(), "none") {
		t.Errorf("the stream ended with %v, want ErrSessionFatal", err)
	}
	ended := time.Since(killed)
	if _, err := sess.EnsurePrefix(t.Context(), transport.PrefixInput{Text: "x"}); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("EnsurePrefix on the dead session = %v", err)
	}
	if _, err := sess.Decode(t.Context(), transport.DecodeConfig{}); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("Decode on the dead session = %v", err)
	}
	if rep := sess.ExplainContext(); rep.FatalError == "" {
		t.Errorf("ExplainContext of the dead session names no fault: %+v", rep)
	}
	if err := sess.Close(); err != nil {
		t.Errorf("Close of the dead session = %v", err)
	}
	next, err := h.OpenSession(t.Context(), noModel)
	if err != nil {
		t.Fatal(err)
	}
	back := time.Since(killed)
	next.Close()
	t.Logf("the stream ended after %v, the next session was open after %v", ended, back)
	if back > 2*time.Second {
		t.Errorf("it served again after %v, want 2 s at most", back)
	}
	ev := r.wait(t, EventExited, 1)
	if ev.Signal != "SIGKILL" || ev.ExitCode != -1 || ev.Generation != 1 || ev.Err == nil {
		t.Errorf("event %+v", ev)
	}
	// A call on the old session must not reach the new plugin.
	if _, err := sess.PrefillSuffix(t.Context(), transport.SuffixInput{Text: "x"}); !errors.Is(err, transport.ErrSessionFatal) && !errors.Is(err, transport.ErrSessionClosed) {
		t.Errorf("PrefillSuffix on the dead session = %v", err)
	}
}

// TestPluginStopped: a plugin that hangs is found by its health check, killed
// and replaced.
func TestPluginStopped(t *testing.T) {
	o, r := options(t, "none", endless)
	o.PingInterval, o.PingTimeout = 50*time.Millisecond, 500*time.Millisecond
	h := start(t, o)
	_, ch := decodeLong(t, h)
	if err := syscall.Kill(r.wait(t, EventUp, 1).PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := lastError(t, ch); !errors.Is(err, transport.ErrSessionFatal) {
		t.Errorf("the stream ended with %v, want ErrSessionFatal", err)
	}
	if ev := r.wait(t, EventExited, 1); !strings.Contains(ev.Err.Error(), "did not answer its health check") {
		t.Errorf("event %+v", ev)
	}
	r.wait(t, EventUp, 2)
	if sess, err := h.OpenSession(t.Context(), noModel); err != nil {
		t.Error(err)
	} else {
		sess.Close()
	}
}

// TestCloseWithStoppedPlugin: Close does not wait for a plugin that can't answer.
func TestCloseWithStoppedPlugin(t *testing.T) {
	o, r := options(t, "none", endless)
	o.StopGrace = 300 * time.Millisecond
	h := New(o)
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := r.wait(t, EventUp, 1).PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.Close(ctx); err != nil {
		t.Fatal(err)
	}
	waitDead(t, pid, time.Second)
	nothingLeft(t, o)
}

// TestGrandchild: what a plugin started dies with it and does not hold up the
// restart, though it has the pipes in its hands.
func TestGrandchild(t *testing.T) {
	o, r := options(t, "faulty", m{"mode": "child"})
	h := start(t, o)
	r.waitLog(t, "msg=\"child ")
	_, after, _ := strings.Cut(r.logged(), "msg=\"child ")
	child, err := strconv.Atoi(after[:strings.IndexByte(after, '"')])
	if err != nil {
		t.Fatal(err)
	}
	killPlugin(t, r.wait(t, EventUp, 1).PID)
	r.wait(t, EventUp, 2)
	waitGone(t, child)
	if got := sayOnce(t, h, "x"); got != "x" {
		t.Errorf("it said %q", got)
	}
}

// waitGone waits for the end of a process that may be reaped by others, or
// not at all.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil && !alive(pid) || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

const helperEnv = "MODELD_HOST_TEST_HELPER"

// helperHost is a host in a process of its own, to be killed: it prints its
// plugin's pid and waits.
func helperHost() int {
	h := New(Options{
		Backend: "none", Dir: os.Getenv(helperEnv), RunDir: os.Getenv("HELPER_RUNS"), Settings: endless,
		OnEvent: func(ev Event) { fmt.Println(ev.Kind, ev.PID) },
	})
	if err := h.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// TestHostKilled: kill -9 of the host leaves no plugin behind, and the next host
// removes its folder.
func TestHostKilled(t *testing.T) {
	o, _ := options(t, "none", nil)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+plugins, "HELPER_RUNS="+o.RunDir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(line, "up %d", &pid); err != nil {
		t.Fatalf("the helper said %q: %v", line, err)
	}
	if !alive(pid) {
		t.Fatalf("the plugin %d does not run", pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	killed := time.Now()
	waitGone(t, pid)
	if took := time.Since(killed); took > 2*time.Second {
		t.Errorf("the plugin outlived its host by %v", took)
	}
}

// TestRestartsLeakNothing: after 20 deaths there are as many descriptors as
// before, no zombies, and one folder.
func TestRestartsLeakNothing(t *testing.T) {
	o, r := options(t, "none", m{"echo": true})
	o.BackoffMin, o.BackoffMax, o.CrashLoopAfter = time.Millisecond, time.Millisecond, 1000
	h := start(t, o)
	restart := func(n int) {
		killPlugin(t, r.wait(t, EventUp, n).PID)
		r.wait(t, EventUp, n+1)
		if got := sayOnce(t, h, "again"); got != "again" {
			t.Errorf("it said %q", got)
		}
	}
	restart(1) // whatever is opened once
	before := descriptors(t)
	for n := range 20 {
		restart(n + 2)
	}
	// The connection's end may lag behind the next launch.
	deadline := time.Now().Add(5 * time.Second)
	for descriptors(t) > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors after 20 restarts, %d before", after, before)
	}
	if n := len(children(t)); n != 1 {
		t.Errorf("%d child processes, want the plugin alone", n)
	}
	entries, err := os.ReadDir(h.dir.path)
	if err != nil || len(entries) != 2 { // the lock and the plugin's folder
		t.Errorf("%d entries in the host's folder, %v", len(entries), err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// noChildren checks that no process of ours is left, zombies included.
func noChildren(t *testing.T) {
	t.Helper()
	if left := children(t); len(left) > 0 {
		t.Errorf("child processes are left: %v", left)
	}
}

// children lists the child processes, zombies included.
func children(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("ps", "-A", "-o", "ppid=,pid=,stat=,args=").CombinedOutput()
	if err != nil {
		t.Fatalf("ps: %v: %s", err, out)
	}
	var list []string
	for l := range strings.Lines(string(out)) {
		parent, rest, _ := strings.Cut(strings.TrimSpace(l), " ")
		if parent == strconv.Itoa(os.Getpid()) && !strings.Contains(rest, "ps -A") {
			list = append(list, strings.TrimSpace(rest))
		}
	}
	return list
}
