package cli

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"roseau/internal/svc/pool"
)

func newPoolCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "pool", Short: "Pools: sets of disks that hold volumes"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List pools", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var ps []pool.Info
			return a.get(cmd, "/v1/pools", &ps, func() *table { return poolTable(ps) })
		}},
		&cobra.Command{Use: "show POOL", Short: "Show a pool and its disks", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var p pool.Info
			return a.get(cmd, "/v1/pools/"+url.PathEscape(args[0]), &p, func() *table { return poolSheet(&p) })
		}},
		newPoolCreateCmd(a),
		newPoolScrubCmd(a),
		&cobra.Command{Use: "delete POOL", Short: "Delete an empty pool", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/v1/pools/"+url.PathEscape(args[0]), "pool "+args[0])
		}},
	)
	return cmd
}

func newPoolCreateCmd(a *app) *cobra.Command {
	var req pool.CreateRequest
	cmd := &cobra.Command{Use: "create NAME", Short: "Create a pool of claimed disks", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		req.Name = args[0]
		return a.change(cmd, http.MethodPost, "/v1/pools", req, nil, nil)
	}}
	cmd.Flags().IntVar(&req.Copies, "copies", 3, "copies of every block, on as many nodes: 1 to 3")
	cmd.Flags().IntVar(&req.MinISR, "min-isr", 1, "copies below which writing stops: 1 or 2")
	cmd.Flags().StringSliceVar(&req.Disks, "disk", nil, "names of claimed disks (default: all that are in no pool)")
	return cmd
}

func poolTable(ps []pool.Info) *table {
	t := newTable("NAME", "COPIES", "DISKS", "SIZE", "USED", "PROMISED", "VOLUMES")
	for _, p := range ps {
		t.row(p.Name, p.Spec.Copies, p.Status.Disks, p.Status.Size, p.Status.Used, p.Status.Promised, p.Volumes)
	}
	return t
}

func poolSheet(p *pool.Info) *table {
	t := newSheet().row("name", p.Name).row("id", p.ID).row("copies", p.Spec.Copies).row("size", p.Status.Size).row("used", p.Status.Used).
		row("promised", p.Status.Promised).row("kept for rebuilds", fmt.Sprintf("%s raw", p.Reserve)).row("volumes", p.Volumes).row("disks", len(p.Members))
	if s := p.Scrub; s != nil {
		t.row("scrub", scrubLine(s))
	}
	for _, m := range p.Members {
		t.row("  "+m.Name, fmt.Sprintf("%s  %s  %s of %s", m.Node, m.State, m.Used, m.Data))
	}
	return t
}
