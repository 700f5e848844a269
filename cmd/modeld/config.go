package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
)

func newConfig(src *sources) *cobra.Command {
	var defaults bool
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show the configuration in force and where each value comes from",
		Example: "  modeld config\n  modeld config --defaults > config.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if defaults {
				_, err := cmd.OutOrStdout().Write(config.Defaults)
				return err
			}
			cfg, err := src.load(cmd.Flags())
			if err != nil {
				return err
			}
			return cfg.Print(cmd.OutOrStdout())
		},
	}
	src.addServe(cmd)
	cmd.Flags().BoolVar(&defaults, "defaults", false, "print the commented file of all keys with their defaults")
	return cmd
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "modeld %s, protocol %d, %s %s/%s\n",
				version, transport.ProtocolVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
