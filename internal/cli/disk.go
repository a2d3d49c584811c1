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
		&cobra.Command{Use: "show DISK", Short: "Show a claimed disk: its state, its health, its scrubs", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			d := new(model.Disk)
			return a.get(cmd, "/v1/disks/"+url.PathEscape(args[0]), d, func() *table { return diskSheet(d) })
		}},
		newDiskRetireCmd(a),
		newDiskReplaceCmd(a),
		newDiskLocateCmd(a),
		destroys(&cobra.Command{Use: "remove DISK", Short: "Give a disk back that holds nothing: it is wiped, if it serves, and forgotten", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, "/v1/disks/"+url.PathEscape(args[0]), nil, nil, nil)
		}}),
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
	t := newTable("NODE", "PATH", "SIZE", "MODEL", "STATE", "HEALTH", "NAME", "POOL", "USED", "CONTENT")
	for _, d := range l.Disks {
		used := ""
		if d.Data > 0 {
			used = fmt.Sprintf("%s of %s", d.Used, d.Data)
		}
		content := d.Content
		if d.Reason != "" {
			content = d.Reason
		}
		t.row(d.Node, d.Path, d.Size, d.Model, d.State, healthCell(d.Care), d.Name, d.Pool, used, content)
	}
	for _, u := range l.Unreachable {
		t.line("not asked: %s", u)
	}
	return t
}

// healthCell says in a few words what stands against a disk.
func healthCell(c *model.DiskCare) string {
	if c == nil {
		return ""
	}
	words := []string{c.Summary}
	if c.Slow {
		words = append(words, "slow")
	}
	if c.BadBlocks > 0 {
		words = append(words, fmt.Sprintf("%d bad blocks", c.BadBlocks))
	}
	if c.RetireProposed {
		words = append(words, "retire it")
	}
	return strings.Join(words, ", ")
}

func diskSheet(d *model.Disk) *table {
	t := newSheet().row("name", d.Name).row("id", d.ID).row("path", d.Spec.Path).row("size", d.Spec.Size).
		row("state", d.Status.State).row("for data", d.Status.Data).row("used", d.Status.Used).row("errors", d.Status.Errors)
	if d.Status.Reason != "" {
		t.row("reason", d.Status.Reason)
	}
	c := d.Status.Care
	if c == nil {
		return t
	}
	t.row("health", c.Summary)
	if c.Unknown != "" {
		t.row("", c.Unknown)
	}
	for _, a := range c.Alarms {
		t.row("alarm", a)
	}
	if c.SparePercent != nil {
		t.row("spare blocks", fmt.Sprintf("%d %%", *c.SparePercent))
	}
	if c.MediaErrors != nil {
		t.row("media errors", *c.MediaErrors)
	}
	if c.Slow {
		t.row("slow", fmt.Sprintf("a write takes %s, those of its like %s (score %.1f)", c.WriteMedian, c.Cohort, c.SlowScore))
	}
	t.row("bad blocks", fmt.Sprintf("%d in 24 hours, %d not repaired; %d repaired ever", c.BadBlocks, c.Damaged, c.Repaired))
	if c.RetireProposed {
		t.row("proposed", "retire it: `roseau disk retire "+d.Name+"`")
	}
	switch {
	case c.Scrubbing:
		t.row("scrub", fmt.Sprintf("running: %d of %d extents, %d bad blocks so far", c.ScrubDone, c.ScrubTotal, c.ScrubFound))
	case c.ScrubEnded.IsZero():
		t.row("scrub", "never scrubbed")
	default:
		t.row("scrub", fmt.Sprintf("%s: %d bad blocks, %d pieces of bad metadata found", when(c.ScrubEnded), c.ScrubFound, c.ScrubBadMeta))
	}
	return t
}

func newDiskRetireCmd(a *app) *cobra.Command {
	var req disk.RetireRequest
	cmd := &cobra.Command{
		Use: "retire DISK", Short: "Empty a disk: what it holds moves to others, nothing new comes", Args: cobra.ExactArgs(1),
		Long: "Every block keeps its copies while they move: a copy goes only when the new one is in sync. The disk serves until it is empty.\n" +
			"Refused if its pool would have too few nodes with disks, or no room for what the disk holds.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, "/v1/disks/"+url.PathEscape(args[0])+"/retire", req, nil, nil)
		},
	}
	cmd.Flags().BoolVar(&req.Cancel, "cancel", false, "use the disk again")
	return cmd
}

func newDiskReplaceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "replace OLD NEW", Short: "Empty a disk, or make up for a dead one, with another disk in its pool", Args: cobra.ExactArgs(2),
		Long: "NEW is a claimed disk; if it is in no pool it joins OLD's. What OLD holds moves there, what it held is rebuilt there if OLD is dead; it ends when every\n" +
			"copy is in sync. A copy that NEW cannot have, for another one is in its failure domain, goes to another disk. Repeated, it goes on where it was.\n" +
			"Refused if NEW has too little room, or if OLD's pool would have disks in too few failure domains. `roseau disk remove OLD` forgets the old one.",
		Example: "  roseau disk claim srv2/sdc\n  roseau disk replace srv2-d1 srv2-d2\n  roseau disk remove srv2-d1 --confirm srv2-d1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, "/v1/disks/"+url.PathEscape(args[0])+"/replace", disk.ReplaceRequest{New: args[1]}, nil, nil)
		},
	}
	a.dryRunFlag(cmd)
	return cmd
}

func newDiskLocateCmd(a *app) *cobra.Command {
	var req disk.LocateRequest
	cmd := &cobra.Command{Use: "locate DISK", Short: "Switch on the lamp at a disk's bay", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var ans disk.LocateAnswer
		return a.change(cmd, http.MethodPost, "/v1/disks/"+url.PathEscape(args[0])+"/locate", req, &ans, func() string { return ans.Text })
	}}
	cmd.Flags().BoolVar(&req.Off, "off", false, "switch it off")
	return cmd
}
