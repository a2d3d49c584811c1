package cli

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/storage"
)

// newStorageCmd is the storage process itself, and without it the offline tools
// for a disk.
func newStorageCmd() *cobra.Command {
	var debug bool
	cmd := &cobra.Command{Use: "storage", Short: "Serve this machine's disks (run by the service manager)", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		level := slog.LevelInfo
		if debug {
			level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
		return storage.Run(cmd.Context(), storage.Options{Log: log, Clock: clock.System{}, Lab: storage.LabNode()})
	}}
	cmd.Flags().BoolVar(&debug, "debug", false, "log more")
	cmd.AddCommand(
		&cobra.Command{Use: "fsck DISK", Short: "Check a disk that no process uses; writes nothing", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return storageFsck(cmd, args[0])
		}},
		&cobra.Command{Use: "dump DISK", Short: "Print what is on a disk that no process uses", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return storage.Dump(cmd.OutOrStdout(), args[0])
		}},
	)
	return cmd
}

func storageFsck(cmd *cobra.Command, path string) error {
	r, err := storage.Fsck(path)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "disk %s of cluster %s: %d superblock copies, %d volumes, %d extents, %d blocks compared\n",
		r.Superblock.Identity.Disk, r.Superblock.Identity.Cluster, r.Copies, len(r.Volumes), r.Extents, r.Blocks)
	fmt.Fprintf(w, "log: %d batches, %d records, %d bytes of torn tail, %d extents to apply\n", r.Batches, r.Records, r.TailBytes, r.Pending)
	for _, p := range r.Problems {
		fmt.Fprintln(w, "problem:", p)
	}
	if n := len(r.Problems); n > 0 {
		return errs.New(errs.Corrupt, "check disk %s: %d problems", path, n).
			WithHint("the copies on other nodes are good as long as their volumes are: release this disk and let it be rebuilt")
	}
	return nil
}
