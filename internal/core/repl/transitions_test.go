package repl

import (
	"errors"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

func tid(n byte) ids.ID { return ids.ID{15: n} }

func testRecords() Records {
	seg := Segments{Disks: []ids.ID{tid(1), tid(2), tid(3)}, Map: [][]uint16{{0, 1, 2}, {1, 2, 0}}}
	v := VolumeRecord{ID: tid(50), OwnRev: 7, SegRev: 3, Seg: seg, Cfg: Cfg{State: VolumeLive, Copies: 3}}
	v2 := v
	v2.ID, v2.OwnRev = tid(51), 9
	return Records{Volumes: []VolumeRecord{v, v2}, VM: tid(60), Placement: Placement{Node: tid(10), Attempt: 4}, PlacementRev: 8}
}

func TestTakeover(t *testing.T) {
	recs := testRecords()
	take := Take{Node: tid(10), Run: tid(20), Purpose: PurposeVM, Nonce: tid(30), Attempt: 4}
	txn, next, err := Takeover(recs, take)
	if err != nil {
		t.Fatal(err)
	}
	if len(txn.Compares) != 3 || txn.Compares[2] != (Compare{Key{KeyPlacement, tid(60)}, 8}) || len(txn.Puts) != 2 {
		t.Fatalf("txn %+v", txn)
	}
	for _, v := range next.Volumes {
		if v.Own.Epoch != 1 || v.Own.CfgVersion != 1 || v.Own.Run != tid(20) {
			t.Fatalf("own %+v", v.Own)
		}
	}
	if recs.Volumes[0].Own.Epoch != 0 {
		t.Fatal("the input was changed")
	}
	take.Attempt = 5
	if _, _, err := Takeover(recs, take); !errors.Is(err, errs.Conflict) {
		t.Fatalf("another attempt: %v", err)
	}
	take.Attempt, take.ExpectRun = 4, tid(21)
	if _, _, err := Takeover(recs, take); !errors.Is(err, errs.Fenced) {
		t.Fatalf("another run: %v", err)
	}
	recs.Placement = Placement{Node: tid(11), Target: tid(10)}
	take.ExpectRun = ids.ID{}
	if _, _, err := Takeover(recs, take); err != nil {
		t.Fatalf("migration target: %v", err)
	}
}

func TestShrinkGrowReplace(t *testing.T) {
	v := testRecords().Volumes[0]
	base := Mark{1, 40}
	txn, s, err := Shrink(v, []ids.ID{tid(1), tid(2)}, []OutReason{OutLost, OutHung}, base)
	if err != nil || len(s.ISR(0)) != 1 || s.Own.Out[tid(2)].Base != base || s.Own.Out[tid(2)].Reason != OutHung || txn.Compares[0].Rev != 7 {
		t.Fatalf("%v %+v", err, s)
	}
	if _, _, err := Shrink(s, []ids.ID{tid(3)}, []OutReason{OutLost}, base); !errors.Is(err, errs.Invalid) {
		t.Fatalf("the last copy was put out: %v", err)
	}
	if _, g, err := Grow(s, tid(1)); err != nil || len(g.ISR(1)) != 2 || g.Own.CfgVersion != 2 {
		t.Fatalf("%v %+v", err, g)
	}
	if _, _, err := Grow(v, tid(1)); !errors.Is(err, errs.Invalid) {
		t.Fatalf("grow of a member: %v", err)
	}
	txn, r, err := MoveCopies(s, Move{Old: tid(1), New: tid(9)})
	if err != nil || r.Seg.Row(1)[2] != tid(9) || r.Own.Out[tid(9)].Reason != OutRebuild || len(txn.Puts) != 2 {
		t.Fatalf("%v %+v", err, r)
	}
	if _, is := r.Own.Out[tid(1)]; is {
		t.Fatal("the replaced disk is still named")
	}
	if _, _, err := MoveCopies(s, Move{Old: tid(1), New: tid(3)}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("two copies on one disk: %v", err)
	}
}

func TestJudge(t *testing.T) {
	recs := testRecords()
	txn, next, _ := Takeover(recs, Take{Node: tid(10), Run: tid(20), Nonce: tid(30), Attempt: 4})
	if got := Judge(txn, recs); got != Undecided {
		t.Fatalf("nothing changed: %v", got)
	}
	next.Volumes[0].OwnRev = 11
	if got := Judge(txn, next); got != Committed {
		t.Fatalf("committed: %v", got)
	}
	_, other, _ := Takeover(recs, Take{Node: tid(10), Run: tid(21), Nonce: tid(31), Attempt: 4})
	other.Volumes[0].OwnRev = 11
	if got := Judge(txn, other); got != Superseded {
		t.Fatalf("another taker: %v", got)
	}
}
