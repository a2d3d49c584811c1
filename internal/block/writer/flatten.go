package writer

import (
	"bytes"
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Of the work of flattening at a time: the blocks of a piece, and the pieces.
const (
	flattenPiece  = 64 // small, for it holds back the guest's writes to it
	flattenWindow = 4
)

// flattenAgain is how long after a pass that met blocks which could not be read the
// next one begins.
const flattenAgain = time.Minute

// flattenJob copies the parent's blocks into object 0 of a clone, below everything
// that was written to it: whenever that happens, no reader sees a difference. It
// remembers nothing: after a takeover it looks through the extents again, by their
// tags, and copies what is missing. When a whole pass is durable a transaction says
// that the parent is not needed any more.
type flattenJob struct {
	next    int64   // extent to be looked at
	paused  bool    // before that one
	pieces  []int64 // where pieces begin that lack a block, in bytes
	asked   bool    // for the tags of next
	running int
	bad     int // blocks that no copy of the parent can read
	retryAt clock.Instant
	flushed bool // the flush that ends it was asked for
	upto    uint64
	written int64 // blocks
}

// oldest is the reader who sees the fewest objects: what it finds in the volume
// itself, all find. A snapshot under way counts: writes may bear its number already.
func (v *volume) oldest() uint32 {
	if list := v.snapNumbers(); len(list) > 0 && !v.c.mut.FlattenHeadOnly {
		return list[0]
	}
	return 0
}

func (v *volume) settleFlatten() {
	c := v.c
	if !v.cloned() || v.rec.Cfg.Rollback != 0 || c.state != Serving || c.reopen.unwritten {
		return
	}
	if v.flat == nil {
		v.flat = &flattenJob{}
	}
	j := v.flat
	if c.now < j.retryAt {
		return
	}
	j.retryAt = 0
	for j.running < flattenWindow && len(j.pieces) > 0 {
		if ok, again := c.pace.may(c.now); !ok {
			j.retryAt = again
			return
		}
		off := j.pieces[0]
		j.pieces = j.pieces[1:]
		v.flattenRange(off, min(flattenPiece*repl.BlockBytes, v.rec.Cfg.SizeBytes-off))
	}
	switch {
	case len(j.pieces) > 0 || j.asked:
	case j.next < v.extentCount() && !j.paused && c.t.FlattenPause > 0:
		j.paused, j.retryAt = true, c.now.Add(c.t.FlattenPause)
	case j.next < v.extentCount():
		if m := v.source(v.segment(uint64(j.next)), nil); m != nil {
			j.asked = true
			c.send(m.node, &wire.ExtTagsReq{ReqID: c.newSlot(slotFlatten, m, nil, 0), Handle: m.handle, Extent: uint64(j.next), Object: v.oldest(), Resolved: true})
			return
		}
		j.retryAt = c.now.Add(c.t.OpenRetry)
	case j.running == 0:
		v.endFlatten(j)
	}
}

// flattenTags: the tags of an extent say which pieces lack a block.
func (c *Core) flattenTags(n *node, a *wire.ExtTags) {
	s, ok := c.takeSlot(n, a.ReqID, slotFlatten)
	if !ok {
		return
	}
	v := s.m.v
	j := v.flat
	v.dirty, c.wake = true, true
	if j == nil {
		return
	}
	j.asked = false
	if a.Status != wire.OK && a.Status != wire.Unreadable {
		j.retryAt = c.now.Add(c.t.OpenRetry)
		return
	}
	start := j.next * repl.ExtentBytes
	blocks := int(min(repl.ExtentBytes, v.rec.Cfg.SizeBytes-start) / repl.BlockBytes)
	for b := 0; b < blocks; b += flattenPiece {
		for i := b; i < min(b+flattenPiece, blocks); i++ {
			if len(a.Tags) <= i || a.Tags[i] == (wire.Tag{}) {
				j.pieces = append(j.pieces, start+int64(b)*repl.BlockBytes)
				break
			}
		}
	}
	j.next++
	j.paused = false
}

// flattenLost: the copy that was asked for tags is gone.
func (v *volume) flattenLost() {
	if v.flat != nil {
		v.flat.asked = false
	}
	v.dirty, v.c.wake = true, true
}

// flattenRange reads a piece as the oldest reader sees it. It does not wait for a
// parent that cannot be asked: guests' writes would wait with it.
func (v *volume) flattenRange(off, length int64) {
	j, c := v.flat, v.c
	r := &Request{Op: OpRead, Offset: off, Length: length, Snap: v.oldest()}
	r.state.below = make([]bool, length/repl.BlockBytes)
	j.running++
	c.pace.sent(c.now, length)
	v.inner(r, func(res Result) {
		if v.flat != j {
			return
		}
		switch {
		case res == Done:
			v.flattenWrite(r)
		case r.state.away:
			j.pieces = append(j.pieces, off)
			j.retryAt = c.now.Add(c.t.OpenRetry)
		case length > repl.BlockBytes:
			for at := off; at < off+length; at += repl.BlockBytes { // what can be read is copied
				v.flattenRange(at, repl.BlockBytes)
			}
		default:
			j.bad++
		}
		v.flattenDone(j)
	})
}

func (v *volume) flattenDone(j *flattenJob) {
	j.running--
	v.dirty, v.c.wake = true, true
}

// flattenWrite writes what the parent has, and the clone lacks, below everything.
func (v *volume) flattenWrite(r *Request) {
	const block = repl.BlockBytes
	j := v.flat
	below := r.state.below
	wanted := func(i int) bool {
		return below[i] && r.Data != nil && !bytes.Equal(r.Data[i*block:(i+1)*block], zeroBlock)
	}
	for i := 0; i < len(below); {
		if !wanted(i) {
			i++
			continue
		}
		end := i + 1
		for end < len(below) && wanted(end) {
			end++
		}
		w := &Request{Op: OpWrite, Offset: r.Offset + int64(i)*block, Length: int64(end-i) * block, Data: r.Data[i*block : end*block : end*block]}
		w.CRC = checksums(w.Data)
		w.state.under = true
		j.running++
		j.written += int64(end - i)
		v.inner(w, func(Result) { v.flattenDone(j) })
		i = end
	}
}

// endFlatten makes a whole pass durable, then says that it is over.
func (v *volume) endFlatten(j *flattenJob) {
	c := v.c
	if j.bad > 0 {
		c.report(ReportDamaged, v.id, ids.ID{}, fmt.Sprintf("%d blocks of its parent are readable on no copy: the volume still needs it", j.bad))
		*j = flattenJob{retryAt: c.now.Add(flattenAgain)}
		return
	}
	if !j.flushed {
		j.flushed, j.upto = true, v.wseq
		v.flushAll()
		return
	}
	durable := v.flushMark.Epoch == v.epoch() && v.flushMark.Wseq >= j.upto
	if !durable && !c.mut.FlattenWithoutFlush || v.frozenSince != 0 || v.change != nil {
		return
	}
	txn, next := repl.EndFlatten(v.rec)
	v.commitChange(&change{kind: changeFlatten, txn: txn, next: next})
}

// flattened: the transaction that ends it is committed.
func (v *volume) flattened() {
	if v.flat != nil {
		v.c.report(ReportHealth, v.id, ids.ID{}, fmt.Sprintf("flattened: %d blocks copied from the parent", v.flat.written))
	}
	v.flat = nil
	v.forgetParent()
}

func (v *volume) flattenDeadlines(d *deadline) {
	if v.flat != nil {
		d.later(v.flat.retryAt)
	}
}

// flattenProgress counts extents.
func (v *volume) flattenProgress() Progress {
	if !v.cloned() || v.flat == nil {
		return Progress{}
	}
	return Progress{Done: v.flat.next, Total: v.extentCount()}
}
