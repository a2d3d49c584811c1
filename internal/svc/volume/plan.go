package volume

import (
	"cmp"
	"fmt"
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
)

// Bounds of what is copied at one time in a cluster. A volume down to its last
// copy is not held back by them.
const (
	maxRebuilds = 4 // volumes that are given new copies
	maxMoves    = 1 // volumes whose copies are moved to even the disks
)

// repair is one thing that should be done for a volume.
type repair struct {
	vol     *repl.VolumeRecord
	replace []volumectl.Replace // empty: bring back what is out
	stuck   string              // why some copy is not rebuilt, and what to do
	copies  int                 // in sync, of the worst segment
	flatten bool                // nothing is lost: a clone is to be made independent of its parent
	moves   bool                // nothing is lost: it evens the disks, or empties one
}

// world is what the planner looks at.
type world struct {
	view  *pool.View
	disks []*model.Disk
	alive map[ids.ID]store.Session
	dead  map[ids.ID]bool // disks that are rebuilt elsewhere
	keep  map[ids.ID]ids.ID
}

// plan lists what can be done now: first the volumes with the fewest copies, then
// moves. The order within is that of the identities.
func plan(w *world) []repair {
	usable := map[ids.ID]bool{}
	for _, d := range w.disks {
		_, up := w.alive[d.Spec.Node]
		usable[d.ID] = up && d.Status.State == model.DiskActive
	}
	var out []repair
	busy := map[ids.ID]bool{} // pools in which something is to be repaired first
	for _, id := range sortedKeys(w.view.Volumes) {
		v := w.view.Volumes[id]
		r := repair{vol: v, copies: records.Health(v, w.view.Names, nil).Copies}
		for _, d := range slices.Clone(v.Seg.Disks) {
			if w.dead[d] || v.Own.Out[d].Reason == repl.OutGivenUp {
				w.rebuild(&r, d)
			}
		}
		back := v.Cfg.Rollback != 0
		for d, o := range v.Own.Out {
			back = back || usable[d] && o.Reason != repl.OutGivenUp // which never joins
		}
		r.flatten = !v.Cfg.Parent.IsZero() && len(r.replace) == 0 && !back && r.stuck == ""
		if len(r.replace) > 0 || back || r.stuck != "" || r.flatten {
			out = append(out, r)
		}
		busy[v.Cfg.Pool] = busy[v.Cfg.Pool] || len(v.Own.Out) > 0 || len(r.replace) > 0
	}
	slices.SortStableFunc(out, func(a, b repair) int { return cmp.Compare(a.copies, b.copies) })
	for _, p := range w.view.Pools {
		if !busy[p.ID] {
			out = append(out, w.moves(p)...)
		}
	}
	return out
}

// rebuild adds to r what gives the segments of a dead disk new copies. The
// targets are counted as promised.
func (w *world) rebuild(r *repair, dead ids.ID) {
	v := r.vol
	p := w.pool(v.Cfg.Pool)
	ds := w.view.Disks[v.Cfg.Pool]
	if p == nil {
		return
	}
	spare := v.Spare(dead)
	if len(spare) > 0 { // it was to take the place of copies that are still there
		r.replace = append(r.replace, volumectl.Replace{Old: dead})
	}
	to := map[ids.ID][]uint32{}
	for s := range v.Seg.Map {
		row := v.Seg.Row(s)
		if !slices.Contains(row, dead) || slices.Contains(spare, uint32(s)) || leaves(v, dead, s) {
			continue
		}
		row = slices.DeleteFunc(row, func(d ids.ID) bool { return d == dead || w.dead[d] })
		target, err := w.target(p, dead, row, ds)
		if err != nil {
			r.stuck = err.Error()
			continue
		}
		to[target] = append(to[target], uint32(s))
		for j := range ds {
			if ds[j].ID == target {
				ds[j].Promised += place.SegmentBytes
			}
		}
	}
	for _, target := range sortedKeys(to) {
		r.replace = append(r.replace, volumectl.Replace{Old: dead, New: target, Node: w.view.Names.DiskNode[target], Segments: to[target]})
	}
}

// target chooses the disk that is given a segment of old: the one that a person
// named to replace it, if it may have it.
func (w *world) target(p *model.Pool, old ids.ID, row []ids.ID, ds []place.Disk) (ids.ID, error) {
	i := slices.IndexFunc(w.disks, func(d *model.Disk) bool { return d.ID == old })
	if i >= 0 && !w.disks[i].Spec.ReplacedBy.IsZero() {
		by := w.disks[i].Spec.ReplacedBy
		few := slices.DeleteFunc(slices.Clone(ds), func(d place.Disk) bool { return d.ID != by && d.ID != old && !slices.Contains(row, d.ID) })
		if to, err := place.Target(pool.Rule(p), old, row, few); err == nil {
			return to, nil
		}
	}
	return place.Target(pool.Rule(p), old, row, ds)
}

// leaves reports whether a disk's copy goes when a move that is under way ends.
func leaves(v *repl.VolumeRecord, d ids.ID, segment int) bool {
	for _, o := range v.Own.Out {
		for _, f := range o.Fill {
			if int(f.Segment) == segment && f.Drop == d {
				return true
			}
		}
	}
	return false
}

func (w *world) pool(id ids.ID) *model.Pool {
	for _, p := range w.view.Pools {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// moves empties disks that are retired, then evens the others: one step a pool.
func (w *world) moves(p *model.Pool) []repair {
	ds := w.view.Disks[p.ID]
	rows := w.rows(p)
	for _, d := range w.disks {
		if d.Spec.Pool != p.ID || d.Status.State != model.DiskRetired {
			continue
		}
		for _, r := range rows {
			if r.Busy || !slices.Contains(r.Disks, d.ID) {
				continue
			}
			others := slices.DeleteFunc(slices.Clone(r.Disks), func(x ids.ID) bool { return x == d.ID })
			if to, err := w.target(p, d.ID, others, ds); err == nil {
				return []repair{w.move(place.Step{Volume: r.Volume, Segment: r.Segment, Old: d.ID, New: to})}
			}
		}
	}
	if s, ok := place.Balance(ds, rows); ok {
		return []repair{w.move(s)}
	}
	return nil
}

func (w *world) move(s place.Step) repair {
	return repair{vol: w.view.Volumes[s.Volume], moves: true, replace: []volumectl.Replace{{
		Old: s.Old, New: s.New, Node: w.view.Names.DiskNode[s.New], Segments: []uint32{uint32(s.Segment)}, Live: true,
	}}}
}

// rows lists the segments of a pool.
func (w *world) rows(p *model.Pool) []place.Row {
	var rows []place.Row
	for _, id := range sortedKeys(w.view.Volumes) {
		v := w.view.Volumes[id]
		if v.Cfg.Pool != p.ID {
			continue
		}
		busy := len(v.Own.Out) > 0 || v.Cfg.State != repl.VolumeLive
		for s := range v.Seg.Map {
			rows = append(rows, place.Row{Volume: id, Segment: s, Disks: v.Seg.Row(s), Busy: busy, Keep: w.keep[v.Cfg.VM]})
		}
	}
	return rows
}

// running counts the volumes that are given copies now, and those that move.
func running(view *pool.View) (rebuilds, moves int) {
	for _, v := range view.Volumes {
		rebuild, move := false, false
		for _, o := range v.Own.Out {
			rebuild = rebuild || o.Reason == repl.OutRebuild
			move = move || o.Reason == repl.OutMoving
		}
		if rebuild {
			rebuilds++
		} else if move {
			moves++
		}
	}
	return rebuilds, moves
}

// admit drops what would be too much at one time, in the order of danger.
func admit(list []repair, rebuilds, moves int) []repair {
	var out []repair
	for _, r := range list {
		switch {
		case len(r.replace) == 0:
		case r.moves && (moves >= maxMoves || rebuilds > 0):
			continue
		case r.moves:
			moves++
		case rebuilds >= maxRebuilds && r.copies > 1:
			continue
		default:
			rebuilds++
		}
		out = append(out, r)
	}
	return out
}

func sortedKeys[T any](m map[ids.ID]T) []ids.ID {
	out := make([]ids.ID, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.SortFunc(out, ids.ID.Compare)
	return out
}

// key tells whether the same was asked for before.
func (r *repair) key() string { return r.vol.ID.String() + fmt.Sprint(r.replace) }
