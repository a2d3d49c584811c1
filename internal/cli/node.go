package cli

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/version"
	"roseau/internal/model"
	"roseau/internal/node"
	"roseau/internal/svc/member"
	"roseau/internal/svc/volume"
)

// newNodeCmd is the noun, and without a verb the daemon itself.
func newNodeCmd(a *app) *cobra.Command {
	var debug bool
	cmd := &cobra.Command{Use: "node", Short: "The nodes of the cluster; without a verb: run the node's daemon", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return node.Run(cmd.Context(), node.Options{Version: version.String(), Clock: clock.System{}, Log: processLog(debug)})
	}}
	cmd.Flags().BoolVar(&debug, "debug", false, "log more (daemon)")
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List nodes", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var ns []*model.Node
			return a.get(cmd, "/v1/nodes", &ns, func() *table {
				tb := newTable("NAME", "READY", "VOTER", "ADDRESS", "CPUS", "MEMORY", "FREE", "QEMU", "VERSION", "MAINTENANCE")
				for _, n := range ns {
					tb.row(n.Name, yes(n.Status.Ready), yes(n.Spec.Voter), strings.Join(n.Spec.Addresses[model.RoleCluster], ","),
						n.Status.CPUs, n.Status.Memory, n.Status.MemoryFree, n.Status.QEMU, n.Status.Version, maintenanceText(n))
				}
				return tb
			})
		}},
		&cobra.Command{Use: "show NODE", Short: "Show a node", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			n := new(model.Node)
			return a.get(cmd, "/v1/nodes/"+url.PathEscape(args[0]), n, func() *table { return nodeTable(n) })
		}},
		newNodeSet(a),
		newNodePower(a),
		newNodeBMC(a),
		newNodeLocate(a),
		newNodeReplace(a),
		newNodeRemove(a),
		newNodeDrain(a), newNodeUndrain(a),
		newNodeLeave(a, "shutdown", "Drain a node, stop its services and switch it off"),
		newNodeLeave(a, "reboot", "Drain a node, stop its services and boot it anew"),
	)
	return cmd
}

func nodeTable(n *model.Node) *table {
	tb := newSheet().row("name", n.Name).row("id", n.ID).row("ready", yes(n.Status.Ready)).row("voter", yes(n.Spec.Voter))
	for _, role := range []model.NetworkRole{model.RoleCluster, model.RoleStorage, model.RoleVM} {
		if a := n.Spec.Addresses[role]; len(a) > 0 {
			tb.row(string(role)+" address", strings.Join(a, ", "))
		}
	}
	if m := maintenanceText(n); m != "" {
		tb.row("maintenance", m)
	}
	for network, ifc := range n.Spec.Uplinks {
		tb.row("uplink of "+network, ifc)
	}
	for _, p := range [][2]string{{"chassis", n.Spec.Chassis}, {"rack", n.Spec.Rack}, {"site", n.Spec.Site}} {
		if p[1] != "" {
			tb.row(p[0], p[1])
		}
	}
	if n.Spec.Watchdog > 0 {
		tb.row("watchdog", "on, "+n.Spec.Watchdog.String())
	}
	if len(n.Spec.Labels) > 0 {
		tb.row("labels", strings.Join(n.Spec.Labels, ", "))
	}
	tb.row("cpus", n.Status.CPUs).row("memory", n.Status.Memory).row("memory free", n.Status.MemoryFree).
		row("qemu", n.Status.QEMU).row("accelerator", n.Status.Accelerator)
	if n.Status.AccelReason != "" {
		tb.row("accelerator reason", n.Status.AccelReason)
	}
	return tb.row("version", n.Status.Version).row("joined", n.Created.Local().Format(time.RFC3339)).row("reported", ago(time.Now(), n.Status.Reported)+" ago")
}

func newNodeSet(a *app) *cobra.Command {
	var chassis, rack, site, dog string
	var labels, removed []string
	cmd := &cobra.Command{Use: "set NODE", Short: "Say where a node stands, label it for rules, and whether its watchdog is fed", Args: cobra.ExactArgs(1),
		Long:    "Chassis, rack and site are for pools whose failure domain they are. The watchdog is off unless it is asked for: Roseau fences by leases and\nresets no machine. On, the node's daemon feeds /dev/watchdog; a machine whose kernel or daemon hangs for the timeout, or that is cut off\nwhile none of its machines holds a lease, resets itself, and what is paused on it is lost.",
		Example: "  roseau node set n1 --rack R1 --site paris\n  roseau node set n1 --chassis ''\n  roseau node set n1 --label ssd --label gpu=a100\n  roseau node set n1 --watchdog on",
		RunE: func(cmd *cobra.Command, args []string) error {
			var req member.NodeChange
			for _, f := range []struct {
				name string
				v    *string
				to   **string
			}{{"chassis", &chassis, &req.Chassis}, {"rack", &rack, &req.Rack}, {"site", &site, &req.Site}, {"watchdog", &dog, &req.Watchdog}} {
				if cmd.Flags().Changed(f.name) {
					*f.to = f.v
				}
			}
			req.AddLabels, req.RemoveLabels = labels, removed
			if req.Chassis == nil && req.Rack == nil && req.Site == nil && req.Watchdog == nil && len(labels)+len(removed) == 0 {
				return errs.New(errs.Invalid, "set node %s: nothing to set", args[0]).WithHint("say --chassis, --rack, --site, --watchdog, --label or --remove-label")
			}
			return a.change(cmd, http.MethodPatch, "/v1/nodes/"+url.PathEscape(args[0]), req, new(model.Node), func() string { return "node " + args[0] + " set" })
		}}
	cmd.Flags().StringVar(&chassis, "chassis", "", "enclosure with common power or cooling")
	cmd.Flags().StringVar(&rack, "rack", "", "rack")
	cmd.Flags().StringVar(&dog, "watchdog", "", "on (60s), off, or a timeout: 10s to 10m")
	cmd.Flags().StringVar(&site, "site", "", "room, building or town")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "give it a label that rules can name; repeat for more")
	cmd.Flags().StringArrayVar(&removed, "remove-label", nil, "take a label away; repeat for more")
	return cmd
}

func newNodeReplace(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "replace OLD NEW", Short: "Let a new node take the place of one that is gone for good", Args: cobra.ExactArgs(2),
		Long: "Rebuild what OLD held, on NEW and wherever a failure domain is free, and remove OLD. NEW has joined the cluster and its disks are claimed;\nthose that are in no pool join OLD's. Repeated, it goes on where it was.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, "/v1/nodes/"+url.PathEscape(args[0])+"/replace", volume.ReplaceNodeRequest{With: args[1]}, nil, nil)
		}}
	a.dryRunFlag(cmd)
	return cmd
}

func newNodeRemove(a *app) *cobra.Command {
	var force, sure bool
	cmd := &cobra.Command{Use: "remove NODE", Short: "Take a node out of the cluster", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if force && !sure {
			return errs.New(errs.Invalid, "remove node %s: --force gives up what the machine holds", args[0]).WithHint("say --yes as well if it is gone for good")
		}
		path := "/v1/nodes/" + url.PathEscape(args[0])
		if force {
			path += "?force=true"
		}
		return a.change(cmd, http.MethodDelete, path, nil, nil, func() string { return "node " + args[0] + " removed" })
	}}
	cmd.Flags().BoolVar(&force, "force", false, "the machine is gone for good: do not look at what it holds")
	cmd.Flags().BoolVar(&sure, "yes", false, "with --force: really")
	a.dryRunFlag(cmd)
	return cmd
}
