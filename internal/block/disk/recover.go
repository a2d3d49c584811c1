package disk

import (
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

const recoveryChunkBytes = 1 << 20

// recovery is the state of Open. It goes through the device in four steps:
// superblocks, volume table, extent images, log; then it decides in one go.
type recovery struct {
	left   int
	supers [4][]byte
	tables [2][]byte
	step   func()
	next   int64 // slots, then ring bytes, asked for so far

	// The log is read in order of LSN.
	ring    []byte
	ringLSN uint64 // of ring[0]
	found   []foundBatch
	pos     uint64 // next place to look at

	from, end position
	log, tail []foundBatch
	fresh     []freshCheck
	slots     map[objectKey]int // that fresh records name
	reserved  []int             // of these, those that no image has

	images map[extKey][]imageHeader // more than one only after corruption
	twins  map[uint64]bool          // slots whose two images say the same
	alone  map[uint64]bool          // slots with one broken image
}

type extKey struct {
	volume ids.ID
	extent uint64
	object uint32
}

// foundBatch is a batch with a valid header, anywhere in the ring.
type foundBatch struct {
	h    batchHeader
	recs []descriptor
	good bool // the payload matches

	proven bool // a later batch says that it was durable
}

// Open starts recovery: run Ready/Done until Opened says so.
func Open(o Options) *Core {
	setDefault(&o.TagCacheBytes, 192<<20)
	setDefault(&o.DataCacheBytes, 64<<20)
	setDefault(&o.LogQueueDepth, 2)
	setDefault(&o.BatchBytes, 1<<20)
	setDefault(&o.CheckpointFraction, 4)
	setDefault(&o.ApplyDepth, 16)
	setDefault(&o.FreshBlocks, freshDefault)
	c := &Core{o: o, pool: o.Pool, inflight: map[uint64]pendingIO{}, vols: map[ids.ID]*volume{}}
	c.scan = &recovery{images: map[extKey][]imageHeader{}, twins: map[uint64]bool{}, alone: map[uint64]bool{}}
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
	for _, b := range s.supers[2:] {
		if o, derr := decodeSuperblock(b); derr != nil || o != sb {
			c.sbLast = true
		}
	}
	for _, b := range s.supers {
		c.pool.Free(b)
	}
	switch {
	case recognize(c.o.Expect, sb, err) != nil:
		c.openFailed(recognize(c.o.Expect, sb, err))
		return
	case sb.State == DiskFailed:
		c.openFailed(errs.New(errs.Unavailable, "open disk %s: it failed a write or an fdatasync before", sb.Identity.Disk).
			WithHint("its content cannot be trusted; to use the device again wipe and claim it, then `roseau disk replace` the old disk by the new"))
		return
	case c.o.DeviceBytes/BlockBytes*BlockBytes < sb.DeviceBytes:
		c.openFailed(errs.New(errs.Corrupt, "open disk %s: the device has %d bytes, %d when it was formatted", sb.Identity.Disk, c.o.DeviceBytes, sb.DeviceBytes).
			WithHint("a clone on a smaller device, or a partition that was shrunk: give it its size back, or release the disk and let its copies be rebuilt"))
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
		c.byIndex[i] = c.newVolume(*v, i)
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

// takeSlot chooses between the two images of a slot. A slot with two broken ones
// had an extent: the second place of a new slot is written after the first is
// durable.
func (c *Core) takeSlot(slot int, b []byte) {
	size := c.sb.imageBytes()
	info := &c.slots[slot]
	var two [2]imageHeader
	broken := 0
	for i := range int64(2) {
		h, blank, _, err := decodeImage(b[i*size : (i+1)*size])
		switch {
		case blank:
		case err != nil || h.Disk != c.sb.Identity.Disk || h.Slot != uint64(slot) || int64(h.Seq%2) != i:
			broken++
		default:
			two[i] = h
		}
	}
	best, other := two[0], two[1]
	if best.Seq < other.Seq {
		best, other = other, best
	}
	info.gen, info.seq = best.Generation, best.Seq
	if broken == 2 {
		c.report.UnreadableSlots++
		c.clean = append(c.clean, slot)
	}
	if broken == 1 && best.State == imageStateFree {
		c.mend = append(c.mend, slot) // a crash between image and copy; no record will write it again
	}
	if best.State == imageStateHead {
		info.used = true
		key := extKey{best.Volume, best.Extent, best.Object}
		c.scan.alone[best.Slot] = broken == 1
		c.scan.images[key] = append(c.scan.images[key], best)
		other.Seq++
		if other == best {
			c.scan.twins[best.Slot] = true
		}
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
		b.proven = proof[i] > b.h.LSN
		log = append(log, *b)
		at = position{lsn: b.h.end(), chain: b.h.CRC, session: b.h.Session}
	}
	return log, lost, nil, at
}
