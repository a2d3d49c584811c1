package disk_test

import (
	"math/rand/v2"
	"testing"

	"roseau/internal/block/disk"
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

// runExhaustive plays the script up to each I/O boundary, and there tries every
// subset of the sectors that a crash may keep; more than maxSubsets are sampled.
func runExhaustive(t testing.TB, o disk.Options, script func(*world, int) bool, maxSubsets int) (tried int, fail string) {
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
				return tried, ""
			}
			line++
		}
		if script(w, line) && w.fail != "" {
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

func TestExhaustiveCrashes(t *testing.T) {
	limit := 1 << 8
	if testing.Short() {
		limit = 1 << 5
	}
	for _, s := range []struct {
		name   string
		script func(*world, int) bool
		limit  int
	}{{"one object", exhaustiveScript, limit}, {"snapshots", snapshotScript, max(limit/8, 1<<3)}, {"fresh", freshScript, max(limit/4, 1<<3)}} {
		tried, fail := runExhaustive(t, disk.Options{FreshBlocks: 1}, s.script, s.limit)
		if fail != "" {
			t.Fatalf("%s: %s", s.name, fail)
		}
		t.Logf("%s: %d crash states", s.name, tried)
		if tried < 500 {
			t.Fatalf("%s: only %d crash states", s.name, tried)
		}
	}
}
