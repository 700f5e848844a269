// Command printer is a plugin whose native library prints on standard output:
// before and after the handshake.
package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"modeld/core/plugin"
	"modeld/core/transport"
)

func main() {
	if err := plugin.GuardStdout(); err != nil {
		plugin.Fail(err)
	}
	print := func(text string) { _, _ = syscall.Write(1, []byte(text)) }
	print("loading a library\n")
	go func() {
		time.Sleep(200 * time.Millisecond)
		print("computing\n")
	}()
	plugin.Serve(service{hangs: os.Getenv("HANGS") != ""})
}

type service struct{ hangs bool }

func (s service) Close() error {
	if s.hangs {
		select {}
	}
	return errors.New("closed, but not cleanly")
}

func (service) OpenSession(context.Context, transport.OpenSessionRequest) (transport.Session, error) {
	return nil, transport.ErrUnsupportedFeature
}

func (service) Describe(context.Context, transport.OpenSessionRequest) (transport.ModelInfo, error) {
	return transport.ModelInfo{}, transport.ErrUnsupportedFeature
}

func (service) Embed(context.Context, transport.EmbedRequest) (transport.EmbedResult, error) {
	return transport.EmbedResult{}, transport.ErrUnsupportedFeature
}
