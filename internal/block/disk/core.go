package disk

import (
	"cmp"
	"fmt"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// rec is a record in memory: from Append until it is applied and below the
// flush mark.
type rec struct {
	descriptor
	vol      *volume
	ext      *ext
	data     []byte    // payload from the pool; nil = in the log only, or none
	dataLSN  uint64    // where the payload starts in the log
	crc1     [1]uint32 // memory of CRC for one block
	lsn      uint64    // of the batch that holds it, or its newest note
	seq      uint64    // order in the log; 0 = not in a batch yet
	refs     int       // blocks of the pending index that point here
	pins     int       // writes in place that use data
	inWindow bool

	token   uint64
	answer  bool // there is a caller to answer
	durable bool // answer after an fdatasync only
	upto    repl.Mark
	cached  bool              // data is counted in dataBytes
	then    func(wire.Status) // called in place of an answer to token
}

// blockAt returns the i-th block that the record changes, its tag, and its
// position in the payload (-1: it reads as zeros).
func (r *rec) blockAt(i int) (block int, tag wire.Tag, pos int) {
	switch r.Type {
	case recWrite:
		return int(r.Block) + i, wire.Tag{CRC: r.CRC[i], Stamp: Stamp(r.Mark)}, i
	case recSync, recRepair:
		b := r.Blocks[i]
		if !b.Tag.HasData() {
			return int(b.Block), b.Tag, -1
		}
		for _, o := range r.Blocks[:i] {
			if o.Tag.HasData() {
				pos++
			}
		}
		return int(b.Block), b.Tag, pos
	}
	if r.Object > 0 && !r.vol.mut.ZeroAboveIsAbsent {
		return int(r.Block) + i, wire.Hole, -1
	}
	return int(r.Block) + i, wire.Tag{}, -1
}

func (r *rec) blocks() int {
	if r.Type == recSync || r.Type == recRepair {
		return len(r.Blocks)
	}
	if r.Type == recWrite || r.Type == recZero {
		return int(r.Count)
	}
	return 0
}

// pendBlock is the newest logged version of a block that is not applied yet.
type pendBlock struct {
	block int
	r     *rec
	tag   wire.Tag
	pos   int // block in the payload; -1 = zeros
}

// ext is an object in the directory: what writes of one snapshot number left in
// one extent.
type ext struct {
	vol    *volume
	extent uint64
	object uint32
	older  *ext // next object of the extent, by falling number
	slot   int  // -1: none
	mark   repl.Mark
	order  repl.Mark // newest WRITE, ZERO or TOMBSTONE appended
	nospc  repl.Mark // refused for lack of space: newer ones wait for it

	formed    repl.Mark // newest mark in the log
	formedSeq uint64
	imgMark   repl.Mark // mark of the newest image
	twin      bool      // the image of imgSeq-1 says the same
	imgSeq    uint64    // seq of the newest image written; 0 = none of this extent
	durSeq    uint64    // seq of the newest image that is surely durable

	pend        []pendBlock // sorted by block
	gathering   int         // records appended, not yet in a batch
	baseUnknown bool        // the image was lost: blocks outside pend cannot be verified
	tombPending bool        // a tombstone is not applied yet: the image counts for nothing
	tombSeq     uint64
	tombMark    repl.Mark
	tombLSN     uint64 // of the newest tombstone record or note
	tomb        bool   // no data: the object is a tombstone
	holes       bool   // what lies under pend is holes: a tombstone that no image has yet
	inTombs     bool   // in volume.tombs
	gone        bool   // FREE was logged: away as soon as its slot is
	held        uint64 // a block that a merge needs cannot be read: see mergeHeld; 0: none
	dirty       bool   // in Core.dirty
	rewrite     bool   // an image at rest is not good: the next checkpoint writes both
	version     uint64 // +1 at each change that a reader must notice

	img    []byte // cached image (tags); nil = not cached
	lru    uint64 // last use
	listed bool   // in Core.cached
	load   *tableLoad

	claim uint64 // recovery: newest image that a log record says was durable
}

func (e *ext) find(block int) (int, bool) {
	return slices.BinarySearchFunc(e.pend, block, func(p pendBlock, b int) int { return cmp.Compare(p.block, b) })
}

// volume is a volume in memory.
type volume struct {
	volumeEntry
	Max        repl.Mark // newest record appended; recovery finds it in images, log and marks
	index      int
	crc        uint32
	exts       map[uint64]*ext // the newest object of each extent
	chained    int             // extents with more than one object
	merges     uint64          // +1 when an object goes: a read through a chain looks again
	mayMerge   bool            // the writer says that all copies are in sync
	heard      bool            // not VolumeInfo.Untold
	mut        *Mutations      // of the core
	mergeScan  bool            // extents are to be looked through for what can be merged
	window     []*rec          // records above Flush, in log order
	tombs      []*ext
	tombSeq    uint64 // newest TOMBSTONE or FREE in the log
	marksDirty bool   // Durable, Flush or TombForget changed since they were logged
	dropped    bool
	dropSeq    uint64
	slots      int
	unverified int
}

// slotInfo is what must be remembered of a slot, used or free.
type slotInfo struct {
	gen, seq uint64
	used     bool
	bad      bool // both images are lost: not to be used
}

// handler is what waits for an I/O action.
type handler interface {
	ioDone(c *Core, arg int, err error)
}

type pendingIO struct {
	h   handler
	arg int
}

// Core is the engine of one disk.
type Core struct {
	o      Options
	pool   Pool
	sb     Superblock
	sbLast bool // copies 2 and 3 are not good: they are to be written first
	opened bool
	report Recovery
	err    error // of Open
	dead   error
	scan   *recovery // until opened

	nextIO   uint64
	inflight map[uint64]pendingIO
	io       []IO
	done     []Completion

	vols     map[ids.ID]*volume
	byIndex  []*volume
	tableSeq uint64
	tableNew bool // the table changed since it was written
	slots    []slotInfo
	free     int // free slots
	limit    int // slots that guests may use; 0: all
	nextSlot int // first slot that may be free

	log     logState
	batches []*batch // to be used again
	recs    []rec    // to be cut from, see newRecord
	ck      *checkpoint
	up      upgrade
	// idleAgain: Idle came while a checkpoint ran; another follows.
	idleAgain bool
	wantFresh bool // a write could have gone in place: the next superblock allows it
	merge     mergeState
	dirty     []*ext
	clean     []int // slots whose images are lost: to be marked free
	mend      []int // free slots with one broken image: to be marked free again

	dataBytes int    // payload kept in memory
	dataFIFO  []*rec // in log order; eviction from the front
	imgBytes  int
	lruClock  uint64
	cached    []*ext
	scratch   []byte
	stats     Stats
}

// Ready moves what is to be done into r (its slices are reused). Call it after
// every call of another method, until both slices are empty.
func (c *Core) Ready(r *Ready) {
	if c.opened && c.dead == nil {
		c.formBatches()
		c.notesFormed()
		c.evict()
	}
	if c.opened || c.log.opening {
		c.maybeSync()
	}
	r.IO = append(r.IO[:0], c.io...)
	r.Done = append(r.Done[:0], c.done...)
	clear(c.io)
	clear(c.done)
	c.io, c.done = c.io[:0], c.done[:0]
}

// Done reports that an action ended. A read's Bufs are filled if err is nil.
func (c *Core) Done(id uint64, err error) {
	p, ok := c.inflight[id]
	if !ok {
		assert(false, "action %d ended that was not under way", id)
	}
	delete(c.inflight, id)
	p.h.ioDone(c, p.arg, err)
}

// Dead returns the error that ended the disk, or nil.
func (c *Core) Dead() error { return c.dead }

// Identity returns whose disk it is; valid after Opened.
func (c *Core) Identity() Identity { return c.sb.Identity }

// ExtentBlocks returns the blocks of an extent on this disk.
func (c *Core) ExtentBlocks() int { return int(c.sb.ExtentBlocks) }

// MaxRecordBlocks returns the largest Count of a Record: a quarter of the log,
// at most an extent.
func (c *Core) MaxRecordBlocks() int {
	return min(int(c.sb.ExtentBlocks), int(c.sb.WALBytes/4/BlockBytes)-8)
}

func (c *Core) submit(op Op, off int64, bufs [][]byte, h handler, arg int) {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	c.nextIO++
	c.inflight[c.nextIO] = pendingIO{h, arg}
	_, later := h.(*apply)
	c.io = append(c.io, IO{ID: c.nextIO, Op: op, Offset: off, Bufs: bufs, Length: n, Later: later})
}

func (c *Core) complete(token uint64, s wire.Status) {
	c.done = append(c.done, Completion{Token: token, Status: s})
}

// answer completes a record once.
func (c *Core) answer(r *rec, s wire.Status) {
	switch {
	case !r.answer:
	case r.then != nil:
		r.answer = false
		r.then(s)
	default:
		r.answer = false
		c.complete(r.token, s)
	}
}

// fail ends the disk: a write or an fdatasync failed, so nothing that is not
// durable yet can be promised any more. Everything under way is answered.
func (c *Core) fail(err error) {
	if c.dead != nil {
		return
	}
	c.dead = err
	for _, b := range c.log.flying {
		for _, r := range b.recs {
			c.answer(r, wire.DiskFailed)
		}
	}
	for _, r := range c.log.gather {
		c.answer(r, wire.DiskFailed)
	}
	for _, list := range [][]syncWaiter{c.log.waiting, c.log.syncing} {
		for _, w := range list {
			if w.r != nil {
				c.answer(w.r, wire.DiskFailed)
			}
		}
	}
	c.log.gather, c.log.waiting, c.log.syncing = nil, nil, nil
	c.failUpgrade()
	if !c.opened {
		c.err = err
		return
	}
	// Best effort: a later Open should not take the disk for a good one.
	c.sb.State = DiskFailed
	c.sb.Seq++
	buf := alignedBuf(superblockBytes)
	c.sb.encode(buf)
	for _, off := range copyOffsets(c.sb.DeviceBytes) {
		c.submit(OpWrite, off, [][]byte{buf}, ignoreIO{}, 0)
	}
	c.submit(OpSync, 0, nil, ignoreIO{}, 0)
}

type ignoreIO struct{}

func (ignoreIO) ioDone(*Core, int, error) {}

// probe is a write of the scratch block.
type probe struct{ token uint64 }

func (p probe) ioDone(c *Core, _ int, err error) {
	if err != nil {
		c.fail(fmt.Errorf("write probe: %w", err))
	}
	if c.dead != nil {
		c.complete(p.token, wire.DiskFailed)
		return
	}
	c.complete(p.token, wire.OK)
}

// Probe writes a scratch block, to see that the device answers.
func (c *Core) Probe(token uint64) {
	if c.dead != nil {
		c.complete(token, wire.DiskFailed)
		return
	}
	if c.scratch == nil {
		c.scratch = alignedBuf(BlockBytes)
	}
	c.submit(OpWrite, scratchOffset, [][]byte{c.scratch}, probe{token}, 0)
}

// allocSlot takes the lowest free slot, or returns -1.
func (c *Core) allocSlot() int {
	if c.free == 0 {
		return -1
	}
	for i := c.nextSlot; i < len(c.slots); i++ {
		if s := &c.slots[i]; !s.used && !s.bad {
			s.used = true
			s.gen++
			c.free--
			c.nextSlot = i + 1
			return i
		}
	}
	assert(false, "%d free slots, none found", c.free)
	return -1
}

func (c *Core) freeSlot(i int) {
	assert(c.slots[i].used, "slot %d freed twice", i)
	if c.o.Cells != nil && !c.o.Mutations.FreedUnseen {
		c.o.Cells.Freed(uint64(i))
	}
	c.slots[i].used = false
	c.free++
	c.nextSlot = min(c.nextSlot, i)
}

func (c *Core) markDirty(e *ext) {
	if !e.dirty {
		e.dirty = true
		c.dirty = append(c.dirty, e)
	}
}

func (c *Core) imageOffset(slot int, seq uint64) int64 {
	return c.sb.MetaOffset + (int64(slot)*2+int64(seq%2))*c.sb.imageBytes()
}

func (c *Core) dataOffset(slot, block int) int64 {
	return c.sb.DataOffset + int64(slot)*c.sb.slotBytes() + int64(block)*BlockBytes
}

// ringOffset returns where a log position is on the device.
func (c *Core) ringOffset(lsn uint64) int64 {
	return c.sb.WALOffset + int64(lsn%uint64(c.sb.WALBytes))
}
