package disk

import (
	"cmp"
	"fmt"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

const recoveryChunkBytes = 1 << 20

// recovery is the state of Open. It goes through the device in four steps:
// superblocks, volume table, extent images, log; then it decides in one go.
type recovery struct {
	left   int
	supers [4][]byte
	tables [2][]byte
	step   func()
	next   int64 // slots (or ring bytes) asked for so far
	logErr []LSNRange

	// The log is read in order of LSN.
	ring    []byte
	ringLSN uint64 // of ring[0]
	found   []foundBatch
	pos     uint64 // next place to look at

	images map[extKey][]imageHeader // more than one only after corruption
	lost   []int                    // slots with an invalid image and no valid one
	lone   []imageHeader            // headers of images whose tags are lost
	end    uint64
}

type extKey struct {
	volume ids.ID
	extent uint64
}

// foundBatch is a batch with a valid header, anywhere in the ring.
type foundBatch struct {
	h    batchHeader
	recs []descriptor
	good bool // the payload matches
}

// Open starts recovery: run Ready/Done until Opened says so.
func Open(o Options) *Core {
	setDefault(&o.TagCacheBytes, 256<<20)
	setDefault(&o.DataCacheBytes, 64<<20)
	setDefault(&o.LogQueueDepth, 2)
	setDefault(&o.BatchBytes, 1<<20)
	setDefault(&o.CheckpointFraction, 4)
	setDefault(&o.ApplyDepth, 16)
	c := &Core{o: o, pool: o.Pool, inflight: map[uint64]pendingIO{}, vols: map[ids.ID]*volume{}}
	c.scan = &recovery{images: map[extKey][]imageHeader{}}
	if o.DeviceBytes < 4<<20 {
		c.openFailed(errs.New(errs.Invalid, "open disk: a device of %d bytes is too small", o.DeviceBytes))
		return c
	}
	for i, off := range copyOffsets(o.DeviceBytes) {
		c.scan.supers[i] = c.pool.Alloc(superblockBytes)
		c.scanRead(off, c.scan.supers[i], nil)
	}
	c.scan.step = c.readTables
	return c
}

func setDefault(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

// Opened reports whether recovery ended, and how. Before it ended no other call
// than Ready and Done is allowed; after an error none at all.
func (c *Core) Opened() (Recovery, bool, error) {
	return c.report, c.opened || c.err != nil, c.err
}

func (c *Core) openFailed(err error) {
	c.err = err
	c.dead = err
}

// scanIO is one read of recovery.
type scanIO struct {
	buf []byte
	use func(buf []byte) // nil: the step looks at it
}

func (c *Core) scanRead(off int64, buf []byte, use func([]byte)) {
	c.scan.left++
	c.submit(OpRead, off, [][]byte{buf}, scanIO{buf, use}, 0)
}

// ioDone: what cannot be read counts as zeros, so as not valid.
func (s scanIO) ioDone(c *Core, _ int, err error) {
	if err != nil {
		for i := range s.buf {
			s.buf[i] = 0xff // not blank: an unreadable image was an image
		}
	}
	if c.err != nil {
		return
	}
	scan := c.scan
	if s.use != nil {
		s.use(s.buf)
	}
	if scan.left--; scan.left == 0 {
		scan.step()
	}
}

func (c *Core) readTables() {
	s := c.scan
	sb, copies, err := chooseSuperblock(s.supers)
	for _, b := range s.supers {
		c.pool.Free(b)
	}
	switch {
	case err != nil:
		c.openFailed(fmt.Errorf("open disk: %w", err))
		return
	case sb.State == DiskFailed:
		c.openFailed(errs.New(errs.Unavailable, "open disk %s: it failed a write or an fdatasync before", sb.Identity.Disk).
			WithHint("its content cannot be trusted; wipe it and claim it again, or replace it"))
		return
	case c.o.DeviceBytes/BlockBytes*BlockBytes < sb.DeviceBytes:
		c.openFailed(errs.New(errs.Corrupt, "open disk %s: the device has %d bytes, %d when it was formatted", sb.Identity.Disk, c.o.DeviceBytes, sb.DeviceBytes))
		return
	}
	c.sb = sb
	c.o.BatchBytes = min(c.o.BatchBytes, int(sb.WALBytes/8))
	c.report.Superblocks = copies
	c.slots = make([]slotInfo, sb.Slots)
	for i := range s.tables {
		s.tables[i] = c.pool.Alloc(int(sb.TableBytes))
		c.scanRead(sb.TableOffset+int64(i)*sb.TableBytes, s.tables[i], nil)
	}
	s.step = c.takeTable
}

func (c *Core) takeTable() {
	s := c.scan
	var best tableImage
	for _, b := range s.tables {
		if t, err := decodeTable(c.sb.Identity.Disk, b); err == nil && t.Seq > best.Seq {
			best = t
		}
		c.pool.Free(b)
	}
	c.tableSeq = max(best.Seq, c.sb.TableSeq)
	for i, v := range best.Entries {
		c.byIndex = append(c.byIndex, nil)
		if v == nil {
			continue
		}
		c.byIndex[i] = &volume{volumeEntry: *v, index: i, crc: volumeCRC(v.Volume), exts: map[uint64]*ext{}}
		c.vols[v.Volume] = c.byIndex[i]
	}
	if best.Seq < c.sb.TableSeq {
		// The newest table is lost: promises in it may be forgotten.
		c.report.DamagedRanges = append(c.report.DamagedRanges, LSNRange{})
	}
	s.step = c.readLog
	for range 4 {
		c.readImages()
	}
	if s.left == 0 {
		c.readLog()
	}
}

// readImages asks for the next chunk of the metadata area.
func (c *Core) readImages() {
	s := c.scan
	per := 2 * c.sb.imageBytes()
	n := min(int64(c.sb.SlotLimit)-s.next, max(1, recoveryChunkBytes/per))
	if n <= 0 {
		return
	}
	first := s.next
	s.next += n
	buf := c.pool.Alloc(int(n * per))
	c.scanRead(c.sb.MetaOffset+first*per, buf, func(b []byte) {
		for i := range n {
			c.takeSlot(int(first+i), b[i*per:(i+1)*per])
		}
		c.pool.Free(b)
		c.readImages()
	})
}

// takeSlot chooses between the two images of a slot.
func (c *Core) takeSlot(slot int, b []byte) {
	size := c.sb.imageBytes()
	info := &c.slots[slot]
	var best imageHeader
	broken := 0
	var torn imageHeader
	for i := range int64(2) {
		h, blank, headerGood, err := decodeImage(b[i*size : (i+1)*size])
		ours := h.Disk == c.sb.Identity.Disk && h.Slot == uint64(slot) && int64(h.Seq%2) == i
		switch {
		case blank:
		case err != nil && headerGood && ours:
			broken++
			torn = h
		case err != nil:
			broken++
		case ours && h.Seq > best.Seq:
			best = h
		}
	}
	info.gen, info.seq = max(best.Generation, torn.Generation), best.Seq
	switch {
	case best.Seq == 0 && broken > 0:
		// Legal if the first image of the slot was torn; judged after replay.
		c.scan.lost = append(c.scan.lost, slot)
		if torn.Seq != 0 && torn.State == imageStateHead {
			c.scan.lone = append(c.scan.lone, torn)
		}
	case best.State == imageStateHead:
		info.used = true
		key := extKey{best.Volume, best.Extent}
		c.scan.images[key] = append(c.scan.images[key], best)
	}
}

// readLog reads the whole ring from the checkpoint on: only the absence of a
// later batch proves that a bad one was never durable.
func (c *Core) readLog() {
	s := c.scan
	s.ringLSN, s.pos, s.next = c.sb.CheckpointLSN, c.sb.CheckpointLSN, 0
	s.step = func() {}
	c.readRing()
}

func (c *Core) readRing() {
	s := c.scan
	if s.next >= c.sb.WALBytes {
		c.parseLog(true)
		c.replay()
		return
	}
	lsn := c.sb.CheckpointLSN + uint64(s.next)
	toEnd := c.sb.WALBytes - int64(lsn%uint64(c.sb.WALBytes))
	n := min(recoveryChunkBytes, c.sb.WALBytes-s.next, toEnd)
	s.next += n
	buf := c.pool.Alloc(int(n))
	c.scanRead(c.ringOffset(lsn), buf, func(b []byte) {
		s.ring = append(s.ring, b...)
		c.pool.Free(b)
		c.parseLog(false)
		c.readRing()
	})
}

// parseLog looks for batches in what was read; atEnd: nothing more comes.
func (c *Core) parseLog(atEnd bool) {
	s := c.scan
	for s.pos-s.ringLSN+BlockBytes <= uint64(len(s.ring)) {
		rest := s.ring[s.pos-s.ringLSN:]
		b, need := c.parseBatch(rest, s.pos)
		if need > len(rest) {
			if !atEnd {
				break
			}
			b = nil
		}
		if b == nil {
			s.pos += BlockBytes
			continue
		}
		s.found = append(s.found, *b)
		s.pos += uint64(b.h.Bytes) // a pad may lead beyond what was read
	}
	// Keep what is not parsed yet.
	if done := min(s.pos-s.ringLSN, uint64(len(s.ring))); done > recoveryChunkBytes || done == uint64(len(s.ring)) {
		s.ring = append(s.ring[:0], s.ring[done:]...)
		s.ringLSN += done
	}
}

// parseBatch reads a batch at lsn; need is how many bytes it wants to see.
func (c *Core) parseBatch(b []byte, lsn uint64) (*foundBatch, int) {
	h, ok := decodeBatchHeader(b[:BlockBytes])
	if !ok || h.LSN != lsn || h.Disk != c.sb.Identity.Disk || h.Session < c.sb.CheckpointSess {
		return nil, 0
	}
	if int64(lsn%uint64(c.sb.WALBytes))+int64(h.Bytes) > c.sb.WALBytes {
		return nil, 0
	}
	need := int(h.Bytes)
	if h.Flags&batchFlagPad != 0 {
		need = int(h.HeaderBytes)
	}
	if need > len(b) {
		return nil, need
	}
	list, err := decodeDescriptors(h, b[:h.HeaderBytes])
	if err != nil {
		return nil, 0
	}
	return &foundBatch{h: h, recs: list, good: h.Flags&batchFlagPad != 0 || payloadGood(list, b[:h.Bytes])}, need
}

// judgeLog splits what was found: the log (accepted), ranges of it that were
// durable and are lost, and a tail that never was durable.
//
// A batch is proved durable by a later one of the same or a newer session whose
// DurableLSN lies above its start.
func judgeLog(from position, found []foundBatch, truncate bool) (log []foundBatch, lost []LSNRange, tail []foundBatch, end position) {
	proof := make([]uint64, len(found)+1) // proof[i] = max DurableLSN of found[i:]
	for i := len(found) - 1; i >= 0; i-- {
		proof[i] = max(proof[i+1], found[i].h.DurableLSN)
	}
	at := from
	for i := range found {
		b := &found[i]
		if b.h.Session < at.session || b.h.LSN < at.lsn {
			continue // left over from a tail that an earlier open dropped
		}
		if b.h.LSN != at.lsn || b.h.Prev != at.chain || !b.good {
			if proof[i] <= at.lsn || truncate {
				for _, t := range found[i:] {
					if t.h.Session >= at.session {
						tail = append(tail, t)
					}
				}
				return log, lost, tail, at
			}
			if b.h.LSN != at.lsn || b.h.Prev != at.chain {
				lost = append(lost, LSNRange{at.lsn, max(b.h.LSN, at.lsn+BlockBytes)})
			} // else: the header tells which blocks are bad; their reads will fail
		}
		log = append(log, *b)
		at = position{lsn: b.h.end(), chain: b.h.CRC, session: b.h.Session}
	}
	return log, lost, nil, at
}

// replay decides what the log says and rebuilds the memory of it.
func (c *Core) replay() {
	s := c.scan
	s.ring = nil
	from := position{lsn: c.sb.CheckpointLSN, chain: c.sb.CheckpointChain, session: c.sb.CheckpointSess}
	log, lost, tail, end := judgeLog(from, s.found, c.o.Mutations.TruncateDamagedLog)
	c.report.DamagedRanges = append(c.report.DamagedRanges, lost...)
	c.report.Batches = len(log)
	c.takeImages()
	l := &c.log
	l.tail = c.sb.CheckpointLSN
	l.head.session = end.session
	for i := range log {
		l.head.lsn = log[i].h.LSN
		for j := range log[i].recs {
			c.replayRecord(&log[i].recs[j], log[i].h.LSN)
		}
	}
	c.report.Records = int(l.head.seq)
	l.head.lsn, l.head.chain = end.lsn, end.chain
	l.done = l.head
	l.session = end.session
	for i := range s.found {
		l.session = max(l.session, s.found[i].h.Session)
	}
	l.session++
	c.report.Session = l.session
	for i := range tail {
		c.report.DroppedBytes += int64(tail[i].h.Bytes)
		for j := range tail[i].recs {
			c.unverified(&tail[i].recs[j])
		}
	}
	c.judgeDirectory()
	if c.err != nil {
		return
	}
	c.begin()
}

// takeImages makes the directory from the images.
func (c *Core) takeImages() {
	keys := make([]extKey, 0, len(c.scan.images))
	for k := range c.scan.images {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b extKey) int {
		return cmp.Or(a.volume.Compare(b.volume), cmp.Compare(a.extent, b.extent))
	})
	for _, k := range keys {
		list := c.scan.images[k]
		best := slices.MaxFunc(list, func(a, b imageHeader) int {
			if a.Mark.Less(b.Mark) {
				return -1
			}
			if b.Mark.Less(a.Mark) {
				return 1
			}
			return cmp.Compare(a.Seq, b.Seq)
		})
		for _, h := range list {
			if h.Slot != best.Slot { // a free image was lost: the slot stays out of use
				c.slots[h.Slot].bad = true
				c.report.UnreadableSlots++
			}
		}
		v := c.vols[k.volume]
		if v == nil {
			v = c.quarantine(k.volume)
		}
		if v == nil {
			continue
		}
		v.exts[k.extent] = &ext{
			vol: v, extent: k.extent, slot: int(best.Slot), mark: best.Mark, formed: best.Mark,
			imgMark: best.Mark, imgSeq: best.Seq, durSeq: best.Seq,
		}
	}
	for i := range c.slots {
		if !c.slots[i].used {
			c.free++
		}
	}
}

// quarantine keeps the extents of a volume that the table does not know (the
// log may name it). Nothing is ever freed because it is not known.
func (c *Core) quarantine(id ids.ID) *volume {
	v := &volume{index: -1, crc: volumeCRC(id), exts: map[uint64]*ext{}}
	v.Volume = id
	c.vols[id] = v
	return v
}

// replayRecord does for a record of the log what its appending did.
func (c *Core) replayRecord(d *descriptor, lsn uint64) {
	l := &c.log
	l.head.seq++
	r := &rec{descriptor: *d, lsn: lsn, seq: l.head.seq}
	if d.Payload != 0 {
		r.dataLSN = lsn + uint64(d.Payload)
	}
	if d.Type == recVolume {
		c.replayVolume(d)
		return
	}
	if d.Type == recDrop {
		c.replayDrop(r)
		return
	}
	var v *volume
	if int(d.Index) < len(c.byIndex) {
		v = c.byIndex[d.Index]
	}
	if v == nil || v.dropped {
		return
	}
	r.vol = v
	if d.Type == recMarks {
		b := dec{b: d.Body}
		raise(&v.Durable, d.Mark)
		raise(&v.Flush, b.mark())
		raise(&v.TombForget, b.mark())
		return
	}
	c.replayBlocks(r, v)
}

// replayDrop: the volume may be missing in the table already while its images
// are not freed yet.
func (c *Core) replayDrop(r *rec) {
	if len(r.Body) != 16 || r.Index > uint32(c.sb.TableBytes/volumeEntryBytes) {
		return
	}
	v := c.vols[ids.ID(r.Body)]
	if v == nil {
		return
	}
	c.placeVolume(v, int(r.Index))
	delete(c.vols, v.Volume)
	v.dropped, v.window, v.tombs = true, nil, nil
	c.tableNew = true
	c.indexDrop(r)
}

func (c *Core) placeVolume(v *volume, index int) {
	for index >= len(c.byIndex) {
		c.byIndex = append(c.byIndex, nil)
	}
	v.index = index
	c.byIndex[index] = v
}

func (c *Core) replayVolume(d *descriptor) {
	entry, ok := decodeVolumeEntry(d.Body)
	if !ok || d.Index > uint32(c.sb.TableBytes/volumeEntryBytes) {
		return
	}
	v := c.vols[entry.Volume]
	if v == nil {
		v = c.quarantine(entry.Volume)
	}
	c.placeVolume(v, int(d.Index))
	if entry.Version >= v.Version {
		durable, flush, top, forget := v.Durable, v.Flush, v.Max, v.TombForget
		v.volumeEntry = entry
		raise(&v.Durable, durable)
		raise(&v.Flush, flush)
		raise(&v.Max, top)
		raise(&v.TombForget, forget)
		c.tableNew = true
	}
}

func raise(m *repl.Mark, to repl.Mark) {
	if m.Less(to) {
		*m = to
	}
}

func (c *Core) replayBlocks(r *rec, v *volume) {
	raise(&v.Max, r.Mark)
	e := v.exts[r.Extent]
	if e == nil {
		e = &ext{vol: v, extent: r.Extent, slot: -1}
		v.exts[r.Extent] = e
	}
	r.ext = e
	raise(&e.mark, r.Mark)
	if r.Flags&flagUnverified == 0 {
		e.claim = max(e.claim, r.ImageSeq)
	}
	r.inWindow = true
	v.window = append(v.window, r)
	if r.Flags&(flagNote|flagUnverified) != 0 {
		// The tail passed a tombstone only after it was applied, so a note says
		// something only where no data is.
		if r.Type == recTombstone && r.Flags&flagNote != 0 && e.slot < 0 && len(e.pend) == 0 && v.TombForget.Less(r.Mark) {
			e.claim = 0
			c.indexTombstone(r, e)
		}
		return
	}
	if r.payloadBlocks() > 0 && e.slot < 0 {
		if e.slot = c.allocSlot(); e.slot < 0 {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: the log needs more extents than there are", c.sb.Identity.Disk))
			return
		}
	}
	if r.Type == recTombstone {
		e.claim = 0
	}
	c.index(r)
}

// unverified lists a record of the dropped tail in its volume's window.
func (c *Core) unverified(d *descriptor) {
	if d.Type != recWrite && d.Type != recZero && d.Type != recTombstone && d.Type != recSync && d.Type != recRepair || d.Flags != 0 {
		return
	}
	if int(d.Index) >= len(c.byIndex) || c.byIndex[d.Index] == nil || c.byIndex[d.Index].dropped {
		return
	}
	v := c.byIndex[d.Index]
	if !v.Flush.Less(d.Mark) {
		return
	}
	n := &rec{descriptor: *d, vol: v, inWindow: true}
	n.Flags, n.Payload = flagUnverified, 0
	v.window = append(v.window, n)
	v.unverified++
	c.report.Unverified++
	c.log.notes = append(c.log.notes, n)
}

// judgeDirectory finds extents whose newest image is lost, and volumes that may
// have lost something.
func (c *Core) judgeDirectory() {
	c.free = 0
	for i := range c.slots {
		if !c.slots[i].used && !c.slots[i].bad {
			c.free++
		}
	}
	list := c.allVolumes()
	imageless := 0
	for _, v := range list {
		v.slots = 0
		for _, e := range c.sortedExts(v) {
			if e.slot >= 0 {
				v.slots++
			}
			if e.slot >= 0 && e.imgSeq == 0 {
				imageless++
			}
			raise(&v.Max, e.mark)
			e.order = e.mark
			lost := e.claim > e.imgSeq
			for _, h := range c.scan.lone {
				// A torn first image is legal only if the log has all of it.
				lost = lost || h.Volume == v.Volume && h.Extent == e.extent && e.imgSeq == 0 && len(e.pend) == 0 && !e.tomb
			}
			if lost && !e.tomb && !e.tombPending {
				c.loseExtent(v, e)
			}
		}
	}
	for _, h := range c.scan.lone {
		if v := c.vols[h.Volume]; v != nil && v.exts[h.Extent] == nil {
			e := &ext{vol: v, extent: h.Extent, slot: -1, mark: h.Mark, formed: h.Mark, order: h.Mark}
			v.exts[h.Extent] = e
			c.loseExtent(v, e)
		}
	}
	all := len(c.report.DamagedRanges) > 0
	if n := len(c.scan.lost) - imageless - c.report.DamagedExtents; n > 0 {
		c.report.UnreadableSlots += n
		all = true // some extent is gone and nobody knows which
	}
	// A torn first image must not look like a loss at the next open.
	c.clean = c.scan.lost
	for _, v := range list {
		v.window = dedupe(v.window)
		if !v.dropped && (v.index < 0 || all && !v.Damaged) {
			c.damage(v)
		}
		if !v.dropped {
			c.pruneWindow(v)
		}
	}
}

func (c *Core) loseExtent(v *volume, e *ext) {
	c.report.DamagedExtents++
	e.baseUnknown, e.version = true, e.version+1
	if e.slot < 0 {
		if e.slot = c.allocSlot(); e.slot < 0 {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no slot for a lost extent", c.sb.Identity.Disk))
			return
		}
		v.slots++
	}
	c.markDirty(e)
	if !v.Damaged && !v.dropped {
		c.damage(v)
	}
}

// damage marks a volume; the mark is logged by begin.
func (c *Core) damage(v *volume) {
	if v.index < 0 {
		limit := int((c.sb.TableBytes - tableHeaderBytes) / volumeEntryBytes)
		i := slices.Index(c.byIndex, nil)
		if i < 0 && len(c.byIndex) < limit {
			i = len(c.byIndex)
			c.byIndex = append(c.byIndex, nil)
		}
		if i < 0 {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no room for an unknown volume", c.sb.Identity.Disk))
			return
		}
		v.index = i
		c.byIndex[i] = v
	}
	v.Damaged = true
	c.log.gather = append(c.log.gather, c.volumeRecord(v))
}

// allVolumes returns the volumes in a fixed order: by index, then quarantined.
func (c *Core) allVolumes() []*volume {
	var list []*volume
	for _, v := range c.byIndex {
		if v != nil {
			list = append(list, v)
		}
	}
	for _, id := range c.Volumes() {
		if v := c.vols[id]; v.index < 0 {
			list = append(list, v)
		}
	}
	return list
}

// dedupe drops notes of records that the log still has: a crash may leave both.
func dedupe(window []*rec) []*rec {
	type key struct {
		extent uint64
		block  uint16
		kind   uint8
		mark   repl.Mark
	}
	seen := map[key]bool{}
	return slices.DeleteFunc(window, func(r *rec) bool {
		k := key{r.Extent, r.Block, r.Type, r.Mark}
		if r.Type == recSync || r.Type == recRepair {
			k.block = r.Blocks[0].Block
		}
		if r.Flags == 0 {
			seen[k] = true
			return false
		}
		old := seen[k]
		seen[k] = true
		return old
	})
}

// begin writes the opening batch: it starts the session, so that what is left of
// a dropped tail can never be taken for a part of the log.
func (c *Core) begin() {
	l := &c.log
	l.durable = position{lsn: c.sb.CheckpointLSN, chain: c.sb.CheckpointChain, session: c.sb.CheckpointSess}
	l.nudge = true
	for l.nudge || len(l.notes) > 0 || len(l.gather) > 0 {
		if !c.formBatch() {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no room in the log for the opening batch", c.sb.Identity.Disk))
			return
		}
	}
	c.afterSync(l.head.seq, func() {
		c.opened = true
		c.scan = nil
	})
	l.opening = true
}
