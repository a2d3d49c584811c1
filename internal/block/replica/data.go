package replica

import (
	"roseau/internal/base/clock"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// refuse answers a request that Ack answers.
func (c *Core) refuse(cn *conn, reqID uint64, m repl.Mark, st wire.Status, promised repl.Promise) {
	a := wire.NewAck()
	a.ReqID, a.Mark, a.Status, a.Promised = reqID, m, st, promised
	c.send(cn.id, a)
}

// writer is the right under which h appends.
func (h *handle) writer() disk.Writer {
	return disk.Writer{Epoch: h.promise.Epoch, Inc: h.promise.Inc}
}

// place splits a byte range of the volume, which lies in one extent.
func (h *handle) place(offset, length int64) (extent uint64, block, count int) {
	extentBytes := int64(h.slot.disk.d.ExtentBlocks()) * repl.BlockBytes
	return uint64(offset / extentBytes), int(offset % extentBytes / repl.BlockBytes), int(length / repl.BlockBytes)
}

// inside reports whether a range lies in the volume, and within one extent of
// this disk.
func (h *handle) inside(offset, length int64) bool {
	extentBytes := int64(h.slot.disk.d.ExtentBlocks()) * repl.BlockBytes
	return offset+length <= h.size && offset%extentBytes+length <= extentBytes
}

func (c *Core) append(now clock.Instant, cn *conn, h *handle, reqID uint64, r disk.Record) {
	r.Volume, r.Writer = h.slot.volume, h.writer()
	d := h.slot.disk
	d.d.Append(c.pending.add(pending{kind: pendAppend, conn: cn.id, reqID: reqID, disk: d, slot: h.slot, mark: r.Mark}), r)
	d.active(now)
}

func (c *Core) write(now clock.Instant, cn *conn, m *wire.Write) {
	h, st, promised := c.valid(cn, m.Handle)
	if st == wire.OK && (m.Mark.Epoch != h.promise.Epoch || !h.inside(m.Offset, int64(len(m.Data))) || !wire.Verify(m.Data, m.CRC)) {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.free(m.Data)
		c.refuse(cn, m.ReqID, m.Mark, st, promised)
		return
	}
	c.piggyback(h, m.Piggyback)
	extent, block, count := h.place(m.Offset, int64(len(m.Data)))
	h.wrote(extent, m.SnapSeq, block, count)
	c.append(now, cn, h, m.ReqID, disk.Record{
		Kind: disk.KindWrite, Extent: extent, Object: m.SnapSeq, Mark: m.Mark, Block: block, Count: count,
		CRC: m.CRC, Data: m.Data, Durable: m.Flags&wire.WriteFUA != 0, Resent: m.Flags&wire.WriteResent != 0,
		Reserve: m.Flags&wire.WriteReserve != 0,
	})
	if len(m.CRC) > 1 {
		m.CRC = nil // the disk has it now
	}
	wire.Recycle(m)
}

func (c *Core) zero(now clock.Instant, cn *conn, m *wire.Zero) {
	h, st, promised := c.valid(cn, m.Handle)
	if st == wire.OK && (m.Mark.Epoch != h.promise.Epoch || !h.inside(m.Offset, m.Length)) {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.refuse(cn, m.ReqID, m.Mark, st, promised)
		return
	}
	c.piggyback(h, m.Piggyback)
	extent, block, count := h.place(m.Offset, m.Length)
	h.wrote(extent, m.SnapSeq, block, count)
	r := disk.Record{
		Kind: disk.KindZero, Extent: extent, Object: m.SnapSeq, Mark: m.Mark, Block: block, Count: count,
		Durable: m.Flags&wire.WriteFUA != 0, Resent: m.Flags&wire.WriteResent != 0,
	}
	if count == h.slot.disk.d.ExtentBlocks() && m.Flags&wire.ZeroDiscard != 0 {
		r.Kind = disk.KindTombstone
	}
	c.append(now, cn, h, m.ReqID, r)
}

func (c *Core) flush(now clock.Instant, cn *conn, m *wire.Flush) {
	h, st, _ := c.valid(cn, m.Handle)
	if st != wire.OK {
		c.send(cn.id, &wire.FlushAck{ReqID: m.ReqID, Status: st, Upto: m.Upto, Session: c.o.Session})
		return
	}
	c.piggyback(h, m.Piggyback)
	d := h.slot.disk
	upto := repl.Mark{Epoch: h.promise.Epoch, Wseq: m.Upto}
	d.d.Flush(c.pending.add(pending{kind: pendFlush, conn: cn.id, reqID: m.ReqID, disk: d, slot: h.slot, mark: upto}), h.slot.volume, upto)
	d.active(now)
}

func (c *Core) read(now clock.Instant, cn *conn, m *wire.Read) {
	h, st, _ := c.valid(cn, m.Handle)
	if st == wire.OK && !h.inside(m.Offset, m.Length) {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.send(cn.id, &wire.ReadReply{ReqID: m.ReqID, Status: st})
		return
	}
	d := h.slot.disk
	extent, block, count := h.place(m.Offset, m.Length)
	buf := c.o.Pool.Alloc(int(m.Length))
	d.d.Read(c.pending.add(pending{kind: pendRead, conn: cn.id, reqID: m.ReqID, disk: d, slot: h.slot, buf: buf, extent: extent, block: block}),
		disk.ReadRequest{Volume: h.slot.volume, Extent: extent, Object: m.Object, Raw: m.Raw, Block: block, Count: count, Buf: buf})
	d.active(now)
	wire.Recycle(m)
}

func (c *Core) repair(now clock.Instant, cn *conn, m *wire.Repair) {
	h, st, promised := c.valid(cn, m.Handle)
	if st == wire.OK && (int(m.Block) >= h.slot.disk.d.ExtentBlocks() || m.Data != nil && wire.Checksum(m.Data) != m.Tag.CRC) {
		st = wire.BadRequest
	}
	if st != wire.OK {
		c.free(m.Data)
		c.refuse(cn, m.ReqID, m.Mark, st, promised)
		return
	}
	d := h.slot.disk
	d.d.Append(c.pending.add(pending{
		kind: pendAppend, conn: cn.id, reqID: m.ReqID, disk: d, slot: h.slot, mark: m.Mark, repair: true, extent: m.Extent, object: m.Object, block: int(m.Block),
	}), disk.Record{
		Volume: h.slot.volume, Writer: h.writer(),
		Kind: disk.KindRepair, Extent: m.Extent, Object: m.Object, Mark: m.Mark, Block: int(m.Block), Count: 1,
		Expect: m.Expect, Tag: m.Tag, Data: m.Data,
	})
	d.active(now)
}

// config makes what the writer tells durable. A complete one ends a takeover
// that had a warm member: the copy is whole again, under this boot [S6].
func (c *Core) config(now clock.Instant, cn *conn, m *wire.Config) {
	h, st, _ := c.valid(cn, m.Handle)
	if st == wire.OK {
		info, _ := h.slot.disk.d.Volume(h.slot.volume)
		if t := info.Told; m.Told.Epoch < t.Epoch || m.Told.CfgVersion < t.CfgVersion {
			st = wire.StaleCfg
		} else if m.Told.Epoch != h.promise.Epoch {
			st = wire.BadRequest
		}
	}
	if st != wire.OK {
		c.send(cn.id, &wire.ConfigAck{ReqID: m.ReqID, Status: st})
		return
	}
	ctl := disk.Control{Kind: disk.ControlConfig, Told: m.Told}
	if m.Told.Complete {
		ctl.Boot = h.slot.disk.boot
	}
	c.control(now, cn, h, pendConfig, m.ReqID, ctl)
}

// release ends the epoch for good. The handle ends with it.
func (c *Core) release(now clock.Instant, cn *conn, m *wire.Release) {
	h, st, _ := c.valid(cn, m.Handle)
	if st != wire.OK {
		c.send(cn.id, &wire.SimpleAck{ReqID: m.ReqID, Status: st})
		return
	}
	c.control(now, cn, h, pendSimple, m.ReqID, disk.Control{Kind: disk.ControlRelease})
	c.endHandle(h.slot)
}

func (c *Core) control(now clock.Instant, cn *conn, h *handle, kind pendKind, reqID uint64, ctl disk.Control) {
	d := h.slot.disk
	ctl.Volume = h.slot.volume
	d.d.Control(c.pending.add(pending{kind: kind, conn: cn.id, reqID: reqID, disk: d, slot: h.slot}), ctl)
	d.active(now)
}
