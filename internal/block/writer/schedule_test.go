package writer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

func newWorld(t *testing.T, seed uint64, mut Mutations) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), now: 1e9, stats: map[string]int{}, mut: mut}
	w.oracle = oracle{blocks: map[int64]*oracleBlock{}, open: map[*Request]*oracleReq{}}
	w.vol, w.vm = w.newID(), w.newID()
	v := repl.VolumeRecord{ID: w.vol, OwnRev: 1, CfgRev: 1, SegRev: 1, Cfg: repl.Cfg{SizeBytes: 2 * repl.ExtentBytes, Copies: 3, State: repl.VolumeLive}}
	for i := range 4 {
		n := &fakeNode{w: w, id: w.newID(), up: true}
		d := &fakeDisk{id: w.newID(), node: n, vols: map[ids.ID]*fakeVol{}}
		n.disks = append(n.disks, d)
		w.nodes = append(w.nodes, n)
		n.fresh(true)
		n.started = 1 - 1e10
		w.etcd.recs.Disks = append(w.etcd.recs.Disks, repl.DiskNode{Disk: d.id, Node: n.id})
		if i < 3 {
			v.Seg.Disks = append(v.Seg.Disks, d.id)
		}
	}
	v.Seg.Map = [][]uint16{{0, 1, 2}, {2, 0, 1}}
	w.etcd.recs.Volumes = []repl.VolumeRecord{v}
	w.etcd.recs.VM = w.vm
	w.etcd.recs.PlacementRev = 1
	w.etcd.rev = 1
	return w
}

// place makes node the one that may take the VM, as the HA manager would.
func (w *world) place(n *fakeNode) {
	w.etcd.rev++
	w.etcd.recs.Placement = repl.Placement{Node: n.id, Attempt: 1}
	w.etcd.recs.PlacementRev = w.etcd.rev
}

func (w *world) start(n *fakeNode) *fakeGuard {
	w.place(n)
	g := w.newGuard(n, w.newID(), false, w.mut)
	g.take = true
	g.command(Command{Kind: Prepare})
	return g
}

func (w *world) last() *fakeGuard { return w.guards[len(w.guards)-1] }

// current is the guard that serves, or the newest.
func (w *world) current() *fakeGuard {
	for _, g := range w.guards {
		if g.alive && !g.frozen && g.core.State() == Serving && g.core.leased() {
			return g
		}
	}
	return w.last()
}

// fault does one random bad thing.
func (w *world) fault() {
	n := w.nodes[w.rng.IntN(3)]
	if w.moves {
		n = w.nodes[w.rng.IntN(4)]
	}
	g := w.current()
	ms := func(k int) time.Duration { return time.Duration(w.rng.IntN(k)) * time.Millisecond }
	switch k := w.rng.IntN(12); k {
	case 0, 1:
		w.logf("FAULT reset connection to %s", n.id.Short())
		if c := g.conns[n.id]; c != nil {
			c.break_(false)
		}
	case 2:
		w.logf("FAULT link to %s", n.id.Short())
		g.blocked[n.id] = true
		if c := g.conns[n.id]; c != nil {
			c.break_(false)
		}
		w.after(ms(6000), func() { g.blocked[n.id] = false })
	case 3:
		w.logf("FAULT storage restart on %s", n.id.Short())
		n.fresh(false)
		w.dropConns(n, true)
	case 4, 5:
		w.logf("FAULT power cut of %s", n.id.Short())
		w.powerCut(n, ms(8000))
	case 6:
		w.etcd.down = true
		w.after(ms(4000), func() { w.etcd.down = false })
	case 7:
		w.crash(g, true)
	case 8, 9:
		w.crash(g, false)
	case 10:
		if !g.alive || g.frozen {
			return
		}
		w.logf("FAULT freeze")
		g.frozen = true
		w.after(ms(8000), func() { w.thaw(g) })
		if w.rng.IntN(2) == 0 {
			w.after(ms(5000), func() {
				if g == w.current() && g.alive {
					w.start(w.nodes[w.rng.IntN(4)])
				}
			})
		}
	case 11:
		if w.rng.IntN(4) == 0 {
			w.blackout()
		}
	}
}

func (w *world) thaw(g *fakeGuard) {
	w.logf("thaw")
	g.frozen = false
	missed := g.missed
	g.missed = nil
	for _, f := range missed {
		g.do(f)
	}
}

func (w *world) dropConns(n *fakeNode, refused bool) {
	for _, c := range n.conns {
		c.break_(refused)
	}
	n.conns = nil
}

func (w *world) powerCut(n *fakeNode, d time.Duration) {
	if !n.up {
		return
	}
	n.up = false
	if w.allCold() {
		w.seen("every copy cold")
		w.oracle.powerLoss()
	}
	w.dropConns(n, false)
	w.liveness()
	for _, g := range w.guards {
		if g.node == n && g.alive {
			w.kill(g)
		}
	}
	w.after(d+time.Millisecond, func() {
		if !n.up {
			n.up = true
			n.fresh(true)
			w.liveness()
		}
	})
}

// allCold reports whether every in-sync copy has lost power since it was last
// complete.
func (w *world) allCold() bool {
	v := w.etcd.recs.Volumes[0]
	for s := range v.Seg.Map {
		if !slices.ContainsFunc(v.ISR(s), w.warm) {
			return true
		}
	}
	return false
}

func (w *world) warm(disk ids.ID) bool {
	for _, n := range w.nodes {
		if n.disks[0].id == disk {
			fv := n.disks[0].vols[w.vol]
			return n.up && !n.disks[0].dead && fv != nil && fv.boot == n.boot
		}
	}
	return false
}

// ignorant reports whether g does not know yet that some in-sync copy has lost
// power: what it then decides is not its fault.
func (w *world) ignorant(g *fakeGuard) bool {
	v := w.etcd.recs.Volumes[0]
	for _, n := range w.nodes {
		d := n.disks[0]
		if _, out := v.Own.Out[d.id]; out || !slices.Contains(v.Seg.Disks, d.id) {
			continue
		}
		if cn := g.core.node(n.id); cn == nil || !n.up || cn.session != n.session {
			return true
		}
	}
	return false
}

// blackout: every node loses power at one instant.
func (w *world) blackout() {
	w.logf("FAULT blackout")
	w.seen("blackout")
	for _, n := range w.nodes {
		w.powerCut(n, time.Duration(w.rng.IntN(5000))*time.Millisecond)
	}
	w.oracle.powerLoss()
}

func (w *world) liveness() {
	alive := w.alive()
	for _, g := range w.guards {
		g.step(Liveness{Alive: alive})
	}
}

func (w *world) kill(g *fakeGuard) {
	g.alive = false
	for _, n := range w.nodes {
		if c := g.conns[n.id]; c != nil {
			c.cut = true
		}
	}
}

// crash kills a guard; its QEMU lives, and a successor adopts it, or the VM is
// started elsewhere.
func (w *world) crash(g *fakeGuard, adopt bool) {
	if !g.alive || g.frozen {
		return
	}
	w.logf("FAULT crash, adopt %v", adopt)
	w.kill(g)
	if !adopt || !g.node.up {
		w.after(time.Duration(w.rng.IntN(2000))*time.Millisecond, func() {
			if !w.current().alive {
				w.start(w.nodes[w.rng.IntN(4)])
			}
		})
		return
	}
	s := w.newGuard(g.node, g.run, true, w.mut)
	s.take = true
	if w.etcd.down && len(g.cached.Volumes) > 0 {
		s.step(RecordsRead{Records: g.cached, Cached: true})
		w.seen("reopen cached")
	}
	s.cached = g.cached
	s.command(Command{Kind: Reopen})
}

// supervise restarts the VM when its guard has ended for good.
func (w *world) supervise() {
	if g := w.current(); g.alive {
		if p := w.etcd.recs.Placement; p.Node != g.node.id {
			w.place(g.node)
		}
		return
	}
	if g := w.last(); !g.alive {
		var up []*fakeNode
		for _, n := range w.nodes {
			if n.up {
				up = append(up, n)
			}
		}
		if len(up) > 0 {
			w.logf("supervisor restarts the vm; last ended: %s", g.stopped)
			w.start(up[w.rng.IntN(len(up))])
		}
	}
}

// runSeed is one random schedule: chaos, then peace, in which everything must
// become whole.
func runSeed(t *testing.T, seed uint64, mut Mutations, log bool) *world {
	return newWorld(t, seed, mut).play(log)
}

func (w *world) play(log bool) *world {
	w.log = log
	w.start(w.nodes[0])
	w.run(200 * time.Millisecond)
	gap := 50 + w.rng.IntN(4000)
	for range 60 {
		for range w.rng.IntN(12) {
			if g := w.current(); g.alive && g == w.oracle.owner && len(w.oracle.open) < 60 {
				w.oracle.request(w, g)
			}
			w.run(time.Duration(w.rng.IntN(3000)) * time.Microsecond)
			if w.rng.IntN(40) == 0 {
				w.fault()
			}
		}
		w.run(time.Duration(w.rng.IntN(gap)) * time.Millisecond)
		w.supervise()
		if w.rng.IntN(2) == 0 {
			w.fault()
		}
		if w.moves {
			w.move()
		}
		if w.failed {
			return w
		}
	}
	w.peace()
	return w
}

func (w *world) peace() {
	w.logf("PEACE")
	for _, n := range w.nodes {
		if !n.up {
			n.up = true
			n.fresh(true)
		}
	}
	w.etcd.down = false
	w.liveness()
	for _, g := range w.guards {
		clear(g.blocked)
		if g.frozen {
			w.thaw(g)
		}
	}
	for range 40 {
		w.run(3 * time.Second)
		if w.failed {
			return
		}
		w.supervise()
		if g := w.current(); w.whole() {
			for _, o := range w.guards {
				if o != g && o.core.State() == Idle { // or it would take over sooner or later
					w.kill(o)
				}
			}
			w.run(5 * time.Second)
			if w.whole() && w.current() == g {
				break
			}
		}
	}
	g := w.current()
	if !w.whole() {
		if w.log {
			w.dump()
		}
		w.fail("not whole after two minutes of peace: %s %+v; deadline in %v, frozen %v", g.core.State(), g.core.Health(), g.core.NextDeadline().Sub(w.now), g.frozen)
		return
	}
	for range 20 {
		w.oracle.request(w, g)
	}
	w.run(5 * time.Second)
	for _, q := range w.oracle.open {
		if q.g == g {
			if w.log {
				w.dump()
				v := g.core.vols[0]
				fmt.Printf("flush %+v held %v blocked %v reads %v inflight %v window %d limit %d clean %v mark %v wseq %d commit %d dirty\n", v.flush, v.held.head != nil, v.blocked.head != nil, v.reads.head != nil, v.inflight.head != nil, v.window(), v.limit(), v.clean(), v.flushMark, v.wseq, v.commitWseq)
			}
			w.fail("requests are not answered in peace")
			return
		}
	}
	w.compare()
}

func (w *world) whole() bool {
	g := w.current()
	return g.alive && g.core.State() == Serving && len(w.etcd.recs.Volumes[0].Own.Out) == 0 && g.core.leased() && g.core.vols[0].change == nil
}

// compare checks that all copies are equal, tags included (I11).
func (w *world) compare() {
	v := w.etcd.recs.Volumes[0]
	for b := range int64(2 * repl.ExtentBlocks) {
		row := v.ISR(int(b / repl.ExtentBlocks))
		if len(row) != 3 {
			w.fail("segment %d has %d copies", b/repl.ExtentBlocks, len(row))
			return
		}
		x := w.disk(row[0]).vols[w.vol].blocks[b]
		for _, d := range row[1:] {
			if y := w.disk(d).vols[w.vol].blocks[b]; x.value != y.value || x.tag != y.tag {
				w.fail("block %d differs: %+v on %s, %+v on %s", b, x, row[0].Short(), y, d.Short())
				return
			}
		}
	}
}

func (w *world) disk(id ids.ID) *fakeDisk {
	for _, n := range w.nodes {
		if n.disks[0].id == id {
			return n.disks[0]
		}
	}
	return nil
}

// move asks the writer to give some disk some segment, or to end such a move.
func (w *world) move() {
	g := w.current()
	if !g.alive || g.core.State() != Serving || w.rng.IntN(2) > 0 {
		return
	}
	from, to := w.nodes[w.rng.IntN(4)], w.nodes[w.rng.IntN(4)]
	r := Replace{Old: from.disks[0].id, New: to.disks[0].id, NewNode: to.id, Live: w.rng.IntN(4) > 0}
	if w.rng.IntN(5) == 0 {
		r.New, r.NewNode = ids.ID{}, ids.ID{}
	}
	if w.rng.IntN(3) > 0 {
		r.Segments = []uint32{uint32(w.rng.IntN(2))}
	}
	w.logf("MOVE %+v", r)
	g.command(Command{Kind: ReplaceDisk, Replace: r})
	for w.rng.IntN(2) == 0 { // while it is being copied
		w.run(time.Duration(w.rng.IntN(4000)) * time.Microsecond)
		if w.rng.IntN(2) == 0 && g.alive && g == w.oracle.owner {
			w.oracle.request(w, g)
		} else {
			w.fault()
		}
	}
}

// TestWorldMoves is TestWorld while copies move between four disks.
func TestWorldMoves(t *testing.T) {
	run := func(seed uint64, log bool) *world {
		w := newWorld(t, seed, Mutations{})
		w.moves = true
		return w.play(log)
	}
	if *flagSeed != 0 {
		run(*flagSeed, true)
		return
	}
	stats := map[string]int{}
	bad := 0
	for seed := uint64(1); seed <= uint64(*flagSeeds); seed++ {
		w := run(seed, false)
		for k, n := range w.stats {
			stats[k] += n
		}
		if w.failed {
			if bad++; bad > 5 {
				t.Fatal("enough")
			}
		}
	}
	for _, k := range []string{"moved", "move begun", "move cancelled", "partial at takeover"} {
		t.Logf("%s: %d", k, stats[k])
		if stats[k] == 0 && *flagSeeds >= 100 {
			t.Errorf("no schedule has %q", k)
		}
	}
}

func TestWorld(t *testing.T) {
	if *flagSeed != 0 {
		runSeed(t, *flagSeed, Mutations{}, true)
		return
	}
	stats := map[string]int{}
	reads, writes, flushes := 0, 0, 0
	bad := 0
	for seed := uint64(1); seed <= uint64(*flagSeeds); seed++ {
		w := runSeed(t, seed, Mutations{}, false)
		for k, n := range w.stats {
			stats[k] += n
		}
		reads, writes, flushes = reads+w.oracle.reads, writes+w.oracle.writes, flushes+w.oracle.flushes
		if w.failed {
			if bad++; bad > 5 {
				t.Fatal("enough")
			}
		}
	}
	t.Logf("%d reads, %d writes, %d flushes", reads, writes, flushes)
	for _, k := range []string{"blackout", "reopen cached", "txn unknown", "guest invalid", "ask move", "state fenced", "state invalid", "report repaired", "*wire.SyncEnd"} {
		t.Logf("%s: %d", k, stats[k])
	}
	_ = fmt.Sprint
}

func (w *world) dump() {
	g := w.current()
	v := g.core.vols[0]
	fmt.Printf("guard %d state %v lease %v change %v pending %v frozen %v serial %d\n", slices.Index(w.guards, g), g.core.state, g.core.lease, v.change != nil, v.pending != nil, v.frozenSince, v.config.serial)
	for _, m := range v.members {
		fmt.Printf("  disk %s open %d counted %v live %v leaving %q absent %v failed %v newRun %v resumed %v lease %v told %d telling %v node.up %v lostAt %v waitsAt %v rejoin %v retry %v",
			m.disk.String()[30:], m.open, m.counted, m.live, m.leaving, m.absent, m.failed, m.newRun, m.resumed, m.lease, m.told, m.telling, m.node.up, m.node.lostAt, m.node.waitsAt, m.rejoinAt, m.retryAt)
		if m.sync != nil {
			fmt.Printf(" sync phase %d lists %d objects %d next %d running %d ready %v", m.sync.phase, m.sync.lists, len(m.sync.objects), m.sync.next, m.sync.running, m.sync.ready)
			for _, o := range m.sync.objects {
				fmt.Printf(" {ext %d block %d unsent %d asked %d src %v}", o.ext, o.block, o.unsent, o.asked, o.src != nil)
			}
			for _, p := range m.sync.ops {
				fmt.Printf(" [op ext %d %d+%d state %d from %v]", p.ext, p.block, p.count, p.state, p.from != nil)
				for q := v.extents[p.ext].head; q != nil; q = q.lnext {
					fmt.Printf(" (kind %d state %d %d+%d)", q.kind, q.state, q.block, q.count)
				}
			}
		}
		n := w.nodes[m.index]
		if fv := n.disks[0].vols[w.vol]; fv != nil {
			fmt.Printf(" | fake handle %d (ours %d) reserved %v grant %v promise %d.%d\n", fv.handle, m.handle, fv.reserved, fv.grantUntil, fv.promise.Epoch, fv.promise.Inc)
		}
	}
}
