package replica

import (
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Received takes a message of a connection, in the order of its arrival. The
// core owns m and its block data from now on.
func (c *Core) Received(now clock.Instant, id Conn, m wire.Message) {
	cn := c.conns[id]
	if cn == nil {
		c.drop(m)
		return
	}
	if cn.guard == nil {
		h, ok := m.(*wire.Hello)
		if !ok {
			c.drop(m)
			c.close(cn, protocol("%T before HELLO", m))
			return
		}
		c.hello(cn, h)
		return
	}
	switch m := m.(type) {
	case *wire.Write:
		c.write(now, cn, m)
	case *wire.Zero:
		c.zero(now, cn, m)
	case *wire.Flush:
		c.flush(now, cn, m)
	case *wire.Read:
		c.read(now, cn, m)
	case *wire.SnapRead:
		c.snapRead(now, cn, m)
	case *wire.Heartbeat:
		c.heartbeat(now, cn, m)
	case *wire.Open:
		c.open(now, cn, m)
	case *wire.WindowReq:
		c.window(now, cn, m)
	case *wire.Config:
		c.config(now, cn, m)
	case *wire.ExtListReq:
		c.extList(now, cn, m)
	case *wire.ExtTagsReq:
		c.extTags(now, cn, m)
	case *wire.SyncBegin:
		c.syncBegin(now, cn, m)
	case *wire.SyncWrite:
		c.syncWrite(now, cn, m)
	case *wire.SyncEnd:
		c.syncEnd(now, cn, m)
	case *wire.Repair:
		c.repair(now, cn, m)
	case *wire.Release:
		c.release(now, cn, m)
	default:
		c.close(cn, protocol("%T is not for a replica", m))
	}
}

// drop frees the block data of a message that nobody takes.
func (c *Core) drop(m wire.Message) {
	switch m := m.(type) {
	case *wire.Write:
		c.free(m.Data)
	case *wire.SyncWrite:
		c.free(m.Data)
	case *wire.Repair:
		c.free(m.Data)
	case *wire.ReadReply:
		c.free(m.Data)
	}
}

func (c *Core) free(b []byte) {
	if b != nil {
		c.o.Pool.Free(b)
	}
}

func (c *Core) hello(cn *conn, h *wire.Hello) {
	ack := &wire.HelloAck{Node: c.o.Node, Session: c.o.Session}
	proto, ok := wire.Negotiate(h.ProtoMin, h.ProtoMax)
	switch {
	case h.Cluster != c.o.Cluster || c.o.Generation != 0 && h.Generation != c.o.Generation:
		ack.Status = wire.OtherGeneration
	case !ok:
		ack.Status = wire.VersionMismatch
	case h.Node != cn.peer || h.Guard.IsZero():
		ack.Status = wire.BadRequest
	}
	if ack.Status != wire.OK {
		c.send(cn.id, ack)
		c.close(cn, protocol("HELLO of node %s refused with status %d", h.Node, ack.Status))
		return
	}
	ack.Proto = proto
	for _, d := range c.disks {
		if !d.dead {
			ack.Disks = append(ack.Disks, d.id)
		}
	}
	g := c.guards[h.Guard]
	if g == nil {
		g = &guard{id: h.Guard}
		c.guards[h.Guard] = g
	}
	if old := g.conn; old != nil {
		// What the old connection still holds must not land behind what the new
		// one sends.
		c.close(old, protocol("guard %s has a newer connection", h.Guard))
		c.guards[h.Guard] = g
	}
	g.conn, cn.guard = cn, g
	c.send(cn.id, ack)
}

// valid finds the handle of a request. With a status other than OK the request
// must be answered with it, and promised is who has the volume now.
func (c *Core) valid(cn *conn, id wire.Handle) (h *handle, st wire.Status, promised repl.Promise) {
	h = c.handles[id]
	if h == nil || h.guard != cn.guard {
		return nil, wire.BadHandle, repl.Promise{}
	}
	if h.ended {
		st, promised := h.why()
		if st == wire.OtherNonce && c.o.Mutations.NonceUnchecked {
			st = wire.BadHandle
		}
		return nil, st, promised
	}
	if h.slot.disk.dead {
		return nil, wire.DiskFailed, repl.Promise{}
	}
	return h, wire.OK, repl.Promise{}
}

// newHandle makes the valid handle of s and ends the one before.
func (c *Core) newHandle(s *slot, g *guard, p repl.Promise, size int64) *handle {
	if !c.o.Mutations.KeepOldHandles {
		c.endHandle(s)
	}
	c.lastHdl++
	h := &handle{id: wire.Handle(c.lastHdl), slot: s, guard: g, promise: p, size: size}
	c.handles[h.id] = h
	g.handles = append(g.handles, h)
	c.guards[g.id] = g
	s.handle = h
	return h
}

// endedKept is how many ended handles of a guard are remembered, to tell it who
// has the volume rather than that the handle is bad.
const endedKept = 64

// endHandle ends the valid handle of s, if there is one.
func (c *Core) endHandle(s *slot) {
	h := s.handle
	if h == nil {
		return
	}
	h.ended, h.live, s.handle = true, nil, nil
	c.forgetEnded(h.guard)
}

// forgetEnded keeps the newest ended handles of a guard that is connected, and
// none of one that is not.
func (c *Core) forgetEnded(g *guard) {
	keep := endedKept
	if g.conn == nil {
		keep = 0
	}
	for i := len(g.handles) - 1; i >= 0; i-- {
		h := g.handles[i]
		if !h.ended {
			continue
		}
		if keep--; keep < 0 {
			delete(c.handles, h.id)
			g.handles = slices.Delete(g.handles, i, i+1)
		}
	}
	if g.conn == nil && len(g.handles) == 0 {
		delete(c.guards, g.id)
	}
}

// why says what ended h.
func (h *handle) why() (wire.Status, repl.Promise) {
	s := h.slot
	info, _ := s.disk.d.Volume(s.volume)
	if st := checkPromise(info.Promise, info.Released, h.promise, false); st != wire.OK {
		return st, info.Promise
	}
	if s.wanted.Generation == h.promise.Generation && lower(h.promise, s.wanted) {
		return wire.StaleEpoch, s.wanted
	}
	return wire.BadHandle, info.Promise
}

// lower reports whether p is before q by (epoch, inc).
func lower(p, q repl.Promise) bool {
	return p.Epoch < q.Epoch || p.Epoch == q.Epoch && p.Nonce == q.Nonce && p.Inc < q.Inc
}

// heartbeat grants the lease of everything that the guard holds open here, but
// what is refused by name. It is granted for handles that the heartbeat does not
// list, too: a grant too many only makes a successor wait.
func (c *Core) heartbeat(now clock.Instant, cn *conn, m *wire.Heartbeat) {
	ack := &wire.HeartbeatAck{SendTime: m.SendTime, Grant: c.o.Lease}
	for _, h := range cn.guard.handles {
		h.left = h.listed
	}
	for _, v := range m.Volumes {
		if h := c.handles[v.Handle]; h != nil && h.guard == cn.guard {
			h.listed, h.left = true, false
		}
		h, st, promised := c.valid(cn, v.Handle)
		if st != wire.OK && st != wire.DiskFailed { // a dead disk's lease costs nobody anything
			ack.Refused = append(ack.Refused, wire.HandleRefusal{Handle: v.Handle, Status: st, Promised: promised})
		}
		if h != nil {
			c.piggyback(h, v.Piggyback)
		}
	}
	for _, h := range cn.guard.handles {
		if h.ended {
			continue
		}
		s := h.slot
		s.stalled = m.Stalled > StalledAfter
		if st, promised := s.renewable(now, h); st != wire.OK && !(st == wire.StaleEpoch && c.o.Mutations.RenewAfterOpen) {
			ack.Refused = append(ack.Refused, wire.HandleRefusal{Handle: h.id, Status: st, Promised: promised})
			continue
		}
		s.granted = now
		if c.o.Mutations.HeartbeatGrantsAll {
			for _, o := range s.disk.slots { // order does not show
				if o.granted != 0 && o != s {
					o.granted = now
				}
			}
		}
	}
	for _, d := range c.disks {
		hl := wire.DiskHealth{Disk: d.id, Failed: d.dead, ProbeAge: max(now.Sub(d.probedAt), 0)}
		if !d.dead {
			hl.FreeSlots = uint64(d.d.Stats().FreeSlots)
		}
		ack.Disks = append(ack.Disks, hl)
	}
	c.send(cn.id, ack)
}

// renewable says whether the lease of an open handle may be renewed.
func (s *slot) renewable(now clock.Instant, h *handle) (wire.Status, repl.Promise) {
	info, _ := s.disk.d.Volume(s.volume)
	switch {
	case info.Released:
		return wire.Released, info.Promise
	case s.wanted.Generation == h.promise.Generation && lower(h.promise, s.wanted):
		return wire.StaleEpoch, s.wanted
	case now < s.reservedUntil:
		return wire.Busy, info.Promise
	}
	return wire.OK, repl.Promise{}
}

// piggyback takes what a writer tells along the way.
func (c *Core) piggyback(h *handle, p wire.Piggyback) {
	s := h.slot
	if !s.flushMark.Less(p.FlushMark) || s.disk.dead {
		return
	}
	s.flushMark = p.FlushMark
	s.disk.d.SetFlushMark(s.volume, p.FlushMark)
	info, _ := s.disk.d.Volume(s.volume)
	if t := info.Told; t.Epoch == h.promise.Epoch && (t.Whole || c.o.Mutations.ForgetInClone && len(t.Out) == 0) {
		// Nobody is out who could bring deleted data back [I12], and nothing lies below
		// that would show instead.
		s.disk.d.ForgetTombstones(s.volume, p.FlushMark)
	}
	s.disk.touched = true
}
