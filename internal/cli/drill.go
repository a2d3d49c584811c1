package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/version"
	"roseau/internal/client"
	"roseau/internal/drill"
	"roseau/internal/drill/guestimage"
	"roseau/internal/drill/inlab"
	"roseau/internal/drill/viaapi"
	"roseau/internal/lab/labclient"
)

func newDrillCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "drill", Short: "The acceptance tests, on this very cluster"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List the tests", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			ts := drill.Tests()
			return a.show(cmd, ts, func() *table {
				t := newTable("TEST", "WHAT", "METHOD")
				for _, d := range ts {
					t.row(d.Name, d.Summary, d.Method)
				}
				return t
			})
		}},
		newDrillRunCmd(a), newDrillSoakCmd(a),
	)
	return cmd
}

func newDrillRunCmd(a *app) *cobra.Command {
	var report, network, labName string
	var repeat drill.Repeat
	cmd := &cobra.Command{Use: "run [TEST...]", Short: "Run tests (default: live-migration, node-failure, disk-failure) and print the table",
		Long: "Runs acceptance tests on the lab that is up. Each starts a VM of its own, does to the cluster what its name says,\nwatches from outside, reads every acknowledged write back, and cleans up. Exit code 0: every test passed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			tests, err := drill.Select(args)
			if err != nil {
				return err
			}
			env, _, done, err := a.drillEnv(cmd, labName, network)
			if err != nil {
				return err
			}
			defer done()
			env.Version, env.Repeat = version.String(), repeat
			rep, err := drill.Run(cmd.Context(), env, tests)
			if rep == nil {
				return err
			}
			rep.Version = version.String()
			if report != "" {
				if e := rep.WriteFiles(report); e != nil {
					return e
				}
			}
			if e := a.show(cmd, rep, nil); e != nil {
				return e
			}
			if a.output == "" || a.output == "table" {
				fmt.Fprintln(cmd.OutOrStdout())
				if e := rep.WriteTable(cmd.OutOrStdout()); e != nil {
					return e
				}
			}
			if err == nil && !rep.Passed() {
				err = errs.New(errs.Conflict, "the drill failed")
			}
			return err
		}}
	cmd.Flags().StringVar(&report, "report", "", "folder for report.json, report.md and report.html")
	cmd.Flags().StringVar(&network, "network", "lan", "network that the probe VM is plugged into")
	cmd.Flags().IntVar(&repeat.Runs, "runs", 6, "how often `migrations` moves its VM, and `failovers` cuts the power of its node (and half as often with the HA manager there)")
	cmd.Flags().BoolVar(&repeat.AllPairs, "all-pairs", false, "migrations: from every node to every other, instead of where the scheduler says")
	cmd.Flags().DurationVar(&repeat.Within, "within", 0, "migrations, failovers: begin none after this time (0: no limit)")
	cmd.Flags().StringVar(&repeat.Keep, "keep", "", "migrations, failovers: file of finished runs, which a later call goes on from")
	cmd.Flags().StringVar(&repeat.Markdown, "markdown", "", "migrations, failovers: file for the table of all runs")
	cmd.Flags().StringVar(&repeat.Commit, "commit", version.String(), "migrations, failovers: commit that the table names")
	cmd.Flags().StringVar(&labName, "name", "", "lab (default: the lab of the current context)")
	return cmd
}

// drillEnv connects the drill with the cluster and with the lab below it.
func (a *app) drillEnv(cmd *cobra.Command, labName, network string) (env drill.Env, lab *inlab.Lab, done func(), err error) {
	c, err := a.client()
	if err != nil {
		return env, nil, nil, err
	}
	if labName == "" {
		labName = currentLab(a.context)
	}
	l, err := labclient.Open(labName)
	if err != nil {
		return env, nil, nil, err
	}
	lab = inlab.New(l)
	if err := lab.Ready(cmd.Context()); err != nil {
		return env, nil, nil, err
	}
	b, err := guestBuilder()
	if err != nil {
		return env, nil, nil, err
	}
	img, err := b.Build(cmd.Context())
	if err != nil {
		return env, nil, nil, err
	}
	work, err := os.MkdirTemp("", "roseau-drill-")
	if err != nil {
		return env, nil, nil, err
	}
	env = drill.Env{Cluster: viaapi.New(c), Faults: lab, Vantage: lab, Rough: lab, Frames: lab, Out: cmd.ErrOrStderr(), Log: slog.New(slog.DiscardHandler), Image: img, WorkDir: work, Network: network}
	return env, lab, func() { os.RemoveAll(work); l.Close() }, nil
}

// guestBuilder makes the guests' images in the user's cache, with the guest's
// program from beside this binary.
func guestBuilder() (b guestimage.Builder, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return b, err
	}
	self, err := os.Executable()
	if err != nil {
		return b, err
	}
	return guestimage.Builder{CacheDir: filepath.Join(cache, "roseau", "guests"), Probe: filepath.Join(filepath.Dir(self), "roseau-probe")}, nil
}

// currentLab is the lab whose context the commands use; a lab says so
// in its context.
func currentLab(name string) string {
	if name == "" {
		if cs, err := client.LoadContexts(); err == nil {
			name = cs.Current
		}
	}
	if cs, err := client.LoadContexts(); err == nil {
		if ctx, ok := cs.Contexts[name]; ok && ctx.Origin != "" {
			return strings.TrimPrefix(ctx.Origin, "lab ")
		}
	}
	return labclient.DefaultName
}
