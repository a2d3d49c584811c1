package replica

import (
	"cmp"
	"maps"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// damage is what is known to be unreadable of a volume on a disk, by extent and by
// the reader that met it: blocks with the tags that they had, rising. It ends by a
// repair, by a write over it where the head shows it, or with the snapshot.
type damage map[shown][]wire.SyncBlock

// shown is an extent as a reader sees it: a snapshot, or 0 for the head.
type shown struct {
	extent uint64
	object uint32
}

func (a shown) compare(b shown) int {
	return cmp.Or(cmp.Compare(a.extent, b.extent), cmp.Compare(a.object, b.object))
}

// maxDamage bounds the blocks that are remembered of a volume; the next pass
// finds the rest.
const maxDamage = 16 << 10

func (d damage) blocks() (n int) {
	for _, b := range d {
		n += len(b)
	}
	return n
}

// Damage tells how many blocks of a volume on a disk are known to be unreadable
// and not repaired yet.
type Damage struct {
	Volume ids.ID
	Blocks int
}

// DamageOf lists the damaged volumes of a disk, in order.
func (c *Core) DamageOf(diskID ids.ID) (list []Damage) {
	if d := c.disk(diskID); d != nil && !d.dead {
		for _, v := range sortedVolumes(d.slots) {
			d.slots[v].forgetSnapshots()
			if n := d.slots[v].damage.blocks(); n > 0 {
				list = append(list, Damage{v, n})
			}
		}
	}
	return list
}

func (d *diskState) slotOf(volume ids.ID) *slot {
	s := d.slots[volume]
	if s == nil {
		s = &slot{disk: d, volume: volume}
		d.slots[volume] = s
	}
	return s
}

func searchBlock(list []wire.SyncBlock, block int) (int, bool) {
	return slices.BinarySearchFunc(list, block, func(b wire.SyncBlock, n int) int { return int(b.Block) - n })
}

// foundBad notes a bad block. One without a tag does not speak against the disk, for
// another copy's damage may have been handed on to it; but an extent whose whole
// metadata is gone has lost block 0, too.
func (c *Core) foundBad(d *diskState, s *slot, at shown, block int, tag wire.Tag) {
	if tag != wire.Lost || block == 0 {
		c.out.Events = append(c.out.Events, Event{Kind: BlockBad, Disk: d.id, Volume: s.volume, Extent: at.extent, Block: block})
	}
	s.addDamage(at, block, tag)
}

func (s *slot) addDamage(at shown, block int, tag wire.Tag) {
	list := s.damage[at]
	i, found := searchBlock(list, block)
	if found {
		list[i].Tag = tag
		return
	}
	if s.damage.blocks() >= maxDamage {
		return
	}
	if s.damage == nil {
		s.damage = damage{}
	}
	s.damage[at] = slices.Insert(list, i, wire.SyncBlock{Block: uint16(block), Tag: tag})
}

// repaired takes the end of a REPAIR: done, or the block has changed since.
func (c *Core) repaired(p *pending, st wire.Status) {
	if st != wire.OK && st != wire.TagChanged {
		return
	}
	p.slot.undamaged(shown{p.extent, p.object}, p.block, 1)
	if st == wire.OK {
		c.out.Events = append(c.out.Events, Event{Kind: BlockRepaired, Disk: p.disk.id, Volume: p.slot.volume, Extent: p.extent, Block: p.block})
	}
}

// undamaged forgets damage that is repaired, or that something newer has replaced.
func (s *slot) undamaged(at shown, block, count int) {
	list, ok := s.damage[at]
	if !ok {
		return
	}
	list = slices.DeleteFunc(list, func(b wire.SyncBlock) bool { return int(b.Block) >= block && int(b.Block) < block+count })
	if len(list) == 0 {
		delete(s.damage, at)
		return
	}
	s.damage[at] = list
}

// forget drops the damage of extents that the disk does not hold any more.
func (s *slot) forget(held []wire.ExtEntry) {
	s.forgetSnapshots()
	for e := range s.damage { // order does not show
		if _, found := slices.BinarySearchFunc(held, e.extent, func(x wire.ExtEntry, e uint64) int { return cmp.Compare(x.Extent, e) }); !found {
			delete(s.damage, e)
		}
	}
}

// forgetSnapshots drops the damage that only snapshots saw which are gone. A copy that
// joins, or started and was told nothing since, does not know which are there.
func (s *slot) forgetSnapshots() {
	if len(s.damage) == 0 {
		return
	}
	info, _ := s.disk.d.Volume(s.volume)
	if info.Untold {
		return
	}
	for at := range s.damage { // order does not show
		if at.object != 0 && !slices.Contains(info.Told.Snaps, at.object) {
			delete(s.damage, at)
		}
	}
}

// tellDamage tells the volume's writer, if it has one, all that is known.
func (c *Core) tellDamage(s *slot) {
	s.forgetSnapshots()
	for _, at := range slices.SortedFunc(maps.Keys(s.damage), shown.compare) {
		c.tellExtent(s, at, s.damage[at])
	}
}

func (c *Core) tellExtent(s *slot, at shown, blocks []wire.SyncBlock) {
	h := s.handle
	if h == nil || h.ended || h.guard == nil || h.guard.conn == nil || len(blocks) == 0 {
		return
	}
	c.send(h.guard.conn.id, &wire.Damage{Handle: h.id, Extent: at.extent, Object: at.object, Blocks: slices.Clone(blocks)})
}
