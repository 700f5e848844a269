package llamarunner

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"
	"golang.org/x/sys/unix"
)

// nativeLog takes llama.cpp's log lines to slog and remembers the last errors,
// because its functions return no error texts.
type nativeLog struct {
	callback uintptr

	mu     sync.Mutex
	level  llama.LogLevel
	errors []string
}

// keptErrors is how many error lines are remembered.
const keptErrors = 4

func newNativeLog() *nativeLog {
	n := &nativeLog{}
	n.callback = purego.NewCallback(func(level int32, text *byte, _ uintptr) uintptr {
		// The library logs hundreds of lines a load; only those that someone
		// may read are made into strings.
		if lv := llama.LogLevel(level); lv != llama.LogLevelDebug && lv != llama.LogLevelNone && text != nil {
			n.line(lv, unix.BytePtrToString(text))
		}
		return 0
	})
	return n
}

func (n *nativeLog) line(level llama.LogLevel, text string) {
	text = strings.TrimSpace(text)
	if text == "" || strings.Trim(text, ".") == "" {
		return
	}
	n.mu.Lock()
	if level == llama.LogLevelContinue {
		level = n.level
	}
	n.level = level
	if level == llama.LogLevelError {
		n.errors = append(n.errors, text)
		n.errors = n.errors[max(0, len(n.errors)-keptErrors):]
	}
	n.mu.Unlock()
	switch level {
	case llama.LogLevelError:
		slog.Error(text, "from", "llama.cpp")
	case llama.LogLevelWarn:
		slog.Warn(text, "from", "llama.cpp")
	default:
		slog.Debug(text, "from", "llama.cpp")
	}
}

// takeErrors returns the error lines since the last call as one text.
func (n *nativeLog) takeErrors() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	text := strings.Join(n.errors, "; ")
	n.errors = nil
	return text
}

// cancels lets native code ask whether a Go context has ended. Callbacks can't
// be freed, so there are two for the whole process, and the number that native
// code passes back says whose context is meant.
type cancels struct {
	abort    uintptr // bool (*)(void *): true ends a computation
	progress uintptr // bool (*)(float, void *): false ends a load

	next atomic.Uintptr
	live sync.Map // number -> context.Context
}

func newCancels() *cancels {
	c := &cancels{}
	c.abort = purego.NewCallback(func(id uintptr) bool { return c.done(id) })
	c.progress = purego.NewCallback(func(_ float32, id uintptr) bool { return !c.done(id) })
	return c
}

func (c *cancels) done(id uintptr) bool {
	ctx, ok := c.live.Load(id)
	return ok && ctx.(context.Context).Err() != nil
}

// watch returns a number for ctx and a function that forgets it.
func (c *cancels) watch(ctx context.Context) (id uintptr, forget func()) {
	id = c.next.Add(1)
	c.live.Store(id, ctx)
	return id, func() { c.live.Delete(id) }
}

// abortOn makes computations of lctx end when the context with number id ends;
// 0 takes that away.
func (l *library) abortOn(lctx llama.Context, id uintptr) {
	callback := l.cancel.abort
	if id == 0 {
		callback = 0
	}
	l.setAbort.Call(nil, unsafe.Pointer(&lctx), unsafe.Pointer(&callback), unsafe.Pointer(&id))
}
