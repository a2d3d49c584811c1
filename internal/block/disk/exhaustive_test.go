package disk_test

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/core/repl"
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

// crashes counts the crash states of a history.
type crashes struct {
	tried      int
	boundaries int
	complete   int // boundaries of which every subset of sectors was tried
	whole      int // of the rest: every subset of whole writes was
}

// runExhaustive plays the script up to each I/O boundary, and there tries the subsets
// of the sectors that a crash may keep (subsetsOf).
func runExhaustive(t testing.TB, o disk.Options, script func(*world, int) bool, maxSubsets int) (n crashes, fail string) {
	r := rand.New(rand.NewPCG(7, 7))
	for boundary := 0; ; boundary++ {
		w := newWorld(t, nil, o)
		w.sectors = 2 // few sectors differ, so that all subsets can be tried
		line := 0
		for w.v.Actions < boundary+1 || len(w.v.Flying) == 0 {
			if w.v.Step() {
				continue
			}
			if !script(w, line) {
				return n, ""
			}
			line++
		}
		if script(w, line) && w.fail != "" {
			return n, w.fail
		}
		list := w.disk.Volatile()
		n.boundaries++
		subsetsOf(list, maxSubsets, r, &n, func(keep func(i int) bool) bool {
			c := w.fork()
			c.disk.Crash(list, keep)
			c.start(true)
			n.tried++
			fail = c.fail
			return fail == ""
		})
		if fail != "" {
			return n, fail
		}
	}
}

// subsetsOf tries subsets of the sectors until try says no. All of them, if there are
// at most limit. Else all subsets of whole writes if there are at most limit of these,
// then every write torn: all subsets of its own sectors (random ones if there are more than a quarter of limit, or 64)
// with the writes before it kept and those after it lost, and the other way round; and
// at last limit random subsets.
func subsetsOf(list []disktest.Sector, limit int, r *rand.Rand, n *crashes, try func(keep func(i int) bool) bool) {
	if len(list) < 20 && 1<<len(list) <= limit {
		n.complete++
		for mask := range 1 << len(list) {
			if !try(func(i int) bool { return mask>>i&1 == 1 }) {
				return
			}
		}
		return
	}
	var writes []int // their numbers
	parts := map[int]int{}
	for _, s := range list {
		if parts[s.Write] == 0 {
			writes = append(writes, s.Write)
		}
		parts[s.Write]++
	}
	if len(writes) < 20 && 1<<len(writes) <= limit {
		n.whole++
		for mask := range 1 << len(writes) {
			if !try(func(i int) bool { return mask>>slices.Index(writes, list[i].Write)&1 == 1 }) {
				return
			}
		}
	}
	for _, torn := range writes {
		first := slices.IndexFunc(list, func(s disktest.Sector) bool { return s.Write == torn })
		subsets := min(limit/4+1, 64, 1<<min(parts[torn], 20))
		for k := range 2 * subsets {
			mask, earlier := uint64(k/2), k%2 == 0
			if 1<<min(parts[torn], 20) > subsets {
				mask = r.Uint64()
			}
			if !try(func(i int) bool {
				if list[i].Write == torn {
					return mask>>((i-first)%64)&1 == 1
				}
				return (list[i].Write < torn) == earlier
			}) {
				return
			}
		}
	}
	for range limit {
		mask := r.Uint64()
		if !try(func(i int) bool { return mask>>(i%64)&1 == 1 }) {
			return
		}
	}
}

// fork copies the disk and the oracle, to crash them.
func (w *world) fork() *world {
	c := &world{t: w.t, o: w.o, disk: w.disk.Clone(), sectors: w.sectors}
	for _, o := range w.vols {
		d := *o
		d.steps = append([]step(nil), o.steps...)
		d.snaps = append([]uint32(nil), o.snaps...)
		c.vols = append(c.vols, &d)
	}
	return c
}

// snapshotScript takes a snapshot, writes, discards above it, deletes it, and
// lets the objects be merged.
func snapshotScript(w *world, line int) bool {
	o := w.vols[0]
	write := func(wseq uint64, object uint32, block int) {
		w.apply(o, step{kind: disk.KindWrite, extent: 0, block: block, count: 1, wseq: wseq, epoch: 1, object: object}, false)
	}
	switch line {
	case 0:
		w.promise(o)
	case 1:
		write(1, 0, 0)
	case 2:
		w.tell(o, 1, []uint32{1})
	case 3:
		write(2, 1, 1)
	case 4:
		w.flush(o)
		o.mark = repl.Mark{Epoch: 1, Wseq: 2} // all copies have flushed
		w.v.Core.SetFlushMark(o.vol, o.mark)
	case 5:
		w.v.Core.Idle()
		w.v.Pump()
	case 6:
		w.tell(o, 1, nil)
	case 7, 8, 10:
		w.v.Core.Merge()
		w.v.Pump()
	case 9:
		write(3, 1, 0)
	case 11:
		w.tell(o, 2, []uint32{2})
	case 12:
		w.apply(o, step{kind: disk.KindTombstone, extent: 0, count: extentBlocks, wseq: 4, epoch: 1, object: 2}, true)
	case 13, 15:
		w.v.Core.Idle()
		w.v.Pump()
	case 14:
		write(5, 2, 2)
	default:
		return false
	}
	return true
}

// freshScript writes in place, overwrites that through the log, lets it be
// applied, discards, and writes in place again.
func freshScript(w *world, line int) bool {
	o := w.vols[0]
	write := func(wseq, extent uint64, block, count int) {
		w.apply(o, step{kind: disk.KindWrite, extent: extent, block: block, count: count, wseq: wseq, epoch: 1}, false)
	}
	switch line {
	case 0:
		w.promise(o)
	case 1:
		write(1, 0, 0, 1) // asks for the feature
	case 2, 8, 11:
		w.v.Core.Idle()
		w.v.Pump()
	case 3:
		write(2, 0, 2, 2)
	case 4:
		write(3, 0, 3, 1) // through the log: block 3 is there
	case 5:
		write(4, 1, 0, 1) // a new extent
	case 6:
		w.flush(o)
	case 7:
		write(5, 1, 1, 1)
	case 9:
		w.apply(o, step{kind: disk.KindTombstone, extent: 0, count: extentBlocks, wseq: 6, epoch: 1}, false)
	case 10:
		write(7, 0, 2, 1) // not in place: the tombstone is in the log
	case 12:
		write(8, 0, 5, 2)
	case 13:
		write(9, 1, 1, 1)
	default:
		return false
	}
	return true
}

// TestExhaustiveCrashes has bounds that take seconds; ROSEAU_CRASH_SUBSETS is a bigger
// one for all histories, see subsetsOf (`make model`).
func TestExhaustiveCrashes(t *testing.T) {
	limits := [3]int{1 << 9, 1 << 5, 1 << 4}
	if testing.Short() {
		limits = [3]int{1 << 5, 1 << 3, 1 << 2}
	}
	if s := os.Getenv("ROSEAU_CRASH_SUBSETS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("ROSEAU_CRASH_SUBSETS=%q: want a number from 1", s)
		}
		limits = [3]int{n, n, n}
	}
	for i, s := range []struct {
		name   string
		script func(*world, int) bool
	}{{"one object", exhaustiveScript}, {"snapshots", snapshotScript}, {"fresh", freshScript}} {
		n, fail := runExhaustive(t, disk.Options{FreshBlocks: 1}, s.script, limits[i])
		if fail != "" {
			t.Fatalf("%s: %s", s.name, fail)
		}
		t.Logf("%s: %d crash states at %d boundaries: all subsets at %d, all of whole writes at %d", s.name, n.tried, n.boundaries, n.complete, n.whole)
		if n.tried < 500 {
			t.Fatalf("%s: only %d crash states", s.name, n.tried)
		}
	}
}
