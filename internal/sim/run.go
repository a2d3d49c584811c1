package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"roseau/internal/base/errs"
)

// Sometimes lists the states that a large enough set of seeds must have
// reached; a counter at zero means that the simulator is blind there.
var Sometimes = []string{
	"takeover", "guard_restart", "resync", "divergent_window", "isr_of_one", "torn_tail", "resync_race",
	"etcd_unknown", "etcd_lost", "etcd_answer_lost", "etcd_late_commit", "prepare_refused_live", "cold_member",
	"power_cut", "power_blip", "power_cut_all", "storage_kill", "guard_kill", "guard_freeze", "partition", "one_way",
	"link_reset", "etcd_down", "false_alarm", "disk_hang", "disk_dead", "bit_rot", "fenced", "forgetful", "late_successor", "power_cut_copies", "local_disk_hang",
	"lost_write", "misdirected_write", "stale_read", "scrub", "scrub_found", "scrubbed",
	"log_rot", "split_flush", "damaged_log", "rolled_back", "lying_cache", "lying_cut", "linear_block", "direct_read", "direct_miss",
	"drift", "suspend", "disk_full", "node_full", "pool_full", "report_no-space", "report_space-back", "full_join",
	"move_asked", "retire_asked", "move_cancelled", "segment_moved", "stray",
	"more_volumes", "volume_deleted", "volume_freed",
}

// Summary is the outcome of many seeds.
type Summary struct {
	Seeds  int
	Ops    int
	Counts map[string]int
	Failed []Result // in the order of their seeds; at most as many as were asked for
	Took   time.Duration
}

// Missing returns the names of Sometimes that never happened.
func (s Summary) Missing() []string {
	var out []string
	for _, n := range Sometimes {
		if s.Counts[n] == 0 {
			out = append(out, n)
		}
	}
	return out
}

// Command returns the command that repeats a run.
func (r Result) Command() string { return fmt.Sprintf("roseau sim run --seed %d --trace", r.Seed) }

// Batch describes a set of seeds.
type Batch struct {
	First     uint64
	Count     int
	Ops       int
	Mutations Mutations
	Bias      *Bias
	// StopAfter failures; 0 = go on to the end.
	StopAfter int
	Progress  io.Writer // a line every few seconds; nil = silent
	// State is a file of the progress, with which the set goes on where an earlier
	// call with the same Version stopped; "" = none.
	State   string
	Version string // of the program, for State
}

// RunBatch runs seeds on all processors until the count is reached, enough
// failed, or ctx ends. With State the summary is of all calls together. The error
// is about State alone.
func RunBatch(ctx context.Context, b Batch) (Summary, error) {
	began := time.Now()
	sum := Summary{Counts: map[string]int{}}
	var mu sync.Mutex
	next := b.First
	var keep *progressKeeper
	if b.State != "" {
		p, err := LoadProgress(b.State, b.Version, b.First, b.Ops)
		if err != nil {
			return sum, err
		}
		next, keep = p.Next, newKeeper(b.State, p)
		sum.resume(p)
	}
	said := began
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || next >= b.First+uint64(b.Count) || b.StopAfter > 0 && len(sum.Failed) >= b.StopAfter {
			return 0, false
		}
		next++
		return next - 1, true
	}
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				r := runRecovered(Options{Seed: seed, Ops: b.Ops, Mutations: b.Mutations, Bias: b.Bias})
				mu.Lock()
				sum.add(r)
				if keep != nil {
					keep.add(r)
				}
				if b.Progress != nil && time.Since(said) > 5*time.Second {
					said = time.Now()
					fmt.Fprintf(b.Progress, "sim: %d of %d seeds, %d operations, %d failed, next seed %d\n", sum.Seeds, b.Count, sum.Ops, len(sum.Failed), next)
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	slices.SortFunc(sum.Failed, func(a, b Result) int { return int(int64(a.Seed) - int64(b.Seed)) })
	sum.Took += time.Since(began)
	if keep != nil {
		keep.flush()
		return sum, keep.err
	}
	return sum, nil
}

// resume begins with what earlier sittings found.
func (s *Summary) resume(p Progress) {
	s.Seeds, s.Ops, s.Counts = int(p.Next-p.First), p.Ops, maps.Clone(p.Counts)
	s.Took = time.Duration(p.Seconds * float64(time.Second))
	for _, f := range p.Failed {
		s.Failed = append(s.Failed, Result{Seed: f.Seed, Err: errors.New(f.Text)})
	}
}

func (s *Summary) add(r Result) {
	s.Seeds++
	s.Ops += r.Ops
	for k, v := range r.Counts {
		s.Counts[k] += v
	}
	if r.Err != nil {
		s.Failed = append(s.Failed, r)
	}
}

// runRecovered turns a broken invariant (a panic of a core) into a failure of
// its seed.
func runRecovered(o Options) (r Result) {
	defer func() {
		if p := recover(); p != nil {
			buf := make([]byte, 4096)
			r = Result{Seed: o.Seed, Counts: map[string]int{}, Err: errs.New(errs.Corrupt, "panic: %v\n%s", p, buf[:runtime.Stack(buf, false)])}
		}
	}()
	return Run(o)
}

// WriteCounts prints the counters by name.
func (s Summary) WriteCounts(w io.Writer) {
	for _, k := range slices.Sorted(maps.Keys(s.Counts)) {
		fmt.Fprintf(w, "  %-28s %d\n", k, s.Counts[k])
	}
}
