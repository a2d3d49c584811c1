package replica

import (
	"roseau/internal/base/clock"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// liveSet is the set of (extent, object, block) that live writes have changed
// during a sync session: whatever the source sends of them is older [S19].
type liveSet struct {
	objects map[objectKey]*[repl.ExtentBlocks / 64]uint64
}

type objectKey struct {
	extent uint64
	object uint32
}

func (l *liveSet) has(k objectKey, block int) bool {
	bits := l.objects[k]
	return bits != nil && bits[block/64]&(1<<(block%64)) != 0
}

// wrote notes a live write while a sync session is open.
func (h *handle) wrote(extent uint64, object uint32, block, count int) {
	if len(h.slot.damage) > 0 {
		h.slot.undamaged(shown{extent, 0}, block, count)
	}
	if h.live == nil {
		return
	}
	k := objectKey{extent, object}
	bits := h.live.objects[k]
	if bits == nil {
		bits = new([repl.ExtentBlocks / 64]uint64)
		h.live.objects[k] = bits
	}
	for b := block; b < block+count; b++ {
		bits[b/64] |= 1 << (b % 64)
	}
}

// syncBegin opens a session. Begun again under the same handle it keeps its set:
// no live write was missed in between, and each is newer than any sync data.
func (c *Core) syncBegin(now clock.Instant, cn *conn, m *wire.SyncBegin) {
	h, st, _ := c.valid(cn, m.Handle)
	if h != nil && h.live == nil {
		h.live = &liveSet{objects: map[objectKey]*[repl.ExtentBlocks / 64]uint64{}}
	}
	if h != nil {
		hidden := !m.Partial && c.hideSnapshots(now, cn, h, m.ReqID)
		// The tables that the writer is about to compare must not change by
		// themselves. What was hidden is there nevertheless, so from here on the copy
		// counts as untold: it comes after the record that hides.
		h.slot.disk.d.ForbidMerge(h.slot.volume)
		if hidden {
			return
		}
	}
	c.send(cn.id, &wire.SimpleAck{ReqID: m.ReqID, Status: st})
}

func (c *Core) syncWrite(now clock.Instant, cn *conn, m *wire.SyncWrite) {
	h, st, promised := c.valid(cn, m.Handle)
	if st == wire.OK && (h.live == nil || !syncValid(m, h.slot.disk.d.ExtentBlocks())) {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.free(m.Data)
		c.refuse(cn, m.ReqID, m.Mark, st, promised)
		return
	}
	if _, live := h.live.objects[objectKey{m.Extent, m.Object}]; m.Tombstone && !live && m.Object == 0 {
		// A tombstone here, too: who joins from this copy must hear of it [I12]. One
		// of an object above 0 would be holes that hide older objects.
		c.append(now, cn, h, m.ReqID, disk.Record{Kind: disk.KindSyncTombstone, Extent: m.Extent, Object: m.Object, Mark: m.Mark})
		return
	}
	if m.Tombstone {
		// The object's absence is so many absent blocks: it never wipes a live one.
		m.Blocks = m.Blocks[:0]
		for b := range h.slot.disk.d.ExtentBlocks() {
			m.Blocks = append(m.Blocks, wire.SyncBlock{Block: uint16(b)})
		}
	}
	blocks, data := c.withoutLive(h, m)
	if len(blocks) == 0 {
		c.refuse(cn, m.ReqID, m.Mark, wire.OK, repl.Promise{})
		return
	}
	for _, b := range blocks {
		if b.Tag == wire.Lost && m.Object == 0 {
			h.slot.addDamage(shown{m.Extent, 0}, int(b.Block), b.Tag) // healed like any, once in sync
		}
	}
	c.append(now, cn, h, m.ReqID, disk.Record{
		Kind: disk.KindSync, Extent: m.Extent, Object: m.Object, Mark: m.Mark, Blocks: blocks, Data: data,
	})
}

// syncValid checks the blocks against their data.
func syncValid(m *wire.SyncWrite, extentBlocks int) bool {
	data := m.Data
	for _, b := range m.Blocks {
		if int(b.Block) >= extentBlocks {
			return false
		}
		if !b.Tag.HasData() {
			continue
		}
		if len(data) < repl.BlockBytes || wire.Checksum(data[:repl.BlockBytes]) != b.Tag.CRC {
			return false
		}
		data = data[repl.BlockBytes:]
	}
	return len(data) == 0 && !(m.Tombstone && m.Data != nil)
}

// withoutLive returns the blocks of m, and their data in memory of the pool,
// that no live write of the session has changed.
func (c *Core) withoutLive(h *handle, m *wire.SyncWrite) ([]wire.SyncBlock, []byte) {
	k := objectKey{m.Extent, m.Object}
	if c.o.Mutations.LiveSetByBlock { // the newest object that a live write changed stands for all
		for o := range h.live.objects {
			if o.extent == k.extent {
				k.object = max(k.object, o.object)
			}
		}
	}
	mut := &c.o.Mutations
	if h.live.objects[k] == nil || mut.NoLiveSet && !m.Tombstone || mut.AbsenceWipesLive && m.Tombstone {
		return m.Blocks, m.Data
	}
	var keep []wire.SyncBlock
	var parts [][]byte
	data := m.Data
	for _, b := range m.Blocks {
		var part []byte
		if b.Tag.HasData() {
			part, data = data[:repl.BlockBytes], data[repl.BlockBytes:]
		}
		if h.live.has(k, int(b.Block)) {
			continue
		}
		keep = append(keep, b)
		if part != nil {
			parts = append(parts, part)
		}
	}
	if len(keep) == len(m.Blocks) {
		return m.Blocks, m.Data
	}
	var out []byte
	if len(parts) > 0 {
		out = c.o.Pool.Alloc(len(parts) * repl.BlockBytes)
		for i, p := range parts {
			copy(out[i*repl.BlockBytes:], p)
		}
	}
	c.free(m.Data)
	return keep, out
}

// syncEnd makes everything so far durable, and the copy warm and whole.
func (c *Core) syncEnd(now clock.Instant, cn *conn, m *wire.SyncEnd) {
	h, st, _ := c.valid(cn, m.Handle)
	if st == wire.OK && h.live == nil {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.send(cn.id, &wire.SimpleAck{ReqID: m.ReqID, Status: st})
		return
	}
	h.live = nil
	c.control(now, cn, h, pendSimple, m.ReqID, disk.Control{Kind: disk.ControlSyncDone, Boot: h.slot.disk.boot})
}

// listBytes is where a list is cut into several messages.
const listBytes = 256 << 10

func (c *Core) window(_ clock.Instant, cn *conn, m *wire.WindowReq) {
	h, st, _ := c.valid(cn, m.Handle)
	if st != wire.OK {
		c.send(cn.id, &wire.Window{ReqID: m.ReqID, Status: st, Last: true})
		return
	}
	entries := h.slot.disk.d.Window(h.slot.volume, m.From)
	for {
		n, bytes := 0, 0
		for n < len(entries) && bytes < listBytes {
			bytes += wire.WindowEntryBytes(&entries[n])
			n++
		}
		c.send(cn.id, &wire.Window{ReqID: m.ReqID, Last: n == len(entries), Entries: entries[:n:n]})
		if entries = entries[n:]; len(entries) == 0 {
			return
		}
	}
}

func (c *Core) extList(_ clock.Instant, cn *conn, m *wire.ExtListReq) {
	h, st, _ := c.valid(cn, m.Handle)
	if st != wire.OK {
		c.send(cn.id, &wire.ExtList{ReqID: m.ReqID, Status: st, Last: true})
		return
	}
	entries := h.slot.disk.d.Objects(h.slot.volume, m.From)
	for {
		n := min(len(entries), listBytes/wire.ExtEntryBytes)
		c.send(cn.id, &wire.ExtList{ReqID: m.ReqID, Last: n == len(entries), Entries: entries[:n:n]})
		if entries = entries[n:]; len(entries) == 0 {
			return
		}
	}
}

func (c *Core) extTags(now clock.Instant, cn *conn, m *wire.ExtTagsReq) {
	h, st, _ := c.valid(cn, m.Handle)
	if st != wire.OK {
		c.send(cn.id, &wire.ExtTags{ReqID: m.ReqID, Status: st})
		return
	}
	d := h.slot.disk
	token := c.pending.add(pending{kind: pendTags, conn: cn.id, reqID: m.ReqID, disk: d, slot: h.slot})
	if m.Resolved {
		d.d.ReadTags(token, h.slot.volume, m.Extent, m.Object)
	} else {
		d.d.Tags(token, h.slot.volume, m.Extent, m.Object)
	}
	d.active(now)
}
