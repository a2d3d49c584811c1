package repl_test

import (
	"slices"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

func cloneParent(numbers ...uint32) repl.VolumeRecord {
	v := owner{place: 7, rev: 3}.record()
	v.Cfg.Snap.Next = 9
	for _, n := range numbers {
		v.Cfg.Snap.List = append(v.Cfg.Snap.List, repl.Snapshot{Number: n})
	}
	return v
}

func TestAddClone(t *testing.T) {
	parent := cloneParent(2, 5)
	c, err := repl.AddClone(parent, repl.Clones{}, 5, id(1))
	if err != nil || !slices.Equal(c.Of(5), []ids.ID{id(1)}) || len(c.Of(2)) != 0 || len(c.Of(0)) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	deleting, flat := parent, parent
	deleting.Cfg.State = repl.VolumeDeleting
	flat.Cfg.Parent = repl.Parent{Volume: id(8), Snapshot: 1}
	full := repl.Clones{List: make([]repl.Clone, repl.MaxClones)}
	for name, x := range map[string]struct {
		v    repl.VolumeRecord
		c    repl.Clones
		n    uint32
		kind error
	}{
		"no such snapshot":     {parent, c, 3, errs.NotFound},
		"the parent goes":      {deleting, c, 5, errs.Conflict},
		"a clone, unflattened": {flat, c, 5, errs.Conflict},
		"the snapshot goes":    {parent, repl.Clones{Leaving: []uint32{5}}, 5, errs.Conflict},
		"too many":             {parent, full, 5, errs.Conflict},
	} {
		if _, err := repl.AddClone(x.v, x.c, x.n, id(2)); errs.Kind(err) != x.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A snapshot is cloned or deleted, whichever comes first: both change the one record.
func TestLeaveSnapshot(t *testing.T) {
	parent := cloneParent(2, 5)
	c, err := repl.AddClone(parent, repl.Clones{}, 5, id(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repl.LeaveSnapshot(c, 5); errs.Kind(err) != errs.Conflict {
		t.Errorf("a snapshot that a clone reads: %v", err)
	}
	left, err := repl.LeaveSnapshot(c, 2)
	if err != nil || !slices.Equal(left.Leaving, []uint32{2}) || len(left.List) != 1 {
		t.Fatalf("%+v, %v", left, err)
	}
	if again, err := repl.LeaveSnapshot(left, 2); err != nil || len(again.Leaving) != 1 {
		t.Errorf("twice: %+v, %v", again, err)
	}
	if _, err := repl.AddClone(parent, left, 2, id(2)); errs.Kind(err) != errs.Conflict {
		t.Errorf("a clone of a snapshot that leaves: %v", err)
	}
	rest := left.Without(func(v ids.ID) bool { return v == id(1) }, []uint32{5})
	if len(rest.List) != 0 || len(rest.Leaving) != 0 {
		t.Errorf("what is over is still there: %+v", rest)
	}
	if kept := left.Without(func(ids.ID) bool { return false }, []uint32{2, 5}); len(kept.List) != 1 || len(kept.Leaving) != 1 {
		t.Errorf("what is not over is gone: %+v", kept)
	}
}

// A clone writes above object 0, refuses builds that do not know of parents, and is
// an ordinary volume once it is flattened; its transaction is its writer's.
func TestCloneIsFlattened(t *testing.T) {
	v := owner{place: 7, rev: 3, epoch: 4, nonce: 1, cfg: 8}.record()
	v.Cfg = repl.CloneCfg(v.Cfg, repl.Parent{Volume: id(8), Snapshot: 5})
	if v.Cfg.Snap.Next != 1 || v.Cfg.Incompat&repl.FeatureClone == 0 || v.Supported() != nil {
		t.Fatalf("%+v", v.Cfg)
	}
	txn, next := repl.EndFlatten(v)
	if !next.Cfg.Parent.IsZero() || next.Cfg.Incompat&repl.FeatureClone != 0 || next.Cfg.Incompat&repl.FeatureSnapshots == 0 || next.Cfg.Snap.Next != 1 {
		t.Errorf("%+v", next.Cfg)
	}
	if next.Own.CfgVersion != 9 || len(txn.Compares) != 2 || txn.Compares[0].Key.Kind != repl.KeyOwn || txn.Compares[0].Rev != 3 {
		t.Errorf("%+v %+v", txn, next.Own)
	}
}
