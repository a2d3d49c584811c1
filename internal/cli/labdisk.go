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

// bmc is the nodes' management controllers, from outside: their network and their
// certificates. What they do, `roseau node power` and `roseau node bmc` order.
func (l *labApp) bmc() *cobra.Command {
	cmd := &cobra.Command{Use: "bmc", Short: "The network and certificates of the nodes' management controllers",
		Long: "Each node has a Redfish BMC that powers it; `lab up` sets it in the cluster. `lab status -o json` shows address, user, the file with the password, and the certificate's SHA-256."}
	for _, v := range []struct {
		name, short, done string
		do                func(*labclient.Client, context.Context, string) error
	}{
		{"cut", "Take a node's BMC off the network", "'s BMC is off the network", (*labclient.Client).BMCCut},
		{"restore", "Put it back", "'s BMC is on the network", (*labclient.Client).BMCRestore},
		{"renew", "Give it another certificate, as a replaced one has", "'s BMC has another certificate", (*labclient.Client).BMCRenew},
	} {
		cmd.AddCommand(&cobra.Command{Use: v.name + " NODE", Short: v.short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return l.do(cmd, args[0]+v.done, func(ctx context.Context, c *labclient.Client) (labclient.Answer, error) {
				return plain(v.do(c, ctx, args[0]))
			})
		}})
	}
	return cmd
}
