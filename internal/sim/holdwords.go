package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// Words about what disks do by themselves: merges and checkpoints. Their pace is the
// storage process's own, so a script that needs one copy to be behind says so.

// merges off|on nX...: the storage process has no time to merge objects.
func (p *player) merges(a []string) error {
	if len(a) < 2 || a[0] != "off" && a[0] != "on" {
		return fmt.Errorf("want off or on, and nodes")
	}
	list, err := p.nodes(a[1:])
	for _, n := range list {
		n.mergesOff = a[0] == "off"
	}
	return err
}

// Merge is the engine's, if the process has time for it.
func (t tapped) Merge() bool { return !t.n.mergesOff && t.Core.Merge() }

// objects nX EXTENT COUNT [parent]: the copy there has so many objects of an extent.
func (p *player) objects(n *node, a []string) (func() bool, error) {
	volume := p.t.volume
	if len(a) == 3 && a[2] == "parent" {
		volume, a = p.w.clones.parent, a[:2]
	}
	if len(a) != 2 {
		return nil, fmt.Errorf("want a node, an extent, and a number of objects")
	}
	extent, err := strconv.ParseUint(a[0], 10, 64)
	if err != nil {
		return nil, err
	}
	want, err := strconv.Atoi(a[1])
	return func() bool {
		return slices.ContainsFunc(n.disks, func(d *simDisk) bool {
			e := n.engines[d.id]
			return e != nil && len(e.ObjectsOf(volume, extent)) == want
		})
	}, err
}

// rotImage nX EXTENT OBJECT a|b: a bit of one of the two images of an object flips where
// it lies at rest; b is the one that stands behind the other on the disk.
func (p *player) rotImage(a []string) error {
	if len(a) != 4 || a[3] != "a" && a[3] != "b" {
		return fmt.Errorf("want a node, an extent, an object, and a or b")
	}
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	extent, err := strconv.ParseUint(a[1], 10, 64)
	if err != nil {
		return err
	}
	object, err := strconv.ParseUint(a[2], 10, 32)
	if err != nil {
		return err
	}
	p.w.profile.rotNode = n.index
	for _, d := range n.disks {
		if at, ok := d.imageAt(p.t.volume, extent, uint32(object), a[3] == "b"); ok {
			d.flip(p.w.rng, at)
			p.w.note("bit_rot")
			return nil
		}
	}
	return fmt.Errorf("object %d of extent %d has no image on %s", object, extent, n.name())
}

// imageAt finds an image of an object by what stands on the disk: docs/formats/disk.md,
// "Extent metadata".
func (d *simDisk) imageAt(volume ids.ID, extent uint64, object uint32, second bool) (at int64, ok bool) {
	const (
		imageBytes = repl.BlockBytes + repl.ExtentBlocks*8
		magic      = 0x31475441584553
		isHead     = 1
	)
	area, ok := d.area()
	if !ok {
		return 0, false
	}
	at = area[0]
	if second {
		at += imageBytes
	}
	page := make([]byte, repl.BlockBytes)
	for ; at < area[1]; at += 2 * imageBytes {
		d.read(page, at)
		le := binary.LittleEndian
		if le.Uint64(page) == magic && ids.ID(page[40:56]) == volume && le.Uint64(page[56:]) == extent && le.Uint32(page[64:]) == object && le.Uint32(page[68:]) == isHead {
			return at, true
		}
	}
	return 0, false
}

// applying nX: an image of an extent is being written, so a checkpoint has chosen its
// cut and has not moved the log's tail.
func (p *player) applying(n *node) func() bool {
	return func() bool {
		return slices.ContainsFunc(n.disks, func(d *simDisk) bool {
			area, ok := d.area()
			return ok && slices.ContainsFunc(d.flying, func(f *inFlight) bool { return f.io.Offset >= area[0] && f.io.Offset < area[1] })
		})
	}
}

// checkpointed nX: a checkpoint ends on each of its disks.
func (p *player) checkpointed(n *node) func() bool {
	count := func(d *simDisk) uint64 {
		if e := n.engines[d.id]; e != nil {
			return e.Stats().Checkpoints
		}
		return 0
	}
	var was []uint64
	for _, d := range n.disks {
		was = append(was, count(d))
	}
	return func() bool {
		for i, d := range n.disks {
			if count(d) <= was[i] {
				return false
			}
		}
		return true
	}
}
