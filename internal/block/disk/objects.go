package disk

import (
	"slices"

	"roseau/internal/block/wire"
)

// The objects of an extent form a list by falling number, from volume.exts.
// docs/design/snapshots.md says what they are.

// object returns an object of an extent, or nil.
func (v *volume) object(extent uint64, object uint32) *ext {
	e := v.exts[extent]
	for e != nil && e.object > object {
		e = e.older
	}
	if e == nil || e.object != object {
		return nil
	}
	return e
}

// addObject finds or makes an object.
func (v *volume) addObject(extent uint64, object uint32) *ext {
	var newer *ext
	e := v.exts[extent]
	for e != nil && e.object > object {
		newer, e = e, e.older
	}
	if e != nil && e.object == object {
		return e
	}
	if old := v.exts[extent]; old != nil && old.older == nil {
		v.chained++ // it becomes the second
	}
	n := &ext{vol: v, extent: extent, object: object, slot: -1, older: e, tombSeq: v.tombSeq}
	if newer != nil {
		newer.older = n
	} else {
		v.exts[extent] = n
	}
	v.mergeScan = true
	return n
}

// removeObject takes an object out of the directory; it has no slot.
func (v *volume) removeObject(e *ext) {
	head := v.exts[e.extent]
	was := head != nil && head.older != nil
	switch {
	case head == e && e.older == nil:
		delete(v.exts, e.extent)
	case head == e:
		v.exts[e.extent] = e.older
	default:
		for o := head; o != nil; o = o.older {
			if o.older == e {
				o.older = e.older
				break
			}
		}
	}
	if head = v.exts[e.extent]; was && (head == nil || head.older == nil) {
		v.chained--
	}
}

// chain returns the newest object that a reader sees: snapshot snap sees those
// below snap, 0 (the head) all.
func (v *volume) chain(extent uint64, snap uint32) *ext {
	e := v.exts[extent]
	for e != nil && snap != 0 && e.object >= snap {
		e = e.older
	}
	return e
}

// remembered reports whether a tombstone must stay in the log: nothing in place
// says that there is no data.
func (e *ext) remembered() bool {
	return !e.gone && (e.tomb || e.tombPending || e.holes && !e.vol.mut.ForgetHoles)
}

// holdTomb keeps a tombstone in the log until forgetTombs.
func (c *Core) holdTomb(e *ext) {
	if !e.inTombs {
		e.inTombs = true
		e.vol.tombs = append(e.vol.tombs, e)
	}
}

// fills reports whether the record leaves something in the image of e. Blocks
// that a sync makes absent do so where there are holes.
func (r *rec) fills(e *ext) bool {
	return r.needsSlot() || r.Type == recSync && e.holes && r.Flags == 0
}

// needsLoad reports whether the tags of the object have to be read to know them.
func (e *ext) needsLoad() bool {
	return !e.tombPending && e.imgSeq != 0 && e.img == nil && !e.baseUnknown
}

// indexFree: the object is gone; its slot is free after the checkpoint.
func (c *Core) indexFree(r *rec, e *ext) {
	v := e.vol
	c.clearPend(e)
	e.tombSeq, e.durSeq, v.tombSeq = r.seq, 0, r.seq
	e.tomb, e.holes, e.gone = false, false, true // and so not remembered any more
	v.merges++
	c.stats.FreedObjects++
	if e.slot >= 0 {
		e.tombPending = true
		c.markDirty(e)
	} else if e.gathering == 0 {
		v.removeObject(e)
	}
}

// upgrade sets feature bits before the first record that needs one.
type upgrade struct {
	bits uint64       // asked for
	held []heldRecord // in the order of Append
}

type heldRecord struct {
	token uint64
	in    Record
}

// features returns the feature bits that a build must know to read the record in
// the log: without objects and holes it would take the batch for a torn one, and
// without lost blocks it would read them as zeros until they are applied.
func (in *Record) features() (bits uint64) {
	if in.Kind == KindRepair {
		return 0
	}
	if in.Object > 0 {
		bits |= incompatObjects
	}
	for _, b := range in.Blocks {
		switch b.Tag {
		case wire.Hole:
			bits |= incompatObjects
		case wire.Lost:
			bits |= incompatLost
		}
	}
	return bits
}

// needsUpgrade keeps a record back until the superblock says that the log has
// what it brings, and all that follow it: a live write must not be passed by older
// data of a sync (I10), which nothing else would notice.
func (c *Core) needsUpgrade(token uint64, in *Record) bool {
	bits := in.features()
	if c.dead != nil || c.sb.Incompat&bits == bits && (len(c.up.held) == 0 || bits == 0 && c.o.Mutations.PassHeld) {
		return false
	}
	h := heldRecord{token, *in}
	h.in.CRC = slices.Clone(in.CRC) // the caller may use the memory of a single one again
	c.up.held = append(c.up.held, h)
	c.up.bits |= bits
	c.startCheckpoint()
	return true
}

// upgraded lets the records go on once the superblock is durable.
func (c *Core) upgraded() {
	if len(c.up.held) == 0 {
		return
	}
	if c.sb.Incompat&c.up.bits != c.up.bits {
		c.startCheckpoint() // the one that just ended wrote its superblock before
		return
	}
	held := c.up.held
	c.up = upgrade{}
	for _, h := range held {
		c.Append(h.token, h.in)
	}
}

func (c *Core) failUpgrade() {
	held := c.up.held
	c.up = upgrade{}
	for _, h := range held {
		if h.in.Data != nil {
			c.pool.Free(h.in.Data)
		}
		c.complete(h.token, wire.DiskFailed)
	}
}
