package writer

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

var (
	flagSeeds = flag.Int("seeds", 150, "random schedules to run")
	flagSeed  = flag.Uint64("seed", 0, "run this schedule alone, with a log")
)

// world is a small cluster in virtual time: four nodes, the disks of three in
// the placement, etcd, and the processes that hold writer cores.
type world struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	now     clock.Instant
	queue   worldQueue
	seq     uint64
	ids     uint64
	handles wire.Handle
	nodes   []*fakeNode
	etcd    fakeEtcd
	guards  []*fakeGuard
	vol     ids.ID
	vm      ids.ID
	oracle  oracle
	failed  bool
	log     bool
	mut     Mutations
	stats   map[string]int
	moves   bool // copies are moved between disks
	direct  bool // guards read disks of their nodes by themselves: see fakeGuard.reads
	// of scenarios: plain requests, no random outcomes of etcd
	plain          map[*Request]bool
	lastShared     bool
	calm, etcdLost bool
	lastResult     Result
	ioErrors       int
	readDelay      func(n *fakeNode) time.Duration // of an answer to a read
}

type worldEvent struct {
	at  clock.Instant
	seq uint64
	run func()
}

type worldQueue []worldEvent

func (q worldQueue) Len() int { return len(q) }
func (q worldQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q worldQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *worldQueue) Push(x any)   { *q = append(*q, x.(worldEvent)) }
func (q *worldQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (w *world) after(d time.Duration, run func()) {
	w.seq++
	heap.Push(&w.queue, worldEvent{w.now.Add(d), w.seq, run})
}

func (w *world) newID() ids.ID {
	w.ids++
	var id ids.ID
	for i := range 8 {
		id[15-i] = byte(w.ids >> (8 * i))
	}
	return id
}

func (w *world) fail(format string, args ...any) {
	if !w.failed {
		w.failed = true
		w.logf("FAIL "+format, args...)
		if w.mut == (Mutations{}) {
			w.t.Errorf("seed %d at %v: %s (go test -run TestWorld -seed %d)", w.seed, time.Duration(w.now), fmt.Sprintf(format, args...), w.seed)
		}
	}
}

func (w *world) logf(format string, args ...any) {
	if w.log {
		fmt.Printf("%10.4f %s\n", time.Duration(w.now).Seconds(), fmt.Sprintf(format, args...))
	}
}

// run lets time pass until d from now, or a failure.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for steps := 0; len(w.queue) > 0 && w.queue[0].at <= end && !w.failed; steps++ {
		e := heap.Pop(&w.queue).(worldEvent)
		w.now = e.at
		e.run()
		if steps > 2_000_000 {
			w.fail("too many events")
		}
	}
	w.now = end
}

// fakeEtcd holds the records; a transaction may be answered "unknown" and be
// committed later, or never.
type fakeEtcd struct {
	recs repl.Records
	rev  int64
	down bool
}

func (w *world) snapshot() repl.Records {
	r := w.etcd.recs
	r.Volumes = slices.Clone(r.Volumes)
	for i := range r.Volumes {
		r.Volumes[i].Own = r.Volumes[i].Own.Clone()
	}
	r.Disks = slices.Clone(r.Disks)
	return r
}

func (w *world) commit(t repl.Txn) (repl.Outcome, int64) {
	e := &w.etcd
	for _, c := range t.Compares {
		rev := e.recs.PlacementRev
		for i := range e.recs.Volumes {
			v := &e.recs.Volumes[i]
			if v.ID == c.Key.ID {
				rev = map[repl.KeyKind]int64{repl.KeyOwn: v.OwnRev, repl.KeyCfg: v.CfgRev, repl.KeySeg: v.SegRev}[c.Key.Kind]
			}
		}
		if rev != c.Rev {
			return repl.OutcomeConflict, 0
		}
	}
	e.rev++
	for _, p := range t.Puts {
		if p.Placement != nil {
			e.recs.Placement, e.recs.PlacementRev = *p.Placement, e.rev
		}
		for i := range e.recs.Volumes {
			v := &e.recs.Volumes[i]
			if v.ID != p.Key.ID {
				continue
			}
			if p.Own != nil && w.moves {
				w.noteMove(v, &p, t)
			}
			if p.Own != nil {
				v.Own, v.OwnRev = p.Own.Clone(), e.rev
				w.logf("etcd own: epoch %d inc %d cfg %d out %d", p.Own.Epoch, p.Own.Inc, p.Own.CfgVersion, len(p.Own.Out))
			}
			if p.Seg != nil {
				v.Seg, v.SegRev = *p.Seg, e.rev
			}
		}
	}
	return repl.OutcomeCommitted, e.rev
}

// noteMove counts what a transaction is about.
func (w *world) noteMove(v *repl.VolumeRecord, p *repl.Put, t repl.Txn) {
	seg := slices.ContainsFunc(t.Puts, func(p repl.Put) bool { return p.Seg != nil })
	partial := false
	for _, o := range v.Own.Out {
		partial = partial || o.Partial
	}
	switch {
	case partial && p.Own.Epoch > v.Own.Epoch:
		w.seen("partial at takeover")
	case !seg:
	case len(p.Own.Out) > len(v.Own.Out):
		w.seen("move begun")
	case len(t.Puts) > 1:
		for _, q := range t.Puts {
			if q.Seg != nil && len(q.Seg.Map[0])+len(q.Seg.Map[1]) < len(v.Seg.Map[0])+len(v.Seg.Map[1]) {
				w.seen("moved")
				for _, d := range v.Seg.Disks {
					if _, out := v.Own.Out[d]; out && !slices.Contains(q.Seg.Disks, d) {
						w.seen("move cancelled")
					}
				}
			}
		}
	}
}

// fakeConn is one connection of a guard with a node; both directions are FIFO.
type fakeConn struct {
	g      *fakeGuard
	n      *fakeNode
	cut    bool
	toNode clock.Instant // when the last message arrives
	toHost clock.Instant
}

// fakeGuard is a process with a writer core.
type fakeGuard struct {
	w        *world
	node     *fakeNode
	core     *Core
	run      ids.ID
	alive    bool
	frozen   bool
	missed   []func()
	conns    map[ids.ID]*fakeConn // looked up only
	blocked  map[ids.ID]bool      // links that do not work
	tick     uint64
	cached   repl.Records
	take     bool // go through prepare, claim, activate
	reports  []Report
	evidence []Evidence
	stopped  string
	serving  bool

	// Of guards that read by themselves (world.direct):
	reads  []DirectRead
	wanted []WantPlaces
}

func (w *world) newGuard(n *fakeNode, run ids.ID, alive bool, mut Mutations) *fakeGuard {
	g := &fakeGuard{w: w, node: n, run: run, alive: true, conns: map[ids.ID]*fakeConn{}, blocked: map[ids.ID]bool{}}
	g.core = New(Config{
		Node: n.id, Run: run, Purpose: repl.PurposeVM, VM: w.vm, Attempt: 1, Nonce: w.newID(), Volumes: []ids.ID{w.vol},
		SegmentBytes: repl.ExtentBytes, GuestAlive: alive, Mutations: mut,
		Timing: Timing{RejoinBackoff: 50 * time.Millisecond}, Direct: w.direct,
	})
	w.guards = append(w.guards, g)
	w.oracle.epochStart(w)
	for _, node := range w.nodes {
		g.connect(node)
	}
	g.step(Liveness{Alive: w.alive()})
	return g
}

func (w *world) alive() []ids.ID {
	var a []ids.ID
	for _, n := range w.nodes {
		if n.up {
			a = append(a, n.id)
		}
	}
	return a
}

// do runs f in the guard's process: later if it is frozen, never if it is dead.
func (g *fakeGuard) do(f func()) {
	if !g.alive {
		return
	}
	if g.frozen {
		g.missed = append(g.missed, f)
		return
	}
	f()
}

func (g *fakeGuard) step(ev Event) {
	g.do(func() {
		g.core.Step(g.w.now, ev)
		g.drain()
	})
}

// drain acts on what the core wants.
func (g *fakeGuard) drain() {
	w := g.w
	for {
		r := g.core.Ready()
		if len(r.Sends)+len(r.Done)+len(r.Effects)+len(r.Reads) == 0 {
			break
		}
		g.reads = append(g.reads, r.Reads...)
		for _, s := range r.Sends {
			g.send(s)
		}
		for _, d := range r.Done {
			if _, plain := w.plain[d.Request]; plain {
				w.plain[d.Request], w.lastResult, w.lastShared = true, d.Result, d.Shared
				if d.Result != Done {
					w.ioErrors++
				}
				continue
			}
			w.oracle.done(w, g, d)
		}
		for _, e := range r.Effects {
			g.effect(e)
		}
	}
	g.tick++
	tick := g.tick
	if at := g.core.NextDeadline(); at != 0 {
		w.after(max(0, at.Sub(w.now)), func() {
			g.do(func() {
				if g.tick == tick {
					g.core.Tick(w.now)
					g.drain()
				}
			})
		})
	}
}

func (g *fakeGuard) send(s Send) {
	w := g.w
	c := g.conns[s.Node]
	if c == nil || c.cut {
		return
	}
	w.seen(fmt.Sprintf("%T", s.Msg))
	c.toNode = max(c.toNode, w.now.Add(time.Duration(50+w.rng.IntN(300))*time.Microsecond))
	w.after(c.toNode.Sub(w.now), func() {
		if c.cut || !c.n.up {
			return
		}
		for _, m := range c.n.serve(s.Msg) {
			c.toHost = max(c.toHost, w.now.Add(time.Duration(50+w.rng.IntN(300))*time.Microsecond))
			at := c.toHost
			if w.readDelay != nil && isReadReply(m) {
				at = at.Add(w.readDelay(c.n)) // reads are not answered in order
			}
			w.after(at.Sub(w.now), func() {
				if !c.cut {
					g.step(&Received{Node: c.n.id, Msg: m})
				}
			})
		}
	})
}

func (w *world) nodeOf(id ids.ID) *fakeNode {
	i := slices.IndexFunc(w.nodes, func(n *fakeNode) bool { return n.id == id })
	return w.nodes[i]
}

func (w *world) seen(what string) { w.stats[what]++ }

// connect tries to reach a node, and again until it succeeds.
func (g *fakeGuard) connect(n *fakeNode) {
	w := g.w
	if !g.alive {
		return
	}
	if !n.up || g.blocked[n.id] || !g.node.up {
		w.after(100*time.Millisecond, func() { g.connect(n) })
		return
	}
	c := &fakeConn{g: g, n: n}
	g.conns[n.id] = c
	n.conns = append(n.conns, c)
	var disks []ids.ID
	for _, d := range n.disks {
		disks = append(disks, d.id)
	}
	session := n.session
	w.after(time.Millisecond, func() {
		if !c.cut {
			g.step(ConnUp{Node: n.id, Session: session, Disks: disks})
		}
	})
}

func (c *fakeConn) break_(refused bool) {
	if c.cut {
		return
	}
	c.cut = true
	w := c.g.w
	w.after(time.Millisecond, func() { c.g.step(ConnDown{Node: c.n.id, Refused: refused}) })
	w.after(time.Duration(2+w.rng.IntN(30))*time.Millisecond, func() { c.g.connect(c.n) })
}

func (g *fakeGuard) effect(e Effect) {
	w := g.w
	w.logf("guard %d: %T %+v", slices.Index(w.guards, g), e, e)
	switch e := e.(type) {
	case WantPlaces:
		g.wanted = append(g.wanted, e)
	case ReadRecords:
		g.read()
	case Commit:
		g.commit(e)
	case StateChanged:
		w.seen("state " + e.State.String())
		g.serving = e.State == Serving
		switch {
		case e.State == Serving:
			w.oracle.serving(w, g)
		case e.State.final():
			g.stopped = e.State.String() + ": " + e.Text
			g.alive = false
			for _, n := range w.nodes {
				if c := g.conns[n.id]; c != nil {
					c.cut = true
				}
			}
			w.oracle.gone(w, g)
		case e.State == Idle && g.take:
			g.command(Command{Kind: Prepare})
		}
	case Prepared:
		if g.take && e.Ready {
			g.command(Command{Kind: DoClaim, Claim: g.claim()})
		} else if g.take && !e.Live && !e.Reachable && len(e.Waiting) == 0 {
			w.after(time.Second, func() { g.command(Command{Kind: Prepare}) })
		}
	case Claimed:
		if e.Outcome == Made {
			w.oracle.claimed(w, g)
			g.command(Command{Kind: Activate})
		}
		if e.Outcome == NotMade && g.take {
			w.after(300*time.Millisecond, func() { g.command(Command{Kind: Prepare}) })
		}
	case RecordsKnown:
		g.cached = e.Records
	case Evidence:
		g.evidence = append(g.evidence, e)
	case Report:
		g.reports = append(g.reports, e)
		w.seen("report " + string(e.Kind))
		if e.Kind == ReportBug {
			w.fail("guard reports a bug: %s", e.Text)
		}
	case GuestInvalid:
		w.seen("guest invalid")
		if !w.allCold() {
			w.fail("guest invalidated while a warm copy exists")
		}
	case AskMove:
		if e.Over {
			w.seen("move over")
		} else {
			w.seen("ask move")
		}
	case Reconnect:
		if c := g.conns[e.Node]; c != nil {
			c.break_(false)
		}
	}
}

func (g *fakeGuard) claim() Claim {
	if g.core.cfg.GuestAlive {
		return Claim{ExpectRun: g.run}
	}
	return Claim{}
}

// command is given in an event of its own: effects are handled while the core
// runs.
func (g *fakeGuard) command(c Command) {
	g.w.after(0, func() { g.step(c) })
}

func (g *fakeGuard) read() {
	w := g.w
	w.after(time.Duration(1+w.rng.IntN(5))*time.Millisecond, func() {
		if !g.alive {
			return
		}
		if w.etcd.down {
			w.after(50*time.Millisecond, g.read)
			return
		}
		recs := w.snapshot()
		w.after(time.Millisecond, func() { g.step(RecordsRead{Records: recs}) })
	})
}

func (g *fakeGuard) commit(e Commit) {
	w := g.w
	lost := w.rng.IntN(100) < 8 && !w.calm || w.etcd.down
	late := time.Duration(1+w.rng.IntN(8)) * time.Millisecond
	if lost && w.rng.IntN(2) == 0 {
		late += time.Duration(w.rng.IntN(4000)) * time.Millisecond
	}
	never := lost && (w.rng.IntN(3) == 0 || w.etcdLost)
	if lost {
		w.seen("txn unknown")
		w.after(time.Duration(20+w.rng.IntN(100))*time.Millisecond, func() { g.step(TxnDone{ID: e.ID, Outcome: repl.OutcomeUnknown}) })
	}
	if never {
		return
	}
	w.after(late, func() {
		if w.etcd.down && lost {
			return
		}
		before := w.allCold()
		out, rev := w.commit(e.Txn)
		if !before && w.allCold() && w.ignorant(g) {
			w.oracle.powerLoss()
		}
		if !lost {
			w.after(time.Millisecond, func() { g.step(TxnDone{ID: e.ID, Outcome: out, Revision: rev}) })
		}
	})
}
