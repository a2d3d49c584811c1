package cli

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/model"
	"roseau/internal/svc/network"
)

func newNetworkCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "Networks that VMs are plugged into"}
	var req network.CreateRequest
	create := &cobra.Command{Use: "create NAME", Short: "Create a network", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		req.Name = args[0]
		n := new(model.Network)
		return a.change(cmd, http.MethodPost, "/v1/networks", req, n, func() string { return "network " + n.Name + " created" })
	}}
	create.Flags().StringVar((*string)(&req.Kind), "kind", "bridged", "bridged: joins the uplink that each node names for it")
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List networks", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var ns []network.Info
			return a.get(cmd, "/v1/networks", &ns, func() *table { return networkTable(ns) })
		}},
		&cobra.Command{Use: "show NETWORK", Short: "Show a network", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var n network.Info
			return a.get(cmd, "/v1/networks/"+url.PathEscape(args[0]), &n, func() *table {
				return newSheet().row("name", n.Name).row("id", n.ID).row("kind", n.Spec.Kind).row("uplinks", strings.Join(n.Nodes, ", ")).row("vms", strings.Join(n.VMs, ", "))
			})
		}},
		create,
		&cobra.Command{Use: "delete NETWORK", Short: "Delete a network that no VM uses", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/v1/networks/"+url.PathEscape(args[0]), "network "+args[0])
		}},
	)
	return cmd
}

func networkTable(ns []network.Info) *table {
	t := newTable("NAME", "KIND", "UPLINKS", "VMS")
	for _, n := range ns {
		t.row(n.Name, n.Spec.Kind, strings.Join(n.Nodes, ", "), len(n.VMs))
	}
	return t
}
