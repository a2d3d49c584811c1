package sim

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// rottenAlone: every in-sync copy of one of the request's blocks is on the node
// whose disks rot (or was when a join gave the block up), or on a dead disk: the
// only cases in which a read may fail (C5).
func (w *world) rottenAlone(r *request) bool {
	for b := r.first; b < r.first+r.count; b++ {
		if w.deadAlone(b) || w.lied() && w.givenUp[b] {
			return true
		}
		if !w.lied() {
			continue
		}
		// What the guard does not know of yet, it does not read: a grow whose answer is
		// under way.
		for _, set := range [][]int{w.isr(b)[0], w.knownISR(r.by, b)} {
			if len(set) == 1 && set[0] == w.profile.rotNode {
				return true
			}
		}
	}
	return false
}

// deadAlone: every in-sync copy of a block is on a dead disk: the others were put
// out, for reasons of their own, before it died or before anybody knew.
func (w *world) deadAlone(block int) bool {
	r := w.etcd.records(w.vm, idsOf(w.volume), w.diskIdx)
	isr := r.Volumes[0].ISR(block * repl.BlockBytes / segmentBytes)
	return !slices.ContainsFunc(isr, func(d ids.ID) bool { return !w.nodeOfDisk(d).diskByID(d).dead })
}

// knownISR is the nodes of the in-sync set of a block's segment, as a guard knows
// the records.
func (w *world) knownISR(g *guard, block int) []int {
	if g == nil || !g.hasKnown {
		return nil
	}
	return w.isrNodes(&g.known.Volumes[0], block*repl.BlockBytes/segmentBytes)
}
