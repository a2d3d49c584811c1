package writer

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// reincGap is added to the newest wseq seen when an epoch is reopened: more than
// can have been in flight, so that no (epoch, wseq) is issued twice.
const reincGap = 1 << 20

// reconcile is steps 3 to 7 of a takeover, for one volume.
type reconcile struct {
	phase   rcPhase
	from    repl.Mark // F: the ISR-wide flush mark, as far as any member learned it
	parts   []*member // whose windows are taken
	round   uint64    // +1 with each start; answers of an earlier one do not count
	asked   int       // windows not complete
	best    map[rcKey]rcBest
	runs    []rcRun
	next    int // run to begin next
	running int // reads and writes under way
	restart bool
	cold    bool // some segment had only cold copies that may have lost something
}

type rcPhase uint8

const (
	rcIdle rcPhase = iota
	rcWindow
	rcRewrite
	rcFlush
	rcConfig
	rcDone
)

type rcKey struct {
	ext    uint64
	object uint32
	block  uint16
}

// rcBest is the newest verified record of a block.
type rcBest struct {
	kind    wire.RecordKind
	mark    repl.Mark
	holders uint64 // members that reported it, by index
}

// rcRun is a stretch of blocks with one winner.
type rcRun struct {
	ext    uint64
	object uint32
	block  int
	count  int
	kind   wire.RecordKind
	mark   repl.Mark
	holder *member // read now
	all    uint64  // every member that reported the record, by index
}

func (v *volume) beginReconcile() {
	var top uint64
	rc := &v.rc
	for _, m := range v.members {
		if m.open != opened {
			continue
		}
		top = max(top, m.ack.MaxMark.Wseq, m.ack.FlushMark.Wseq, m.ack.DurableMark.Wseq)
		if m.counted && rc.from.Less(m.ack.FlushMark) {
			rc.from = m.ack.FlushMark
		}
	}
	if v.c.reopen.same {
		top += reincGap
	}
	v.wseq, v.commitWseq = top, top
	v.flushMark = rc.from
	for i := range v.segs {
		warm := false
		for _, m := range v.segs[i].members {
			warm = warm || m.counted && m.open == opened && !m.cold && !v.segs[i].lacks(m)
		}
		if !warm && !v.lossless(&v.segs[i]) {
			rc.cold = true
		}
	}
	rc.phase = rcIdle
	v.beginStamping()
}

// participants are the counted members that can be read and written; ok is
// false while it is not clear whether one will be.
func (v *volume) participants() (ms []*member, ok bool) {
	for _, m := range v.members {
		switch {
		case !m.counted:
		case m.usable():
			ms = append(ms, m)
		case m.leaving == "":
			return nil, false
		}
	}
	return ms, true
}

// settleReconcile moves the reconcile on; any change among the participants
// starts it again, which is harmless: what was rewritten wins again.
func (v *volume) settleReconcile() {
	c := v.c
	rc := &v.rc
	if c.state != Reconciling || rc.phase == rcDone {
		if c.state == Reconciling {
			c.maybeServe()
		}
		return
	}
	parts, ok := v.participants()
	if !ok {
		return
	}
	if rc.phase != rcIdle && (rc.restart || !slices.Equal(parts, rc.parts)) {
		rc.restart = true
		v.dropReconcileReads()
		if v.inflight.head != nil || rc.running > 0 {
			return // ends when the missing member is out or back
		}
		rc.phase = rcIdle
	}
	switch rc.phase {
	case rcIdle:
		if !v.waitForWarm() {
			v.askWindows(parts)
		}
	case rcRewrite:
		v.pump()
	case rcFlush:
		if v.flushMark.Epoch == v.epoch() && v.flushMark.Wseq == v.wseq && v.allOut() {
			rc.phase = rcConfig
			v.config.complete = !rc.cold || !c.cfg.GuestAlive
			v.config.serial++
			v.settleConfig()
		}
	case rcConfig:
		if v.allOut() && (v.told() || c.mut.ReadBeforeOut || c.mut.ServeBeforeConfig) {
			rc.phase = rcDone
			v.config.complete = false // only this CONFIG renews boot identities
			c.maybeServe()
		}
	}
}

// waitForWarm reports whether the rewriting waits for a copy that may have kept its
// cache: it may have fallen silent since it answered OPEN, and what a living guest was
// acked must not be judged by cold copies alone, whose records would win over its own
// when it is back [S6]. If there is none left the guest is invalid.
func (v *volume) waitForWarm() bool {
	for i := range v.segs {
		s := &v.segs[i]
		if slices.ContainsFunc(s.members, func(m *member) bool { return s.stays(m) && !m.behind(s) }) {
			continue
		}
		if !slices.ContainsFunc(s.members, s.mayKnow) {
			v.c.invalid(fmt.Sprintf("volume %s, segment %d: every copy that is left lost power under the guest", v.id, i))
		}
		return true
	}
	return false
}

// mayKnow reports whether m, which is away, may have everything that was acked in s.
func (s *segment) mayKnow(m *member) bool {
	return m.counted && s.holds(m) && !m.v.isOut(m) && m.leaving != "" && m.mayBeWarm()
}

// dropReconcileReads ends reads whose holder is gone; the restart plans anew.
func (v *volume) dropReconcileReads() {
	for o := v.reads.head; o != nil; {
		next := o.next
		if o.rc {
			v.reads.remove(o)
			v.rc.running--
			v.c.recycle(o)
		}
		o = next
	}
}

// allOut reports whether no counted member is missing any more (step 3) [S5].
func (v *volume) allOut() bool {
	if v.c.mut.ReadBeforeOut {
		return true
	}
	for _, m := range v.members {
		if m.counted && !m.usable() {
			return false
		}
	}
	return v.change == nil
}

func (c *Core) maybeServe() {
	for _, v := range c.vols {
		if v.rc.phase != rcDone {
			return
		}
	}
	c.setState(Serving, "")
	for _, v := range c.vols {
		if !c.reopen.unwritten { // else a grow of the predecessor may yet be committed
			v.dropStalePending()
		}
		v.reportShort()
		v.admit()
	}
	if c.reopen.unwritten {
		c.readRecords()
	}
}

func (v *volume) askWindows(parts []*member) {
	rc := &v.rc
	// What a round before asked must not answer for this one: it would end before
	// every participant has told its window.
	for i := range v.c.slots {
		if s := &v.c.slots[i]; s.kind == slotWindow && s.m.v == v {
			v.c.dropSlot(uint32(i))
		}
	}
	rc.phase, rc.restart, rc.parts = rcWindow, false, parts
	rc.round++
	rc.best, rc.runs, rc.next, rc.asked = make(map[rcKey]rcBest), nil, 0, len(parts)
	for _, m := range parts {
		from := rc.from
		if v.c.mut.OwnWatermark {
			from = m.ack.DurableMark
		}
		id := v.c.newSlot(slotWindow, m, nil, rc.round)
		v.c.send(m.node, &wire.WindowReq{ReqID: id, Handle: m.handle, From: from})
	}
}

func (c *Core) windowReply(n *node, a *wire.Window) {
	s, ok := c.peekSlot(n, a.ReqID, slotWindow)
	if !ok {
		return
	}
	if a.Last || a.Status != wire.OK {
		c.dropSlot(uint32(a.ReqID))
	}
	m, v := s.m, s.m.v
	rc := &v.rc
	v.dirty = true
	if s.arg != rc.round || rc.phase != rcWindow {
		return
	}
	if a.Status != wire.OK {
		rc.restart = true
		m.open, m.retryAt = closed, c.now.Add(c.t.OpenRetry)
		return
	}
	for i := range a.Entries {
		e := &a.Entries[i]
		v.wseq = max(v.wseq, e.Mark.Wseq)
		v.commitWseq = v.wseq
		if !e.Verified && !rc.from.Less(e.Mark) {
			m.lostFlushed(e)
			continue
		}
		if !e.Verified {
			c.report(ReportDamaged, v.id, m.disk, fmt.Sprintf("extent %d, block %d: the last write of the log cannot be verified; the version before is kept", e.Extent, e.Block))
			continue
		}
		if !rc.from.Less(e.Mark) && !c.mut.OwnWatermark {
			continue
		}
		if k := int64(e.Extent) * repl.ExtentBytes / c.cfg.SegmentBytes; k >= int64(len(v.segs)) || !v.segs[k].holds(m) {
			continue // being given it: what it has proves nothing
		}
		for b := e.Block; b < e.Block+e.Count; b++ {
			k := rcKey{e.Extent, e.Object, b}
			old, ok := rc.best[k]
			switch {
			case !ok || old.mark.Less(e.Mark):
				rc.best[k] = rcBest{e.Kind, e.Mark, 1 << m.index}
			case old.mark == e.Mark:
				old.holders |= 1 << m.index
				rc.best[k] = old
			}
		}
	}
	if a.Last {
		rc.asked--
		if rc.asked == 0 && rc.phase == rcWindow {
			v.plan()
		}
	}
}

// lostFlushed: m dropped a record from the end of its log that every in-sync copy
// had flushed when the mark moved past it. So that was no torn tail: m is damaged
// and not merely shorter. Records of an earlier epoch were judged by the takeover
// that came after it. What m lacks is above its own durable mark, from which the
// join compares.
func (m *member) lostFlushed(e *wire.WindowEntry) {
	v := m.v
	if m.damaged || e.Mark.Epoch != v.rc.from.Epoch || v.acceptTail || v.c.mut.TrustLostTail {
		return
	}
	m.damaged, m.ack.Damaged = true, true
	v.c.report(ReportDamaged, v.id, m.disk, fmt.Sprintf("extent %d, block %d: the log has lost a write that was flushed; the copy is compared with another one", e.Extent, e.Block))
}

// plan turns the winners into runs, in the order of the volume.
func (v *volume) plan() {
	rc := &v.rc
	keys := make([]rcKey, 0, len(rc.best))
	for k := range rc.best {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b rcKey) int {
		return cmp.Or(cmp.Compare(a.ext, b.ext), cmp.Compare(a.object, b.object), cmp.Compare(a.block, b.block))
	})
	var last rcKey
	for _, k := range keys {
		w := rc.best[k]
		if n := len(rc.runs); n > 0 {
			r := &rc.runs[n-1]
			if k.ext == last.ext && k.object == last.object && k.block == last.block+1 && r.kind == w.kind && r.mark == w.mark &&
				r.all == w.holders {
				r.count++
				last = k
				continue
			}
		}
		rc.runs = append(rc.runs, rcRun{ext: k.ext, object: k.object, block: int(k.block), count: 1, kind: w.kind, mark: w.mark, all: w.holders,
			holder: v.members[bits.TrailingZeros64(w.holders)]})
		last = k
	}
	rc.best = nil
	rc.phase = rcRewrite
	v.pump()
}

// rcParallel bounds the runs under way.
const rcParallel = 16

func (v *volume) pump() {
	rc := &v.rc
	for !rc.restart && rc.next < len(rc.runs) && rc.running < rcParallel {
		r := &rc.runs[rc.next]
		rc.next++
		rc.running++
		if r.kind != wire.RecordWrite {
			o := v.c.newOp(opZero, v, int64(r.ext), r.block, r.count)
			o.rc, o.discard, o.object = true, r.kind == wire.RecordTombstone, r.object
			v.rewrite(o, r.holder)
			continue
		}
		o := v.c.newOp(opRead, v, int64(r.ext), r.block, r.count)
		o.rc, o.object = true, r.object
		o.rep = &readTask{rc: r}
		v.startRead(o)
	}
	if rc.next == len(rc.runs) && rc.running == 0 && !rc.restart {
		rc.phase = rcFlush
		for _, m := range rc.parts {
			m.cold = false // it has been given what it had lost
		}
		v.flushAll()
		v.c.wake = true
	}
}

// rcRead: the winner was read from its holder; it is written on all members,
// the holder included, so that tags are equal afterwards [S19].
func (v *volume) rcRead(o *op, a *wire.ReadReply) {
	r := o.rep.rc
	w := v.c.newOp(opWrite, v, o.ext, o.block, o.count)
	w.rc, w.object = true, r.object
	w.data = a.Data
	if w.data == nil {
		w.kind = opZero
	} else {
		w.crc = checksums(w.data)
	}
	v.c.recycle(o)
	v.rewrite(w, r.holder)
}

func (v *volume) rewrite(o *op, holder *member) {
	if v.c.mut.KeepWinnerOnHolder {
		was := holder.counted
		holder.counted = false
		v.submitNow(o)
		holder.counted = was
		return
	}
	v.submitNow(o)
}

// submitNow is submit without the wait for window space: the reconcile must
// end before a flush can make any.
func (v *volume) submitNow(o *op) {
	v.cumSubmitted += o.length()
	v.lock(o)
}

// rcUnreadable: the holder cannot read all of the winner. Another member with the
// same record may. If none can, what is readable of it is rewritten block by block,
// and of the rest the version before is kept, see keepOlder.
func (v *volume) rcUnreadable(o *op, from *member, a *wire.ReadReply) {
	r := o.rep.rc
	if r.count == 1 && len(a.Tags) == 1 {
		o.rep.bad = append(o.rep.bad, badBlock{m: from, tag: a.Tags[0]})
	}
	for _, m := range v.rc.parts {
		if !o.rep.has(m) && r.all&(1<<m.index) != 0 {
			r.holder = m
			v.startRead(o)
			return
		}
	}
	switch {
	case v.c.mut.LeaveUnreadableRun:
	case r.count > 1:
		for b := range r.count {
			one := *r
			one.block, one.count, one.holder = r.block+b, 1, v.members[bits.TrailingZeros64(r.all)]
			v.rc.runs = append(v.rc.runs, one)
		}
	default:
		v.keepOlder(o)
	}
	if r.count == 1 || v.c.mut.LeaveUnreadableRun {
		v.c.report(ReportDamaged, v.id, r.holder.disk, fmt.Sprintf("extent %d, blocks %d to %d: no copy of the newest write is readable", r.ext, r.block, r.block+r.count-1))
	}
	v.rc.running--
	v.c.recycle(o)
	v.dirty, v.c.wake = true, true
}

// keepOlder: a warm in-sync copy never had the record, so it was not acknowledged
// (C1) and the version before is legal. The holders get it, too: else what is read
// now would differ from what a comparison of the copies makes of it later (C3).
func (v *volume) keepOlder(o *op) {
	r, seg := o.rep.rc, v.segment(o.rep.rc.ext)
	if !slices.ContainsFunc(v.rc.parts, func(m *member) bool { return seg.holds(m) && !m.cold && r.all&(1<<m.index) == 0 }) {
		return
	}
	for _, reader := range append([]uint32{0}, v.snapNumbers()...) {
		if reader == 0 || reader > r.object {
			v.heals.list = append(v.heals.list, &heal{ext: int64(r.ext), object: reader, block: r.block, bad: slices.Clone(o.rep.bad)})
		}
	}
}
