package writer

import (
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// heal is the repair of one block that no client asked for: a replica told of
// damage, or a scrub found copies that differ. It is a read that holds its block,
// and ends with REPAIR.
type heal struct {
	ext    int64
	object uint32 // the snapshot that shows it, 0 = head
	block  int
	bad    []badBlock // i is 0
	// sources are the copies that may be read; nil: all that are not in bad.
	sources []*member
	// proof are copies whose block is kept before it is overwritten.
	proof []*member
	mark  repl.Mark // of the extent, as compared
}

// healParallel bounds the repairs of a volume under way.
const healParallel = 8

// healQueue are the repairs that wait, in the order in which they were found.
type healQueue struct {
	list    []*heal
	running int
}

func (v *volume) healing() int { return len(v.heals.list) + v.heals.running }

// source reports whether m may be read for the repair; a nil heal allows all.
func (h *heal) source(m *member) bool {
	return h == nil || h.sources == nil || slices.Contains(h.sources, m)
}

// reader picks the copy to be asked now: first those whose content is kept.
func (h *heal) reader(o *op) *member {
	for len(h.proof) > 0 {
		if m := h.proof[0]; m.usable() {
			return m
		}
		h.proof = h.proof[1:]
	}
	for _, m := range o.seg.members {
		if o.v.readable(o.seg, m) && !o.rep.has(m) && h.source(m) {
			return m
		}
	}
	return nil
}

// evidence reports whether the answer of m is one that is only kept.
func (t *readTask) evidence(_ *volume, m *member) bool {
	return t.heal != nil && len(t.heal.proof) > 0 && t.heal.proof[0] == m
}

func (v *volume) evidence(o *op, m *member, a *wire.ReadReply) {
	h := o.rep.heal
	h.proof = h.proof[1:]
	e := Evidence{Volume: v.id, Disk: m.disk, Extent: uint64(o.ext), Block: o.block, Mark: h.mark}
	if len(a.Tags) == 1 {
		e.Tag = a.Tags[0]
	}
	if a.Status == wire.OK {
		e.Data = a.Data
	}
	v.c.effect(e)
	v.startRead(o)
}

// damaged queues the repair of what a replica told.
func (c *Core) damaged(n *node, a *wire.Damage) {
	for _, m := range n.members {
		if m.open != opened || m.handle != a.Handle || !m.v.shows(a.Object) {
			continue
		}
		v := m.v
		for _, b := range a.Blocks {
			if int64(a.Extent) < v.extentCount() && v.inVolume(int64(a.Extent), int(b.Block)) {
				v.heals.list = append(v.heals.list, &heal{ext: int64(a.Extent), object: a.Object, block: int(b.Block), bad: []badBlock{{m: m, tag: b.Tag}}})
			}
		}
		v.dirty = true
	}
}

// unreadableSource queues the repair of blocks that a resync could not read: it
// goes on with another source, or waits for the repair.
func (v *volume) unreadableSource(p *op, from *member, a *wire.ReadReply) {
	for _, i := range a.Bad {
		if int(i) < len(a.Tags) && int(i) < p.count {
			v.heals.list = append(v.heals.list, &heal{ext: p.ext, block: p.block + int(i), bad: []badBlock{{m: from, tag: a.Tags[i]}}})
		}
	}
	v.dirty, v.c.wake = true, true
}

func (v *volume) extentCount() int64 {
	return (v.rec.Cfg.SizeBytes + repl.ExtentBytes - 1) / repl.ExtentBytes
}

func (v *volume) inVolume(ext int64, block int) bool {
	return ext*repl.ExtentBytes+int64(block)*repl.BlockBytes < v.rec.Cfg.SizeBytes
}

// readable reports whether m is an in-sync copy of a segment that answers now.
func (v *volume) readable(s *segment, m *member) bool {
	return m.counted && !v.isOut(m) && s.holds(m) && m.usable()
}

// settleHeals begins the repairs that are due. What a copy told that is not there
// now is dropped: it tells again when it is opened. A copy that is joining is
// repaired once it is in sync.
func (v *volume) settleHeals() {
	c := v.c
	q := &v.heals
	if c.state != Serving || !c.leased() || len(q.list) == 0 || q.running >= healParallel {
		return
	}
	keep := q.list[:0]
	for _, h := range q.list {
		seg := v.segment(uint64(h.ext))
		h.bad = slices.DeleteFunc(h.bad, func(b badBlock) bool { return !b.m.usable() || !slices.Contains(seg.members, b.m) })
		if !v.shows(h.object) {
			continue // nobody sees it any more
		}
		due := len(h.bad) > 0 && q.running < healParallel
		for _, b := range h.bad {
			due = due && v.readable(seg, b.m)
		}
		switch {
		case due:
			v.beginHeal(h)
		case len(h.bad) > 0:
			keep = append(keep, h)
		}
	}
	clear(q.list[len(keep):])
	q.list = keep
	if len(keep) == 0 {
		q.list = nil
	}
}

func (v *volume) beginHeal(h *heal) {
	v.heals.running++
	o := v.c.newOp(opRead, v, h.ext, h.block, 1)
	o.object = h.object
	o.rep = &readTask{heal: h, bad: slices.Clone(h.bad)}
	for _, b := range h.bad {
		o.rep.unreadable = append(o.rep.unreadable, b.m)
	}
	v.lock(o)
}

// endHeal ends a repair whose REPAIR was sent, or that found no source.
func (v *volume) endHeal(o *op) {
	v.heals.running--
	v.unlock(o)
	v.c.recycle(o)
	v.dirty, v.c.wake = true, true
}
