package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/svc/vm"
)

func newVMSnapshotCmd(a *app) *cobra.Command {
	path := func(ref string) string { return vmPath(ref) + "/snapshots" }
	one := func(args []string) string { return path(args[0]) + "/" + url.PathEscape(args[1]) }
	cmd := &cobra.Command{Use: "snapshot", Short: "Snapshots of a VM: all of its volumes at one moment",
		Long: "Snapshots of a VM: all of its volumes at one moment, without its memory. A guest that is started from one finds its disks as after a power failure. " +
			"Taking one copies nothing and stops writes for some milliseconds, whether the VM runs or not."}
	cmd.AddCommand(
		&cobra.Command{Use: "create VM NAME", Short: "Take a snapshot", Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			out := new(vm.SnapshotInfo)
			return a.change(cmd, http.MethodPost, path(args[0]), vm.SnapshotRequest{Name: args[1]}, out, func() string {
				return fmt.Sprintf("snapshot %s of vm %s taken, volumes %s", out.Name, args[0], strings.Join(out.Volumes, ", "))
			})
		}},
		&cobra.Command{Use: "list VM", Short: "List snapshots, oldest first", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var list []vm.SnapshotInfo
			return a.get(cmd, path(args[0]), &list, func() *table {
				t := newTable("NAME", "CREATED", "VOLUMES", "MISSING")
				for _, s := range list {
					t.row(s.Name, s.Created.Format(time.RFC3339), strings.Join(s.Volumes, ", "), strings.Join(s.Missing, ", "))
				}
				return t
			})
		}},
		destroys(&cobra.Command{Use: "delete VM NAME", Short: "Delete a snapshot", Annotations: map[string]string{confirmLast: "yes"}, Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, one(args), nil, nil, func() string {
				return fmt.Sprintf("snapshot %s of vm %s deleted", args[1], args[0])
			})
		}}),
		destroys(&cobra.Command{Use: "rollback VM NAME", Short: "Take the volumes of a stopped VM back to a snapshot", Annotations: map[string]string{confirmFirst: "yes"}, Args: cobra.ExactArgs(2),
			Long: "Take all volumes of a stopped VM back to a snapshot, all or none. What was written since is lost; snapshots, newer ones too, stay. " +
				"Once the command is accepted it is carried out, whatever fails meanwhile: a VM that is started waits until it is done.",
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.change(cmd, http.MethodPost, one(args)+"/rollback", nil, nil, nil)
			}}),
	)
	return cmd
}
