package writer

import (
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Where a join reads from.

// source picks the in-sync member of a segment to copy from.
func (v *volume) source(s *segment, not []*member) *member {
	for _, m := range s.members {
		if m.counted && !v.isOut(m) && !s.lacks(m) && m.usable() && !slices.Contains(not, m) {
			return m
		}
	}
	return nil
}

// bound reports whether everything of an extent must come from the source whose
// list counted. With snapshots copies merge objects by themselves: where one has a
// block in an object, another has it in an older one, and a join that took one
// object's blocks from both would miss it. One copy's tables stay as they are
// meanwhile, but for new writes: nobody merges while a copy is out.
func (j *syncJob) bound() bool { return j.m.v.snap.seq > 0 && !j.m.v.c.mut.ResyncMixedSources }

// listSource is the source whose list counted for an extent; nil if it cannot be
// asked now.
func (j *syncJob) listSource(ext uint64) *member {
	v := j.m.v
	k := int64(ext) * repl.ExtentBytes / v.c.cfg.SegmentBytes
	m := j.src[k]
	if r := j.relists[ext]; r != nil && r.due {
		m = r.failed[len(r.failed)-1] // what is under way ends as it began
	} else if r != nil {
		m = r.src
	}
	if m != nil && v.readable(&v.segs[k], m) {
		return m
	}
	return nil
}

// readSource reads a chunk from the source; its range is locked now.
func (j *syncJob) readSource(p *op) {
	v := j.m.v
	o := &j.objects[p.arg]
	if j.bound() && p.rep == nil {
		src := j.listSource(o.ext)
		if o.src == nil || src == nil || v.c.mut.SourceNotRestored && o.src != src {
			p.from, j.orphan, v.c.wake = nil, true, true
			return
		}
		o.src = src // a chunk before may have asked others for what it could not read
	}
	if o.src == nil || !o.src.usable() || !o.src.counted || !p.seg.holds(o.src) || p.rep.has(o.src) {
		var tried []*member
		if p.rep != nil {
			tried = p.rep.unreadable
		}
		o.src = v.source(p.seg, tried)
	}
	if o.src == nil {
		p.from, j.lost = nil, true // asked again at the next settle
		return
	}
	n := p.length()
	if p.unlocked > 0 {
		n = int64(p.unlocked) * repl.BlockBytes
	}
	p.from = o.src
	id := v.c.newSlot(slotRead, o.src, p, 0)
	v.c.send(o.src.node, &wire.Read{ReqID: id, Handle: o.src.handle, Offset: p.offset(), Length: n, Repair: true, Raw: true, Object: o.object})
}

// sourceLost: the source went away with the question.
func (j *syncJob) sourceLost(p *op) {
	j.objects[p.arg].src, p.from = nil, nil
	j.lost = true
	j.m.v.c.wake = true
}

// rereadLost asks another source for the chunks whose source is gone.
func (j *syncJob) rereadLost() {
	j.lost = false
	for _, p := range slices.Clone(j.ops) {
		if p.state == opRunning && p.from == nil {
			j.readSource(p)
		}
	}
}
