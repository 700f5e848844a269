package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"modeld/core/transport"
)

func newDescribe(src *sources) *cobra.Command {
	var asJSON bool
	var model string
	cmd := &cobra.Command{
		Use:     "describe",
		Short:   "Show facts about the model and the machine it runs on",
		Example: "  modeld describe\n  modeld describe --name small --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := src.load(cmd.Flags())
			if err != nil {
				return err
			}
			conn, err := dial(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			info, err := conn.Describe(cmd.Context(), transport.OpenSessionRequest{ModelName: model})
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(info)
			}
			return printFacts(cmd.OutOrStdout(), info)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&model, "name", "", "name of a configured model (default: the one that is served)")
	return cmd
}

// printFacts prints what is known, one fact a line.
func printFacts(w io.Writer, info transport.ModelInfo) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	v := reflect.ValueOf(info)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if name == "devices" || v.Field(i).IsZero() {
			continue
		}
		if _, err := fmt.Fprintf(tw, "%s\t%v\n", name, v.Field(i).Interface()); err != nil {
			return err
		}
	}
	for _, d := range info.Devices {
		if _, err := fmt.Fprintf(tw, "device %d\t%s (%s) %s, %d of %d bytes free\n",
			d.Index, d.Name, d.Type, d.Description, d.MemoryFree, d.MemoryTotal); err != nil {
			return err
		}
	}
	return tw.Flush()
}
