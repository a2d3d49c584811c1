package sim

import (
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// lies are what a disk does wrong without a word, once each, the next time that
// it fits. Only disks of the node that may rot lie, and only about extents: a
// write of the log that was lost and never followed by another looks like a torn
// tail, which docs/design/disk.md states as a limit.
type lies struct {
	area      [2]int64                        // where images begin, where data begins
	lose      int                             // writes that are reported and not made
	misdirect int                             // writes that land elsewhere in their area
	stale     int                             // reads that do not see the newest write
	older     map[int64][disk.BlockBytes]byte // pages as they were before it
	images    int                             // images lost so far: one a run, see mayLose
}

// tailBytes at the end of a disk have superblocks.
const tailBytes = 1 << 20

// mayLose reports whether a write may be lost. Of images one in a run: both of an
// extent lost in one checkpoint leave the state before, which nothing but the
// comparison of the copies can tell.
func (l *lies) mayLose(io disk.IO) bool {
	if io.Op != disk.OpWrite || io.Offset < l.area[0] || l.area[0] == 0 || io.Offset >= diskBytes-tailBytes {
		return false
	}
	if io.Offset < l.area[1] {
		l.images++
		return l.images == 1
	}
	return true
}

// lieWrite does a write wrong if it is its turn; false: the disk does it right.
func (d *simDisk) lieWrite(w *world, io disk.IO) bool {
	l := &d.lies
	switch {
	case l.lose+l.misdirect == 0 || !l.mayLose(io):
		return false
	case l.lose > 0:
		l.lose--
		w.note("lost_write")
		d.rotten++
		w.tracef("disk %s loses a write of %d at %d", d.id.Short(), io.Length, io.Offset)
		return true
	}
	l.misdirect--
	w.note("misdirected_write")
	d.rotten++
	w.tracef("disk %s writes %d for %d elsewhere", d.id.Short(), io.Length, io.Offset)
	// Elsewhere in the same area, at the same alignment, at most 16 MiB away.
	lo, hi := l.area[0], l.area[1]
	if io.Offset >= l.area[1] {
		lo, hi = l.area[1], l.area[1]+16<<20
	}
	at := lo + int64(w.rng.IntN(int((hi-lo)/disk.BlockBytes)))*disk.BlockBytes
	if at+io.Length > hi {
		at = lo
	}
	for _, b := range io.Bufs {
		d.cache = append(d.cache, cached{at, slices.Clone(b)})
		at += int64(len(b))
	}
	return true
}

// overwritten keeps what a page held before a write became durable, as long as a
// stale read is to come.
func (d *simDisk) overwritten(offset int64) {
	l := &d.lies
	page := offset / disk.BlockBytes
	if l.stale == 0 || offset < l.area[0] || offset >= diskBytes-tailBytes {
		return
	}
	if l.older == nil {
		l.older = map[int64][disk.BlockBytes]byte{}
	}
	if _, ok := l.older[page]; !ok {
		var was [disk.BlockBytes]byte
		if p := d.durable[page]; p != nil {
			was = *p
		}
		l.older[page] = was
	}
}

// lieRead serves a read with one page as it was before its last write.
func (d *simDisk) lieRead(w *world, io disk.IO) bool {
	l := &d.lies
	if l.stale == 0 || len(io.Bufs) != 1 {
		return false
	}
	for at := int64(0); at < io.Length; at += disk.BlockBytes {
		page := (io.Offset + at) / disk.BlockBytes
		was, ok := l.older[page]
		if !ok {
			continue
		}
		l.stale--
		w.note("stale_read")
		d.rotten++
		w.tracef("disk %s reads page %d stale", d.id.Short(), page)
		d.read(io.Bufs[0], io.Offset)
		copy(io.Bufs[0][at:], was[:])
		delete(l.older, page)
		return true
	}
	return false
}

// liar picks a disk that may lie.
func (w *world) liar() *simDisk {
	n := w.nodes[w.profile.rotNode]
	if w.profile.rotNode == w.profile.failingNode || !n.serving() {
		return nil
	}
	d := n.disks[w.rng.IntN(len(n.disks))]
	if d.dead || d.lies.lose+d.lies.misdirect+d.lies.stale > 4 {
		return nil
	}
	if _, ok := d.area(); !ok {
		return nil
	}
	return d
}

// area says where images begin and where data begins.
func (d *simDisk) area() ([2]int64, bool) {
	if d.lies.area[0] == 0 {
		rep, err := disk.Fsck(d, diskBytes)
		if err != nil {
			return d.lies.area, false
		}
		d.lies.area = [2]int64{rep.Superblock.MetaOffset, rep.Superblock.DataOffset}
	}
	return d.lies.area, true
}

// ReadAt makes a simDisk what Fsck reads.
func (d *simDisk) ReadAt(p []byte, off int64) (int, error) {
	d.read(p, off)
	return len(p), nil
}

func (w *world) faultLostWrite() {
	if d := w.liar(); d != nil {
		w.note("lost_write_armed")
		d.lies.lose++
	}
}

func (w *world) faultMisdirectedWrite() {
	if d := w.liar(); d != nil {
		w.note("misdirected_write_armed")
		d.lies.misdirect++
	}
}

func (w *world) faultStaleRead() {
	if d := w.liar(); d != nil {
		w.note("stale_read_armed")
		d.lies.stale++
	}
}

// lied reports whether a disk may hold anything wrong.
func (w *world) lied() bool {
	return w.counts["bit_rot"]+w.counts["log_rot"]+w.counts["lost_write"]+w.counts["misdirected_write"]+w.counts["stale_read"]+w.counts["lying_sync"] > 0
}

// faultScrub is none, but work that races with everything else: passes over all
// disks, and a comparison of the copies.
func (w *world) faultScrub() {
	w.note("scrub")
	w.startScrub(1 + w.rng.IntN(100))
}

func (w *world) startScrub(duty int) {
	for _, n := range w.nodes {
		if n.serving() && !n.asleep {
			for _, d := range n.disks {
				n.core.StartScrub(n.clock(), d.id, replica.ScrubOptions{DutyPercent: duty})
			}
			n.pump()
		}
	}
	for _, t := range w.living() {
		if g := t.manager.active; g != nil && !g.ended() {
			g.step(writer.Command{Kind: writer.Scrub})
		}
	}
}

// scrubAll lets passes and comparisons run until one finds nothing, and then
// demands that every in-sync copy is readable in full and the same as the others.
func (w *world) scrubAll() bool {
	for _, n := range w.nodes {
		for _, d := range n.disks {
			d.lies.lose, d.lies.misdirect, d.lies.stale, d.lies.older = 0, 0, 0, nil
		}
	}
	for try := 0; ; try++ {
		if try == 20 && w.counts["block_given_up"] > 0 && len(w.snaps.numbers()) > 0 {
			w.note("snapshot_block_lost") // a write heals the head, nothing heals a snapshot
			break
		}
		if try == 20 && w.onlyMovedDamage() {
			w.note("damage_of_moved") // nobody repairs, or reads, what no segment names
			break
		}
		if try == 20 {
			w.failf("scrubs find damage again and again; %s", w.describe())
			return false
		}
		w.janitor.round()
		before := w.scrubsRun()
		w.startScrub(100)
		limit := w.now.Add(10 * time.Minute)
		if !w.run(limit, func() bool { return w.all((*tenant).whole) && w.scrubIdle() && w.scrubbedSince(before) }) {
			if w.err == nil {
				w.failf("a scrub does not end: %s", w.describe())
			}
			return false
		}
		if w.scrubClean() {
			break
		}
	}
	w.note("scrubbed")
	for _, t := range w.asked() {
		clear(t.tainted) // the copies were compared
		t.demandClean()
		t.demandImages()
	}
	return w.err == nil
}

// onlyMovedDamage reports whether every block that cannot be read is in a copy that
// has left its segment, on a disk that has other segments yet: it is kept there for
// the snapshots that it shows. A disk that no segment names must have been freed.
func (w *world) onlyMovedDamage() bool {
	for _, t := range w.living() {
		v := t.record()
		snaps := []uint32{0}
		if t.first() {
			snaps = append(w.snaps.numbers(), 0)
		}
		for _, n := range w.nodes {
			for _, d := range n.disks {
				named := placed(v.Seg, d.id)
				for e := range uint64(extentCount) {
					if d.dead || n.engines[d.id] == nil || named && !slices.Contains(v.Seg.Row(int(e)*repl.ExtentBytes/segmentBytes), d.id) {
						continue
					}
					for _, snap := range snaps {
						if _, bad := n.readExtent(d.id, t.volume, e, snap); len(bad) > 0 {
							return false
						}
					}
				}
			}
		}
	}
	return w.err == nil
}

// scrubRuns names a guard and counts its comparisons.
type scrubRuns struct {
	guard ids.ID
	runs  int
}

func (t *tenant) scrubRuns() (r scrubRuns) {
	if g := t.manager.active; g != nil {
		r.guard, r.runs = g.id, g.core.Health().Volumes[0].Scrub.Runs
	}
	return r
}

func (w *world) scrubsRun() (list []scrubRuns) {
	for _, t := range w.tenants {
		list = append(list, t.scrubRuns())
	}
	return list
}

// scrubbedSince: every volume's copies were compared since.
func (w *world) scrubbedSince(before []scrubRuns) bool {
	return w.all(func(t *tenant) bool { return t.scrubRuns() != before[t.index] })
}

func (w *world) scrubIdle() bool {
	for _, n := range w.nodes {
		for _, d := range n.disks {
			if n.core != nil && n.core.Scrub(d.id).Running { // a dead disk's, too: its pass has ended
				return false
			}
		}
	}
	return w.all(func(t *tenant) bool {
		h := t.manager.active.core.Health().Volumes[0]
		return !h.Scrub.Running && h.Healing == 0
	})
}

// scrubClean reports whether the last round found nothing.
func (w *world) scrubClean() bool {
	for _, n := range w.nodes {
		for _, d := range n.disks {
			if d.dead {
				continue // what its last pass found stands there for ever
			}
			st, damage := n.core.Scrub(d.id), n.core.DamageOf(d.id)
			if len(w.asked()) < len(w.living()) {
				// A volume that waits for its last copies keeps its damage.
				st.BadBlocks, st.BadMetadata = 0, 0
				damage = slices.DeleteFunc(damage, func(x replica.Damage) bool { t := w.tenantOf(x.Volume); return t != nil && t.waits })
			}
			if st.BadBlocks+st.BadMetadata > 0 || len(damage) > 0 {
				w.note("scrub_found")
				w.tracef("%s disk %s: %+v, damage %v", n.name(), d.id.Short(), st, damage)
				return false
			}
		}
	}
	for _, t := range w.asked() {
		h := t.manager.active.core.Health().Volumes[0].Scrub
		if h.Differ+h.Repaired > 0 {
			w.note("scrub_repaired")
			t.tell("comparison: %+v", h)
			return false
		}
	}
	return true
}

// demandClean reads every block of every in-sync copy from its disk, as the head
// and as each snapshot shows it.
func (t *tenant) demandClean() {
	t.demandCleanReader(0)
	if t.w.counts["block_given_up"] > 0 {
		return // a write heals the head, nothing heals a snapshot
	}
	for _, snap := range t.snapshots() {
		t.demandCleanReader(snap)
	}
}

// demandImages looks at both images of each object of every in-sync copy, where they
// lie: nothing that one more bit could take away may be left without its twin.
func (t *tenant) demandImages() {
	w, v := t.w, t.record()
	for e := range uint64(extentCount) {
		for _, d := range v.ISR(int(e) * repl.ExtentBytes / segmentBytes) {
			n := w.nodeOfDisk(d)
			if n.diskByID(d).dead || n.engines[d] == nil {
				continue
			}
			for _, object := range n.engines[d].ObjectsOf(t.volume, e) {
				c, err := n.checkImages(d, t.volume, e, object)
				if err != nil || c.Status != wire.OK || len(c.Bad) > 0 {
					w.failf("object %d of extent %d on %s has bad images after a scrub: %v, status %d, %v", object, e, n.name(), c.Bad, c.Status, err)
					return
				}
			}
		}
	}
}

// checkImages asks an engine, as often as a checkpoint of it is under way.
func (n *node) checkImages(d, volume ids.ID, extent uint64, object uint32) (c disk.Completion, err error) {
	w := n.w
	for limit := w.now.Add(time.Minute); w.now < limit && w.err == nil; {
		c, err = n.ask(d, func(eng *disk.Core, token uint64) { eng.CheckImages(token, volume, extent, object) })
		if err != nil || c.Status != wire.Busy {
			return c, err
		}
		passed := false
		w.after(10*time.Millisecond, func() { passed = true })
		w.run(limit, func() bool { return passed })
	}
	return c, err
}

func (t *tenant) demandCleanReader(snap uint32) {
	w, v := t.w, t.record()
	for e := range uint64(extentCount) {
		var want []wire.Tag
		for _, d := range v.ISR(int(e) * repl.ExtentBytes / segmentBytes) {
			n := w.nodeOfDisk(d)
			if n.diskByID(d).dead || n.engines[d] == nil {
				continue
			}
			got, bad := n.readExtent(d, t.volume, e, snap)
			if len(bad) > 0 {
				w.failf("extent %d of snapshot %d on %s is not readable after a scrub: blocks %v", e, snap, n.name(), bad)
				return
			}
			if want == nil {
				want = got
				continue
			}
			for b := range want {
				if !sameContent(want[b], got[b]) {
					w.failf("extent %d block %d of snapshot %d differs after a scrub: %v and, on %s, %v", e, b, snap, want[b], n.name(), got[b])
					return
				}
			}
		}
	}
}

// readExtent reads an extent from the engine of a disk.
func (n *node) readExtent(d, volume ids.ID, extent uint64, snap uint32) ([]wire.Tag, []int) {
	c, err := n.ask(d, func(eng *disk.Core, token uint64) {
		eng.Read(token, disk.ReadRequest{Volume: volume, Extent: extent, Object: snap, Count: repl.ExtentBlocks, Buf: make([]byte, repl.ExtentBytes)})
	})
	if err != nil {
		return nil, []int{-1}
	}
	if c.Tags == nil {
		c.Tags = make([]wire.Tag, repl.ExtentBlocks)
	}
	return c.Tags, c.Bad
}
