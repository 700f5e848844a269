package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	wire "modeld/core/grpc"
	"modeld/core/plugin"
	"modeld/core/transport"
)

// launch is one life of a plugin.
type launch struct {
	generation uint64
	path       string
	started    time.Time
	proc       *process
	client     *wire.Client
	health     grpc_health_v1.HealthClient

	goclient *goplugin.Client
	conns    connections
	tail     *tail
}

// start runs the plugin and waits for its first answer.
func (h *Host) start(ctx context.Context, generation uint64) (*launch, error) {
	path, err := h.binary()
	if err != nil {
		return nil, err
	}
	env, err := buildEnv(os.Environ(), h.opts.Env)
	if err != nil {
		return nil, err
	}
	settings, err := settingsEnv(h.opts.Settings, h.opts.Logger)
	if err != nil {
		return nil, err
	}
	tail := &tail{}
	logs := &pluginLog{log: h.opts.Logger.With("generation", generation), tail: tail}
	l := &launch{generation: generation, path: path, tail: tail, proc: newProcess(path, h.opts.SHA256, logs)}
	l.goclient = goplugin.NewClient(h.clientConfig(l, append(env, settings...)))

	timed, cancel := context.WithTimeout(ctx, h.opts.StartTimeout)
	defer cancel()
	err = l.connect(timed)
	if err == nil {
		l.started = time.Now()
		return l, nil
	}
	late := timed.Err() != nil
	if !late && l.proc.ID() != "" {
		l.proc.exitsWithin(lostWait) // it may be about to; then that is the reason
	}
	l.stop(0, h.dir)
	if l.proc.ID() == "" {
		return nil, err // it never ran: the error says why
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("backend %s: start was given up: %w", path, context.Cause(ctx))
	}
	return nil, l.diagnose(err, late, h.opts)
}

// path is where the plugin's binary should be.
func (h *Host) path() string {
	if h.opts.Path != "" {
		return h.opts.Path
	}
	return filepath.Join(h.opts.Dir, plugin.BinaryPrefix+h.opts.Backend+exeSuffix())
}

// binary is the path of the plugin's binary, absolute, if it can be run.
func (h *Host) binary() (string, error) {
	var err error
	if h.opts.Path != "" {
		err = checkBinary(h.opts.Path)
	} else {
		_, err = Find(h.opts.Dir, h.opts.Backend)
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(h.path())
}

func (h *Host) clientConfig(l *launch, env []string) *goplugin.ClientConfig {
	log := h.opts.Logger
	logs := *l.proc.logs // of a stream beside the other, so with a state of its own
	level := hclog.Off
	if logLevel(log) == "debug" {
		level = hclog.Debug
	}
	return &goplugin.ClientConfig{
		HandshakeConfig:  plugin.Handshake(),
		VersionedPlugins: plugin.Versions(&compute{launch: l, backend: h.opts.Backend}),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     h.opts.StartTimeout + time.Minute, // connect's comes first
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: h.dir.path},
		GRPCDialOptions:  append(wire.DialOptions(), grpc.WithStreamInterceptor(l.conns.intercept)),
		SyncStdout:       &lineLogger{fn: func(s string) { log.Debug(s, "stream", "stdout") }},
		SyncStderr:       &lineLogger{fn: logs.line},
		// Its news reach the user as events; in full they are for debugging.
		Logger: hclog.New(&hclog.LoggerOptions{
			Name: "go-plugin", Level: level, JSONFormat: true,
			Output: &lineLogger{fn: func(s string) {
				_, message, attrs := parseLine(s)
				log.LogAttrs(context.Background(), slog.LevelDebug, message, attrs...)
			}},
		}),
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
			cmd.Env = append(env, cmd.Env...)
			l.proc.cmd = cmd
			return l.proc, nil
		},
	}
}

// connect runs the binary, shakes hands and waits for the first answer.
func (l *launch) connect(ctx context.Context) error {
	// go-plugin's calls know no context; killing the process ends them.
	defer context.AfterFunc(ctx, func() { l.proc.kill(reasonStart) })()
	rpc, err := l.goclient.Client()
	if err != nil {
		return err
	}
	if _, err = rpc.Dispense(plugin.Name); err != nil {
		return err
	}
	return l.ping(ctx)
}

// ping asks for the plugin's health.
func (l *launch) ping(ctx context.Context) error {
	reply, err := l.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	if err != nil {
		return err
	}
	if got := reply.GetStatus(); got != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("its health is %v", got)
	}
	return nil
}

// stop ends the plugin, after grace by force, and waits until nothing of it is
// left.
func (l *launch) stop(grace time.Duration, dir *runDir) {
	timer := l.proc.stopWithin(grace)
	defer timer.Stop()
	l.goclient.Kill()
	l.conns.close()
	if l.proc.ID() != "" {
		<-l.proc.done
	}
	dir.clear()
}

// deathError says how a plugin that was up came to its end.
func (l *launch) deathError() error {
	_, _, words := l.proc.exit()
	return fmt.Errorf("backend %s %s%s", l.path, words, l.tail.words())
}

// diagnose turns a failed start into what the user needs to know. late means
// that the plugin's time was up.
func (l *launch) diagnose(err error, late bool, o Options) error {
	_, _, words := l.proc.exit()
	first := l.proc.firstLine()
	version, shaken := isHandshake(first)
	switch {
	case shaken && !supported(version):
		return fmt.Errorf("%w: backend %s speaks version %s of the contract, this modeld versions %d to %d: install the %s%s that belongs to this modeld",
			ErrVersion, l.path, version, transport.MinProtocol, transport.ProtocolVersion, plugin.BinaryPrefix, o.Backend)
	case first != "" && !shaken:
		return fmt.Errorf("%w: %s began with %.80q instead of a handshake: put a backend built with modeld's core/plugin there%s",
			ErrNotPlugin, l.path, first, l.tail.words())
	case l.proc.killReason() == "":
		return fmt.Errorf("%w: backend %s %s before it was ready%s", ErrStart, l.path, words, l.tail.words())
	case late && !shaken:
		return fmt.Errorf("%w: backend %s sent no handshake within %v: check that it is a modeld backend, or give it more time with plugins.start_timeout%s",
			ErrStart, l.path, o.StartTimeout, l.tail.words())
	case late:
		return fmt.Errorf("%w: backend %s did not answer within %v of its start%s", ErrStart, l.path, o.StartTimeout, l.tail.words())
	}
	return fmt.Errorf("%w: backend %s: %w%s", ErrStart, l.path, err, l.tail.words())
}

// compute is the host's side of go-plugin's one plugin.
type compute struct {
	goplugin.NetRPCUnsupportedPlugin
	launch  *launch
	backend string
}

func (c *compute) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("a host serves nothing")
}

func (c *compute) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, cc *grpc.ClientConn) (any, error) {
	l := c.launch
	l.client = wire.NewClientConn(&conn{cc: cc, backend: c.backend, proc: l.proc}, "")
	l.health = grpc_health_v1.NewHealthClient(cc)
	return l.client, nil
}

// connections are those that go-plugin dials. It forgets one when it fails
// between dialing and its first stream, so they are closed here.
type connections struct {
	mu    sync.Mutex
	conns map[*grpc.ClientConn]bool
}

func (c *connections) intercept(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.mu.Lock()
	if c.conns == nil {
		c.conns = map[*grpc.ClientConn]bool{}
	}
	c.conns[cc] = true
	c.mu.Unlock()
	return streamer(ctx, desc, cc, method, opts...)
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cc := range c.conns {
		_ = cc.Close() // most are closed already
	}
}
