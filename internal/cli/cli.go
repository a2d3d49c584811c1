// Package cli is the command line: one file a noun. Commands can do only what
// the API can do; the processes (node, storage, vmguard, lab) are started here
// and live in packages of their own.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
)

// root returns the whole command tree.
func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "roseau",
		Short:         "A failover cluster for virtual machines out of ordinary machines",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(
	// one constructor a noun, in alphabetical order
	)
	return cmd
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
