package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/svc/disk"
)

func newDiskCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "The disks of the nodes: what is on them, which are claimed"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List the disks of all nodes", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var l disk.List
			return a.get(cmd, "/v1/disks", &l, func() *table { return diskTable(&l) })
		}},
		&cobra.Command{Use: "show DISK", Short: "Show a claimed disk", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			d := new(model.Disk)
			return a.get(cmd, "/v1/disks/"+url.PathEscape(args[0]), d, func() *table {
				t := newSheet().row("name", d.Name).row("id", d.ID).row("path", d.Spec.Path).row("size", d.Spec.Size).
					row("state", d.Status.State).row("for data", d.Status.Data).row("used", d.Status.Used).row("errors", d.Status.Errors)
				if d.Status.Reason != "" {
					t.row("reason", d.Status.Reason)
				}
				return t
			})
		}},
		newDiskPathsCmd(a, "claim", "Claim blank disks for the cluster"),
		destroys(newDiskPathsCmd(a, "wipe", "Destroy what is on disks that are not in use")),
	)
	return cmd
}

func newDiskPathsCmd(a *app, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NODE/PATH...", Short: short, Args: cobra.MinimumNArgs(1),
		Example: "  roseau disk " + verb + " srv1//dev/sdb srv1/sdc srv2/sdb",
		RunE: func(cmd *cobra.Command, args []string) error {
			byNode, order, err := splitDisks(args)
			if err != nil {
				return err
			}
			for _, node := range order {
				path := "/v1/nodes/" + url.PathEscape(node) + "/disks/" + verb
				if err := a.change(cmd, http.MethodPost, path, disk.ClaimRequest{Paths: byNode[node]}, nil, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// splitDisks groups NODE/PATH arguments by node, in the order of first use. The
// path may be whole ("srv1//dev/sdb"), without its slash ("srv1/dev/sdb") or the
// last part alone ("srv1/sdb").
func splitDisks(args []string) (byNode map[string][]string, order []string, err error) {
	byNode = map[string][]string{}
	for _, arg := range args {
		node, path, ok := strings.Cut(arg, "/")
		if !ok || node == "" || path == "" {
			return nil, nil, errs.New(errs.Invalid, "disk %q: want NODE/PATH, for example srv1/sdb", arg).WithHint("`roseau disk list` shows nodes and paths")
		}
		if strings.Contains(path, "/") && !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		if byNode[node] == nil {
			order = append(order, node)
		}
		byNode[node] = append(byNode[node], path)
	}
	return byNode, order, nil
}

func diskTable(l *disk.List) *table {
	t := newTable("NODE", "PATH", "SIZE", "MODEL", "STATE", "NAME", "POOL", "USED", "CONTENT")
	for _, d := range l.Disks {
		used := ""
		if d.Data > 0 {
			used = fmt.Sprintf("%s of %s", d.Used, d.Data)
		}
		content := d.Content
		if d.Reason != "" {
			content = d.Reason
		}
		t.row(d.Node, d.Path, d.Size, d.Model, d.State, d.Name, d.Pool, used, content)
	}
	for _, u := range l.Unreachable {
		t.line("not asked: %s", u)
	}
	return t
}
