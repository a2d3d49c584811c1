package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/version"
	"roseau/internal/sim"
)

// newSimCmd runs the simulator: for those who build Roseau, and for those who
// want to see for themselves before they trust it.
func newSimCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "sim", Short: "The mirror engine in a simulated cluster: random faults, every read checked"}
	cmd.AddCommand(newSimRunCmd(), newSimScenarioCmd(), newSimMutantsCmd(), newSimHACmd())
	return cmd
}

func newSimRunCmd() *cobra.Command {
	var first, seed uint64
	var count, ops int
	var trace bool
	var state string
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
		s, err := sim.RunBatch(cmd.Context(), sim.Batch{First: first, Count: count, Ops: ops, Progress: out, State: state, Version: version.String()})
		if err != nil {
			return err
		}
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
	f.Uint64Var(&first, "first", 1, "first seed")
	f.StringVar(&state, "state", "", "keep the progress in this file, and go on from it if it exists")
	f.IntVar(&count, "seeds", 500, "how many seeds")
	f.IntVar(&ops, "ops", 200, "guest operations a seed, at least")
	return cmd
}

func newSimScenarioCmd() *cobra.Command {
	var seed uint64
	var count int
	var trace bool
	var mutant string
	cmd := &cobra.Command{Use: "scenario [NAME]", Short: "Run an exact sequence of events with random delays; alone, list them", Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		out := cmd.OutOrStdout()
		if len(args) == 0 {
			list, err := sim.Scenarios()
			for _, s := range list {
				fmt.Fprintf(out, "%-24s %s\n", s.Name, s.About)
			}
			return err
		}
		s, err := sim.FindScenario(args[0])
		if err != nil {
			return err
		}
		var mut sim.Mutations
		if mutant != "" {
			m, err := sim.FindMutant(mutant)
			if err != nil {
				return err
			}
			m.Set(&mut)
		}
		first, last := uint64(1), uint64(count)
		if cmd.Flags().Changed("seed") {
			first, last = seed, seed
		}
		var print func(string)
		if trace {
			print = func(line string) { fmt.Fprintln(out, line) }
		}
		for n := first; n <= last; n++ {
			if r := sim.RunScenario(s, n, mut, print); r.Err != nil {
				return errs.New(errs.Corrupt, "scenario %s, seed %d: %w", s.Name, n, r.Err)
			}
		}
		fmt.Fprintf(out, "scenario %s: %d seeds passed\n", s.Name, last-first+1)
		return nil
	}}
	f := cmd.Flags()
	f.Uint64Var(&seed, "seed", 1, "run this seed alone")
	f.IntVar(&count, "seeds", 20, "how many seeds")
	f.BoolVar(&trace, "trace", false, "print what happens")
	f.StringVar(&mutant, "mutant", "", "break this rule, see `roseau sim mutants`")
	return cmd
}

func newSimMutantsCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "mutants [NAME...]", Short: "Break one rule at a time and show that the simulator sees it", RunE: func(cmd *cobra.Command, args []string) error {
		list := sim.Mutants
		if len(args) > 0 {
			list = nil
			for _, name := range args {
				m, err := sim.FindMutant(name)
				if err != nil {
					return err
				}
				list = append(list, m)
			}
		}
		var caught []sim.Caught
		alive := 0
		for _, m := range list {
			c, err := sim.RunMutant(cmd.Context(), m)
			if err != nil {
				return err
			}
			if c.Err == nil {
				alive++
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d seeds, %v\n", m.Name, c.Seeds, c.Err)
			caught = append(caught, c)
		}
		if err := sim.WriteCaught(cmd.OutOrStdout(), caught); err != nil {
			return err
		}
		if alive > 0 {
			return errs.New(errs.Corrupt, "%d of %d mutants survive: the simulator is blind there", alive, len(caught))
		}
		return nil
	}}
	return cmd
}
