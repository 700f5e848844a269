// Command modeld turns a machine into a model server: it owns a slot by a lease
// over NATS, runs its backend as a plugin, and serves it over a fenced gRPC.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
	"modeld/natslease"
	"modeld/natsserver"
)

// version is set by the linker.
var version = "dev"

// The exit codes. They are documented in the help text and the README.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2 // flags or configuration
	exitUnreachable = 3 // no owner, or it does not answer
	exitRefused     = 4 // the owner refused: model, context, fence
	exitInterrupted = 130
)

// usageError is one of flags or configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	root := newRoot()
	err := root.ExecuteContext(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "modeld:", oneLine(err))
	}
	os.Exit(exitCode(err))
}

func newRoot() *cobra.Command {
	src := &sources{}
	root := &cobra.Command{
		Use:   "modeld",
		Short: "A dependable model server",
		Long: `modeld turns a machine into a dependable model server: it owns a slot by a lease
over NATS, runs its backend (llama.cpp, OpenVINO, or a third party's) as a
plugin, and serves it over a fenced gRPC.

With flags and no command it serves: modeld --backend openvino is
modeld serve --backend openvino.

Exit codes: 0 all well, 1 failure, 2 wrong flags or configuration, 3 nobody owns
the slot or the owner does not answer, 4 the owner refused the call, 130
interrupted.`,
		Example: `  modeld serve --backend llama --model ./model.gguf
  modeld chat --prompt "What is a lease?"
  modeld status`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	src.addCommon(root.PersistentFlags())
	src.addServe(root.Flags())
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if !src.anyServeFlag(cmd.Flags()) {
			return cmd.Help()
		}
		return serve(cmd, src)
	}
	root.AddCommand(newServe(src), newStatus(src), newChat(src), newDescribe(src), newEmbed(src), newConfig(src), newVersion())
	return root
}

// noArgs refuses arguments, which are a mistyped command as a rule.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{fmt.Errorf("unknown argument %q; %s", args[0], hint)}
}

// exitCode classifies an error.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, config.ErrInvalid):
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, natslease.ErrNoOwner), errors.Is(err, natsserver.ErrNotServing), errors.Is(err, errUnreachable),
		status.Code(err) == codes.Unavailable:
		return exitUnreachable
	}
	for _, refused := range []error{
		transport.ErrStaleFence, transport.ErrNotOwner, transport.ErrSessionClosed, transport.ErrSessionFatal,
		transport.ErrModelBusy, transport.ErrModelNotActive, transport.ErrModelSwitchRequired, transport.ErrSlotGenerationStale,
		transport.ErrBackendMismatch, transport.ErrManifestMismatch, transport.ErrDigestMismatch, transport.ErrContextOverflow,
		transport.ErrDeviceBusy, transport.ErrInsufficientMemory, transport.ErrUnsupportedFeature, transport.ErrUnsupportedModelType,
	} {
		if errors.Is(err, refused) {
			return exitRefused
		}
	}
	return exitFailure
}

// oneLine is an error as a line.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
