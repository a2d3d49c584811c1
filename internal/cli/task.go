package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/model"
)

func newTaskCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Long actions: what runs, what ended and how"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List tasks, newest first", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var ts []*model.Task
			return a.get(cmd, "/v1/tasks", &ts, func() *table {
				tb := newTable("NAME", "ACTION", "NODE", "STATE", "AGE", "WHAT")
				for _, t := range ts {
					tb.row(t.Name, t.Action, t.Node, t.State, ago(time.Now(), t.Created), taskWhat(t))
				}
				return tb
			})
		}},
		&cobra.Command{Use: "show TASK", Short: "Show a task with its log", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			t := new(model.Task)
			return a.get(cmd, "/v1/tasks/"+args[0], t, func() *table { return taskTable(t) })
		}},
		&cobra.Command{Use: "wait TASK", Short: "Follow a task to its end; its error is this command's", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			t := new(model.Task)
			if err := c.Get(cmd.Context(), "/v1/tasks/"+args[0], t); err != nil {
				return err
			}
			a.noWait = false
			return a.follow(cmd, t)
		}},
		&cobra.Command{Use: "cancel TASK", Short: "Call a task off and wait for its end: it undoes what it made half", Args: cobra.ExactArgs(1),
			Long: "Calls off what a node's daemon carries out: a migration leaves its VM where it is, a create takes away what it made. What the cluster\n" +
				"conducts is called off by its own command: `node undrain`, `cluster restart --cancel`, `cluster shutdown --cancel`.",
			RunE: func(cmd *cobra.Command, args []string) error { return a.cancelTask(cmd, args[0]) }},
	)
	return cmd
}

// cancelTask calls a task off; how it ended is told, and no error.
func (a *app) cancelTask(cmd *cobra.Command, ref string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	t := new(model.Task)
	if _, err := c.Change(cmd.Context(), http.MethodPost, "/v1/tasks/"+url.PathEscape(ref)+"/cancel", nil, t); err != nil {
		return err
	}
	if !a.noWait {
		if t, err = c.WaitTask(cmd.Context(), t.ID.String(), nil); err != nil {
			return err
		}
	}
	return a.show(cmd, t, func() *table { return newSheet().line("task %s: %s", t.Name, t.State) })
}

func taskWhat(t *model.Task) string {
	switch {
	case t.Error != nil:
		return t.Error.Text
	case t.Result != "":
		return t.Result
	case t.Total > 0:
		return t.Phase + " " + amount(t)
	}
	return t.Phase
}

func taskTable(t *model.Task) *table {
	tb := newSheet().row("name", t.Name).row("action", t.Action).row("node", t.Node).row("state", t.State).
		row("created", t.Created.Local().Format(time.RFC3339))
	if !t.Finished.IsZero() {
		tb.row("finished", t.Finished.Local().Format(time.RFC3339))
	}
	if w := taskWhat(t); w != "" {
		tb.row("what", w)
	}
	if t.Error != nil && t.Error.Hint != "" {
		tb.row("hint", t.Error.Hint)
	}
	for _, l := range t.Log {
		tb.line("  %s", l)
	}
	return tb
}

func newEventsCmd(a *app) *cobra.Command {
	var follow bool
	var limit int
	cmd := &cobra.Command{Use: "events", Short: "The timeline of the cluster", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		path := fmt.Sprintf("/v1/events?limit=%d", limit)
		if follow {
			return c.Stream(cmd.Context(), "GET", path+"&watch=true", nil, func(line []byte) error {
				var e model.Event
				if err := json.Unmarshal(line, &e); err != nil {
					return fmt.Errorf("read event: %w", err)
				}
				if a.output == "json" {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", line)
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-5s  %-8s  %-20s  %s\n", e.Time.Local().Format("15:04:05.000"), e.Level, e.Node, e.Subject, e.Text)
				return err
			})
		}
		var es []model.Event
		return a.get(cmd, path, &es, func() *table {
			tb := newTable("TIME", "LEVEL", "NODE", "SUBJECT", "TEXT")
			for _, e := range es {
				tb.row(e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Level, e.Node, e.Subject, e.Text)
			}
			return tb
		})
	}}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as events come")
	cmd.Flags().IntVarP(&limit, "limit", "n", 100, "how many of the newest, 1 to 10000")
	return cmd
}
