package disk

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// A checkpoint moves the log's tail to a cut: the durable end of the log when it
// began. Every block whose newest version is below the cut is applied; newer
// versions make their block skip, and the tail waits until they are durable.
//
//	tail' = cut  only when  data and images of all records < cut are durable
//	             and        every superseding record is durable
//	             and        notes of records > flush mark and of tombstones are durable
//	             and        a superblock that says so is durable
type checkpoint struct {
	cut    position
	list   []*ext // to be applied
	next   int
	flying int
	need   uint64 // records up to here must be durable before the tail moves
	freed  []int
	wrote  []*ext
	drops  []*volume
	table  []byte
	inLoop bool
	round  []*apply // written, their image's copy is not
	left   int      // copies being written
	note   *rec     // the last note: the tail waits for it to have a place
}

// startCheckpoint begins a checkpoint unless one runs.
func (c *Core) startCheckpoint() {
	if c.ck != nil || c.dead != nil || !c.opened {
		return
	}
	c.ck = &checkpoint{}
	if c.log.durable.seq == c.log.done.seq && c.log.durable.lsn == c.log.done.lsn {
		c.cutCheckpoint()
		return
	}
	c.afterSync(c.log.done.seq, c.cutCheckpoint)
}

func (c *Core) cutCheckpoint() {
	k := c.ck
	k.cut = c.chooseCut()
	if c.o.Mutations.ApplyBeforeDurable {
		k.cut.seq = c.log.head.seq
	}
	limit := 0
	for _, e := range c.dirty {
		k.list = append(k.list, e)
		limit = max(limit, e.slot+1)
	}
	slices.SortFunc(k.list, func(a, b *ext) int { return cmp.Compare(a.slot, b.slot) })
	for _, v := range c.byIndex {
		if v != nil && v.dropped && v.dropSeq != 0 && v.dropSeq <= k.cut.seq {
			k.drops = append(k.drops, v)
		}
	}
	for _, slot := range c.clean {
		limit = max(limit, slot+1)
	}
	if uint64(limit) > c.sb.SlotLimit {
		// Recovery looks at slots below the limit only: it moves first.
		c.sb.SlotLimit = min(uint64(limit)+256, c.sb.Slots)
		c.writeSuperblock(c.cleanSlots)
		return
	}
	c.cleanSlots()
}

// cleanSlots marks slots free whose images were both lost: the loss is logged.
func (c *Core) cleanSlots() {
	k := c.ck
	k.inLoop = true
	for i, slot := range slices.Concat(c.clean, c.mend) {
		if s := &c.slots[slot]; !s.used && (s.seq == 0 || i >= len(c.clean)) {
			k.flying++
			c.writeFreeImage(&apply{e: &ext{vol: &volume{}, slot: slot}})
		}
	}
	c.clean, c.mend = nil, nil
	k.inLoop = false
	c.applyMore()
}

// chooseCut returns the durable end of the log, or the newest place before it
// whose notes fit the ring: after crashes in a checkpoint the ring may be full of
// notes that did not move the tail. Those that lie behind the cut count.
func (c *Core) chooseCut() position {
	l := &c.log
	room := c.sb.WALBytes - c.sb.WALBytes/16 - int64(l.head.lsn-l.tail) - 2*BlockBytes
	cut := l.durable
	if c.o.Mutations.WindowPinsTail && c.notesBytes(cut.lsn) > 0 {
		return position{c.sb.CheckpointLSN, c.sb.CheckpointChain, c.sb.CheckpointSess, l.tailSeq}
	}
	for i := len(l.steps); ; i-- {
		if cut.lsn <= l.durable.lsn && c.notesBytes(cut.lsn)*9/8 <= room || i == 0 {
			return cut
		}
		if l.steps[i-1].lsn > l.tail {
			cut = l.steps[i-1]
		}
	}
}

// notesBytes returns what the notes of a cut there take in the log.
func (c *Core) notesBytes(cut uint64) int64 {
	n := int64(0)
	for _, v := range c.byIndex {
		if v == nil || v.dropped {
			continue
		}
		for _, r := range v.window {
			if r.seq != 0 && r.lsn < cut {
				n += int64(descriptorBytes + r.bodyBytes())
			}
		}
		for _, e := range v.tombs {
			if e.remembered() && e.tombLSN < cut {
				n += descriptorBytes
			}
		}
	}
	return n
}

// applyMore keeps ApplyDepth extents under way, then goes on to the table.
func (c *Core) applyMore() {
	k := c.ck
	if k.inLoop {
		return // an extent that needed no I/O: the loop below goes on
	}
	k.inLoop = true
	for k.next < len(k.list) && k.flying < c.o.ApplyDepth && k.left == 0 && k.flying+len(k.round) < roundExtents {
		e := k.list[k.next]
		k.next++
		k.flying++
		c.applyExtent(e)
		if c.dead != nil {
			return
		}
	}
	k.inLoop = false
	switch {
	case k.flying > 0 || k.left > 0:
	case len(k.round) > 0:
		k.left = len(k.round)
		c.afterSync(0, c.writeCopies)
	default:
		c.writeTable()
	}
}

// writeCopies writes each image of the round to its slot's other place, now that
// the image is durable. So of a settled extent both images say the same, and one
// that rots is only that: nobody has to ask whether it was newer.
func (c *Core) writeCopies() {
	for _, a := range c.ck.round {
		s := &c.slots[a.h.Slot]
		s.seq++
		c.submit(OpWrite, c.imageOffset(int(a.h.Slot), s.seq), [][]byte{a.twin}, a, applyCopy)
	}
}

// copied ends the write of a copy.
func (a *apply) copied(c *Core) {
	k := c.ck
	c.pool.Free(a.twin)
	if e := a.e; a.h.State == imageStateHead && e.slot == int(a.h.Slot) && e.imgSeq == a.h.Seq {
		e.imgSeq, e.twin = a.h.Seq+1, true
	}
	if k.left--; k.left == 0 {
		k.round = k.round[:0]
		c.applyMore()
	}
}

// apply is one extent's way to its place.
type apply struct {
	e       *ext
	img     []byte
	twin    []byte // the copy of img that follows when img is durable
	h       imageHeader
	blocks  []pendBlock
	bufs    [][]byte // of one block each; nil = zeros, or not trusted
	owned   [][]byte // read from the log for this
	reading int
	writing int
	base    bool // the old tags count
	holes   bool // the image begins as holes
	tomb    uint64
}

const (
	applyRead = iota
	applyWrite
	applyCopy
)

// roundExtents bounds the images that wait in memory for their copies.
const roundExtents = 256

func (c *Core) applyExtent(e *ext) {
	k := c.ck
	a := &apply{e: e, base: e.imgSeq != 0, holes: e.holes}
	if e.tombPending {
		if e.tombSeq > k.cut.seq {
			k.need = max(k.need, e.tombSeq)
			c.applied()
			return
		}
		a.base, a.tomb = false, e.tombSeq
		if len(e.pend) == 0 && e.gathering == 0 && e.slot >= 0 {
			c.freeExtent(a)
			return
		}
	}
	for _, p := range e.pend {
		if p.r.seq <= k.cut.seq {
			a.blocks = append(a.blocks, p)
			p.r.pins++
		} else {
			k.need = max(k.need, p.r.seq)
		}
	}
	if e.slot < 0 || len(a.blocks) == 0 && a.tomb == 0 && !e.baseUnknown && !e.rewrite {
		c.unpin(a)
		c.applied()
		return
	}
	if a.base && e.img == nil && !e.baseUnknown {
		c.loadTags(e, func() { c.applyLoad(a) })
		return
	}
	c.applyLoad(a)
}

// applied counts an extent as done.
func (c *Core) applied() {
	c.ck.flying--
	c.applyMore()
}

func (c *Core) unpin(a *apply) {
	for _, p := range a.blocks {
		p.r.pins--
		c.dropData(p.r)
	}
}

// applyLoad collects the data: from memory, or from the log.
func (c *Core) applyLoad(a *apply) {
	e := a.e
	a.img = c.pool.Alloc(int(c.sb.imageBytes()))
	switch {
	case e.baseUnknown:
		clear(a.img)
		for i := range c.ExtentBlocks() {
			setTag(a.img, e.vol.crc, c.ExtentBlocks(), e.extent, i, unknownTag)
		}
	case a.base && e.img != nil:
		copy(a.img, e.img)
	default:
		clear(a.img)
		for i := 0; e.holes && i < c.ExtentBlocks(); i++ {
			setTag(a.img, e.vol.crc, c.ExtentBlocks(), e.extent, i, wire.Hole)
		}
	}
	a.bufs = make([][]byte, len(a.blocks))
	a.reading = 1
	for i := 0; i < len(a.blocks); i++ {
		p := a.blocks[i]
		if p.pos < 0 || p.r.Flags&flagFresh != 0 { // nothing to write, or there already
			continue
		}
		if p.r.data != nil {
			a.bufs[i] = p.r.data[p.pos*BlockBytes : (p.pos+1)*BlockBytes]
			continue
		}
		n := 1 // neighbours in the same payload are read at once
		for i+n < len(a.blocks) && a.blocks[i+n].r == p.r && a.blocks[i+n].pos == p.pos+n {
			n++
		}
		buf := c.pool.Alloc(n * BlockBytes)
		a.owned = append(a.owned, buf)
		for j := range n {
			a.bufs[i+j] = buf[j*BlockBytes : (j+1)*BlockBytes]
		}
		a.reading++
		c.submit(OpRead, c.ringOffset(p.r.dataLSN+uint64(p.pos)*BlockBytes), [][]byte{buf}, a, applyRead)
		i += n - 1
	}
	a.readDone(c)
}

func (a *apply) readDone(c *Core) {
	if a.reading--; a.reading == 0 {
		a.write(c)
	}
}

// write starts the writes of data and image, side by side: the log still has
// everything.
func (a *apply) write(c *Core) {
	e, vcrc, n := a.e, a.e.vol.crc, c.ExtentBlocks()
	a.writing = 1
	var run [][]byte
	start := 0
	flush := func() {
		if len(run) > 0 {
			a.writing++
			c.submit(OpWrite, c.dataOffset(e.slot, start), run, a, applyWrite)
			run = nil
		}
	}
	mark := e.imgMark
	for i, p := range a.blocks {
		setTag(a.img, vcrc, n, e.extent, p.block, p.tag)
		if mark.Less(p.r.Mark) {
			mark = p.r.Mark
		}
		buf := a.bufs[i]
		if buf == nil || crc32.Checksum(buf, castagnoli) != p.tag.CRC {
			// Not trusted: the tag alone is stored, so that reads of the block fail.
			flush()
			continue
		}
		if len(run) == 0 || p.block != start+len(run) {
			flush()
			start = p.block
		}
		run = append(run, buf)
		c.stats.AppliedBlocks++
	}
	flush()
	if e.formedSeq <= c.ck.cut.seq && mark.Less(e.formed) {
		mark = e.formed
	}
	s := &c.slots[e.slot]
	if a.tomb != 0 && e.imgSeq != 0 {
		s.gen++
	}
	s.seq++
	a.h = imageHeader{
		Disk: c.sb.Identity.Disk, Slot: uint64(e.slot), Generation: s.gen, Volume: e.vol.Volume, Extent: e.extent,
		Object: e.object, State: imageStateHead, Mark: mark, Seq: s.seq, CutLSN: c.ck.cut.lsn,
	}
	a.encode(c)
	a.writing++
	c.submit(OpWrite, c.imageOffset(e.slot, s.seq), [][]byte{a.img}, a, applyWrite)
	a.writeDone(c)
}

// freeExtent writes the image that says that the slot is free.
func (c *Core) freeExtent(a *apply) {
	e := a.e
	if c.o.Mutations.FreeSlotEarly {
		c.freeSlot(e.slot)
	} else {
		c.ck.freed = append(c.ck.freed, e.slot)
	}
	c.writeFreeImage(a)
	// From here on a write to the extent takes another slot.
	e.slot, e.imgSeq, e.durSeq, e.imgMark = -1, 0, 0, repl.Mark{}
	e.tombPending, e.baseUnknown, e.rewrite = false, false, false
	e.vol.slots--
	e.version++
	c.dropTags(e)
	if e.gone {
		e.vol.removeObject(e)
	}
}

func (c *Core) writeFreeImage(a *apply) {
	e := a.e
	s := &c.slots[e.slot]
	s.seq++
	a.img = c.pool.Alloc(int(c.sb.imageBytes()))
	clear(a.img)
	a.h = imageHeader{
		Disk: c.sb.Identity.Disk, Slot: uint64(e.slot), Generation: s.gen, Volume: e.vol.Volume, Extent: e.extent,
		Object: e.object, State: imageStateFree, Mark: e.mark, Seq: s.seq, CutLSN: c.ck.cut.lsn,
	}
	a.encode(c)
	a.writing = 1
	c.submit(OpWrite, c.imageOffset(e.slot, s.seq), [][]byte{a.img}, a, applyWrite)
}

// encode fills in the headers of the image and of its copy.
func (a *apply) encode(c *Core) {
	a.h.encode(a.img)
	a.twin = c.pool.Alloc(len(a.img))
	copy(a.twin, a.img)
	h := a.h
	h.Seq++
	h.encode(a.twin)
}

func (a *apply) ioDone(c *Core, arg int, err error) {
	if c.dead != nil {
		return
	}
	if arg == applyRead {
		if err != nil {
			// The block's log copy cannot be read: it fails the checksum below.
			for _, b := range a.owned {
				clear(b)
			}
		}
		a.readDone(c)
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("write extent %s/%d: %w", a.e.vol.Volume, a.e.extent, err))
		return
	}
	if arg == applyCopy {
		a.copied(c)
		return
	}
	a.writeDone(c)
}

func (a *apply) writeDone(c *Core) {
	if a.writing--; a.writing > 0 {
		return
	}
	for _, b := range a.owned {
		c.pool.Free(b)
	}
	if a.h.State == imageStateFree {
		c.pool.Free(a.img)
	} else {
		a.install(c)
	}
	c.unpin(a)
	c.ck.round = append(c.ck.round, a)
	c.applied()
}

// install makes the new image the extent's tags and ends the need of its
// records, unless something newer came meanwhile.
func (a *apply) install(c *Core) {
	e := a.e
	e.imgSeq, e.imgMark, e.twin = a.h.Seq, a.h.Mark, false
	e.version++
	c.ck.wrote = append(c.ck.wrote, e)
	a.settle(c)
	if e.tombPending && e.tombSeq == a.tomb {
		e.tombPending = false
	}
	if a.holes && !e.tombPending {
		e.holes = false // the image has them
	}
	e.baseUnknown, e.rewrite = false, false
	c.dropTags(e)
	c.setTags(e, a.img)
}

// settle takes what was applied out of the pending index. Both are in the order of
// the blocks: one pass, for an extent may have a thousand.
func (a *apply) settle(c *Core) {
	e, left := a.e, a.blocks
	kept := e.pend[:0]
	for _, p := range e.pend {
		for len(left) > 0 && left[0].block < p.block {
			left = left[1:]
		}
		if len(left) > 0 && left[0].block == p.block && left[0].r == p.r {
			c.deref(p.r)
		} else {
			kept = append(kept, p)
		}
	}
	clear(e.pend[len(kept):])
	e.pend = kept
}

// writeTable writes the volume table if it changed, then syncs.
func (c *Core) writeTable() {
	if !c.tableNew {
		c.afterSync(0, c.applySynced)
		return
	}
	c.tableNew = false
	c.tableSeq++
	t := tableImage{Seq: c.tableSeq, Entries: make([]*volumeEntry, len(c.byIndex))}
	for i, v := range c.byIndex {
		if v != nil && !v.dropped {
			t.Entries[i] = &v.volumeEntry
		}
	}
	buf := c.pool.Alloc(int(tableUsedBytes(len(c.byIndex))))
	t.encode(c.sb.Identity.Disk, buf)
	c.ck.table = buf
	c.submit(OpWrite, c.sb.TableOffset+int64(c.tableSeq%2)*c.sb.TableBytes, [][]byte{buf}, tableWritten{}, 0)
}

type tableWritten struct{}

func (tableWritten) ioDone(c *Core, _ int, err error) {
	if c.dead != nil {
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("write volume table: %w", err))
		return
	}
	c.pool.Free(c.ck.table)
	c.afterSync(0, c.applySynced)
}

// applySynced: data, images and table are durable. What must outlive the cut
// goes into notes.
func (c *Core) applySynced() {
	k := c.ck
	for _, e := range k.wrote {
		if e.slot >= 0 && !e.tombPending { // a tombstone since: the slot may be given up
			e.durSeq = e.imgSeq - 1 // what it was before the copy
		}
	}
	var last *rec
	for _, v := range c.byIndex {
		if v == nil || v.dropped {
			continue
		}
		for i, r := range v.window {
			skip := c.o.Mutations.TailIgnoresFlushMark || c.o.Mutations.RelistOnce && r.OrigLSN != 0
			if r.seq != 0 && r.lsn < k.cut.lsn && !skip {
				last = c.relist(v, i)
			}
		}
		for _, e := range v.tombs {
			if e.remembered() && e.tombLSN < k.cut.lsn {
				last = c.relistTombstone(e)
			}
		}
	}
	if last == nil || c.o.Mutations.TailBeforeNotes {
		c.afterSync(k.need, c.moveTail)
		return
	}
	k.note = last
}

// notesFormed goes on when the last note has its place, so its sequence.
func (c *Core) notesFormed() {
	if k := c.ck; k != nil && k.note != nil && k.note.seq != 0 {
		k.need = max(k.need, k.note.seq)
		k.note = nil
		c.afterSync(k.need, c.moveTail)
	}
}

// relist re-appends a window record without its payload.
func (c *Core) relist(v *volume, i int) *rec {
	r := v.window[i]
	n := c.newRec()
	n.vol, n.ext, n.descriptor = r.vol, r.ext, r.descriptor
	n.setCRC(r.CRC)
	n.Payload, n.Slot = 0, 0
	n.Flags &^= flagFresh
	if n.Flags&flagUnverified == 0 {
		n.Flags |= flagNote
	}
	if n.OrigLSN == 0 {
		n.OrigLSN = r.lsn
	}
	n.inWindow = true
	// The note takes the record's place in the window; a record that waits to be
	// applied keeps its own life in the pending index.
	v.window[i] = n
	r.inWindow = false
	c.stats.RelistedRecords++
	c.log.notes = append(c.log.notes, n)
	return n
}

func (c *Core) relistTombstone(e *ext) *rec {
	n := &rec{vol: e.vol, ext: e}
	n.Type, n.Flags, n.Index, n.Extent, n.Mark = recTombstone, flagNote, uint32(e.vol.index), e.extent, e.tombMark
	n.Object = e.object
	n.Count = uint16(c.sb.ExtentBlocks)
	n.OrigLSN = e.tombLSN
	e.tombLSN = c.log.head.lsn // at least there
	c.stats.RelistedRecords++
	c.log.notes = append(c.log.notes, n)
	return n
}

// moveTail makes the cut the start of recovery.
func (c *Core) moveTail() {
	k := c.ck
	c.sb.CheckpointLSN, c.sb.CheckpointChain, c.sb.CheckpointSess = k.cut.lsn, k.cut.chain, k.cut.session
	c.sb.TableSeq = c.tableSeq
	c.sb.Incompat |= c.up.bits
	if c.wantFresh {
		c.sb.Incompat |= incompatFresh
	}
	c.writeSuperblock(c.checkpointDone)
}

func (c *Core) checkpointDone() {
	k := c.ck
	c.ck = nil
	c.log.tail, c.log.tailSeq = k.cut.lsn, k.cut.seq
	c.log.steps = slices.DeleteFunc(c.log.steps, func(p position) bool { return p.lsn <= k.cut.lsn })
	c.stats.Checkpoints++
	for _, s := range k.freed {
		c.freeSlot(s)
	}
	for _, v := range k.drops {
		c.byIndex[v.index] = nil
	}
	kept := c.dirty[:0]
	for _, e := range c.dirty {
		if len(e.pend) > 0 || e.tombPending || e.baseUnknown || e.rewrite {
			kept = append(kept, e)
		} else {
			e.dirty = false
		}
	}
	clear(c.dirty[len(kept):])
	c.dirty = kept
	for _, v := range c.byIndex {
		if v != nil {
			v.forgetTombs()
		}
	}
	c.upgraded()
	if c.idleAgain {
		c.idleAgain = false
		if len(c.dirty) > 0 || c.tableNew {
			c.startCheckpoint()
		}
	}
	if c.log.head.lsn-c.log.tail > uint64(c.sb.WALBytes)/2 {
		c.startCheckpoint()
	}
}

// superblockWrite writes copies 0 and 1, syncs, then 2 and 3, and syncs. If a
// process died between the two, the next one mends 2 and 3 first: else a crash
// could break all four.
type superblockWrite struct {
	buf   []byte
	left  int
	first bool
	then  func()
}

func (c *Core) writeSuperblock(then func()) {
	c.sb.Seq++
	w := &superblockWrite{buf: c.pool.Alloc(superblockBytes), first: true, then: then}
	c.sb.encode(w.buf)
	w.submit(c)
}

func (w *superblockWrite) submit(c *Core) {
	off := copyOffsets(c.sb.DeviceBytes)
	pair := off[2:]
	if w.first != c.sbLast {
		pair = off[:2]
	}
	w.left = 2
	for _, o := range pair {
		c.submit(OpWrite, o, [][]byte{w.buf}, w, 0)
	}
}

func (w *superblockWrite) ioDone(c *Core, _ int, err error) {
	if c.dead != nil {
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("write superblock: %w", err))
		return
	}
	if w.left--; w.left > 0 {
		return
	}
	if w.first {
		w.first = false
		c.afterSync(0, func() { w.submit(c) })
		return
	}
	c.pool.Free(w.buf)
	c.sbLast = false
	c.afterSync(0, w.then)
}
