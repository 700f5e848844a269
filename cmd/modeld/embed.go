package main

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"modeld/core/transport"
)

func newEmbed(src *sources) *cobra.Command {
	var text string
	cmd := &cobra.Command{
		Use:     "embed --text T",
		Short:   "Print a text's embedding as a JSON array",
		Example: "  modeld embed --text \"a short text\"\n  modeld embed --text - < file.txt",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := readText("text", text, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if text == "" {
				return usageError{errors.New("--text is missing or empty")}
			}
			cfg, err := src.load(cmd.Flags())
			if err != nil {
				return err
			}
			conn, err := dial(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			result, err := conn.Embed(cmd.Context(), transport.EmbedRequest{Text: text})
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result.Vector)
		},
	}
	cmd.Flags().StringVar(&text, "text", "", "the text; - reads standard input")
	return cmd
}
