package disk

import (
	"cmp"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// dropOpenings takes back empty opening batches at the end of the log: the next
// one stands in their place, so that crashes in recovery do not fill the ring.
// Not before a dropped tail: its batches say that the opening batch is durable.
func dropOpenings(from position, log []foundBatch, end position) ([]foundBatch, position) {
	for n := len(log); n > 0; n-- {
		h, before := log[n-1].h, from
		if n > 1 {
			p := log[n-2].h
			before = position{lsn: p.end(), chain: p.CRC, session: p.Session}
		}
		if h.Records > 0 || h.Flags != 0 || h.Session == before.session || h.LSN != before.lsn {
			break
		}
		log, end = log[:n-1], before
	}
	return log, end
}

// replay decides which part of the log counts, and then rebuilds the memory of it.
func (c *Core) replay() {
	s := c.scan
	s.ring = nil
	s.from = position{lsn: c.sb.CheckpointLSN, chain: c.sb.CheckpointChain, session: c.sb.CheckpointSess}
	var lost []LSNRange
	s.log, lost, s.tail, s.end = judgeLog(s.from, s.found, c.o.Mutations.TruncateDamagedLog)
	c.report.DamagedRanges = append(c.report.DamagedRanges, lost...)
	c.checkFresh()
}

// replayLog plays the log that was found good.
func (c *Core) replayLog() {
	s := c.scan
	log, tail, end := s.log, s.tail, s.end
	if len(tail) == 0 {
		log, end = dropOpenings(s.from, log, end)
	}
	c.report.Batches = len(log)
	c.takeImages()
	c.reserveSlots()
	l := &c.log
	l.tail = c.sb.CheckpointLSN
	l.head.session = end.session
	for i := range log {
		l.head.lsn = log[i].h.LSN
		for j := range log[i].recs {
			c.replayRecord(&log[i].recs[j], log[i].h.LSN)
		}
		l.proven = max(l.proven, log[i].h.DurableLSN)
		c.addStep(position{lsn: log[i].h.end(), chain: log[i].h.CRC, session: log[i].h.Session, seq: l.head.seq})
	}
	c.freeReserved()
	c.report.Records = int(l.head.seq)
	l.head.lsn, l.head.chain = end.lsn, end.chain
	l.done = l.head
	l.session = end.session
	for i := range s.found {
		l.session = max(l.session, s.found[i].h.Session)
	}
	l.session++
	if l.session <= c.o.SeenSession {
		c.openFailed(errs.New(errs.Conflict, "open disk %s: its newest session is %d, and session %d was seen on it: it is a clone or an older copy",
			c.sb.Identity.Disk, l.session-1, c.o.SeenSession).
			WithHint("connect the disk itself to this path; if it is lost, release it and let its copies be rebuilt"))
		return
	}
	c.report.Session = l.session
	for i := range tail {
		c.report.DroppedBytes += int64(tail[i].h.Bytes)
		for j := range tail[i].recs {
			c.unverified(&tail[i].recs[j])
		}
	}
	c.judgeDirectory()
	if c.err != nil {
		return
	}
	c.begin()
}

// takeImages makes the directory from the images.
func (c *Core) takeImages() {
	keys := make([]extKey, 0, len(c.scan.images))
	for k := range c.scan.images {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b extKey) int {
		return cmp.Or(a.volume.Compare(b.volume), cmp.Compare(a.extent, b.extent), cmp.Compare(a.object, b.object))
	})
	for _, k := range keys {
		list := c.scan.images[k]
		best := slices.MaxFunc(list, func(a, b imageHeader) int {
			if a.Mark.Less(b.Mark) {
				return -1
			}
			if b.Mark.Less(a.Mark) {
				return 1
			}
			return cmp.Compare(a.Seq, b.Seq)
		})
		for _, h := range list {
			if h.Slot != best.Slot { // a free image was lost: the slot stays out of use
				c.slots[h.Slot].bad = true
				c.report.UnreadableSlots++
			}
		}
		v := c.vols[k.volume]
		if v == nil {
			v = c.quarantine(k.volume)
		}
		if v == nil {
			continue
		}
		e := v.addObject(k.extent, k.object)
		e.slot, e.mark, e.formed = int(best.Slot), best.Mark, best.Mark
		e.imgMark, e.imgSeq, e.durSeq, e.twin = best.Mark, best.Seq, best.Seq, c.scan.twins[best.Slot]
		if c.scan.alone[best.Slot] {
			e.rewrite = true
			// A crash tore the copy, or it rotted. An object that nobody writes any
			// more would be lost with the next one that does.
			c.markDirty(e)
		}
	}
	for i := range c.slots {
		if !c.slots[i].used {
			c.free++
		}
	}
}

// quarantine keeps the extents of a volume that the table does not know (the
// log may name it). Nothing is ever freed because it is not known.
func (c *Core) quarantine(id ids.ID) *volume {
	v := c.newVolume(volumeEntry{Volume: id}, -1)
	c.vols[id] = v
	return v
}

// replayRecord does for a record of the log what its appending did.
func (c *Core) replayRecord(d *descriptor, lsn uint64) {
	l := &c.log
	l.head.seq++
	r := &rec{descriptor: *d, lsn: lsn, seq: l.head.seq}
	if d.Payload != 0 {
		r.dataLSN = lsn + uint64(d.Payload)
	}
	if d.Type == recVolume {
		c.replayVolume(d)
		return
	}
	if d.Type == recDrop {
		c.replayDrop(r)
		return
	}
	var v *volume
	if int(d.Index) < len(c.byIndex) {
		v = c.byIndex[d.Index]
	}
	if v == nil || v.dropped {
		return
	}
	r.vol = v
	if d.Type == recMarks {
		b := dec{b: d.Body}
		raise(&v.Durable, d.Mark)
		raise(&v.Flush, b.mark())
		raise(&v.TombForget, b.mark())
		return
	}
	c.replayBlocks(r, v)
}

// replayDrop: the volume may be missing in the table already while its images
// are not freed yet.
func (c *Core) replayDrop(r *rec) {
	if len(r.Body) != 16 || r.Index > uint32(c.sb.TableBytes/volumeEntryBytes) {
		return
	}
	v := c.vols[ids.ID(r.Body)]
	if v == nil {
		return
	}
	c.placeVolume(v, int(r.Index))
	delete(c.vols, v.Volume)
	v.dropped, v.window, v.tombs = true, nil, nil
	c.tableNew = true
	r.vol = v
	c.indexDrop(r)
}

func (c *Core) placeVolume(v *volume, index int) {
	for index >= len(c.byIndex) {
		c.byIndex = append(c.byIndex, nil)
	}
	v.index = index
	c.byIndex[index] = v
}

func (c *Core) replayVolume(d *descriptor) {
	entry, ok := decodeVolumeEntry(d.Body)
	if !ok || d.Index > uint32(c.sb.TableBytes/volumeEntryBytes) {
		return
	}
	v := c.vols[entry.Volume]
	if v == nil {
		v = c.quarantine(entry.Volume)
	}
	c.placeVolume(v, int(d.Index))
	if entry.Version >= v.Version {
		durable, flush, forget := v.Durable, v.Flush, v.TombForget
		v.volumeEntry = entry
		raise(&v.Durable, durable)
		raise(&v.Flush, flush)
		raise(&v.TombForget, forget)
		c.tableNew = true
	}
}

func raise(m *repl.Mark, to repl.Mark) {
	if m.Less(to) {
		*m = to
	}
}

func (c *Core) replayBlocks(r *rec, v *volume) {
	if r.Flags&flagUnverified != 0 { // only listed: its data is not here
		r.inWindow = true
		v.window = append(v.window, r)
		return
	}
	raise(&v.Max, r.Mark)
	if r.Type == recFree {
		if e := v.object(r.Extent, r.Object); e != nil {
			r.ext, e.claim = e, 0
			c.index(r)
		}
		return
	}
	e := v.addObject(r.Extent, r.Object)
	r.ext = e
	raise(&e.mark, r.Mark)
	e.claim = max(e.claim, r.ImageSeq)
	r.inWindow = true
	v.window = append(v.window, r)
	if r.Flags&flagNote != 0 {
		// The tail passed a tombstone only after it was applied, so a note says
		// something only where no data is.
		switch {
		case r.Type != recTombstone:
		case e.slot < 0 && len(e.pend) == 0 && (v.TombForget.Less(r.Mark) || e.object > 0):
			e.claim = 0
			c.indexTombstone(r, e)
		case r.Mark == e.tombMark:
			e.tombLSN = r.lsn
		case e.object > 0 && e.imgSeq == 0 && !e.tombPending && !e.holes && !c.o.Mutations.ForgetHoles:
			// What the log has of the object is newer, and lies over holes.
			c.holdTomb(e)
			e.holes, e.tombLSN, e.tombMark, e.tombSeq = true, r.lsn, r.Mark, 0
			e.version++
		}
		return
	}
	if r.fills(e) && e.slot < 0 {
		if !c.replaySlot(r, e) {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: the log needs more extents than there are", c.sb.Identity.Disk))
			return
		}
	}
	if r.Type == recTombstone {
		e.claim = 0
	}
	if r.Flags&flagFresh != 0 && e.slot != int(r.Slot) {
		// The log has a gap, and in it what gave the object another slot.
		e.baseUnknown = true
		c.damage(v)
		c.markDirty(e)
		return
	}
	c.index(r)
}

// isWrite: it is a client's write, not a sync or a repair, which bear marks of
// writes that others made durable long ago.
func (d *descriptor) isWrite() bool {
	return d.Type == recWrite || d.Type == recZero || d.Type == recTombstone
}

// unverified lists a record of the dropped tail in its volume's window.
func (c *Core) unverified(d *descriptor) {
	if d.Type != recWrite && d.Type != recZero && d.Type != recTombstone && d.Type != recSync && d.Type != recRepair || d.Flags&^flagFresh != 0 {
		return
	}
	if int(d.Index) >= len(c.byIndex) || c.byIndex[d.Index] == nil || c.byIndex[d.Index].dropped {
		return
	}
	v := c.byIndex[d.Index]
	if d.isWrite() {
		if !v.Durable.Less(d.Mark) {
			c.damage(v) // it was flushed here: this is no torn tail
			return
		}
	} else if !v.Flush.Less(d.Mark) {
		return
	}
	n := &rec{descriptor: *d, vol: v, inWindow: true}
	n.Flags, n.Payload, n.Slot = flagUnverified, 0, 0
	v.window = append(v.window, n)
	v.unverified++
	c.report.Unverified++
	c.log.notes = append(c.log.notes, n)
}

// judgeDirectory finds extents whose newest image is lost, and volumes that may
// have lost something.
func (c *Core) judgeDirectory() {
	c.free = 0
	for i := range c.slots {
		if !c.slots[i].used && !c.slots[i].bad {
			c.free++
		}
	}
	list := c.allVolumes()
	for _, v := range list {
		v.slots = 0
		raise(&v.Max, v.Durable)
		raise(&v.Max, v.Flush)
		for _, e := range c.sortedExts(v) {
			if e.slot >= 0 {
				v.slots++
			}
			raise(&v.Max, e.mark)
			e.order = e.mark
			if e.claim > e.imgSeq && !e.tomb && !e.tombPending {
				c.loseExtent(v, e)
			}
		}
	}
	// A slot without an image: some extent is gone and nobody knows which.
	all := len(c.report.DamagedRanges) > 0 || len(c.clean) > 0
	for _, v := range list {
		v.window = dedupe(v.window)
		if !v.dropped && (v.index < 0 || all && !v.Damaged) {
			c.damage(v)
		}
		if !v.dropped {
			c.pruneWindow(v)
		}
	}
}

func (c *Core) loseExtent(v *volume, e *ext) {
	c.report.DamagedExtents++
	e.baseUnknown, e.version = true, e.version+1
	if e.slot < 0 {
		if e.slot = c.allocSlot(); e.slot < 0 {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no slot for a lost extent", c.sb.Identity.Disk))
			return
		}
		v.slots++
	}
	c.markDirty(e)
	if !v.Damaged && !v.dropped {
		c.damage(v)
	}
}

// damage marks a volume; the mark is logged by begin.
func (c *Core) damage(v *volume) {
	if v.index < 0 {
		limit := int((c.sb.TableBytes - tableHeaderBytes) / volumeEntryBytes)
		i := slices.Index(c.byIndex, nil)
		if i < 0 && len(c.byIndex) < limit {
			i = len(c.byIndex)
			c.byIndex = append(c.byIndex, nil)
		}
		if i < 0 {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no room for an unknown volume", c.sb.Identity.Disk))
			return
		}
		v.index = i
		c.byIndex[i] = v
	}
	v.Damaged = true
	c.log.gather = append(c.log.gather, c.volumeRecord(v))
}

// allVolumes returns the volumes in a fixed order: by index, then quarantined.
func (c *Core) allVolumes() []*volume {
	var list []*volume
	for _, v := range c.byIndex {
		if v != nil {
			list = append(list, v)
		}
	}
	for _, id := range c.Volumes() {
		if v := c.vols[id]; v.index < 0 {
			list = append(list, v)
		}
	}
	return list
}

// dedupe drops notes of records that the log still has: a crash may leave both.
func dedupe(window []*rec) []*rec {
	type key struct {
		extent uint64
		block  uint16
		kind   uint8
		mark   repl.Mark
		listed bool // unverified: says nothing of a record of the same mark
	}
	seen := map[key]*rec{}
	return slices.DeleteFunc(window, func(r *rec) bool {
		k := key{r.Extent, r.Block, r.Type, r.Mark, r.Flags&flagUnverified != 0}
		if r.Type == recSync || r.Type == recRepair {
			k.block = r.Blocks[0].Block
		}
		if old := seen[k]; old != nil && r.Flags&^flagFresh != 0 {
			old.lsn = max(old.lsn, r.lsn) // the note holds it
			return true
		}
		seen[k] = r
		return false
	})
}

// begin writes the opening batch: it starts the session, so that what is left of
// a dropped tail can never be taken for a part of the log.
func (c *Core) begin() {
	l := &c.log
	l.durable = position{lsn: c.sb.CheckpointLSN, chain: c.sb.CheckpointChain, session: c.sb.CheckpointSess}
	l.nudge = true
	l.opening = true
	for l.nudge || len(l.notes) > 0 || len(l.gather) > 0 {
		if c.formBatch() {
			continue
		}
		if len(l.notes) > 0 { // the list of the dropped tail stays in memory only
			l.notes, l.nudge = nil, true
		} else {
			c.openFailed(errs.New(errs.Corrupt, "open disk %s: no room in the log for the opening batch", c.sb.Identity.Disk))
			return
		}
	}
	c.afterSync(l.head.seq, func() {
		c.opened, l.opening = true, false
		c.scan = nil
	})
}
