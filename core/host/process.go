package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"modeld/core/plugin"
)

// drainTimeout bounds the reading of pipes that outlive their plugin in the
// hands of some grandchild.
const drainTimeout = time.Second

// Why a host kills its plugin.
const (
	reasonStart = "did not start in time"
	reasonPing  = "did not answer its health check"
	reasonLost  = "lost its connection"
	reasonStop  = "did not end by itself"
)

// process is one run of a plugin's binary: go-plugin's runner.Runner, without
// its limits. It is started once and then waits for itself: exited is closed
// the moment the process is gone, done when its last output is read too.
type process struct {
	path   string
	sha256 string    // "" is any
	cmd    *exec.Cmd // set before Start
	logs   *pluginLog

	exited chan struct{}
	done   chan struct{}

	stdoutR *io.PipeReader // the first line, for go-plugin
	stdoutW *io.PipeWriter

	mu      sync.Mutex // guards the fields below and orders signals before reaping
	started bool
	reaped  bool
	reason  string    // why this host killed it, "" when it did not
	stopBy  time.Time // until then Kill waits for an exit in peace
	first   string    // the first line of standard output

	state atomic.Pointer[os.ProcessState]
}

func newProcess(path, sha256 string, logs *pluginLog) *process {
	p := &process{
		path: path, sha256: sha256, logs: logs,
		exited: make(chan struct{}), done: make(chan struct{}),
	}
	p.stdoutR, p.stdoutW = io.Pipe()
	return p
}

// Start verifies the binary and runs it.
func (p *process) Start(context.Context) error {
	var files closers
	defer files.close()
	outR, outW, err := files.pipe()
	if err != nil {
		return err
	}
	errR, errW, err := files.pipe()
	if err != nil {
		return err
	}
	lineR, lineW, err := files.pipe()
	if err != nil {
		return err
	}
	p.cmd.Path, p.cmd.Args = p.path, []string{p.path}
	p.cmd.Stdout, p.cmd.Stderr = outW, errW
	giveLifeline(p.cmd, lineR)
	if p.sha256 != "" {
		binary, err := openVerified(p.path, p.sha256)
		if err != nil {
			return err
		}
		files = append(files, binary)
		execVerified(p.cmd, binary)
	}
	if err := p.spawn(outR, errR, lineW); err != nil {
		return startError(p.path, err)
	}
	files.keep(outR, errR, lineW) // theirs is the process's life now
	return nil
}

// spawn starts the process on a thread that lives as long as it does: the
// kernel's parent-death signal is tied to the thread that started a child.
func (p *process) spawn(stdout, stderr, lifeline *os.File) error {
	p.cmd.SysProcAttr = processAttr()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		if err == nil {
			p.mu.Lock()
			p.started = true
			if p.reason != "" {
				p.signalGroup()
			}
			p.mu.Unlock()
		}
		result <- err
		if err == nil {
			p.run(stdout, stderr, lifeline)
		}
	}()
	return <-result
}

// run reads the process's output and waits for its end.
func (p *process) run(stdout, stderr, lifeline *os.File) {
	defer close(p.done)
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pumpStdout(stdout) })
	pumps.Go(func() { eachLine(stderr, p.logs.line) })

	waitExit(p.cmd)
	p.mu.Lock()
	p.signalGroup() // what it left behind; its pid still is its own
	p.reaped = true
	p.mu.Unlock()
	_ = p.cmd.Wait() // where waitExit has not reaped it
	p.state.Store(p.cmd.ProcessState)
	close(p.exited)

	deadline := time.Now().Add(drainTimeout)
	_ = stdout.SetReadDeadline(deadline)
	_ = stderr.SetReadDeadline(deadline)
	pumps.Wait()
	_ = stdout.Close()
	_ = stderr.Close()
	_ = lifeline.Close()
	_ = p.stdoutW.Close()
}

// pumpStdout hands the first line to go-plugin and logs the others: go-plugin
// would stop reading, and so block the plugin, at a line of 64 KiB.
func (p *process) pumpStdout(stdout io.Reader) {
	eachLine(stdout, func(line string) {
		p.mu.Lock()
		isFirst := p.first == ""
		if isFirst {
			p.first = line
		}
		p.mu.Unlock()
		if isFirst {
			_, _ = io.WriteString(p.stdoutW, line+"\n")
			return
		}
		p.logs.log.Debug(line, "stream", "stdout")
	})
}

// firstLine is the first line of standard output, "" before it came.
func (p *process) firstLine() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first
}

// kill ends the process and all of its group, now or as soon as it is started.
// The first reason is the one that is reported.
func (p *process) kill(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return
	}
	if p.reason == "" {
		p.reason = reason
	}
	if p.started {
		p.signalGroup()
	}
}

func (p *process) signalGroup() { killGroup(p.cmd.Process) }

// killReason is why the host killed the process, "" when it did not.
func (p *process) killReason() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason
}

// stopWithin lets Kill wait for an exit in peace, and kills after grace.
func (p *process) stopWithin(grace time.Duration) *time.Timer {
	p.mu.Lock()
	p.stopBy = time.Now().Add(grace)
	p.mu.Unlock()
	return time.AfterFunc(grace, func() { p.kill(reasonStop) })
}

// stopping tells whether it was asked to end.
func (p *process) stopping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.stopBy.IsZero()
}

// gone tells whether the process is dead.
func (p *process) gone() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// exitsWithin waits for the end, at most d, and tells whether it came.
func (p *process) exitsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// exit describes the end, after exited is closed: the exit code (-1 after a
// signal), the signal's name ("" without one) and both in words.
func (p *process) exit() (code int, signal, words string) {
	state := p.state.Load()
	if state == nil {
		return -1, "", "did not start"
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		signal = signalName(status.Signal())
		reason := p.killReason()
		switch {
		case reason != "":
			words = reason + " and was killed"
		case signal == "SIGKILL":
			words = "was ended by SIGKILL, often the kernel's answer to a lack of memory (see dmesg)"
		default:
			words = "was ended by " + signal
		}
		return -1, signal, words
	}
	return state.ExitCode(), "", fmt.Sprintf("exited with status %d", state.ExitCode())
}

// Kill is go-plugin's; see stopWithin.
func (p *process) Kill(context.Context) error {
	p.mu.Lock()
	grace := time.Until(p.stopBy)
	p.mu.Unlock()
	p.exitsWithin(grace)
	p.kill(reasonStop)
	return nil
}

// Wait is go-plugin's; its result is only logged.
func (p *process) Wait(context.Context) error {
	<-p.done
	if _, _, words := p.exit(); !p.state.Load().Success() {
		return errors.New(words)
	}
	return nil
}

// Stdout gives go-plugin the handshake, Stderr nothing: both end with the
// process.
func (p *process) Stdout() io.ReadCloser { return p.stdoutR }
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(endReader{p.done}) }

func (p *process) Name() string { return p.path }

// ID is "" before the process runs: go-plugin then has nothing to kill.
func (p *process) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return ""
	}
	return strconv.Itoa(p.cmd.Process.Pid)
}

func (p *process) Diagnose(context.Context) string { return "" }

func (p *process) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// endReader is empty and ends with done.
type endReader struct{ done <-chan struct{} }

func (r endReader) Read([]byte) (int, error) {
	<-r.done
	return 0, io.EOF
}

// startError says what to do about a binary that can't be run.
func startError(path string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("backend %s is not a program for %s/%s: install the build for this machine (%w)", path, runtime.GOOS, runtime.GOARCH, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("backend %s may not be executed: check its mode, its owner, and that its file system is not mounted noexec (%w)", path, err)
	}
	return fmt.Errorf("start backend %s: %w", path, err)
}

// closers are files that are closed unless they are kept.
type closers []*os.File

func (c *closers) pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("pipe to a backend: %w", err)
	}
	*c = append(*c, r, w)
	return r, w, nil
}

func (c *closers) keep(files ...*os.File) {
	for i, f := range *c {
		for _, kept := range files {
			if f == kept {
				(*c)[i] = nil
			}
		}
	}
}

func (c *closers) close() {
	for _, f := range *c {
		if f != nil {
			_ = f.Close()
		}
	}
}

// lifelineEnv tells a plugin where its lifeline is.
const lifelineEnv = plugin.EnvLifeline + "="
