package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/sim/hasim"
)

// newSimHACmd runs the HA manager and the scheduler in simulated clusters.
func newSimHACmd() *cobra.Command {
	var o hasim.Options
	var first, count uint64
	var losses int
	var trace, report bool
	cmd := &cobra.Command{Use: "ha", Short: "The HA manager in simulated clusters: random faults, every decision checked", Args: cobra.NoArgs,
		Long: "Small random worlds, one a seed: no machine may be run twice, touched when only the control plane suffers (every fourth seed), started before what it\n" +
			"waits for or against a rule, and all run again when the faults are over. With --report one large world, and the time that decisions take.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if trace {
				o.Trace = func(line string) { fmt.Fprintln(out, line) }
			}
			if report {
				return hasim.Report(cmd.Context(), out, o, losses)
			}
			if cmd.Flags().Changed("seed") {
				o.ControlPlaneOnly = o.ControlPlaneOnly || o.Seed%4 == 0
				if r := hasim.Run(cmd.Context(), o); r.Err != nil {
					return errs.New(errs.Corrupt, "seed %d (%d nodes, %d machines): %w", r.Seed, r.Nodes, r.VMs, r.Err)
				}
				fmt.Fprintf(out, "seed %d passed\n", o.Seed)
				return nil
			}
			began := time.Now()
			var starts, cuts, moves int
			if r := hasim.Batch(cmd.Context(), first, count, func(r *hasim.Result) { starts, cuts, moves = starts+r.Starts, cuts+r.Cuts, moves+r.Moves }); r != nil {
				return errs.New(errs.Corrupt, "seed %d (%d nodes, %d machines): %w", r.Seed, r.Nodes, r.VMs, r.Err).WithHint("repeat it with: roseau sim ha --seed %d --trace", r.Seed)
			}
			fmt.Fprintf(out, "%d seeds passed in %s: %d nodes cut, %d starts, %d migrations\n", count, time.Since(began).Round(time.Second), cuts, starts, moves)
			return context.Cause(cmd.Context())
		}}
	f := cmd.Flags()
	f.Uint64Var(&o.Seed, "seed", 1, "run this seed alone; with --report: its seed")
	f.Uint64Var(&first, "first", 1, "first seed")
	f.Uint64Var(&count, "seeds", 200, "how many seeds")
	f.IntVar(&o.Nodes, "nodes", 0, "nodes (0: drawn)")
	f.IntVar(&o.VMs, "vms", 0, "machines (0: drawn)")
	f.DurationVar(&o.Time, "time", 3*time.Minute, "virtual time of faults")
	f.BoolVar(&o.ControlPlaneOnly, "control-plane-only", false, "with --seed: nodes and guards do not fail")
	f.BoolVar(&trace, "trace", false, "print what happens")
	f.BoolVar(&report, "report", false, "one world with faults, then losses of a node in a quiet one; prints the time of decisions")
	f.IntVar(&losses, "losses", 10, "with --report: how many losses")
	return cmd
}
