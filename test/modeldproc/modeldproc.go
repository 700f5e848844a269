// Package modeldproc runs the real modeld as a process, for end-to-end tests
// and measurements.
package modeldproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"modeld/client"
	"modeld/natsserver"
)

// Daemon is a running `modeld serve`.
type Daemon struct {
	// StateDir is its state folder, Endpoint and Instance what it logged when
	// it began to serve.
	StateDir string
	Endpoint string
	Instance string

	cmd  *exec.Cmd
	log  *log
	done chan struct{} // closed when the process has ended
	err  error         // of Wait, after done
}

// Start runs `bin serve args...` with a state folder of its own, unless args
// name one, and returns when it serves. An end before that is an error with
// the log in it.
func Start(ctx context.Context, bin string, args ...string) (*Daemon, error) {
	d, err := Launch(bin, args...)
	if err != nil {
		return nil, err
	}
	if err := d.AwaitServing(ctx); err != nil {
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

// Launch is Start that does not wait.
func Launch(bin string, args ...string) (*Daemon, error) {
	d := &Daemon{log: newLog(), done: make(chan struct{})}
	for i, arg := range args {
		if arg == "--state-dir" && i+1 < len(args) {
			d.StateDir = args[i+1]
		}
	}
	if d.StateDir == "" {
		// Short: it holds a Unix socket.
		dir, err := os.MkdirTemp("", "modeld")
		if err != nil {
			return nil, err
		}
		d.StateDir = dir
		args = append(args, "--state-dir", dir)
	}
	d.cmd = exec.Command(bin, append([]string{"serve"}, args...)...)
	d.cmd.Env = Env()
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(d.done)
		d.err = d.cmd.Wait()
	}()
	return d, nil
}

// Env is this process's environment without modeld's own settings, so that a
// developer's do not leak into a test.
func Env() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MODELD_") || strings.HasPrefix(kv, "MODELD_CACHE=") {
			env = append(env, kv)
		}
	}
	return env
}

// AwaitServing waits until the daemon has logged that it serves.
func (d *Daemon) AwaitServing(ctx context.Context) error {
	line, err := d.AwaitLog(ctx, "msg=serving")
	if err != nil {
		return err
	}
	d.Endpoint, d.Instance = field(line, "endpoint"), field(line, "instance")
	return nil
}

// AwaitLog waits for the next line of the log that has text in it, from the
// beginning on.
func (d *Daemon) AwaitLog(ctx context.Context, text string) (string, error) {
	for {
		line, more := d.log.find(text)
		if line != "" {
			return line, nil
		}
		select {
		case <-more:
		case <-d.done:
			if line, _ := d.log.find(text); line != "" {
				return line, nil
			}
			return "", fmt.Errorf("modeld ended (%w) before it logged %q:\n%s", d.err, text, d.Log())
		case <-ctx.Done():
			return "", fmt.Errorf("%w before modeld logged %q:\n%s", ctx.Err(), text, d.Log())
		}
	}
}

// Log is what the daemon has printed so far.
func (d *Daemon) Log() string { return d.log.String() }

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Client opens a client to the slot's owner, found by the embedded server of
// the state folder.
func (d *Daemon) Client(ctx context.Context) (*client.Client, error) {
	url, err := natsserver.ReadURL(d.StateDir)
	if err != nil {
		return nil, err
	}
	return client.Open(ctx, client.Options{URL: url, Slot: "default"})
}

// Stop ends the daemon as an operator does, by SIGTERM, and returns an error
// where it does not exit with 0 before ctx ends. A state folder that Start made
// is the caller's to remove.
func (d *Daemon) Stop(ctx context.Context) error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	return d.Wait(ctx)
}

// Wait waits for the process to end and returns an error where it did not end
// with exit code 0.
func (d *Daemon) Wait(ctx context.Context) error {
	select {
	case <-d.done:
		if d.err != nil {
			return fmt.Errorf("modeld: %w:\n%s", d.err, d.Log())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w before modeld ended:\n%s", ctx.Err(), d.Log())
	}
}

// Kill ends the daemon by SIGKILL and waits for its end.
func (d *Daemon) Kill() error {
	err := d.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-d.done
	return err
}

// ExitCode waits for the end and returns the exit code, -1 for a signal's.
func (d *Daemon) ExitCode(ctx context.Context) (int, error) {
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%w before modeld ended:\n%s", ctx.Err(), d.Log())
	}
}

// Plugins returns the process ids of the daemon's children.
func (d *Daemon) Plugins() ([]int, error) { return Children(d.PID()) }

// Children returns the process ids of a process's children.
func Children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread ended
		}
		for _, word := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// Alive reports whether a process exists and is no zombie.
func Alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the command's name, which is in parentheses.
	rest := data[bytes.LastIndexByte(data, ')')+1:]
	return !bytes.HasPrefix(rest, []byte(" Z")) && !bytes.HasPrefix(rest, []byte(" X"))
}

// ResidentBytes is a process's resident memory.
func ResidentBytes(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmRSS", pid)
}

// field returns the value of key=value in a line of slog's text format.
func field(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	if quoted, err := strconv.QuotedPrefix(rest); err == nil {
		value, _ := strconv.Unquote(quoted)
		return value
	}
	value, _, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(value)
}

// log collects output and tells who waits for more.
type log struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newLog() *log { return &log{more: make(chan struct{})} }

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// find returns the first whole line that has text in it, and a channel that is
// closed when there is more to look at.
func (l *log) find(text string) (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.HasSuffix(line, "\n") && strings.Contains(line, text) {
			return line, nil
		}
	}
	return "", l.more
}
