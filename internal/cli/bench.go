package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/bench"
)

// newBenchCmd compares the mirror engine with QEMU's own means on one disk; it
// needs no cluster. `make bench` runs it.
func newBenchCmd() *cobra.Command {
	var o bench.Options
	var dir, report, commit string
	var sizeMiB int64
	cmd := &cobra.Command{
		Use:    "bench",
		Short:  "Compare a volume of three copies with qemu-nbd and QEMU's quorum on one disk",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			if arg := os.Getenv(bench.StorageEnv); arg != "" {
				return bench.RunStorage(cmd.Context(), arg, log)
			}
			o.SizeBytes, o.Progress = sizeMiB<<20, os.Stderr
			r, err := bench.Compare(cmd.Context(), dir, o, log)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), r.Table("quorum"))
			if report == "" {
				return nil
			}
			if err := os.MkdirAll(filepath.Dir(report), 0o755); err != nil {
				return err
			}
			f, err := os.Create(report)
			if err != nil {
				return err
			}
			defer f.Close()
			return r.Report(f, commit, clock.System{}.Wall())
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", os.TempDir(), "directory on the disk to measure")
	f.StringVar(&report, "report", "", "write the table to this file, too")
	f.StringVar(&commit, "commit", "unknown", "commit to name in the report")
	f.Int64Var(&sizeMiB, "size-mib", 256, "data of each target in MiB")
	f.IntVar(&o.Rounds, "rounds", 3, "interleaved rounds")
	f.DurationVar(&o.Runtime, "runtime", 2*time.Second, "of one job on one target")
	return cmd
}
