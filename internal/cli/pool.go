package cli

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"roseau/internal/model"
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
		newPoolSetCmd(a),
		&cobra.Command{Use: "add POOL [DISK...]", Short: "Add claimed disks to a pool (default: all that are in none); copies move onto them by themselves", Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, "/v1/pools/"+url.PathEscape(args[0])+"/disks", pool.AddRequest{Disks: args[1:]}, nil, nil)
		}},
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
	cmd.Flags().IntVar(&req.Copies, "copies", 3, "copies of every block, in as many failure domains: 1 to 3")
	cmd.Flags().StringVar(&req.Domain, "domain", "node", "failure domain, of which no two copies share one: disk, node, chassis, rack or site")
	cmd.Flags().StringVar(&req.RebuildAfter, "rebuild-after", "", "how long a node must be down before its copies are rebuilt on others (default 15m)")
	cmd.Flags().IntVar(&req.MinISR, "min-isr", 1, "copies below which writing stops: 1 or 2")
	cmd.Flags().StringSliceVar(&req.Disks, "disk", nil, "names of claimed disks (default: all that are in no pool)")
	return cmd
}

func newPoolSetCmd(a *app) *cobra.Command {
	var req pool.ChangeRequest
	cmd := &cobra.Command{Use: "set POOL", Short: "Change a pool", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodPatch, "/v1/pools/"+url.PathEscape(args[0]), req, new(pool.Info), func() string { return "pool " + args[0] + " set" })
	}}
	cmd.Flags().StringVar(&req.RebuildAfter, "rebuild-after", "", "how long a node must be down before its copies are rebuilt on others: 15m")
	return cmd
}

func poolTable(ps []pool.Info) *table {
	t := newTable("NAME", "COPIES", "DOMAIN", "DISKS", "RAW", "SIZE", "USED", "FULL", "RESERVE", "PROMISED", "VOLUMES", "STATE")
	for _, p := range ps {
		t.row(p.Name, p.Spec.Copies, domainOf(&p), p.Status.Disks, p.Raw, p.Status.Size, p.Status.Used, fullText(&p), p.Reserve, p.Status.Promised, p.Volumes, p.Copies)
	}
	return t
}

func domainOf(p *pool.Info) model.Domain { return cmp.Or(p.Spec.Domain, model.DomainNode) }

func fullText(p *pool.Info) string { return fmt.Sprintf("%d%% %s", p.Percent, p.Level) }

// promisedText says when volumes are promised more than there is.
func promisedText(p *pool.Info) string {
	if p.Status.Promised <= p.Status.Size {
		return p.Status.Promised.String()
	}
	return fmt.Sprintf("%s: more than it can hold (thin); machines pause when it is full", p.Status.Promised)
}

func poolSheet(p *pool.Info) *table {
	t := newSheet().row("name", p.Name).row("id", p.ID).row("copies", p.Spec.Copies).row("failure domain", domainOf(p)).
		row("rebuild after", fmt.Sprintf("%s without a node", cmp.Or(p.Spec.RebuildAfter, model.DefaultRebuildAfter))).
		row("raw", fmt.Sprintf("%s, %s allocated, %s kept for rebuilds", p.Raw, p.RawUsed, p.Reserve)).
		row("size", p.Status.Size).row("used", p.Status.Used).row("full", fullText(p)).
		row("promised", promisedText(p)).row("state", p.Copies).row("volumes", p.Volumes).row("disks", len(p.Members))
	if s := p.Scrub; s != nil {
		t.row("scrub", scrubLine(s))
	}
	for _, m := range p.Members {
		t.row("  "+m.Name, fmt.Sprintf("%s  %s  %s of %s (%s for guests)", m.Node, m.State, m.Used, m.Data, m.Limit))
	}
	return t
}
