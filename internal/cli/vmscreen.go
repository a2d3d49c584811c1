package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/driver/guardctl"
)

func newVMScreenshotCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "screenshot VM [FILE]", Short: "Write what a VM shows as a PNG file (default VM.png; - is standard output)", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := args[0] + ".png"
			if len(args) == 2 {
				file = args[1]
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			var s guardctl.Screenshot
			if err := c.Get(cmd.Context(), vmPath(args[0])+"/screenshot", &s); err != nil {
				return err
			}
			if a.output != "" && a.output != "table" {
				return a.show(cmd, s, nil)
			}
			if file == "-" {
				_, err := cmd.OutOrStdout().Write(s.PNG)
				return err
			}
			how := os.O_WRONLY | os.O_CREATE | os.O_EXCL
			if force {
				how = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
			}
			f, err := os.OpenFile(file, how, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return errs.New(errs.Conflict, "screenshot of vm %s: %s exists", args[0], file).WithHint("name another file, or say --force")
			}
			if err != nil {
				return fmt.Errorf("screenshot of vm %s: %w", args[0], err)
			}
			if _, err = f.Write(s.PNG); err != nil {
				return errors.Join(fmt.Errorf("screenshot of vm %s: %w", args[0], err), f.Close())
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d x %d pixels\n", file, s.Width, s.Height)
			return f.Close()
		}}
	cmd.Flags().BoolVar(&force, "force", false, "write over a file that exists")
	return cmd
}
