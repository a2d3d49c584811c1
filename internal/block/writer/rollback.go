package writer

import (
	"bytes"
	"fmt"
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Of the work of a rollback at a time: the blocks of a piece, and the pieces.
const (
	rollbackPiece  = 256
	rollbackWindow = 4
)

// rollbackJob takes a volume back to a snapshot (Cfg.Rollback) before a client is
// served: the extents that have an object of the snapshot's number or above are
// read as the snapshot and as the volume, and what differs is written. It
// remembers nothing: interrupted, it is done again from the start. When all is
// durable a transaction says that it is over.
type rollbackJob struct {
	listed  bool
	lists   int  // unanswered
	failed  bool // of the lists
	again   bool // a piece was not finished: start anew when nothing runs
	retryAt clock.Instant
	exts    []uint64 // rising
	next    int64    // piece, counted over exts
	running int
	flushed bool   // the flush that ends it was asked for
	upto    uint64 // what it must cover
	written int    // blocks
}

// rollbackStep is a piece under way.
type rollbackStep struct {
	off, length int64
	waits       int // unanswered requests
	snap, head  *Request
	snapBad     bool
	headBad     bool
}

// rolling reports whether clients wait for the end of a rollback.
func (v *volume) rolling() bool {
	return v.rec.Cfg.Rollback != 0 && !v.c.mut.RollbackServesEarly
}

func (v *volume) settleRollback() {
	c := v.c
	if v.rec.Cfg.Rollback == 0 || c.state != Serving || v.change != nil || c.reopen.unwritten {
		return
	}
	j := v.roll
	if j == nil {
		j = &rollbackJob{}
		v.roll = j
	}
	switch {
	case j.again:
		if j.running == 0 && j.lists == 0 {
			v.roll, v.dirty, c.wake = nil, true, true
		}
	case j.failed:
		if j.lists == 0 {
			*j = rollbackJob{retryAt: c.now.Add(c.t.OpenRetry)}
		}
	case !j.listed:
		if j.lists == 0 && c.now >= j.retryAt {
			v.rollbackLists()
		}
	default:
		v.rollbackOn(j)
	}
}

// rollbackLists asks the in-sync copies which extents were written since the
// snapshot: an object of its number or above has nothing older in it, on any
// copy, for merges stop there.
func (v *volume) rollbackLists() {
	j, c := v.roll, v.c
	for _, m := range v.members {
		if !m.counted || v.isOut(m) {
			continue
		}
		if !m.usable() {
			j.failed = true // a segment may be on it alone
			continue
		}
		j.lists++
		c.send(m.node, &wire.ExtListReq{ReqID: c.newSlot(slotRollback, m, nil, 0), Handle: m.handle})
	}
	j.failed = j.failed || j.lists == 0
	c.wake = c.wake || j.failed && j.lists == 0
}

func (c *Core) rollbackList(n *node, a *wire.ExtList) {
	s, ok := c.peekSlot(n, a.ReqID, slotRollback)
	if !ok {
		return
	}
	v := s.m.v
	j := v.roll
	if a.Last || a.Status != wire.OK {
		c.dropSlot(uint32(a.ReqID))
		j.lists--
		v.dirty = true
	}
	if a.Status != wire.OK {
		j.failed = true
		return
	}
	for i := range a.Entries {
		if e := &a.Entries[i]; e.Object >= v.rec.Cfg.Rollback && int64(e.Extent) < v.extentCount() {
			j.exts = append(j.exts, e.Extent)
		}
	}
	if j.lists == 0 && !j.failed {
		slices.Sort(j.exts)
		j.exts = slices.Compact(j.exts)
		j.listed = true
	}
	c.wake = true
}

// rollbackLost: a copy went away with the question for its list.
func (v *volume) rollbackLost() {
	v.roll.lists--
	v.roll.failed = true
	v.dirty, v.c.wake = true, true
}

// rollbackOn begins pieces, and at the end the flush and the transaction.
func (v *volume) rollbackOn(j *rollbackJob) {
	c := v.c
	const perExtent = repl.ExtentBlocks / rollbackPiece
	pieces := int64(len(j.exts)) * perExtent
	for j.running < rollbackWindow && j.next < pieces {
		off := int64(j.exts[j.next/perExtent])*repl.ExtentBytes + j.next%perExtent*rollbackPiece*repl.BlockBytes
		j.next++
		if length := min(rollbackPiece*repl.BlockBytes, v.rec.Cfg.SizeBytes-off); length > 0 {
			j.running++
			v.readPiece(&rollbackStep{off: off, length: length})
		}
	}
	if j.running > 0 || j.next < pieces {
		return
	}
	if !j.flushed {
		j.flushed, j.upto = true, v.wseq
		v.flushAll()
		return
	}
	if durable := v.flushMark.Epoch == v.epoch() && v.flushMark.Wseq >= j.upto; !durable && !c.mut.RollbackWithoutFlush || v.frozenSince != 0 {
		return
	}
	txn, next := repl.EndRollback(v.rec)
	v.commitChange(&change{kind: changeRollback, txn: txn, next: next})
}

// progress counts pieces; those that are read or written now are not done.
func (j *rollbackJob) progress() Progress {
	if j == nil || !j.listed {
		return Progress{}
	}
	total := int64(len(j.exts)) * (repl.ExtentBlocks / rollbackPiece)
	return Progress{Done: max(0, j.next-int64(j.running)), Total: max(total, 1)}
}

// inner issues a request of the core's own; then runs when it is answered.
func (v *volume) inner(r *Request, then func(Result)) {
	r.Volume = v.index
	v.c.reqSeq++
	r.state = requestState{seq: v.c.reqSeq, then: then, under: r.state.under, below: r.state.below}
	v.begin(r)
}

// readPiece reads a piece as the snapshot and as the volume.
func (v *volume) readPiece(s *rollbackStep) {
	s.snap = &Request{Op: OpRead, Offset: s.off, Length: s.length, Snap: v.rec.Cfg.Rollback}
	s.head = &Request{Op: OpRead, Offset: s.off, Length: s.length}
	s.waits = 2
	v.inner(s.snap, func(r Result) {
		s.snapBad = r != Done
		v.pieceRead(s)
	})
	v.inner(s.head, func(r Result) {
		s.headBad = r != Done
		v.pieceRead(s)
	})
}

func (v *volume) pieceRead(s *rollbackStep) {
	if s.waits--; s.waits > 0 {
		return
	}
	const block = repl.BlockBytes
	j, c := v.roll, v.c
	switch {
	case c.state != Serving:
		j.again = true
	case (s.snapBad || s.headBad) && s.length > block:
		// Block by block, so that what is readable is restored.
		j.running += int(s.length / block)
		for off := s.off; off < s.off+s.length; off += block {
			v.readPiece(&rollbackStep{off: off, length: block})
		}
	case s.snapBad:
		c.report(ReportDamaged, v.id, ids.ID{}, fmt.Sprintf("block %d of snapshot %d is readable on no copy: the volume keeps it as it was", s.off/block, v.rec.Cfg.Rollback))
	default:
		v.writePiece(s)
	}
	v.pieceDone()
}

func (v *volume) pieceDone() {
	v.roll.running--
	v.dirty, v.c.wake = true, true
}

// writePiece writes the runs of blocks that differ; one that cannot be read does.
func (v *volume) writePiece(s *rollbackStep) {
	const block = repl.BlockBytes
	j := v.roll
	at := func(r *Request, i int64) []byte {
		if r.Data == nil {
			return zeroBlock
		}
		return r.Data[i*block : (i+1)*block]
	}
	n := s.length / block
	same := func(i int64) bool { return !s.headBad && bytes.Equal(at(s.snap, i), at(s.head, i)) }
	zero := func(i int64) bool { return bytes.Equal(at(s.snap, i), zeroBlock) }
	for i := int64(0); i < n; {
		if same(i) {
			i++
			continue
		}
		end := i + 1
		for end < n && !same(end) && zero(end) == zero(i) {
			end++
		}
		r := &Request{Op: OpZero, Offset: s.off + i*block, Length: (end - i) * block}
		if !zero(i) {
			r.Op, r.Data = OpWrite, s.snap.Data[i*block:end*block:end*block]
			r.CRC = checksums(r.Data)
		}
		j.running++
		j.written += int(end - i)
		v.inner(r, func(Result) { v.pieceDone() })
		i = end
	}
}

// rolledBack: the transaction that ends the rollback is committed.
func (v *volume) rolledBack() {
	v.c.report(ReportHealth, v.id, ids.ID{}, fmt.Sprintf("taken back to a snapshot: %d blocks written", v.roll.written))
	v.roll = nil
	if v.c.state == Serving {
		v.admit()
	}
}

var zeroBlock = make([]byte, repl.BlockBytes)
