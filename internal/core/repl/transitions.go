package repl

import (
	"maps"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// The reasons for which a writer puts a disk out.
const (
	OutLost       OutReason = "connection lost"
	OutRefused    OutReason = "connection refused"
	OutRestarted  OutReason = "restarted"
	OutDiskFailed OutReason = "disk failed"
	OutHung       OutReason = "hung"
	OutMissing    OutReason = "missing at takeover"
	OutRebuild    OutReason = "rebuild"
	OutDamaged    OutReason = "damaged"
	OutMoving     OutReason = "moving" // it is given segments that others hold
	OutGivenUp    OutReason = "given up by volume force"
)

// Check returns nil if every row names disks that there are, each once;
// errs.Corrupt otherwise.
func (s Segments) Check() error {
	for i, row := range s.Map {
		for j, d := range row {
			if int(d) >= len(s.Disks) || slices.Contains(row[:j], d) {
				return errs.New(errs.Corrupt, "read segment %d: it names disk %d of %d", i, d, len(s.Disks))
			}
		}
	}
	return nil
}

// Row returns the disks of a segment, in placement order.
func (s Segments) Row(segment int) []ids.ID {
	row := make([]ids.ID, len(s.Map[segment]))
	for i, d := range s.Map[segment] {
		row[i] = s.Disks[d]
	}
	return row
}

// ISR returns the in-sync disks of a segment, in placement order.
func (r *VolumeRecord) ISR(segment int) []ids.ID {
	row := r.Seg.Row(segment)
	return slices.DeleteFunc(row, func(d ids.ID) bool { return r.OutOf(d, segment) })
}

// OutOf reports whether a disk of a segment's row is outside its in-sync set.
func (r *VolumeRecord) OutOf(d ids.ID, segment int) bool {
	o, out := r.Own.Out[d]
	return out && o.Covers(segment)
}

// Clone returns a copy that shares nothing with o.
func (o Own) Clone() Own {
	o.Out = maps.Clone(o.Out)
	return o
}

// Promise returns what own's holder asks replicas to promise.
func (o Own) Promise() Promise {
	return Promise{Generation: o.Generation, Epoch: o.Epoch, Nonce: o.Nonce, Inc: o.Inc, Node: o.Node, Run: o.Run}
}

// Short reports whether a segment has fewer in-sync copies than MinISR. As long
// as it is so no write and no flush is answered: MinISR bounds what is answered,
// not who may be put out.
func (r *VolumeRecord) Short() bool {
	if r.Cfg.MinISR < 2 {
		return false
	}
	for s := range r.Seg.Map {
		if len(r.ISR(s)) < r.Cfg.MinISR {
			return true
		}
	}
	return false
}

// SameHolder reports whether p and q are one epoch: the same number given to
// the same taker.
func (p Promise) SameHolder(q Promise) bool {
	return p.Generation == q.Generation && p.Epoch == q.Epoch && p.Nonce == q.Nonce
}

// Take is a takeover: who, and what must still hold.
type Take struct {
	Node    ids.ID
	Run     ids.ID
	Purpose Purpose
	Nonce   ids.ID
	Attempt uint64
	// ExpectRun and ExpectEpoch, if not zero, are compared with every own
	// (adoption, hand-over) [S1].
	ExpectRun   ids.ID
	ExpectEpoch uint64
	// Placement, if not nil, is written in the same transaction.
	Placement *Placement
}

// Takeover raises the epoch of every volume of recs in one transaction [S10], to
// one above the highest: a volume that had writers of its own before (an import)
// then agrees with its VM's others, and ExpectEpoch can be compared with all.
// It returns the records as they will be. errs.Fenced: another run owns a
// volume; errs.Conflict: the placement names somebody else.
func Takeover(recs Records, t Take) (Txn, Records, error) {
	var txn Txn
	if err := CheckPlacement(recs, t.Node, t.Attempt); err != nil {
		return txn, recs, err
	}
	next := recs
	next.Volumes = slices.Clone(recs.Volumes)
	epoch := uint64(0)
	for _, v := range recs.Volumes {
		epoch = max(epoch, v.Own.Epoch+1)
	}
	for i := range next.Volumes {
		v := &next.Volumes[i]
		switch {
		case v.Cfg.State != VolumeLive:
			return txn, recs, errs.New(errs.Conflict, "take volume %s: it is %s", v.ID, v.Cfg.State)
		case !t.ExpectRun.IsZero() && v.Own.Run != t.ExpectRun:
			return txn, recs, errs.New(errs.Fenced, "take volume %s: run %s owns it", v.ID, v.Own.Run)
		case t.ExpectEpoch != 0 && v.Own.Epoch != t.ExpectEpoch:
			return txn, recs, errs.New(errs.Fenced, "take volume %s: epoch is %d, not %d", v.ID, v.Own.Epoch, t.ExpectEpoch)
		}
		o := v.Own.Clone()
		o.Epoch = epoch
		o.Nonce, o.Inc, o.Node, o.Run, o.Purpose = t.Nonce, 0, t.Node, t.Run, t.Purpose
		o.CfgVersion++
		putOwn(&txn, v, o)
	}
	if !recs.VM.IsZero() {
		key := Key{KeyPlacement, recs.VM}
		txn.Compares = append(txn.Compares, Compare{key, recs.PlacementRev})
		if t.Placement != nil {
			p := *t.Placement
			next.Placement = p
			txn.Puts = append(txn.Puts, Put{Key: key, Placement: &p})
		}
	}
	return txn, next, nil
}

// CheckPlacement returns nil if the placement lets a node take the volumes: it
// names the node and the attempt, or the node as target of a migration.
// errs.Conflict otherwise.
func CheckPlacement(recs Records, node ids.ID, attempt uint64) error {
	if recs.VM.IsZero() {
		return nil
	}
	p := recs.Placement
	if p.Node == node && p.Attempt == attempt || !p.Target.IsZero() && p.Target == node {
		return nil
	}
	return errs.New(errs.Conflict, "take vm %s: the placement names node %s, attempt %d", recs.VM, p.Node.Short(), p.Attempt)
}

// Reincarnate raises inc of every volume under its epoch, for the successor of
// a guard on the same node. It settles any transaction of the predecessor that
// is still under way, because that one's compare fails afterwards.
func Reincarnate(recs Records, inc []uint32) (Txn, Records, error) {
	var txn Txn
	next := recs
	next.Volumes = slices.Clone(recs.Volumes)
	for i := range next.Volumes {
		v := &next.Volumes[i]
		if inc[i] <= v.Own.Inc {
			return txn, recs, errs.New(errs.Invalid, "reopen volume %s: inc %d is not above %d", v.ID, inc[i], v.Own.Inc)
		}
		o := v.Own.Clone()
		o.Inc = inc[i]
		o.CfgVersion++
		putOwn(&txn, v, o)
	}
	return txn, next, nil
}

// Shrink puts disks out of the in-sync set: base is the ISR-wide flush mark. A
// disk that is outside for some segments goes out as a whole; what it was being
// given is then compared from the beginning. errs.Invalid if it would empty the
// in-sync set of a segment.
func Shrink(v VolumeRecord, disks []ids.ID, reasons []OutReason, base Mark) (Txn, VolumeRecord, error) {
	var txn Txn
	o := v.Own.Clone()
	if o.Out == nil {
		o.Out = make(map[ids.ID]Out, len(disks))
	}
	for i, d := range disks {
		was, is := o.Out[d]
		if is && !was.Partial {
			return txn, v, errs.New(errs.Invalid, "shrink volume %s: disk %s is out already", v.ID, d)
		}
		out := Out{Base: base, Reason: reasons[i], Fill: was.Fill}
		if len(out.Fill) > 0 {
			out.Base = Mark{}
		}
		o.Out[d] = out
	}
	o.CfgVersion++
	next := v
	putOwn(&txn, &next, o)
	if s := next.emptySegment(); s >= 0 {
		return Txn{}, v, errs.New(errs.Invalid, "shrink volume %s: segment %d would have no copy", v.ID, s)
	}
	return txn, next, nil
}

// Grow takes a disk back into the in-sync set. The caller has made it complete
// and has counted its answers since before the barrier [S4]. Copies that it
// takes the place of leave their segments in the same transaction.
func Grow(v VolumeRecord, disk ids.ID) (Txn, VolumeRecord, error) {
	was, is := v.Own.Out[disk]
	if !is {
		return Txn{}, v, errs.New(errs.Invalid, "grow volume %s: disk %s is not out", v.ID, disk)
	}
	o := v.Own.Clone()
	delete(o.Out, disk)
	seg := v.Seg.clone()
	for _, f := range was.Fill {
		if !f.Drop.IsZero() && f.Drop != disk && int(f.Segment) < len(seg.Map) {
			seg.drop(int(f.Segment), f.Drop)
		}
	}
	return v.withSeg(o, seg, "grow")
}

func (r *VolumeRecord) emptySegment() int {
	for s := range r.Seg.Map {
		if len(r.ISR(s)) == 0 {
			return s
		}
	}
	return -1
}

// putOwn adds the compare and the put of own and makes v the record to be; its
// OwnRev is 0 until the store has told it.
func putOwn(t *Txn, v *VolumeRecord, o Own) {
	key := Key{KeyOwn, v.ID}
	t.Compares = append(t.Compares, Compare{key, v.OwnRev})
	t.Puts = append(t.Puts, Put{Key: key, Own: &o})
	v.Own, v.OwnRev = o, 0
}

// Verdict is what a fresh read says about a transaction of unknown outcome.
type Verdict uint8

// The verdicts.
const (
	// Undecided: nothing has changed; it may yet be committed. Send it again:
	// both are one value under one revision, so at most one of them commits.
	Undecided Verdict = iota
	Committed
	Superseded // somebody else changed the record: it will never be committed
)

// Judge compares the first own of txn with the record read later. The identity
// of a record is (generation, epoch, nonce, inc, cfg_version): one writer issues
// one transaction at a time, so equal identity means the same transaction.
func Judge(txn Txn, read Records) Verdict {
	for _, p := range txn.Puts {
		if p.Own == nil {
			continue
		}
		for i := range read.Volumes {
			v := &read.Volumes[i]
			if v.ID != p.Key.ID {
				continue
			}
			if v.Own.Promise() == p.Own.Promise() && v.Own.CfgVersion == p.Own.CfgVersion {
				return Committed
			}
			for _, c := range txn.Compares {
				if c.Key == p.Key && c.Rev != v.OwnRev {
					return Superseded
				}
			}
		}
	}
	return Undecided
}
