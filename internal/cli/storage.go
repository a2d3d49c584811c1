package cli

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
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
	return cmd
}
