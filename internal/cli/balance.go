package cli

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	core "roseau/internal/core/balance"
	"roseau/internal/svc/balance"
)

func newBalanceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "balance", Short: "Loads of the nodes, and machines that should move"}
	run := &cobra.Command{Use: "run", Short: "Make the moves that are proposed, now, whatever the mode", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return a.change(cmd, http.MethodPost, "/v1/balance/run", nil, nil, nil)
	}}
	a.dryRunFlag(run)
	cmd.AddCommand(
		&cobra.Command{Use: "show", Short: "Show the loads, broken rules and proposed moves with their gain", Args: cobra.NoArgs,
			Long: "A node's load is the larger of the share of its memory that is promised to machines and of its CPU pressure, in points of 100; the imbalance is\n" +
				"the spread of the loads. A move is proposed if the imbalance loses 5 points more than the move costs, or if it mends a rule.",
			RunE: func(cmd *cobra.Command, _ []string) error {
				r := new(balance.Report)
				return a.get(cmd, "/v1/balance", r, func() *table { return balanceTable(r) })
			}},
		&cobra.Command{Use: "set off|advise|on", Short: "Say what the balancer may do by itself", Args: cobra.ExactArgs(1),
			Long: "off: nothing. advise: an event names what should move. on: it moves machines, each when the same move has stood for a minute, and leaves a\n" +
				"machine that moved where it is for half an hour.",
			RunE: func(cmd *cobra.Command, args []string) error {
				s := balance.Settings{Mode: core.Mode(args[0])}
				return a.change(cmd, http.MethodPatch, "/v1/balance", s, new(balance.Settings), func() string { return "balance is " + args[0] })
			}},
		run,
	)
	return cmd
}

func balanceTable(r *balance.Report) *table {
	t := newTable("NODE", "LOAD", "PROMISED", "MEMORY", "CPU PRESSURE", "MACHINES", "OUT BECAUSE")
	for _, n := range r.Nodes {
		pressure := "?"
		if n.Pressure >= 0 {
			pressure = fmt.Sprintf("%d %%", n.Pressure)
		}
		t.row(n.Name, fmt.Sprintf("%.0f", n.Load), n.Promised, n.Memory, pressure, n.Machines, n.Out)
	}
	t.line("")
	t.line("mode %s, imbalance %.0f", r.Mode, r.Imbalance)
	if model := r.CPUModel; model != "" {
		t.line("common CPU model %s: %s", model, r.CPUWhy)
	} else {
		t.line("common CPU model: the accelerator's own: %s", r.CPUWhy)
	}
	for _, v := range r.Broken {
		t.line("rule %s does not hold: %s", v.Rule, v.Why)
	}
	for _, mv := range r.Moves {
		t.line("%s %s -> %s: %s", mv.Name, mv.From, mv.To, mv.Why)
	}
	if len(r.Moves) == 0 {
		t.line("nothing to gain")
	}
	return t
}
