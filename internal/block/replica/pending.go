package replica

import (
	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// pendKind is what a disk was asked for.
type pendKind uint8

const (
	pendFree pendKind = iota
	pendOpen
	pendAppend
	pendFlush
	pendRead
	pendTags
	pendConfig
	pendSimple // RELEASE, SYNC_END
	pendProbe
	pendDrop
	pendScrub
	pendSnap // SNAP_READ
	pendPlaces
)

// pending is a request that a disk has not completed.
type pending struct {
	kind     pendKind
	answered bool
	conn     Conn
	reqID    uint64
	disk     *diskState
	slot     *slot
	guard    *guard     // pendOpen
	open     *wire.Open // pendOpen
	mark     repl.Mark
	volume   ids.ID // pendDrop, pendPlaces
	buf      []byte // pendRead, pendScrub
	extent   uint64 // pendRead, pendAppend of a repair
	block    int    // the same: the first one
	object   uint32 // pendScrub, pendSnap, pendAppend of a repair: the snapshot that shows it
	syncs    uint32 // pendSnap: slot.syncs when it was asked
	repair   bool   // pendAppend: a REPAIR
}

// pendings gives out tokens: index and use count of a place in a list, so that
// no request allocates and no late completion meets another one's place.
type pendings struct {
	list []pending
	uses []uint32
	free []uint32
}

func (p *pendings) add(x pending) uint64 {
	var i uint32
	if n := len(p.free); n > 0 {
		i, p.free = p.free[n-1], p.free[:n-1]
	} else {
		i = uint32(len(p.list))
		p.list, p.uses = append(p.list, pending{}), append(p.uses, 0)
	}
	p.list[i] = x
	p.uses[i]++
	return uint64(p.uses[i])<<32 | uint64(i)
}

func (p *pendings) take(token uint64) (pending, bool) {
	i := uint32(token)
	if int(i) >= len(p.list) || p.uses[i] != uint32(token>>32) || p.list[i].kind == pendFree {
		return pending{}, false
	}
	x := p.list[i]
	p.list[i] = pending{}
	p.free = append(p.free, i)
	return x, true
}

// fail answers everything that waits for a disk which will not answer. The
// buffers of its reads may still be written by a hanging system call: they are
// left to the shell's pool for good.
func (p *pendings) fail(c *Core, d *diskState) {
	for i := range p.list {
		if x := p.list[i]; x.kind != pendFree && x.disk == d {
			p.list[i] = pending{}
			p.free = append(p.free, uint32(i))
			x.buf = nil
			c.answer(0, &x, &disk.Completion{Status: wire.DiskFailed})
		}
	}
}

// complete takes the answer of a disk.
func (c *Core) complete(now clock.Instant, d *diskState, done *disk.Completion) {
	p, ok := c.pending.take(done.Token)
	if !ok || p.disk != d {
		return
	}
	c.answer(now, &p, done)
}

func (c *Core) answer(now clock.Instant, p *pending, done *disk.Completion) {
	switch p.kind {
	case pendOpen:
		if !p.answered {
			c.opened(now, p, done.Status)
		}
	case pendAppend:
		if p.repair {
			c.repaired(p, done.Status)
		}
		a := wire.NewAck()
		a.ReqID, a.Status, a.Mark = p.reqID, done.Status, p.mark
		if done.Status == wire.StaleEpoch || done.Status == wire.OtherNonce || done.Status == wire.Released {
			info, _ := p.disk.d.Volume(p.slot.volume)
			a.Promised = info.Promise
		}
		c.send(p.conn, a)
	case pendFlush:
		c.send(p.conn, &wire.FlushAck{ReqID: p.reqID, Status: done.Status, Upto: p.mark.Wseq, Session: c.o.Session})
	case pendRead:
		c.readDone(p, done)
	case pendSnap:
		c.snapReadDone(p, done)
	case pendTags:
		c.send(p.conn, &wire.ExtTags{ReqID: p.reqID, Status: done.Status, Mark: done.Mark, Tags: done.Tags})
	case pendConfig:
		c.send(p.conn, &wire.ConfigAck{ReqID: p.reqID, Status: done.Status})
	case pendSimple:
		c.send(p.conn, &wire.SimpleAck{ReqID: p.reqID, Status: done.Status})
	case pendProbe:
		p.disk.probing = false
		if done.Status == wire.OK {
			p.disk.probedAt = now
		}
	case pendScrub:
		c.scrubDone(now, p, done)
	case pendPlaces:
		c.out.Events = append(c.out.Events, Event{Kind: PlacesDone, Disk: p.disk.id, Volume: p.volume, Token: p.reqID, Status: done.Status, Places: done.Places})
	case pendDrop:
		c.out.Events = append(c.out.Events, Event{Kind: DropDone, Disk: p.disk.id, Volume: p.volume, Token: p.reqID, Status: done.Status})
	}
}

func (c *Core) readDone(p *pending, done *disk.Completion) {
	r := &wire.ReadReply{ReqID: p.reqID, Status: done.Status}
	if done.Status == wire.OK || done.Status == wire.Unreadable {
		r.Tags, r.Marks, r.Data = done.Tags, []repl.Mark{done.Mark}, done.Data
	}
	if len(done.Bad) > 0 {
		// The reader repairs them; they are kept for the next one in case it cannot.
		for _, i := range done.Bad {
			r.Bad = append(r.Bad, uint16(i))
			c.foundBad(p.disk, p.slot, shown{p.extent, 0}, p.block+i, done.Tags[i])
		}
	}
	if r.Data == nil {
		c.free(p.buf)
	}
	c.send(p.conn, r)
}
