package cli

import (
	"github.com/spf13/cobra"

	"roseau/internal/base/ids"
	"roseau/internal/guard"
)

// newVMGuardCmd is the process that keeps one VM; units start it, people do not.
func newVMGuardCmd() *cobra.Command {
	var stopped bool
	cmd := &cobra.Command{
		Use:    "vmguard VM-ID",
		Short:  "Keep one virtual machine (started by roseau node)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := ids.Parse(args[0])
			if err != nil {
				return err
			}
			if stopped {
				return guard.StopQEMU(vm)
			}
			return guard.Run(cmd.Context(), vm, processLog(false))
		},
	}
	cmd.Flags().BoolVar(&stopped, "stopped", false, "stop the machine's QEMU after its guard died (run by the supervisor)")
	return cmd
}
