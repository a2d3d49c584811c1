package sim

import (
	"hash/crc32"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// mayRun reports whether a guest of g may execute now: it served, holds the
// lease, and nobody killed that guest. A guest whose guard was killed runs on
// until the lease that the guard had has lapsed.
func (g *guard) mayRun() bool {
	s := g.core.State()
	return s >= writer.Serving && s <= writer.Releasing && g.node.powered && !g.node.asleep && g.lastBoot == g.node.boot &&
		!g.fenced && !g.invalid && !g.buried && g.deadline > g.w.now && (!g.done || g.killed)
}

// onlyOneRuns: no two guests of the VM at a time (I20), and none again whose VM
// was started anew since [S1]. A successor on the same
// node adopts the guest of its run.
func (t *tenant) onlyOneRuns(g *guard) {
	w := t.w
	if g.parent || !g.mayRun() {
		return
	}
	if g.booted && t.guest.run != g.run {
		w.failf("a guest of a past run runs again: %s has the lease, and its VM was started elsewhere since", g.name())
		return
	}
	for _, o := range w.guards {
		if o.t == t && o != g && !o.parent && o.mayRun() && (o.run != g.run || o.node != g.node) {
			w.failf("two guests run: %s holds the lease while %s may run its own for %s yet", g.name(), o.name(), o.deadline.Sub(w.now))
			return
		}
	}
}

// checkAnswer: a copy that nobody damaged verifies every block that it holds.
func (w *world) checkAnswer(l *link, m wire.Message) {
	r, ok := m.(*wire.ReadReply)
	if !ok || r.Status != wire.Unreadable || w.damagedByFaults(l.node) {
		return
	}
	given := w.counts["block_given_up"] > 0
	for _, i := range r.Bad {
		given = given && r.Tags[i] == wire.Lost
	}
	if given {
		return // it was handed on to it
	}
	w.failf("a disk of %s cannot verify a block, and no fault has touched it: request %d, blocks %v, tags %v", l.node.name(), r.ReqID, r.Bad, r.Tags)
}

// damagedByFaults: bits of the node's disks rotted, or one of them died.
func (w *world) damagedByFaults(n *node) bool {
	for _, d := range n.disks {
		if d.dead || d.rotten > 0 {
			return true
		}
	}
	return false
}

// scrubCopy reads every block of an extent that a copy holds a tag of, and
// compares it with the tag.
func (t *tenant) scrubCopy(n *node, d ids.ID, extent uint64, snap uint32, tags []wire.Tag) {
	for first := 0; first < len(tags) && t.w.err == nil; {
		if tags[first].Stamp == 0 {
			first++
			continue
		}
		end := first
		for end < len(tags) && end-first < 64 && tags[end].Stamp != 0 {
			end++
		}
		buf := make([]byte, (end-first)*repl.BlockBytes)
		c, err := n.ask(d, func(eng *disk.Core, token uint64) {
			eng.Read(token, disk.ReadRequest{Volume: t.volume, Extent: extent, Object: snap, Block: first, Count: end - first, Buf: buf})
		})
		if err == nil {
			err = statusError(c.Status)
		}
		for i := first; err == nil && i < end; i++ {
			if b := buf[(i-first)*repl.BlockBytes:][:repl.BlockBytes]; c.Data != nil && crc32.Checksum(b, castagnoli) != tags[i].CRC {
				t.w.failf("extent %d block %d on %s is not what its tag says", extent, i, n.name())
			}
		}
		if err != nil && !t.w.damagedByFaults(n) {
			t.w.failf("extent %d blocks %d to %d on %s: %v, and no fault has touched the disk", extent, first, end-1, n.name(), err)
		}
		first = end
	}
}

// shortFor reports whether the guard knows of fewer copies than min_isr of a block
// of r, or, for a flush, of any block.
func (g *guard) shortFor(r *request) bool {
	v := &g.known.Volumes[0]
	if r.op == writer.OpFlush {
		return v.Short()
	}
	for s := r.first * repl.BlockBytes / segmentBytes; s <= (r.first+r.count-1)*repl.BlockBytes/segmentBytes; s++ {
		if len(v.ISR(s)) < v.Cfg.MinISR {
			return true
		}
	}
	return false
}

// aloneFor reports whether the guard knows of one copy only, of every block of r.
func (g *guard) aloneFor(r *request) bool {
	if !g.hasKnown {
		return false
	}
	v := &g.known.Volumes[0]
	for s := r.first * repl.BlockBytes / segmentBytes; s <= (r.first+r.count-1)*repl.BlockBytes/segmentBytes; s++ {
		if len(v.ISR(s)) != 1 {
			return false
		}
	}
	return true
}
