package cli

import (
	"bufio"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/base/version"
	"roseau/internal/svc/member"
	"roseau/internal/witness"
)

func newWitnessCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "witness", Short: "A third machine that votes, so that the last node keeps serving"}
	cmd.AddCommand(newWitnessAdd(a), newWitnessRun(), newWitnessRemove(a), newWitnessStatus(a))
	return cmd
}

func newWitnessAdd(a *app) *cobra.Command {
	var life time.Duration
	cmd := &cobra.Command{Use: "add", Short: "Make a token with which one machine can become the witness, once",
		Long: "Make a token with which one machine can become the witness, once, and print the\ncommand for that machine. It needs no disks and little memory, but must not be\none of the nodes: it would fail with it.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var out struct {
				Name    string    `json:"name"`
				Expires time.Time `json:"expires"`
				Token   string    `json:"token"`
			}
			in := map[string]any{"life": life.String(), "witness": true}
			return a.change(cmd, http.MethodPost, "/v1/tokens", in, &out, func() string {
				return fmt.Sprintf("on the machine that is to be the witness, once:\n\n  roseau witness run --join-only --address IP %s\n\nthen: systemctl enable --now roseau-witness", out.Token)
			})
		}}
	cmd.Flags().DurationVar(&life, "expires", member.DefaultTokenLife, "how long the token can be used, 1m to 168h")
	return cmd
}

func newWitnessRun() *cobra.Command {
	var req witness.JoinRequest
	var dir string
	var joinOnly bool
	cmd := &cobra.Command{Use: "run [TOKEN]", Short: "Be the witness (the process on the third machine)",
		Long: "Be the witness. With TOKEN (or -, read from standard input) the machine joins\nfirst; later starts need none. Without a token a machine that is no witness yet\nwaits until it has been made one by --join-only.",
		Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				var err error
				if req.Token = args[0]; req.Token == "-" {
					if req.Token, err = bufio.NewReader(cmd.InOrStdin()).ReadString('\n'); err != nil && req.Token == "" {
						return errs.New(errs.Invalid, "read token from standard input: %w", err)
					}
				}
				if err := joinWitness(cmd, dir, req); err != nil {
					return err
				}
			} else if joinOnly {
				return errs.New(errs.Invalid, "join witness: no token").WithHint("`roseau witness add` on a node of the cluster prints the whole command")
			}
			if joinOnly {
				fmt.Fprintf(cmd.OutOrStdout(), "this machine is the witness; its process begins to vote when all voters are up\n")
				return nil
			}
			return witness.Run(cmd.Context(), witness.Options{Dir: dir, Version: version.String(), Clock: clock.System{}, Log: processLog(false)})
		}}
	f := cmd.Flags()
	f.StringVar(&req.Address, "address", "", "IP address of this machine that the nodes reach (with TOKEN)")
	f.StringVar(&req.Name, "name", "", "name of the witness (default: the host name)")
	f.IntVar(&req.Port, "port", witness.DefaultPort, "first of the 13 ports that it uses")
	f.StringVar(&dir, "data-dir", paths.Witness, "where its data are")
	f.BoolVar(&joinOnly, "join-only", false, "join, then end: the service does the rest")
	return cmd
}

func joinWitness(cmd *cobra.Command, dir string, req witness.JoinRequest) error {
	if req.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name this witness: %w", err)
		}
		req.Name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	return witness.Join(cmd.Context(), dir, req)
}

func newWitnessRemove(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "remove NAME", Short: "Take the witness's votes and remove it", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodDelete, "/v1/witness/"+url.PathEscape(args[0]), nil, nil, func() string { return "witness " + args[0] + " removed" })
	}}
	a.dryRunFlag(cmd)
	return cmd
}

func newWitnessStatus(a *app) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "The witness, its votes and its starts", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		var st member.WitnessState
		return a.get(cmd, "/v1/witness", &st, func() *table {
			tb := newSheet().row("name", st.Name).row("id", st.ID).row("present", yes(st.Present)).row("votes", st.Votes).
				row("address", fmt.Sprintf("%s, ports %d to %d", st.Address, st.Port, st.Port+12)).row("starts", st.Starts).row("version", st.Version)
			if st.Leaving {
				tb.line("it is leaving")
			}
			return tb
		})
	}}
}
