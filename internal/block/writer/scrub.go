package writer

import (
	"cmp"
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// scrubJob compares the tags of the in-sync copies of a volume: the extents that
// any of them has are listed, then each is locked against writes for one round
// trip while its copies tell their tags.
type scrubJob struct {
	serial  uint64 // tells the answers of an earlier one apart
	listed  bool
	lists   int // unanswered
	failed  bool
	retryAt clock.Instant
	heads   []scrubTarget // of the lists: every object of every copy
	exts    []scrubTarget // rising
	next    int
	running int
	health  ScrubHealth
}

// scrubTarget is an extent as one reader sees it: a snapshot, or 0 for the head.
type scrubTarget struct {
	ext    uint64
	object uint32
}

func (a scrubTarget) compare(b scrubTarget) int {
	return cmp.Or(cmp.Compare(a.ext, b.ext), cmp.Compare(a.object, b.object))
}

// scrubTargets makes the list of what is compared of the objects that any copy has:
// each extent as the head shows it, and, where there are older objects, as each
// snapshot does.
func scrubTargets(objects []scrubTarget, snaps []uint32) (list []scrubTarget) {
	slices.SortFunc(objects, scrubTarget.compare)
	objects = slices.Compact(objects)
	for i := 0; i < len(objects); {
		ext, oldest := objects[i].ext, objects[i].object
		for i < len(objects) && objects[i].ext == ext {
			i++
		}
		newest := objects[i-1].object
		list = append(list, scrubTarget{ext: ext})
		for _, n := range snaps {
			if oldest < n && n <= newest { // it sees something, and not what the head does
				list = append(list, scrubTarget{ext: ext, object: n})
			}
		}
	}
	return list
}

// shows reports whether the reader still exists: copies merge what a snapshot that
// is gone told apart, each in its own time.
func (v *volume) shows(object uint32) bool {
	return object == 0 || slices.Contains(v.snapNumbers(), object)
}

// scrubExt is one extent under comparison.
type scrubExt struct {
	job     *scrubJob
	members []*member
	copies  []copyTags
	gone    []bool // did not answer
	asked   int
}

// scrubWindow is how many extents are compared at a time.
const scrubWindow = 2

// maxDifferReports bounds the reports of one extent; the rest is only counted.
const maxDifferReports = 4

func (c *Core) beginScrub(volume int) {
	if volume < 0 || volume >= len(c.vols) || c.state != Serving {
		return
	}
	v := c.vols[volume]
	runs, serial := 0, uint64(0)
	if v.scrub != nil {
		if v.scrub.health.Running {
			return
		}
		runs, serial = v.scrub.health.Runs, v.scrub.serial+1
	}
	v.scrub = &scrubJob{serial: serial, health: ScrubHealth{Running: true, Runs: runs}}
	v.dirty = true
}

func (c *Core) stopScrub(volume int) {
	if volume < 0 || volume >= len(c.vols) || c.vols[volume].scrub == nil {
		return
	}
	j := c.vols[volume].scrub
	j.health.Running, j.next = false, len(j.exts)
}

func (v *volume) scrubHealth() ScrubHealth {
	if v.scrub == nil {
		return ScrubHealth{}
	}
	return v.scrub.health
}

func (v *volume) settleScrub() {
	j, c := v.scrub, v.c
	if j == nil || !j.health.Running || c.state != Serving {
		return
	}
	switch {
	case j.failed && j.lists == 0:
		j.heads, j.failed, j.retryAt = nil, false, c.now.Add(c.t.OpenRetry)
	case !j.listed && j.lists == 0 && c.now >= j.retryAt:
		v.scrubAskLists()
	case j.listed:
		for j.health.Running && j.running < scrubWindow && j.next < len(j.exts) {
			o := c.newOp(opScrub, v, int64(j.exts[j.next].ext), 0, repl.ExtentBlocks)
			o.object = j.exts[j.next].object
			o.cmp = &scrubExt{job: j}
			j.next++
			j.running++
			v.lock(o)
		}
		if j.running == 0 && j.next == len(j.exts) {
			j.health.Running = false
			j.health.Runs++
		}
	}
}

// comparable lists the members whose tags count.
func (v *volume) comparable(list []*member) (out []*member) {
	for _, m := range list {
		if m.counted && !v.isOut(m) && m.usable() {
			out = append(out, m)
		}
	}
	return out
}

func (v *volume) scrubAskLists() {
	j, c := v.scrub, v.c
	for _, m := range v.comparable(v.members) {
		j.lists++
		c.send(m.node, &wire.ExtListReq{ReqID: c.newSlot(slotScrub, m, nil, j.serial), Handle: m.handle})
	}
	if j.lists == 0 {
		j.retryAt = c.now.Add(c.t.OpenRetry)
	}
}

func (c *Core) scrubList(n *node, a *wire.ExtList) {
	s, ok := c.peekSlot(n, a.ReqID, slotScrub)
	if !ok {
		return
	}
	v := s.m.v
	j := v.scrub
	if a.Last || a.Status != wire.OK {
		c.dropSlot(uint32(a.ReqID))
	}
	if s.arg != j.serial {
		return
	}
	if a.Last || a.Status != wire.OK {
		j.lists--
		v.dirty = true
	}
	if a.Status != wire.OK {
		j.failed = true
		return
	}
	for i := range a.Entries {
		if e := &a.Entries[i]; int64(e.Extent) < v.extentCount() {
			j.heads = append(j.heads, scrubTarget{e.Extent, e.Object})
		}
	}
	if j.lists == 0 && !j.failed {
		j.exts, j.heads = scrubTargets(j.heads, v.snapNumbers()), nil
		j.listed = true
		j.health.Total = len(j.exts)
	}
}

// askTags asks the copies of an extent; no write to it is under way.
func (v *volume) askTags(o *op) {
	k, c := o.cmp, v.c
	for _, m := range o.seg.members {
		if v.readable(o.seg, m) {
			k.members = append(k.members, m)
		}
	}
	if len(k.members) < 2 || !v.shows(o.object) {
		k.members = nil
	}
	k.copies, k.gone = make([]copyTags, len(k.members)), make([]bool, len(k.members))
	k.asked = len(k.members)
	for i, m := range k.members {
		id := c.newSlot(slotScrub, m, o, uint64(i))
		c.send(m.node, &wire.ExtTagsReq{ReqID: id, Handle: m.handle, Extent: uint64(o.ext), Object: o.object, Resolved: true})
	}
	if k.asked == 0 {
		v.compared(o)
	}
}

func (c *Core) scrubTags(n *node, a *wire.ExtTags) {
	s, ok := c.takeSlot(n, a.ReqID, slotScrub)
	if !ok {
		return
	}
	s.op.cmp.answer(s, a)
}

// scrubLost: a member went away with a question of the scrub.
func (v *volume) scrubLost(s slot) {
	if s.op == nil {
		if s.arg == v.scrub.serial {
			v.scrub.lists--
			v.scrub.failed = true
			v.dirty, v.c.wake = true, true
		}
		return
	}
	s.op.cmp.answer(s, nil)
}

// answer takes the tags of one copy; nil: it did not answer.
func (k *scrubExt) answer(s slot, a *wire.ExtTags) {
	i := int(s.arg)
	if a == nil || a.Status != wire.OK && a.Status != wire.Unreadable {
		k.gone[i] = true
	} else {
		k.copies[i] = copyTags{a.Mark, a.Tags}
	}
	if k.asked--; k.asked == 0 {
		s.op.v.compared(s.op)
	}
}

// compared draws the conclusions for one extent and lets go of it.
func (v *volume) compared(o *op) {
	k, c := o.cmp, v.c
	j := k.job
	var ms []*member
	var copies []copyTags
	var names []string
	for i, m := range k.members {
		if !k.gone[i] && v.readable(o.seg, m) {
			ms, copies, names = append(ms, m), append(copies, k.copies[i]), append(names, "disk "+m.disk.Short())
		}
	}
	j.health.Done++
	if !v.shows(o.object) {
		// It was deleted meanwhile, and the copies may have begun to merge.
	} else if len(ms) < 2 {
		j.health.Skipped++
	} else {
		said := 0
		for _, d := range compareTags(copies, repl.ExtentBlocks) {
			if !v.inVolume(o.ext, d.block) {
				continue
			}
			if d.bug {
				j.health.Differ++
				if said++; said <= maxDifferReports {
					c.report(ReportDiffer, v.id, ms[d.bad[0]].disk, d.describe(o.ext, copies, names))
				}
			}
			if len(d.source) == 0 {
				continue // lost on all: a read says so
			}
			j.health.Repaired += len(d.bad)
			v.heals.list = append(v.heals.list, v.healOf(o, &d, ms, copies))
		}
	}
	j.running--
	v.unlock(o)
	c.recycle(o)
	v.dirty, c.wake = true, true
}

func (v *volume) healOf(o *op, d *difference, ms []*member, copies []copyTags) *heal {
	h := &heal{ext: o.ext, object: o.object, block: d.block}
	for _, i := range d.source {
		h.sources = append(h.sources, ms[i])
		h.mark = copies[i].mark
	}
	for _, i := range d.bad {
		h.bad = append(h.bad, badBlock{m: ms[i], tag: copies[i].tag(d.block)})
		if d.bug && copies[i].tag(d.block) != lostTag {
			h.proof = append(h.proof, ms[i])
		}
	}
	return h
}
