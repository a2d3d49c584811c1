package writer

import (
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/place"
	"roseau/internal/core/repl"
)

// directWorld serves a volume whose local copy is read directly, and whose block 3
// holds 7.
func directWorld(t *testing.T) (*world, *fakeGuard) {
	t.Helper()
	w := quiet(t, Mutations{})
	w.direct = true
	g := w.served(time.Second)
	w.write(t, g, 3, 7)
	return w, g
}

func (w *world) write(t *testing.T, g *fakeGuard, block int64, value uint64) {
	t.Helper()
	_, done := w.ask(g, OpWrite, block, value)
	w.run(20 * time.Millisecond)
	if !done() {
		t.Fatalf("the write of block %d is not answered", block)
	}
}

// wantMap reads block 3 until the core asks for the map of its extent.
func (w *world) wantMap(t *testing.T, g *fakeGuard) WantPlaces {
	t.Helper()
	n := len(g.wanted)
	for range 2 * int(g.core.t.PlacesMisses) {
		_, done := w.ask(g, OpRead, 3, 0)
		w.run(20 * time.Millisecond)
		if !done() || len(g.reads) > 0 {
			t.Fatalf("a read without a map: answered %v, %d direct reads", done(), len(g.reads))
		}
		if len(g.wanted) > n {
			return g.wanted[n]
		}
		w.run(100 * time.Millisecond)
	}
	t.Fatal("nobody asks for a map")
	return WantPlaces{}
}

// mapOf says that blocks 0 to 9 are in place.
func mapOf() *place.Map {
	m := place.Empty(5, repl.ExtentBlocks)
	m.Slots = []place.Slot{{Number: 2, Version: 4, Offset: 1 << 20}}
	for i := range 10 {
		m.Source[i], m.CRC[i] = 1, uint32(100+i)
	}
	return m
}

func mapped(t *testing.T) (*world, *fakeGuard) {
	t.Helper()
	w, g := directWorld(t)
	e := w.wantMap(t, g)
	g.step(PlacesKnown{Serial: e.Serial, Extent: e.Extent, Map: mapOf()})
	return w, g
}

// read asks for block 3 and returns the direct read that it became.
func (w *world) directRead(t *testing.T, g *fakeGuard) (*Request, DirectRead) {
	t.Helper()
	r, _ := w.ask(g, OpRead, 3, 0)
	if len(g.reads) != 1 {
		t.Fatalf("%d direct reads, want one", len(g.reads))
	}
	d := g.reads[0]
	g.reads = nil
	return r, d
}

func TestDirectRead(t *testing.T) {
	w, g := mapped(t)
	r, d := w.directRead(t, g)
	if d.Read.Offset != 1<<20+3*repl.BlockBytes || d.Read.Slot != 2 || len(d.Read.CRC) != 1 || d.Read.CRC[0] != 103 || d.Disk != w.nodes[0].disks[0].id {
		t.Fatalf("%+v", d)
	}
	if w.plain[r] {
		t.Fatal("answered before it was read")
	}
	g.step(&DirectDone{ID: d.ID, OK: true, Data: blockOf(77)}) // to be told from what the copies have
	if !w.plain[r] || stampOf(r.Data) != 77 {
		t.Fatalf("answered %v", w.plain[r])
	}
	g.step(&DirectDone{ID: d.ID, OK: true, Data: blockOf(78)}) // twice is of no consequence
}

// What was read and does not count is asked of the storage process.
func TestDirectReadThatFails(t *testing.T) {
	w, g := mapped(t)
	r, d := w.directRead(t, g)
	g.step(&DirectDone{ID: d.ID})
	w.run(20 * time.Millisecond)
	if !w.plain[r] || stampOf(r.Data) != 7 {
		t.Fatalf("answered %v", w.plain[r])
	}
	if _, done := w.ask(g, OpRead, 3, 0); len(g.reads) > 0 {
		t.Error("the map is believed again")
	} else if w.run(20 * time.Millisecond); !done() {
		t.Error("not answered")
	}
}

func TestBlocksThatWereChangedAreNotReadDirectly(t *testing.T) {
	for name, change := range map[string]func(w *world, t *testing.T, g *fakeGuard){
		"after the map": func(w *world, t *testing.T, g *fakeGuard) {
			e := w.wantMap(t, g)
			g.step(PlacesKnown{Serial: e.Serial, Extent: e.Extent, Map: mapOf()})
			w.write(t, g, 3, 8)
		},
		"between question and answer": func(w *world, t *testing.T, g *fakeGuard) {
			e := w.wantMap(t, g)
			w.write(t, g, 3, 8)
			g.step(PlacesKnown{Serial: e.Serial, Extent: e.Extent, Map: mapOf()})
		},
		"under way at the question": func(w *world, t *testing.T, g *fakeGuard) {
			w.ask(g, OpRead, 4, 0)
			w.run(20 * time.Millisecond)
			_, done := w.ask(g, OpWrite, 3, 8)
			w.ask(g, OpRead, 4, 0)
			if len(g.wanted) != 1 || done() {
				t.Fatal("the map was not asked for beside the write")
			}
			w.run(20 * time.Millisecond)
			g.step(PlacesKnown{Serial: g.wanted[0].Serial, Extent: 0, Map: mapOf()})
		},
		"the connection was lost": func(w *world, t *testing.T, g *fakeGuard) {
			e := w.wantMap(t, g)
			g.step(PlacesKnown{Serial: e.Serial, Extent: e.Extent, Map: mapOf()})
			w.write(t, g, 3, 8)
			g.conns[w.nodes[0].id].break_(false)
			w.run(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, g := directWorld(t)
			change(w, t, g)
			r, done := w.ask(g, OpRead, 3, 0)
			if len(g.reads) > 0 {
				t.Fatal("read directly")
			}
			w.run(20 * time.Millisecond)
			if !done() || stampOf(r.Data) != 8 {
				t.Fatalf("answered %v", done())
			}
		})
	}
}

// A read without a lease proves nothing (C3), nor does one of a copy that was lost
// meanwhile.
func TestDirectReadIsJudgedAfterwards(t *testing.T) {
	w, g := mapped(t)
	r, d := w.directRead(t, g)
	g.core.lease = clock.Instant(1) // it ran out
	g.core.directDone(DirectDone{ID: d.ID, OK: true, Data: blockOf(77)})
	if w.plain[r] {
		t.Fatal("answered without a lease")
	}
	w.run(time.Second) // it comes back, and the block is read again
	if w.plain[r] || len(g.reads) != 1 {
		t.Fatalf("answered %v, read %d times", w.plain[r], len(g.reads))
	}
	g.step(&DirectDone{ID: g.reads[0].ID, OK: true, Data: blockOf(78)})
	if !w.plain[r] || stampOf(r.Data) != 78 {
		t.Fatalf("answered %v", w.plain[r])
	}

	w, g = mapped(t)
	r, d = w.directRead(t, g)
	g.conns[w.nodes[0].id].break_(false)
	w.run(100 * time.Millisecond)
	g.step(&DirectDone{ID: d.ID, OK: true, Data: blockOf(77)})
	w.run(3 * time.Second)
	if !w.plain[r] || stampOf(r.Data) != 7 {
		t.Fatalf("answered %v after the connection was lost", w.plain[r])
	}
}

// What was not tried says nothing of the map.
func TestDirectReadThatIsNotTried(t *testing.T) {
	w, g := mapped(t)
	r, d := w.directRead(t, g)
	g.step(&DirectDone{ID: d.ID, Busy: true})
	w.run(20 * time.Millisecond)
	if !w.plain[r] || stampOf(r.Data) != 7 {
		t.Fatalf("answered %v", w.plain[r])
	}
	w.directRead(t, g)
}

// A disk that is not to be read by others is left alone for a while.
func TestDirectReadsAreOff(t *testing.T) {
	w, g := directWorld(t)
	e := w.wantMap(t, g)
	g.step(PlacesKnown{Serial: e.Serial, Extent: e.Extent, Off: true})
	for range 20 {
		w.ask(g, OpRead, 3, 0)
		w.run(20 * time.Millisecond)
	}
	if len(g.wanted) != 1 || len(g.reads) != 0 {
		t.Fatalf("%d questions, %d reads", len(g.wanted), len(g.reads))
	}
}

// Maps of extents that nobody reads make room for others.
func TestMapsAreForgotten(t *testing.T) {
	_, g := mapped(t)
	m := g.core.vols[0].members[0]
	for i := range int64(3 * placesEach) {
		m.addPlaces(i + 10)
		if p := m.places.exts[0]; p != nil {
			p.recent = true
		}
	}
	if n := len(m.places.exts); n != placesEach || len(m.places.order) != placesEach {
		t.Errorf("%d maps, %d in order, want %d", n, len(m.places.order), placesEach)
	}
	if m.places.exts[0] == nil {
		t.Error("a map in use was forgotten")
	}
}

// A direct read makes no garbage in the core.
func TestDirectReadDoesNotAllocate(t *testing.T) {
	w, g := mapped(t)
	c := g.core
	r := &Request{Op: OpRead, Offset: 3 * repl.BlockBytes, Length: repl.BlockBytes}
	data := blockOf(7)
	done := &DirectDone{OK: true, Data: data}
	now := w.now
	one := func() {
		r.Data = nil
		c.Step(now, r)
		ready := c.Ready()
		if len(ready.Reads) != 1 {
			t.Fatal("not read directly")
		}
		done.ID = ready.Reads[0].ID
		c.Step(now, done)
		if ready = c.Ready(); len(ready.Done) != 1 || &ready.Done[0].Request.Data[0] != &data[0] {
			t.Fatal("not answered")
		}
	}
	for range 4 {
		one()
	}
	if n := testing.AllocsPerRun(200, one); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
}

// A direct read of a disk that hangs is asked of another copy, and whichever comes
// first answers it; the other is of no consequence.
func TestDirectReadIsHedged(t *testing.T) {
	for _, late := range []DirectDone{{OK: true, Data: blockOf(77)}, {}} {
		w, g := mapped(t)
		g.core.hedge.tokens = hedgeBurst
		r, d := w.directRead(t, g)
		w.run(hedgeMost + 3*hedgeScan)
		if !w.plain[r] || stampOf(r.Data) != 7 {
			t.Fatalf("answered %v by another copy", w.plain[r])
		}
		late.ID = d.ID
		g.step(&late)
		other, _ := w.ask(g, OpRead, 4, 0)
		w.run(20 * time.Millisecond)
		for _, d := range g.reads {
			g.step(&DirectDone{ID: d.ID, OK: true, Data: blockOf(5)})
		}
		if !w.plain[other] {
			t.Error("the next read is not answered")
		}
		for i := range g.core.slots {
			if k := g.core.slots[i].kind; k == slotDirect || k == slotLate {
				t.Errorf("slot %d is left", k)
			}
		}
	}
}
