package writer

import (
	"strings"
	"testing"
	"time"
)

// A block that is bad on every in-sync copy does not keep a copy from joining: it
// is lost there, too. It reads as an error, nothing else does; a write heals it.
func TestJoinGivesUpABlockThatNoCopyHas(t *testing.T) {
	for _, mut := range []Mutations{{}, {LostAsAbsent: true}} {
		w := quiet(t, mut)
		g := w.served(time.Second)
		w.ask(g, OpWrite, 3, 7)
		w.ask(g, OpWrite, 4, 7)
		w.run(10 * time.Millisecond)
		w.isolate(g, 2)
		w.run(2500 * time.Millisecond)
		for b := range int64(4) {
			w.ask(g, OpWrite, 2+b, 8)
		}
		w.run(100 * time.Millisecond)
		w.replica(0).rot, w.replica(1).rot = blocksOf(3, 4), blocksOf(3)
		w.rejoin(g, 2)
		w.run(10 * time.Second)
		if len(w.own().Out) > 0 {
			t.Fatalf("mutation %v: the copy does not join: %v", mut, w.own().Out)
		}
		if mut == (Mutations{}) && (!w.replica(2).lost[3] || len(w.replica(2).lost) != 1) {
			t.Errorf("lost there: %v", w.replica(2).lost)
		}
		r, done := w.ask(g, OpRead, 3, 0)
		w.run(20 * time.Millisecond)
		if failed := done() && w.ioErrors == 1; failed != (mut == (Mutations{})) {
			t.Errorf("mutation %v: read of the lost block: done %v, %d errors, data %v", mut, done(), w.ioErrors, r.Data != nil)
		}
		if mut != (Mutations{}) {
			continue
		}
		for _, b := range []int64{2, 4, 5} {
			r, done := w.ask(g, OpRead, b, 0)
			w.run(20 * time.Millisecond)
			if !done() || r.Data == nil || stampOf(r.Data) != 8 {
				t.Errorf("block %d: done %v", b, done())
			}
		}
		if h := g.core.Health().Volumes[0]; h.Lost != 1 {
			t.Errorf("%d blocks lost, want 1", h.Lost)
		}
		told := 0
		for _, e := range g.reports {
			if e.Kind == ReportDamaged && strings.Contains(e.Text, "block 3: no in-sync copy can read it") {
				told++
			}
		}
		if told != 1 {
			t.Errorf("told %d times: %v", told, g.reports)
		}
		w.ask(g, OpWrite, 3, 9)
		w.run(20 * time.Millisecond)
		r, done = w.ask(g, OpRead, 3, 0)
		w.run(20 * time.Millisecond)
		if !done() || r.Data == nil || stampOf(r.Data) != 9 || g.core.Health().Volumes[0].Lost != 0 {
			t.Errorf("not healed by a write: done %v, %d lost, %v", done(), g.core.Health().Volumes[0].Lost, g.core.vols[0].lost)
		}
	}
}

// While an in-sync copy does not answer, nothing is given up: it may have the block.
func TestJoinWaitsForACopyThatMayHaveTheBlock(t *testing.T) {
	for _, mut := range []Mutations{{}, {LostWithoutAsking: true}} {
		w := quiet(t, mut)
		g := w.served(time.Second)
		w.isolate(g, 2)
		w.run(2500 * time.Millisecond)
		w.ask(g, OpWrite, 3, 8)
		w.run(100 * time.Millisecond)
		w.replica(0).rot = blocksOf(3)
		w.etcd.down = true // member 1 cannot be put out, it may come back
		w.isolate(g, 1)
		w.rejoin(g, 2)
		w.run(5 * time.Second)
		if got, want := w.replica(2).lost[3], mut != (Mutations{}); got != want {
			t.Errorf("mutation %v: given up: %v", mut, got)
		}
	}
}

func (w *world) rejoin(g *fakeGuard, node int) {
	delete(g.blocked, w.nodes[node].id)
	g.connect(w.nodes[node])
}

// Another copy lists an extent only if it may have a block that is missing: not one
// that told of each of them that it is bad there, too.
func TestWhoMayHaveWhatIsMissing(t *testing.T) {
	a, b := &member{}, &member{}
	task := &readTask{have: []bool{true, false, false}, bad: []badBlock{{m: a, i: 0}, {m: a, i: 1}, {m: b, i: 1}, {m: b, i: 2}}}
	if !task.mayHave(a) {
		t.Error("block 2 was not bad on the first")
	}
	if task.mayHave(b) {
		t.Error("both missing blocks are bad on the second")
	}
	task.have[2] = true
	if task.mayHave(a) {
		t.Error("the one missing block is bad on the first")
	}
}
