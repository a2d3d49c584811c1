package repl

import (
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Loss is a segment none of whose in-sync copies can be reached, and what a copy
// outside the in-sync set would take its place.
type Loss struct {
	Segment int
	Gone    []ids.ID // the in-sync copies, none of which can be reached
	From    ids.ID   // becomes the truth
	Out     Out      // of From: why it is outside, since when, and up to which write it has everything
}

// Losses says what it costs to go on without the in-sync copies that cannot be
// reached: for each segment that has none left the copy that has most, of those
// on the disks of from if that is not empty. reachable must err on the side of
// true. errs.Conflict: an in-sync copy of every segment is reachable, so nothing
// is to be forced; errs.Unavailable: a segment has no copy at all that is.
func Losses(v VolumeRecord, reachable func(disk ids.ID) bool, from []ids.ID) ([]Loss, error) {
	var list []Loss
	for s := range v.Seg.Map {
		isr := v.ISR(s)
		if slices.ContainsFunc(isr, reachable) {
			continue
		}
		l := Loss{Segment: s, Gone: isr}
		for _, d := range v.Seg.Row(s) {
			o, out := v.Own.Out[d]
			if !out || o.Fills(s) || o.Reason == OutGivenUp || !reachable(d) || len(from) > 0 && !slices.Contains(from, d) {
				continue
			}
			if l.From.IsZero() || l.Out.Base.Less(o.Base) {
				l.From, l.Out = d, o
			}
		}
		if l.From.IsZero() {
			return nil, errs.New(errs.Unavailable, "force volume %s: segment %d has no copy that can be reached and was complete once", v.ID, s).
				WithHint("bring a disk back that has one (`roseau volume show`), or restore the volume from elsewhere")
		}
		list = append(list, l)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Conflict, "force volume %s: an in-sync copy of every segment can be reached", v.ID).
			WithHint("nothing has to be given up: start what uses the volume, or wait for it to be repaired")
	}
	return list, nil
}

// Force makes the copies of losses the truth of their segments, and begins a new
// generation of the volume. Copies of the old one are taken into it by name
// (Own.Import); the in-sync copies that are given up are not, so they refuse to be
// opened should they return, and are never mixed with what is written from now on.
// Everybody else who is outside is compared from the beginning: the truth may have
// gone back behind what he has.
//
// Nobody may have the volume open; for one of a VM the placement, which recs must
// have then, must name nobody. errs.Conflict: the reason.
func Force(recs Records, losses []Loss) (Txn, VolumeRecord, error) {
	v := recs.Volumes[0]
	var txn Txn
	switch {
	case v.Cfg.State != VolumeLive:
		return txn, v, errs.New(errs.Conflict, "force volume %s: it is %s", v.ID, v.Cfg.State)
	case v.Cfg.VM != recs.VM:
		return txn, v, errs.New(errs.Conflict, "force volume %s: it belongs to another VM", v.ID)
	case !recs.VM.IsZero() && !recs.Placement.Node.IsZero():
		return txn, v, errs.New(errs.Conflict, "force volume %s: vm %s is on node %s", v.ID, recs.VM, recs.Placement.Node.Short()).WithHint("stop it first")
	}
	o := v.Own.Clone()
	o.Generation.Volume++
	o.Epoch++
	o.Inc, o.Nonce, o.Node, o.Run, o.Purpose = 0, ids.ID{}, ids.ID{}, ids.ID{}, PurposeMaintenance
	o.CfgVersion++
	out := map[ids.ID]Out{}
	for d, x := range o.Out {
		out[d] = Out{Reason: x.Reason, Fill: x.Fill, Partial: x.Partial, Since: x.Since}
	}
	truth := map[ids.ID][]int{}
	for _, l := range losses {
		truth[l.From] = append(truth[l.From], l.Segment)
		for _, d := range l.Gone {
			out[d] = Out{Reason: OutGivenUp, Fill: v.Own.Out[d].Fill}
		}
	}
	for d, segments := range truth {
		was := out[d]
		delete(out, d)
		x := Out{Reason: was.Reason, Partial: true}
		for s := range v.Seg.Map {
			if slices.Contains(v.Seg.Row(s), d) && !slices.Contains(segments, s) && v.OutOf(d, s) {
				x.Fill = append(x.Fill, Fill{Segment: uint32(s), Drop: was.dropOf(uint32(s))})
			}
		}
		if len(x.Fill) > 0 {
			out[d] = x
		}
	}
	o.Out = out
	o.Import = nil
	for _, d := range v.Seg.Disks {
		if was, is := out[d]; !is || was.Reason != OutGivenUp {
			o.Import = append(o.Import, d)
		}
	}
	slices.SortFunc(o.Import, ids.ID.Compare)
	cfg := v.Cfg
	cfg.Incompat |= FeatureImport
	next := v
	putOwn(&txn, &next, o)
	txn.Compares = append(txn.Compares, Compare{Key{KeyCfg, v.ID}, v.CfgRev})
	txn.Puts = append(txn.Puts, Put{Key: Key{KeyCfg, v.ID}, Cfg: &cfg})
	next.Cfg, next.CfgRev = cfg, 0
	if !recs.VM.IsZero() {
		txn.Compares = append(txn.Compares, Compare{Key{KeyPlacement, recs.VM}, recs.PlacementRev})
	}
	if s := next.emptySegment(); s >= 0 {
		return Txn{}, v, errs.New(errs.Conflict, "force volume %s: segment %d would have no copy", v.ID, s)
	}
	return txn, next, nil
}

// Imports reports whether a disk's copy of an older generation of the volume may
// be opened: it is taken into the present one.
func (o *Own) Imports(d ids.ID) bool {
	_, ok := slices.BinarySearchFunc(o.Import, d, ids.ID.Compare)
	return ok
}
