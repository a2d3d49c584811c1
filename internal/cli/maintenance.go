package cli

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/svc/maint"
)

// maintenanceText is the state of a node's maintenance in a few words; "": none.
func maintenanceText(n *model.Node) string {
	o := n.Spec.Order
	switch {
	case o != nil && o.Phase == model.OrderAway:
		return "off, as asked (" + string(o.Verb) + ")"
	case o != nil:
		return fmt.Sprintf("%s, %s", o.Verb, o.Phase)
	case n.Spec.Drain && n.Spec.DrainTask.IsZero():
		return "drained"
	case n.Spec.Drain:
		return "draining"
	case len(n.Spec.Guests) > 0:
		return fmt.Sprintf("%d VMs go back", len(n.Spec.Guests))
	}
	return ""
}

func newNodeDrain(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "drain NODE", Short: "Move every VM away from a node and place none there, until undrain", Args: cobra.ExactArgs(1),
		Long: "Moves every VM of the node to others by live migration, two at a time, and places none there until `node undrain`. The task ends when\n" +
			"nothing is left there and its copies are in sync elsewhere, so that the node may go down. Refused for the last node that takes VMs, and\n" +
			"with the reason for each VM that no other node can take. --dry-run shows where each would go.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, nodePath(args[0])+"/drain", nil, nil, func() string { return "node " + args[0] + " is drained already" })
		}}
	a.dryRunFlag(cmd)
	return cmd
}

func newNodeUndrain(a *app) *cobra.Command {
	var req maint.UndrainRequest
	cmd := &cobra.Command{Use: "undrain NODE", Short: "End a drain: VMs go back; or call a shutdown or reboot off that has not begun", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, nodePath(args[0])+"/undrain", req, new(model.Node), func() string { return "node " + args[0] + " takes VMs again" })
		}}
	cmd.Flags().BoolVar(&req.NoFailback, "no-failback", false, "what left the node does not go back by itself")
	return cmd
}

// newNodeLeave is shutdown or reboot.
func newNodeLeave(a *app, verb, short string) *cobra.Command {
	var req maint.LeaveRequest
	cmd := &cobra.Command{Use: verb + " NODE", Short: short, Args: cobra.ExactArgs(1),
		Long: "Drains the node, waits until its copies are in sync elsewhere and no other node is down for maintenance, stops its services in order and\n" +
			"switches it off or boots it anew. The cluster knows that this was asked for: nothing is restarted, nobody is alarmed. When the node is back it takes VMs\n" +
			"again, and those that left go back. `node undrain` calls it off as long as it has not begun to go down.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, nodePath(args[0])+"/"+verb, req, nil, nil)
		}}
	cmd.Flags().BoolVar(&req.NoDrain, "no-drain", false, "power the guests off (button, the plug after a minute) and start them elsewhere, instead of moving them")
	cmd.Flags().BoolVar(&req.NoFailback, "no-failback", false, "what leaves the node does not go back by itself")
	a.dryRunFlag(cmd)
	return cmd
}

func newClusterRestart(a *app) *cobra.Command {
	var rolling, cancel bool
	cmd := &cobra.Command{Use: "restart --rolling", Short: "Restart every node, one at a time, while the VMs go on", Args: cobra.NoArgs,
		Long: "Each node is drained, booted anew and waited for: its session, its storage, the resync of its copies, its VMs back. No segment has fewer\n" +
			"than two in-sync copies at any time (one in a pool of two copies). The node where the leader is goes last; whichever node restarts, the work goes on: it stands in the cluster's\n" +
			"records. Asked again while it runs, it is followed. --cancel lets the node that is on its way come back and begins no other.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cancel {
				return a.change(cmd, http.MethodDelete, "/v1/cluster/restart", nil, nil, func() string { return "no further node is restarted" })
			}
			if !rolling {
				return errs.New(errs.Invalid, "restart cluster: say --rolling: one node at a time").WithHint("all at once is `roseau cluster shutdown`, then power on")
			}
			return a.change(cmd, http.MethodPost, "/v1/cluster/restart", nil, nil, nil)
		}}
	cmd.Flags().BoolVar(&rolling, "rolling", false, "one node at a time")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "call it off")
	a.dryRunFlag(cmd)
	return cmd
}

func newClusterShutdown(a *app) *cobra.Command {
	var req maint.ShutdownRequest
	var cancel bool
	cmd := &cobra.Command{Use: "shutdown --confirm NAME", Short: "Power every VM and every node off, in order", Args: cobra.NoArgs,
		Long: "Machines are powered off by their button (the plug after a minute), those that start last first; then the storage and the nodes, the leader's last. When\n" +
			"the nodes have power again, whatever ran starts by itself, where it ran, in order. --cancel works until the nodes go off.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cancel {
				return a.change(cmd, http.MethodDelete, "/v1/cluster/shutdown", nil, nil, func() string { return "the shutdown is called off: what ran starts again" })
			}
			return a.change(cmd, http.MethodPost, "/v1/cluster/shutdown", req, nil, nil)
		}}
	cmd.Flags().StringVar(&req.Confirm, "confirm", "", "name of the cluster")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "call it off")
	a.dryRunFlag(cmd)
	return cmd
}
