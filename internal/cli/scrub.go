package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/svc/care"
	"roseau/internal/svc/records"
)

func newPoolScrubCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "scrub", Short: "Read everything that a pool's disks hold, repair what is bad, compare the copies"}
	path := func(pool string) string { return "/v1/pools/" + url.PathEscape(pool) + "/scrub" }
	var req care.ScrubRequest
	start := &cobra.Command{
		Use: "start POOL", Short: "Start a scrub now, or go on with a stopped one", Args: cobra.ExactArgs(1),
		Long: "A scrub reads every block of every disk of the pool and compares it with its checksum, and compares the copies of each volume.\n" +
			"What is bad is repaired from another copy. It begins by itself every --every-days; it may be left alone: it uses --duty percent\n" +
			"of the disks' time, and a quarter of that while others use them.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, path(args[0]), req, nil, nil)
		},
	}
	start.Flags().IntVar(&req.DutyPercent, "duty", 5, "share of the disks' time, 1 to 100 percent")
	start.Flags().IntVar(&req.EveryDays, "every-days", 0, "length of the cycle from now on, 7 to 30 (default: as before; 14 at first)")
	cmd.AddCommand(start,
		&cobra.Command{Use: "stop POOL", Short: "Stop the scrub where it is; none begins until the next start", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, path(args[0]), care.ScrubRequest{Stop: true}, nil, nil)
		}},
		&cobra.Command{Use: "status POOL", Short: "Show how the scrub goes on, and what the last one found", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var i care.ScrubInfo
			return a.get(cmd, path(args[0]), &i, func() *table { return scrubTable(&i) })
		}})
	return cmd
}

// scrubLine says in one line how the scrubs of a pool are.
func scrubLine(s *records.PoolScrub) string {
	switch {
	case s.Running:
		return "running since " + s.Started.Local().Format(time.DateTime)
	case s.Paused:
		return "stopped; `roseau pool scrub start` goes on"
	case s.Started.IsZero():
		return "none yet; the first begins " + s.Ended.Add(s.Every()).Local().Format(time.DateOnly)
	}
	return fmt.Sprintf("%s: %s", s.Ended.Local().Format(time.DateTime), care.Findings(*s))
}

func scrubTable(i *care.ScrubInfo) *table {
	t := newTable("DISK", "STATE", "EXTENTS", "BAD BLOCKS", "BAD METADATA", "NOT REPAIRED", "LAST WHOLE PASS")
	for _, d := range i.Disks {
		t.row(d.Disk, d.State, fmt.Sprintf("%d of %d", d.Done, d.Total), d.BadBlocks, d.BadMetadata, d.Damaged, when(d.Ended))
	}
	t.line("")
	t.line("%s: %s", i.Pool, scrubLine(&i.PoolScrub))
	for _, v := range i.Volumes {
		switch {
		case v.Ended.IsZero():
			t.line("volume %s: its copies were not compared yet", v.Volume)
		case v.Skipped != "":
			t.line("volume %s: not compared %s: %s", v.Volume, when(v.Ended), v.Skipped)
		default:
			t.line("volume %s: compared %s: %d extents, %d blocks differed, %d rewritten", v.Volume, when(v.Ended), v.Extents, v.Differ, v.Repaired)
		}
	}
	if !i.Next.IsZero() {
		t.line("the next begins by itself %s", when(i.Next))
	}
	return t
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}
