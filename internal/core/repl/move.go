package repl

import (
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Move gives segments to a disk.
type Move struct {
	Old, New ids.ID
	// Segments of Old that New is given; empty: all of them.
	Segments []uint32
	// Live: Old may be in sync; it stays until New is, so that no segment has
	// fewer copies meanwhile. Without Live an Old that is in sync is refused.
	Live bool
}

// MoveCopies puts m.New into segments of m.Old, and into out for them in the
// same transaction [S8]. Where Old is outside the in-sync set it leaves at once;
// where it is in sync it leaves with the grow of New. New may hold other
// segments of the volume: if it is in sync it stays so for them.
//
// errs.Conflict: Old is in sync and m is not Live, or New has a copy already;
// errs.Invalid: Old does not hold what should be moved.
func MoveCopies(v VolumeRecord, m Move) (Txn, VolumeRecord, error) {
	segments, err := v.moved(m)
	if err != nil {
		return Txn{}, v, err
	}
	o := v.Own.Clone()
	if o.Out == nil {
		o.Out = map[ids.ID]Out{}
	}
	oldOut := v.Own.Out[m.Old]
	seg := v.Seg.clone()
	at, partial := seg.add(m.New)
	reason := OutRebuild
	var fills []Fill
	for _, s := range segments {
		row := seg.Map[s]
		if v.OutOf(m.Old, int(s)) {
			row[slices.IndexFunc(row, func(k uint16) bool { return seg.Disks[k] == m.Old })] = at
			fills = append(fills, Fill{Segment: s, Drop: oldOut.dropOf(s)})
			continue
		}
		seg.Map[s] = append(row, at)
		fills = append(fills, Fill{Segment: s, Drop: m.Old})
		reason = OutMoving
	}
	given := Out{Reason: reason, Fill: fills, Partial: partial}
	if was, is := v.Own.Out[m.New]; is {
		given.Fill = append(slices.Clone(was.Fill), fills...)
		given.Partial = was.Partial
	}
	o.Out[m.New] = given
	if _, is := o.Out[m.Old]; is {
		oldOut.Fill = slices.DeleteFunc(slices.Clone(oldOut.Fill), func(f Fill) bool { return slices.Contains(segments, f.Segment) })
		o.Out[m.Old] = oldOut
		if oldOut.Partial && len(oldOut.Fill) == 0 {
			delete(o.Out, m.Old)
		}
	}
	return v.withSeg(o, seg, "move copies of")
}

// moved returns the segments that m is about, or refuses.
func (v *VolumeRecord) moved(m Move) ([]uint32, error) {
	if m.Old == m.New || m.New.IsZero() {
		return nil, errs.New(errs.Invalid, "move copies of volume %s: disk %s cannot take its own place", v.ID, m.New)
	}
	segments := slices.Clone(m.Segments)
	if len(segments) == 0 {
		for s := range v.Seg.Map {
			if slices.Contains(v.Seg.Row(s), m.Old) {
				segments = append(segments, uint32(s))
			}
		}
	}
	slices.Sort(segments)
	segments = slices.Compact(segments)
	if len(segments) == 0 {
		return nil, errs.New(errs.Invalid, "move copies of volume %s: disk %s holds none", v.ID, m.Old)
	}
	for _, s := range segments {
		if int(s) >= len(v.Seg.Map) {
			return nil, errs.New(errs.Invalid, "move copies of volume %s: it has no segment %d", v.ID, s)
		}
		row := v.Seg.Row(int(s))
		switch {
		case !slices.Contains(row, m.Old):
			return nil, errs.New(errs.Invalid, "move copies of volume %s: disk %s holds none of segment %d", v.ID, m.Old, s)
		case slices.Contains(row, m.New):
			return nil, errs.New(errs.Conflict, "move copies of volume %s: disk %s has a copy of segment %d already", v.ID, m.New, s)
		case v.OutOf(m.Old, int(s)):
		case !m.Live:
			return nil, errs.New(errs.Conflict, "move copies of volume %s: the copy of segment %d on disk %s is in sync", v.ID, s, m.Old)
		case v.dropped(m.Old, int(s)):
			return nil, errs.New(errs.Conflict, "move copies of volume %s: segment %d is leaving disk %s already", v.ID, s, m.Old)
		}
	}
	return segments, nil
}

// dropped reports whether the copy of a segment on a disk leaves when another
// one is in sync.
func (v *VolumeRecord) dropped(d ids.ID, segment int) bool {
	for _, o := range v.Own.Out {
		if o.dropOf(uint32(segment)) == d {
			return true
		}
	}
	return false
}

// dropOf returns the copy that leaves with the fill of a segment, or zero.
func (o Out) dropOf(segment uint32) ids.ID {
	for _, f := range o.Fill {
		if f.Segment == segment {
			return f.Drop
		}
	}
	return ids.ID{}
}

// Spare returns the segments in whose rows a disk is one too many: it was to
// take the place of another copy, which is still there.
func (v *VolumeRecord) Spare(d ids.ID) []uint32 {
	var out []uint32
	for _, f := range v.Own.Out[d].Fill {
		if !f.Drop.IsZero() && int(f.Segment) < len(v.Seg.Map) && slices.Contains(v.Seg.Row(int(f.Segment)), f.Drop) {
			out = append(out, f.Segment)
		}
	}
	return out
}

// CancelMove takes a disk out of the segments in whose rows it is one too many:
// it will not take the place of the copies that hold them. errs.Invalid: there
// are none.
func CancelMove(v VolumeRecord, d ids.ID) (Txn, VolumeRecord, error) {
	spare := v.Spare(d)
	if len(spare) == 0 {
		return Txn{}, v, errs.New(errs.Invalid, "cancel move of volume %s: disk %s takes the place of no copy", v.ID, d)
	}
	o := v.Own.Clone()
	out := o.Out[d]
	seg := v.Seg.clone()
	for _, s := range spare {
		seg.drop(int(s), d)
	}
	out.Fill = slices.DeleteFunc(slices.Clone(out.Fill), func(f Fill) bool { return slices.Contains(spare, f.Segment) })
	o.Out[d] = out
	if out.Partial && len(out.Fill) == 0 {
		delete(o.Out, d)
	}
	return v.withSeg(o, seg, "cancel move of")
}

// withSeg makes the transaction that puts own and, if it differs, seg. Disks
// that no segment names any more leave both.
func (v VolumeRecord) withSeg(o Own, seg Segments, verb string) (Txn, VolumeRecord, error) {
	var txn Txn
	seg = seg.compact()
	for d := range o.Out {
		if !slices.Contains(seg.Disks, d) {
			delete(o.Out, d)
		}
	}
	o.CfgVersion++
	next := v
	putOwn(&txn, &next, o)
	if !seg.equal(v.Seg) {
		key := Key{KeySeg, v.ID}
		txn.Compares = append(txn.Compares, Compare{key, v.SegRev})
		txn.Puts = append(txn.Puts, Put{Key: key, Seg: &seg})
		next.Seg, next.SegRev = seg, 0
	}
	if s := next.emptySegment(); s >= 0 {
		return Txn{}, v, errs.New(errs.Conflict, "%s volume %s: segment %d would have no copy", verb, v.ID, s)
	}
	return txn, next, nil
}

func (s Segments) clone() Segments {
	out := Segments{Disks: slices.Clone(s.Disks), Map: make([][]uint16, len(s.Map))}
	for i, row := range s.Map {
		out.Map[i] = slices.Clone(row)
	}
	return out
}

// add returns the index of a disk, which it appends if need be; known: some
// segment names it.
func (s *Segments) add(d ids.ID) (at uint16, known bool) {
	if i := slices.Index(s.Disks, d); i >= 0 {
		return uint16(i), slices.ContainsFunc(s.Map, func(row []uint16) bool { return slices.Contains(row, uint16(i)) })
	}
	s.Disks = append(s.Disks, d)
	return uint16(len(s.Disks) - 1), false
}

// drop takes a disk out of the row of a segment.
func (s Segments) drop(segment int, d ids.ID) {
	s.Map[segment] = slices.DeleteFunc(s.Map[segment], func(k uint16) bool { return s.Disks[k] == d })
}

// compact leaves out the disks that no row names.
func (s Segments) compact() Segments {
	to := make([]int, len(s.Disks))
	for _, row := range s.Map {
		for _, k := range row {
			to[k] = 1
		}
	}
	out := Segments{Map: make([][]uint16, len(s.Map))}
	for i, d := range s.Disks {
		if to[i] == 0 {
			continue
		}
		to[i] = len(out.Disks)
		out.Disks = append(out.Disks, d)
	}
	for i, row := range s.Map {
		for _, k := range row {
			out.Map[i] = append(out.Map[i], uint16(to[k]))
		}
	}
	return out
}

func (s Segments) equal(t Segments) bool {
	return slices.Equal(s.Disks, t.Disks) && slices.EqualFunc(s.Map, t.Map, slices.Equal)
}

// Stray reports whether a copy is one that no segment of its volume names, so that it
// may be freed. p is what the copy promised, cfgVersion the newest that it was told; v
// was read after the copy said so. Nothing is freed because something is missing: the
// records must be of the same generation, and newer than all that the copy was told.
// Records of a restored etcd are older than what the copies that it forgot were told
// [I14].
func Stray(v VolumeRecord, disk ids.ID, p Promise, cfgVersion uint32) bool {
	own := &v.Own
	return v.Cfg.State == VolumeLive && !slices.Contains(v.Seg.Disks, disk) &&
		own.Generation == p.Generation && own.CfgVersion > cfgVersion &&
		(own.Epoch > p.Epoch || own.Epoch == p.Epoch && own.Nonce == p.Nonce)
}
