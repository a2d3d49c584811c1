package writer

import (
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
)

func TestHedgeBound(t *testing.T) {
	var h hedging
	if h.bound() != hedgeMost {
		t.Errorf("nothing known: %v", h.bound())
	}
	for range 1000 {
		h.answered(200 * time.Microsecond)
	}
	if h.bound() != hedgeLeast {
		t.Errorf("fast copies: %v", h.bound())
	}
	for range 30 { // 3 %
		h.answered(300 * time.Millisecond)
	}
	if h.bound() != hedgeLeast {
		t.Errorf("a few slow answers raise it to %v", h.bound())
	}
	for range 2000 {
		h.answered(20 * time.Millisecond)
	}
	if b := h.bound(); b < 80*time.Millisecond || b > 200*time.Millisecond {
		t.Errorf("slow copies: %v", b)
	}
	for range 20000 { // what was is forgotten
		h.answered(200 * time.Microsecond)
	}
	if h.bound() != hedgeLeast {
		t.Errorf("fast again: %v", h.bound())
	}
}

// hedged reads blocks one after another while the copies answer after delay, which
// is asked at each answer, and returns the longest time that a read took.
func hedged(t *testing.T, mut Mutations, reads int, delay func(n *fakeNode) time.Duration) (w *world, g *fakeGuard, most time.Duration) {
	t.Helper()
	w = quiet(t, mut)
	g = w.served(time.Second)
	w.readDelay = delay
	for i := range reads {
		begun := w.now
		_, done := w.ask(g, OpRead, int64(i%700), 0)
		for !done() && w.now.Sub(begun) < 3*time.Second {
			w.run(time.Millisecond)
		}
		if !done() {
			t.Fatalf("read %d is not answered", i)
		}
		most = max(most, w.now.Sub(begun))
	}
	return w, g, most
}

// The local copy is slow now and then: the reads that meet that are answered by
// another one; without hedging they wait.
func TestSlowReadIsHedged(t *testing.T) {
	for _, mut := range []Mutations{{}, {NeverHedge: true}} {
		n := 0
		w, g, most := hedged(t, mut, 1500, func(f *fakeNode) time.Duration {
			if f == f.w.nodes[0] {
				if n++; n > 500 && n%50 == 0 {
					return time.Second
				}
			}
			return 0
		})
		h := g.core.Health().Volumes[0]
		if mut.NeverHedge {
			if most < time.Second || h.Hedged != 0 {
				t.Errorf("without hedging: the longest took %v, %d hedged: the test sees nothing", most, h.Hedged)
			}
			continue
		}
		if most > 2*hedgeLeast+2*hedgeScan || h.Hedged < 15 || h.Hedged != h.HedgesWon {
			t.Errorf("the longest took %v, %d hedged, %d won", most, h.Hedged, h.HedgesWon)
		}
		w.run(2 * time.Second)
		for i := range g.core.slots {
			if g.core.slots[i].kind == slotLate {
				t.Error("a late answer was not taken")
			}
		}
		if len(w.own().Out) > 0 {
			t.Errorf("out: %v", w.own().Out)
		}
	}
}

// A copy that is always slow: no more than an eighth of the reads, and a burst, are
// asked twice.
func TestHedgesAreBounded(t *testing.T) {
	const reads = 1200
	_, g, _ := hedged(t, Mutations{}, reads, func(f *fakeNode) time.Duration {
		if f == f.w.nodes[0] && f.w.now > clock.Instant(1500*time.Millisecond) {
			return 700 * time.Millisecond
		}
		return 0
	})
	if h := g.core.Health().Volumes[0]; h.Hedged == 0 || h.Hedged > reads/hedgeCost+hedgeBurst/hedgeCost {
		t.Errorf("%d of %d hedged", h.Hedged, reads)
	}
}

// The copy that was asked first goes away, or the second: the other's answer counts.
func TestHedgeSurvivesALoss(t *testing.T) {
	for lose := range 2 {
		w := quiet(t, Mutations{})
		g := w.served(time.Second)
		g.core.hedge.tokens = hedgeBurst
		w.readDelay = func(f *fakeNode) time.Duration {
			if f == w.nodes[0] {
				return 2 * time.Second
			}
			return 800 * time.Millisecond
		}
		_, done := w.ask(g, OpRead, 5, 0)
		for g.core.vols[0].hedged == 0 && w.now < clock.Instant(5*time.Second) {
			w.run(time.Millisecond)
		}
		var op *op
		for i := range g.core.slots {
			if s := &g.core.slots[i]; s.kind == slotRead {
				op = s.op
			}
		}
		if op == nil || !op.hedged {
			t.Fatal("not hedged")
		}
		n := w.nodes[0]
		if lose == 1 {
			for i := range g.core.slots {
				if s := &g.core.slots[i]; s.kind == slotRead && s.m != op.from {
					n = w.nodeOf(s.m.node.id)
				}
			}
		}
		g.conns[n.id].break_(false)
		w.run(4 * time.Second)
		if !done() || w.ioErrors > 0 {
			t.Errorf("loss of copy %d: done %v, %d errors", lose, done(), w.ioErrors)
		}
	}
}

func isReadReply(m wire.Message) bool {
	_, ok := m.(*wire.ReadReply)
	return ok
}
