package writer

import (
	"fmt"
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

// readTask is the history of a read that met unreadable blocks. The copies are
// asked one after another, and what is good of each is kept: it ends with an
// error only if one block is bad on all of them (C5).
type readTask struct {
	unreadable []*member // asked already
	bad        []badBlock
	have       []bool // blocks that are known
	tags       []wire.Tag
	data       []byte // nil as long as the known ones are zeros
	mark       repl.Mark
	rc         *rcRun // a read of reconcile's winner
	heal       *heal  // a repair that no client asked for
}

// badBlock is a block of a copy that has to be rewritten, if its tag is still
// that.
type badBlock struct {
	m   *member
	i   int // in the range of the read
	tag wire.Tag
}

// add takes what one copy answered and reports whether every block is known.
func (t *readTask) add(m *member, n int, a *wire.ReadReply) bool {
	if t.have == nil {
		t.have, t.tags = make([]bool, n), make([]wire.Tag, n)
	}
	sound := len(a.Tags) == n && (a.Data == nil || len(a.Data) == n*repl.BlockBytes)
	if len(a.Marks) > 0 && t.mark.Less(a.Marks[0]) {
		t.mark = a.Marks[0]
	}
	all, next := true, 0
	for i := range n {
		bad := next < len(a.Bad) && int(a.Bad[next]) == i
		if bad {
			next++
		}
		switch {
		case !sound:
		case bad:
			t.bad = append(t.bad, badBlock{m, i, a.Tags[i]})
		case t.have[i]:
		default:
			t.have[i], t.tags[i] = true, a.Tags[i]
			if a.Data != nil && a.Tags[i] != (wire.Tag{}) {
				if t.data == nil {
					t.data = make([]byte, n*repl.BlockBytes)
				}
				copy(t.data[i*repl.BlockBytes:(i+1)*repl.BlockBytes], a.Data[i*repl.BlockBytes:])
			}
		}
		all = all && t.have[i]
	}
	return all
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
		o.from = nil
		v.waitRead(o)
		return
	}
	if !v.readDirect(o, m) {
		v.askByMessage(o, m)
	}
}

// askByMessage asks the storage process of m.
func (v *volume) askByMessage(o *op, m *member) {
	o.from = m
	v.askRead(o, m)
}

func (v *volume) askRead(o *op, m *member) {
	v.c.hedge.sent(v.c.now)
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
	if o.rep != nil && o.rep.heal != nil {
		return o.rep.heal.reader(o)
	}
	var best *member
	for i := range o.seg.members {
		// Rotate by extent, so that a remote reader spreads its load.
		m := o.seg.members[(i+int(o.ext))%len(o.seg.members)]
		if (!m.counted || v.isOut(m) || o.seg.lacks(m)) && !v.c.mut.ReadAnyMember || !m.usable() || o.rep.has(m) {
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
	if o.rep == nil {
		return false
	}
	for _, m := range o.seg.members {
		if m.counted && !v.isOut(m) && !o.seg.lacks(m) && !o.rep.has(m) && o.rep.heal.source(m) {
			return false
		}
	}
	return o.rep.rc == nil
}

// readLost: the member that was asked is gone.
func (v *volume) readLost(o *op, m *member) {
	if o.kind == opSync {
		o.job.sourceLost(o)
		return
	}
	if v.c.hedgeLost(o) {
		return
	}
	o.from = nil
	v.waitRead(o)
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
	s, ok := c.takeRead(n, a.ReqID, slotRead)
	if !ok {
		return
	}
	o, m := s.op, s.m
	if o.kind == opRead {
		c.hedge.answered(c.now.Sub(s.sent))
		c.unhedge(o, m)
	}
	v := o.v
	o.from = nil
	switch {
	case o.kind == opSync:
		o.job.sourceRead(o, m, a)
	case a.Status != wire.OK && a.Status != wire.Unreadable:
		v.waitRead(o)
		c.refused(m, a.Status, repl.Promise{})
		m.open, m.retryAt = closed, c.now.Add(c.t.OpenRetry)
		v.dirty = true
	case o.rep != nil && o.rep.rc != nil && a.Status == wire.Unreadable:
		o.rep.unreadable = append(o.rep.unreadable, m)
		v.rcUnreadable(o, m, a)
	case o.rep != nil && o.rep.rc != nil:
		v.rcRead(o, a)
	case !c.leased() || (!m.counted || v.isOut(m) || !o.seg.holds(m)) && !c.mut.ReadAnyMember:
		// The lease is checked after the disk was read, right before the reply
		// (C3); what was read without it proves nothing.
		v.waitRead(o)
	case o.rep != nil && o.rep.evidence(v, m):
		v.evidence(o, m, a)
	case a.Status == wire.Unreadable || o.rep != nil:
		v.collect(o, m, a)
	default:
		v.endRead(o, a)
	}
}

// waitRead asks again later.
func (v *volume) waitRead(o *op) {
	o.state = opWaiting
	v.reads.push(o)
}

// collect takes what is good of one copy and goes on to the next, if a block is
// still missing.
func (v *volume) collect(o *op, m *member, a *wire.ReadReply) {
	if o.rep == nil {
		o.rep = &readTask{}
	}
	t := o.rep
	all := t.add(m, o.count, a)
	if !all && a.Status == wire.OK {
		v.c.report(ReportBug, v.id, m.disk, "read reply of a wrong length")
	}
	if all {
		v.endRead(o, &wire.ReadReply{Tags: t.tags, Marks: []repl.Mark{t.mark}, Data: t.data})
		return
	}
	t.unreadable = append(t.unreadable, m)
	v.startRead(o)
}

func (v *volume) endRead(o *op, a *wire.ReadReply) {
	c := v.c
	if a.Data != nil && int64(len(a.Data)) != o.length() {
		c.report(ReportBug, v.id, ids.ID{}, "read reply of a wrong length")
		o.state = opWaiting
		v.reads.push(o)
		return
	}
	if !v.below(o, a) {
		v.serve(o, a)
	}
}

// serve gives the client what a read found, all of it: nothing is the parent's any
// more.
func (v *volume) serve(o *op, a *wire.ReadReply) {
	c := v.c
	if len(v.lost) > 0 && o.object == 0 {
		v.notLost(o.ext, o.block, o.count)
	}
	if o.rep != nil {
		if v.shows(o.object) { // else the copies may have begun to merge
			v.repair(o)
		}
		if o.rep.heal != nil {
			v.endHeal(o)
			return
		}
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
	if h := o.rep.heal; h != nil && h.sources != nil && len(o.rep.unreadable) == len(h.bad) {
		v.endHeal(o) // its sources have left the in-sync set: nothing was tried
		return
	}
	for i, have := range o.rep.have {
		if !have && o.object == 0 {
			v.blockLost(o.ext, o.block+i, o.rep.unreadable[0].disk, "it is readable on no copy")
		}
	}
	if o.object != 0 || o.rep.have == nil {
		v.c.report(ReportDamaged, v.id, o.rep.unreadable[0].disk, fmt.Sprintf("extent %d, blocks %d to %d: a block is readable on no copy", o.ext, o.block, o.block+o.count-1))
	}
	if o.rep.heal != nil {
		v.endHeal(o)
		return
	}
	r := o.req
	r.state.failed = true
	v.unlock(o)
	v.c.recycle(o)
	v.c.endPart(r)
}

// repair rewrites what the copies could not read, guarded by the tag that they
// have there. The read still holds its range, and messages of a connection stay
// in order, so no newer write is overwritten.
func (v *volume) repair(o *op) {
	t := o.rep
	told := map[*member]int{}
	var order []*member
	for _, b := range t.bad {
		if !v.readable(o.seg, b.m) || b.tag == t.tags[b.i] && !b.tag.HasData() {
			continue
		}
		w := &wire.Repair{
			ReqID: v.c.newSlot(slotRepair, b.m, nil, 0), Handle: b.m.handle, Extent: uint64(o.ext), Object: o.object, Block: uint16(o.block + b.i),
			Expect: b.tag, Tag: t.tags[b.i], Mark: t.mark,
		}
		if w.Tag.HasData() {
			if w.Data = make([]byte, repl.BlockBytes); t.data != nil {
				copy(w.Data, t.data[b.i*repl.BlockBytes:])
			}
		}
		v.c.send(b.m.node, w)
		b.m.touch(o.ext, o.block+b.i, 1)
		if told[b.m]++; told[b.m] == 1 {
			order = append(order, b.m)
		}
	}
	for _, m := range order {
		v.c.report(ReportRepaired, v.id, m.disk, fmt.Sprintf("extent %d: %d blocks rewritten from another copy", o.ext, told[m]))
	}
}
