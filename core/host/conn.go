package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/core/transport"
)

// lostWait is how long a broken connection waits for the news that the plugin
// is dead; both come at the same moment, in either order.
const lostWait = 500 * time.Millisecond

// conn is the connection to one launch of a plugin. Errors that come of the
// plugin's death leave it as session_fatal, so that the wire's client turns
// them into ErrSessionFatal; calls after the death fail so at once.
type conn struct {
	cc      grpc.ClientConnInterface
	backend string
	proc    *process
}

func (c *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	var err error
	if c.proc.gone() {
		err = c.fatal()
	} else {
		err = c.translate(ctx, c.cc.Invoke(ctx, method, args, reply, opts...))
	}
	if err != nil && c.proc.gone() && strings.HasSuffix(method, "/CloseSession") {
		return nil // it ended with its process
	}
	return err
}

func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if c.proc.gone() {
		return nil, c.fatal()
	}
	s, err := c.cc.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, c.translate(ctx, err)
	}
	return &stream{ClientStream: s, conn: c, ctx: ctx}, nil
}

// translate tells the death of the plugin from what the plugin answered. The
// wire itself never answers Unavailable.
func (c *conn) translate(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil {
		return err
	}
	if status.Code(err) != codes.Unavailable {
		if c.proc.gone() && status.Code(err) != codes.Aborted {
			return c.fatal()
		}
		return err
	}
	if !c.proc.exitsWithin(lostWait) && !c.proc.stopping() {
		// Without its connection it has lost its sessions: start afresh.
		c.proc.kill(reasonLost)
	}
	return c.fatal()
}

func (c *conn) fatal() error {
	words := "is being stopped"
	if c.proc.gone() {
		_, _, words = c.proc.exit()
	}
	return status.Error(codes.Aborted, fmt.Sprintf("session_fatal: %v: the backend process %s %s: open a new session", transport.ErrSessionFatal, c.backend, words))
}

// stream translates the errors of a stream as conn does those of a call.
type stream struct {
	grpc.ClientStream
	conn *conn
	// ctx is the caller's. The stream's own ends with the stream and so says
	// nothing about why it ended.
	ctx context.Context
}

func (s *stream) RecvMsg(m any) error {
	return s.conn.translate(s.ctx, s.ClientStream.RecvMsg(m))
}

func (s *stream) SendMsg(m any) error {
	return s.conn.translate(s.ctx, s.ClientStream.SendMsg(m))
}
