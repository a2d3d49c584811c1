package writer

import (
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// With snapshots everything of an extent comes from the copy that listed it (see
// bound). What that copy cannot give, because a block of it or its table of tags is
// gone, another one may have in another of its objects. Such an extent is listed once
// more, from that copy, and compared from the beginning:
//
//	copied from A: a block is missing that B may have
//	  -> what is under way of other extents ends -> lists of B and of the joining disk
//	  -> all objects of these extents, as B has them; what A alone had is taken back
//
// Every copy is tried once at most for an extent; what is missing then is lost.

// relist is an extent of which a copy could not give everything.
type relist struct {
	failed []*member // which listed it, and lacked something
	src    *member   // the next to list it
	due    bool      // to be listed by src when what is under way has ended
	asked  bool      // src's list is awaited
}

// listElsewhere gives up the chunk p, and what the extent was listed for, if another
// in-sync copy may have a block that is missing of it.
func (j *syncJob) listElsewhere(p *op) bool {
	v := j.m.v
	ext := uint64(p.ext)
	r := j.relists[ext]
	if !j.relisting(ext) {
		from := j.listSource(ext)
		if from == nil {
			p.from, j.orphan, v.c.wake = nil, true, true
			return true
		}
		var failed []*member
		if r != nil {
			failed = r.failed
		}
		failed = append(slices.Clone(failed), from)
		next := v.source(p.seg, failed)
		for not := failed; next != nil && !p.rep.mayHave(next); next = v.source(p.seg, not) {
			not = append(slices.Clone(not), next)
		}
		if next == nil {
			return false
		}
		if j.relists == nil {
			j.relists = map[uint64]*relist{}
		}
		j.relists[ext] = &relist{failed: failed, src: next, due: true}
	}
	j.ops = slices.DeleteFunc(j.ops, func(x *op) bool { return x == p })
	i := p.arg
	v.unlock(p)
	v.c.recycle(p)
	j.objects[i].unsent--
	j.endObject(i)
	return true
}

// mayHave reports whether a copy did not say of every block that is missing that it is
// bad there, too: it may have it in another object.
func (t *readTask) mayHave(m *member) bool {
	for i, have := range t.have {
		if !have && !slices.ContainsFunc(t.bad, func(b badBlock) bool { return b.m == m && b.i == i }) {
			return true
		}
	}
	return false
}

// relisting reports whether an extent waits to be listed again: until then nothing
// more of it is begun.
func (j *syncJob) relisting(ext uint64) bool {
	r := j.relists[ext]
	return r != nil && r.due
}

// listAgain asks for the lists of the extents that are due; false: there are none.
func (j *syncJob) listAgain() bool {
	m := j.m
	v := m.v
	var from []*member
	for ext, r := range j.relists { // order does not show
		switch {
		case !r.due:
		case !v.readable(v.segment(ext), r.src):
			j.orphan, v.c.wake = true, true
			return true
		default:
			from = append(from, r.src)
		}
	}
	if len(from) == 0 {
		return false
	}
	for _, r := range j.relists { // order does not show
		r.due, r.asked = false, r.due
	}
	j.phase, j.second = syncList, true
	for _, s := range v.members {
		if slices.Contains(from, s) {
			v.c.send(s.node, &wire.ExtListReq{ReqID: j.slot(s, askList, 0), Handle: s.handle, From: repl.Mark{}})
			j.lists++
		}
	}
	v.c.send(m.node, &wire.ExtListReq{ReqID: j.slot(m, askListOwn, 0), Handle: m.handle, From: repl.Mark{}})
	j.lists++
	return true
}

// counts reports whether the list of a copy counts for an extent, in segment k.
func (j *syncJob) counts(ext uint64, k int64, from *member, own bool) bool {
	src := j.src[k]
	if j.second {
		r := j.relists[ext]
		if r == nil || !r.asked {
			return false
		}
		src = r.src
	}
	return own || src == from
}
