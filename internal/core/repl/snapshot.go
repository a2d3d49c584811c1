package repl

import (
	"math"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// SnapshotOrder asks the writer of volumes for a snapshot, or for the deletion of
// one.
type SnapshotOrder struct {
	// Volume names one; zero: all that the writer holds, at one moment.
	Volume ids.ID `json:"volume,omitzero"`
	// Delete is the number of the snapshot of Volume to be deleted; 0: take one.
	Delete   uint32   `json:"delete,omitempty"`
	Snapshot Snapshot `json:"snapshot"` // of a new one; its number is the writer's
}

// ReserveSnapshot reserves the next snapshot number of a volume. The number is
// used by writes only after this is committed, and never again, whatever becomes
// of the attempt [S8]. errs.Conflict: there are MaxSnapshots already, or the name
// is taken.
func ReserveSnapshot(v VolumeRecord, name string) (Txn, VolumeRecord, error) {
	switch {
	case v.Cfg.State != VolumeLive:
		return Txn{}, v, errs.New(errs.Conflict, "snapshot volume %s: it is %s", v.ID, v.Cfg.State)
	case v.Cfg.Rollback != 0:
		return Txn{}, v, rollingBack("snapshot", v)
	case len(v.Cfg.Snap.List) >= MaxSnapshots:
		return Txn{}, v, errs.New(errs.Conflict, "snapshot volume %s: it has %d snapshots", v.ID, len(v.Cfg.Snap.List)).
			WithHint("delete one first: roseau volume snapshot delete")
	case v.Cfg.Snap.Next == math.MaxUint32:
		return Txn{}, v, errs.New(errs.Conflict, "snapshot volume %s: its numbers are used up", v.ID)
	case slices.ContainsFunc(v.Cfg.Snap.List, func(s Snapshot) bool { return s.Name == name }):
		return Txn{}, v, errs.New(errs.Conflict, "snapshot volume %s: it has a snapshot %q", v.ID, name)
	}
	cfg := v.Cfg
	cfg.Snap.Next++
	cfg.Incompat |= FeatureSnapshots // before any write bears one
	txn, next := putCfg(v, cfg)
	return txn, next, nil
}

// CommitSnapshot makes a snapshot exist. Its number was reserved, every in-sync
// copy has durably what was written before, and nothing after it bears a lower
// number.
func CommitSnapshot(v VolumeRecord, s Snapshot) (Txn, VolumeRecord, error) {
	list := v.Cfg.Snap.List
	if s.Number == 0 || s.Number > v.Cfg.Snap.Next || len(list) > 0 && s.Number <= list[len(list)-1].Number {
		return Txn{}, v, errs.New(errs.Invalid, "snapshot volume %s: number %d was not reserved for it", v.ID, s.Number)
	}
	cfg := v.Cfg
	cfg.Snap.List = append(slices.Clone(list), s)
	txn, next := putCfg(v, cfg)
	return txn, next, nil
}

// DeleteSnapshot makes a snapshot not exist any more; its number stays used.
func DeleteSnapshot(v VolumeRecord, number uint32) (Txn, VolumeRecord, error) {
	if v.Cfg.Rollback != 0 {
		return Txn{}, v, rollingBack("delete snapshot of", v)
	}
	if v.Cfg.Snap.Find(number) == nil {
		return Txn{}, v, errs.New(errs.NotFound, "delete snapshot of volume %s: there is no number %d", v.ID, number)
	}
	cfg := v.Cfg
	cfg.Snap.List = slices.DeleteFunc(slices.Clone(cfg.Snap.List), func(s Snapshot) bool { return s.Number == number })
	txn, next := putCfg(v, cfg)
	return txn, next, nil
}

func rollingBack(what string, v VolumeRecord) error {
	return errs.New(errs.Conflict, "%s volume %s: it is being taken back to snapshot %d", what, v.ID, v.Cfg.Rollback).
		WithHint("wait until that is done: `roseau volume show`")
}

// BeginRollback resolves to take volumes back to snapshots, all of them or none:
// numbers[i] is volume i's. Nobody has them open: whoever has nevertheless stops
// at its next transaction, and whoever opens them next takes them back before it
// serves. For volumes of a VM the placement, which recs must have then, must name
// nobody. errs.Conflict, errs.NotFound: the reason.
//
// The epoch ends with it, and nobody holds the new one. Under the old one a writer
// that still lives would take the changed record for the outcome of a transaction of
// its own (see Judge), and then write its configuration over the resolution.
func BeginRollback(recs Records, numbers []uint32) (Txn, error) {
	var txn Txn
	if !recs.VM.IsZero() {
		if !recs.Placement.Node.IsZero() {
			return txn, errs.New(errs.Conflict, "roll back vm %s: it is on node %s", recs.VM, recs.Placement.Node.Short()).WithHint("stop it first")
		}
		txn.Compares = append(txn.Compares, Compare{Key{KeyPlacement, recs.VM}, recs.PlacementRev})
	}
	epoch := uint64(0)
	for _, v := range recs.Volumes {
		epoch = max(epoch, v.Own.Epoch+1)
	}
	for i, v := range recs.Volumes {
		switch {
		case v.Cfg.State != VolumeLive:
			return txn, errs.New(errs.Conflict, "roll back volume %s: it is %s", v.ID, v.Cfg.State)
		case v.Cfg.Rollback != 0:
			return txn, rollingBack("roll back", v)
		case v.Cfg.Snap.Find(numbers[i]) == nil:
			return txn, errs.New(errs.NotFound, "roll back volume %s: there is no snapshot %d", v.ID, numbers[i])
		case v.Cfg.VM != recs.VM:
			return txn, errs.New(errs.Conflict, "roll back volume %s: it belongs to another VM", v.ID)
		}
		cfg := v.Cfg
		cfg.Rollback = numbers[i]
		cfg.Incompat |= FeatureRollback
		v.Own.Epoch = epoch
		v.Own.Inc, v.Own.Nonce, v.Own.Node, v.Own.Run, v.Own.Purpose = 0, ids.ID{}, ids.ID{}, ids.ID{}, PurposeMaintenance
		one, _ := putCfg(v, cfg)
		txn.Compares = append(txn.Compares, one.Compares...)
		txn.Puts = append(txn.Puts, one.Puts...)
	}
	return txn, nil
}

// EndRollback says that the volume reads as the snapshot does, durably on every
// in-sync copy.
func EndRollback(v VolumeRecord) (Txn, VolumeRecord) {
	cfg := v.Cfg
	cfg.Rollback = 0
	cfg.Incompat &^= FeatureRollback
	return putCfg(v, cfg)
}

// putCfg writes cfg under own's revision, and bumps own.CfgVersion with it: so a
// transaction that a takeover overtook fails [S8].
func putCfg(v VolumeRecord, cfg Cfg) (Txn, VolumeRecord) {
	var txn Txn
	o := v.Own.Clone()
	o.CfgVersion++
	next := v
	putOwn(&txn, &next, o)
	key := Key{KeyCfg, v.ID}
	txn.Compares = append(txn.Compares, Compare{key, v.CfgRev})
	txn.Puts = append(txn.Puts, Put{Key: key, Cfg: &cfg})
	next.Cfg, next.CfgRev = cfg, 0
	return txn, next
}
