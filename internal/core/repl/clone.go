package repl

import (
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Parent names what a clone was made from. The zero value: the volume is no
// clone, or does not need its parent any more.
type Parent struct {
	Volume   ids.ID `json:"volume"`
	Snapshot uint32 `json:"snapshot"` // its number
}

// IsZero reports whether there is no parent.
func (p Parent) IsZero() bool { return p == Parent{} }

// MaxClones is how many clones of one volume may need it at a time.
const MaxClones = 1000

// Clones is /s/vol/<uuid>/clones, a record beside those of the parent: who reads
// its snapshots. Only its own revision is compared when it changes, for the
// parent's writer neither reads nor writes it.
type Clones struct {
	List []Clone `json:"list,omitempty"`
	// Leaving are snapshots whose deletion was resolved: no clone is made of them any
	// more, whether or not they exist yet. Numbers are never used again.
	Leaving []uint32 `json:"leaving,omitempty"`
}

// Clone is a volume that reads a snapshot of the record's volume.
type Clone struct {
	Volume   ids.ID `json:"volume"`
	Snapshot uint32 `json:"snapshot"`
}

// Of returns the clones that need a snapshot; 0: any.
func (c Clones) Of(snapshot uint32) []ids.ID {
	var out []ids.ID
	for _, k := range c.List {
		if snapshot == 0 || k.Snapshot == snapshot {
			out = append(out, k.Volume)
		}
	}
	return out
}

// Without returns c without the clones for which gone holds: they were deleted, or
// need no parent any more; and without what is known of snapshots that do not
// exist.
func (c Clones) Without(gone func(ids.ID) bool, exist []uint32) Clones {
	return Clones{
		List:    slices.DeleteFunc(slices.Clone(c.List), func(k Clone) bool { return gone(k.Volume) }),
		Leaving: slices.DeleteFunc(slices.Clone(c.Leaving), func(n uint32) bool { return !slices.Contains(exist, n) }),
	}
}

// AddClone notes that volume clone is made from a snapshot. The transaction that
// stores the result must make the clone's records, and compare the parent's own.
// errs.Conflict, errs.NotFound: the reason.
func AddClone(parent VolumeRecord, c Clones, number uint32, clone ids.ID) (Clones, error) {
	switch {
	case parent.Cfg.State != VolumeLive:
		return c, errs.New(errs.Conflict, "clone volume %s: it is %s", parent.ID, parent.Cfg.State)
	case !parent.Cfg.Parent.IsZero():
		return c, errs.New(errs.Conflict, "clone volume %s: it is itself a clone that still reads its parent", parent.ID).
			WithHint("wait until it is flattened (`roseau volume show`), or clone the parent's snapshot")
	case parent.Cfg.Snap.Find(number) == nil:
		return c, errs.New(errs.NotFound, "clone volume %s: there is no snapshot %d", parent.ID, number)
	case slices.Contains(c.Leaving, number):
		return c, errs.New(errs.Conflict, "clone volume %s: snapshot %d is being deleted", parent.ID, number)
	case len(c.List) >= MaxClones:
		return c, errs.New(errs.Conflict, "clone volume %s: %d clones still read it", parent.ID, len(c.List)).
			WithHint("wait until some are flattened, or delete some")
	}
	return Clones{List: append(slices.Clone(c.List), Clone{clone, number}), Leaving: c.Leaving}, nil
}

// LeaveSnapshot resolves that a snapshot is to be deleted: from then on it is not
// cloned. errs.Conflict: a clone reads it.
func LeaveSnapshot(c Clones, number uint32) (Clones, error) {
	if of := c.Of(number); len(of) > 0 {
		return c, errs.New(errs.Conflict, "delete snapshot %d: %d clones read it", number, len(of))
	}
	if slices.Contains(c.Leaving, number) {
		return c, nil
	}
	return Clones{List: c.List, Leaving: append(slices.Clone(c.Leaving), number)}, nil
}

// CloneCfg turns the configuration of a new volume into that of a clone of a
// snapshot. Its own numbers begin at 1: object 0 is the parent's, see
// docs/design/snapshots.md.
func CloneCfg(cfg Cfg, parent Parent) Cfg {
	cfg.Parent = parent
	cfg.Snap = SnapContext{Next: 1}
	cfg.Incompat |= FeatureClone | FeatureSnapshots
	return cfg
}

// EndFlatten says that a clone needs its parent no more: every in-sync copy has
// durably all that it read there.
func EndFlatten(v VolumeRecord) (Txn, VolumeRecord) {
	cfg := v.Cfg
	cfg.Parent = Parent{}
	cfg.Incompat &^= FeatureClone
	return putCfg(v, cfg)
}
