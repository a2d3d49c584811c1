package sim

import (
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// guard is the shell of one writer core: what package volume is in production.
type guard struct {
	w      *world
	t      *tenant
	node   *node
	id     ids.ID
	run    ids.ID
	core   *writer.Core
	links  [maxNodes]*link
	wanted [maxNodes]bool
	downAs [maxNodes]int // what was last reported: 0 nothing, 1 lost, 2 refused, 3 up

	windows     map[int]string // what each node answered to WINDOW, see observeWindow
	divergent   bool
	attempt     uint64
	adopting    bool // a guest with memory of this run lives
	killed      bool
	done        bool // final state, or stopped by the manager
	frozen      bool
	held        []func() // what arrived while frozen
	claimed     bool
	usedCache   bool
	known       repl.Records
	hasKnown    bool
	deadline    clock.Instant
	timer       clock.Instant
	state       writer.State
	fenced      bool
	ghost       bool // see faultLateSuccessor
	idle        bool // a maintenance writer: no guest
	parent      bool // of the volume that the world's was cloned from
	booted      bool // a guest of its run ran
	buried      bool // its guest was seen dead, killed by the supervisor
	lastBoot    ids.ID
	lastOwn     repl.Own
	invalid     bool
	onState     func(writer.State)
	onClaim     func(writer.ClaimOutcome)
	onDrained   func()
	predecessor wire.PredecessorID
}

func (g *guard) ended() bool { return g.killed || g.done }

// newGuard starts a writer on a node.
func newGuard(t *tenant, n *node, run ids.ID, attempt uint64, alive bool) *guard {
	w := t.w
	g := &guard{w: w, t: t, node: n, id: t.drawID(), run: run, attempt: attempt, adopting: alive, lastBoot: n.boot}
	g.core = writer.New(writer.Config{
		Node: n.id, Run: run, Purpose: repl.PurposeVM, VM: t.vm, Attempt: attempt, Nonce: t.drawID(),
		Volumes: []ids.ID{t.volume}, SegmentBytes: segmentBytes, GuestAlive: alive, Direct: w.direct, Timing: w.timing(), Mutations: w.opt.Mutations.Writer,
	})
	w.guards = append(w.guards, g)
	n.guards = append(n.guards, g)
	n.sleeps(g)
	g.step(w.liveness())
	return g
}

// step feeds one event, unless the guard is gone; a frozen one gets it when it
// thaws.
func (g *guard) step(ev writer.Event) {
	if g.ended() {
		return
	}
	if g.frozen {
		g.held = append(g.held, func() { g.step(ev) })
		return
	}
	g.core.Step(g.node.clock(), ev)
	g.drainReady()
}

// later gives an order from within an effect: the core's other effects come first.
func (g *guard) later(c writer.Command) { g.w.after(0, func() { g.step(c) }) }

func (g *guard) drainReady() {
	for range 10000 {
		r := g.core.Ready()
		if len(r.Sends) == 0 && len(r.Done) == 0 && len(r.Effects) == 0 && len(r.Reads) == 0 {
			g.arm()
			return
		}
		// Ready's slices are valid until the next call: take what is needed.
		sends, done, effects := append([]writer.Send(nil), r.Sends...), append([]writer.Completion(nil), r.Done...), append([]writer.Effect(nil), r.Effects...)
		for _, s := range sends {
			n := g.w.nodeByID(s.Node)
			if l := g.links[n.index]; l != nil && l.open && l.greeted {
				l.send(s.Msg)
			}
		}
		for _, e := range effects {
			g.effect(e)
		}
		for _, d := range append([]writer.DirectRead(nil), r.Reads...) {
			g.readDirect(d)
		}
		for _, c := range done {
			if g.parent {
				continue
			}
			if c.Request.Token >= snapToken {
				g.w.snaps.completed(c)
			} else {
				g.t.guest.completed(g, c)
			}
		}
		if g.ended() {
			return
		}
	}
	g.w.failf("the writer of %s never has nothing to do", g.node.name())
}

// arm sets the timer to the core's next deadline.
func (g *guard) arm() {
	at := g.core.NextDeadline()
	if at == 0 || g.timer != 0 && g.timer <= at && g.timer >= g.node.clock() {
		return
	}
	g.timer = at
	g.node.timerAt(at, func() {
		if g.timer != at {
			return
		}
		g.timer = 0
		g.tick()
	})
}

func (g *guard) tick() {
	if g.ended() {
		return
	}
	if g.frozen {
		g.held = append(g.held, g.tick)
		return
	}
	g.core.Tick(g.node.clock())
	g.drainReady()
}

func (g *guard) effect(e writer.Effect) {
	w := g.w
	switch e := e.(type) {
	case writer.ReadRecords:
		w.readRecords(g)
	case writer.WantPlaces:
		g.wantPlaces(e)
	case writer.Commit:
		w.commit(g, e.ID, e.Txn)
	case writer.WantNodes:
		g.wantNodes(e.Nodes)
	case writer.LeaseChanged:
		if g.deadline = 0; e.Deadline != 0 {
			g.deadline = g.node.world(e.Deadline)
		}
		g.t.onlyOneRuns(g)
	case writer.StateChanged:
		w.tracef("%s writer: %v %s", g.name(), e.State, e.Text)
		g.state = e.State
		if g.onState != nil {
			g.onState(e.State)
		}
	case writer.Prepared:
		w.tracef("%s prepared: ready=%v reachable=%v live=%v %s", g.name(), e.Ready, e.Reachable, e.Live, e.Text)
		g.prepared(e)
	case writer.Claimed:
		w.tracef("%s claimed: %+v", g.name(), e)
		if g.onClaim != nil {
			g.onClaim(e.Outcome)
		}
	case writer.Drained:
		if g.onDrained != nil {
			g.onDrained()
		}
	case writer.Replaced:
		w.tracef("%s replaced: %+v", g.name(), e)
		if e.OK {
			w.note("disk_replaced")
		}
	case writer.Snapshotted:
		if g.parent {
			w.clones.ended(g)
		} else {
			w.snaps.ended(g, e)
		}
	case writer.Fenced:
		w.tracef("%s fenced by %v", g.name(), e.By.Node.Short())
		w.note("fenced")
		g.finish(true, false)
	case writer.GuestInvalid:
		w.tracef("%s guest invalid: %s", g.name(), e.Text)
		w.note("guest_invalid")
		g.finish(false, true)
	case writer.AskMove:
		if g.parent && !e.Over {
			g.later(writer.Command{Kind: writer.MoveRefused})
		} else if !e.Over {
			w.note("ask_move")
			g.t.manager.askedToMove(g)
		}
	case writer.RecordsKnown:
		g.known, g.hasKnown = e.Records, true
		own := e.Records.Volumes[0].Own
		g.lastOwn = own
		if !g.ghost && !g.parent {
			g.t.last[g.node.index] = lastKnown{own, e.Records}
		}
	case writer.Report:
		w.tracef("%s report %s: %s", g.name(), e.Kind, e.Text)
		w.note("report_" + string(e.Kind))
		if e.Kind == writer.ReportDiffer && !w.lied() {
			w.failf("copies differ although no disk lied: %s", e.Text)
		}
		if e.Kind == writer.ReportBug {
			w.failf("the writer of %s reports a bug: %s", g.node.name(), e.Text)
		}
	}
}

func (g *guard) name() string {
	if g.t.index > 0 {
		return fmt.Sprintf("%s/vol%d/%s", g.node.name(), g.t.index+1, g.id.Short())
	}
	return g.node.name() + "/" + g.id.Short()
}

// finish: the core is at its end; its guest is killed.
func (g *guard) finish(fenced, invalid bool) {
	g.fenced, g.invalid, g.done = fenced, invalid, true
	for _, o := range g.w.guards {
		if o.run == g.run && o.node == g.node {
			o.buried = true // the guest of a killed predecessor is this one's
		}
	}
	g.w.snaps.guardEnded(g)
	g.dropLinks()
	g.t.guest.guardEnded(g)
	g.t.manager.guardEnded(g)
}

// kill is SIGKILL of the guard's process: no message more.
func (g *guard) kill() {
	if g.killed {
		return
	}
	g.killed = true
	g.w.snaps.guardEnded(g)
	g.dropLinks()
}

func (g *guard) dropLinks() {
	for i, l := range g.links {
		if l != nil && l.open {
			l.open = false
			if !l.broken {
				l.broken = true
				l.node.connClosed(l)
			}
		}
		g.links[i] = nil
	}
}

func (g *guard) wantNodes(want []ids.ID) {
	var set [maxNodes]bool
	for _, id := range want {
		set[g.w.nodeByID(id).index] = true
	}
	g.wanted = set
	for i, yes := range set {
		if yes {
			g.connect(g.w.nodes[i])
		}
	}
}

// lost is called when the guard notices that a connection ended.
func (g *guard) lost(l *link, refused bool) {
	if !l.open {
		return
	}
	if g.frozen {
		g.held = append(g.held, func() { g.lost(l, refused) })
		return
	}
	l.open = false
	if g.links[l.node.index] == l {
		g.links[l.node.index] = nil
	}
	if g.ended() {
		return
	}
	g.connFailed(l.node, refused)
	g.connect(l.node)
}

// connFailed reports a loss, and each change of its kind, once.
func (g *guard) connFailed(n *node, refused bool) {
	as := 1
	if refused {
		as = 2
	}
	if g.downAs[n.index] == as {
		return
	}
	g.downAs[n.index] = as
	g.step(writer.ConnDown{Node: n.id, Refused: refused})
}

func (g *guard) receive(l *link, m wire.Message) {
	if g.frozen {
		g.held = append(g.held, func() {
			if l.open {
				g.receive(l, m)
			}
		})
		return
	}
	if h, ok := m.(*wire.HelloAck); ok {
		if h.Status != wire.OK {
			g.w.failf("HELLO of %s refused by %s: %d", g.name(), l.node.name(), h.Status)
			return
		}
		l.greeted = true
		g.downAs[l.node.index] = 3
		g.step(writer.ConnUp{Node: l.node.id, Session: h.Session, Disks: h.Disks})
		return
	}
	g.w.observe(g, l, m)
	g.step(&writer.Received{Node: l.node.id, Msg: m})
}

// prepared claims as soon as PREPARE allows it.
func (g *guard) prepared(p writer.Prepared) {
	if p.Live {
		g.w.note("prepare_refused_live")
	}
	if !p.Ready && !g.w.opt.Mutations.Writer.ClaimWithoutPrepare || g.claimed {
		return
	}
	g.claimed = true
	if g.idle {
		g.later(writer.Command{Kind: writer.DoClaim})
		return
	}
	claim := writer.Claim{Placement: &repl.Placement{Node: g.node.id, Attempt: g.attempt, State: "running", Run: g.run}}
	if g.adopting {
		claim.ExpectRun = g.run
	}
	g.later(writer.Command{Kind: writer.DoClaim, Claim: claim})
}

// freeze and thaw are SIGSTOP and SIGCONT of the guard alone.
func (g *guard) freeze() { g.frozen = true }

func (g *guard) thaw() {
	if g.node.asleep {
		g.node.sleeps(g)
		return
	}
	g.unfreeze()
	g.tick()
}

func (g *guard) unfreeze() {
	g.frozen = false
	held := g.held
	g.held = nil
	for _, f := range held {
		f()
	}
}

// leaseHeld reports whether the guest's ports are open: the lease, less the
// margin of the kernel's timer.
func (g *guard) leaseHeld() bool {
	return g.deadline != 0 && g.w.now < g.deadline
}

// hasCached: a predecessor on this node left the records as it knew them.
func (g *guard) hasCached() bool {
	return g.adopting && len(g.t.last[g.node.index].records.Volumes) > 0
}

// Times of the shell: how long a transaction is waited for, and how long
// between two tries to reach the store.
const (
	etcdTimeout = 2 * time.Second
	etcdRetry   = 300 * time.Millisecond
)
