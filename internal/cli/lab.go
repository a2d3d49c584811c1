package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/base/version"
	"roseau/internal/lab"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

// labApp is what the verbs of `roseau lab` share.
type labApp struct {
	*app
	name string // --name
}

func newLabCmd(a *app) *cobra.Command {
	l := &labApp{app: a}
	cmd := &cobra.Command{Use: "lab", Short: "A cluster of nodes in namespaces on this machine, with cables, power and disks to pull"}
	name := os.Getenv("ROSEAU_LAB")
	if name == "" {
		name = labclient.DefaultName
	}
	cmd.PersistentFlags().StringVar(&l.name, "name", name, "name of the lab (also $ROSEAU_LAB)")
	cmd.AddCommand(l.up(), l.down(), l.status(), l.node(), l.link(), l.disk(), l.power(), l.bmc(), l.exec(),
		l.partition(), l.heal(), l.service())
	return cmd
}

// newLabProcessCmds are the processes of a lab; people do not start them.
func newLabProcessCmds() []*cobra.Command {
	return []*cobra.Command{
		{Use: "lab-daemon DIR", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Daemon(cmd.Context(), args[0], slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		}},
		{Use: "lab-init NODE", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, _ []string) error {
			return initd.Main(cmd.Context())
		}},
	}
}

func (l *labApp) client() (*labclient.Client, error) { return labclient.Open(l.name) }

// labLog is for what a lab command has to say beside its output.
func labLog(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (l *labApp) up() *cobra.Command {
	opts := lab.UpOptions{}
	diskSize := "8GiB"
	bare := false
	cmd := &cobra.Command{Use: "up", Short: "Make or start a lab and a cluster in it", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.IntVar(&opts.Spec.Nodes, "nodes", 3, "number of nodes")
	f.IntVar(&opts.Spec.DisksPerNode, "disks", 4, "disks of each node")
	f.StringVar(&diskSize, "disk-size", diskSize, "size of each disk; only what is written takes space")
	f.BoolVar(&opts.Spec.Witness, "witness", false, "a witness beside the nodes: the last node then keeps serving")
	f.BoolVar(&opts.Fresh, "fresh", false, "throw away the lab of that name first")
	f.BoolVar(&bare, "bare", false, "nodes only: make no cluster, pool and network")
	f.BoolVar(&opts.Spec.RawDisks, "raw-disks", false, "disks without the fault layer, for benchmarks: they cannot be pulled, and a power cut loses nothing")
	f.Uint64Var(&opts.Spec.Seed, "seed", 0, "seed of what disks lose with their power (0 = drawn and logged)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		bytes, err := size.Parse(diskSize)
		if err != nil {
			return err
		}
		opts.Spec.Name, opts.Spec.DiskSizeBytes = l.name, int64(bytes)
		c, err := lab.Up(cmd.Context(), opts, labLog(cmd))
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := c.Status(cmd.Context())
		if err != nil {
			return err
		}
		say := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
		say(fmt.Sprintf("lab %s: %d nodes have power", l.name, len(st.Nodes)))
		if !bare {
			if err := lab.Bootstrap(cmd.Context(), st, say); err != nil {
				return errs.New(kindOr(err, errs.Unavailable), "lab %s is up, its cluster is not complete: %w", l.name, err)
			}
		}
		return l.showStatus(cmd, c)
	}
	return cmd
}

func kindOr(err, kind error) error {
	if k := errs.Kind(err); k != nil {
		return k
	}
	return kind
}

func (l *labApp) down() *cobra.Command {
	keep := false
	cmd := &cobra.Command{Use: "down", Short: "End the lab and remove all that it made", Args: cobra.NoArgs}
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the nodes' files, for the next `lab up`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := labclient.Dir(l.name)
		if err != nil {
			return err
		}
		err = lab.Down(cmd.Context(), dir, keep, labLog(cmd))
		if err = errors.Join(err, lab.RemoveContext(l.name)); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "lab %s is down\n", l.name)
		return nil
	}
	return cmd
}

func (l *labApp) status() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Nodes, power, cables, disks, services and ports", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := l.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return l.showStatus(cmd, c)
	}}
}

func (l *labApp) showStatus(cmd *cobra.Command, c *labclient.Client) error {
	st, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	st.Version = version.String()
	return l.show(cmd, st, func() *table { return labTable(st) })
}

func labTable(st labclient.Status) *table {
	t := newTable("NODE", "POWER", "API", "CLUSTER", "SICK CABLES", "DISKS", "SERVICES")
	for _, n := range st.Machines() {
		t.row(n.Name, n.Power, n.API, n.Addresses["cluster"], labCables(n), labDisks(n), labUnits(n))
	}
	if st.Partition != nil {
		var groups []string
		for _, g := range st.Partition {
			groups = append(groups, strings.Join(g, ","))
		}
		t.line("partition: %s", strings.Join(groups, "/"))
	}
	return t.line("lab %s in %s, up %s; daemon %d", st.Name, st.Dir, ago(time.Now(), st.Since), st.PID)
}

// labCables is "vm cut, storage loses 5%".
func labCables(n labclient.Node) string {
	var parts []string
	for _, network := range n.CutLinks {
		parts = append(parts, network+" cut")
	}
	for _, network := range slices.Sorted(maps.Keys(n.Losses)) {
		parts = append(parts, fmt.Sprintf("%s loses %d%%", network, n.Losses[network]))
	}
	return strings.Join(parts, ", ")
}

// labDisks is "4 of 8GiB, d2 pulled".
func labDisks(n labclient.Node) string {
	if len(n.Disks) == 0 {
		return ""
	}
	parts := []string{fmt.Sprintf("%d of %s", len(n.Disks), size.Bytes(n.Disks[0].SizeBytes))}
	for _, d := range n.Disks {
		switch f := d.Fault; {
		case f == nil:
		case f.Pulled:
			parts = append(parts, d.Name+" pulled")
		case f.Hang:
			parts = append(parts, d.Name+" hangs")
		case f.Latency > 0:
			parts = append(parts, fmt.Sprintf("%s slow by %v", d.Name, f.Latency))
		}
		if d.Lamp {
			parts = append(parts, d.Name+" lamp on")
		}
	}
	return strings.Join(parts, ", ")
}

func labUnits(n labclient.Node) string {
	var parts []string
	for _, u := range n.Units {
		text := strings.TrimPrefix(string(u.Name), "roseau-")
		vm, isGuard := u.Name.VMID()
		_, isVolume := u.Name.VolumeID()
		if (isGuard || isVolume) && u.State == unit.Stopped {
			continue // its VM or volume is not in use here any more
		}
		if name := n.GuardNames[vm]; isGuard && name != "" {
			text = "guard:" + name
		}
		if u.State != "running" {
			text += " " + string(u.State)
		}
		if u.Restarts > 0 {
			text += fmt.Sprintf(" (restarted %d times)", u.Restarts)
		}
		parts = append(parts, text)
	}
	if n.EtcdDown {
		parts = append(parts, "etcd stopped")
	}
	return strings.Join(parts, ", ")
}

// do runs one order at the daemon and prints its answer, or line.
func (l *labApp) do(cmd *cobra.Command, line string, f func(context.Context, *labclient.Client) (labclient.Answer, error)) error {
	c, err := l.client()
	if err != nil {
		return err
	}
	defer c.Close()
	a, err := f(cmd.Context(), c)
	if err != nil {
		return err
	}
	return l.show(cmd, a, func() *table {
		t := newSheet()
		if len(a.Losses) > 0 {
			t = newTable("DISK", "UNFLUSHED SECTORS", "KEPT", "SEED")
			for _, loss := range a.Losses {
				t.row(loss.Node+"/"+loss.Disk, loss.Sectors, loss.Kept, loss.Seed)
			}
		}
		for _, flip := range a.Flips {
			t.line("bit %d of byte %d flipped", flip.Bit, flip.Offset)
		}
		if a.Note != "" {
			t.line("note: %s", a.Note)
		}
		return t.line("%s", line)
	})
}

// plain turns a client method without answer into one with.
func plain(err error) (labclient.Answer, error) { return labclient.Answer{}, err }

func (l *labApp) node() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Power of one node"}
	verb := func(name, short, done string, f func(*labclient.Client, context.Context, string) error) *cobra.Command {
		return &cobra.Command{Use: name + " NODE", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return l.do(cmd, args[0]+" "+done, func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return plain(f(c, ctx, args[0]))
			})
		}}
	}
	cmd.AddCommand(
		&cobra.Command{Use: "cut NODE", Short: "Cut the power: every process is gone, disks lose what was not flushed", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return l.do(cmd, args[0]+" has no power", func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
					return c.CutNode(ctx, args[0])
				})
			}},
		&cobra.Command{Use: "binary NODE [PATH]", Short: "Run another build of roseau from the next boot on (without PATH: the lab's own again)", Args: cobra.RangeArgs(1, 2),
			RunE: func(cmd *cobra.Command, args []string) error {
				path, done := "", args[0]+" boots with the lab's roseau"
				if len(args) == 2 {
					abs, err := filepath.Abs(args[1])
					if err != nil {
						return err
					}
					path, done = abs, args[0]+" boots with "+abs
				}
				return l.do(cmd, done, func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
					return plain(c.NodeBinary(ctx, args[0], path))
				})
			}},
		verb("restore", "Give the power back", "boots", (*labclient.Client).RestoreNode),
		verb("freeze", "Stop every process at once", "is frozen", (*labclient.Client).FreezeNode),
		verb("thaw", "Let a frozen node go on", "goes on", (*labclient.Client).ThawNode),
		&cobra.Command{Use: "shell NODE", Short: "A shell on the node", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return l.run(cmd, args[0], []string{"/bin/bash", "-l"})
		}},
	)
	return cmd
}

func (l *labApp) link() *cobra.Command {
	cmd := &cobra.Command{Use: "link", Short: "Cables of one node"}
	for _, v := range []struct {
		name, short, done string
		f                 func(*labclient.Client, context.Context, string, string) error
	}{
		{"cut", "Pull a node's cables", "is unplugged", (*labclient.Client).LinkCut},
		{"restore", "Plug a node's cables in", "is plugged in", (*labclient.Client).LinkRestore},
	} {
		network := ""
		c := &cobra.Command{Use: v.name + " NODE", Short: v.short, Args: cobra.ExactArgs(1)}
		c.Flags().StringVar(&network, "network", "", "cluster, storage or vm (default: all)")
		c.RunE = func(cmd *cobra.Command, args []string) error {
			return l.do(cmd, args[0]+" "+v.done, func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return plain(v.f(c, ctx, args[0], network))
			})
		}
		cmd.AddCommand(c)
	}
	network, percent := "", 5
	lossy := &cobra.Command{Use: "lossy NODE", Short: "Let a node's cables lose frames, at random, in both directions", Args: cobra.ExactArgs(1)}
	lossy.Flags().StringVar(&network, "network", "", "cluster, storage or vm (default: all)")
	lossy.Flags().IntVar(&percent, "percent", percent, "of the frames, 0 to 100; 0 ends it")
	lossy.RunE = func(cmd *cobra.Command, args []string) error {
		return l.do(cmd, fmt.Sprintf("%s loses %d%% of its frames", args[0], percent), func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
			return plain(c.LinkLossy(ctx, args[0], network, percent))
		})
	}
	cmd.AddCommand(lossy)
	return cmd
}

func (l *labApp) disk() *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "Disks of the nodes: NODE/DISK, for example n2/d1"}
	verb := func(use, short, done string, f func(context.Context, *labclient.Client, string, string) (labclient.Answer, error)) *cobra.Command {
		return &cobra.Command{Use: use + " NODE/DISK", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			node, disk, ok := strings.Cut(args[0], "/")
			if !ok {
				return errs.New(errs.Invalid, "find disk %q: want NODE/DISK, for example n2/d1", args[0])
			}
			return l.do(cmd, args[0]+" "+done, func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return f(ctx, c, node, disk)
			})
		}}
	}
	latency := 100 * time.Millisecond
	slow := verb("slow", "Add latency to every operation", "is slow", func(ctx context.Context, c *labclient.Client, n, d string) (labclient.Answer, error) {
		return plain(c.DiskSlow(ctx, n, d, latency))
	})
	slow.Flags().DurationVar(&latency, "latency", latency, "added to each operation; 0 ends it")
	var req labclient.Request
	corrupt := verb("corrupt", "Flip bits at rest, where something is written", "is corrupted", func(ctx context.Context, c *labclient.Client, n, d string) (labclient.Answer, error) {
		req.Node, req.Disk = n, d
		return c.DiskCorrupt(ctx, req)
	})
	corrupt.Flags().IntVar(&req.Count, "bits", 8, "number of bits")
	corrupt.Flags().Int64Var(&req.From, "from", 0, "first byte")
	corrupt.Flags().Int64Var(&req.To, "to", 0, "byte behind the last (0 = end)")
	corrupt.Flags().Uint64Var(&req.Seed, "seed", 0, "seed of the choice (0 = drawn)")
	cmd.AddCommand(slow, corrupt, l.diskHealth(),
		verb("pull", "Take a disk out; what it had not flushed is torn", "is out", func(ctx context.Context, c *labclient.Client, n, d string) (labclient.Answer, error) {
			return plain(c.DiskPull(ctx, n, d))
		}),
		verb("insert", "Put a disk back in; also ends slow and hang", "is in", func(ctx context.Context, c *labclient.Client, n, d string) (labclient.Answer, error) {
			return plain(c.DiskInsert(ctx, n, d))
		}),
		verb("hang", "Let every operation wait, until insert or pull", "hangs", func(ctx context.Context, c *labclient.Client, n, d string) (labclient.Answer, error) {
			return plain(c.DiskHang(ctx, n, d))
		}))
	return cmd
}

func (l *labApp) power() *cobra.Command {
	cmd := &cobra.Command{Use: "power", Short: "Power of all nodes"}
	cmd.AddCommand(
		&cobra.Command{Use: "cut", Short: "Cut the power of all nodes at once", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return l.do(cmd, "no node has power", func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) { return c.PowerCut(ctx) })
		}},
		&cobra.Command{Use: "restore", Short: "Give all nodes their power back", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return l.do(cmd, "all nodes boot", func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return plain(c.PowerRestore(ctx))
			})
		}})
	return cmd
}

func (l *labApp) partition() *cobra.Command {
	network := ""
	cmd := &cobra.Command{Use: "partition A,B/C", Short: "Part groups of nodes, for example n1,n2/n3", Args: cobra.ExactArgs(1)}
	cmd.Flags().StringVar(&network, "network", "", "cluster, storage or vm (default: all)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, err := lab.ParseGroups(args[0])
		if err != nil {
			return err
		}
		return l.do(cmd, "parted: "+args[0], func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
			return plain(c.Partition(ctx, network, groups...))
		})
	}
	return cmd
}

func (l *labApp) heal() *cobra.Command {
	return &cobra.Command{Use: "heal", Short: "End the partition, plug in every cable, let none lose frames", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return l.do(cmd, "healed", func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) { return plain(c.Heal(ctx)) })
	}}
}

func (l *labApp) service() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Short: "Services of a node: node, etcd, storage, guard:VM, volume:ID; of the witness: witness"}
	for _, v := range []struct {
		name, short, done string
		f                 func(*labclient.Client, context.Context, string, string) error
	}{
		{"stop", "Stop a service until start", "stopped", (*labclient.Client).ServiceStop},
		{"start", "Start a service", "started", (*labclient.Client).ServiceStart},
		{"kill", "kill -9 a service; its supervisor restarts it", "killed", func(c *labclient.Client, ctx context.Context, node, service string) error {
			_, err := c.ServiceKill(ctx, node, service)
			return err
		}},
		{"reset", "Reset the TCP connections of a service (storage or node); they are made anew", "has other connections", (*labclient.Client).ServiceReset},
	} {
		cmd.AddCommand(&cobra.Command{Use: v.name + " NODE SERVICE", Short: v.short, Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			return l.do(cmd, fmt.Sprintf("%s of %s %s", args[1], args[0], v.done), func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return plain(v.f(c, ctx, args[0], args[1]))
			})
		}})
	}
	return cmd
}

func (l *labApp) exec() *cobra.Command {
	return &cobra.Command{Use: "exec NODE -- CMD [ARG...]", Short: "Run a command on a node", Args: cobra.MinimumNArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
		return l.run(cmd, args[0], args[1:])
	}}
}

// exitError carries the exit code of a command that ran on a node.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("the command ended with code %d", e.code) }

func (l *labApp) run(cmd *cobra.Command, node string, argv []string) error {
	c, err := l.client()
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	for _, n := range st.Machines() {
		if n.Name != node {
			continue
		}
		code, err := lab.Exec(cmd.Context(), n, argv, lab.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
		if err == nil && code != 0 {
			return exitError{code}
		}
		return err
	}
	return errs.New(errs.NotFound, "find node %q in lab %s of %s", node, l.name, filepath.Dir(c.Dir()))
}
