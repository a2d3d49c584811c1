package cli

import (
	"github.com/spf13/cobra"

	"roseau/internal/base/ids"
	"roseau/internal/volumeguard"
)

// newVolumeguardCmd is the process that writes a volume without a VM; units
// start it, people do not.
func newVolumeguardCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "volumeguard VOLUME-ID",
		Short:  "Serve, import, export or repair one volume (started by roseau node)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vol, err := ids.Parse(args[0])
			if err != nil {
				return err
			}
			return volumeguard.Run(cmd.Context(), vol, processLog(false))
		},
	}
}
