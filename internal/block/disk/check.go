package disk

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// The checks of a scrub look at what lies at rest although memory has it: rot
// there would show only at the next start. They answer Busy while a checkpoint
// runs, for then both are on the move.

// imageCheck reads the two images of an object of an extent.
type imageCheck struct {
	token uint64
	e     *ext
	slot  int
	seq   uint64
	bufs  [2][]byte
	good  [2]bool
	left  int
}

// CheckImages verifies both images of an object of an extent on the device. Those that are
// not good are written again by the next checkpoint: Completion.Bad has their
// numbers. If both are lost and the tags are not in memory either, the blocks
// are unknown from then on, as a read finds. Statuses: OK, Busy, BadRequest.
func (c *Core) CheckImages(token uint64, volume ids.ID, extent uint64, object uint32) {
	v := c.vols[volume]
	if v == nil {
		c.complete(token, wire.BadRequest)
		return
	}
	e := v.object(extent, object)
	switch {
	case e == nil || e.slot < 0 || e.imgSeq == 0 || e.baseUnknown || e.tombPending:
		c.complete(token, wire.OK) // nothing at rest that counts
		return
	case c.ck != nil:
		c.complete(token, wire.Busy)
		return
	}
	k := &imageCheck{token: token, e: e, slot: e.slot, seq: e.imgSeq, left: 2}
	for i := range k.bufs {
		k.bufs[i] = c.pool.Alloc(int(c.sb.imageBytes()))
		c.submit(OpRead, c.imageOffset(e.slot, k.seq-uint64(i)), [][]byte{k.bufs[i]}, k, i)
	}
}

func (k *imageCheck) ioDone(c *Core, i int, err error) {
	if err == nil {
		h, blank, _, derr := decodeImage(k.bufs[i])
		k.good[i] = derr == nil && !blank && h.Disk == c.sb.Identity.Disk && h.Slot == uint64(k.slot) &&
			h.Seq == k.seq-uint64(i) && h.Volume == k.e.vol.Volume && h.Extent == k.e.extent && h.Object == k.e.object
	}
	if k.left--; k.left > 0 {
		return
	}
	for _, b := range k.bufs {
		c.pool.Free(b)
	}
	e := k.e
	if e.slot != k.slot || e.imgSeq != k.seq || e.tombPending || c.ck != nil {
		c.complete(k.token, wire.Busy)
		return
	}
	done := Completion{Token: k.token}
	for i, good := range k.good {
		if !good {
			done.Bad = append(done.Bad, i)
		}
	}
	if len(done.Bad) == 0 {
		c.done = append(c.done, done)
		return
	}
	// One without a twin is as good as lost: the other may rot next.
	c.stats.BadMetadata += uint64(len(done.Bad))
	e.twin = e.twin && k.good[1]
	e.rewrite = true
	c.markDirty(e)
	if k.good[0] || k.good[1] {
		c.done = append(c.done, done)
		return
	}
	c.loadTags(e, func() { c.done = append(c.done, done) })
}

// metaCheck reads the superblocks and the volume table.
type metaCheck struct {
	token uint64
	seq   uint64
	table uint64
	bufs  [5][]byte
	bad   []int
	left  int
}

// metaTable is the number of the volume table in Completion.Bad of CheckMeta.
const metaTable = 4

// CheckMeta verifies the four superblocks (0 to 3) and the volume table (4) on
// the device, and starts a checkpoint, which writes again what is not good:
// Completion.Bad. The log is not read: after the checkpoint it holds no data that
// is not in place. Statuses: OK, Busy, DiskFailed.
func (c *Core) CheckMeta(token uint64) {
	switch {
	case c.dead != nil:
		c.complete(token, wire.DiskFailed)
		return
	case c.ck != nil:
		c.complete(token, wire.Busy)
		return
	}
	k := &metaCheck{token: token, seq: c.sb.Seq, table: c.tableSeq, left: 1}
	for i, off := range copyOffsets(c.sb.DeviceBytes) {
		k.read(c, i, off, superblockBytes)
	}
	if k.table != 0 {
		k.read(c, metaTable, c.sb.TableOffset+int64(k.table%2)*c.sb.TableBytes, c.sb.TableBytes)
	}
	k.ioDone(c, -1, nil)
}

func (k *metaCheck) read(c *Core, i int, off, n int64) {
	k.bufs[i] = c.pool.Alloc(int(n))
	k.left++
	c.submit(OpRead, off, [][]byte{k.bufs[i]}, k, i)
}

func (k *metaCheck) ioDone(c *Core, i int, err error) {
	if i >= 0 && !k.good(c, i, err) {
		k.bad = append(k.bad, i)
	}
	if k.left--; k.left > 0 {
		return
	}
	for _, b := range k.bufs {
		if b != nil {
			c.pool.Free(b)
		}
	}
	switch {
	case c.dead != nil:
		c.complete(k.token, wire.DiskFailed)
		return
	case c.ck != nil || c.sb.Seq != k.seq || c.tableSeq != k.table:
		c.complete(k.token, wire.Busy)
		return
	}
	for _, i := range k.bad {
		c.tableNew = c.tableNew || i == metaTable
	}
	c.stats.BadMetadata += uint64(len(k.bad))
	c.startCheckpoint()
	c.done = append(c.done, Completion{Token: k.token, Bad: k.bad})
}

func (k *metaCheck) good(c *Core, i int, err error) bool {
	if err != nil {
		return false
	}
	if i == metaTable {
		t, err := decodeTable(c.sb.Identity.Disk, k.bufs[i])
		return err == nil && t.Seq == k.table
	}
	s, err := decodeSuperblock(k.bufs[i])
	return err == nil && s.Seq == k.seq && s.Identity == c.sb.Identity
}

// Checkpoint starts one unless one runs: what CheckImages found is written again
// by it.
func (c *Core) Checkpoint() { c.startCheckpoint() }
