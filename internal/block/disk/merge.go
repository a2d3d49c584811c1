package disk

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// mergeChunkBlocks is how much a merge reads and logs at a time.
const mergeChunkBlocks = 64

// mergeState is the disk's merging of objects that no reader tells apart.
type mergeState struct {
	queue []mergeRef // pairs to be looked at
	job   *mergeJob  // one at a time
}

type mergeRef struct {
	v      *volume
	extent uint64
}

// mergeJob moves one object into the next newer one.
//
//	no told snapshot in (older.object, newer.object], all copies in sync,
//	nothing of older above the flush mark
type mergeJob struct {
	v            *volume
	older, newer *ext
	version      uint64 // of older, when its tags were taken
	tags         []wire.Tag
	block        int // next to be looked at
	buf          []byte
}

// permitMerge takes what a CONFIG says of the snapshots.
func (c *Core) permitMerge(v *volume) {
	v.mayMerge = v.Told.Whole && v.Told.Epoch == v.Promise.Epoch
	v.mergeScan = true
	for _, e := range v.exts { // order does not show: each is reset alone
		for ; e != nil; e = e.older {
			e.held = 0
		}
	}
}

// ForbidMerge ends the permission to merge objects of a volume until the next
// CONFIG: a resync of it begins here. A record that was appended before stands.
// VolumeInfo.Untold says so until then.
func (c *Core) ForbidMerge(volume ids.ID) {
	if v := c.vols[volume]; v != nil {
		v.mayMerge, v.heard = false, false
	}
}

// Merge does a piece of the work that deleted snapshots leave, unless one is under
// way; it reports whether there may be more. The caller sets the pace.
func (c *Core) Merge() bool {
	if c.dead != nil || !c.opened {
		return false
	}
	m := &c.merge
	if m.job != nil {
		return true
	}
	if len(m.queue) == 0 {
		c.scanMerges()
	}
	for len(m.queue) > 0 {
		ref := m.queue[0]
		m.queue = m.queue[1:]
		if older, newer := c.mergePair(ref.v, ref.extent); older != nil {
			m.job = &mergeJob{v: ref.v, older: older, newer: newer}
			m.job.begin(c)
			return true
		}
	}
	m.queue = nil
	return false
}

// scanMerges lists the extents that may have something to merge.
func (c *Core) scanMerges() {
	for _, v := range c.byIndex {
		if v == nil || !v.mergeScan || !v.mayMerge || v.chained == 0 || v.dropped {
			continue
		}
		v.mergeScan = false
		first := len(c.merge.queue)
		for extent, e := range v.exts {
			if e.older != nil {
				c.merge.queue = append(c.merge.queue, mergeRef{v, extent})
			}
		}
		slices.SortFunc(c.merge.queue[first:], func(a, b mergeRef) int {
			if a.extent < b.extent {
				return -1
			}
			return 1
		})
	}
}

// mergePair returns two neighbours of an extent that every reader sees as one, the
// lowest pair, or nil.
func (c *Core) mergePair(v *volume, extent uint64) (older, newer *ext) {
	if !v.mayMerge || v.dropped {
		return nil, nil
	}
	for e := v.exts[extent]; e != nil && e.older != nil; e = e.older {
		if c.mergeable(v, e.older, e) {
			older, newer = e.older, e
		}
	}
	return older, newer
}

func (c *Core) mergeable(v *volume, older, newer *ext) bool {
	needed := slices.ContainsFunc(v.Told.Snaps, func(n uint32) bool { return n > older.object && n <= newer.object })
	return (!needed || c.o.Mutations.MergeIgnoresTold) && v.mayMerge && !v.dropped && newer.older == older &&
		older.gathering == 0 && !v.Flush.Less(older.mark) && !older.tombPending && !older.baseUnknown && (older.held == 0 || older.held != mergeHeld(older, newer)) &&
		!newer.baseUnknown && !newer.gone
}

// mergeHeld tells one state of a pair from others: a merge that failed in it would
// fail again.
func mergeHeld(older, newer *ext) uint64 { return older.version + newer.version + 1 }

// begin takes the tags of the older object, then goes on block by block.
func (j *mergeJob) begin(c *Core) {
	if !c.mergeable(j.v, j.older, j.newer) {
		j.end(c)
		return
	}
	c.loadTags(j.older, func() {
		j.version, j.block = j.older.version, 0
		j.tags = c.allTags(j.older)
		if c.o.Mutations.FreeBeforeCopy {
			j.free(c)
			return
		}
		j.next(c)
	})
}

// next copies the next stretch that the newer object lacks; behind the last one
// the older object is needless.
func (j *mergeJob) next(c *Core) {
	if c.dead != nil {
		j.end(c)
		return
	}
	c.loadTags(j.newer, func() {
		if !c.mergeable(j.v, j.older, j.newer) || j.version != j.older.version {
			j.end(c)
			return
		}
		blocks := j.lacking(c)
		if len(blocks) == 0 {
			if j.block < len(j.tags) {
				j.next(c)
			} else {
				j.free(c)
			}
			return
		}
		if !slices.ContainsFunc(blocks, func(b wire.SyncBlock) bool { return b.Tag.HasData() }) {
			j.log(c, blocks, nil)
			return
		}
		first, count := int(blocks[0].Block), int(blocks[len(blocks)-1].Block-blocks[0].Block)+1
		j.buf = c.pool.Alloc(count * BlockBytes)
		op := &readOp{v: j.v, req: ReadRequest{
			Volume: j.v.Volume, Extent: j.older.extent, Object: j.older.object, Raw: true, Block: first, Count: count, Buf: j.buf,
		}}
		op.then = func(done Completion) { j.read(c, blocks, first, done) }
		op.start(c)
	})
}

// lacking returns those of the next blocks that must be copied, and passes them.
func (j *mergeJob) lacking(c *Core) (blocks []wire.SyncBlock) {
	end := min(j.block+mergeChunkBlocks, len(j.tags))
	for ; j.block < end; j.block++ {
		t := j.tags[j.block]
		if t == (wire.Tag{}) || t == wire.Hole && j.older.older == nil {
			continue // nothing, or zeros below which nothing is
		}
		if j.absent(c, j.block) {
			blocks = append(blocks, wire.SyncBlock{Block: uint16(j.block), Tag: t})
		}
	}
	return blocks
}

// absent reports whether the newer object has nothing of a block, neither in its
// tags nor in a record that waits for a batch. Its tags are loaded.
func (j *mergeJob) absent(c *Core, block int) bool {
	return c.tagOf(j.newer, block) == (wire.Tag{}) && !c.gathered(j.newer, block)
}

// read has the data of a stretch; meanwhile live writes may have come.
func (j *mergeJob) read(c *Core, blocks []wire.SyncBlock, first int, done Completion) {
	if done.Status != wire.OK && (done.Status != wire.Unreadable || j.needsOneOf(blocks, first, done.Bad)) {
		j.older.held = mergeHeld(j.older, j.newer) // a repair must come first, or a write that hides it
		j.end(c)
		return
	}
	c.loadTags(j.newer, func() {
		if !c.mergeable(j.v, j.older, j.newer) || j.version != j.older.version {
			j.end(c)
			return
		}
		var keep []wire.SyncBlock
		n := 0
		for _, b := range blocks {
			if j.absent(c, int(b.Block)) {
				keep = append(keep, b)
				if b.Tag.HasData() {
					n++
				}
			}
		}
		if len(keep) == 0 {
			j.release(c)
			j.next(c)
			return
		}
		var data []byte
		if n > 0 {
			data = c.pool.Alloc(n * BlockBytes)
		}
		at := 0
		for _, b := range keep {
			if b.Tag.HasData() {
				copy(data[at:at+BlockBytes], j.buf[(int(b.Block)-first)*BlockBytes:])
				at += BlockBytes
			}
		}
		j.log(c, keep, data)
	})
}

// needsOneOf reports whether a block that cannot be read is one of those that are to
// be copied. Others of the stretch are hidden by the newer object: nobody reads
// them, so nobody would ever repair them.
func (j *mergeJob) needsOneOf(blocks []wire.SyncBlock, first int, bad []int) bool {
	return slices.ContainsFunc(blocks, func(b wire.SyncBlock) bool {
		return b.Tag.HasData() && slices.Contains(bad, int(b.Block)-first)
	})
}

// log appends blocks of the older object to the newer one, under the older one's
// mark: nothing of it is news to anybody.
func (j *mergeJob) log(c *Core, blocks []wire.SyncBlock, data []byte) {
	j.release(c)
	r := &rec{vol: j.v, data: data, answer: true}
	r.Type, r.Extent, r.Object, r.Mark, r.Blocks = recSync, j.newer.extent, j.newer.object, j.older.mark, blocks
	r.then = func(st wire.Status) {
		if st != wire.OK {
			j.end(c)
			return
		}
		j.next(c)
	}
	if !c.needSlot(r, j.newer, false) {
		c.refuse(r, wire.NoSpace)
		return
	}
	c.stats.MergedBlocks += uint64(len(blocks))
	c.enqueue(r, j.newer)
}

// free logs that the older object is gone. The records before it in the log have
// what readers need.
func (j *mergeJob) free(c *Core) {
	r := &rec{vol: j.v, answer: true}
	r.Type, r.Extent, r.Object, r.Mark = recFree, j.older.extent, j.older.object, j.older.mark
	r.then = func(wire.Status) {
		if j.v.exts[j.older.extent] != nil && !j.v.dropped {
			c.merge.queue = append(c.merge.queue, mergeRef{j.v, j.older.extent}) // the next pair
		}
		j.end(c)
	}
	c.enqueue(r, j.older)
}

func (j *mergeJob) release(c *Core) {
	if j.buf != nil {
		c.pool.Free(j.buf)
		j.buf = nil
	}
}

func (j *mergeJob) end(c *Core) {
	j.release(c)
	j.v.mergeScan = true // what is left is found again
	c.merge.job = nil
}

// Merging reports whether a merge of two objects of a volume is under way.
func (c *Core) Merging(volume ids.ID) bool {
	return c.merge.job != nil && c.merge.job.v == c.vols[volume]
}

// MergeLeft reports whether extents of a volume wait for a merge that nothing
// but time keeps back, or for one that was not permitted yet.
func (c *Core) MergeLeft(volume ids.ID) bool {
	v := c.vols[volume]
	if v == nil || v.chained == 0 {
		return false
	}
	for _, e := range v.exts {
		for ; e != nil && e.older != nil; e = e.older {
			if !slices.ContainsFunc(v.Told.Snaps, func(n uint32) bool { return n > e.older.object && n <= e.object }) {
				return true
			}
		}
	}
	return false
}

// MergeStuck reports whether extents of a volume wait for a merge that only a
// writer's CONFIG, or its flush mark, can let go on: it has been so since the last
// writer left, or since this process started.
func (c *Core) MergeStuck(volume ids.ID) bool {
	v := c.vols[volume]
	if v == nil || v.chained == 0 || v.dropped {
		return false
	}
	for _, e := range v.exts {
		for ; e != nil && e.older != nil; e = e.older {
			needed := slices.ContainsFunc(v.Told.Snaps, func(n uint32) bool { return n > e.older.object && n <= e.object })
			if !needed && (!v.mayMerge || v.Flush.Less(e.older.mark)) {
				return true
			}
		}
	}
	return false
}
