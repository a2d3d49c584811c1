package repl

import (
	"errors"
	"slices"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

func TestRollbackTransactions(t *testing.T) {
	recs := testRecords()
	recs.VM, recs.Placement, recs.PlacementRev = ids.ID{}, Placement{}, 0
	v := recs.Volumes[0]
	v.CfgRev, v.Cfg.VM = 5, ids.ID{}
	v.Cfg.Snap = SnapContext{Next: 4, List: []Snapshot{{Number: 2, Name: "a"}, {Number: 4, Name: "b"}}}
	other := v
	other.ID, other.OwnRev, other.CfgRev = ids.New(), 8, 6
	recs.Volumes = []VolumeRecord{v, other}

	if _, err := BeginRollback(recs, []uint32{2, 3}); !errors.Is(err, errs.NotFound) {
		t.Fatalf("one volume has no such snapshot: %v", err)
	}
	txn, err := BeginRollback(recs, []uint32{2, 4})
	want := []Compare{{Key{KeyOwn, v.ID}, v.OwnRev}, {Key{KeyCfg, v.ID}, 5}, {Key{KeyOwn, other.ID}, 8}, {Key{KeyCfg, other.ID}, 6}}
	if err != nil || !slices.Equal(txn.Compares, want) || len(txn.Puts) != 4 {
		t.Fatalf("%+v %v", txn, err)
	}
	for i, number := range []uint32{2, 4} {
		own, cfg := txn.Puts[2*i].Own, txn.Puts[2*i+1].Cfg
		if own.CfgVersion != v.Own.CfgVersion+1 || own.Epoch != v.Own.Epoch+1 || cfg.Rollback != number || cfg.Incompat&FeatureRollback == 0 {
			t.Errorf("volume %d: %+v %+v", i, own, cfg)
		}
	}

	// A writer of the old epoch whose transaction failed does not take the record for
	// its own.
	late, _, err := ReserveSnapshot(v, "late")
	if err != nil {
		t.Fatal(err)
	}
	now := v
	now.Own, now.OwnRev = *txn.Puts[0].Own, v.OwnRev+1
	if got := Judge(late, Records{Volumes: []VolumeRecord{now}}); got != Superseded {
		t.Errorf("a snapshot that a rollback overtook: verdict %d", got)
	}

	v.Cfg = *txn.Puts[1].Cfg
	if _, _, err := ReserveSnapshot(v, "c"); !errors.Is(err, errs.Conflict) {
		t.Errorf("a snapshot of what is half restored: %v", err)
	}
	if _, _, err := DeleteSnapshot(v, 2); !errors.Is(err, errs.Conflict) {
		t.Errorf("the snapshot is needed: %v", err)
	}
	if _, err := BeginRollback(Records{Volumes: []VolumeRecord{v}}, []uint32{4}); !errors.Is(err, errs.Conflict) {
		t.Errorf("a rollback in a rollback: %v", err)
	}
	_, over := EndRollback(v)
	if over.Cfg.Rollback != 0 || over.Cfg.Incompat&FeatureRollback != 0 || len(over.Cfg.Snap.List) != 2 || over.Cfg.Snap.Next != 4 {
		t.Errorf("%+v", over.Cfg)
	}

	// Of a VM: its placement is compared, and must name nobody.
	vm, node := ids.New(), ids.New()
	mine := recs
	mine.VM, mine.PlacementRev = vm, 11
	mine.Volumes = slices.Clone(recs.Volumes)
	for i := range mine.Volumes {
		mine.Volumes[i].Cfg.VM = vm
	}
	txn, err = BeginRollback(mine, []uint32{2, 2})
	if err != nil || !slices.Contains(txn.Compares, Compare{Key{KeyPlacement, vm}, 11}) {
		t.Errorf("%+v %v", txn, err)
	}
	mine.Placement.Node = node
	if _, err := BeginRollback(mine, []uint32{2, 2}); !errors.Is(err, errs.Conflict) {
		t.Errorf("the vm runs: %v", err)
	}
	if _, err := BeginRollback(recs, []uint32{2, 2}); err != nil {
		t.Error(err)
	}
	recs.Volumes[1].Cfg.VM = vm
	if _, err := BeginRollback(recs, []uint32{2, 2}); !errors.Is(err, errs.Conflict) {
		t.Errorf("a volume of a VM without its VM: %v", err)
	}
}
