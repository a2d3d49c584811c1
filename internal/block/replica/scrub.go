package replica

import (
	"cmp"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// A scrub pass reads everything that a disk holds, one small step after another,
// and compares it with its checksums:
//
//	superblocks and table -> for each volume, each extent: both images of each object,
//	then the data in steps of 128 KiB -> a checkpoint, which writes again what was bad
//
// Of 100 ms it takes at most Duty; a quarter of that while others use the disk.
// What it finds goes to the volume's writer, which has the other copies.

// ScrubCursor is the place in a pass: everything before it was looked at. The
// zero value is the beginning.
type ScrubCursor struct {
	Volume ids.ID `json:"volume"`
	Extent uint64 `json:"extent"`
}

// ScrubOptions of StartScrub.
type ScrubOptions struct {
	DutyPercent int // 1 to 100; 0 = 5
	From        ScrubCursor
}

// ScrubStatus tells how a pass goes on, or how the last one of this process went.
type ScrubStatus struct {
	Running     bool
	Cursor      ScrubCursor
	Extents     int // looked at, the part before From not counted
	Total       int // on the disk when the pass began
	Bytes       int64
	BadBlocks   int
	BadMetadata int
	Skipped     int // objects of extents, and superblocks, that were on the move each time
}

const (
	defaultDuty = 5
	scrubBlocks = 32 // a step: 128 KiB
	// A disk that others used within this time is not idle.
	scrubBusy  = 100 * time.Millisecond
	scrubTries = 100 // of metadata that a checkpoint is just writing
	scrubRetry = 20 * time.Millisecond
)

type scrubStage uint8

const (
	scrubMeta scrubStage = iota
	scrubNext            // choose the next extent
	scrubImages
	scrubData
)

type scrub struct {
	on, busy bool
	pass     uint64 // of this disk and process
	duty     int
	stage    scrubStage
	vols     []ids.ID
	exts     []wire.ExtEntry // of vols[0]
	images   []uint32        // objects of exts[0] whose images are still to be read, [0] now
	snaps    []uint32        // snapshots whose view of exts[0] is still to be read
	object   uint32          // whose view is read now, 0 = head
	block    int
	tries    int
	began    clock.Instant // of the step under way
	nextAt   clock.Instant
	st       ScrubStatus
}

func (s *scrub) due() bool { return s.on && !s.busy }

// StartScrub begins a pass over a disk, or changes the duty of the one that runs.
// It reports whether the disk is there.
func (c *Core) StartScrub(now clock.Instant, diskID ids.ID, o ScrubOptions) bool {
	d := c.disk(diskID)
	if d == nil || d.dead {
		return false
	}
	duty := o.DutyPercent
	if duty <= 0 || duty > 100 {
		duty = defaultDuty
	}
	s := &d.scrub
	if s.on {
		s.duty = duty
		s.nextAt = min(s.nextAt, now.Add(scrubRetry))
		return true
	}
	busy := s.busy // a step of the pass before is still under way
	*s = scrub{on: true, busy: busy, pass: s.pass + 1, duty: duty, nextAt: now, vols: d.d.Volumes()}
	s.st = ScrubStatus{Running: true, Cursor: o.From}
	for _, v := range s.vols {
		list := extentsOf(d, v)
		s.st.Total += len(list)
		d.slotOf(v).forget(list)
	}
	s.vols = slices.DeleteFunc(s.vols, func(v ids.ID) bool { return v.Compare(o.From.Volume) < 0 })
	if len(s.vols) > 0 {
		s.list(d)
	}
	return true
}

// StopScrub ends the pass of a disk where it is; Cursor says where.
func (c *Core) StopScrub(diskID ids.ID) {
	if d := c.disk(diskID); d != nil {
		d.scrub.on, d.scrub.st.Running = false, false
	}
}

// diskGone ends the pass of a disk that died or left: no step of it may be under
// way that would end it.
func (c *Core) diskGone(d *diskState) {
	if !c.o.Mutations.ScrubOutlivesDisk {
		d.scrub.on, d.scrub.st.Running = false, false
	}
}

// Scrub tells how the pass of a disk goes on.
func (c *Core) Scrub(diskID ids.ID) ScrubStatus {
	if d := c.disk(diskID); d != nil {
		return d.scrub.st
	}
	return ScrubStatus{}
}

// list notes the extents of the first volume that are not behind the cursor.
func (s *scrub) list(d *diskState) {
	s.exts = extentsOf(d, s.vols[0])
	if s.st.Cursor.Volume == s.vols[0] {
		s.exts = slices.DeleteFunc(s.exts, func(e wire.ExtEntry) bool { return e.Extent < s.st.Cursor.Extent })
	}
}

// extentsOf lists the extents of a volume that hold anything, each once.
func extentsOf(d *diskState, v ids.ID) []wire.ExtEntry {
	list := slices.DeleteFunc(d.d.Objects(v, repl.Mark{}), func(e wire.ExtEntry) bool { return e.Tombstone })
	slices.SortStableFunc(list, func(a, b wire.ExtEntry) int { return cmp.Compare(a.Extent, b.Extent) })
	return slices.CompactFunc(list, func(a, b wire.ExtEntry) bool { return a.Extent == b.Extent })
}

// readersOf lists the snapshots that see something of an extent which the head does
// not show. A copy that joins has objects of snapshots of which it is told only when
// it is in sync: until then, where none that it knows tells two neighbours apart, one
// of the newer one's number does, for that was the newest when the object was begun.
func (c *Core) readersOf(d *diskState, volume ids.ID, extent uint64) (list []uint32) {
	info, _ := d.d.Volume(volume)
	objects := d.d.ObjectsOf(volume, extent)
	for i := len(objects) - 1; i > 0; i-- {
		older, newer, told := objects[i], objects[i-1], false
		for _, n := range info.Told.Snaps {
			if older < n && n <= newer {
				list, told = append(list, n), true
			}
		}
		if !told && info.Untold && !c.o.Mutations.ScrubKnownSnapshots {
			list = append(list, newer)
		}
	}
	return list
}

func (c *Core) tickScrub(now clock.Instant, d *diskState) {
	s := &d.scrub
	if !s.due() || now < s.nextAt {
		return
	}
	if s.stage == scrubNext && !c.chooseExtent(d) {
		s.on, s.st.Running, s.st.Cursor = false, false, ScrubCursor{}
		d.d.Checkpoint()
		d.touched = true
		c.out.Events = append(c.out.Events, Event{Kind: ScrubEnded, Disk: d.id})
		return
	}
	s.busy, s.began = true, now
	p := pending{kind: pendScrub, disk: d, reqID: s.pass}
	switch s.stage {
	case scrubMeta:
		d.d.CheckMeta(c.pending.add(p))
	case scrubImages:
		d.d.CheckImages(c.pending.add(p), s.vols[0], s.exts[0].Extent, s.images[0])
	case scrubData:
		n := min(scrubBlocks, d.d.ExtentBlocks()-s.block)
		p.slot, p.extent, p.object, p.block, p.buf = d.slotOf(s.vols[0]), s.exts[0].Extent, s.object, s.block, c.o.Pool.Alloc(n*repl.BlockBytes)
		d.d.Read(c.pending.add(p), disk.ReadRequest{Volume: s.vols[0], Extent: p.extent, Object: p.object, Block: s.block, Count: n, Buf: p.buf})
	}
	d.touched = true
}

// chooseExtent moves to the first extent that is left; false: there is none.
func (c *Core) chooseExtent(d *diskState) bool {
	s := &d.scrub
	for len(s.exts) == 0 {
		if len(s.vols) > 0 {
			s.vols = s.vols[1:]
		}
		if len(s.vols) == 0 {
			return false
		}
		s.list(d)
	}
	s.st.Cursor = ScrubCursor{s.vols[0], s.exts[0].Extent}
	s.stage, s.block, s.tries = scrubImages, 0, 0
	s.images = d.d.ObjectsOf(s.vols[0], s.exts[0].Extent)
	if c.o.Mutations.ScrubHeadImages {
		s.images = s.images[:min(1, len(s.images))]
	}
	if len(s.images) == 0 { // gone meanwhile
		s.stage = scrubData
	}
	s.object, s.snaps = 0, c.readersOf(d, s.vols[0], s.exts[0].Extent)
	return true
}

// scrubDone takes the end of a step and sets the time of the next.
func (c *Core) scrubDone(now clock.Instant, p *pending, done *disk.Completion) {
	d := p.disk
	s := &d.scrub
	if p.buf != nil {
		c.free(p.buf)
	}
	s.busy = false
	if done.Status == wire.DiskFailed || d.dead {
		s.on, s.st.Running = false, false
		return
	}
	if !s.on || p.reqID != s.pass {
		return
	}
	s.pace(now, d)
	switch {
	case done.Status == wire.Busy:
		s.nextAt = now.Add(scrubRetry)
		if s.tries++; s.tries >= scrubTries {
			s.st.Skipped++
			s.metaDone() // what comes next is looked at all the same
		}
	case s.stage == scrubMeta, s.stage == scrubImages:
		if n := len(done.Bad); n > 0 {
			s.st.BadMetadata += n
			c.out.Events = append(c.out.Events, Event{Kind: MetaRepaired, Disk: d.id})
		}
		s.metaDone()
	default:
		c.scrubbed(p, done)
	}
}

// metaDone moves on from the superblocks, or from the images of an object: to those
// of the next, behind the last to the data.
func (s *scrub) metaDone() {
	s.tries = 0
	if s.stage == scrubImages && len(s.images) > 1 {
		s.images = s.images[1:]
		return
	}
	s.stage++
}

func (c *Core) scrubbed(p *pending, done *disk.Completion) {
	d := p.disk
	s := &d.scrub
	n := len(done.Tags)
	p.slot.undamaged(shown{p.extent, p.object}, p.block, n) // what can be read now is no damage; the rest is noted again
	var bad []wire.SyncBlock
	for _, i := range done.Bad {
		s.st.BadBlocks++
		c.foundBad(d, p.slot, shown{p.extent, p.object}, p.block+i, done.Tags[i])
		bad = append(bad, wire.SyncBlock{Block: uint16(p.block + i), Tag: done.Tags[i]})
	}
	c.tellExtent(p.slot, shown{p.extent, p.object}, bad)
	for _, t := range done.Tags {
		if t.Stamp != 0 {
			s.st.Bytes += repl.BlockBytes
		}
	}
	s.block += max(n, 1)
	// A volume or extent that is gone meanwhile answers without tags.
	if n == 0 || s.block >= d.d.ExtentBlocks() {
		if len(s.snaps) > 0 {
			s.object, s.snaps, s.block = s.snaps[0], s.snaps[1:], 0
			return
		}
		s.stage = scrubNext
		s.st.Extents++
		if len(s.exts) > 0 {
			s.exts = s.exts[1:]
		}
	}
}

// pace waits so long that the steps take their share of the time and no more.
//
//	wait = took * (100/duty - 1)      5 %: 19 times as long as the step took
func (s *scrub) pace(now clock.Instant, d *diskState) {
	duty := float64(s.duty)
	if s.duty < 100 && now < d.activeAt.Add(scrubBusy) {
		duty /= 4
	}
	s.nextAt = now.Add(time.Duration(float64(now.Sub(s.began)) * (100/duty - 1)))
}
