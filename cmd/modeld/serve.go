package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"modeld/cmd/modeld/internal/config"
	"modeld/core/host"
	"modeld/core/slot"
	"modeld/daemon"
)

func newServe(src *sources) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Own the slot and serve its model",
		Long: `Serve acquires the slot's lease, starts the backend, loads the model, and serves.
While another instance owns the slot it stands by and takes over when the lease
is free. SIGTERM and SIGINT let running work end (drain_timeout) and release the
lease; a second one ends modeld at once.`,
		Example: `  modeld serve --backend llama --model ./model.gguf
  modeld serve --config /etc/modeld/config.yaml --listen 127.0.0.1:7070
  MODELD_NATS__URL=nats://127.0.0.1:4222 modeld serve --slot chat`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, src) },
	}
	src.addServe(cmd)
	return cmd
}

func serve(cmd *cobra.Command, src *sources) error {
	cfg, err := src.load(cmd.Flags())
	if err != nil {
		return err
	}
	opts, err := daemonOptions(cfg)
	if err != nil {
		return err
	}
	leaveCoresToBackend()
	ctx, stop := untilSignalled(cmd.Context())
	defer stop()
	err = daemon.Run(ctx, opts)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // told to stop while starting
	}
	return err
}

// leaveCoresToBackend keeps the Go scheduler's spinning threads off the cores on
// which the backend computes: passing a token on takes the daemon a third less
// CPU on one core than on two. GOMAXPROCS in the environment overrides it.
func leaveCoresToBackend() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/4))
	}
}

// untilSignalled ends with the first SIGINT or SIGTERM; the second one ends the
// process.
func untilSignalled(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel()
		case <-done:
			return
		}
		select {
		case s := <-signals:
			code := 1
			if n, ok := s.(syscall.Signal); ok {
				code = 128 + int(n)
			}
			os.Exit(code) // the plugin notices and ends by itself
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

func daemonOptions(c *config.Config) (daemon.Options, error) {
	models, standard, err := c.DefaultModel()
	if err != nil {
		return daemon.Options{}, err
	}
	modelless := c.Backend == "none"
	if len(models) == 0 && !modelless && !c.AllowPaths {
		return daemon.Options{}, usageError{errors.New("there is no model to serve: pass --model PATH, or list one under models in the configuration")}
	}
	opts := daemon.Options{
		Slot:     c.Slot,
		StateDir: c.StateDir,
		Listen:   c.Listen,
		Version:  version,
		Plugin: host.Options{
			Backend:      c.Backend,
			Dir:          c.Plugins.Dir,
			SHA256:       c.Plugins.SHA256[c.Backend],
			Settings:     c.PluginSettings(),
			Env:          c.Plugins.Env,
			StartTimeout: c.Plugins.StartTimeout,
		},
		Default:    standard,
		AllowPaths: c.AllowPaths,
		Modelless:  modelless,
		NATS: daemon.NATS{
			URL: c.NATS.URL, Options: natsOptions(c), ConnectTimeout: c.NATS.ConnectTimeout,
			Port: c.NATS.Embedded.Port, MaxStore: int64(c.NATS.Embedded.MaxStore),
		},
		Lease: daemon.Lease{
			Bucket: c.Lease.Bucket, Wait: c.Lease.Wait, Deadline: c.Lease.Deadline, Renew: c.Lease.Renew, Try: c.Lease.Try,
		},
		MaxSessions:        c.Limits.Sessions,
		MaxSessionsPerConn: c.Limits.SessionsPerConnection,
		DrainTimeout:       c.DrainTimeout,
		Logger:             newLogger(c),
	}
	for _, m := range models {
		opts.Models = append(opts.Models, slot.Model{
			Name: m.Name, Type: m.Type, Digest: m.Digest, Path: m.Path, Config: m.Config.Transport(),
		})
	}
	return opts, nil
}
