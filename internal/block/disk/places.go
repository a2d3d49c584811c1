package disk

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
)

// maxPlaceTries bounds how often a map waits for tags that were dropped from the
// cache again while others were read.
const maxPlaceTries = 4

// Places tells which blocks of an extent, as the head shows it, stand in place, so
// that somebody else may read them. What stays true of it as long as the versions
// of its slots do: only a later record of that very block puts something else
// there. A block whose newest version is in the log is not in the map, nor is one
// of a record that has no place in the log yet: its writer knows of it.
//
// Statuses: OK, BadRequest (Options.Cells is nil, or the volume is not known), Busy
// (ask again), DiskFailed.
func (c *Core) Places(token uint64, volume ids.ID, extent uint64) {
	v := c.vols[volume]
	switch {
	case c.dead != nil:
		c.complete(token, wire.DiskFailed)
	case v == nil || v.dropped || c.o.Cells == nil:
		c.complete(token, wire.BadRequest)
	default:
		c.places(token, v, extent, 0)
	}
}

func (c *Core) places(token uint64, v *volume, extent uint64, tries int) {
	for e := v.chain(extent, 0); e != nil; e = e.older {
		if !e.needsLoad() {
			continue
		}
		if tries == maxPlaceTries+c.depth(v, extent) {
			c.complete(token, wire.Busy)
			return
		}
		c.loadTags(e, func() { c.places(token, v, extent, tries+1) })
		return
	}
	c.done = append(c.done, Completion{Token: token, Places: c.placeMap(v, extent)})
}

// depth is the number of objects of an extent.
func (c *Core) depth(v *volume, extent uint64) (n int) {
	for e := v.chain(extent, 0); e != nil; e = e.older {
		n++
	}
	return n
}

// placeMap looks into one object after another, as a read does; all tags are there.
func (c *Core) placeMap(v *volume, extent uint64) *place.Map {
	m := place.Empty(c.o.Cells.Session(), c.ExtentBlocks())
	known := make([]bool, c.ExtentBlocks())
	for e := v.chain(extent, 0); e != nil && len(m.Slots) < 255; e = e.older {
		if e.img != nil {
			c.lruClock++
			e.lru = c.lruClock
		}
		used := false
		for i := range known {
			if known[i] {
				continue
			}
			tag, inPlace := c.tagInPlace(e, i)
			if known[i] = tag != (wire.Tag{}); tag.HasData() && inPlace {
				m.Source[i], m.CRC[i], used = byte(len(m.Slots)+1), tag.CRC, true
			}
		}
		if used {
			n := uint64(e.slot)
			m.Slots = append(m.Slots, place.Slot{Number: n, Version: c.o.Cells.Version(n), Offset: c.dataOffset(e.slot, 0)})
		}
	}
	return m
}

// tagInPlace returns the tag of a block in one object, and whether its data is in
// the object's slot.
func (c *Core) tagInPlace(e *ext, block int) (tag wire.Tag, inPlace bool) {
	at, pending := e.find(block)
	if !pending || c.o.Mutations.PlacePending {
		return c.baseTag(e, block), e.slot >= 0
	}
	p := e.pend[at]
	return p.tag, p.r.Flags&flagFresh != 0 && p.pos >= 0 && e.slot >= 0
}
