// Package cli is the command line: one file a noun. Commands can do only what
// the API can do; the processes (node, storage, vmguard, lab) are started here
// and live in packages of their own.
package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/version"
)

// root returns the whole command tree.
func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "roseau",
		Short:         "A failover cluster for virtual machines out of ordinary machines",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	a := &app{}
	a.flags(cmd)
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return a.check() }
	cmd.Version = version.String()
	cmd.AddCommand(
		// one constructor a noun, in alphabetical order
		newBenchCmd(),
		newClusterCmd(a), newWitnessCmd(a),
		newDiskCmd(a),
		newDrillCmd(a),
		newEventsCmd(a),
		newImageCmd(a),
		newLabCmd(a),
		newNetworkCmd(a),
		newRuleCmd(a),
		newBalanceCmd(a),
		newNodeCmd(a),
		newPoolCmd(a),
		newSecretCmd(a),
		newSimCmd(),
		newStorageCmd(a),
		newTaskCmd(a),
		newVersionCmd(a),
		newVMCmd(a),
		newVMGuardCmd(),
		newVolumeCmd(a),
		newVolumeguardCmd(),
	)
	cmd.AddCommand(newLabProcessCmds()...)
	usageErrors(cmd)
	return cmd
}

// processLog is the log of a process that a supervisor runs, which keeps its stderr.
func processLog(debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// usageErrors gives wrong usage, which cobra reports as plain text, the kind
// Invalid; and a group of commands without a verb prints its help.
func usageErrors(cmd *cobra.Command) {
	invalid := func(c *cobra.Command, err error) error {
		if err == nil || errs.Kind(err) != nil {
			return err
		}
		return errs.New(errs.Invalid, "%w", err).WithHint("see `%s --help`", c.CommandPath())
	}
	cmd.SetFlagErrorFunc(invalid)
	if !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return invalid(c, fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath()))
			}
			return c.Help()
		}
	} else if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error { return invalid(c, args(c, a)) }
	}
	for _, c := range cmd.Commands() {
		usageErrors(c)
	}
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		v := map[string]string{"version": version.String(), "go": runtime.Version()}
		return a.show(cmd, v, func() *table { return newSheet().row("roseau", version.String()).row("go", runtime.Version()) })
	}}
}

// Exit codes by kind of error.
const (
	ExitInternal    = 1
	ExitInvalid     = 2 // also wrong usage
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitUnavailable = 5
	ExitExhausted   = 6
	ExitCorrupt     = 7
	ExitDenied      = 8
)

// exitCode maps the kind of err.
func exitCode(err error) int {
	switch errs.Kind(err) {
	case errs.Invalid:
		return ExitInvalid
	case errs.NotFound:
		return ExitNotFound
	case errs.Conflict, errs.Fenced:
		return ExitConflict
	case errs.Unavailable, errs.NotLeader:
		return ExitUnavailable
	case errs.Exhausted:
		return ExitExhausted
	case errs.Corrupt:
		return ExitCorrupt
	case errs.Denied:
		return ExitDenied
	}
	return ExitInternal
}

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := root()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitError
	if errors.As(err, &exit) {
		return exit.code // of a command on a lab node, which said itself what is wrong
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "roseau: interrupted")
		return 130
	}
	fmt.Fprintln(os.Stderr, "roseau:", err)
	if hint := errs.Hint(err); hint != "" {
		fmt.Fprintln(os.Stderr, "  ->", hint)
	}
	return exitCode(err)
}
