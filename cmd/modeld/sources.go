package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"modeld/client"
	"modeld/cmd/modeld/internal/config"
	"modeld/natsserver"
)

// flagKeys are the configuration's keys that flags set.
var flagKeys = map[string]string{
	"nats": "nats.url", "slot": "slot", "state-dir": "state_dir",
	"backend": "backend", "model": "model", "listen": "listen",
}

// sources collect the flags that go into the configuration.
type sources struct {
	file                   string
	nats, slot, stateDir   string
	backend, model, listen string
}

func (s *sources) addCommon(f *pflag.FlagSet) {
	f.StringVar(&s.file, "config", "", "configuration file (default ~/.config/modeld/config.yaml or /etc/modeld/config.yaml, if there)")
	f.StringVar(&s.nats, "nats", "", "URL of the NATS server (default: the embedded one of --state-dir)")
	f.StringVar(&s.slot, "slot", "", "name of the slot (default \"default\")")
	f.StringVar(&s.stateDir, "state-dir", "", "folder for what must last (default ~/.local/state/modeld)")
}

func (s *sources) addServe(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.backend, "backend", "", "backend to run: llama, openvino, none, or NAME of a binary modeld-NAME (default \"llama\")")
	f.StringVar(&s.model, "model", "", "model to serve: a configured name, or the path of a GGUF file or an IR folder")
	f.StringVar(&s.listen, "listen", "", "where clients dial: HOST:PORT on loopback or unix:PATH (default: a socket in --state-dir)")
	_ = cmd.RegisterFlagCompletionFunc("backend", // fails for a flag that is not there
		cobra.FixedCompletions([]string{"llama", "openvino", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

// anyServeFlag reports whether a flag of serve, or one that serve shares, was
// given.
func (s *sources) anyServeFlag(f *pflag.FlagSet) bool {
	given := false
	f.Visit(func(*pflag.Flag) { given = true })
	return given
}

// load reads the configuration with the flags of f on top.
func (s *sources) load(f *pflag.FlagSet) (*config.Config, error) {
	file := s.file
	if file == "" {
		file = os.Getenv("MODELD_CONFIG")
	}
	set := map[string]any{}
	f.Visit(func(flag *pflag.Flag) {
		if key, ok := flagKeys[flag.Name]; ok {
			set[key] = flag.Value.String()
		}
	})
	return config.Load(config.Sources{File: file, Environ: os.Environ(), Flags: set})
}

// newLogger logs to standard error as the configuration says.
func newLogger(c *config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Log.Level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

// natsOptions are the credentials for an outside server.
func natsOptions(c *config.Config) []nats.Option {
	switch {
	case c.NATS.Credentials != "":
		return []nats.Option{nats.UserCredentials(c.NATS.Credentials)}
	case c.NATS.User != "":
		return []nats.Option{nats.UserInfo(c.NATS.User, c.NATS.Password)}
	case c.NATS.Token != "":
		return []nats.Option{nats.Token(c.NATS.Token)}
	}
	return nil
}

// clientOptions say how to find the slot's owner.
func clientOptions(c *config.Config) (client.Options, error) {
	url := c.NATS.URL
	if url == "" {
		var err error
		if url, err = natsserver.ReadURL(c.StateDir); err != nil {
			return client.Options{}, err
		}
	}
	return client.Options{URL: url, NATS: natsOptions(c), Slot: c.Slot, Bucket: c.Lease.Bucket}, nil
}

// dial finds the slot's owner and connects to it.
func dial(ctx context.Context, c *config.Config) (*client.Client, error) {
	opts, err := clientOptions(c)
	if err != nil {
		return nil, err
	}
	conn, err := client.Open(ctx, opts)
	return conn, reached(opts, err)
}

// noOwnerError is client.ErrNoOwner in plain words.
type noOwnerError struct{ slot, bucket string }

func (e noOwnerError) Error() string {
	return fmt.Sprintf("nobody owns the slot %s (in the bucket %s)", e.slot, e.bucket)
}

func (noOwnerError) Unwrap() error { return client.ErrNoOwner }

// reached marks errors that say that somebody did not answer.
func reached(opts client.Options, err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, client.ErrNoOwner):
		return noOwnerError{opts.Slot, opts.Bucket}
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout),
		errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return fmt.Errorf("%w: %w; is the NATS server up, and are nats.url and its credentials right?", errUnreachable, err)
	default:
		return fmt.Errorf("%w: %w; modeld status shows what the lease has", errUnreachable, err)
	}
}
