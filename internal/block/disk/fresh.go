package disk

import (
	"hash/crc32"
	"slices"

	"roseau/internal/block/wire"
)

// A fresh write goes in place at once, and its record has the checksums only: the
// first write to blocks that are absent, so that nothing is destroyed that
// something else still needs. The batch of its record counts as written when the
// data is written, too; then one fdatasync makes both durable.

// freshDefault is the smallest fresh write in blocks. Smaller ones are better off
// in the log, where many share one write.
const freshDefault = 4

// isFresh reports whether r, which is about to be appended to e, may go in place.
func (c *Core) isFresh(r *rec, e *ext) bool {
	if r.Type != recWrite || c.o.FreshBlocks < 0 || int(r.Count) < c.o.FreshBlocks {
		return false
	}
	if c.o.Mutations.FreshOverPresent && e.slot >= 0 && c.sb.Incompat&incompatFresh != 0 {
		return true
	}
	// A tombstone that recovery may meet in the log could leave the object in
	// another slot than the one that the record names.
	if e.tombPending || e.gone || e.baseUnknown || e.holes || e.tombSeq > c.log.tailSeq {
		return false
	}
	if e.imgSeq != 0 && e.img == nil {
		return false // not worth a read
	}
	first, last := int(r.Block), int(r.Block)+int(r.Count)
	if at, found := e.find(first); found || at < len(e.pend) && e.pend[at].block < last {
		return false
	}
	for b := first; b < last; b++ {
		if c.baseTag(e, b) != (wire.Tag{}) {
			return false
		}
	}
	if c.gatheredRange(e, first, last) {
		return false
	}
	if c.sb.Incompat&incompatFresh == 0 {
		c.wantFresh = true // from the next checkpoint on
		return false
	}
	return true
}

// gatheredRange reports whether a record that waits for a batch changes a block
// of [first, last).
func (c *Core) gatheredRange(e *ext, first, last int) bool {
	for i := 0; e.gathering > 0 && i < len(c.log.gather); i++ {
		o := c.log.gather[i]
		if o.ext != e {
			continue
		}
		switch o.Type {
		case recWrite, recZero:
			if int(o.Block) < last && first < int(o.Block)+int(o.Count) {
				return true
			}
		default:
			return true
		}
	}
	return false
}

// writeFresh starts the write in place of a fresh record of b.
func (c *Core) writeFresh(b *batch, r *rec) {
	r.Slot = uint32(r.ext.slot)
	b.left++
	c.stats.FreshBlocks += uint64(r.Count)
	c.submit(OpWrite, c.dataOffset(r.ext.slot, int(r.Block)), [][]byte{r.data}, b, 0)
}

// freshCheck compares a fresh record of the log with what stands in place.
type freshCheck struct {
	batch int // index in recovery.log
	d     *descriptor
	ok    []bool // one a block
}

// checkFresh reads what the fresh records say that stands in place, of batches
// that are not proved durable; then judgeFresh decides.
func (c *Core) checkFresh() {
	s := c.scan
	for i := range s.log {
		b := &s.log[i]
		for j := range b.recs {
			d := &b.recs[j]
			if !b.proven && d.Type == recWrite && d.Flags == flagFresh && uint64(d.Slot) < c.sb.Slots && int(d.Block)+int(d.Count) <= c.ExtentBlocks() {
				s.fresh = append(s.fresh, freshCheck{batch: i, d: d, ok: make([]bool, d.Count)})
			}
		}
	}
	s.step, s.next = c.judgeFresh, 0 // when the read that brought us here is over
	for range 4 {
		c.readFresh()
	}
}

func (c *Core) readFresh() {
	s := c.scan
	if s.next >= int64(len(s.fresh)) {
		return
	}
	f := &s.fresh[s.next]
	s.next++
	buf := c.pool.Alloc(len(f.ok) * BlockBytes)
	c.scanRead(c.dataOffset(int(f.d.Slot), int(f.d.Block)), buf, func(b []byte) {
		for i := range f.ok {
			f.ok[i] = c.o.Mutations.FreshUnverified || crc32.Checksum(b[i*BlockBytes:(i+1)*BlockBytes], castagnoli) == f.d.CRC[i]
		}
		c.pool.Free(b)
		c.readFresh()
	})
}

type objectKey struct {
	index  uint32
	extent uint64
	object uint32
}

// judgeFresh ends the log before the first batch that was never durable: data of
// its fresh records is missing. The last record of a block is judged: what a later
// one wrote over it in place is no fault, for that one was durable then, and with
// it everything before.
func (c *Core) judgeFresh() {
	s := c.scan
	bad := make([]int, len(s.log)+1) // +1 where a fault begins to count, -1 where it ends
	last := map[objectKey]map[int]int{}
	end := func(k objectKey, block, batch int) {
		if from, ok := last[k][block]; ok {
			bad[from]++
			bad[batch]--
			delete(last[k], block)
		}
	}
	next := 0
	for i := range s.log {
		for j := range s.log[i].recs {
			d := &s.log[i].recs[j]
			if d.Flags&(flagNote|flagUnverified) != 0 {
				continue
			}
			k := objectKey{d.Index, d.Extent, d.Object}
			switch d.Type {
			case recWrite, recZero:
				for b := range int(d.Count) {
					end(k, int(d.Block)+b, i)
				}
			case recSync, recRepair:
				for _, b := range d.Blocks {
					end(k, int(b.Block), i)
				}
			case recTombstone, recFree:
				for b := range last[k] {
					end(k, b, i)
				}
			case recDrop:
				for k, blocks := range last {
					for b := range blocks {
						if k.index == d.Index {
							end(k, b, i)
						}
					}
				}
			}
			if next < len(s.fresh) && s.fresh[next].d == d {
				for b, ok := range s.fresh[next].ok {
					if !ok {
						if last[k] == nil {
							last[k] = map[int]int{}
						}
						last[k][int(d.Block)+b] = i
					}
				}
				next++
			}
		}
	}
	for _, blocks := range last {
		for _, from := range blocks {
			bad[from]++
			bad[len(s.log)]--
		}
	}
	// bad[i] summed up: faults of a log that ends behind batch i.
	keep, sum := 0, 0
	for i := range s.log {
		if sum += bad[i]; sum == 0 {
			keep = i + 1
		}
	}
	if keep < len(s.log) {
		s.tail = append(slices.Clone(s.log[keep:]), s.tail...)
		s.log = s.log[:keep]
		s.end = s.from
		if keep > 0 {
			h := s.log[keep-1].h
			s.end = position{lsn: h.end(), chain: h.CRC, session: h.Session}
		}
	}
	c.replayLog()
}

// reserveSlots keeps the slots that fresh records name for their objects: replay
// gives slots to objects again, and other ones than the engine did.
func (c *Core) reserveSlots() {
	s := c.scan
	s.slots = map[objectKey]int{}
	for i := range s.log {
		for j := range s.log[i].recs {
			d := &s.log[i].recs[j]
			k := objectKey{d.Index, d.Extent, d.Object}
			if _, ok := s.slots[k]; ok || d.Type != recWrite || d.Flags != flagFresh || uint64(d.Slot) >= c.sb.Slots {
				continue
			}
			s.slots[k] = int(d.Slot)
			if info := &c.slots[d.Slot]; !info.used && !info.bad {
				info.used = true
				info.gen++
				c.free--
				s.reserved = append(s.reserved, int(d.Slot))
			}
		}
	}
}

// replaySlot gives e the slot that the log names for it, or any.
func (c *Core) replaySlot(r *rec, e *ext) bool {
	if slot, ok := c.scan.slots[objectKey{r.Index, r.Extent, r.Object}]; ok {
		e.slot = slot
		return true
	}
	e.slot = c.allocSlot()
	return e.slot >= 0
}

// freeReserved gives slots back whose records counted for nothing: their volume
// was dropped.
func (c *Core) freeReserved() {
	taken := map[int]bool{}
	for _, v := range c.allVolumes() {
		for _, e := range c.sortedExts(v) {
			if e.slot >= 0 {
				taken[e.slot] = true
			}
		}
	}
	for _, slot := range c.scan.reserved {
		if !taken[slot] {
			c.slots[slot].used = false
			c.nextSlot = min(c.nextSlot, slot)
		}
	}
}
