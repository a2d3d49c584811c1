package writer

import (
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// What this file has is about members that are in sync for some segments of the
// volume and are being given others (own.out: partial, fill).

// isPartial reports whether m is in sync, and is being given more segments.
func (v *volume) isPartial(m *member) bool {
	o, out := v.rec.Own.Out[m.disk]
	return out && o.Partial
}

// lacks reports whether m is being given this segment while it is in sync for
// others: nothing is read from it here, and its acks do not count.
func (s *segment) lacks(m *member) bool {
	return len(s.filling) > 0 && slices.Contains(s.filling, m)
}

// holds reports whether m is a copy of the segment as far as own says.
func (s *segment) holds(m *member) bool {
	return slices.Contains(s.members, m) && !s.lacks(m)
}

// refill notes which members are being given which segments, and whether there
// are enough copies. It is called whenever the record has changed.
func (v *volume) refill() {
	v.setShort(v.rec.Short() && !v.c.mut.AnswerBelowMin)
	for i := range v.segs {
		s := &v.segs[i]
		s.filling = s.filling[:0]
		for _, m := range s.members {
			if o, out := v.rec.Own.Out[m.disk]; out && o.Partial && o.Fills(i) && !v.c.mut.FillCounts {
				s.filling = append(s.filling, m)
			}
		}
	}
}

// mayJoin reports whether a join of m may begin now.
func (v *volume) mayJoin(m *member) bool {
	c := v.c
	switch {
	case !m.node.up, m.absent, m.failed, c.now < m.rejoinAt, c.reopen.unwritten, v.change != nil, c.state != Serving:
		return false
	case v.snap.seq > 0 && !v.told():
		return false // in-sync copies may still be merging objects
	case v.isPartial(m):
		return m.counted && m.usable() && v.pending == nil
	}
	return !m.counted && v.isOut(m) && m.open != opening
}

// reopen asks m for OPEN again on the same connection: unanswered questions are
// forgotten, as if it had been lost and found.
func (m *member) reopen() {
	c := m.v.c
	m.open, m.retryAt, m.resumed, m.telling, m.releasing, m.flushSent = closed, 0, false, false, false, false
	c.forget(m, func(s slot) { m.v.lostSlot(m, s) })
}

// wants reports whether a join of m has to bring this segment.
func (s *segment) wants(m *member) bool {
	return slices.Contains(s.members, m) && (!m.v.isPartial(m) || s.lacks(m))
}

// releaseFill ends what m gets only because it is being given segments.
func (v *volume) releaseFill(m *member) {
	m.live = false
	for i := range v.c.slots {
		if s := &v.c.slots[i]; s.kind == slotWrite && s.m == m && s.op.seg.lacks(m) {
			v.c.dropSlot(uint32(i))
		}
	}
	for o := v.zombies.head; o != nil; {
		next := o.next
		if t := o.target(m); t != nil && !t.acked && o.seg.lacks(m) {
			m.zombies--
			o.removeTarget(m)
			v.endZombie(o)
		}
		o = next
	}
	for o := v.inflight.head; o != nil; {
		next := o.next
		if o.seg.lacks(m) {
			o.removeTarget(m)
			v.tryCommit(o)
		}
		o = next
	}
	v.dirty, v.c.wake = true, true
}

// sendMark tells the joining disk how new an object is of which it has all
// blocks: blocks that were taken away here leave no tag. A copy that was away
// longer may have them, and may join from this one (I12). It reports whether
// there was anything to tell.
func (j *syncJob) sendMark(i int) bool {
	o := &j.objects[i]
	if !o.had.Less(o.mark) {
		return false
	}
	w := &wire.SyncWrite{Handle: j.m.handle, Extent: o.ext, Object: o.object, Mark: o.mark}
	if len(o.have) == 0 {
		w.Tombstone = true
	} else if b := slices.Index(o.want, wire.Tag{}); b >= 0 {
		w.Blocks = []wire.SyncBlock{{Block: uint16(b)}}
	} else {
		return false // every block is there, with the tag of its newest write
	}
	o.had = o.mark
	o.unsent++
	w.ReqID = j.slot(j.m, askWrite, i)
	j.m.v.c.send(j.m.node, w)
	return true
}

// discardMoved gives back the space of copies that leave their segments: they are
// in no row any more, so nothing is read from them, and their windows prove
// nothing there. It is sent once; a copy that is away keeps the space until the
// volume leaves that disk. The log of that disk has what no other was told: if it
// comes back, see settleBarrier.
func (v *volume) discardMoved(fills []repl.Fill) {
	if len(v.snapNumbers()) > 0 && !v.c.mut.DiscardSnapshots {
		return // the writer of a clone may not know yet that they left
	}
	perSegment := v.c.cfg.SegmentBytes / repl.ExtentBytes
	for _, f := range fills {
		m := v.memberOf(f.Drop)
		if m == nil || !m.usable() {
			continue
		}
		last := (v.rec.Cfg.SizeBytes + repl.ExtentBytes - 1) / repl.ExtentBytes
		for e := int64(f.Segment) * perSegment; e < min(int64(f.Segment+1)*perSegment, last); e++ {
			v.wseq++
			if v.inflight.head == nil {
				v.commitWseq = v.wseq
			}
			m.highAcked = v.wseq                     // so that a flush asks for it, which follows on the connection
			id := v.c.newSlot(slotRepair, m, nil, 0) // nothing waits for the answer
			v.c.send(m.node, &wire.Zero{
				ReqID: id, Handle: m.handle, Flags: wire.ZeroDiscard, Mark: v.mark(v.wseq), Offset: e * repl.ExtentBytes,
				Length: min(repl.ExtentBytes, v.rec.Cfg.SizeBytes-e*repl.ExtentBytes), Piggyback: v.piggyback(),
			})
		}
		v.alone[m.disk] = v.wseq
		if v.flush.dirtyAt == 0 {
			v.flush.dirtyAt = v.c.now
		}
	}
}
