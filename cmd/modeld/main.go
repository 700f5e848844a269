// Command modeld turns a machine into a model server: it owns a slot by a lease
// over NATS, runs its backend as a plugin, and serves it over a fenced gRPC.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, notes io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(notes)
	err := root.ExecuteContext(ctx)
	if err != nil {
		_, _ = fmt.Fprintln(notes, "modeld:", oneLine(err))
	}
	code, _ := outcome(err)
	return code
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
the slot or the owner does not answer, 4 the model or its owner refused (context
too small, model not loadable, ownership moved), 130 interrupted, 143 terminated
by a second SIGTERM.`,
		Example: `  modeld serve --backend llama --model ./model.gguf
  modeld chat --prompt "What is a lease?"
  modeld status`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,

		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	src.addCommon(root.PersistentFlags())
	src.addServe(root)
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
