package writer

import (
	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
)

// flushState is the flush round of a volume; one runs at a time, and requests
// that arrive meanwhile share the next one.
type flushState struct {
	running bool
	upto    uint64
	cum     int64       // cumulative bytes of the writes <= upto
	wanted  bool        // a round is asked for, by requests or from inside
	want    uint64      // it must cover every write <= want
	waiting requestList // of the round to come
	serving requestList // of the running round
	dirtyAt clock.Instant
}

// waits reports whether a round waits for the commit of what is now committed.
func (f *flushState) waits(commit uint64) bool {
	return f.wanted && !f.running && commit >= f.want
}

// flushRequest queues a client's FLUSH: it must cover every write replied so
// far. wseqs are committed out of order, so the round waits until everything up
// to the newest issued one is committed.
func (v *volume) flushRequest(r *Request) {
	f := &v.flush
	f.waiting.push2(r)
	f.wanted = true
	f.want = max(f.want, v.wseq)
	v.c.wake = true
	v.dirty = true
}

// push2 appends without touching the list that the request is in already: a
// FLUSH is in the list of active requests, so it is kept in a chain of its own.
func (l *requestList) push2(r *Request) {
	r.state.chain = nil
	if l.tail != nil {
		l.tail.state.chain = r
	} else {
		l.head = r
	}
	l.tail = r
}

// flushAll asks for a round from inside.
func (v *volume) flushAll() {
	v.flushTo(v.wseq)
}

// flushTo asks for a flush of all members that covers wseq, if none is wanted that does.
func (v *volume) flushTo(wseq uint64) {
	if v.flush.wanted && v.flush.want >= wseq {
		return
	}
	v.flush.wanted = true
	v.flush.want = max(v.flush.want, wseq)
	v.c.wake = true
}

// window is how many bytes of writes are above the flush mark.
func (v *volume) window() int64 { return v.cumSubmitted - v.cumFlushed }

// clean reports whether every write issued is durable on all members.
func (v *volume) clean() bool {
	return v.flushMark.Epoch == v.epoch() && v.flushMark.Wseq == v.wseq && v.inflight.head == nil
}

func (v *volume) settleFlush() {
	f := &v.flush
	c := v.c
	if f.running {
		v.endFlush()
	}
	if c.state == Reconciling && !v.mayFlushReconcile() {
		return
	}
	if !f.running && !f.wanted && (f.dirtyAt != 0 && c.now >= f.dirtyAt.Add(c.t.FlushEvery) || v.window() >= v.limit()/2 && v.window() > 0) {
		if v.commitWseq > v.flushMark.Wseq || v.flushMark.Epoch != v.epoch() {
			f.wanted = true
			f.want = max(f.want, v.commitWseq)
		}
	}
	if f.wanted && !f.running && v.commitWseq >= f.want {
		v.beginFlush()
		v.endFlush()
	}
}

// mayFlushReconcile: the flush mark says that every copy in sync has everything
// up to it. At a takeover that is so only when every window has been rewritten
// and who did not tell its window is out; a mark of the new epoch that came
// earlier would hide the difference from the next takeover.
func (v *volume) mayFlushReconcile() bool {
	return v.rc.phase == rcFlush && v.allOut() || v.c.mut.FlushWhileReconciling
}

func (v *volume) beginFlush() {
	f := &v.flush
	f.running, f.wanted = true, false
	f.serving, f.waiting = f.waiting, requestList{}
	f.upto = v.commitWseq
	f.cum, f.dirtyAt = v.cumIssued, 0
	if o := v.inflight.head; o != nil {
		f.cum, f.dirtyAt = o.cum-o.length(), v.c.now
	}
	for _, m := range v.members {
		if m.counted && m.highAcked > m.flushed {
			m.flushWait = true
			if m.writable() {
				v.c.sendFlush(m, f.upto)
			}
		}
	}
}

func (c *Core) sendFlush(m *member, upto uint64) {
	m.flushSent = true
	id := c.newSlot(slotFlush, m, nil, upto)
	c.send(m.node, &wire.Flush{ReqID: id, Handle: m.handle, Upto: upto, Piggyback: m.v.piggyback()})
}

func (c *Core) flushAck(n *node, a *wire.FlushAck) {
	s, ok := c.takeSlot(n, a.ReqID, slotFlush)
	if !ok {
		return
	}
	m := s.m
	m.flushSent = false
	m.v.dirty = true
	switch {
	case a.Status == wire.DiskFailed:
		m.failed = true
	case a.Status != wire.OK:
		c.refused(m, a.Status, m.v.promise())
	case a.Session != m.session:
		m.newRun = true // what it had not flushed may be gone
	default:
		m.flushed = max(m.flushed, s.arg)
		if m.flushWait && m.flushed >= m.v.flush.upto {
			m.flushWait = false
		}
		if m.sync != nil {
			m.sync.flushedTo(s.arg)
		}
	}
}

// endFlush completes the round once every counted member has answered.
func (v *volume) endFlush() {
	f := &v.flush
	for _, m := range v.members {
		if m.flushWait && v.needs(m) && !(v.c.mut.FlushOneMember && v.flushedByOne()) {
			return
		}
	}
	f.running = false
	v.flushMark = v.mark(f.upto)
	v.cumFlushed = f.cum
	for r := f.serving.head; r != nil; {
		next := r.state.chain
		v.c.finish(r, Done)
		r = next
	}
	f.serving = requestList{}
	v.c.wake = true
	v.unblock()
}

// flushedByOne is for a mutation alone.
func (v *volume) flushedByOne() bool {
	for _, m := range v.members {
		if m.counted && m.flushed >= v.flush.upto {
			return true
		}
	}
	return false
}

func (v *volume) unblock() {
	for o := v.blocked.head; o != nil && !v.snap.hold && v.window() < v.limit(); o = v.blocked.head {
		v.blocked.remove(o)
		v.cumSubmitted += o.length()
		v.lock(o)
	}
}

func (v *volume) flushDeadlines(d *deadline) {
	f := &v.flush
	if f.dirtyAt != 0 && !f.running && !f.wanted && v.commitWseq > v.flushMark.Wseq {
		d.later(f.dirtyAt.Add(v.c.t.FlushEvery))
	}
}
