package drill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

// Repeat says how often `migrations` moves its VM and `failovers` cuts its node, and
// where the results go.
type Repeat struct {
	Runs     int           // moves, or cuts, those of Keep included; 0 = 6
	AllPairs bool          // migrations: from every node to every other, else the scheduler chooses
	Within   time.Duration // no further one begins after this; 0 = no limit
	// Keep is a file of finished runs, one JSON object a line: a drill that was cut
	// off, or ran out of time, goes on from there. Empty: none.
	Keep string
	// Markdown is a file that gets the table of all runs. Empty: none.
	Markdown string
	Commit   string // for the table
}

// MigrationRun is one migration as it was seen from outside.
type MigrationRun struct {
	Time        time.Time `json:"time"`
	Version     string    `json:"version"`
	From        string    `json:"from"`
	To          string    `json:"to"`
	PingsSent   int       `json:"pings_sent"`
	PingsLost   int       `json:"pings_lost"`
	LongestGap  float64   `json:"longest_gap_ms"` // between two answers
	RTTMax      float64   `json:"rtt_max_ms"`
	Blackout    float64   `json:"blackout_ms"`  // QEMU's downtime
	GuestGap    float64   `json:"guest_gap_ms"` // longest step between two ticks of the guest
	Took        float64   `json:"migration_ms"` // the task, from request to end
	Load        string    `json:"load_average"`
	GuestBroken string    `json:"guest_broken,omitempty"` // its memory or boot did not go on
}

var migrations = Test{
	Name:    "migrations",
	Summary: "move one running VM again and again (--runs, --all-pairs), pinged every 10 ms",
	Method:  "as live-migration, each move judged by itself: no ping lost; medians over all moves",
	run:     runMigrations,
}

func runMigrations(ctx context.Context, e *Env) error {
	done, err := readKept[MigrationRun](e.Repeat.Keep)
	if err != nil {
		return err
	}
	want := e.Repeat.Runs
	if want == 0 {
		want = 6
	}
	if len(done) < want {
		err = e.withProbe(ctx, probe.ImageBytes+256*size.MiB, func(ctx context.Context, p *probeVM) error {
			done, err = moveOn(ctx, e, p, done, want)
			return err
		})
	}
	summarize(e, done)
	if len(done) < want && err == nil {
		e.say("%d of %d migrations are done: run it again for the rest", len(done), want)
	}
	if e.Repeat.Markdown != "" {
		err = errors.Join(err, os.WriteFile(e.Repeat.Markdown, []byte(runsTable(done, e.Repeat.Commit)), 0o644))
	}
	return err
}

// moveOn migrates until there are enough, or the time is over.
func moveOn(ctx context.Context, e *Env, p *probeVM, done []MigrationRun, want int) ([]MigrationRun, error) {
	began := time.Now()
	before, _, err := p.begin(ctx, 5*time.Millisecond)
	if err != nil {
		return done, err
	}
	for len(done) < want && (e.Repeat.Within == 0 || time.Since(began) < e.Repeat.Within) {
		run, err := moveOnce(ctx, e, p, before, done)
		if err != nil {
			return done, err
		}
		done = append(done, run)
		if err := keepOne(e.Repeat.Keep, run); err != nil {
			return done, err
		}
		e.say("%2d: %s -> %s: %d of %d pings lost, longest gap %.0f ms, downtime %.0f ms, guest stood still %.0f ms, load %s",
			len(done), run.From, run.To, run.PingsLost, run.PingsSent, run.LongestGap, run.Blackout, run.GuestGap, run.Load)
	}
	if err := p.stopLoad(ctx); err != nil {
		return done, err
	}
	_, _, err = p.audit(ctx)
	return done, err
}

func moveOnce(ctx context.Context, e *Env, p *probeVM, before probe.Status, done []MigrationRun) (MigrationRun, error) {
	run := MigrationRun{Time: time.Now(), Version: e.Version}
	vm, err := p.vmNode(ctx)
	if err != nil {
		return run, err
	}
	run.From = vm.Status.Node
	if e.Repeat.AllPairs {
		nodes, err := e.Cluster.Nodes(ctx)
		if err != nil {
			return run, err
		}
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		run.To = nextNode(names, run.From, done)
	}
	pings, err := startPings(ctx, e.Vantage, p.addr, pingInterval)
	if err != nil {
		return run, err
	}
	took, err := migrateAndSettle(ctx, e, p, run.To)
	end := pings.stop(pingsStart(pings))
	if err != nil {
		return run, err
	}
	e.sayLost(end)
	after, err := p.status(ctx)
	if err != nil {
		return run, err
	}
	if vm, err = p.settledVM(ctx, run.From); err != nil {
		return run, err
	}
	run.To, run.Took, run.Load = vm.Status.Node, ms(took), LoadAverage()
	run.PingsSent, run.PingsLost, run.LongestGap, run.RTTMax, run.GuestGap = end.sent, end.lost, ms(end.longestGap), ms(end.rttMax), ms(after.GuestGap)
	if m := vm.Status.Migration; m != nil {
		run.Blackout = ms(m.Downtime)
	}
	switch {
	case after.Boot != before.Boot || after.Uptime <= before.Uptime:
		run.GuestBroken = "the guest rebooted"
	case after.MemoryBad != 0:
		run.GuestBroken = fmt.Sprintf("%d words of its memory pattern wrong", after.MemoryBad)
	case after.IOErrors != 0:
		run.GuestBroken = fmt.Sprintf("%d I/O errors", after.IOErrors)
	}
	return run, nil
}

// nextNode chooses the target along a circuit through all ordered pairs; where
// the VM is not where the last run left it, along the pair that was taken least.
func nextNode(nodes []string, from string, done []MigrationRun) string {
	tour := circuit(nodes)
	if n := len(done); n > 0 && done[n-1].To == from {
		if i := slices.Index(tour, [2]string{done[n-1].From, from}); i >= 0 {
			return tour[(i+1)%len(tour)][1]
		}
	}
	taken := map[[2]string]int{}
	for _, r := range done {
		taken[[2]string{r.From, r.To}]++
	}
	best := [2]string{}
	for _, pair := range tour {
		if pair[0] == from && (best[0] == "" || taken[pair] < taken[best]) {
			best = pair
		}
	}
	return best[1]
}

// circuit visits every ordered pair once and ends where it began: from node i to
// each node behind the next one and back, then to the next; at last all the way
// back.
func circuit(nodes []string) (tour [][2]string) {
	for i := range nodes {
		for j := i + 2; j < len(nodes); j++ {
			tour = append(tour, [2]string{nodes[i], nodes[j]}, [2]string{nodes[j], nodes[i]})
		}
		if i+1 < len(nodes) {
			tour = append(tour, [2]string{nodes[i], nodes[i+1]})
		}
	}
	for i := len(nodes) - 1; i > 0; i-- {
		tour = append(tour, [2]string{nodes[i], nodes[i-1]})
	}
	return tour
}

// readKept reads a file of finished runs, one JSON object a line; "" or an absent
// file has none.
func readKept[T any](path string) ([]T, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []T
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var r T
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return nil, errs.New(errs.Invalid, "read finished runs from %s: line %d: %w", path, len(list)+1, err).WithHint("remove the file to begin anew")
		}
		list = append(list, r)
	}
	return list, nil
}

// keepOne adds a finished run to the file; path "": nothing is kept.
func keepOne(path string, run any) error {
	if path == "" {
		return nil
	}
	b, err := json.Marshal(run)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// sums are what all runs together come to.
type sums struct {
	runs, sent, lost, whole, pairs            int
	gap, gapMax, blackout, blackoutMax, guest float64
}

func sumUp(done []MigrationRun) (s sums) {
	var gaps, blackouts, guests []float64
	pairs := map[[2]string]bool{}
	for _, r := range done {
		s.runs++
		s.sent += r.PingsSent
		s.lost += r.PingsLost
		if r.PingsLost == 0 {
			s.whole++
		}
		pairs[[2]string{r.From, r.To}] = true
		gaps, blackouts, guests = append(gaps, r.LongestGap), append(blackouts, r.Blackout), append(guests, r.GuestGap)
		s.gapMax, s.blackoutMax = max(s.gapMax, r.LongestGap), max(s.blackoutMax, r.Blackout)
	}
	s.pairs, s.gap, s.blackout, s.guest = len(pairs), median(gaps), median(blackouts), median(guests)
	return s
}

// median is the middle value, the mean of the middle two of an even number.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func summarize(e *Env, done []MigrationRun) {
	s := sumUp(done)
	f := e.report.Figures
	f["migrations"], f["ordered_pairs"], f["without_loss"] = s.runs, s.pairs, s.whole
	f["pings_sent"], f["pings_lost"] = s.sent, s.lost
	f["longest_gap_median_ms"], f["longest_gap_worst_ms"] = s.gap, s.gapMax
	f["blackout_median_ms"], f["blackout_worst_ms"], f["guest_gap_median_ms"] = s.blackout, s.blackoutMax, s.guest
	for i, r := range done {
		e.report.require(r.PingsLost == 0, "migration %d (%s -> %s): %d pings lost", i+1, r.From, r.To, r.PingsLost)
		e.report.require(r.GuestBroken == "", "migration %d (%s -> %s): %s", i+1, r.From, r.To, r.GuestBroken)
		e.report.require(r.Blackout > 0, "migration %d (%s -> %s): QEMU's downtime was not reported", i+1, r.From, r.To)
	}
	e.report.require(len(done) > 0, "no migration was made")
}

// runsTable is the page that goes into the documents.
func runsTable(done []MigrationRun, commit string) string {
	var b strings.Builder
	s := sumUp(done)
	fmt.Fprintf(&b, "# Live migrations\n\n%s, commit %s. Command: `make migrations RUNS=%d`\n(`roseau drill run migrations --runs %d --all-pairs` on a lab of three nodes: one probe VM, flushed writes and 10 ms pings\n"+
		"all the time; guests under TCG; the load average is the machine's, with whatever else ran on it).\n\n", time.Now().UTC().Format("2 January 2006"), commit, s.runs, s.runs)
	fmt.Fprintf(&b, "| | |\n|---|---|\n| migrations without a lost ping | %d of %d |\n| pings lost | %d of %d |\n| ordered pairs of nodes | %d |\n", s.whole, s.runs, s.lost, s.sent, s.pairs)
	fmt.Fprintf(&b, "| QEMU's downtime, median (worst) | %.0f ms (%.0f) |\n| longest gap between two answers, median (worst) | %.0f ms (%.0f) |\n| guest stood still, median | %.0f ms |\n\n",
		s.blackout, s.blackoutMax, s.gap, s.gapMax, s.guest)
	b.WriteString("| # | from | to | sent | lost | longest gap ms | downtime ms | guest gap ms | task ms | load |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i, r := range done {
		fmt.Fprintf(&b, "| %d | %s | %s | %d | %d | %.0f | %.0f | %.0f | %.0f | %s |\n", i+1, r.From, r.To, r.PingsSent, r.PingsLost, r.LongestGap, r.Blackout, r.GuestGap, r.Took, r.Load)
	}
	return b.String()
}

// settledVM waits until the VM is shown on another node with the figures of its
// migration: they come with the guards' next reports.
func (p *probeVM) settledVM(ctx context.Context, from string) (vm model.VM, err error) {
	err = waitUntil(ctx, 10*time.Second, 50*time.Millisecond, "the VM's new node and its migration's figures", func() (bool, error) {
		if vm, err = p.vmNode(ctx); err != nil {
			return false, err
		}
		m := vm.Status.Migration
		return vm.Status.Node != from && m != nil && m.From == from && m.Downtime > 0, nil
	})
	if vm.Status.Node != "" && vm.Status.Node != from {
		err = nil // what is missing is judged
	}
	return vm, err
}
