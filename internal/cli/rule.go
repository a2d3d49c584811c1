package cli

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/model"
	"roseau/internal/svc/rule"
)

func newRuleCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "rule", Short: "Rules of placement: which VMs run together, apart, and on which nodes"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List rules, and why one does not hold", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var rs []rule.Info
			return a.get(cmd, "/v1/rules", &rs, func() *table {
				t := newTable("NAME", "KIND", "VMS", "NODES", "HARD", "BROKEN")
				for _, r := range rs {
					t.row(r.Name, r.Spec.Kind, strings.Join(r.Spec.VMs, ", "), strings.Join(append(r.Spec.Nodes, r.Spec.Labels...), ", "), yes(!r.Spec.Soft), r.Broken)
				}
				return t
			})
		}},
		newRuleAddCmd(a),
		&cobra.Command{Use: "remove RULE", Short: "Remove a rule; nothing moves because of it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, "/v1/rules/"+url.PathEscape(args[0]), nil, nil, func() string { return "rule " + args[0] + " removed" })
		}},
	)
	return cmd
}

func newRuleAddCmd(a *app) *cobra.Command {
	var req rule.AddRequest
	cmd := &cobra.Command{Use: "add NAME together|apart|on|not-on", Short: "Add a rule", Args: cobra.ExactArgs(2),
		Long: "A hard rule is kept by starts, recoveries, migrations and the balancer; a machine that no node may take because of it waits and says so.\n" +
			"A soft one is a wish. What contradicts the rules that there are is refused, with their names. Nothing moves because a rule is added:\n" +
			"`roseau balance run` mends what is broken.",
		Example: "  roseau rule add spread apart --vm web1 --vm web2\n  roseau rule add near together --vm web --vm db --soft\n  roseau rule add fast on --vm db --label ssd\n  roseau rule add quiet not-on --vm batch --node n1",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.Kind = args[0], model.RuleKind(args[1])
			return a.change(cmd, http.MethodPost, "/v1/rules", req, new(model.Rule), func() string { return "rule " + args[0] + " added" })
		}}
	f := cmd.Flags()
	f.StringSliceVar(&req.VMs, "vm", nil, "VM; repeat for more, or separate by commas")
	f.StringSliceVar(&req.Nodes, "node", nil, "node, of on and not-on")
	f.StringSliceVar(&req.Labels, "label", nil, "label of nodes, of on and not-on; rack=R1, site=X and chassis=Y by the node's place")
	f.BoolVar(&req.Soft, "soft", false, "a wish: given up when no node fulfils it")
	return cmd
}
