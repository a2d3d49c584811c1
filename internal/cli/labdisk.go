package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/core/diskcare"
	"roseau/internal/lab/labclient"
)

// diskHealth sets what a lab's disk says of itself.
func (l *labApp) diskHealth() *cobra.Command {
	var temperature, wear, spare int
	var media, pending uint64
	var failing, clear bool
	cmd := &cobra.Command{
		Use: "health NODE/DISK", Short: "Say what the disk's own health report says", Args: cobra.ExactArgs(1),
		Example: "  roseau lab disk health n2/d1 --temperature 71 --wear 96\n  roseau lab disk health n2/d1 --clear",
	}
	f := cmd.Flags()
	f.IntVar(&temperature, "temperature", 38, "degrees Celsius")
	f.IntVar(&wear, "wear", 3, "percent of its rated endurance that is used")
	f.IntVar(&spare, "spare", 100, "percent of its spare blocks that are left")
	f.Uint64Var(&media, "media-errors", 0, "errors of its medium so far")
	f.Uint64Var(&pending, "pending", 0, "sectors that wait to be reallocated")
	f.BoolVar(&failing, "failing", false, "the drive predicts its own failure")
	f.BoolVar(&clear, "clear", false, "it says nothing any more")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		node, disk, ok := strings.Cut(args[0], "/")
		if !ok {
			return errs.New(errs.Invalid, "find disk %q: want NODE/DISK, for example n2/d1", args[0])
		}
		limit := 10
		h := &diskcare.Health{Kind: "nvme", Failing: failing, TemperatureC: &temperature, WearPercent: &wear, SparePercent: &spare, SpareLimit: &limit, MediaErrors: &media, Pending: &pending}
		if clear {
			h = nil
		}
		return l.do(cmd, args[0]+" says so", func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
			return plain(c.DiskHealth(ctx, node, disk, h))
		})
	}
	return cmd
}
