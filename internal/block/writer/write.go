package writer

import (
	"cmp"
	"slices"

	"roseau/internal/block/wire"
)

// startWrite gives o its place in the order and sends it to every member of
// every set that may be the in-sync set, and to joining members.
func (v *volume) startWrite(o *op) {
	c := v.c
	v.wseq++
	o.wseq, o.began = v.wseq, c.now
	if !o.rc && (!o.under || c.mut.FlattenOver) { // a winner stays in its object
		o.object = v.snap.seq
	}
	v.cumIssued += o.length()
	o.cum = v.cumIssued
	v.inflight.push(o)
	o.seg.touch(o.ext, o.block, o.count)
	for _, m := range o.seg.members {
		if !m.live && (!m.counted || o.seg.lacks(m) && v.pending != m) {
			continue
		}
		o.targets = append(o.targets, target{m: m})
		if m.writable() {
			c.sendWrite(o, m, 0)
		}
	}
	if v.flush.dirtyAt == 0 {
		v.flush.dirtyAt = c.now
	}
}

// sendWrite sends o to one of its targets.
func (c *Core) sendWrite(o *op, m *member, flags wire.WriteFlags) {
	t := o.target(m)
	if t == nil || t.acked {
		return
	}
	t.sent, t.nospc = true, false
	if o.fua || o.seg.rest() <= 1 && !c.mut.LoneCopyVolatile {
		o.fua = true // a lone copy has no volatile window (C7)
		flags |= wire.WriteFUA
	}
	v := o.v
	if (o.rc || !m.counted || o.seg.lacks(m)) && !c.mut.NoReserve {
		flags |= wire.WriteReserve // else a full pool could not be repaired
	}
	id := c.newSlot(slotWrite, m, o, 0)
	if o.kind == opWrite {
		w := wire.NewWrite()
		*w = wire.Write{
			ReqID: id, Handle: m.handle, Flags: flags, Mark: v.mark(o.wseq), Offset: o.offset(), SnapSeq: o.object,
			Piggyback: v.piggyback(), CRC: o.crc, Data: o.data,
		}
		c.send(m.node, w)
		return
	}
	if o.discard {
		flags |= wire.ZeroDiscard
	}
	c.send(m.node, &wire.Zero{
		ReqID: id, Handle: m.handle, Flags: flags, Mark: v.mark(o.wseq), Offset: o.offset(), Length: o.length(),
		SnapSeq: o.object, Piggyback: v.piggyback(),
	})
}

// writeAck takes the answer to a Write or Zero.
func (c *Core) writeAck(n *node, a *wire.Ack) {
	s, ok := c.takeSlot(n, a.ReqID, slotWrite)
	if !ok {
		return
	}
	o, m := s.op, s.m
	v := m.v
	t := o.target(m)
	if t == nil {
		return
	}
	switch a.Status {
	case wire.OK:
	case wire.NoSpace, wire.OutOfOrder:
		if c.mut.NoSpaceIsFailure {
			m.failed, v.dirty = true, true
			return
		}
		v.noSpace(o, m, t, a.Status)
		return
	case wire.DiskFailed:
		m.failed = true
		v.dirty = true
		return
	case wire.StaleEpoch, wire.OtherNonce, wire.OtherGeneration, wire.Released, wire.BadHandle:
		o.unsent(m)
		c.refused(m, a.Status, a.Promised)
		return
	default:
		c.report(ReportBug, v.id, m.disk, "write refused")
		m.failed = true
		v.dirty = true
		return
	}
	t.acked = true
	m.highAcked = max(m.highAcked, o.wseq)
	if o.state == opZombie {
		m.zombies--
		v.endZombie(o)
		return
	}
	v.tryCommit(o)
}

// tryCommit commits o if every counted member has acked it.
func (v *volume) tryCommit(o *op) {
	missing := 0
	for i := range o.targets {
		t := &o.targets[i]
		if !t.acked && v.needs(t.m) && (v.pending == t.m || !o.seg.lacks(t.m)) {
			missing++
		}
	}
	if missing > 1 || missing == 1 && !v.c.mut.QuorumAck {
		return
	}
	v.commit(o)
}

// needs reports whether flushes, and acks in the segments that it holds, wait
// for m.
func (v *volume) needs(m *member) bool {
	if m.leaving != "" && (v.c.mut.AckBeforeShrinkKnown || v.c.mut.ReadBeforeOut && v.c.state == Reconciling) {
		return false
	}
	return m.counted
}

func (v *volume) commit(o *op) {
	c := v.c
	v.inflight.remove(o)
	if !o.fua { // else durable wherever it is acked
		o.seg.dirtyWseq = max(o.seg.dirtyWseq, o.wseq)
	}
	if v.inflight.head == nil {
		v.commitWseq = v.wseq
	} else {
		v.commitWseq = v.inflight.head.wseq - 1
	}
	v.dirty = true
	c.wake = c.wake || v.flush.waits(v.commitWseq) || v.rc.running > 0 || v.pending != nil || v.joining()
	if len(v.lost) > 0 {
		v.notLost(o.ext, o.block, o.count)
	}
	refused := o.refused
	e := v.extents[o.ext]
	o.state = opZombie
	v.unlock(o)
	if refused {
		v.clearRefused(o.ext, e)
	}
	if o.rc {
		v.rc.running--
	}
	for i := range o.targets {
		if !o.targets[i].acked {
			o.targets[i].m.zombies++
			o.shared = true
		}
	}
	if o.req != nil {
		c.pace.write(c.now, c.now.Sub(o.began))
		o.req.state.shared = o.req.state.shared || o.shared
		c.endPart(o.req)
		o.req = nil
	}
	v.zombies.push(o)
	v.endZombie(o)
}

// endZombie ends a committed write once nobody's ack is outstanding.
func (v *volume) endZombie(o *op) {
	for i := range o.targets {
		if !o.targets[i].acked {
			return
		}
	}
	v.zombies.remove(o)
	v.c.wake = true
	v.c.recycle(o)
}

// unacked returns the writes that m has not acked, by wseq.
func (v *volume) unacked(m *member) []*op {
	var ops []*op
	for _, l := range []*opList{&v.inflight, &v.zombies} {
		for o := l.head; o != nil; o = o.next {
			if t := o.target(m); t != nil && !t.acked {
				ops = append(ops, o)
			}
		}
	}
	slices.SortFunc(ops, func(a, b *op) int { return cmp.Compare(a.wseq, b.wseq) })
	return ops
}

// release drops m from every write under way: its answers are not needed any
// more and it gets no new ones.
func (v *volume) release(m *member) {
	m.dropPlaces()
	v.c.forget(m, func(s slot) { v.lostSlot(m, s) })
	if m.open == opening {
		m.open = closed // its answer is forgotten
	}
	m.live, m.counted, m.flushWait, m.flushSent, m.telling, m.lease, m.nospcAt = false, false, false, false, false, 0, 0
	for o := v.zombies.head; o != nil; {
		next := o.next
		if t := o.target(m); t != nil && !t.acked {
			o.removeTarget(m)
			v.endZombie(o)
		}
		o = next
	}
	m.zombies = 0
	for o := v.inflight.head; o != nil; {
		next := o.next
		o.removeTarget(m)
		v.tryCommit(o)
		o = next
	}
	v.dirty = true
	v.c.wake = true
}
