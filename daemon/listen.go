package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const unixPrefix = "unix:"

// listen opens an endpoint, "HOST:PORT" or "unix:PATH", and returns it as
// clients dial it: with the port that was chosen for port 0.
func listen(ctx context.Context, endpoint string) (net.Listener, string, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(endpoint, unixPrefix)
	if !isUnix {
		lis, err := lc.Listen(ctx, "tcp", endpoint)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, "", fmt.Errorf("%s is in use by another program; choose another address with --listen: %w", endpoint, err)
		}
		if err != nil {
			return nil, "", fmt.Errorf("listen on %s: %w", endpoint, err)
		}
		return lis, lis.Addr().String(), nil
	}
	if err := removeDeadSocket(ctx, path); err != nil {
		return nil, "", err
	}
	lis, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, "", fmt.Errorf("listen on %s: a socket's path has at most 107 bytes, this one has %d; choose another with --listen or --state-dir: %w",
			path, len(path), err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, "", errors.Join(err, lis.Close())
	}
	return lis, endpoint, nil
}

// removeDeadSocket removes the socket of a process that is gone, and nothing
// else.
func removeDeadSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen on %s: a file that is no socket is in the way; remove it or choose another path with --listen", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("listen on %s: another process serves there; stop it or choose another path with --listen", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen on %s: remove the old socket: %w", path, err)
	}
	return nil
}

// gate hands the connections of one listener to one server at a time, so that
// the endpoint stays the same from term to term: a connection made while
// servers change waits for the next one.
type gate struct {
	lis    net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

func newGate(lis net.Listener) *gate {
	g := &gate{lis: lis, conns: make(chan net.Conn), closed: make(chan struct{})}
	g.done.Go(g.accept)
	return g
}

func (g *gate) accept() {
	for {
		conn, err := g.lis.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: it may pass
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-g.closed:
				return
			}
		}
		select {
		case g.conns <- conn:
		case <-g.closed:
			_ = conn.Close()
			return
		}
	}
}

// Close closes the listener and waits for the accepting goroutine.
func (g *gate) Close() error {
	var err error
	g.once.Do(func() {
		close(g.closed)
		err = g.lis.Close()
	})
	g.done.Wait()
	return err
}

// open returns a listener for one server. Closing it leaves the gate as it is.
func (g *gate) open() net.Listener {
	return &gateListener{gate: g, closed: make(chan struct{})}
}

type gateListener struct {
	gate   *gate
	closed chan struct{}
	once   sync.Once
}

func (l *gateListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.gate.conns:
		return conn, nil
	case <-l.closed:
	case <-l.gate.closed:
	}
	return nil, net.ErrClosed
}

func (l *gateListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *gateListener) Addr() net.Addr { return l.gate.lis.Addr() }
