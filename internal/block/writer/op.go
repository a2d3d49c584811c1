package writer

import (
	"roseau/internal/base/clock"
	"roseau/internal/core/repl"
)

// opKind is what an op does with its range.
type opKind uint8

const (
	opRead opKind = iota + 1
	opWrite
	opZero
	opSync  // a resync chunk reads the source under the lock
	opScrub // the tags of an extent are compared under the lock
)

// opState is where an op stands.
type opState uint8

const (
	opQueued  opState = iota // waits for its range, or for window space
	opRunning                // holds its range
	opWaiting                // a read: waits for a member or the lease
	opZombie                 // a write: committed, joining members have not acked
)

// op is the part of a request that lies in one extent, or an internal one. Ops
// are pooled; whoever ends one calls recycle.
type op struct {
	kind     opKind
	state    opState
	fua      bool
	discard  bool
	refused  bool // a write: some member had no space for it
	shared   bool // a write: a message that nobody answered may still refer to its data
	req      *Request
	job      *syncJob  // opSync
	cmp      *scrubExt // opScrub
	arg      int       // opSync: index of the object
	unlocked int       // opSync, mutation NoSyncLock: blocks to read without holding them
	rc       bool      // a write of reconcile
	under    bool      // a write of flattening: it goes to object 0
	object   uint32    // a write: the number that it bears; a read: the snapshot, or the object of rc
	rep      *readTask // reads with a history of unreadable copies, or of reconcile
	v        *volume
	seg      *segment
	ext      int64 // extent index
	block    int   // first block in the extent
	count    int   // blocks
	reqOff   int64 // bytes into the request's data
	data     []byte
	crc      []uint32

	wseq    uint64
	began   clock.Instant // a write: when it got its wseq
	cum     int64         // cumulative bytes of all writes up to and with this one
	targets []target
	tbuf    [4]target

	from   *member     // a read: asked now
	hedged bool        // a read: a second copy was asked, too
	par    *parentTask // a read of a clone: what it needs of the parent

	prev, next   *op // inflight, zombies, blocked, reads, or the pool
	lprev, lnext *op // the extent's queue
}

// target is one member that a write goes to.
type target struct {
	m     *member
	acked bool
	sent  bool
	nospc bool
}

func (o *op) offset() int64 { return o.ext*repl.ExtentBytes + int64(o.block)*repl.BlockBytes }

func (o *op) length() int64 { return int64(o.count) * repl.BlockBytes }

func (o *op) target(m *member) *target {
	for i := range o.targets {
		if o.targets[i].m == m {
			return &o.targets[i]
		}
	}
	return nil
}

// unsent: the connection over which it went to m is gone.
func (o *op) unsent(m *member) {
	if t := o.target(m); t != nil {
		t.sent, t.nospc = false, false
		o.shared = true
	}
}

// removeTarget forgets m, which is no longer written to.
func (o *op) removeTarget(m *member) {
	for i := range o.targets {
		if o.targets[i].m == m {
			o.shared = o.shared || o.targets[i].sent && !o.targets[i].acked
			o.targets = append(o.targets[:i], o.targets[i+1:]...)
			return
		}
	}
}

func (c *Core) newOp(kind opKind, v *volume, ext int64, block, count int) *op {
	o := c.opPool
	if o == nil {
		o = &op{}
	} else {
		c.opPool = o.next
	}
	*o = op{kind: kind, v: v, ext: ext, block: block, count: count}
	o.targets = o.tbuf[:0]
	o.seg = &v.segs[ext*repl.ExtentBytes/v.c.cfg.SegmentBytes]
	return o
}

func (c *Core) recycle(o *op) {
	*o = op{next: c.opPool}
	c.opPool = o
}

// opList is an intrusive list over prev and next.
type opList struct{ head, tail *op }

func (l *opList) push(o *op) {
	o.prev, o.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = o
	} else {
		l.head = o
	}
	l.tail = o
}

func (l *opList) remove(o *op) {
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		l.head = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		l.tail = o.prev
	}
	o.prev, o.next = nil, nil
}

// extent is the queue of ops on one extent, in the order of their arrival. An
// op runs when no earlier one in the queue conflicts: that makes the order total
// per block and starves nobody.
type extent struct {
	head, tail *op
	waiting    int  // ops in the queue that do not run
	refused    bool // a write was refused for lack of space: nothing new is sent
}

// newExtent returns an empty queue, perhaps a used one: a read makes no garbage.
func (c *Core) newExtent() *extent {
	n := len(c.freeExts)
	if n == 0 {
		return &extent{}
	}
	e := c.freeExts[n-1]
	c.freeExts = c.freeExts[:n-1]
	*e = extent{}
	return e
}

func conflict(a, b *op) bool {
	if a.block >= b.block+b.count || b.block >= a.block+a.count {
		return false
	}
	return a.kind == opWrite || a.kind == opZero || b.kind == opWrite || b.kind == opZero
}

// lock puts o into its extent's queue and starts it if it may.
func (v *volume) lock(o *op) {
	e := v.extents[o.ext]
	if e == nil {
		e = v.c.newExtent()
		v.extents[o.ext] = e
	}
	o.lprev, o.lnext = e.tail, nil
	if e.tail != nil {
		e.tail.lnext = o
	} else {
		e.head = o
	}
	e.tail = o
	e.waiting++
	v.tryStart(e, o)
}

func (v *volume) tryStart(e *extent, o *op) {
	if e.refused && (o.kind == opWrite || o.kind == opZero) {
		return
	}
	for p := o.lprev; p != nil; p = p.lprev {
		if conflict(p, o) && !o.passes(p) && !(o.kind == opRead && v.c.mut.ReadsPassWrites) {
			return
		}
	}
	e.waiting--
	o.state = opRunning
	v.start(o)
}

// unlock takes o out of its extent's queue and starts what waited for it.
func (v *volume) unlock(o *op) {
	e := v.extents[o.ext]
	next := o.lnext
	if o.lprev != nil {
		o.lprev.lnext = o.lnext
	} else {
		e.head = o.lnext
	}
	if o.lnext != nil {
		o.lnext.lprev = o.lprev
	} else {
		e.tail = o.lprev
	}
	o.lprev, o.lnext = nil, nil
	if e.head == nil {
		delete(v.extents, o.ext)
		v.c.freeExts = append(v.c.freeExts, e)
		return
	}
	if e.waiting > 0 {
		v.startWaiting(e, next)
	}
}

func (v *volume) startWaiting(e *extent, from *op) {
	for o := from; o != nil; {
		next := o.lnext // starting o may end it
		if o.state == opQueued {
			v.tryStart(e, o)
		}
		o = next
	}
}
