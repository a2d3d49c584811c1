package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/base/version"
	"roseau/internal/bench"
	"roseau/internal/drill"
)

// newBenchCmd compares the mirror engine with QEMU's own means on one disk; it
// needs no cluster. `make bench` runs it.
func newBenchCmd() *cobra.Command {
	var o bench.Options
	var dir, report, commit string
	var sizeMiB int64
	var jobs, targets []string
	var reportOnly bool
	cmd := &cobra.Command{
		Use:    "bench",
		Short:  "Compare a volume of three copies with qemu-nbd, QEMU's quorum and Ceph on one disk",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			if arg := os.Getenv(bench.StorageEnv); arg != "" {
				return bench.RunStorage(cmd.Context(), arg, log)
			}
			o.SizeBytes, o.Progress = sizeMiB<<20, os.Stderr
			if len(jobs) > 0 {
				if o.Jobs, err = bench.JobsByID(jobs); err != nil {
					return err
				}
			}
			if o.Targets, err = bench.TargetNames(targets); err != nil {
				return err
			}
			var r *bench.Result
			if reportOnly {
				r, err = bench.FromState(o)
			} else {
				r, err = compare(cmd.Context(), dir, o, log)
			}
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), r.Table())
			if report == "" {
				return nil
			}
			return writeBench(r, report, commit)
		},
	}
	cmd.AddCommand(newBenchRecoveryCmd())
	f := cmd.Flags()
	f.StringVar(&dir, "dir", os.TempDir(), "directory on the disk to measure")
	f.StringVar(&report, "report", "", "write the page to this file, and its plot beside")
	f.StringVar(&commit, "commit", "unknown", "commit to name in the report")
	f.StringVar(&o.State, "state", "", "keep figures in this file, and go on with those that it has")
	f.BoolVar(&reportOnly, "report-only", false, "measure nothing: make the page of what --state has")
	f.StringSliceVar(&jobs, "jobs", nil, "rows: w1, w16, wf1, wf16, r1, r16, fresh, sw, sr (default all)")
	f.StringSliceVar(&targets, "targets", nil, "raw, qemu-nbd, quorum, ceph, roseau (default all that are installed)")
	f.Int64Var(&sizeMiB, "size-mib", 256, "data of each target in MiB")
	f.IntVar(&o.Rounds, "rounds", 5, "interleaved rounds")
	f.DurationVar(&o.Runtime, "runtime", 4*time.Second, "of one job on one target")
	return cmd
}

// compare measures, with a profile if the environment asks for one.
func compare(ctx context.Context, dir string, o bench.Options, log *slog.Logger) (r *bench.Result, err error) {
	stop, err := bench.Profile("writer")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return bench.Compare(ctx, dir, o, log)
}

// benchLimits begins the section of the page that people write; it is kept.
const benchLimits = "\n## What limits the rows\n"

// writeBench writes the page and its plot.
func writeBench(r *bench.Result, report, commit string) error {
	if err := os.MkdirAll(filepath.Dir(report), 0o755); err != nil {
		return err
	}
	plot := strings.TrimSuffix(report, filepath.Ext(report)) + ".svg"
	var page, svg bytes.Buffer
	err := errors.Join(r.Report(&page, commit, filepath.Base(plot), clock.System{}.Wall()), r.Plot(&svg))
	if old, rerr := os.ReadFile(report); rerr == nil {
		if i := bytes.Index(old, []byte(benchLimits)); i >= 0 {
			page.Write(old[i:])
		}
	}
	return errors.Join(err,
		os.WriteFile(report, page.Bytes(), 0o644), os.WriteFile(plot, svg.Bytes(), 0o644))
}

// recoveryLimits begins the section of the page that people write; it is kept.
const recoveryLimits = "\n## What limits the figures\n"

// newBenchRecoveryCmd measures what happens when copies fail and come back.
func newBenchRecoveryCmd() *cobra.Command {
	var dir, report string
	cmd := &cobra.Command{
		Use:   "recovery",
		Short: "Measure stalls, resync, rebuild and idle cost of a volume of three copies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			load := drill.LoadAverage()
			figs, err := bench.MeasureRecovery(cmd.Context(), dir, os.Stderr, log)
			table := bench.RecoveryTable(figs)
			fmt.Fprint(cmd.OutOrStdout(), table)
			if err != nil || report == "" {
				return err
			}
			page := fmt.Sprintf("# Failures and recovery\n\n%s, commit %s, %d CPUs, load average at the start %s. Made by `make bench-recovery`: one volume of three copies on one disk, two of its links under TLS.\n"+
				"\"Writer killed\" is its end without a word; how long a guest stands still then is measured by the drill, too (`process-kill`).\n\n%s",
				clock.System{}.Wall().UTC().Format("2006-01-02 15:04 MST"), version.String(), runtime.NumCPU(), load, table)
			if old, err := os.ReadFile(report); err == nil {
				if i := bytes.Index(old, []byte(recoveryLimits)); i >= 0 {
					page += string(old[i:])
				}
			}
			return os.WriteFile(report, []byte(page), 0o644)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", os.TempDir(), "directory on the disk to measure; 12 GiB are used")
	cmd.Flags().StringVar(&report, "report", "", "write the table to this file, too")
	return cmd
}
