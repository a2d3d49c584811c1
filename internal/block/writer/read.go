package writer

import (
	"hash/crc32"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksums returns the crc32c of each block.
func checksums(data []byte) []uint32 {
	crc := make([]uint32, len(data)/repl.BlockBytes)
	for i := range crc {
		crc[i] = crc32.Checksum(data[i*repl.BlockBytes:(i+1)*repl.BlockBytes], castagnoli)
	}
	return crc
}

// readTask remembers which copies could not be read.
type readTask struct {
	unreadable []*member
	rc         *rcRun // a read of reconcile's winner
}

func (t *readTask) has(m *member) bool {
	if t == nil {
		return false
	}
	for _, u := range t.unreadable {
		if u == m {
			return true
		}
	}
	return false
}

// startRead asks the local copy, else any other in-sync one.
func (v *volume) startRead(o *op) {
	m := v.reader(o)
	if m == nil {
		if v.allUnreadable(o) {
			v.failRead(o)
			return
		}
		o.state, o.from = opWaiting, nil
		v.reads.push(o)
		return
	}
	o.from = m
	id := v.c.newSlot(slotRead, m, o, 0)
	r := wire.NewRead()
	*r = wire.Read{ReqID: id, Handle: m.handle, Offset: o.offset(), Length: o.length(), Repair: o.rep != nil, Object: o.object, Raw: o.rc}
	v.c.send(m.node, r)
}

// reader picks the member to read o from, or nil if none can be asked now.
func (v *volume) reader(o *op) *member {
	if o.rep != nil && o.rep.rc != nil {
		if m := o.rep.rc.holder; m.usable() && !o.rep.has(m) {
			return m
		}
		return nil
	}
	var best *member
	for i := range o.seg.members {
		// Rotate by extent, so that a remote reader spreads its load.
		m := o.seg.members[(i+int(o.ext))%len(o.seg.members)]
		if !m.counted || v.isOut(m) || !m.usable() || o.rep.has(m) {
			continue
		}
		if m.node.id == v.c.cfg.Node {
			return m
		}
		if best == nil {
			best = m
		}
	}
	return best
}

// allUnreadable reports whether every in-sync copy has been tried (C5).
func (v *volume) allUnreadable(o *op) bool {
	for _, m := range o.seg.members {
		if m.counted && !v.isOut(m) && !o.rep.has(m) {
			return false
		}
	}
	return o.rep != nil
}

// readLost: the member that was asked is gone.
func (v *volume) readLost(o *op, m *member) {
	if o.kind == opSync {
		o.job.sourceLost(o)
		return
	}
	o.from = nil
	o.state = opWaiting
	v.reads.push(o)
	v.c.wake = true
	v.dirty = true
}

// settleReads asks again for waiting reads if one of them can be answered now.
func (v *volume) settleReads() {
	for o := v.reads.head; o != nil; o = o.next {
		if (v.c.leased() || o.rc) && (v.reader(o) != nil || v.allUnreadable(o)) {
			v.retryReads()
			return
		}
	}
}

// retryReads asks again for reads that waited for a lease or a member.
func (v *volume) retryReads() {
	list := v.reads
	v.reads = opList{}
	for o := list.head; o != nil; {
		next := o.next
		o.prev, o.next = nil, nil
		o.state = opRunning
		v.startRead(o)
		o = next
	}
}

func (c *Core) readReply(n *node, a *wire.ReadReply) {
	s, ok := c.takeSlot(n, a.ReqID, slotRead)
	if !ok {
		return
	}
	o, m := s.op, s.m
	v := o.v
	o.from = nil
	switch {
	case o.kind == opSync:
		o.job.sourceRead(o, m, a)
	case a.Status == wire.Unreadable:
		if o.rep == nil {
			o.rep = &readTask{}
		}
		o.rep.unreadable = append(o.rep.unreadable, m)
		if o.rep.rc != nil {
			v.rcUnreadable(o)
			return
		}
		v.startRead(o)
	case a.Status != wire.OK:
		o.state = opWaiting
		v.reads.push(o)
		c.refused(m, a.Status, repl.Promise{})
		m.open, m.retryAt = closed, c.now.Add(c.t.OpenRetry)
		v.dirty = true
	case o.rep != nil && o.rep.rc != nil:
		v.rcRead(o, a)
	case !c.leased() || !m.counted || v.isOut(m):
		// The lease is checked after the disk was read, right before the reply
		// (C3); what was read without it proves nothing.
		o.state = opWaiting
		v.reads.push(o)
	default:
		v.endRead(o, a)
	}
}

func (v *volume) endRead(o *op, a *wire.ReadReply) {
	c := v.c
	if a.Data != nil && int64(len(a.Data)) != o.length() {
		c.report(ReportBug, v.id, ids.ID{}, "read reply of a wrong length")
		o.state = opWaiting
		v.reads.push(o)
		return
	}
	if o.rep != nil {
		v.repair(o, a)
		o.req.state.shared = true // the repairs may be under way
	}
	r := o.req
	switch {
	case r.state.readAll && o.length() == r.Length:
		r.Data = a.Data
	case r.state.readAll && r.Data == nil && a.Data == nil:
	default:
		if r.Data == nil {
			r.Data = make([]byte, r.Length)
		}
		dst := r.Data[o.reqOff : o.reqOff+o.length()]
		if a.Data == nil {
			clear(dst)
		} else {
			copy(dst, a.Data)
		}
	}
	v.unlock(o)
	c.recycle(o)
	c.endPart(r)
}

// failRead answers EIO: every in-sync copy is provably unreadable.
func (v *volume) failRead(o *op) {
	r := o.req
	v.c.report(ReportDamaged, v.id, o.rep.unreadable[0].disk, "no readable copy of some blocks")
	r.state.failed = true
	v.unlock(o)
	v.c.recycle(o)
	v.c.endPart(r)
}

// repair rewrites what the copies tried before could not read, guarded by the
// tag that all copies share. The read still holds its range, and messages of a
// connection stay in order, so no newer write is overwritten.
func (v *volume) repair(o *op, a *wire.ReadReply) {
	if a.Data == nil || len(a.Tags) != o.count || len(a.Marks) == 0 {
		return
	}
	for _, m := range o.rep.unreadable {
		if !m.usable() || !m.counted {
			continue
		}
		for i := range a.Tags {
			if !a.Tags[i].HasData() {
				continue
			}
			id := v.c.newSlot(slotRepair, m, nil, 0)
			v.c.send(m.node, &wire.Repair{
				ReqID: id, Handle: m.handle, Extent: uint64(o.ext), Object: o.object, Block: uint16(o.block + i),
				Expect: a.Tags[i], Tag: a.Tags[i], Mark: a.Marks[0],
				Data: a.Data[i*repl.BlockBytes : (i+1)*repl.BlockBytes],
			})
		}
		v.c.report(ReportRepaired, v.id, m.disk, "blocks rewritten from another copy")
	}
}
