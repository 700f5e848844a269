package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"google.golang.org/grpc"

	"modeld/core/transport"
)

// remoteSession is a session on a server.
type remoteSession struct {
	c      *Client
	handle string
	life   context.Context // ends with Close
	end    context.CancelFunc
	close  func() error

	mu     sync.Mutex
	stream *stream // the last Decode's
}

// stream is a Decode under way.
type stream struct {
	ctx  context.Context //nolint:containedctx // it lives as long as the call
	done chan struct{}
}

// slotSession is a remoteSession whose handle has a generation.
type slotSession struct {
	*remoteSession
	generation uint64
}

// SlotGeneration returns the generation of the slot that the session is of.
func (s *slotSession) SlotGeneration() uint64 { return s.generation }

func (c *Client) newSession(handle string) transport.Session {
	s := &remoteSession{c: c, handle: handle}
	s.life, s.end = context.WithCancel(c.life)
	s.close = sync.OnceValue(s.closeOnce)
	if generation, ok := handleGeneration(c.owner, handle); ok {
		return &slotSession{s, generation}
	}
	return s
}

func (s *remoteSession) call(ctx context.Context, method string, req, reply any) error {
	if s.life.Err() != nil {
		return s.closedErr()
	}
	ctx, release := join(ctx, s.life)
	defer release()
	err := s.settle(ctx)
	if err == nil {
		err = s.c.call(ctx, method, req, reply)
	}
	if err != nil && s.life.Err() != nil {
		return s.closedErr()
	}
	return s.lost(err)
}

// settle waits for a stream that was cancelled to leave the session, so that a
// call right after the cancellation does not overlap it.
func (s *remoteSession) settle(ctx context.Context) error {
	s.mu.Lock()
	last := s.stream
	s.mu.Unlock()
	if last == nil || last.ctx.Err() == nil {
		return nil
	}
	select {
	case <-last.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *remoteSession) closedErr() error {
	return fmt.Errorf("%w: %s", transport.ErrSessionClosed, s.handle)
}

// lost turns the end of the connection into that of the session, which dies
// with it.
func (s *remoteSession) lost(err error) error {
	if err != nil && unavailable(err) {
		return fmt.Errorf("%w: the connection to its server failed: %w", transport.ErrSessionFatal, err)
	}
	return err
}

// checkText refuses what JSON would change silently.
func checkText(what, text string) error {
	if utf8.ValidString(text) {
		return nil
	}
	at := 0
	for at < len(text) {
		r, size := utf8.DecodeRuneInString(text[at:])
		if r == utf8.RuneError && size <= 1 {
			break
		}
		at += size
	}
	return fmt.Errorf("the %s is not valid UTF-8 at byte %d", what, at)
}

func (s *remoteSession) EnsurePrefix(ctx context.Context, in transport.PrefixInput) (transport.PrefixStatus, error) {
	if err := errors.Join(checkText("prefix", in.Text), checkText("tools", in.Tools)); err != nil {
		return transport.PrefixStatus{}, err
	}
	var st transport.PrefixStatus
	err := s.call(ctx, "EnsurePrefix", &prefixBody{s.handle, in}, &st)
	return st, err
}

func (s *remoteSession) PrefillSuffix(ctx context.Context, in transport.SuffixInput) (transport.SuffixStatus, error) {
	if err := checkText("suffix", in.Text); err != nil {
		return transport.SuffixStatus{}, err
	}
	var st transport.SuffixStatus
	err := s.call(ctx, "PrefillSuffix", &suffixBody{s.handle, in}, &st)
	return st, err
}

// ExplainContext asks the server within the client's ExplainTimeout; a fault is
// the report's FatalError.
func (s *remoteSession) ExplainContext() transport.ContextReport {
	ctx, cancel := context.WithTimeout(context.Background(), s.c.opts.ExplainTimeout)
	defer cancel()
	var report transport.ContextReport
	if err := s.call(ctx, "ExplainContext", &handleBody{s.handle}, &report); err != nil {
		return transport.ContextReport{FatalError: err.Error(), Closed: errors.Is(err, transport.ErrSessionClosed)}
	}
	return report
}

func (s *remoteSession) Snapshot(ctx context.Context) (transport.SessionSnapshot, error) {
	var snap transport.SessionSnapshot
	err := s.call(ctx, "Snapshot", &handleBody{s.handle}, &snap)
	return snap, err
}

func (s *remoteSession) Restore(ctx context.Context, snap transport.SessionSnapshot) error {
	return s.call(ctx, "Restore", &restoreBody{s.handle, snap}, &empty{})
}

// Close ends what runs and closes the session on the server. One that is gone
// there, with its connection for example, is closed.
func (s *remoteSession) Close() error { return s.close() }

func (s *remoteSession) closeOnce() error {
	s.end()
	ctx, cancel := context.WithTimeout(context.Background(), s.c.opts.CloseTimeout)
	defer cancel()
	err := s.c.call(ctx, "CloseSession", &closeBody{Handle: s.handle}, &empty{})
	if unavailable(err) || s.c.life.Err() != nil || errors.Is(err, transport.ErrStaleFence) ||
		errors.Is(err, transport.ErrSessionClosed) || errors.Is(err, transport.ErrNotOwner) {
		return nil
	}
	return err
}

// chunkBuffer lets a stream run ahead of its reader a little.
const chunkBuffer = 16

func (s *remoteSession) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	if s.life.Err() != nil {
		return nil, s.closedErr()
	}
	callCtx, release := join(ctx, s.life)
	messages, err := s.startDecode(callCtx, cfg)
	if err != nil {
		release()
		if s.life.Err() != nil {
			return nil, s.closedErr()
		}
		return nil, s.lost(err)
	}
	out := make(chan transport.StreamChunk, chunkBuffer)
	running := &stream{ctx: callCtx, done: make(chan struct{})}
	s.mu.Lock()
	s.stream = running
	s.mu.Unlock()
	err = s.c.start(func() {
		defer close(out)
		defer close(running.done)
		defer release()
		if err := receive(callCtx, messages, out); err != nil {
			if s.life.Err() != nil {
				err = s.closedErr()
			}
			lastChunk(out, transport.StreamChunk{Error: s.lost(err)})
		}
	})
	if err != nil {
		release()
		close(running.done)
		return nil, err
	}
	return out, nil
}

// startDecode returns when the server has accepted the call.
func (s *remoteSession) startDecode(ctx context.Context, cfg transport.DecodeConfig) (grpc.ClientStream, error) {
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	stream, err := s.c.cc.NewStream(s.c.fenced(ctx), &serviceDesc.Streams[0], "/"+serviceName+"/Decode", callOptions...)
	if err != nil {
		return nil, fromStatus(err)
	}
	// EOF means that the server has ended the call; RecvMsg says why.
	if err := stream.SendMsg(&decodeBody{s.handle, cfg}); err != nil && !errors.Is(err, io.EOF) {
		return nil, fromStatus(err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, fromStatus(err)
	}
	header, err := stream.Header()
	if err == nil && header == nil {
		if err = stream.RecvMsg(&chunkBody{}); errors.Is(err, io.EOF) {
			err = nil // a generation of nothing
		}
	}
	return stream, fromStatus(err)
}

// receive passes chunks on until the stream ends, or returns why it did not end
// well. The call is over when it returns.
func receive(ctx context.Context, messages grpc.ClientStream, out chan<- transport.StreamChunk) error {
	var failed error
	ended := false // the last chunk has come, and only the end follows
	var b chunkBody
	for {
		b = chunkBody{}
		err := messages.RecvMsg(&b)
		switch {
		case ended || errors.Is(err, io.EOF):
			return failed
		case err != nil:
			return fromStatus(err)
		}
		chunk := b.chunk()
		if chunk.Error != nil {
			failed, ended = chunk.Error, true
			continue
		}
		ended = chunk.FinishReason != ""
		select {
		case out <- chunk:
		case <-ctx.Done():
			for messages.RecvMsg(&b) == nil { // until the call is over
			}
			return ctx.Err()
		}
	}
}

// lastChunk delivers an error without waiting for a reader who may have left:
// where the buffer is full it takes the place of what came before.
func lastChunk(out chan transport.StreamChunk, chunk transport.StreamChunk) {
	for {
		select {
		case out <- chunk:
			return
		default:
		}
		select {
		case <-out:
		default:
		}
	}
}
