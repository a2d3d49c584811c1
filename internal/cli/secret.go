package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"roseau/internal/base/errs"
	core "roseau/internal/secret"
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

// readSecret takes a secret from a file ("-": standard input), or from a prompt
// that does not show it. One line end at its end is not part of it.
func readSecret(cmd *cobra.Command, what, file, flag string) (string, error) {
	var data []byte
	var err error
	in, isFile := cmd.InOrStdin().(*os.File)
	switch {
	case file == "-":
		data, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), core.MaxContentBytes+2))
	case file != "":
		var f *os.File
		if f, err = os.Open(file); err == nil {
			data, err = io.ReadAll(io.LimitReader(f, core.MaxContentBytes+2))
			f.Close()
		}
	case isFile && term.IsTerminal(int(in.Fd())):
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: ", what)
		data, err = term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
	default:
		return "", errs.New(errs.Invalid, "read %s: there is no terminal to type it at", what).
			WithHint("say %s FILE, or %s - for standard input; it is never an argument", flag, flag)
	}
	if err != nil {
		return "", errs.New(errs.Invalid, "read %s: %w", what, err)
	}
	data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	if len(data) == 0 {
		return "", errs.New(errs.Invalid, "read %s: it is empty", what)
	}
	return string(data), nil
}
