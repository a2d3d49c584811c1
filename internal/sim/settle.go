package sim

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// settle ends all faults and demands that everything comes right: every volume's
// writer serves, every copy is in sync, every block reads as one of its legal
// values, and all copies are equal.
func (w *world) settle() {
	w.calm = true
	w.etcd.up = true
	w.filler.end()
	for _, n := range w.nodes {
		n.resume()
	}
	for _, t := range w.tenants {
		t.manager.calmAt = w.now
	}
	for _, n := range w.nodes {
		w.heal(n)
		n.restore()
		n.startStorage()
		for _, d := range n.disks {
			d.wake(w)
			d.tellTruth()
		}
	}
	for _, g := range w.guards {
		if g.frozen {
			g.thaw()
		}
		if g.ghost && w.opt.Scenario == nil {
			g.layDown() // a fault is over with the others
		}
	}
	w.repeatReplace()
	if !w.comeWhole(w.now.Add(10*time.Minute)) || !w.healGivenUp() || !w.scrubAll() {
		return
	}
	limit := w.now.Add(10 * time.Minute)
	for _, t := range w.asked() {
		t.verifyAll(limit)
	}
	w.nothingLeft()
}

// comeWhole waits until every volume is served and has all its copies. One whose last
// good copies are gone waits for ever, and serves nothing older instead: that is
// right, and stops no other volume (I17). It reports whether any is whole.
func (w *world) comeWhole(limit clock.Instant) bool {
	if w.run(limit, func() bool { return w.ops >= w.opt.Ops && w.all((*tenant).whole) && w.filler.gone() }) {
		return true
	}
	if w.err != nil {
		return false
	}
	for _, t := range w.asked() {
		switch {
		case t.whole():
			continue
		case t.onlyDeadCopies():
			w.note("waits_for_dead_copy")
		case t.onlyRottenCopies():
			w.note("waits_for_rotten_copy")
		default:
			w.failf("not whole %s after the last fault: %s", 10*time.Minute, w.describe())
			return false
		}
		t.waits = true
	}
	if len(w.asked()) == len(w.living()) {
		w.failf("only %d operations %s after the last fault: %s", w.ops, 10*time.Minute, w.describe())
		return false
	}
	return len(w.asked()) > 0
}

// asked are the volumes of which everything is demanded.
func (w *world) asked() []*tenant {
	return slices.DeleteFunc(w.living(), func(t *tenant) bool { return t.waits })
}

// onlyDeadCopies reports whether every in-sync copy of a segment is on a dead
// disk: more than the contract promises to survive.
func (t *tenant) onlyDeadCopies() bool {
	v := t.record()
	for s := range v.Seg.Map {
		isr := v.ISR(s)
		if !slices.ContainsFunc(isr, func(d ids.ID) bool { return !t.w.nodeOfDisk(d).diskByID(d).dead }) {
			return true
		}
	}
	return false
}

// onlyRottenCopies reports whether all that is left in sync of a segment, dead
// disks aside, is on the node whose disks rot, or has a log tail that only such a
// copy could judge.
func (t *tenant) onlyRottenCopies() bool {
	if !t.w.lied() {
		return false
	}
	v := t.record()
	for s := range v.Seg.Map {
		sound := func(d ids.ID) bool {
			n := t.w.nodeOfDisk(d)
			if n.index == t.w.profile.rotNode || n.diskByID(d).dead || n.engines[d] == nil {
				return false
			}
			info, _ := n.engines[d].Volume(t.volume)
			return info.Unverified == 0 || t.manager.challenger == nil
		}
		if !slices.ContainsFunc(v.ISR(s), sound) {
			return true
		}
	}
	return false
}

func (w *world) repeatReplace() {
	w.replaceDisks()
	w.after(time.Second, w.repeatReplace)
}

// whole: the active guard serves, holds the lease, every disk is in, and no rollback is
// under way: a guest that has nothing left to ask does not notice one.
func (t *tenant) whole() bool {
	g := t.manager.active
	if g == nil || g.ended() || g.state.String() != "serving" || !g.leaseHeld() || t.manager.challenger != nil || len(t.guest.pending) > 0 {
		return false
	}
	v := t.look()
	return t.fewest(v) == storageNodes && !moving(v) && v.Cfg.Rollback == 0
}

// copies is how many nodes are in sync for the segment that has the fewest.
func (t *tenant) copies() int {
	v := t.record()
	return t.fewest(&v)
}

func (t *tenant) fewest(v *repl.VolumeRecord) int {
	fewest := storageNodes
	for s := range segmentCount {
		fewest = min(fewest, len(t.isrNodes(v, s)))
	}
	return fewest
}
