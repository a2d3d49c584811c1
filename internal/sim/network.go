package sim

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
)

// network knows which pairs of nodes can talk. A connection is a FIFO each way;
// a cut loses what is under way.
type network struct {
	w   *world
	cut [maxNodes][maxNodes]bool // cut[a][b]: nothing from a reaches b
}

func newNetwork(w *world) network { return network{w: w} }

func (n *network) reaches(a, b int) bool { return a == b || !n.cut[a][b] }

func (n *network) both(a, b int) bool { return n.reaches(a, b) && n.reaches(b, a) }

// set cuts or mends one direction and breaks the connections concerned.
func (n *network) set(a, b int, cut bool) {
	n.cut[a][b] = cut
	if !cut {
		return
	}
	for _, g := range n.w.guards {
		for _, l := range g.links {
			if l != nil && l.open && !n.both(g.node.index, l.node.index) {
				l.stall()
			}
		}
	}
}

// link is one connection of a guard to a storage process.
type link struct {
	g       *guard
	node    *node
	conn    uint64 // identity at the replica
	open    bool   // at the guard's end
	broken  bool   // no byte passes any more; not noticed yet
	greeted bool   // HELLO was answered
	toNode  clock.Instant
	toGuard clock.Instant
	syncing map[uint64]uint64 // extent of each SyncWrite under way, by request
}

// delay draws a transfer time and keeps the order of the direction.
func (l *link) delay(last *clock.Instant) time.Duration {
	w := l.g.w
	d := w.between(20*time.Microsecond, 200*time.Microsecond)
	if l.g.node == l.node {
		d /= 4
	}
	d += w.profile.lag
	if w.chance(w.profile.netHiccup) {
		d += w.between(time.Millisecond, 50*time.Millisecond)
	}
	at := w.now.Add(d)
	if at <= *last {
		at = *last + 1
	}
	*last = at
	return at.Sub(w.now)
}

// send carries a message from the guard to the storage process. The bytes are
// encoded and decoded as in production.
func (l *link) send(m wire.Message) {
	if !l.open || l.broken {
		return
	}
	l.observeSend(m)
	l.traceMessage("to", m)
	m = recode(l.g.w, m)
	process := l.node.process
	l.g.w.after(l.delay(&l.toNode), func() {
		l.node.awake(func() {
			if l.broken || l.node.process != process || !l.node.serving() {
				return
			}
			l.node.receive(l, m)
		})
	})
}

// answer carries a message from the storage process to the guard.
func (l *link) answer(m wire.Message) {
	if l.broken || !l.open {
		return
	}
	l.traceMessage("from", m)
	l.g.w.checkAnswer(l, m)
	m = recode(l.g.w, m)
	l.g.w.after(l.delay(&l.toGuard), func() {
		if l.broken || !l.open {
			return
		}
		l.g.receive(l, m)
	})
}

// stall: nothing passes any more; the guard notices later, by a lost keep-alive
// or a refused reconnect.
func (l *link) stall() {
	if l.broken {
		return
	}
	l.broken = true
	l.node.connClosed(l)
	l.g.w.after(l.g.w.between(10*time.Millisecond, 400*time.Millisecond), func() { l.g.lost(l, false) })
}

// reset: the connection ends at once, as when the process at the other end was
// killed.
func (l *link) reset(refused bool) {
	if l.broken {
		return
	}
	l.broken = true
	l.node.connClosed(l)
	l.g.w.after(l.g.w.between(0, 2*time.Millisecond), func() { l.g.lost(l, refused) })
}

// connect opens a connection if both ends can talk and the process runs.
func (g *guard) connect(n *node) {
	if g.ended() || !g.wanted[n.index] || g.links[n.index] != nil && g.links[n.index].open {
		return
	}
	if g.frozen {
		g.w.after(50*time.Millisecond, func() { g.connect(n) })
		return
	}
	retry := func() { g.w.after(g.w.between(20*time.Millisecond, 100*time.Millisecond), func() { g.connect(n) }) }
	if !g.w.net.both(g.node.index, n.index) || !n.powered || n.asleep {
		g.connFailed(n, false)
		retry()
		return
	}
	if !n.serving() {
		g.connFailed(n, true)
		retry()
		return
	}
	g.w.seq++
	l := &link{g: g, node: n, conn: g.w.seq, open: true}
	g.links[n.index] = l
	n.connOpened(l, g.node.id)
	l.send(&wire.Hello{Cluster: g.w.cluster, Node: g.node.id, Guard: g.id, ProtoMin: 1, ProtoMax: wire.ProtocolVersion})
}

// recode passes a message through the wire format.
func recode(w *world, m wire.Message) wire.Message {
	out, err := w.codec.roundTrip(m)
	if err != nil {
		w.failf("wire: %T does not survive its encoding: %v", m, err)
		return m
	}
	return out
}
