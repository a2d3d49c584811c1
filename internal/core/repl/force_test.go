package repl_test

import (
	"errors"
	"slices"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// forced has two segments: 0 and 1 are in sync, 2 is out of both, 3 is in sync for
// the second alone.
func forcible() repl.VolumeRecord {
	return repl.VolumeRecord{
		ID: id(90), OwnRev: 7, CfgRev: 8, SegRev: 9,
		Cfg: repl.Cfg{State: repl.VolumeLive, Copies: 3},
		Own: repl.Own{Epoch: 5, Nonce: id(20), Node: id(40), Run: id(60), Purpose: repl.PurposeVM, CfgVersion: 11,
			Out: map[ids.ID]repl.Out{id(2): {Base: repl.Mark{Epoch: 5, Wseq: 100}, Reason: repl.OutLost, Since: 1000}}},
		Seg: repl.Segments{Disks: []ids.ID{id(0), id(1), id(2), id(3)}, Map: [][]uint16{{0, 1, 2}, {0, 3, 2}}},
	}
}

func reachable(disks ...uint8) func(ids.ID) bool {
	return func(d ids.ID) bool {
		return slices.ContainsFunc(disks, func(n uint8) bool { return id(n) == d })
	}
}

func TestLosses(t *testing.T) {
	v := forcible()
	for _, c := range []struct {
		name string
		up   []uint8
		from []ids.ID
		kind error
		want []int
	}{
		{"everything is there", []uint8{0, 1, 2, 3}, nil, errs.Conflict, nil},
		{"one in-sync copy of each", []uint8{1, 3, 2}, nil, errs.Conflict, nil},
		{"one segment has none", []uint8{3, 2}, nil, nil, []int{0}},
		{"both have none", []uint8{2}, nil, nil, []int{0, 1}},
		{"nothing at all", []uint8{}, nil, errs.Unavailable, nil},
		{"another disk is asked for", []uint8{2}, []ids.ID{id(3)}, errs.Unavailable, nil},
	} {
		list, err := repl.Losses(v, reachable(c.up...), c.from)
		var got []int
		for _, l := range list {
			got = append(got, l.Segment)
			if l.From != id(2) || l.Out.Since != 1000 {
				t.Errorf("%s: %+v", c.name, l)
			}
		}
		if !errors.Is(err, c.kind) || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	// One that was being given the segment never had it; one that was given up once
	// has another history.
	for _, o := range []repl.Out{{Fill: []repl.Fill{{Segment: 0}}}, {Reason: repl.OutGivenUp}} {
		v := forcible()
		v.Own.Out = map[ids.ID]repl.Out{id(2): o}
		if _, err := repl.Losses(v, reachable(2, 3), nil); !errors.Is(err, errs.Unavailable) {
			t.Errorf("%+v becomes the truth: %v", o, err)
		}
	}
}

func TestForce(t *testing.T) {
	v := forcible()
	losses, err := repl.Losses(v, reachable(2, 3), nil)
	if err != nil {
		t.Fatal(err)
	}
	txn, next, err := repl.Force(repl.Records{Volumes: []repl.VolumeRecord{v}}, losses)
	if err != nil {
		t.Fatal(err)
	}
	o := next.Own
	if o.Generation.Volume != 1 || o.Epoch != 6 || o.CfgVersion != 12 || !o.Node.IsZero() || !o.Run.IsZero() {
		t.Errorf("own: %+v", o)
	}
	if isr := next.ISR(0); !slices.Equal(isr, []ids.ID{id(2)}) {
		t.Errorf("segment 0: %v in sync, want the forced copy alone", isr)
	}
	if isr := next.ISR(1); !slices.Equal(isr, []ids.ID{id(3)}) {
		t.Errorf("segment 1: %v in sync, want the copy that never left: the forced disk is stale there", isr)
	}
	for _, d := range []uint8{0, 1} {
		if x := o.Out[id(d)]; x.Reason != repl.OutGivenUp || x.Base != (repl.Mark{}) || o.Imports(id(d)) {
			t.Errorf("disk %d: %+v, imported %v", d, x, o.Imports(id(d)))
		}
	}
	if !o.Imports(id(2)) || !o.Imports(id(3)) || next.Cfg.Incompat&repl.FeatureImport == 0 {
		t.Errorf("imports %v, features %#x", o.Import, next.Cfg.Incompat)
	}
	for _, c := range []repl.Compare{{Key: repl.Key{Kind: repl.KeyOwn, ID: id(90)}, Rev: 7}, {Key: repl.Key{Kind: repl.KeyCfg, ID: id(90)}, Rev: 8}} {
		if !slices.Contains(txn.Compares, c) {
			t.Errorf("the transaction does not compare %+v", c)
		}
	}
	// Forced again: who was given up stays so.
	again := next
	again.Own.Out = map[ids.ID]repl.Out{}
	for d, x := range o.Out {
		again.Own.Out[d] = x
	}
	again.Own.Out[id(3)] = repl.Out{Base: repl.Mark{Epoch: 7, Wseq: 3}}
	delete(again.Own.Out, id(2))
	losses, err = repl.Losses(again, reachable(0, 1, 3), nil)
	if err == nil {
		t.Errorf("segment 0 is forced onto a copy of an older generation: %+v", losses)
	}
	for _, bad := range []func(*repl.Records){
		func(r *repl.Records) { r.Volumes[0].Cfg.State = repl.VolumeDeleting },
		func(r *repl.Records) { r.VM = id(70) },
		func(r *repl.Records) { r.Volumes[0].Cfg.VM, r.VM, r.Placement.Node = id(70), id(70), id(40) },
	} {
		r := repl.Records{Volumes: []repl.VolumeRecord{forcible()}}
		bad(&r)
		if _, _, err := repl.Force(r, losses); !errors.Is(err, errs.Conflict) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
