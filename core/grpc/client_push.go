package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"modeld/core/transport"
)

// pushFrameBytes is how much data one frame of a push carries.
const pushFrameBytes = 1 << 20

// ReceiveModel is PushModel, under the name that it has in transport.NodeAdmin.
func (c *Client) ReceiveModel(ctx context.Context, m transport.PushManifest, r io.Reader) (transport.PushResult, error) {
	return c.PushModel(ctx, m, r)
}

// PushModel sends a model to the server's store. It reads r to its end, unless
// the server has enough before.
func (c *Client) PushModel(ctx context.Context, m transport.PushManifest, r io.Reader) (transport.PushResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a push that breaks off must not look complete
	stream, err := c.cc.NewStream(c.fenced(ctx), &serviceDesc.Streams[1], "/"+serviceName+"/PushModel", callOptions...)
	if err != nil {
		return transport.PushResult{}, fromStatus(err)
	}
	buf := make([]byte, pushFrameBytes)
	frame := &pushBody{OwnerInstanceID: c.owner, Manifest: &m}
	for {
		n, readErr := io.ReadFull(r, buf)
		frame.Data = buf[:n]
		// EOF from SendMsg is the server's early reply.
		if err := stream.SendMsg(frame); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return transport.PushResult{}, fromStatus(err)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			if err := stream.CloseSend(); err != nil {
				return transport.PushResult{}, fromStatus(err)
			}
			break
		}
		if readErr != nil {
			return transport.PushResult{}, fmt.Errorf("reading the model %s: %w", m.Name, readErr)
		}
		frame = &pushBody{}
	}
	var reply pushReply
	if err := stream.RecvMsg(&reply); err != nil {
		return transport.PushResult{}, fromStatus(err)
	}
	return transport.PushResult(reply), nil
}
