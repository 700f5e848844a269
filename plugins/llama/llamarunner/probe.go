package llamarunner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/transport"
)

// ProbeArg is the first argument by which a binary knows that it is asked to be
// a probe: it then calls ProbeMain with the arguments after it.
const ProbeArg = "probe-model"

const (
	probeTimeout = 60 * time.Second
	probeMemory  = 64 // results remembered
)

// probes lets a child process build a model without its weights and remembers
// the outcome as long as the files stay the same. llama.cpp aborts on some
// damaged headers, and that must not end the process that serves.
type probes struct {
	command []string

	mu   sync.Mutex
	good map[string]bool // by the files' stamp
}

func newProbes(command []string) *probes {
	return &probes{command: command, good: map[string]bool{}}
}

func (p *probes) check(ctx context.Context, libDir string, f *facts) error {
	if len(p.command) == 0 || p.known(f.stamp) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	args := append(append([]string{}, p.command[1:]...), libDir, f.paths[0])
	cmd := exec.CommandContext(bounded, p.command[0], args...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "GOTRACEBACK=none")
	var out head
	cmd.Stderr = &out
	err := cmd.Run()
	if err == nil {
		p.remember(f.stamp)
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("llama: probing %s: %w", f.paths[0], ctx.Err())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) && bounded.Err() == nil {
		return fmt.Errorf("llama: %w: the probe of %s can't start: %w", transport.ErrModelLoadFailed, f.paths[0], err)
	}
	return fmt.Errorf("llama: %w: llama.cpp refuses %s (%w): %s", transport.ErrModelLoadFailed, f.paths[0], err, out.cause())
}

func (p *probes) known(stamp string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.good[stamp]
}

func (p *probes) remember(stamp string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.good) >= probeMemory {
		clear(p.good)
	}
	p.good[stamp] = true
}

// ProbeMain is the child: args are the library folder and the model. It writes
// why it fails to stderr and returns the exit code.
func ProbeMain(args []string, stderr io.Writer) int {
	if len(args) != 2 {
		fmt.Fprintln(stderr, "probe: the arguments are a library folder and a model")
		return 2
	}
	lib, err := openLibrary(args[0])
	if err != nil {
		fmt.Fprintln(stderr, "probe:", err)
		return 1
	}
	params := llama.ModelDefaultParams()
	params.NoAlloc = 1
	params.LoadMode = llama.LoadModeNone
	model, err := llama.ModelLoadFromFile(args[1], params)
	if err != nil || model == 0 {
		fmt.Fprintln(stderr, "probe:", lib.log.takeErrors())
		return 1
	}
	cp := llama.ContextDefaultParams()
	cp.NCtx, cp.NBatch, cp.NUbatch = cellMultiple, 32, 32
	lctx, err := llama.InitFromModel(model, cp)
	if err != nil {
		fmt.Fprintln(stderr, "probe:", lib.log.takeErrors())
		return 1
	}
	_ = llama.Free(lctx)
	_ = llama.ModelFree(model)
	return 0
}

// head keeps the start of what is written to it: a crash says its cause first.
type head struct{ buf bytes.Buffer }

const headBytes = 64 << 10

func (h *head) Write(b []byte) (int, error) {
	h.buf.Write(b[:min(len(b), headBytes-h.buf.Len())])
	return len(b), nil
}

// cause returns what a probe wrote about itself, or the line of a crash that
// says most.
func (h *head) cause() string {
	lines := strings.Split(strings.TrimSpace(h.buf.String()), "\n")
	for _, line := range lines {
		if why, ok := strings.CutPrefix(line, "probe: "); ok {
			return why
		}
		for _, mark := range []string{"GGML_ASSERT", "GGML_ABORT", "what():", "SIGSEGV", "SIGFPE", "fatal error"} {
			if strings.Contains(line, mark) {
				return strings.TrimSpace(line)
			}
		}
	}
	return lines[len(lines)-1]
}
