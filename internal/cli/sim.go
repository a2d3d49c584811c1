package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/sim"
)

// newSimCmd runs the simulator: for those who build Roseau, and for those who
// want to see for themselves before they trust it.
func newSimCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "sim", Short: "The mirror engine in a simulated cluster: random faults, every read checked"}
	cmd.AddCommand(newSimRunCmd(), newSimMutantsCmd())
	return cmd
}

func newSimRunCmd() *cobra.Command {
	var first, seed uint64
	var count, ops int
	var trace bool
	cmd := &cobra.Command{Use: "run", Short: "Run seeds; a failing one prints the command that repeats it", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		out := cmd.OutOrStdout()
		if cmd.Flags().Changed("seed") {
			o := sim.Options{Seed: seed, Ops: ops}
			if trace {
				o.Trace = func(line string) { fmt.Fprintln(out, line) }
			}
			r := sim.Run(o)
			fmt.Fprintf(out, "seed %d: %d operations in %s of virtual time\n", r.Seed, r.Ops, r.Took)
			if r.Err != nil {
				return errs.New(errs.Corrupt, "seed %d: %w", seed, r.Err)
			}
			return nil
		}
		s := sim.RunBatch(cmd.Context(), sim.Batch{First: first, Count: count, Ops: ops, Progress: out})
		fmt.Fprintf(out, "%d seeds, %d operations in %s; how often each thing happened:\n", s.Seeds, s.Ops, s.Took.Round(1e6))
		s.WriteCounts(out)
		for _, r := range s.Failed {
			fmt.Fprintf(out, "seed %d: %v\n  repeat it with: %s\n", r.Seed, r.Err, r.Command())
		}
		if len(s.Failed) > 0 {
			return errs.New(errs.Corrupt, "%d of %d seeds failed", len(s.Failed), s.Seeds)
		}
		return context.Cause(cmd.Context())
	}}
	f := cmd.Flags()
	f.Uint64Var(&seed, "seed", 0, "run this seed alone")
	f.BoolVar(&trace, "trace", false, "with --seed: print what happens")
	f.Uint64Var(&first, "first", 1, "first seed: how an interrupted run is taken up again")
	f.IntVar(&count, "seeds", 500, "how many seeds")
	f.IntVar(&ops, "ops", 200, "guest operations a seed, at least")
	return cmd
}

func newSimMutantsCmd() *cobra.Command {
	var limit, ops int
	cmd := &cobra.Command{Use: "mutants [NAME...]", Short: "Break one rule at a time and show that the simulator sees it", RunE: func(cmd *cobra.Command, args []string) error {
		var list []sim.Caught
		alive := 0
		for _, m := range sim.Mutants {
			if len(args) > 0 && !slices.Contains(args, m.Name) {
				continue
			}
			c := sim.RunMutant(cmd.Context(), m, 1, limit, ops)
			if c.Err == nil {
				alive++
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d seeds, %v\n", m.Name, c.Seeds, c.Err)
			list = append(list, c)
		}
		if len(list) == 0 {
			return errs.New(errs.NotFound, "mutants %v: none is known by that name", args).WithHint("`roseau sim mutants` alone runs and lists all")
		}
		if err := sim.WriteCaught(cmd.OutOrStdout(), list); err != nil {
			return err
		}
		if alive > 0 {
			return errs.New(errs.Corrupt, "%d of %d mutants survive: the simulator is blind there", alive, len(list))
		}
		return nil
	}}
	cmd.Flags().IntVar(&limit, "seeds", 1000, "give up on a mutant after so many seeds")
	cmd.Flags().IntVar(&ops, "ops", 300, "guest operations a seed, at least")
	return cmd
}
