package repl

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// spread is four segments over the disks 1 to 4, two copies each.
func spread() VolumeRecord {
	return VolumeRecord{ID: tid(50), OwnRev: 7, SegRev: 3, Cfg: Cfg{State: VolumeLive, Copies: 2},
		Seg: Segments{Disks: []ids.ID{tid(1), tid(2), tid(3), tid(4)}, Map: [][]uint16{{0, 1}, {0, 2}, {1, 2}, {3, 0}}}}
}

// A dead disk's segments go to disks that hold others of the volume: those stay
// in sync for what they hold.
func TestMoveCopiesOfADeadDisk(t *testing.T) {
	_, v, err := Shrink(spread(), []ids.ID{tid(1)}, []OutReason{OutDiskFailed}, Mark{1, 9})
	if err != nil {
		t.Fatal(err)
	}
	_, a, err := MoveCopies(v, Move{Old: tid(1), New: tid(3), Segments: []uint32{0}})
	if err != nil {
		t.Fatal(err)
	}
	if out := a.Own.Out[tid(3)]; !out.Partial || !out.Fills(0) || out.Fills(2) || len(a.ISR(2)) != 2 || len(a.ISR(0)) != 1 {
		t.Fatalf("%+v", a)
	}
	_, b, err := MoveCopies(a, Move{Old: tid(1), New: tid(2), Segments: []uint32{1, 3}})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(b.Seg.Disks, tid(1)) || len(b.Own.Out) != 2 {
		t.Fatalf("the dead disk is still named: %+v", b)
	}
	for s := range b.Seg.Map {
		if len(b.Seg.Row(s)) != 2 {
			t.Fatalf("segment %d: %v", s, b.Seg.Row(s))
		}
	}
	// A target that is lost before it is complete goes out as a whole, and what it
	// was given is compared from the beginning.
	if _, b, err = Grow(b, tid(2)); err != nil || len(b.ISR(1)) != 2 {
		t.Fatalf("%v %+v", err, b)
	}
	_, c, err := Shrink(b, []ids.ID{tid(3)}, []OutReason{OutLost}, Mark{1, 20})
	if out := c.Own.Out[tid(3)]; err != nil || out.Partial || out.Base != (Mark{}) || len(c.ISR(2)) != 1 {
		t.Fatalf("%v %+v", err, c)
	}
	_, d, err := Grow(c, tid(3))
	if err != nil || len(d.ISR(0)) != 2 || len(d.ISR(2)) != 2 {
		t.Fatalf("%v %+v", err, d)
	}
}

// A copy that is in sync leaves with the grow of its successor, in one
// transaction, and not before.
func TestMoveCopiesOfALivingDisk(t *testing.T) {
	v := spread()
	if _, _, err := MoveCopies(v, Move{Old: tid(1), New: tid(9)}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("a copy in sync was replaced: %v", err)
	}
	_, a, err := MoveCopies(v, Move{Old: tid(1), New: tid(9), Live: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.ISR(0)) != 2 || len(a.Seg.Row(0)) != 3 || len(a.Spare(tid(9))) != 3 || a.Own.Out[tid(9)].Partial {
		t.Fatalf("%+v", a)
	}
	if _, _, err := MoveCopies(a, Move{Old: tid(1), New: tid(8), Live: true}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("one copy left for two others: %v", err)
	}
	if txn, c, err := CancelMove(a, tid(9)); err != nil || !c.Seg.equal(v.Seg) || len(c.Own.Out) != 0 || len(txn.Puts) != 2 {
		t.Fatalf("%v %+v", err, c)
	}
	txn, g, err := Grow(a, tid(9))
	if err != nil || len(txn.Puts) != 2 || slices.Contains(g.Seg.Disks, tid(1)) || len(g.Own.Out) != 0 {
		t.Fatalf("%v %+v", err, g)
	}
	// The successor dies: another one takes up the whole move.
	_, dead, err := MoveCopies(a, Move{Old: tid(9), New: tid(8)})
	if err != nil || len(dead.Spare(tid(8))) != 3 || slices.Contains(dead.Seg.Disks, tid(9)) {
		t.Fatalf("%v %+v", err, dead)
	}
	if _, g, err = Grow(dead, tid(8)); err != nil || slices.Contains(g.Seg.Disks, tid(1)) || len(g.ISR(0)) != 2 {
		t.Fatalf("%v %+v", err, g)
	}
}

// Whatever is moved, cancelled, lost and brought back in whatever order: no
// transition takes a disk out of an in-sync set but Shrink, none of them puts one
// in but Grow, and no segment is left without a copy.
func TestMoveProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := spread()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			d := tid(byte(rapid.IntRange(1, 6).Draw(t, "disk")))
			e := tid(byte(rapid.IntRange(1, 6).Draw(t, "other")))
			before := isrs(v)
			var txn Txn
			var next VolumeRecord
			var err error
			kind := rapid.SampledFrom([]string{"shrink", "grow", "move", "live", "cancel"}).Draw(t, "kind")
			switch kind {
			case "shrink":
				if !slices.Contains(v.Seg.Disks, d) {
					continue
				}
				txn, next, err = Shrink(v, []ids.ID{d}, []OutReason{OutLost}, Mark{1, 1})
			case "grow":
				txn, next, err = Grow(v, d)
			case "cancel":
				txn, next, err = CancelMove(v, d)
			default:
				m := Move{Old: d, New: e, Live: kind == "live"}
				if rapid.Bool().Draw(t, "one") {
					m.Segments = []uint32{uint32(rapid.IntRange(0, 4).Draw(t, "segment"))}
				}
				txn, next, err = MoveCopies(v, m)
			}
			if err != nil {
				continue
			}
			if next.Own.CfgVersion != v.Own.CfgVersion+1 || txn.Compares[0] != (Compare{Key{KeyOwn, v.ID}, v.OwnRev}) {
				t.Fatal("a change without own's revision")
			}
			after := isrs(next)
			for s := range after {
				if len(after[s]) == 0 {
					t.Fatalf("%s: segment %d has no copy", kind, s)
				}
				for _, x := range before[s] {
					if !slices.Contains(after[s], x) && kind != "shrink" && (kind != "grow" || !slices.Contains(after[s], d)) {
						t.Fatalf("%s: %s left segment %d: %v, then %v", kind, x, s, before[s], after[s])
					}
				}
				for _, x := range after[s] {
					if !slices.Contains(before[s], x) && (kind != "grow" || x != d) {
						t.Fatalf("%s: %s became a copy of segment %d", kind, x, s)
					}
				}
				if n := len(next.Seg.Row(s)); n < 2 {
					t.Fatalf("%s: segment %d is on %d disks", kind, s, n)
				}
				row := slices.Clone(next.Seg.Map[s])
				slices.Sort(row)
				if len(slices.Compact(row)) != len(next.Seg.Map[s]) {
					t.Fatalf("%s: a disk has segment %d twice", kind, s)
				}
			}
			next.OwnRev, next.SegRev = v.OwnRev+1, v.SegRev+1
			v = next
		}
	})
}

func isrs(v VolumeRecord) [][]ids.ID {
	var out [][]ids.ID
	for s := range v.Seg.Map {
		out = append(out, v.ISR(s))
	}
	return out
}
