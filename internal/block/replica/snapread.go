package replica

import (
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Snapshots shown to clones, whose writers hold no promise of the parent's.

// Shows says whether a copy may show a snapshot to the writer of a clone. info is
// what the disk knows of the parent.
//
// The reader chose the copy by a record in which it is in sync and the snapshot
// exists, so it has all of it, unless something has happened to it since: it was
// damaged; it was put out, and is being synced (SYNC_BEGIN takes the list away); or
// it was told of a newer record, in which it may have left a segment.
func Shows(info disk.VolumeInfo, m *wire.SnapRead) wire.Status {
	switch {
	case info.Promise.Epoch == 0:
		return wire.Busy // nothing is known of it here
	case info.Promise.Generation != m.Generation:
		return wire.OtherGeneration
	case info.Damaged:
		return wire.Damaged
	case info.Told.CfgVersion > m.CfgVersion:
		return wire.StaleCfg
	case !slices.Contains(info.Told.Snaps, m.Snapshot):
		return wire.Busy
	}
	return wire.OK
}

func (c *Core) shows(d *diskState, m *wire.SnapRead) wire.Status {
	if d == nil || d.dead {
		return wire.DiskFailed
	}
	info, _ := d.d.Volume(m.Volume)
	if c.o.Mutations.ShowToOldReaders {
		info.Told.CfgVersion = 0
	}
	return Shows(info, m)
}

// snapRead reads for a clone.
func (c *Core) snapRead(now clock.Instant, cn *conn, m *wire.SnapRead) {
	d := c.disk(m.Disk)
	st := c.shows(d, m)
	if st != wire.OK {
		c.send(cn.id, &wire.ReadReply{ReqID: m.ReqID, Status: st})
		return
	}
	s := d.slotOf(m.Volume)
	extentBytes := int64(d.d.ExtentBlocks()) * repl.BlockBytes
	extent, block, count := uint64(m.Offset/extentBytes), int(m.Offset%extentBytes/repl.BlockBytes), int(m.Length/repl.BlockBytes)
	if block+count > d.d.ExtentBlocks() {
		c.send(cn.id, &wire.ReadReply{ReqID: m.ReqID, Status: wire.BadRequest})
		return
	}
	buf := c.o.Pool.Alloc(int(m.Length))
	d.d.Read(c.pending.add(pending{
		kind: pendSnap, conn: cn.id, reqID: m.ReqID, disk: d, slot: s, buf: buf, extent: extent, block: block, object: m.Snapshot, syncs: s.syncs,
	}), disk.ReadRequest{Volume: m.Volume, Extent: extent, Object: m.Snapshot, Block: block, Count: count, Buf: buf})
	d.active(now)
}

// snapReadDone answers, unless a sync has begun to change the tables meanwhile.
func (c *Core) snapReadDone(p *pending, done *disk.Completion) {
	r := &wire.ReadReply{ReqID: p.reqID, Status: done.Status}
	switch {
	case p.slot.syncs != p.syncs:
		r.Status = wire.Busy
	case done.Status == wire.OK || done.Status == wire.Unreadable:
		r.Tags, r.Data = done.Tags, done.Data
		for _, i := range done.Bad { // the parent's writer repairs them, if there is one
			r.Bad = append(r.Bad, uint16(i))
			c.foundBad(p.disk, p.slot, shown{p.extent, p.object}, p.block+i, done.Tags[i])
		}
	}
	if r.Data == nil {
		c.free(p.buf)
	}
	c.send(p.conn, r)
}

// hideSnapshots is the part of SYNC_BEGIN that concerns clones: what this copy was
// told of snapshots goes, durably and before anything that the sync writes. It
// reports whether there was something: then the answer follows when that is durable.
func (c *Core) hideSnapshots(now clock.Instant, cn *conn, h *handle, reqID uint64) bool {
	if c.o.Mutations.ShowDuringSync {
		return false
	}
	h.slot.syncs++
	info, _ := h.slot.disk.d.Volume(h.slot.volume)
	if len(info.Told.Snaps) == 0 {
		return false
	}
	told := info.Told
	told.Snaps, told.Whole = nil, false
	c.control(now, cn, h, pendSimple, reqID, disk.Control{Kind: disk.ControlConfig, Told: told})
	return true
}
