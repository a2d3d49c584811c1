package sim

import (
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// mover is the pool's planner: it moves copies between the disks of a node, one
// segment (a rebalance) or all of a disk (a retirement), and takes a move back now
// and then.
type mover struct{ stream }

func newMover(w *world) *mover {
	m := &mover{newStream(w, 0x6d6f7665, 50*time.Millisecond, time.Second)}
	if b := w.opt.Bias; b != nil {
		m.bias(b.Moves)
	}
	m.run(m.act)
	return m
}

// act gives the guard that serves one order.
func (m *mover) act() {
	t := m.w.some()
	g := t.manager.active
	if g == nil || g.ended() || g.frozen || g.state != writer.Serving {
		return
	}
	n := m.w.nodes[m.rng.IntN(storageNodes)]
	if len(n.disks) < 2 || !n.serving() || slices.ContainsFunc(n.disks, func(d *simDisk) bool { return d.dead }) {
		return
	}
	from := m.rng.IntN(2)
	r := writer.Replace{Old: n.disks[from].id, New: n.disks[1-from].id, NewNode: n.id, Live: true}
	v := t.record()
	if len(v.Spare(r.New)) > 0 {
		r.Old, r.New = r.New, r.Old
	}
	switch x := m.rng.IntN(10); {
	case x < 4 && len(v.Spare(r.Old)) > 0:
		m.w.note("move_cancelled")
		r.New, r.Live = ids.ID{}, false
	case x < 6:
		m.w.note("retire_asked")
		r.Segments = movable(&v, r.Old, r.New)
	default:
		m.w.note("move_asked")
		if r.Segments = movable(&v, r.Old, r.New); len(r.Segments) > 1 {
			i := m.rng.IntN(len(r.Segments))
			r.Segments = r.Segments[i : i+1]
		}
	}
	if !r.New.IsZero() && len(r.Segments) == 0 {
		return
	}
	m.w.tracef("planner: %s moves %v of %s to %s", g.name(), r.Segments, r.Old.Short(), r.New.Short())
	g.step(writer.Command{Kind: writer.ReplaceDisk, Replace: r})
}

// movable are the segments that one disk holds and the other does not.
func movable(v *repl.VolumeRecord, from, to ids.ID) []uint32 {
	var out []uint32
	for s := range v.Seg.Map {
		if row := v.Seg.Row(s); slices.Contains(row, from) && !slices.Contains(row, to) {
			out = append(out, uint32(s))
		}
	}
	return out
}

// moving reports whether a segment has a copy more than it should: one is to take
// the place of another.
func moving(v *repl.VolumeRecord) bool {
	return slices.ContainsFunc(v.Seg.Map, func(row []uint16) bool { return len(row) > storageNodes })
}

// noteMoves counts what a transaction does to the rows.
func (w *world) noteMoves(was, is repl.Segments) {
	for s := range is.Map {
		if s < len(was.Map) && len(is.Map[s]) < len(was.Map[s]) {
			w.note("segment_moved")
		}
	}
}
