package hasim

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// Batch runs seeds of small worlds one after the other, every fourth with faults of
// the control plane alone. It stops at the first that fails and returns it; nil:
// all passed.
func Batch(ctx context.Context, first, count uint64, each func(*Result)) *Result {
	for seed := first; seed < first+count && ctx.Err() == nil; seed++ {
		r := Run(ctx, Options{Seed: seed, ControlPlaneOnly: seed%4 == 0})
		if each != nil {
			each(r)
		}
		if r.Err != nil {
			return r
		}
	}
	return nil
}

// Report measures the manager in a large world and writes a page of Markdown:
// random faults, then losses of one node each in a quiet world.
func Report(ctx context.Context, out io.Writer, o Options, losses int) error {
	began := time.Now()
	faults := Run(ctx, o)
	if faults.Err != nil {
		return fmt.Errorf("seed %d: %w", o.Seed, faults.Err)
	}
	var loss Result
	for i := range losses {
		l := o
		l.Seed += uint64(i)
		r := Loss(l)
		if r.Err != nil {
			return fmt.Errorf("loss of a node, seed %d: %w", l.Seed, r.Err)
		}
		loss.restarts = append(loss.restarts, r.restarts...)
		loss.busy = append(loss.busy, r.busy...)
		loss.perPlace = append(loss.perPlace, r.perPlace...)
		loss.Placements += r.Placements
	}
	fmt.Fprintf(out, "Time on a processor, of the manager's one thread: what else the machine does is not in it.\n\n")
	fmt.Fprintf(out, "| what | n | median | 99 %% | worst |\n|---|---|---|---|---|\n")
	row := func(what string, list []time.Duration, round time.Duration) {
		s := slices.Clone(list)
		slices.Sort(s)
		if len(s) == 0 {
			fmt.Fprintf(out, "| %s | 0 | | | |\n", what)
			return
		}
		at := func(q float64) time.Duration { return s[min(int(q*float64(len(s))), len(s)-1)].Round(round) }
		fmt.Fprintf(out, "| %s | %d | %s | %s | %s |\n", what, len(s), at(0.5), at(0.99), s[len(s)-1].Round(round))
	}
	row("step of the manager that places nothing", faults.steps, time.Microsecond)
	row("step that places machines, random faults", faults.busy, time.Microsecond)
	row(". per machine placed", faults.perPlace, time.Microsecond)
	row("step that places machines, one node lost", loss.busy, time.Microsecond)
	row(". per machine placed", loss.perPlace, time.Microsecond)
	row("plan of the balancer", faults.plans, time.Microsecond)
	row("one node lost: until a machine runs elsewhere (virtual time)", loss.restarts, 100*time.Millisecond)
	fmt.Fprintf(out, "\nWorld: %d nodes, %d machines, %s of random faults (%d nodes cut, %d starts, %d migrations, %d placements), and %d losses of one node in a quiet world.\n",
		faults.Nodes, faults.VMs, o.Time, faults.Cuts, faults.Starts, faults.Moves, faults.Placements, losses)
	fmt.Fprintf(out, "Seed %d, %d CPUs, %s of real time.\n", o.Seed, runtime.NumCPU(), time.Since(began).Round(time.Second))
	return nil
}
