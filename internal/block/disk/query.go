package disk

import (
	"cmp"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// maxWindowBytes is the flush distance of a writer if the log has room for it.
const maxWindowBytes = 64 << 20

// windowBytes returns what a writer may have unflushed. Notes of the records of
// all windows must fit a sixteenth of the ring; a note of a 4 KiB write takes
// about 68 bytes, so a window of W bytes costs W/60.
//
//	limit = min(64 MiB, ring/4, 2*ring/volumes)
func (c *Core) windowBytes() int64 {
	return max(BlockBytes, min(maxWindowBytes, c.sb.WALBytes/4, 2*c.sb.WALBytes/int64(max(1, len(c.vols)))))
}

// Volume returns what is known of a volume, and whether anything is.
func (c *Core) Volume(volume ids.ID) (VolumeInfo, bool) {
	v := c.vols[volume]
	if v == nil {
		return VolumeInfo{}, false
	}
	told := v.Told
	told.Out, told.Snaps = slices.Clone(told.Out), slices.Clone(told.Snaps)
	return VolumeInfo{
		Volume: volume, Promise: v.Promise, Boot: v.Boot, Released: v.Released, Told: told, Untold: !v.heard,
		DurableMark: v.Durable, FlushMark: v.Flush, MaxMark: v.Max, Damaged: v.Damaged,
		Unverified: v.unverified, WindowBytes: c.windowBytes(), Extents: v.slots,
	}, true
}

// Volumes returns the known volumes in order.
func (c *Core) Volumes() []ids.ID {
	list := make([]ids.ID, 0, len(c.vols))
	for id := range c.vols {
		list = append(list, id)
	}
	slices.SortFunc(list, ids.ID.Compare)
	return list
}

func (c *Core) sortedExts(v *volume) []*ext {
	list := make([]*ext, 0, len(v.exts))
	for _, e := range v.exts {
		for ; e != nil; e = e.older {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *ext) int {
		return cmp.Or(cmp.Compare(a.extent, b.extent), cmp.Compare(a.object, b.object))
	})
	return list
}

// Window returns every record above from, durable or not, and the unverified
// tail, of which below from only writes that were not taken again, by mark. Sync data counts under the mark of the source's extent.
func (c *Core) Window(volume ids.ID, from repl.Mark) []wire.WindowEntry {
	v := c.vols[volume]
	if v == nil {
		return nil
	}
	var list []wire.WindowEntry
	for _, r := range v.window {
		if from.Less(r.Mark) || v.lostFlushed(r) {
			list = r.windowEntries(list)
		}
	}
	slices.SortStableFunc(list, func(a, b wire.WindowEntry) int {
		if a.Mark.Less(b.Mark) {
			return -1
		}
		if b.Mark.Less(a.Mark) {
			return 1
		}
		return 0
	})
	return list
}

// lostFlushed reports whether r is a write of the dropped tail that was not taken
// again since. Listed below the group's flush mark it means that the log did not
// end in a torn tail, but lost what was flushed.
func (v *volume) lostFlushed(r *rec) bool {
	if r.Flags&flagUnverified == 0 || !r.isWrite() || !v.Durable.Less(r.Mark) {
		return false
	}
	return !slices.ContainsFunc(v.window, func(o *rec) bool {
		return o.Flags&flagUnverified == 0 && o.Mark == r.Mark && o.Extent == r.Extent && o.Object == r.Object && o.Block == r.Block
	})
}

func (r *rec) windowEntries(list []wire.WindowEntry) []wire.WindowEntry {
	w := wire.WindowEntry{
		Verified: r.Flags&flagUnverified == 0, Object: r.Object, Extent: r.Extent,
		Block: r.Block, Count: r.Count, Mark: r.Mark,
	}
	switch r.Type {
	case recWrite:
		w.Kind, w.CRC = wire.RecordWrite, r.CRC
		return append(list, w)
	case recZero:
		w.Kind = wire.RecordZero
		return append(list, w)
	case recTombstone:
		w.Kind = wire.RecordTombstone
		return append(list, w)
	}
	for _, b := range r.Blocks {
		if r.Object > 0 && b.Tag == (wire.Tag{}) {
			continue // a sync says that nothing is here: rewritten as zeros it would hide older objects
		}
		w.Kind, w.Block, w.Count, w.CRC = wire.RecordWrite, b.Block, 1, []uint32{b.Tag.CRC}
		if !b.Tag.HasData() {
			w.Kind, w.CRC = wire.RecordZero, nil
		}
		list = append(list, w)
	}
	return list
}

// Objects returns the objects of a volume whose mark is above from, by extent
// and number.
func (c *Core) Objects(volume ids.ID, from repl.Mark) []wire.ExtEntry {
	v := c.vols[volume]
	if v == nil {
		return nil
	}
	var list []wire.ExtEntry
	for _, e := range c.sortedExts(v) {
		if from.Less(e.mark) && !e.gone {
			list = append(list, wire.ExtEntry{Extent: e.extent, Object: e.object, Mark: e.mark, Tombstone: e.tomb && e.gathering == 0})
		}
	}
	return list
}

// ObjectsOf returns the numbers of the objects of an extent, falling.
func (c *Core) ObjectsOf(volume ids.ID, extent uint64) (list []uint32) {
	if v := c.vols[volume]; v != nil {
		for e := v.exts[extent]; e != nil; e = e.older {
			if !e.gone {
				list = append(list, e.object)
			}
		}
	}
	return list
}

// Stats returns counters.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Slots, s.FreeSlots, s.SlotBytes = len(c.slots), c.free, c.sb.slotBytes()
	s.UsedBytes = int64(s.Slots-s.FreeSlots) * s.SlotBytes
	s.RingBytes = c.sb.WALBytes
	s.HeadLSN, s.DurableLSN, s.CheckpointLSN = c.log.head.lsn, c.log.durable.lsn, c.log.tail
	s.RingUsedBytes = int64(s.HeadLSN - s.CheckpointLSN)
	s.Volumes, s.Gathering = len(c.vols), len(c.log.gather)
	for _, e := range c.dirty {
		s.PendingApplyBlocks += len(e.pend)
	}
	return s
}
