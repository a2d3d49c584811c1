package sim

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// manager stands for the HA manager and for the supervisors of guards: it
// starts the VM, starts it elsewhere when its guard is gone or stuck, and now
// and then does so wrongly, which PREPARE must withstand.
type manager struct {
	w          *world
	t          *tenant
	active     *guard
	challenger *guard
	attempt    uint64
	stuckSince clock.Instant
	calmAt     clock.Instant // faults have ended; 0 = not yet
	accepted   *guard        // the operator told it to go on
	off        bool          // a script does what is to be done
}

const managerStep = 250 * time.Millisecond

func (m *manager) tick() {
	m.w.after(managerStep, m.tick)
	if m.t.deleteAt > 0 && m.w.ops >= m.t.deleteAt && !m.w.calm {
		m.t.delete()
	}
	if m.off || m.t.deleted {
		return
	}
	if m.challenger != nil && m.challenger.ended() {
		m.challenger = nil
	}
	m.operator()
	switch g := m.active; {
	case g == nil || g.ended():
		m.challenge(m.pick(nil), m.t.drawID(), 0)
	case g.state == writer.Serving && g.leaseHeld() && !g.frozen:
		m.stuckSince = 0
	case m.stuckSince == 0:
		m.stuckSince = m.w.now
	case m.w.now.Sub(m.stuckSince) > m.w.profile.patience:
		m.challenge(m.pick(g.node), m.t.drawID(), 0)
	}
}

// operator tells a takeover to go on that waits for a copy which cannot come: it
// is on a dead disk, and the tails of the others' logs cannot be verified.
func (m *manager) operator() {
	const patience = 20 * time.Second
	g := m.challenger
	if g == nil || m.accepted == g || m.calmAt == 0 || m.w.now.Sub(m.calmAt) < patience || g.state != writer.Opening || !m.w.anyDiskDead() {
		return
	}
	m.accepted = g
	m.w.note("tail_accepted")
	m.t.tell("the operator tells %s to go on without the dead copy", g.name())
	m.accept(g)
}

// accept tells a takeover to go on with what answers: an operator gives up what
// nobody can judge.
func (m *manager) accept(g *guard) {
	if m.w.lied() {
		m.w.note("accepted_loss")
	}
	m.t.oracle.accept(m.w.lied())
	if m.t.first() {
		m.w.snaps.accept(m.w.lied())
	}
	g.step(writer.Command{Kind: writer.AcceptUnverified})
}

func (w *world) anyDiskDead() bool {
	for _, n := range w.nodes {
		if slices.ContainsFunc(n.disks, func(d *simDisk) bool { return d.dead }) {
			return true
		}
	}
	return false
}

// pick chooses a node that could take the VM, another one than not.
func (m *manager) pick(not *node) *node {
	start := m.t.dice.IntN(len(m.w.nodes))
	var last *node
	for i := range m.w.nodes {
		n := m.w.nodes[(start+i)%len(m.w.nodes)]
		if n.powered && !n.asleep && n.serving() && m.w.etcdReachable(n) {
			if n != not {
				return n
			}
			last = n
		}
	}
	return last
}

// challenge starts the VM on a node under a new run, unless a challenge runs.
func (m *manager) challenge(n *node, run ids.ID, delay time.Duration) {
	if n == nil || m.challenger != nil || !m.w.etcdReachable(n) {
		return
	}
	m.attempt++
	m.w.etcd.rev++
	m.w.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: m.t.vm}.Path(), repl.Placement{Node: n.id, Attempt: m.attempt, State: "starting", Run: run})
	g := newGuard(m.t, n, run, m.attempt, false)
	m.t.tell("manager: %s starts the VM (attempt %d)", g.name(), m.attempt)
	m.w.note("takeover")
	m.challenger = g
	m.follow(g, func() {
		m.becomeActive(g)
		m.t.guest.boot(g)
	})
	g.step(writer.Command{Kind: writer.Prepare})
	m.w.after(delay+m.t.pause(8*time.Second, 20*time.Second), func() {
		if m.challenger == g && !g.claimed {
			m.t.tell("manager: %s gives up", g.name())
			g.step(writer.Command{Kind: writer.Stop})
			g.done = true
			g.dropLinks()
			m.challenger = nil
		}
	})
}

// follow drives a guard from its claim to service.
func (m *manager) follow(g *guard, serving func()) {
	g.onClaim = func(o writer.ClaimOutcome) {
		switch o {
		case writer.Made:
			g.later(writer.Command{Kind: writer.Activate})
		case writer.NotMade:
			g.claimed = false
			if g == m.challenger {
				m.w.after(time.Millisecond, func() {
					g.step(writer.Command{Kind: writer.Stop})
					g.done = true
					g.dropLinks()
					if m.challenger == g {
						m.challenger = nil
					}
				})
			}
		}
	}
	g.onState = func(s writer.State) {
		if s == writer.Serving {
			m.w.after(0, serving)
		}
	}
}

func (m *manager) becomeActive(g *guard) {
	if m.challenger == g {
		m.challenger = nil
	}
	m.active, m.stuckSince = g, 0
	m.t.tell("manager: %s serves", g.name())
}

// guardKilled: the supervisor of the guard's node starts a successor, which
// adopts the living guest.
func (m *manager) guardKilled(old *guard, delay time.Duration) {
	n, own := old.node, m.t.last[old.node.index].own
	if m.active != old || !m.t.guest.alive || m.t.guest.guard != old {
		return
	}
	m.t.guest.paused = true
	m.w.after(delay, func() {
		if m.active != old || !n.powered || !m.t.guest.alive || m.t.guest.guard != old {
			return
		}
		m.w.note("guard_restart")
		g := newGuard(m.t, n, old.run, m.placementAttempt(old), true)
		m.active, m.stuckSince = g, 0
		m.t.guest.guard = nil
		old.done = true
		m.follow(g, func() {
			if m.active == g && m.t.guest.alive && m.t.guest.run == g.run {
				m.becomeActive(g)
				m.t.guest.attach(g)
			}
		})
		inner := g.onState
		g.onState = func(s writer.State) {
			if s == writer.Idle {
				m.w.note("reopen_refused")
				m.w.after(0, func() { g.step(writer.Command{Kind: writer.Prepare}) })
			}
			inner(s)
		}
		if own.Epoch == 0 {
			g.step(writer.Command{Kind: writer.Prepare})
			return
		}
		g.predecessor = wire.PredecessorID{Epoch: own.Epoch, Nonce: own.Nonce, Inc: own.Inc}
		g.step(writer.Command{Kind: writer.Reopen, Predecessor: g.predecessor})
	})
}

func (m *manager) placementAttempt(old *guard) uint64 { return old.attempt }

// adoptable: the guest of this guard may go on under a successor.
func (m *manager) adoptable(g *guard) bool { return g.killed && !g.fenced && !g.invalid }

// guardEnded: fenced or invalid; the guest is dead, tick starts it again.
func (m *manager) guardEnded(g *guard) {
	if m.challenger == g {
		m.challenger = nil
	}
}

// askedToMove: the guard's storage link is sick.
func (m *manager) askedToMove(g *guard) {
	if m.off {
		return
	}
	if m.challenger == g {
		// A takeover that reaches one copy only. Another node may do better, else this
		// one goes on.
		if n := m.pick(g.node); n != nil && n != g.node && m.t.dice.IntN(2) == 0 {
			m.w.after(time.Millisecond, func() {
				if m.challenger != g || g.ended() {
					return
				}
				g.step(writer.Command{Kind: writer.Stop})
				g.done = true
				g.dropLinks()
				m.challenger = nil
				m.challenge(n, m.t.drawID(), 0)
			})
			return
		}
		m.w.note("move_refused")
		m.w.after(time.Millisecond, func() { g.step(writer.Command{Kind: writer.MoveRefused}) })
		return
	}
	if m.active != g {
		return
	}
	if n := m.pick(g.node); n != nil && n != g.node {
		m.challenge(n, m.t.drawID(), 0)
		return
	}
	m.w.after(time.Millisecond, func() { g.step(writer.Command{Kind: writer.MoveRefused}) })
}

// replaceDisks lets every VM's guard replace what stands on dead disks.
func (w *world) replaceDisks() {
	for _, t := range w.living() {
		t.manager.replaceDisks()
	}
}

// replaceDisks asks the writer to rebuild what stands on dead disks, as long as
// a segment is placed on one.
func (m *manager) replaceDisks() {
	g := m.active
	if g == nil || g.ended() || g.state != writer.Serving {
		return
	}
	for _, n := range m.w.nodes {
		m.replaceDisksOf(n)
	}
}

func (m *manager) replaceDisksOf(n *node) {
	v := m.t.record()
	for i, d := range n.disks {
		if len(n.disks) < 2 {
			return
		}
		if d.dead && len(v.Spare(d.id)) > 0 { // what was to come here stays where it is
			m.active.step(writer.Command{Kind: writer.ReplaceDisk, Replace: writer.Replace{Old: d.id}})
			continue
		}
		spare := n.disks[1-i]
		if !d.dead || spare.dead || !n.serving() || !placed(v.Seg, d.id) {
			continue
		}
		segments := movable(&v, d.id, spare.id)
		if len(segments) == 0 {
			continue // the spare is being given them already
		}
		m.w.note("replace_asked")
		m.active.step(writer.Command{Kind: writer.ReplaceDisk, Replace: writer.Replace{Old: d.id, New: spare.id, NewNode: n.id, Segments: segments}})
	}
}

func placed(seg repl.Segments, d ids.ID) bool {
	for s := range seg.Map {
		if slices.Contains(seg.Row(s), d) {
			return true
		}
	}
	return false
}
