package writer

import (
	"fmt"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// collect puts a chunk together of what each in-sync copy can read. Blocks that
// none can are lost for the joining disk, too: it reads them as errors, and what
// heals one of the copies heals it. nil: another source is asked, the extent is listed
// by another copy, or the join waits.
func (j *syncJob) collect(p *op, from *member, n int, a *wire.ReadReply) *wire.ReadReply {
	v := j.m.v
	if p.rep == nil {
		p.rep = &readTask{}
	}
	t := p.rep
	known := slices.Clone(t.have)
	all := t.add(from, n, a)
	if j.bound() && known != nil {
		all = t.keepAlike(known)
	}
	v.unreadableSource(p, from, a)
	t.unreadable = append(t.unreadable, from)
	if !all && v.source(p.seg, t.unreadable) != nil {
		j.readSource(p)
		return nil
	}
	if !all && !v.c.mut.LostWithoutAsking {
		for _, m := range p.seg.members {
			if m.counted && !v.isOut(m) && p.seg.holds(m) && !t.has(m) {
				j.fail("a block is readable on no copy that answers")
				j.m.rejoinAt = v.c.now.Add(unreadableWait)
				return nil
			}
		}
	}
	if !all && j.bound() && !v.c.mut.LostToItsLister && j.listElsewhere(p) {
		return nil
	}
	for i, have := range t.have {
		if !have && !v.c.mut.LostAsAbsent {
			t.tags[i] = wire.Lost
			v.blockLost(p.ext, p.block+i, j.m.disk, "no in-sync copy can read it; a copy joins without it")
		}
	}
	return &wire.ReadReply{Tags: t.tags, Marks: []repl.Mark{t.mark}, Data: t.data}
}

// keepAlike forgets again what a further copy has in another object: only the very
// block that the first copy could not read takes its place.
func (t *readTask) keepAlike(known []bool) (all bool) {
	all = true
	for i := range t.have {
		first := slices.IndexFunc(t.bad, func(b badBlock) bool { return b.i == i })
		if t.have[i] && !known[i] && (first < 0 || t.bad[first].tag != t.tags[i]) {
			t.have[i], t.tags[i] = false, wire.Tag{}
		}
		all = all && t.have[i]
	}
	return all
}

// blockLost notes a block that no in-sync copy can read, until it is written or
// healed.
func (v *volume) blockLost(ext int64, block int, disk ids.ID, why string) {
	at := ext*repl.ExtentBlocks + int64(block)
	if v.lost == nil {
		v.lost = map[int64]bool{}
	}
	if !v.lost[at] {
		v.lost[at] = true
		v.c.report(ReportDamaged, v.id, disk, fmt.Sprintf("extent %d, block %d: %s; reads of it fail until it is written", ext, block, why))
	}
}

// notLost forgets lost blocks that were written or healed.
func (v *volume) notLost(ext int64, block, count int) {
	for i := range count {
		delete(v.lost, ext*repl.ExtentBlocks+int64(block+i))
	}
}
