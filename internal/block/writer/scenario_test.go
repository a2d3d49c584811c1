package writer

import (
	"slices"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// One scenario a rule, in the world of fake replicas but without random faults.
// Where a mutation takes the rule away, the scenario shows that it is seen.

func (w *world) served(d time.Duration) *fakeGuard {
	g := w.start(w.nodes[0])
	w.run(d)
	return g
}

func (w *world) replica(i int) *fakeVol { return w.nodes[i].disks[0].vols[w.vol] }

func (w *world) own() repl.Own { return w.etcd.recs.Volumes[0].Own }

// ask gives g a request and returns a function that tells whether it is done.
func (w *world) ask(g *fakeGuard, op Op, block int64, value uint64) (r *Request, done func() bool) {
	r = &Request{Op: op, Offset: block * repl.BlockBytes, Length: repl.BlockBytes}
	switch op {
	case OpFlush:
		r.Offset, r.Length = 0, 0
	case OpWrite:
		r.Data, r.CRC = blockOf(value), []uint32{uint32(value)}
	}
	w.plain[r] = false
	g.step(r)
	return r, func() bool { return w.plain[r] }
}

func quiet(t *testing.T, mut Mutations) *world {
	w := newWorld(t, 1, mut)
	w.plain = map[*Request]bool{}
	w.calm = true
	return w
}

func (w *world) isolate(g *fakeGuard, nodes ...int) {
	for _, i := range nodes {
		g.blocked[w.nodes[i].id] = true
		if c := g.conns[w.nodes[i].id]; c != nil {
			c.break_(false)
		}
	}
}

func TestPrepareLeavesALiveWriterAlone(t *testing.T) {
	for _, mut := range []Mutations{{}, {ClaimWithoutPrepare: true}} {
		w := quiet(t, mut)
		w.served(time.Second)
		w.place(w.nodes[1])
		g := w.newGuard(w.nodes[1], w.newID(), false, mut)
		w.run(50 * time.Millisecond)
		g.command(Command{Kind: Prepare})
		w.run(100 * time.Millisecond)
		g.command(Command{Kind: DoClaim})
		w.run(3 * time.Second)
		if got, want := w.own().Epoch == 1, mut == (Mutations{}); got != want {
			t.Errorf("mutation %v: the epoch stands: %v", mut, got)
		}
	}
}

func TestSickLinkNeverLeavesOneCopy(t *testing.T) {
	for _, mut := range []Mutations{{}, {ShrinkToOneForLostLink: true}} {
		w := quiet(t, mut)
		g := w.served(time.Second)
		w.isolate(g, 1, 2)
		w.run(2500 * time.Millisecond)
		if got, want := len(w.own().Out) < 2, mut == (Mutations{}); got != want {
			t.Errorf("mutation %v: two copies are left: %v", mut, got)
		}
		if mut != (Mutations{}) {
			continue
		}
		if w.stats["ask move"] == 0 {
			t.Error("the guard did not ask to be moved")
		}
		_, done := w.ask(g, OpWrite, 3, 7)
		w.run(time.Second)
		if done() {
			t.Error("a write was acked without the copies behind the cable")
		}
		g.step(Liveness{Alive: []ids.ID{w.nodes[0].id}}) // their nodes are gone
		w.run(time.Second)
		if !done() || len(w.own().Out) != 2 {
			t.Errorf("done %v, out %d: the last copy must go on when the others' nodes are gone", done(), len(w.own().Out))
		}
		if w.replica(0).fua == 0 {
			t.Error("a lone copy was not written through (C7)")
		}
	}
}

// The reason to ask is gone: it is said, or the manager would go on trying to move
// a healthy VM.
func TestSickLinkIsOver(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.isolate(g, 1, 2)
	w.run(2500 * time.Millisecond)
	for _, i := range []int{1, 2} {
		delete(g.blocked, w.nodes[i].id)
		g.connect(w.nodes[i])
	}
	w.run(time.Second)
	if w.stats["ask move"] != 1 || w.stats["move over"] != 1 || g.core.moveWanted {
		t.Errorf("asked %d times, over %d, wanted %v", w.stats["ask move"], w.stats["move over"], g.core.moveWanted)
	}
}

// A takeover that reaches one copy of living nodes asks to be moved as a serving
// writer does; it goes on with the one copy when nobody else can take the VM, when
// those nodes are gone, or when they say that their storage is dead [S13].
func TestTakeoverOverASickLink(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(w *world, g *fakeGuard)
	}{
		{"move refused", func(_ *world, g *fakeGuard) { g.command(Command{Kind: MoveRefused}) }},
		{"nodes gone", func(w *world, g *fakeGuard) { g.step(Liveness{Alive: []ids.ID{w.nodes[0].id}}) }},
		{"storage dead", func(w *world, g *fakeGuard) {
			g.step(Liveness{Alive: w.alive(), Broken: []ids.ID{w.nodes[1].id, w.nodes[2].id}})
		}},
	} {
		w := quiet(t, Mutations{})
		g := w.served(time.Second)
		w.kill(g)
		w.run(4 * time.Second)
		w.place(w.nodes[0])
		s := w.newGuard(w.nodes[0], w.newID(), false, Mutations{})
		w.isolate(s, 1, 2)
		s.take = true
		s.command(Command{Kind: Prepare})
		w.run(20 * time.Second)
		if s.core.State() != Reconciling || w.stats["ask move"] != 1 || len(w.own().Out) > 1 {
			t.Fatalf("%s: state %v, asked %d times, %d out: it must wait and ask", c.name, s.core.State(), w.stats["ask move"], len(w.own().Out))
		}
		c.end(w, s)
		w.run(2 * time.Second)
		if s.core.State() != Serving || len(w.own().Out) != 2 || w.stats["move over"] != 1 {
			t.Errorf("%s: state %v, %d out, over %d", c.name, s.core.State(), len(w.own().Out), w.stats["move over"])
		}
	}
}

// With min_isr 2 acks stop before a single copy is left, and go on when another one
// is back.
func TestMinISR(t *testing.T) {
	for _, least := range []int{1, 2} {
		w := quiet(t, Mutations{})
		w.etcd.recs.Volumes[0].Cfg.MinISR = least
		g := w.served(time.Second)
		w.isolate(g, 1, 2)
		g.step(Liveness{Alive: []ids.ID{w.nodes[0].id}})
		w.run(3 * time.Second)
		_, done := w.ask(g, OpWrite, 3, 7)
		w.run(100 * time.Millisecond)
		if got, want := done(), least == 1; got != want || least == 2 && len(w.own().Out) > 1 {
			t.Errorf("min_isr %d: acked %v, %d out", least, got, len(w.own().Out))
		}
		w.rejoin(g, 2)
		w.run(5 * time.Second)
		if !done() || len(w.own().Out) != 1 || w.ioErrors > 0 {
			t.Errorf("min_isr %d: done %v, %d out, %d errors after the return", least, done(), len(w.own().Out), w.ioErrors)
		}
	}
}

// With min_isr 2 and two copies left, whose storage processes restart: a warm one
// is kept, a cold one is put out and brought up to date, and meanwhile reads are
// answered, writes and flushes are not.
func TestMinISRRestarts(t *testing.T) {
	for _, mut := range []Mutations{{}, {AnswerBelowMin: true}, {NoMending: true}} {
		w := quiet(t, mut)
		w.etcd.recs.Volumes[0].Cfg.MinISR = 2
		g := w.served(time.Second)
		w.powerCut(w.nodes[2], time.Hour)
		w.run(3 * time.Second)
		for _, i := range []int{0, 1} {
			w.nodes[i].fresh(false)
			w.dropConns(w.nodes[i], true)
		}
		_, done := w.ask(g, OpWrite, 3, 7)
		w.run(3 * time.Second)
		if !done() || len(w.own().Out) != 1 {
			t.Errorf("mutation %v: both restarted warm: done %v, %d out", mut, done(), len(w.own().Out))
		}
		w.powerCut(w.nodes[1], time.Second)
		_, done = w.ask(g, OpWrite, 3, 8)
		_, flushed := w.ask(g, OpFlush, 0, 0)
		early, readShort := false, false
		var read func() bool
		for range 100_000 {
			w.run(200 * time.Microsecond)
			if len(w.own().Out) < 2 {
				continue
			}
			if read == nil {
				_, read = w.ask(g, OpRead, 900, 0)
			}
			early = early || done() || flushed()
			readShort = readShort || read()
		}
		if got, want := early, mut.AnswerBelowMin; got != want {
			t.Errorf("mutation %v: answered with one copy: %v", mut, got)
		}
		if got, want := done() && flushed() && len(w.own().Out) == 1, !mut.NoMending; got != want {
			t.Errorf("mutation %v: done %v, flushed %v, %d out", mut, done(), flushed(), len(w.own().Out))
		}
		if !mut.NoMending && !readShort {
			t.Errorf("mutation %v: no read was answered while one copy was in sync", mut)
		}
	}
}

// A copy that is away and may have everything is waited for: it is put out below
// min_isr only if another one is there to take its place.
func TestMinISRWaitsForWhoIsAway(t *testing.T) {
	w := quiet(t, Mutations{})
	w.etcd.recs.Volumes[0].Cfg.MinISR = 2
	g := w.served(time.Second)
	w.isolate(g, 2)
	w.run(3 * time.Second)
	w.isolate(g, 1)
	g.step(Liveness{Alive: []ids.ID{w.nodes[0].id}})
	_, done := w.ask(g, OpWrite, 3, 7)
	w.run(3 * time.Second)
	if done() || len(w.own().Out) != 1 {
		t.Fatalf("done %v, %d out: it must wait", done(), len(w.own().Out))
	}
	w.rejoin(g, 2) // the one that is out
	w.run(5 * time.Second)
	if _, out := w.own().Out[w.nodes[1].disks[0].id]; !done() || len(w.own().Out) != 1 || !out {
		t.Errorf("done %v, out %v: the one that came has to take the other's place", done(), w.own().Out)
	}
}

func TestNoReadBeforeTheMissingAreOut(t *testing.T) {
	for _, mut := range []Mutations{{}, {ReadBeforeOut: true}} {
		w := quiet(t, mut)
		g := w.served(time.Second)
		w.kill(g)
		w.powerCut(w.nodes[2], time.Hour)
		s := w.start(w.nodes[1])
		for s.core.State() < Owned && w.now < 20e9 {
			w.run(time.Millisecond)
		}
		w.etcd.down = true
		w.etcdLost = true
		_, done := w.ask(s, OpRead, 3, 0)
		w.run(20 * time.Second)
		if got, want := done(), mut != (Mutations{}); got != want {
			t.Errorf("mutation %v: read answered while a missing member is in the in-sync set: %v", mut, got)
		}
		w.etcd.down, w.etcdLost = false, false
		w.run(3 * time.Second)
		if !done() || len(w.own().Out) != 1 {
			t.Errorf("mutation %v: done %v, out %v after etcd is back", mut, done(), w.own().Out)
		}
	}
}

func TestAllColdEndsTheGuest(t *testing.T) {
	for _, mut := range []Mutations{{}, {IgnoreCold: true}} {
		w := quiet(t, mut)
		n := w.nodes[3] // a node without a copy: its guest outlives the power cut
		g := w.start(n)
		w.run(time.Second)
		_, done := w.ask(g, OpWrite, 3, 7)
		w.run(10 * time.Millisecond)
		if !done() {
			t.Fatal("write not acked")
		}
		for i := range 3 {
			w.powerCut(w.nodes[i], 100*time.Millisecond)
		}
		w.run(5 * time.Second)
		if got, want := g.core.State() == InvalidState, mut == (Mutations{}); got != want {
			t.Errorf("mutation %v: state %v", mut, g.core.State())
		}
	}
}

// lostUnflushed begins with an acked write in block 3 that nobody flushed, as the guest
// on a node without copies left it, and n copies that have come back without it.
func (w *world) lostUnflushed(t *testing.T, n int) *fakeGuard {
	g := w.start(w.nodes[3])
	w.run(time.Second)
	_, done := w.ask(g, OpWrite, 3, 7)
	w.run(10 * time.Millisecond)
	if !done() {
		t.Fatal("write not acked")
	}
	for i := range n {
		w.powerCut(w.nodes[i], 300*time.Millisecond)
		v := w.replica(i)
		delete(v.blocks, 3)
		v.log = slices.DeleteFunc(v.log, func(r fakeRecord) bool { return r.block == 3 })
	}
	return g
}

// Who is cold stays while a silent copy is waited for that may have everything; when
// that has failed for good nothing is left to wait for.
func TestAllColdButAFailedDisk(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.lostUnflushed(t, 2)
	w.isolate(g, 2)
	w.run(10 * time.Second)
	if g.core.State() != Serving || len(w.own().Out) > 0 {
		t.Fatalf("state %v, %d out: the silent copy has to be waited for", g.core.State(), len(w.own().Out))
	}
	told := slices.DeleteFunc(slices.Clone(g.reports), func(r Report) bool { return r.Kind != ReportStalled })
	if len(told) != 1 || told[0].Disk != w.nodes[2].disks[0].id {
		t.Errorf("of the copy that is waited for was told: %v", told)
	}
	w.nodes[2].disks[0].dead = true
	delete(g.blocked, w.nodes[2].id)
	w.run(5 * time.Second)
	if g.core.State() != InvalidState {
		t.Errorf("state %v: no copy can have the write", g.core.State())
	}
}

// A guest is adopted with one warm copy, which is gone before it was read: the cold
// ones must not be made the truth.
func TestColdCopiesDoNotReplaceTheWarmOne(t *testing.T) {
	for _, c := range []struct {
		name string
		mut  Mutations
		do   func(w *world, n *fakeNode) // to the warm copy
		ends State
	}{
		{"silent", Mutations{}, func(w *world, n *fakeNode) { w.suspend(n, 5*time.Second) }, Serving},
		{"silent, mutated", Mutations{ColdAlone: true}, func(w *world, n *fakeNode) { w.suspend(n, 5*time.Second) }, Serving},
		{"storage restarts", Mutations{}, func(w *world, n *fakeNode) { n.fresh(false); w.dropConns(n, true) }, Serving},
		{"power cut", Mutations{}, func(w *world, n *fakeNode) { w.powerCut(n, 5*time.Second) }, InvalidState},
		{"disk fails", Mutations{}, func(w *world, n *fakeNode) { n.disks[0].dead = true; w.dropConns(n, false) }, InvalidState},
	} {
		w := quiet(t, c.mut)
		g := w.lostUnflushed(t, 2)
		w.crash(g, true)
		s := w.last()
		for s.core.State() < Reconciling && w.now < 30e9 {
			w.run(100 * time.Microsecond)
		}
		if s.core.State() != Reconciling {
			t.Fatalf("%s: state %v", c.name, s.core.State())
		}
		c.do(w, w.nodes[2])
		w.run(20 * time.Second)
		if s.core.State() != c.ends {
			t.Errorf("%s: state %v, want %v", c.name, s.core.State(), c.ends)
		}
		if c.ends != Serving {
			continue
		}
		for i := range 3 {
			if got, want := w.replica(i).blocks[3].value == 7, !c.mut.ColdAlone; got != want {
				t.Errorf("%s: copy %d has the acked write: %v", c.name, i, got)
			}
		}
	}
}

// suspend cuts n off for d; what it has in memory it keeps.
func (w *world) suspend(n *fakeNode, d time.Duration) {
	n.up = false
	w.dropConns(n, false)
	w.liveness()
	w.after(d, func() { n.up = true; w.liveness() })
}

func TestReadIsRepairedFromAnotherCopy(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.ask(g, OpWrite, 3, 7)
	w.run(10 * time.Millisecond)
	w.replica(0).rot = map[int64]bool{3: true}
	r, done := w.ask(g, OpRead, 3, 0)
	w.run(20 * time.Millisecond)
	if !done() || r.Data == nil || stampOf(r.Data) != 7 {
		t.Fatalf("done %v data %v", done(), r.Data != nil)
	}
	if w.replica(0).rot[3] {
		t.Error("the unreadable block was not rewritten")
	}
	for i := range 3 {
		w.replica(i).rot = map[int64]bool{3: true}
	}
	_, done = w.ask(g, OpRead, 3, 0)
	_, other := w.ask(g, OpRead, 4, 0)
	w.run(20 * time.Millisecond)
	if !done() || w.lastResult != IOError && w.ioErrors != 1 || !other() {
		t.Errorf("every copy rotten: done %v, errors %d", done(), w.ioErrors)
	}
}

func TestReleaseNeedsNoWait(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.ask(g, OpWrite, 3, 7)
	w.run(time.Millisecond)
	g.command(Command{Kind: Release})
	w.run(100 * time.Millisecond)
	if g.core.State() != ReleasedState {
		t.Fatalf("state %v", g.core.State())
	}
	s := w.start(w.nodes[1])
	w.run(200 * time.Millisecond)
	if s.core.State() != Serving || !s.core.leased() {
		t.Fatalf("the next writer waits after a release: %v", s.core.State())
	}
	if v := w.replica(2).blocks[3].value; v != 7 {
		t.Errorf("block is %d", v)
	}
}

func TestSuccessorReopensTheEpoch(t *testing.T) {
	for _, cached := range []bool{false, true} {
		w := quiet(t, Mutations{})
		g := w.served(time.Second)
		w.etcd.down = cached
		w.crash(g, true)
		w.run(500 * time.Millisecond)
		s := w.last()
		if s.core.State() != Serving || !s.core.leased() {
			t.Fatalf("cached %v: state %v half a second after the crash", cached, s.core.State())
		}
		_, done := w.ask(s, OpWrite, 3, 7)
		w.run(100 * time.Millisecond)
		if !done() {
			t.Errorf("cached %v: no write", cached)
		}
		w.etcd.down = false
		w.run(time.Second)
		if o := w.own(); o.Epoch != 1 || o.Inc != 1 {
			t.Errorf("cached %v: epoch %d inc %d", cached, o.Epoch, o.Inc)
		}
	}
}

func TestHandOver(t *testing.T) {
	w := quiet(t, Mutations{})
	src := w.served(time.Second)
	w.etcd.recs.Placement.Target = w.nodes[1].id
	dst := w.newGuard(w.nodes[1], src.run, true, Mutations{})
	w.run(50 * time.Millisecond)
	dst.command(Command{Kind: Prepare})
	w.ask(src, OpWrite, 3, 7)
	src.command(Command{Kind: Stall})
	w.run(100 * time.Millisecond)
	if src.core.State() != Stalled || !src.core.leased() {
		t.Fatalf("source %v", src.core.State())
	}
	_, late := w.ask(src, OpWrite, 4, 8)
	_, flush := w.ask(src, OpFlush, 0, 0)
	w.run(100 * time.Millisecond)
	if late() || !flush() {
		t.Errorf("stalled: write done %v, flush done %v", late(), flush())
	}
	dst.command(Command{Kind: DoClaim, Claim: Claim{ExpectRun: src.run, ExpectEpoch: 1}})
	w.run(50 * time.Millisecond)
	src.command(Command{Kind: Release})
	w.run(300 * time.Millisecond)
	r, done := w.ask(dst, OpRead, 3, 0)
	w.run(300 * time.Millisecond)
	if dst.core.State() != Serving || !done() || stampOf(r.Data) != 7 {
		t.Fatalf("destination %v, source %v, read %v", dst.core.State(), src.core.State(), done())
	}
	if late() {
		t.Error("the source served a write after the hand-over")
	}
}

// The source lets a copy in after the destination has read own: the hand-over goes
// on, for run and epoch are what they were. Another epoch ends it.
func TestHandOverMeetsAGrow(t *testing.T) {
	for _, other := range []bool{false, true} {
		w := quiet(t, Mutations{})
		src := w.served(time.Second)
		w.etcd.recs.Placement.Target = w.nodes[1].id
		dst := w.newGuard(w.nodes[1], src.run, true, Mutations{})
		w.run(50 * time.Millisecond)
		dst.command(Command{Kind: Prepare})
		src.command(Command{Kind: Stall})
		w.run(100 * time.Millisecond)
		w.etcd.rev++
		v := &w.etcd.recs.Volumes[0]
		v.Own.CfgVersion++
		v.OwnRev = w.etcd.rev
		if other {
			v.Own.Epoch++
		}
		dst.command(Command{Kind: DoClaim, Claim: Claim{ExpectRun: src.run, ExpectEpoch: 1}})
		w.run(50 * time.Millisecond)
		if got, want := w.own().Node == w.nodes[1].id, !other; got != want {
			t.Fatalf("epoch taken by another %v: own %+v, destination %v", other, w.own(), dst.core.State())
		}
		src.command(Command{Kind: Release})
		w.run(5 * time.Second)
		if got, want := dst.core.State() == Serving, !other; got != want {
			t.Errorf("epoch taken by another %v: destination %v", other, dst.core.State())
		}
	}
}

func TestReclaim(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	g.command(Command{Kind: Stall})
	w.run(100 * time.Millisecond)
	g.command(Command{Kind: Reclaim, Claim: Claim{Nonce: w.newID()}})
	w.run(300 * time.Millisecond)
	_, done := w.ask(g, OpWrite, 3, 7)
	w.run(50 * time.Millisecond)
	if g.core.State() != Serving || !done() || w.own().Epoch != 2 {
		t.Fatalf("state %v epoch %d done %v", g.core.State(), w.own().Epoch, done())
	}
}

// A disk without space that is in sync makes writes wait and goes on when there is
// some; one that joins is left alone meanwhile, and the guest feels nothing.
func TestNoSpace(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	full := w.nodes[1].disks[0]
	full.full = true
	_, done := w.ask(g, OpWrite, 3, 7)
	w.run(8 * time.Second)
	if done() || len(w.own().Out) != 0 {
		t.Fatalf("done %v, own %+v: a full disk is waited for, and not put out", done(), w.own())
	}
	full.full = false
	w.run(2 * time.Second)
	if !done() {
		t.Fatal("the write still waits although there is space")
	}
	fresh := w.nodes[3].disks[0]
	fresh.full = true
	g.command(Command{Kind: ReplaceDisk, Replace: Replace{Old: full.id, New: fresh.id, NewNode: w.nodes[3].id, Live: true}})
	for i := range 20 {
		_, done := w.ask(g, OpWrite, int64(i), uint64(100+i))
		w.run(30 * time.Millisecond)
		if !done() {
			t.Fatal("a guest waits for the space of a disk that only joins")
		}
	}
	fresh.full = false
	w.run(15 * time.Second)
	if len(w.own().Out) != 0 || slices.Contains(w.etcd.recs.Volumes[0].Seg.Disks, full.id) {
		t.Fatalf("own %+v", w.own())
	}
}

func TestReplaceDisk(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.ask(g, OpWrite, 3, 7)
	w.run(10 * time.Millisecond)
	dead, fresh := w.nodes[2].disks[0], w.nodes[3].disks[0]
	dead.dead = true
	w.run(3 * time.Second)
	if _, out := w.own().Out[dead.id]; !out {
		t.Fatal("the failed disk is still in")
	}
	g.command(Command{Kind: ReplaceDisk, Replace: Replace{Old: dead.id, New: fresh.id, NewNode: w.nodes[3].id}})
	w.run(5 * time.Second)
	if len(w.own().Out) != 0 || !slices.Contains(w.etcd.recs.Volumes[0].Seg.Disks, fresh.id) {
		t.Fatalf("own %+v", w.own())
	}
	if v := fresh.vols[w.vol].blocks[3].value; v != 7 {
		t.Errorf("the new copy has %d", v)
	}
}

// The data of a write is the client's again with its answer, unless a send that
// nobody answered may still read it.
func TestDataIsSharedOnlyWithLateSends(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	_, done := w.ask(g, OpWrite, 1, 7)
	w.run(time.Second)
	if !done() || w.lastShared {
		t.Errorf("everybody answered: done %v, shared %v", done(), w.lastShared)
	}
	_, done = w.ask(g, OpWrite, 1, 8)
	w.isolate(g, 1)
	w.run(10 * time.Second)
	if !done() || !w.lastShared {
		t.Errorf("the link of a copy broke: done %v, shared %v", done(), w.lastShared)
	}
}
