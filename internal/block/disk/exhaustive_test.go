package disk_test

import (
	"math/rand/v2"
	"testing"

	"roseau/internal/block/disk"
)

// exhaustiveScript is a short history with every kind of change and two
// flushes; each line is issued when the one before is answered or not, as drawn.
func exhaustiveScript(w *world, line int) bool {
	o := w.vols[0]
	switch line {
	case 0:
		w.promise(o)
	case 1:
		w.apply(o, step{kind: disk.KindWrite, extent: 0, block: 0, count: 1, wseq: 1, epoch: 1}, false)
	case 2:
		w.flush(o)
	case 3:
		w.apply(o, step{kind: disk.KindWrite, extent: 0, block: 0, count: 2, wseq: 2, epoch: 1}, false)
	case 4:
		w.apply(o, step{kind: disk.KindZero, extent: 0, block: 1, count: 1, wseq: 3, epoch: 1}, false)
	case 5:
		w.flush(o)
	case 6:
		w.v.Core.Idle() // applies and moves the tail
		w.v.Pump()
	case 7:
		w.apply(o, step{kind: disk.KindTombstone, extent: 0, count: extentBlocks, wseq: 4, epoch: 1}, false)
	case 8:
		w.apply(o, step{kind: disk.KindWrite, extent: 0, block: 3, count: 1, wseq: 5, epoch: 1}, true)
	case 9:
		w.v.Core.Idle()
		w.v.Pump()
	default:
		return false
	}
	return true
}

// runExhaustive plays the script up to each I/O boundary, and there tries every
// subset of the sectors that a crash may keep; more than maxSubsets are sampled.
func runExhaustive(t testing.TB, o disk.Options, maxSubsets int) (tried int, fail string) {
	r := rand.New(rand.NewPCG(7, 7))
	for boundary := 0; ; boundary++ {
		w := newWorld(t, nil, o)
		w.sectors = 2 // few sectors differ, so that all subsets can be tried
		line := 0
		for w.v.Actions < boundary+1 || len(w.v.Flying) == 0 {
			if w.v.Step() {
				continue
			}
			if !exhaustiveScript(w, line) {
				return tried, ""
			}
			line++
		}
		if exhaustiveScript(w, line) && w.fail != "" {
			return tried, w.fail
		}
		list := w.disk.Volatile()
		n := maxSubsets
		if len(list) < 20 {
			n = min(n, 1<<len(list))
		}
		for i := range n {
			mask := uint64(i)
			if 1<<min(len(list), 62) > maxSubsets {
				mask = r.Uint64()
			}
			c := w.fork()
			c.disk.Crash(list, func(s int) bool { return mask>>(s%64)&1 == 1 })
			c.start(true)
			tried++
			if c.fail != "" {
				return tried, c.fail
			}
		}
	}
}

// fork copies the disk and the oracle, to crash them.
func (w *world) fork() *world {
	c := &world{t: w.t, o: w.o, disk: w.disk.Clone(), sectors: w.sectors}
	for _, o := range w.vols {
		d := *o
		d.steps = append([]step(nil), o.steps...)
		c.vols = append(c.vols, &d)
	}
	return c
}

func TestExhaustiveCrashes(t *testing.T) {
	limit := 1 << 8
	if testing.Short() {
		limit = 1 << 5
	}
	tried, fail := runExhaustive(t, disk.Options{}, limit)
	if fail != "" {
		t.Fatal(fail)
	}
	t.Logf("%d crash states", tried)
	if tried < 500 {
		t.Fatalf("only %d crash states", tried)
	}
}
