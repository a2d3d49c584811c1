package writer

import (
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// joinWithoutSpace is the pause before a disk that was full is joined again.
const joinWithoutSpace = 10 * time.Second

// noSpace notes that m refused o. Nothing new is sent in that extent until the
// refused writes have been taken, in their order.
func (v *volume) noSpace(o *op, m *member, t *target, st wire.Status) {
	if (st == wire.NoSpace || o.refused) && m.sync != nil && (o.state == opZombie || v.pending != m && (!m.counted || o.seg.lacks(m))) {
		// A target that is full is a rebuild that has to wait, not a guest.
		m.sync.noSpace()
		return
	}
	e := v.extents[o.ext]
	if st == wire.OutOfOrder && (e == nil || !e.refused) || o.state == opZombie {
		v.c.report(ReportBug, v.id, m.disk, "write refused as out of order")
		m.failed = true
		v.dirty = true
		return
	}
	if !e.refused {
		if v.refused++; v.refused == 1 {
			v.c.report(ReportNoSpace, v.id, m.disk, "writes wait for space on a disk")
		}
	}
	e.refused, o.refused, t.nospc, t.sent = true, true, true, false
	if m.nospcAt == 0 {
		m.nospcAt = v.c.now.Add(v.c.t.OpenRetry)
	}
	for _, to := range o.seg.members {
		if to.sync != nil {
			to.sync.give(o)
		}
	}
	v.startWaiting(e, e.head) // a join may pass it now
}

// noSpace: the joining disk is full; it is tried again when some time has gone by.
func (j *syncJob) noSpace() {
	j.fail("no space on the disk")
	j.m.rejoinAt = j.m.v.c.now.Add(joinWithoutSpace)
}

// A write that waits for space may do so for days, and a full pool must be repaired
// meanwhile: a join does not wait for it. It is sent to the joining disk like a write
// that began later, so the join may read those blocks at the source at once, whatever
// stands there: the disk has them from the write, and drops what the join brings
// [S19].

// give sends the joining disk a refused write that was begun before the join.
func (j *syncJob) give(o *op) {
	c := j.m.v.c
	if !o.refused || j.phase == syncOpen || !o.seg.wants(j.m) || o.target(j.m) != nil || c.mut.JoinWaitsForSpace || c.mut.JoinPassesRefused {
		return
	}
	o.targets = append(o.targets, target{m: j.m})
	c.sendWrite(o, j.m, wire.WriteResent) // it may have it from an earlier time in sync
}

// giveRefused is give for every write that waits now.
func (j *syncJob) giveRefused() {
	for o := j.m.v.inflight.head; o != nil; o = o.next {
		j.give(o)
	}
}

// drained reports whether no write is under way that began before the join and that
// the disk is not given.
func (j *syncJob) drained() bool {
	v := j.m.v
	if v.c.mut.JoinWaitsForSpace {
		return v.commitWseq >= j.joinWseq
	}
	for o := v.inflight.head; o != nil && o.wseq <= j.joinWseq; o = o.next {
		if o.seg.wants(j.m) && o.target(j.m) == nil && !(o.refused && v.c.mut.JoinPassesRefused) {
			return false
		}
	}
	return true
}

// passes reports whether a chunk of a join may be read although the write w to its
// blocks is under way.
func (o *op) passes(w *op) bool {
	if o.kind != opSync || !w.refused {
		return false
	}
	t := w.target(o.job.m)
	return t != nil && (t.sent || t.acked) || o.v.c.mut.JoinPassesRefused
}

// committedTo reports whether every write up to wseq is committed, but for those that
// wait for space.
func (v *volume) committedTo(wseq uint64) bool {
	if v.commitWseq >= wseq || v.c.mut.JoinWaitsForSpace {
		return v.commitWseq >= wseq
	}
	for o := v.inflight.head; o != nil && o.wseq <= wseq; o = o.next {
		if !o.refused {
			return false
		}
	}
	return true
}

// settleNoSpace sends refused writes again once everything sent before is
// answered, so that the order within the extent stands.
func (v *volume) settleNoSpace() {
	for _, m := range v.members {
		if m.nospcAt == 0 || v.c.now < m.nospcAt || !m.writable() {
			continue
		}
		m.nospcAt = 0
		for _, o := range v.unacked(m) {
			t := o.target(m)
			if !t.nospc {
				continue
			}
			if v.outstanding(o.ext, m) {
				m.nospcAt = v.c.now.Add(v.c.t.OpenRetry)
				continue
			}
			v.resendRefused(o.ext, m)
		}
	}
}

// outstanding reports whether m has unanswered writes of the extent.
func (v *volume) outstanding(ext int64, m *member) bool {
	for o := v.inflight.head; o != nil; o = o.next {
		if o.ext == ext {
			if t := o.target(m); t != nil && !t.acked && t.sent {
				return true
			}
		}
	}
	return false
}

func (v *volume) resendRefused(ext int64, m *member) {
	for o := v.inflight.head; o != nil; o = o.next {
		if o.ext == ext {
			if t := o.target(m); t != nil && t.nospc {
				v.c.sendWrite(o, m, 0)
			}
		}
	}
}

// clearRefused lets writes into the extent again when no refused one is left.
func (v *volume) clearRefused(ext int64, e *extent) {
	for o := v.inflight.head; o != nil; o = o.next {
		if o.ext == ext && o.refused {
			return
		}
	}
	e.refused = false
	if v.refused--; v.refused == 0 {
		v.c.report(ReportSpaceBack, v.id, ids.ID{}, "no write waits for space")
	}
	v.startWaiting(e, e.head)
}
