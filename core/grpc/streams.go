package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"modeld/core/transport"
)

// decode streams a generation. An error before it begins is the call's status;
// one in its midst is the last chunk.
func (s *Server) decode(stream grpc.ServerStream) error {
	var b decodeBody
	if err := stream.RecvMsg(&b); err != nil {
		return fmt.Errorf("the request of Decode: %w", err)
	}
	sess, err := s.find(stream.Context(), b.Handle)
	if err != nil {
		return err
	}
	op, err := sess.begin(stream.Context())
	if err != nil {
		return err
	}
	defer op.end()
	ch, err := sess.Decode(op.ctx, b.Config)
	if err != nil {
		return because(sess.life, err)
	}
	defer func() { // before op.end: the session is free when its stream has ended
		op.stop()
		for range ch { // to its end
		}
	}()
	// The client learns that its call was accepted before there is a token.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	last := because(sess.life, s.forward(op.ctx, stream, ch))
	if last == nil {
		return nil
	}
	op.stop() // a next call waits for this one instead of being refused
	var out chunkBody
	out.set(&transport.StreamChunk{Error: last})
	return stream.SendMsg(&out)
}

// forward sends chunks until the generation has ended well, and otherwise
// returns the error that the last chunk is to carry.
func (s *Server) forward(ctx context.Context, stream grpc.ServerStream, ch <-chan transport.StreamChunk) error {
	var out chunkBody
	finished := false
	for {
		select {
		case chunk, more := <-ch:
			switch {
			case !more && (finished || ctx.Err() == nil):
				return nil
			case !more:
				return context.Cause(ctx)
			case chunk.Error != nil:
				return chunk.Error
			}
			if err := s.check(); err != nil {
				return err
			}
			out.set(&chunk)
			if err := stream.SendMsg(&out); err != nil {
				return err
			}
			finished = chunk.FinishReason != ""
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pushModel receives a model: its manifest in the first frame, data in any.
func (s *Server) pushModel(stream grpc.ServerStream) error {
	node, err := s.node()
	if err != nil {
		return err
	}
	var first pushBody
	if err := stream.RecvMsg(&first); err != nil {
		return fmt.Errorf("the first frame of PushModel: %w", err)
	}
	if first.Manifest == nil {
		return errors.New("the first frame of PushModel has no manifest")
	}
	ctx, release := join(stream.Context(), s.life)
	defer release()
	res, err := node.ReceiveModel(ctx, *first.Manifest, &pushReader{s: s, stream: stream, rest: first.Data})
	if err != nil {
		return because(s.life, err)
	}
	if err := s.check(); err != nil {
		return err
	}
	return stream.SendMsg(&pushReply{AlreadyPresent: res.AlreadyPresent, BytesWritten: res.BytesWritten})
}

// pushReader reads the data of a push. Its end is the client's orderly one; a
// push that breaks off gives an error.
type pushReader struct {
	s      *Server
	stream grpc.ServerStream
	rest   []byte
}

func (r *pushReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.s.check(); err != nil {
			return 0, err
		}
		var frame pushBody
		switch err := r.stream.RecvMsg(&frame); {
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("the push broke off: %w", fromStatus(err))
		}
		r.rest = frame.Data
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
