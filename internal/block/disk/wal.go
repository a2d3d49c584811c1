package disk

import (
	"fmt"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// position is a place in the log between two batches.
type position struct {
	lsn     uint64
	chain   uint32 // header crc of the batch before
	session uint64 // of that batch
	seq     uint64 // of the last record before
}

// batch is a log batch that is being written. It is used again when it and all
// before it are written.
type batch struct {
	recs    []*rec
	bufs    [][]byte // header and payloads
	marks   []*rec   // of markRecords: nothing but recs refers to them
	end     position
	header  []byte
	left    int // writes under way: the batch's own, and those in place of its fresh records
	written bool
	bytes   int
}

// syncWaiter waits for an fdatasync that covers the records up to seq.
type syncWaiter struct {
	seq uint64
	r   *rec
	fn  func()
}

// logState is the log's writing end.
type logState struct {
	gather  []*rec   // appended, not in a batch
	notes   []*rec   // to be re-appended, before gather, using the reserve
	flying  []*batch // being written, in log order
	head    position // end of the last batch formed
	done    position // end of the last batch written with all before it
	durable position
	told    uint64     // DurableLSN of the last batch formed
	tail    uint64     // checkpoint in force: the ring before it is free
	tailSeq uint64     // of the last record before
	proven  uint64     // recovery: the log said that it was durable up to here
	steps   []position // ends of batches, about ring/64 apart: where a checkpoint may cut
	session uint64

	waiting  []syncWaiter
	syncing  []syncWaiter // served by the fdatasync under way
	inSync   bool
	syncFrom position
	nudge    bool // form a batch even if nothing was appended
	opening  bool // the opening batch is under way
}

// formBatches puts gathered records into batches while the queue depth allows.
func (c *Core) formBatches() {
	l := &c.log
	for len(l.flying) < c.o.LogQueueDepth {
		c.passFlushes()
		if len(l.notes) == 0 && len(l.gather) == 0 && !l.nudge || len(l.flying) > 0 && !c.worthwhile() {
			return
		}
		if !c.formBatch() {
			return
		}
	}
}

// worthwhile reports whether what has gathered is large enough for another batch
// beside those that are being written.
func (c *Core) worthwhile() bool {
	n := 0
	for _, r := range c.log.gather {
		if n >= c.o.ExtraBatchBytes {
			break
		}
		n += len(r.data)
	}
	return n >= c.o.ExtraBatchBytes
}

// passFlushes moves flushes at the front of the queue to the waiters.
func (c *Core) passFlushes() {
	l := &c.log
	n := 0
	for n < len(l.gather) && l.gather[n].Type == recFlush {
		c.flushFormed(l.gather[n])
		n++
	}
	l.gather = shift(l.gather, n)
}

func (c *Core) flushFormed(r *rec) {
	r.seq = c.log.head.seq
	if c.o.Mutations.SkipFlushSync || !r.durable {
		c.log.waiting = append(c.log.waiting, syncWaiter{seq: r.seq, r: r})
		c.passWritten()
		return
	}
	c.log.waiting = append(c.log.waiting, syncWaiter{seq: r.seq, r: r})
}

// shift drops the first n of list, keeping its memory.
func shift[T any](list []T, n int) []T {
	if n == 0 {
		return list
	}
	m := copy(list, list[n:])
	clear(list[m:])
	return list[:m]
}

// formBatch makes one batch and starts to write it. False: the ring is full.
func (c *Core) formBatch() bool {
	l := &c.log
	b := c.newBatch()
	header, total, fresh := batchHeaderBytes, 0, 0
	add := func(r *rec) bool {
		h, p := descriptorBytes+r.bodyBytes(), r.payloadBlocks()*BlockBytes
		size := roundUp(header+h, BlockBytes) + total + p
		if r.Flags&flagFresh != 0 {
			fresh += len(r.data)
		}
		if len(b.recs) > 0 && size+fresh > c.o.BatchBytes {
			return false
		}
		header, total = header+h, total+p
		b.recs = append(b.recs, r)
		return true
	}
	nNotes, nGather := 0, 0
	for nNotes < len(l.notes) && header < int(c.sb.WALBytes/32) && add(l.notes[nNotes]) {
		nNotes++
	}
	marks := c.markRecords(b)
	for _, r := range marks {
		header += descriptorBytes + len(r.Body)
		b.recs = append(b.recs, r)
	}
	for nNotes == len(l.notes) && nGather < len(l.gather) && (l.gather[nGather].Type == recFlush || add(l.gather[nGather])) {
		nGather++
	}
	headerBytes := roundUp(header, BlockBytes)
	size := headerBytes + total
	pad, ok := c.ringRoom(size, nGather > 0)
	if !ok && nNotes > 0 && nGather > 0 { // the notes alone may use the reserve
		b.recs, nGather = b.recs[:nNotes+len(marks)], 0
		header, total = batchHeaderBytes, 0
		for _, r := range b.recs {
			header += descriptorBytes + r.bodyBytes()
		}
		headerBytes = roundUp(header, BlockBytes)
		size = headerBytes
		pad, ok = c.ringRoom(size, false)
	}
	if !ok {
		c.freeBatch(b)
		c.startCheckpoint()
		return false
	}
	if pad > 0 {
		c.writePad(pad)
	}
	for _, r := range marks {
		r.vol.marksDirty = false
	}
	b.header, b.bytes = c.pool.Alloc(headerBytes), size
	flushes := l.gather[:nGather]
	c.fillBatch(b, headerBytes)
	for _, r := range flushes {
		if r.Type == recFlush {
			c.flushFormed(r)
		}
	}
	l.notes, l.gather = shift(l.notes, nNotes), shift(l.gather, nGather)
	l.nudge = false
	if used := l.head.lsn - l.tail; used > uint64(c.sb.WALBytes)/uint64(c.o.CheckpointFraction) || c.dataBytes > c.dataRoom()/8*5 {
		c.startCheckpoint()
	}
	return true
}

// dataRoom is how much payload may stay in memory: its own part, and what the tag
// tables leave of theirs.
func (c *Core) dataRoom() int {
	return c.o.DataCacheBytes + max(0, c.o.TagCacheBytes-c.imgBytes)
}

// ringRoom says whether a batch of that size fits, and how much of the ring's
// end must be skipped for it. Requests leave a reserve for notes, and notes one
// for opening batches.
func (c *Core) ringRoom(size int, request bool) (pad int, ok bool) {
	ring := uint64(c.sb.WALBytes)
	if left := ring - c.log.head.lsn%ring; left < uint64(size) {
		pad = int(left)
	}
	limit := ring
	switch {
	case request:
		limit -= ring / 8
	case !c.log.opening:
		limit -= ring / 32 // for the opening batches of a few crashes in a row
	}
	return pad, c.log.head.lsn-c.log.tail+uint64(pad+size) <= limit
}

func (c *Core) writePad(n int) {
	b := c.newBatch()
	b.header, b.bytes = c.pool.Alloc(BlockBytes), n
	b.bufs = append(b.bufs, b.header)
	c.sendBatch(b, BlockBytes, batchFlagPad)
}

func (c *Core) newBatch() *batch {
	if n := len(c.batches); n > 0 {
		b := c.batches[n-1]
		c.batches = c.batches[:n-1]
		return b
	}
	return &batch{}
}

// freeBatch takes b back, which nothing refers to any more.
func (c *Core) freeBatch(b *batch) {
	clear(b.recs)
	clear(b.bufs)
	*b = batch{recs: b.recs[:0], bufs: b.bufs[:0], marks: b.marks[:0]}
	c.batches = append(c.batches, b)
}

// markRecords makes a record in b for each volume whose marks moved.
func (c *Core) markRecords(b *batch) []*rec {
	for _, v := range c.byIndex {
		if v == nil || !v.marksDirty || v.dropped {
			continue
		}
		n := len(b.marks)
		if n == cap(b.marks) {
			b.marks = append(b.marks, &rec{})
		} else if b.marks = b.marks[:n+1]; b.marks[n] == nil {
			b.marks[n] = &rec{}
		}
		r := b.marks[n]
		*r = rec{vol: v, descriptor: descriptor{Body: r.Body[:0]}}
		r.Type, r.Index, r.Mark = recMarks, uint32(v.index), v.Durable
		r.Body = append(r.Body, make([]byte, 32)...)
		e := enc{b: r.Body}
		e.mark(v.Flush)
		e.mark(v.TombForget)
	}
	return b.marks
}

// fillBatch gives the records their places, encodes them and sends the batch.
func (c *Core) fillBatch(b *batch, headerBytes int) {
	l := &c.log
	clear(b.header)
	e := enc{b: b.header, off: batchHeaderBytes}
	payload := headerBytes
	b.bufs = append(b.bufs, b.header)
	for _, r := range b.recs {
		l.head.seq++
		r.lsn = l.head.lsn
		r.seq = l.head.seq
		if r.payloadBlocks() > 0 {
			r.Payload = uint32(payload)
			r.dataLSN = l.head.lsn + uint64(payload)
			payload += len(r.data)
			b.bufs = append(b.bufs, r.data)
		}
		if r.ext != nil {
			r.ImageSeq = r.ext.durSeq
		}
		if r.Flags&flagFresh != 0 {
			c.writeFresh(b, r)
		}
		r.descriptor.encode(&e)
		c.index(r)
	}
	c.sendBatch(b, headerBytes, 0)
}

func (c *Core) sendBatch(b *batch, headerBytes int, flags uint32) {
	l := &c.log
	if flags&batchFlagPad != 0 {
		clear(b.header)
	}
	h := batchHeader{
		Disk: c.sb.Identity.Disk, LSN: l.head.lsn, Session: l.session, DurableLSN: max(l.durable.lsn, l.proven), TailLSN: l.tail,
		Bytes: uint32(b.bytes), HeaderBytes: uint32(headerBytes), Records: uint32(len(b.recs)), Prev: l.head.chain, Flags: flags,
	}
	h.encode(b.header)
	l.told = l.durable.lsn
	l.head.lsn, l.head.chain, l.head.session = h.end(), h.CRC, l.session
	l.head.seq++ // a batch has a place in the order too, also an empty one
	b.end = l.head
	l.flying = append(l.flying, b)
	c.stats.Batches++
	b.left++
	c.submit(OpWrite, c.ringOffset(h.LSN), b.bufs, b, 0)
}

// index makes a record that has its place in the log visible to reads.
func (c *Core) index(r *rec) {
	e := r.ext
	if r.Type == recDrop {
		c.indexDrop(r)
		return
	}
	if e == nil || r.Flags&(flagNote|flagUnverified) != 0 {
		return
	}
	if e.gathering > 0 {
		e.gathering--
	}
	e.version++
	if e.formed.Less(r.Mark) {
		e.formed = r.Mark
	}
	e.formedSeq = r.seq
	if r.Type == recFree {
		c.indexFree(r, e)
		return
	}
	e.gone = false
	if r.Type == recTombstone {
		c.indexTombstone(r, e)
		return
	}
	for i := range r.blocks() {
		block, tag, pos := r.blockAt(i)
		p := pendBlock{block: block, r: r, tag: tag, pos: pos}
		at, found := e.find(block)
		if found {
			c.deref(e.pend[at].r)
			e.pend[at] = p
		} else {
			e.pend = append(e.pend, pendBlock{})
			copy(e.pend[at+1:], e.pend[at:])
			e.pend[at] = p
		}
		r.refs++
	}
	if r.fills(e) {
		e.tomb = false
		if r.data != nil {
			r.cached = true
			c.dataBytes += len(r.data)
			c.dataFIFO = append(c.dataFIFO, r)
		}
	}
	if e.slot >= 0 {
		c.markDirty(e)
	} else {
		// Nothing over nothing: there is nothing to apply.
		c.clearPend(e)
	}
}

func (c *Core) indexTombstone(r *rec, e *ext) {
	c.clearPend(e)
	e.tombSeq, e.tombLSN, e.tombMark, e.durSeq, e.vol.tombSeq = r.seq, r.lsn, r.Mark, 0, r.seq
	c.holdTomb(e)
	e.tomb, e.holes = true, e.object > 0
	if e.slot >= 0 {
		e.tombPending = true
		c.markDirty(e)
	}
}

func (c *Core) indexDrop(r *rec) {
	r.vol.dropSeq = r.seq
	for _, e := range c.sortedExts(r.vol) {
		c.clearPend(e)
		e.tombSeq, e.tombPending, e.version = r.seq, true, e.version+1
		if e.slot >= 0 {
			c.markDirty(e)
		}
	}
}

func (c *Core) clearPend(e *ext) {
	for i := range e.pend {
		c.deref(e.pend[i].r)
	}
	clear(e.pend)
	e.pend = e.pend[:0]
}

// deref ends the need of one block for a record's payload.
func (c *Core) deref(r *rec) {
	r.refs--
	c.dropData(r)
}

// dropData gives a payload back when no block and no write needs it.
func (c *Core) dropData(r *rec) {
	if r.refs == 0 && r.pins == 0 && r.seq != 0 && r.seq <= c.log.done.seq {
		c.freeData(r)
	}
}

// ioDone ends a write of a batch.
func (b *batch) ioDone(c *Core, _ int, err error) {
	if c.dead != nil {
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("write log: %w", err))
		return
	}
	if b.left--; b.left > 0 {
		return
	}
	b.written = true
	c.pool.Free(b.header)
	l := &c.log
	n := 0
	for n < len(l.flying) && l.flying[n].written {
		l.done = l.flying[n].end
		c.addStep(l.done)
		for _, r := range l.flying[n].recs {
			if r.durable && r.answer {
				l.waiting = append(l.waiting, syncWaiter{seq: r.seq, r: r})
			} else {
				c.answer(r, wire.OK)
			}
			if r.Flags&flagFresh != 0 {
				c.freeData(r) // it stands in place
			}
			c.dropData(r)
		}
		c.freeBatch(l.flying[n])
		n++
	}
	l.flying = shift(l.flying, n)
	c.passWritten()
}

// addStep remembers where a batch ends.
func (c *Core) addStep(p position) {
	l := &c.log
	if n := len(l.steps); n == 0 || p.lsn-l.steps[n-1].lsn >= uint64(c.sb.WALBytes)/64 {
		l.steps = append(l.steps, p)
	}
}

// passWritten answers those waiters that need no fdatasync: duplicates of
// records that are written now.
func (c *Core) passWritten() {
	l := &c.log
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		free := w.r != nil && (!w.r.durable || c.o.Mutations.SkipFlushSync && w.r.Type == recFlush)
		if free && w.seq <= l.done.seq {
			c.flushed(w.r)
		} else {
			kept = append(kept, w)
		}
	}
	clear(l.waiting[len(kept):])
	l.waiting = kept
}

// flushed answers a flush, or a record that waited for the fdatasync.
func (c *Core) flushed(r *rec) {
	if r.Type == recFlush && r.vol != nil && r.upto != (repl.Mark{}) && r.vol.Durable.Less(r.upto) {
		r.vol.Durable = r.upto
		r.vol.marksDirty = true
	}
	c.answer(r, wire.OK)
}

// maybeSync starts an fdatasync if somebody waits for one that could help.
func (c *Core) maybeSync() {
	l := &c.log
	if l.inSync || c.dead != nil {
		return
	}
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		if w.seq <= l.done.seq {
			l.syncing = append(l.syncing, w)
		} else {
			kept = append(kept, w)
		}
	}
	if len(l.syncing) == 0 {
		return
	}
	clear(l.waiting[len(kept):])
	l.waiting = kept
	l.inSync, l.syncFrom = true, l.done
	c.submit(OpSync, 0, nil, syncDone{}, 0)
}

type syncDone struct{}

func (syncDone) ioDone(c *Core, _ int, err error) {
	l := &c.log
	l.inSync = false
	if c.dead != nil {
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("sync disk: %w", err))
		return
	}
	c.stats.Syncs++
	l.durable = l.syncFrom
	list := l.syncing
	l.syncing = nil
	for _, w := range list {
		if w.r != nil {
			c.flushed(w.r)
		}
	}
	for _, w := range list {
		if w.fn != nil {
			w.fn()
		}
	}
}

// afterSync calls fn when an fdatasync that begins later, and covers the
// records up to seq, is done.
func (c *Core) afterSync(seq uint64, fn func()) {
	c.log.waiting = append(c.log.waiting, syncWaiter{seq: seq, fn: fn})
}

// Idle is called when nothing was asked for about 50 ms: it writes an empty
// batch that says what is durable, and applies what waits.
func (c *Core) Idle() {
	l := &c.log
	if !c.opened || c.dead != nil {
		return
	}
	if l.durable.lsn > l.told && len(l.flying) == 0 && !l.inSync {
		l.nudge = true
	}
	if len(c.dirty) > 0 || c.tableNew || len(c.clean)+len(c.mend) > 0 {
		c.idleAgain = c.ck != nil // what came after its cut waits for the next
		c.startCheckpoint()
	}
}

// evict keeps the caches within their limits.
func (c *Core) evict() {
	n := 0
	room := c.dataRoom()
	for c.dataBytes > room && n < len(c.dataFIFO) {
		r := c.dataFIFO[n]
		if r.data != nil && (r.seq > c.log.done.seq || r.pins > 0) {
			break // being written
		}
		c.freeData(r)
		n++
	}
	for n < len(c.dataFIFO) && c.dataFIFO[n].data == nil {
		n++
	}
	c.dataFIFO = c.dataFIFO[n:] // append moves it to new memory now and then
	c.evictTables()
}
