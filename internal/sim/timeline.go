package sim

import (
	heapq "container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// timeline is what every simulated world has: virtual time, its own randomness,
// and the outcome. Everything happens in one goroutine, in the order of (virtual
// time, sequence).
type timeline struct {
	opt   Options
	rng   *rand.Rand
	now   clock.Instant
	queue eventQueue
	seq   uint64

	counts map[string]int
	err    error
}

func newTimeline(opt Options) timeline {
	return timeline{opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x526f73656175)), now: origin, counts: map[string]int{}}
}

// event is something that happens at a time.
type event struct {
	at  clock.Instant
	seq uint64
	do  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// after lets f happen d from now.
func (w *timeline) after(d time.Duration, f func()) {
	w.seq++
	heapq.Push(&w.queue, event{w.now.Add(max(d, 0)), w.seq, f})
}

// run lets the world go on until cond holds, an error is found, or limit is
// reached; it reports whether cond held.
func (w *timeline) run(limit clock.Instant, cond func() bool) bool {
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= limit {
		if cond() {
			return true
		}
		e := heapq.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	return w.err == nil && cond()
}

func (w *timeline) failf(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %s: %s", time.Duration(w.now), fmt.Sprintf(format, args...))
		w.tracef("FAILED: %v", w.err)
	}
}

func (w *timeline) tracef(format string, args ...any) {
	if w.opt.Trace != nil {
		w.opt.Trace(fmt.Sprintf("%12s %s", time.Duration(w.now).Round(time.Microsecond), fmt.Sprintf(format, args...)))
	}
}

func (w *timeline) note(what string) { w.counts[what]++ }

// chance is true with probability p.
func (w *timeline) chance(p float64) bool { return w.rng.Float64() < p }

// between draws a duration.
func (w *timeline) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// newID draws an identity from the run's own randomness.
func (w *timeline) newID() ids.ID { return drawID(w.rng) }

func drawID(rng *rand.Rand) ids.ID {
	var id ids.ID
	for i := range id {
		id[i] = byte(rng.Uint32())
	}
	id[0] |= 1 // never zero
	return id
}
