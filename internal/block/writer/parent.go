package writer

import (
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// parentView is the volume that a clone was made from, as its writer sees it: which
// copies were in sync when its records were read. A copy that knows better refuses,
// and then they are read again.
type parentView struct {
	rec     repl.VolumeRecord
	known   bool
	members []*member // by place in Segments.Disks; of them only disk, node and connection count
	waiting opList    // reads that nobody can be asked for
	askAt   clock.Instant
	stale   bool          // a copy was told of a newer record
	readAt  clock.Instant // the records are not read again before
}

// parentTask is what a read needs of the parent.
type parentTask struct {
	own    wire.ReadReply // what the clone's copy answered
	need   []bool         // blocks that it has nothing of
	left   int            // of them unknown
	data   []byte         // the parent's, nil as long as it is zeros
	tried  []*member      // could not read all that was left
	refuse []*member      // would not show it under the present view
	done   bool           // own has everything
}

// cloned reports whether blocks that the volume has nothing of are the parent's.
func (v *volume) cloned() bool { return !v.rec.Cfg.Parent.IsZero() }

// learnParent takes what the records say of the parent.
func (v *volume) learnParent(parent repl.Parent, recs repl.Records) {
	i := slices.IndexFunc(recs.Parents, func(r repl.VolumeRecord) bool { return !parent.IsZero() && r.ID == parent.Volume })
	p := &v.parent
	if i < 0 || p.known && p.rec.ID == parent.Volume && recs.Parents[i].OwnRev < p.rec.OwnRev {
		return // nothing is deduced from a record that is missing, or older
	}
	c := v.c
	old := p.members
	p.rec, p.known, p.stale, p.members = recs.Parents[i], true, false, nil
	for _, d := range p.rec.Seg.Disks {
		if k := slices.IndexFunc(old, func(m *member) bool { return m.disk == d }); k >= 0 {
			p.members = append(p.members, old[k])
			continue
		}
		m := &member{v: v, disk: d}
		node := ids.ID{}
		if j, ok := slices.BinarySearchFunc(recs.Disks, d, func(dn repl.DiskNode, d ids.ID) int { return dn.Disk.Compare(d) }); ok {
			node = recs.Disks[j].Node
		}
		m.node = c.addNode(node)
		m.node.members = append(m.node.members, m)
		if m.node.up {
			m.absent = !slices.Contains(m.node.disks, d)
		}
		p.members = append(p.members, m)
	}
	for _, m := range old {
		if !slices.Contains(p.members, m) {
			v.dropParent(m)
		}
	}
	c.wake = true
}

// dropParent forgets a copy of the parent.
func (v *volume) dropParent(m *member) {
	v.c.forget(m, func(s slot) { v.lostSlot(m, s) })
	m.node.members = slices.DeleteFunc(m.node.members, func(o *member) bool { return o == m })
}

// forgetParent ends what concerns the parent: the clone is flattened.
func (v *volume) forgetParent() {
	v.parent.known = false // nobody is asked any more
	for _, m := range v.parent.members {
		v.dropParent(m)
	}
	waiting := v.parent.waiting
	v.parent = parentView{}
	for o := waiting.head; o != nil; {
		next := o.next
		o.prev, o.next, o.par = nil, nil, nil
		v.waitRead(o) // the copies have it all now
		o = next
	}
	v.c.wantNodes()
	v.c.wake = true
}

// below asks the parent for the blocks of a read that the clone has nothing of, and
// reports whether the read waits for it. The read keeps its range.
func (v *volume) below(o *op, a *wire.ReadReply) bool {
	if !v.cloned() || o.par != nil && o.par.done || o.rep != nil && (o.rep.rc != nil || o.rep.heal != nil) {
		return false
	}
	t := &parentTask{own: *a, need: make([]bool, o.count)}
	t.own.Tags = slices.Clone(a.Tags)
	for i := range t.need {
		if len(a.Tags) != o.count || a.Tags[i] == (wire.Tag{}) {
			t.need[i] = true
			t.left++
		}
	}
	if t.left == 0 {
		return false
	}
	o.par = t
	v.askParent(o)
	return true
}

// holders are the copies of the parent that were in sync in the segment of an op
// when the records were read.
func (v *volume) holders(o *op) []*member {
	p := &v.parent
	k := int(o.ext * repl.ExtentBytes / v.c.cfg.SegmentBytes)
	if !p.known || k >= len(p.rec.Seg.Map) {
		return nil
	}
	var out []*member
	row := p.rec.Seg.Map[k]
	for i := range row {
		m := p.members[row[(i+int(o.ext))%len(row)]]
		if out_, isOut := p.rec.Own.Out[m.disk]; isOut && out_.Covers(k) && !v.c.mut.ParentAnyMember {
			continue
		}
		out = append(out, m)
	}
	return out
}

// askParent asks one copy for the blocks of o that are not known yet.
func (v *volume) askParent(o *op) {
	c, t, p := v.c, o.par, &v.parent
	holders := v.holders(o)
	var m *member
	for _, h := range holders {
		if !h.node.up || h.absent || h.failed || slices.Contains(t.tried, h) || slices.Contains(t.refuse, h) {
			continue
		}
		if m == nil || h.node.id == c.cfg.Node {
			m = h
		}
	}
	if m == nil {
		if p.known && len(t.tried) > 0 && len(t.tried) == len(holders) {
			v.failParent(o)
			return
		}
		if o.req.state.below != nil { // flattening does not wait
			p.stale = p.stale || len(t.refuse) > 0
			o.req.state.away = true
			v.failParentRead(o)
			return
		}
		o.from, o.state = nil, opWaiting
		p.waiting.push(o)
		p.stale = p.stale || !p.known || len(t.refuse) > 0
		if p.askAt <= c.now {
			p.askAt = c.now.Add(c.t.OpenRetry)
		}
		c.wake = true
		return
	}
	first, last := slices.Index(t.need, true), len(t.need)-1
	for !t.need[last] {
		last--
	}
	o.from, o.state = m, opRunning
	id := c.newSlot(slotParent, m, o, uint64(first))
	c.send(m.node, &wire.SnapRead{
		ReqID: id, Volume: p.rec.ID, Disk: m.disk, Generation: p.rec.Own.Generation, CfgVersion: p.rec.Own.CfgVersion,
		Snapshot: v.rec.Cfg.Parent.Snapshot, Offset: o.offset() + int64(first)*repl.BlockBytes, Length: int64(last-first+1) * repl.BlockBytes,
	})
}

// parentReply takes what a copy of the parent answered.
func (c *Core) parentReply(n *node, a *wire.ReadReply) {
	s, ok := c.takeSlot(n, a.ReqID, slotParent)
	if !ok {
		return
	}
	o, m := s.op, s.m
	v, t := o.v, o.par
	o.from = nil
	switch a.Status {
	case wire.OK, wire.Unreadable:
		if t.take(a, int(s.arg)) {
			v.parentDone(o)
			return
		}
		t.tried = append(t.tried, m)
	case wire.DiskFailed:
		m.failed = true
	default:
		t.refuse = append(t.refuse, m)
		v.parent.stale = v.parent.stale || a.Status == wire.StaleCfg || a.Status == wire.OtherGeneration
	}
	v.askParent(o)
}

// take keeps what is good of an answer whose blocks begin at first, and reports
// whether everything is known.
func (t *parentTask) take(a *wire.ReadReply, first int) bool {
	n := len(a.Tags)
	if a.Status == wire.OK && n == 0 { // nothing was ever written there
		n = len(t.need) - first
	}
	next := 0
	for i := 0; i < n && first+i < len(t.need); i++ {
		if next < len(a.Bad) && int(a.Bad[next]) == i {
			next++
			continue
		}
		if !t.need[first+i] {
			continue
		}
		if len(a.Tags) > 0 && a.Tags[i].HasData() {
			if len(a.Data) < (i+1)*repl.BlockBytes {
				continue
			}
			if t.data == nil {
				t.data = make([]byte, len(t.need)*repl.BlockBytes)
			}
			copy(t.data[(first+i)*repl.BlockBytes:][:repl.BlockBytes], a.Data[i*repl.BlockBytes:])
		}
		t.need[first+i] = false
		t.left--
	}
	return t.left == 0
}

// parentDone answers a read with the clone's blocks and the parent's.
func (v *volume) parentDone(o *op) {
	t := o.par
	if !v.c.leased() { // as after any read (C3)
		o.par = nil
		v.waitRead(o)
		return
	}
	absent := func(i int) bool { return len(t.own.Tags) != o.count || t.own.Tags[i] == (wire.Tag{}) }
	if t.data != nil {
		if t.own.Data != nil {
			for i := range o.count {
				if !absent(i) {
					copy(t.data[i*repl.BlockBytes:(i+1)*repl.BlockBytes], t.own.Data[i*repl.BlockBytes:])
				}
			}
		}
		t.own.Data = t.data
	}
	if b := o.req.state.below; b != nil {
		for i := range o.count {
			b[int(o.reqOff/repl.BlockBytes)+i] = absent(i)
		}
	}
	t.done = true
	v.endRead(o, &t.own)
}

// failParent answers EIO: every in-sync copy of the parent was asked for a block.
func (v *volume) failParent(o *op) {
	v.c.report(ReportDamaged, v.id, o.par.tried[0].disk, fmt.Sprintf("extent %d, blocks %d to %d: a block of snapshot %d of volume %s is readable on no copy",
		o.ext, o.block, o.block+o.count-1, v.rec.Cfg.Parent.Snapshot, v.parent.rec.ID.Short()))
	v.failParentRead(o)
}

func (v *volume) failParentRead(o *op) {
	c, r := v.c, o.req
	r.state.failed = true
	v.unlock(o)
	c.recycle(o)
	c.endPart(r)
}

// parentLost: the copy that was asked is gone.
func (v *volume) parentLost(o *op) {
	o.from = nil
	v.askParent(o)
}

// settleParent reads the parent's records again if a copy knows better, gives up
// copies that do not answer, and asks again for what waits.
func (v *volume) settleParent() {
	c, p := v.c, &v.parent
	if !v.cloned() {
		return
	}
	for i := range c.slots {
		if s := c.slots[i]; s.kind == slotParent && s.op.v == v && c.now >= s.sent.Add(c.t.ReconnectWait) {
			if n := s.m.node; n.up && n.heard < s.sent {
				c.effect(Reconnect{Node: n.id}) // heartbeats go only where the clone has copies
			}
			c.dropSlot(uint32(i))
			s.op.par.refuse = append(s.op.par.refuse, s.m)
			v.parentLost(s.op)
		}
	}
	if p.stale && c.now >= p.readAt && !c.reading {
		p.readAt = c.now.Add(parentRetry)
		c.readRecords()
	}
	if p.waiting.head == nil || c.now < p.askAt {
		return
	}
	p.askAt = c.now.Add(c.t.OpenRetry)
	v.retryParent()
}

// parentLinked: a node that may have a copy of a parent can be asked now.
func (c *Core) parentLinked() {
	for _, v := range c.vols {
		if v.parent.waiting.head != nil {
			v.parent.askAt, c.wake = c.now, true
		}
	}
}

// parentRetry is how long between two reads of the parent's records.
const parentRetry = 200 * time.Millisecond

// retryParent asks again for the reads that waited.
func (v *volume) retryParent() {
	list := v.parent.waiting
	v.parent.waiting = opList{}
	for o := list.head; o != nil; {
		next := o.next
		o.prev, o.next = nil, nil
		o.par.tried, o.par.refuse = nil, nil
		v.askParent(o)
		o = next
	}
}

func (v *volume) parentDeadlines(d *deadline) {
	if !v.cloned() {
		return
	}
	c, p := v.c, &v.parent
	if p.waiting.head != nil {
		d.later(p.askAt)
	}
	if p.stale {
		d.later(p.readAt)
	}
	for i := range c.slots {
		if s := &c.slots[i]; s.kind == slotParent && s.op.v == v {
			d.later(s.sent.Add(c.t.ReconnectWait))
		}
	}
}

// parentsRead takes what was read of the parents, at any time.
func (c *Core) parentsRead(ev RecordsRead) {
	recs := ev.Records
	if len(recs.Parents) == 0 || ev.Cached && c.haveRecs {
		return
	}
	c.recs.Parents = recs.Parents
	for _, d := range recs.Disks {
		if _, ok := slices.BinarySearchFunc(c.recs.Disks, d.Disk, func(dn repl.DiskNode, d ids.ID) int { return dn.Disk.Compare(d) }); !ok && c.haveRecs {
			c.recs.Disks = append(slices.Clone(c.recs.Disks), d)
			slices.SortFunc(c.recs.Disks, func(a, b repl.DiskNode) int { return a.Disk.Compare(b.Disk) })
		}
	}
	for i, v := range c.vols {
		v.learnParent(recs.Volumes[i].Cfg.Parent, recs)
		if v.parent.waiting.head != nil {
			v.retryParent()
		}
	}
	c.wantNodes()
}
