// Command faulty is a plugin that misbehaves in the way that its settings name.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	wire "modeld/core/grpc"
	"modeld/core/plugin"
	"modeld/plugins/none/echo"
)

func main() {
	var settings struct {
		Mode string `json:"mode"`
	}
	if err := plugin.Settings(&settings); err != nil {
		plugin.Fail(err)
	}
	svc, err := echo.New(echo.Settings{MaxCtx: 2048})
	if err != nil {
		plugin.Fail(err)
	}
	switch settings.Mode {
	case "":
		plugin.Serve(svc)
	case "exit":
		plugin.Fail(fmt.Errorf("libexample.so is missing: run make deps"))
	case "panic":
		panic("a bug")
	case "text":
		fmt.Println("usage: faulty [options]")
		time.Sleep(time.Hour)
	case "sleep":
		fmt.Fprintln(os.Stderr, "waiting for something")
		time.Sleep(time.Hour)
	case "version":
		serveRaw(svc, 99)
	case "die after handshake":
		fmt.Println("1|1|unix|/nowhere/socket|grpc|")
		fmt.Fprintln(os.Stderr, "out of luck")
		os.Exit(7)
	case "noisy":
		go noise()
		serveRaw(svc, 1)
	case "child":
		child := exec.Command("sleep", "1000")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			plugin.Fail(err)
		}
		fmt.Fprintf(os.Stderr, "child %d\n", child.Process.Pid)
		plugin.Serve(svc)
	case "stubborn":
		plugin.Serve(stubborn{svc})
	case "polite":
		endless, err := echo.New(echo.Settings{Text: "on and on ", Loop: true, TokensPerSecond: 100})
		if err != nil {
			plugin.Fail(err)
		}
		plugin.Serve(polite{endless})
	case "environment":
		plugin.Logger().Info("environment", "env", strings.Join(os.Environ(), "\n"))
		plugin.Serve(svc)
	}
}

type stubborn struct{ *echo.Service }

func (stubborn) Close() error { select {} }

type polite struct{ *echo.Service }

// Close takes longer than a lost connection is waited for.
func (p polite) Close() error {
	time.Sleep(time.Second)
	plugin.Logger().Info("goodbye")
	return p.Service.Close()
}

// noise prints what no plugin should, straight to both descriptors.
func noise() {
	time.Sleep(300 * time.Millisecond)
	for _, fd := range []uintptr{1, 2} {
		out := os.NewFile(fd, "raw")
		fmt.Fprintln(out, strings.Repeat("x", 1<<20))
		fmt.Fprintln(out, `{"@message":5,"@level":[],"@timestamp":{}}`)
		fmt.Fprintln(out, `{"@message":"ok","@level":7,"@timestamp":1}`)
		fmt.Fprintln(out, `{"@message":"fine","@level":"warn","@timestamp":"yesterday","n":1}`)
		fmt.Fprintln(out, "\x00\xff\xfe garbage \x1b[2J")
		fmt.Fprintf(out, "noise %d ends\n", fd)
	}
}

// serveRaw serves as a third party might: with go-plugin alone.
func serveRaw(svc *echo.Service, version int) {
	compute := wire.NewServer(svc, "", "faulty")
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  plugin.Handshake(),
		VersionedPlugins: map[int]goplugin.PluginSet{version: {plugin.Name: &raw{compute: compute}}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.StatsHandler(compute))...)
		},
	})
}

type raw struct {
	goplugin.NetRPCUnsupportedPlugin
	compute *wire.Server
}

func (r *raw) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	r.compute.Register(s)
	return nil
}

func (r *raw) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}
