package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	wire "modeld/core/grpc"
	"modeld/core/transport"
	"modeld/test/modeldproc"
)

const (
	bareServerArg = "-bare-stream-server"
	wireChunks    = 20000
)

// wire compares the chunks that both hops carry, from a backend that computes
// nothing, with a bare gRPC stream of one hop with the same codec and body.
func (b *bench) wire(ctx context.Context) error {
	d, err := modeldproc.Start(ctx, b.bin, "--backend", "none", "--config", "bench/echo.yaml")
	if err != nil {
		return err
	}
	defer os.RemoveAll(d.StateDir)
	err = b.wireOn(ctx, d)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return errors.Join(err, d.Stop(stop))
}

func (b *bench) wireOn(ctx context.Context, d *modeldproc.Daemon) error {
	if err := b.idle("daemon, resident and idle, none", d.PID()); err != nil {
		return err
	}
	bare, stop, err := startBareStream(ctx)
	if err != nil {
		return err
	}
	defer stop()
	c, err := d.Client(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	sess, err := c.OpenSession(ctx, transport.OpenSessionRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = sess.Close() }()

	speed, err := measure(b.rounds, func() (float64, error) {
		g, err := generate(ctx, sess, "a prompt", wireChunks)
		if err == nil && g.tokens != wireChunks {
			err = fmt.Errorf("%d of %d tokens came", g.tokens, wireChunks)
		}
		return g.tokensPerSecond(), err
	}, func() (float64, error) { return drainBareStream(ctx, bare) })
	if err != nil {
		return err
	}
	r := speed.result("chunks through both hops", "chunks/s", "")
	r.Note = "bare: one hop over a Unix socket, the same codec, no checks"
	b.add(r)

	var first []float64
	for range 50 * b.rounds {
		g, err := generate(ctx, sess, "a prompt", 1)
		if err != nil {
			return err
		}
		first = append(first, ms(g.first))
	}
	b.add(result{Name: "time to first chunk through both hops", Unit: "ms", Modeld: median(first), Note: "prefix and decode calls"})
	return nil
}

// chunkBody is a decode chunk's body.
type chunkBody struct {
	Text   string `json:"text,omitempty"`
	Tokens int    `json:"tokens,omitempty"`
}

var bareStream = grpc.ServiceDesc{
	ServiceName: "bench.Bare",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "Stream",
		ServerStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			var n int
			if err := s.RecvMsg(&n); err != nil {
				return err
			}
			for range n {
				if err := s.SendMsg(&chunkBody{Text: "word ", Tokens: 1}); err != nil {
					return err
				}
			}
			return nil
		},
	}},
}

// serveBareStream serves until standard input ends.
func serveBareStream(socket string) error {
	lis, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(wire.GRPCOptions()...)
	s.RegisterService(&bareStream, nil)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		s.Stop()
	}()
	fmt.Println("serving")
	return s.Serve(lis)
}

// startBareStream starts the bare server as a process of its own, as modeld's
// are, and dials it.
func startBareStream(ctx context.Context) (*grpc.ClientConn, func(), error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(dir, "bare.sock")
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, bareServerArg, socket)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		_ = stdin.Close()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		stop()
		return nil, nil, fmt.Errorf("the bare server did not start: %w", err)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		stop()
		return nil, nil, err
	}
	return conn, func() { _ = conn.Close(); stop() }, nil
}

func drainBareStream(ctx context.Context, conn *grpc.ClientConn) (float64, error) {
	stream, err := conn.NewStream(ctx, &bareStream.Streams[0], "/bench.Bare/Stream", grpc.CallContentSubtype(wire.CodecName))
	if err != nil {
		return 0, err
	}
	n := wireChunks
	if err := errors.Join(stream.SendMsg(&n), stream.CloseSend()); err != nil {
		return 0, err
	}
	var start time.Time
	var got int
	for {
		var chunk chunkBody
		err := stream.RecvMsg(&chunk)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if got++; got == 1 {
			start = time.Now()
		}
	}
	if got != n {
		return 0, fmt.Errorf("%d of %d chunks came", got, n)
	}
	return float64(got-1) / time.Since(start).Seconds(), nil
}
