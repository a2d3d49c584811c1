package disk

import (
	"cmp"
	"hash/crc32"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// maxReadTries bounds how often a read starts again because its blocks changed
// under it; each time a write was applied meanwhile, so it ends long before.
const maxReadTries = 64

// tableLoad is a read of an extent's tags that several may wait for.
type tableLoad struct {
	e    *ext
	buf  []byte
	seq  uint64
	slot int
	then []func()
}

// loadTags makes e.img present (or e.baseUnknown set), then calls fn; at once
// if nothing has to be read.
func (c *Core) loadTags(e *ext, fn func()) {
	if e.img != nil || e.baseUnknown || e.imgSeq == 0 {
		fn()
		return
	}
	c.stats.TagCacheMisses++
	if e.load != nil && e.load.seq == e.imgSeq && e.load.slot == e.slot {
		e.load.then = append(e.load.then, fn)
		return
	}
	l := &tableLoad{e: e, buf: c.pool.Alloc(int(c.sb.imageBytes())), seq: e.imgSeq, slot: e.slot, then: []func(){fn}}
	e.load = l
	c.submit(OpRead, c.imageOffset(e.slot, e.imgSeq), [][]byte{l.buf}, l, loadNewest)
}

const (
	loadNewest = iota
	loadTwin
)

func (l *tableLoad) ioDone(c *Core, arg int, err error) {
	e := l.e
	valid := false
	if h, _, _, derr := decodeImage(l.buf); err == nil && derr == nil {
		valid = h.Disk == c.sb.Identity.Disk && h.Slot == uint64(l.slot) && h.Seq == l.seq-uint64(arg) &&
			h.Volume == e.vol.Volume && h.Extent == e.extent && h.Object == e.object
	}
	if !valid && arg == loadNewest && e.twin && e.img == nil && e.slot == l.slot && e.imgSeq == l.seq {
		c.submit(OpRead, c.imageOffset(e.slot, l.seq-1), [][]byte{l.buf}, l, loadTwin)
		return
	}
	if e.load == l {
		e.load = nil
	}
	if e.img != nil || e.slot != l.slot || e.imgSeq != l.seq {
		c.pool.Free(l.buf) // a newer image came meanwhile
	} else {
		if valid {
			c.setTags(e, l.buf)
		} else {
			c.pool.Free(l.buf)
			c.lostImage(e)
		}
	}
	for _, fn := range l.then {
		c.loadTags(e, fn)
	}
}

// lostImage notes that the tags of an extent are gone: its blocks cannot be
// verified until they are written again.
func (c *Core) lostImage(e *ext) {
	e.baseUnknown = true
	e.version++
	c.stats.UnreadableBlocks += uint64(c.ExtentBlocks())
	c.markDirty(e)
	if v := e.vol; !v.Damaged && !v.dropped {
		v.Damaged = true
		c.log.gather = append(c.log.gather, c.volumeRecord(v))
	}
}

func (c *Core) setTags(e *ext, img []byte) {
	e.img = img
	c.lruClock++
	e.lru = c.lruClock
	c.imgBytes += len(img)
	if !e.listed {
		e.listed = true
		c.cached = append(c.cached, e)
	}
}

func (c *Core) dropTags(e *ext) {
	if e.img == nil {
		return
	}
	c.imgBytes -= len(e.img)
	c.pool.Free(e.img)
	e.img = nil
	e.lru = 0
}

// evictTables frees the tables used longest ago; half of the cache at most, in
// one pass, so that the cost of finding them is shared by many.
func (c *Core) evictTables() {
	if c.imgBytes <= c.o.TagCacheBytes {
		return
	}
	c.cached = slices.DeleteFunc(c.cached, func(e *ext) bool { e.listed = e.img != nil; return !e.listed })
	slices.SortFunc(c.cached, func(a, b *ext) int {
		return cmp.Compare(a.lru, b.lru)
	})
	n := 0
	for n < len(c.cached) && c.imgBytes > c.o.TagCacheBytes-c.o.TagCacheBytes/8 {
		c.dropTags(c.cached[n])
		c.cached[n].listed = false
		n++
	}
	c.cached = shift(c.cached, n)
}

// tagOf returns the tag of a block in one object; the caller has loaded the tags.
func (c *Core) tagOf(e *ext, block int) wire.Tag {
	if at, ok := e.find(block); ok {
		return e.pend[at].tag
	}
	return c.baseTag(e, block)
}

func (c *Core) baseTag(e *ext, block int) wire.Tag {
	switch {
	case e.tombPending || e.imgSeq == 0 && !e.baseUnknown:
		if e.holes {
			return wire.Hole
		}
		return wire.Tag{}
	case e.baseUnknown:
		return unknownTag
	}
	return tagAt(e.img, e.vol.crc, c.ExtentBlocks(), e.extent, block)
}

// ReadRequest asks for Count blocks from Block of an extent.
type ReadRequest struct {
	Volume ids.ID
	Extent uint64
	Object uint32 // the snapshot to be read, 0 = head; Raw: the object
	Raw    bool   // nothing older shows through
	Block  int
	Count  int
	Buf    []byte // from the pool, Count*BlockBytes; the caller's again at the completion
}

// readOp is a read under way. It looks into the reader's objects from the newest
// on, and leaves those blocks that an object does not have to the next.
type readOp struct {
	token  uint64
	req    ReadRequest
	v      *volume
	layer  *ext   // looked into next
	seen   []look // objects that it took blocks from, or that lack some
	merges uint64 // of the volume when it began
	tries  int
	open   int // blocks that no object had yet
	found  []bool
	tags   []wire.Tag
	bad    []int
	left   int
	failed [][2]int // runs whose I/O failed
	runs   [][2]int // first index, count; by the I/O's argument
	zero   bool
	then   func(Completion) // called in place of a completion

	tagsOnly bool
}

// look is the version of an object when a read looked into it.
type look struct {
	e       *ext
	version uint64
}

// Read reads and verifies blocks. Status Unreadable: Bad lists the blocks; the
// rest of Buf is good. Statuses: OK, Unreadable, BadRequest, DiskFailed.
func (c *Core) Read(token uint64, r ReadRequest) {
	v := c.vols[r.Volume]
	if v == nil || r.Block < 0 || r.Count <= 0 || r.Block+r.Count > c.ExtentBlocks() || len(r.Buf) != r.Count*BlockBytes {
		c.complete(token, wire.BadRequest)
		return
	}
	c.stats.ReadBlocks += uint64(r.Count)
	op := &readOp{token: token, req: r, v: v}
	if op.first() == nil {
		c.done = append(c.done, Completion{Token: token})
		return
	}
	op.start(c)
}

// ReadTags is Read without data: the tags of a whole extent as a reader sees them,
// whatever objects they stand in. snap is the snapshot, 0 the head. Status
// Unreadable: some tags were lost.
func (c *Core) ReadTags(token uint64, volume ids.ID, extent uint64, snap uint32) {
	v := c.vols[volume]
	if v == nil {
		c.complete(token, wire.BadRequest)
		return
	}
	op := &readOp{token: token, v: v, tagsOnly: true, req: ReadRequest{Volume: volume, Extent: extent, Object: snap, Count: c.ExtentBlocks()}}
	if op.first() == nil {
		c.done = append(c.done, Completion{Token: token, Tags: make([]wire.Tag, op.req.Count)})
		return
	}
	op.start(c)
}

// first returns the newest object that the reader sees.
func (op *readOp) first() *ext {
	if op.req.Raw {
		return op.v.object(op.req.Extent, op.req.Object)
	}
	return op.v.chain(op.req.Extent, op.req.Object)
}

// start begins the read on the state of now.
func (op *readOp) start(c *Core) {
	n := op.req.Count
	op.merges, op.layer = op.v.merges, op.first()
	op.left, op.zero, op.open = 1, true, n
	op.tags, op.found = make([]wire.Tag, n), make([]bool, n)
	op.seen, op.bad, op.runs, op.failed = op.seen[:0], nil, op.runs[:0], op.failed[:0]
	op.look(c)
}

// look takes from one object after another what each has of the open blocks.
func (op *readOp) look(c *Core) {
	for e := op.layer; e != nil && op.open > 0; e = op.layer {
		if e.needsLoad() && !op.allPending(e) {
			c.loadTags(e, func() { op.look(c) })
			return
		}
		if op.merges != op.v.merges {
			// An object that was looked into without success may have got what
			// this one had before it went.
			if op.left--; op.left > 0 { // reads under way end first
				op.layer, op.open = nil, -1
				return
			}
			op.again(c)
			return
		}
		if e.img != nil {
			c.lruClock++
			e.lru = c.lruClock
			c.stats.TagCacheHits++
		}
		op.seen = append(op.seen, look{e, e.version})
		for i := 0; i < op.req.Count; i += op.plan(c, e, i) {
		}
		if op.layer = e.older; op.req.Raw {
			op.layer = nil
		}
	}
	for i := 0; op.open > 0 && i < op.req.Count; i++ {
		if !op.found[i] && !op.tagsOnly {
			clear(op.req.Buf[i*BlockBytes : (i+1)*BlockBytes])
		}
	}
	op.part(c)
}

func (op *readOp) again(c *Core) {
	op.tries++
	op.start(c)
}

// allPending reports whether no open block needs the tags of e.
func (op *readOp) allPending(e *ext) bool {
	for i := range op.req.Count {
		if !op.found[i] {
			if _, ok := e.find(op.req.Block + i); !ok {
				return false
			}
		}
	}
	return true
}

// plan serves the open blocks from i on that one action can bring, and returns
// how many blocks it passed.
func (op *readOp) plan(c *Core, e *ext, i int) int {
	if op.found[i] {
		return 1
	}
	block := op.req.Block + i
	if op.tagsOnly {
		if t := c.tagOf(e, block); t != (wire.Tag{}) {
			op.take(i, t)
			if t == unknownTag {
				op.bad = append(op.bad, i)
			}
		}
		return 1
	}
	buf := op.req.Buf[i*BlockBytes : (i+1)*BlockBytes]
	at, pending := e.find(block)
	if !pending {
		return op.planBase(c, e, i)
	}
	p := e.pend[at]
	if p.tag == (wire.Tag{}) {
		return 1
	}
	op.take(i, p.tag)
	if p.pos < 0 {
		clear(buf)
		if p.tag == wire.Lost {
			op.bad = append(op.bad, i)
		}
		return 1
	}
	op.zero = false
	if p.r.data != nil {
		copy(buf, p.r.data[p.pos*BlockBytes:])
		return 1
	}
	n := 1
	for i+n < op.req.Count && at+n < len(e.pend) && !op.found[i+n] {
		q := e.pend[at+n]
		if q.r != p.r || q.block != block+n || q.pos != p.pos+n {
			break
		}
		op.take(i+n, q.tag)
		n++
	}
	off := c.ringOffset(p.r.dataLSN + uint64(p.pos)*BlockBytes)
	if p.r.Flags&flagFresh != 0 {
		off = c.dataOffset(e.slot, block)
	}
	op.submit(c, off, i, n)
	return n
}

func (op *readOp) take(i int, t wire.Tag) {
	op.found[i], op.tags[i] = true, t
	op.open--
}

func (op *readOp) planBase(c *Core, e *ext, i int) int {
	block := op.req.Block + i
	tag := c.baseTag(e, block)
	if tag == (wire.Tag{}) {
		return 1
	}
	op.take(i, tag)
	if !tag.HasData() {
		clear(op.req.Buf[i*BlockBytes : (i+1)*BlockBytes])
		if tag == unknownTag {
			op.bad = append(op.bad, i)
		}
		return 1
	}
	op.zero = false
	n := 1
	for i+n < op.req.Count && !op.found[i+n] {
		if _, pending := e.find(block + n); pending {
			break
		}
		t := c.baseTag(e, block+n)
		if !t.HasData() {
			break
		}
		op.take(i+n, t)
		n++
	}
	op.submit(c, c.dataOffset(e.slot, block), i, n)
	return n
}

func (op *readOp) submit(c *Core, off int64, i, n int) {
	op.left++
	op.runs = append(op.runs, [2]int{i, n})
	c.submit(OpRead, off, [][]byte{op.req.Buf[i*BlockBytes : (i+n)*BlockBytes]}, op, len(op.runs)-1)
}

func (op *readOp) ioDone(c *Core, arg int, err error) {
	if err != nil {
		op.failed = append(op.failed, op.runs[arg])
	}
	op.part(c)
}

// changed reports whether something that the read looked at is not as it was.
func (op *readOp) changed() bool {
	return op.merges != op.v.merges || slices.ContainsFunc(op.seen, func(l look) bool { return l.e.version != l.version })
}

// part ends one part; after the last it verifies.
func (op *readOp) part(c *Core) {
	if op.left--; op.left > 0 {
		return
	}
	if op.open < 0 {
		op.again(c)
		return
	}
	for i, t := range op.tags {
		if !t.HasData() || op.tagsOnly {
			continue
		}
		failed := slices.ContainsFunc(op.failed, func(r [2]int) bool { return i >= r[0] && i < r[0]+r[1] })
		if failed || crc32.Checksum(op.req.Buf[i*BlockBytes:(i+1)*BlockBytes], castagnoli) != t.CRC {
			op.bad = append(op.bad, i)
		}
	}
	if len(op.bad) > 0 && op.changed() && op.tries < maxReadTries {
		op.again(c) // what it read was overwritten meanwhile
		return
	}
	done := Completion{Token: op.token, Tags: op.tags, Bad: op.bad}
	for _, l := range op.seen {
		raise(&done.Mark, l.e.mark)
	}
	if !op.zero {
		done.Data = op.req.Buf
	}
	if len(op.bad) > 0 {
		slices.Sort(op.bad)
		done.Status = wire.Unreadable
		for _, i := range op.bad {
			if op.tags[i] != wire.Lost { // counted when its image was lost, or not lost here
				c.stats.UnreadableBlocks++
			}
		}
	}
	if op.then != nil {
		op.then(done)
		return
	}
	c.done = append(c.done, done)
}

// Tags reads the tags of an object, as a read now would find them; nil if it
// holds nothing. A lost tag is {CRC: 0xffffffff, Stamp: 0}.
func (c *Core) Tags(token uint64, volume ids.ID, extent uint64, object uint32) {
	v := c.vols[volume]
	if v == nil {
		c.complete(token, wire.BadRequest)
		return
	}
	e := v.object(extent, object)
	if e == nil {
		c.complete(token, wire.OK)
		return
	}
	c.loadTags(e, func() {
		c.done = append(c.done, Completion{Token: token, Mark: e.mark, Tags: c.allTags(e)})
	})
}

// allTags returns the tags of an object, or nil if it holds nothing.
func (c *Core) allTags(e *ext) []wire.Tag {
	if len(e.pend) == 0 && !e.baseUnknown && !e.holes && (e.imgSeq == 0 || e.tombPending) {
		return nil
	}
	tags := make([]wire.Tag, c.ExtentBlocks())
	for i := range tags {
		tags[i] = c.tagOf(e, i)
	}
	return tags
}

// startRepair appends a repair if the block's tag is still the expected one in
// the object where the reader finds it: e, or an older one.
func (c *Core) startRepair(r *rec, e *ext, expect wire.Tag) {
	if e == nil {
		c.refuse(r, wire.TagChanged)
		return
	}
	c.loadTags(e, func() {
		block := int(r.Blocks[0].Block)
		tag := c.tagOf(e, block)
		if tag == (wire.Tag{}) && expect != tag && e.older != nil {
			c.startRepair(r, e.older, expect)
			return
		}
		switch {
		case c.dead != nil:
			c.refuse(r, wire.DiskFailed)
		case tag != expect || r.vol.dropped || c.gathered(e, block):
			c.refuse(r, wire.TagChanged)
		case !c.needSlot(r, e, false):
			c.refuse(r, wire.NoSpace)
		default:
			r.Object = e.object
			if e.mark.Less(r.Mark) && e.mark != (repl.Mark{}) {
				r.Mark = e.mark // the reader's extent may be newer than this object
			}
			r.vol.mergeScan = true // one may wait for this repair
			c.enqueue(r, e)
		}
	})
}

// gathered reports whether a record that waits for a batch, newer than what the
// index says, changes a block.
func (c *Core) gathered(e *ext, block int) bool {
	if e.gathering == 0 {
		return false
	}
	for _, o := range c.log.gather {
		if o.ext != e {
			continue
		}
		if o.Type == recTombstone || o.Type == recFree {
			return true
		}
		for i := range o.blocks() {
			if b, _, _ := o.blockAt(i); b == block {
				return true
			}
		}
	}
	return false
}

// Mark returns the newest mark of an extent; zero if there is none.
func (c *Core) Mark(volume ids.ID, extent uint64) (m repl.Mark) {
	if v := c.vols[volume]; v != nil {
		for e := v.exts[extent]; e != nil; e = e.older {
			raise(&m, e.mark)
		}
	}
	return m
}
