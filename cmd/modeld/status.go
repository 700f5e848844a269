package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"modeld/client"
	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
	"modeld/natslease"
)

// report is what status prints, as JSON.
type report struct {
	Slot   string            `json:"slot"`
	Owner  *natslease.Record `json:"owner"`
	Health *health           `json:"health,omitempty"`
	// Status is the slot's, as its owner tells it.
	Status *transport.DaemonStatus `json:"status,omitempty"`
	Error  string                  `json:"error,omitempty"`
}

type health struct {
	InstanceID string `json:"instance_id"`
	Ready      bool   `json:"ready"`
	Backend    string `json:"backend"`
}

func newStatus(src *sources) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show who owns the slot and what it serves",
		Long:    "Status asks the lease who owns the slot, and the owner how it is. Exit code 3: nobody owns it, or the owner does not answer.",
		Example: "  modeld status\n  modeld status --slot chat --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := src.load(cmd.Flags())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
			defer cancel()
			r := report{Slot: cfg.Slot}
			if err = r.ask(ctx, cfg); err != nil {
				r.Error = oneLine(err)
			}
			return errors.Join(err, r.print(cmd.OutOrStdout(), asJSON))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// ask fills in the report as far as somebody answers.
func (r *report) ask(ctx context.Context, cfg *config.Config) error {
	opts, err := clientOptions(cfg)
	if err != nil {
		return err
	}
	owner, err := client.Owner(ctx, opts)
	if err != nil {
		return reached(opts, err)
	}
	r.Owner = &owner
	conn, err := client.Open(ctx, opts)
	if err != nil {
		return reached(opts, err)
	}
	defer func() { _ = conn.Close() }()
	h, err := conn.Health(ctx)
	if err != nil {
		return reached(opts, err)
	}
	r.Health = &health{h.InstanceID, h.Ready, h.Backend}
	st, err := conn.Status(ctx)
	if err != nil {
		return err
	}
	r.Status = &st
	return nil
}

func (r *report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(tw, name+"\t"+format+"\n", args...) // Flush tells
	}
	row("slot", "%s", r.Slot)
	if o := r.Owner; o == nil {
		row("owner", "none")
	} else {
		row("owner", "%s, epoch %d", o.Instance, o.Epoch)
		row("endpoint", "%s", o.Endpoint)
		row("host", "%s, process %d, modeld %s", o.Host, o.PID, o.Version)
	}
	if h := r.Health; h != nil {
		ready := "ready"
		if !h.Ready {
			ready = "not ready"
		}
		row("backend", "%s, %s", h.Backend, ready)
	}
	if st := r.Status; st != nil {
		row("state", "%s", st.State)
		if m := st.Active; m != nil {
			row("model", "%s, %s, generation %d", m.ModelName, m.Path, m.Generation)
		}
		if st.BusyOperation != "" {
			row("busy", "%s", st.BusyOperation)
		}
		row("sessions", "%d", st.Sessions)
		if st.LastError != "" {
			row("last error", "%s", st.LastError)
		}
	}
	return tw.Flush()
}
