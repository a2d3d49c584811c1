package cli

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/node"
	"roseau/internal/svc/member"
)

const (
	recoverTimeout = time.Minute
	recoverPoll    = 300 * time.Millisecond
)

func newClusterRecover(a *app) *cobra.Command {
	var here bool
	var bring, confirm string
	cmd := &cobra.Command{Use: "recover CLUSTER --from-this-node --confirm CLUSTER", Short: "After the majority was lost for good: go on with this node alone",
		Long: strings.Join([]string{"After the majority was lost for good: go on with the records of this node alone.", "",
			"It gives up every change that only other nodes had; --dry-run says what that is",
			"here. The cluster gets a new generation: the disks of other nodes are not read",
			"until each of these nodes is brought in, on that node, with --import.", "",
			"Do it on one node only, and only when the others are off: nothing can stop a",
			"second recovery behind a cut cable."}, "\n"),
		Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case bring != "" && !here && len(args) == 0:
				in := node.ImportRequest{Node: bring, Confirm: confirm}
				return a.change(cmd, http.MethodPost, "/v1/local/import", in, nil, func() string {
					return "node " + bring + " is of the recovered cluster now; `roseau cluster status` shows it"
				})
			case bring == "" && here && len(args) == 1:
				return a.recoverHere(cmd, node.RecoverRequest{Cluster: args[0], Confirm: confirm, DryRun: a.dry})
			}
			return errs.New(errs.Invalid, "recover cluster: want CLUSTER --from-this-node, or --import NODE").WithHint("see `%s --help`", cmd.CommandPath())
		}}
	f := cmd.Flags()
	f.BoolVar(&here, "from-this-node", false, "this node's records are the ones that go on")
	f.StringVar(&bring, "import", "", "bring this node, NODE, and its disks into a cluster that was recovered without it")
	f.StringVar(&confirm, "confirm", "", "the cluster's (with --import: the node's) name again")
	a.dryRunFlag(cmd)
	return cmd
}

// recoverHere asks, says what is given up, and waits for the end.
func (a *app) recoverHere(cmd *cobra.Command, req node.RecoverRequest) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var ans node.RecoverAnswer
	if _, err := c.Do(cmd.Context(), http.MethodPost, "/v1/local/recover", req, &ans); err != nil {
		return err
	}
	if err := a.show(cmd, ans, func() *table {
		tb := newSheet().line("given up:")
		for _, l := range ans.GivenUp {
			tb.line("  - %s", l)
		}
		return tb
	}); err != nil || !ans.Begun {
		return err
	}
	end := time.Now().Add(recoverTimeout)
	for {
		var st member.Status
		err := c.Get(cmd.Context(), "/v1/cluster/status", &st)
		if err == nil && st.Cluster != nil && st.Cluster.Generation >= ans.Generation && st.Quorum.Healthy {
			fmt.Fprintf(cmd.ErrOrStderr(), "recovered: generation %d. %s\n", st.Cluster.Generation, st.Quorum.Text)
			return nil
		}
		if time.Now().After(end) {
			return errs.New(errs.Unavailable, "recover cluster %s: not done within %s; it goes on (%s): %w", req.Cluster, recoverTimeout, st.Quorum.Text, err).WithHint("see the log of roseau-node")
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(recoverPoll):
		}
	}
}
