package writer

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Reads of a local copy past its storage process: docs/design/direct-reads.md.
//
// The core knows, extent by extent, which blocks of the copy stand in place with
// which checksum (place.Map). It marks every block that is changed after it asked,
// so what is not marked is as the map says until the slot is freed, which the shell
// sees by itself. Everything else is as for a read by message: the range is held,
// the copy must be in sync and the lease held when the answer is given.

// Sizes and times.
const (
	placesEach   = 4096                   // extents of a copy whose maps are kept: 5 KiB each
	placesOff    = time.Minute            // until a copy that cannot be read so is tried again
	placesAtOnce = 64 << 10               // a read of so many bytes asks for the map at once
	directSlow   = 250 * time.Millisecond // after a read that took longer the copy is asked by message for a while
)

// extentPlaces is what is known of one extent of a local copy.
type extentPlaces struct {
	m       *place.Map // nil: nothing yet
	touched [repl.ExtentBlocks / 64]uint64
	serial  uint64 // of the question under way; 0 = none
	askedAt clock.Instant
	misses  int
	recent  bool // read since the hand of the clock passed
}

// memberPlaces is what is known of a local copy.
type memberPlaces struct {
	exts     map[int64]*extentPlaces
	order    []int64 // of exts, for the clock
	hand     int
	offUntil clock.Instant
}

// dropPlaces forgets all maps of m: what its disk holds may have changed in a way
// that was not seen here.
func (m *member) dropPlaces() {
	m.places.exts, m.places.order, m.places.hand = nil, nil, 0
}

// touch marks blocks that are changed from now on, on every copy: also on one that
// is not written to, whose blocks become old by it.
func (s *segment) touch(ext int64, block, count int) {
	for _, m := range s.members {
		m.touch(ext, block, count)
	}
}

func (m *member) touch(ext int64, block, count int) {
	if p := m.places.exts[ext]; p != nil && !m.v.c.mut.DirectUntouched {
		p.touch(block, count)
	}
}

func (p *extentPlaces) touch(block, count int) {
	for b := block; b < block+count; b++ {
		p.touched[b/64] |= 1 << (b % 64)
	}
}

func (p *extentPlaces) isTouched(block, count int) bool {
	for b := block; b < block+count; b++ {
		if p.touched[b/64]&(1<<(b%64)) != 0 {
			return true
		}
	}
	return false
}

// readDirect lets the shell read o from m's disk by itself, if it can.
func (v *volume) readDirect(o *op, m *member) bool {
	c := v.c
	if !c.cfg.Direct || m.node.id != c.cfg.Node || o.kind != opRead || o.rep != nil || o.rc || o.object != 0 || o.req == nil || c.now < m.places.offUntil {
		return false
	}
	p := m.places.exts[o.ext]
	if p == nil {
		p = m.addPlaces(o.ext)
	}
	p.recent = true
	if p.m != nil && !p.isTouched(o.block, o.count) {
		if r, ok := p.m.Find(o.block, o.count); ok {
			o.from = m
			c.hedge.sent(c.now)
			c.out.Reads = append(c.out.Reads, DirectRead{ID: c.newSlot(slotDirect, m, o, 0), Volume: v.index, Disk: m.disk, Read: r})
			return true
		}
	}
	if o.length() >= placesAtOnce {
		p.misses = c.t.PlacesMisses
	}
	v.wantPlaces(o.ext, m, p)
	return false
}

// wantPlaces asks for the map of an extent if it is worth it.
func (v *volume) wantPlaces(ext int64, m *member, p *extentPlaces) {
	c := v.c
	p.misses++
	switch {
	case p.serial != 0:
		return
	case p.askedAt != 0 && (p.misses < c.t.PlacesMisses || c.now < p.askedAt.Add(c.t.PlacesAgain)):
		return
	case p.askedAt == 0 && p.misses < 2:
		return // an extent that is read once only
	case c.repairing(m):
		return // a REPAIR under way may be before or behind the map
	}
	p.m, p.misses, p.askedAt = nil, 0, c.now
	clear(p.touched[:])
	if e := v.extents[ext]; e != nil {
		for o := e.head; o != nil; o = o.lnext {
			if o.kind == opWrite || o.kind == opZero {
				p.touch(o.block, o.count)
			}
		}
	}
	c.placeSerial++
	p.serial = c.placeSerial
	c.effect(WantPlaces{Serial: p.serial, Disk: m.disk, Volume: v.id, Extent: ext})
}

// repairing reports whether a REPAIR to m is unanswered.
func (c *Core) repairing(m *member) bool {
	for i := range c.slots {
		if s := &c.slots[i]; s.kind == slotRepair && s.m == m {
			return true
		}
	}
	return false
}

// addPlaces makes room for what is learned of an extent: of those that were not
// read for a whole turn of the clock one is forgotten.
func (m *member) addPlaces(ext int64) *extentPlaces {
	pl := &m.places
	if pl.exts == nil {
		pl.exts = make(map[int64]*extentPlaces)
	}
	p := &extentPlaces{}
	if len(pl.order) < placesEach {
		pl.order = append(pl.order, ext)
	} else {
		for {
			pl.hand = (pl.hand + 1) % len(pl.order)
			old := pl.exts[pl.order[pl.hand]]
			if old == nil || !old.recent {
				break
			}
			old.recent = false
		}
		delete(pl.exts, pl.order[pl.hand])
		pl.order[pl.hand] = ext
	}
	pl.exts[ext] = p
	return p
}

// placesKnown takes the answer to WantPlaces.
func (c *Core) placesKnown(ev PlacesKnown) {
	for _, v := range c.vols {
		for _, m := range v.members {
			p := m.places.exts[ev.Extent]
			if p == nil || p.serial != ev.Serial {
				continue
			}
			p.serial = 0
			switch {
			case ev.Off:
				m.dropPlaces()
				m.places.offUntil = c.now.Add(placesOff)
			case ev.Map != nil && len(ev.Map.Source) == repl.ExtentBlocks:
				p.m = ev.Map
			}
			return
		}
	}
}

// directDone takes the end of a DirectRead. What was read without a lease, or from
// a copy that is not in sync any more, proves nothing (C3, C6).
func (c *Core) directDone(ev DirectDone) {
	n := c.node(c.cfg.Node)
	if n == nil {
		return
	}
	s, ok := c.takeRead(n, ev.ID, slotDirect)
	if !ok {
		return
	}
	o, m := s.op, s.m
	v := o.v
	if !ev.OK && c.hedgeLost(o) {
		return // another copy is asked already
	}
	c.hedge.answered(c.now.Sub(s.sent))
	c.unhedge(o, m)
	o.from = nil
	if c.now.Sub(s.sent) > directSlow {
		m.places.offUntil = c.now.Add(c.t.PlacesAgain)
	}
	switch {
	case ev.Busy && m.usable():
		v.askByMessage(o, m)
	case !ev.OK:
		// The slot is another extent's, or the block does not read as it should: the
		// storage process knows which, and repairs are made from its answer.
		if p := m.places.exts[o.ext]; p != nil {
			p.m = nil
			p.askedAt = c.now
		}
		v.startRead(o)
	case !c.leased(), (!m.counted || v.isOut(m) || !o.seg.holds(m)) && !c.mut.ReadAnyMember:
		v.waitRead(o)
	default:
		// Every block of it was the volume's own: a map has no others.
		c.reply = wire.ReadReply{Data: ev.Data}
		v.serve(o, &c.reply)
		c.reply.Data = nil
	}
}

// DirectRead asks the shell to read blocks of a local disk: DirectDone.
type DirectRead struct {
	ID     uint64
	Volume int // index in Config.Volumes
	Disk   ids.ID
	Read   place.Read
}
