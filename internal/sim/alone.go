package sim

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// rottenAlone: every in-sync copy of one of the request's blocks is on the node
// whose disks rot (or was when a join gave the block up), or on a dead disk: the
// only cases in which a read may fail (C5).
func (t *tenant) rottenAlone(r *request) bool {
	for b := r.first; b < r.first+r.count; b++ {
		if t.deadAlone(b) || t.w.lied() && t.givenUp[b] {
			return true
		}
		if !t.w.lied() {
			continue
		}
		// What the guard does not know of yet, it does not read: a grow whose answer is
		// under way.
		for _, set := range [][]int{t.isr(b)[0], t.knownISR(r.by, b)} {
			if len(set) == 1 && set[0] == t.w.profile.rotNode {
				return true
			}
		}
	}
	return false
}

// deadAlone: every in-sync copy of a block is on a dead disk: the others were put
// out, for reasons of their own, before it died or before anybody knew.
func (t *tenant) deadAlone(block int) bool {
	v := t.record()
	isr := v.ISR(block * repl.BlockBytes / segmentBytes)
	return !slices.ContainsFunc(isr, func(d ids.ID) bool { return !t.w.nodeOfDisk(d).diskByID(d).dead })
}

// knownISR is the nodes of the in-sync set of a block's segment, as a guard knows
// the records.
func (t *tenant) knownISR(g *guard, block int) []int {
	if g == nil || !g.hasKnown {
		return nil
	}
	return t.isrNodes(&g.known.Volumes[0], block*repl.BlockBytes/segmentBytes)
}
