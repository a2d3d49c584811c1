package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"roseau/internal/svc/secret"
)

func newSecretCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "secret", Short: "The secrets that the nodes share: whose they are and who can read them",
		Long: "Secrets are sealed for the certificates of the cluster's nodes and come in with the commands that need them (`node bmc set`);\nno command shows what they say."}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List secrets, never what they say", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		var l []secret.Info
		return a.get(cmd, "/v1/secrets", &l, func() *table {
			t := newTable("KIND", "OWNER", "SET", "SEALED", "READERS", "REMARK")
			for _, s := range l {
				owner, remark := s.Owned, ""
				if owner == "" {
					owner = s.Owner
				}
				if len(s.Missing) > 0 {
					remark = "not yet for " + strings.Join(s.Missing, ", ")
				}
				if len(s.Exposed) > 0 {
					remark = "set it anew: known to " + strings.Join(s.Exposed, ", ") + ", which left"
				}
				t.row(s.Kind, owner, when(s.Set), when(s.Sealed), strings.Join(s.Readers, ","), remark)
			}
			return t
		})
	}})
	return cmd
}
