package writer

import (
	"roseau/internal/core/repl"
)

// requestState is the core's part of a Request.
type requestState struct {
	seq        uint64 // order of arrival
	parts      int    // ops not ended; +1 while it is being split
	failed     bool
	shared     bool // of any part
	readAll    bool // Data was nil and must be made if any part is not zero
	prev, next *Request
	chain      *Request     // FLUSHes of one round
	then       func(Result) // the request is the core's own
}

type requestList struct{ head, tail *Request }

func (l *requestList) push(r *Request) {
	r.state.prev, r.state.next = l.tail, nil
	if l.tail != nil {
		l.tail.state.next = r
	} else {
		l.head = r
	}
	l.tail = r
}

func (l *requestList) remove(r *Request) {
	s := &r.state
	if s.prev != nil {
		s.prev.state.next = s.next
	} else {
		l.head = s.next
	}
	if s.next != nil {
		s.next.state.prev = s.prev
	} else {
		l.tail = s.prev
	}
	s.prev, s.next = nil, nil
}

func (c *Core) request(r *Request) {
	if r.Volume < 0 || r.Volume >= len(c.vols) {
		c.out.Done = append(c.out.Done, Completion{Request: r, Result: BadRequest})
		return
	}
	v := c.vols[r.Volume]
	c.reqSeq++
	r.state = requestState{seq: c.reqSeq}
	if c.state != Serving && !(c.state == Stalled && r.Op == OpFlush) || v.rolling() {
		v.held.push(r)
		return
	}
	v.begin(r)
}

// admit begins the requests that waited for Serving, or for the end of a rollback.
func (v *volume) admit() {
	if v.rolling() {
		return
	}
	for r := v.held.head; r != nil; r = v.held.head {
		v.held.remove(r)
		v.begin(r)
	}
}

func (v *volume) begin(r *Request) {
	c := v.c
	c.active.push(r)
	if r.Op == OpFlush {
		v.flushRequest(r)
		return
	}
	if !v.valid(r) {
		r.state.failed = true
		c.finish(r, BadRequest)
		return
	}
	s := &r.state
	s.parts = 1
	s.readAll = r.Op == OpRead && r.Data == nil
	for off := int64(0); off < r.Length; {
		at := r.Offset + off
		n := min(repl.ExtentBytes-at%repl.ExtentBytes, r.Length-off)
		o := c.newOp(kindOf(r.Op), v, at/repl.ExtentBytes, int(at%repl.ExtentBytes/repl.BlockBytes), int(n/repl.BlockBytes))
		o.req, o.reqOff, o.fua, o.discard, o.object = r, off, r.FUA, r.Op == OpDiscard, r.Snap
		if r.Op == OpWrite {
			o.data = r.Data[off : off+n : off+n]
			o.crc = r.CRC[off/repl.BlockBytes : (off+n)/repl.BlockBytes]
		}
		s.parts++
		v.submit(o)
		off += n
	}
	c.endPart(r)
}

func kindOf(op Op) opKind {
	switch op {
	case OpRead:
		return opRead
	case OpWrite:
		return opWrite
	}
	return opZero
}

func (v *volume) valid(r *Request) bool {
	if r.Offset < 0 || r.Length <= 0 || r.Offset%repl.BlockBytes != 0 || r.Length%repl.BlockBytes != 0 ||
		r.Length > v.rec.Cfg.SizeBytes-r.Offset {
		return false
	}
	if r.Snap != 0 && (r.Op != OpRead || v.rec.Cfg.Snap.Find(r.Snap) == nil) {
		return false
	}
	switch r.Op {
	case OpRead:
		return r.Data == nil || int64(len(r.Data)) == r.Length
	case OpWrite:
		return int64(len(r.Data)) == r.Length && int64(len(r.CRC)) == r.Length/repl.BlockBytes
	case OpZero, OpDiscard:
		return true
	}
	return false
}

// submit queues an op for its range, or a write for window space before that:
// what was acked and not flushed must stay within what replicas can hold (I7).
func (v *volume) submit(o *op) {
	if o.kind != opRead && (v.snap.hold || v.blocked.head != nil || v.window() >= v.limit()) {
		v.blocked.push(o)
		v.dirty = true
		return
	}
	if o.kind != opRead {
		v.cumSubmitted += o.length()
	}
	v.lock(o)
}

// limit is how many bytes of writes may be above the flush mark.
func (v *volume) limit() int64 {
	if v.windowLimit > 0 {
		return min(v.windowLimit, v.c.t.FlushBytes)
	}
	return v.c.t.FlushBytes
}

func (v *volume) start(o *op) {
	switch o.kind {
	case opRead:
		v.startRead(o)
	case opWrite, opZero:
		v.startWrite(o)
	case opSync:
		o.job.readSource(o)
	case opScrub:
		v.askTags(o)
	}
}

// endPart counts the end of a part of r.
func (c *Core) endPart(r *Request) {
	r.state.parts--
	if r.state.parts > 0 {
		return
	}
	res := Done
	if r.state.failed {
		res = IOError
	}
	c.finish(r, res)
}

func (c *Core) finish(r *Request, res Result) {
	c.active.remove(r)
	if r.state.then != nil {
		c.wake = true
		r.state.then(res)
		return
	}
	c.wake = c.wake || c.draining
	if v := c.vols[r.Volume]; v.short && res == Done && r.Op != OpRead {
		v.unanswered.push(r)
		return
	}
	c.out.Done = append(c.out.Done, Completion{Request: r, Result: res, Shared: r.state.shared})
}
