package cli

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"roseau/internal/base/errs"
	"roseau/internal/client"
	"roseau/internal/model"
)

// app is what all commands share: the flags of the root and the client that
// they choose.
type app struct {
	context string // --context
	output  string // -o: "" (tables), json, yaml
	noWait  bool   // --no-wait
	dry     bool   // --dry-run, on commands that have it
	cl      *client.Client
}

// flags adds the flags that every command has.
func (a *app) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&a.context, "context", "", "cluster to talk to (default: this node, else the current context)")
	f.StringVarP(&a.output, "output", "o", "", "json or yaml instead of tables")
	f.BoolVar(&a.noWait, "no-wait", false, "do not wait for tasks to end")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// check refuses wrong values of the common flags; it runs before every command.
func (a *app) check() error {
	switch a.output {
	case "", "table", "json", "yaml":
		return nil
	}
	return errs.New(errs.Invalid, "flag -o %q: want json, yaml or table", a.output)
}

// client returns the client that the flags choose.
func (a *app) client() (*client.Client, error) {
	if a.cl == nil {
		c, err := client.Open(a.context)
		if err != nil {
			return nil, err
		}
		a.cl = c
	}
	return a.cl, nil
}

// dryRunFlag adds --dry-run to a command that destroys, moves or applies; the
// request of a.change then asks the API to say what it would do.
func (a *app) dryRunFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.dry, "dry-run", false, "say what would be done, change nothing")
}

// get asks for path and shows the answer: v as JSON or YAML, or the table that
// build makes of it.
func (a *app) get(cmd *cobra.Command, path string, v any, build func() *table) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if err := c.Get(cmd.Context(), path, v); err != nil {
		return err
	}
	return a.show(cmd, v, build)
}

// show prints v as the flags say.
func (a *app) show(cmd *cobra.Command, v any, build func() *table) error {
	switch a.output {
	case "json":
		return writeJSON(cmd.OutOrStdout(), v)
	case "yaml":
		return writeYAML(cmd.OutOrStdout(), v)
	}
	if build == nil {
		return nil
	}
	return build().write(cmd.OutOrStdout())
}

// change sends a changing request. If a task answers, it is followed to its end
// (not with --no-wait); else the object is decoded into out and done, if not
// nil, returns the line to print ("volume v1 created").
func (a *app) change(cmd *cobra.Command, method, path string, in, out any, done func() string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if a.dry {
		return a.dryRun(cmd, c, method, path, in)
	}
	t, err := c.Change(cmd.Context(), method, path, in, out)
	if err != nil {
		return err
	}
	if t != nil {
		return a.follow(cmd, t)
	}
	if a.output == "json" || a.output == "yaml" {
		if out != nil {
			return a.show(cmd, out, nil)
		}
		return nil
	}
	if done != nil {
		fmt.Fprintln(cmd.OutOrStdout(), done())
	}
	return nil
}

// dryRun asks what the change would do, and prints it.
func (a *app) dryRun(cmd *cobra.Command, c *client.Client, method, path string, in any) error {
	t := new(model.Task)
	if _, err := c.Change(cmd.Context(), method, withQuery(path, "dry_run=true"), in, t); err != nil {
		return err
	}
	return a.show(cmd, t, func() *table {
		tb := newSheet()
		for _, l := range t.Log {
			tb.line("  %s", l)
		}
		return tb.line("%s", t.Result)
	})
}

// remove is change with DELETE.
func (a *app) remove(cmd *cobra.Command, path, what string) error {
	return a.change(cmd, http.MethodDelete, path, nil, nil, func() string { return what + " deleted" })
}

// destroys adds --confirm to a command that destroys data: what it destroys is
// named twice, by argument and by flag, or typed again at a terminal.
func destroys(cmd *cobra.Command) *cobra.Command { return confirmed(cmd, "it destroys data") }

// confirmed is destroys for other reasons to name a thing twice.
func confirmed(cmd *cobra.Command, why string) *cobra.Command {
	return confirmedIf(cmd, why, func() bool { return true })
}

// confirmedIf demands it when need says so, which is asked when the flags are known.
func confirmedIf(cmd *cobra.Command, why string, need func() bool) *cobra.Command {
	cmd.Flags().StringArray("confirm", nil, "the same again: "+why+", so what it concerns is named twice; repeat for more")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		confirmed, err := cmd.Flags().GetStringArray("confirm")
		if err != nil {
			return err
		}
		named := args
		if cmd.Annotations[confirmLast] != "" {
			named = args[len(args)-1:]
		} else if cmd.Annotations[confirmFirst] != "" {
			named = args[:1]
		}
		for _, name := range named {
			if !need() || slices.Contains(confirmed, name) {
				continue
			}
			if err := confirmTyped(cmd, name, why); err != nil {
				return err
			}
		}
		return run(cmd, args)
	}
	return cmd
}

// confirmLast annotates a command whose last argument alone is what it destroys.
const confirmLast = "confirm-last"

// confirmFirst annotates a command whose first argument alone is what it destroys.
const confirmFirst = "confirm-first"

// confirmTyped lets a person type the name again.
func confirmTyped(cmd *cobra.Command, name, why string) error {
	refusal := errs.New(errs.Invalid, "%s %s: %s and was named once", cmd.CommandPath(), name, why).WithHint("name it again: --confirm %s", name)
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return refusal
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s. Type its name to go on: ", name, why)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != name {
		return refusal
	}
	return nil
}

// follow shows a task until it ends, and returns its error.
func (a *app) follow(cmd *cobra.Command, t *model.Task) error {
	if a.noWait {
		return a.show(cmd, t, func() *table { return taskTable(t) })
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	p := newProgress(cmd)
	end, err := c.WaitTask(cmd.Context(), t.ID.String(), p.update)
	p.close()
	if err != nil {
		if cmd.Context().Err() != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "the task goes on: roseau task wait %s\n", t.Name)
		}
		return err
	}
	if err := client.TaskError(end); err != nil {
		if a.output != "" {
			err = errors.Join(a.show(cmd, end, nil), err)
		}
		return err
	}
	if a.output == "json" || a.output == "yaml" {
		return a.show(cmd, end, nil)
	}
	if end.Result != "" {
		fmt.Fprintln(cmd.OutOrStdout(), end.Result)
	}
	return nil
}

func withQuery(path, q string) string {
	if strings.Contains(path, "?") {
		return path + "&" + q
	}
	return path + "?" + q
}
