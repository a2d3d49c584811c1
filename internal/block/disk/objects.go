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

// upgrade sets the feature bit of objects before the first record of one.
type upgrade struct {
	asked bool
	held  []heldRecord // in the order of Append
}

type heldRecord struct {
	token uint64
	in    Record
}

// needsUpgrade keeps a record back until the superblock says that the log has
// objects: a build that does not know them would take its batch for a torn one.
func (c *Core) needsUpgrade(token uint64, in *Record) bool {
	holes := slices.ContainsFunc(in.Blocks, func(b wire.SyncBlock) bool { return b.Tag == wire.Hole })
	if c.dead != nil || in.Object == 0 && !holes || in.Kind == KindRepair || c.sb.Incompat&incompatObjects != 0 && len(c.up.held) == 0 {
		return false
	}
	c.up.held = append(c.up.held, heldRecord{token, *in})
	c.up.asked = true
	c.startCheckpoint()
	return true
}

// upgraded lets the records go on once the superblock is durable.
func (c *Core) upgraded() {
	if !c.up.asked {
		return
	}
	if c.sb.Incompat&incompatObjects == 0 {
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
