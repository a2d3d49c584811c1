package sim

import (
	"roseau/internal/block/disk"
	"roseau/internal/block/place"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
)

// cells are the numbers that a disk's owner shows to readers beside him. They
// outlive him, as the file in /run does.
type cells struct {
	session  uint64
	versions map[uint64]uint64
}

func (c *cells) Session() uint64            { return c.session }
func (c *cells) Version(slot uint64) uint64 { return c.versions[slot] }
func (c *cells) Freed(slot uint64)          { c.versions[slot]++ }

// timing makes maps as frequent as a short run needs them, and clones flat as the
// seed wants it.
func (w *world) timing() writer.Timing {
	t := writer.Timing{FlattenPause: w.clones.pause}
	if w.direct {
		t.PlacesAgain, t.PlacesMisses = w.profile.diskHi, 1
	}
	return t
}

// wantPlaces asks the storage process of the guard's node where blocks stand.
func (g *guard) wantPlaces(e writer.WantPlaces) {
	w, n := g.w, g.node
	answer := func(m *place.Map) {
		w.after(w.between(0, w.profile.diskLo), func() { g.step(writer.PlacesKnown{Serial: e.Serial, Extent: e.Extent, Map: m}) })
	}
	w.after(w.between(0, w.profile.diskLo), func() {
		if n.core == nil || n.asleep {
			answer(nil)
			return
		}
		n.lastPlaces++
		n.onPlaces[n.lastPlaces] = answer
		n.core.Places(n.clock(), n.lastPlaces, e.Disk, e.Volume, uint64(e.Extent))
		n.pump()
	})
}

func (n *node) placesDone(e replica.Event) {
	answer := n.onPlaces[e.Token]
	delete(n.onPlaces, e.Token)
	if e.Status != wire.OK {
		answer(nil)
		return
	}
	// As it goes over the socket.
	m, err := place.Decode(e.Places.Append(nil))
	if err != nil {
		n.w.failf("%v", err)
	}
	answer(m)
}

// readDirect reads past the storage process; whether that process lives is of no
// consequence.
func (g *guard) readDirect(r writer.DirectRead) {
	w, d := g.w, g.node.diskByID(r.Disk)
	boot := g.node.boot
	buf := make([]byte, len(r.Read.CRC)*disk.BlockBytes)
	d.schedule(w, disk.OpRead, func() {
		if g.node.boot != boot || !g.node.powered {
			return
		}
		err := d.do(w, disk.IO{Op: disk.OpRead, Offset: r.Read.Offset, Bufs: [][]byte{buf}, Length: int64(len(buf))})
		for _, f := range d.flying {
			if w.chance(0.5) { // what is being written may be seen already
				overlay(buf, r.Read.Offset, f.io)
			}
		}
		ok := err == nil && wire.Verify(buf, r.Read.CRC) && r.Read.Valid(&d.cells)
		if ok {
			w.note("direct_read")
		} else {
			w.note("direct_miss")
		}
		w.after(w.between(0, w.profile.diskLo), func() { g.step(&writer.DirectDone{ID: r.ID, OK: ok, Data: buf}) })
	})
}

// overlay puts what a write brings into what was read from offset.
func overlay(buf []byte, offset int64, io disk.IO) {
	at := io.Offset
	for _, b := range io.Bufs {
		lo, hi := max(offset, at), min(offset+int64(len(buf)), at+int64(len(b)))
		if lo < hi {
			copy(buf[lo-offset:hi-offset], b[lo-at:])
		}
		at += int64(len(b))
	}
}
