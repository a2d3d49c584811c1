package writer

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// node is a storage process that the group has copies on.
type node struct {
	id       ids.ID
	up       bool
	session  ids.ID
	disks    []ids.ID
	refused  bool
	lostAt   clock.Instant // since when nothing was heard, if so; zero: connection is fine
	heard    clock.Instant // last message received
	beatAt   clock.Instant // next heartbeat
	waitsAt  clock.Instant // send time of the oldest unanswered heartbeat
	answered clock.Instant // send time of the newest answered one: it lived then
	members  []*member     // sorted by (volume, place)
}

// silentAfter is how long a heartbeat may stay unanswered until the connection
// counts as lost; the wait for its return begins when it was sent.
const silentAfter = 700 * time.Millisecond

func (c *Core) node(id ids.ID) *node {
	i, ok := slices.BinarySearchFunc(c.nodes, id, func(n *node, id ids.ID) int { return n.id.Compare(id) })
	if !ok {
		return nil
	}
	return c.nodes[i]
}

func (c *Core) addNode(id ids.ID) *node {
	i, ok := slices.BinarySearchFunc(c.nodes, id, func(n *node, id ids.ID) int { return n.id.Compare(id) })
	if !ok {
		c.nodes = slices.Insert(c.nodes, i, &node{id: id, lostAt: c.now})
	}
	return c.nodes[i]
}

// wantNodes tells the shell whom to connect with.
func (c *Core) wantNodes() {
	var want []ids.ID
	for _, n := range c.nodes {
		if len(n.members) > 0 {
			want = append(want, n.id)
		}
	}
	c.effect(WantNodes{Nodes: want})
}

func (c *Core) connUp(ev ConnUp) {
	n := c.addNode(ev.Node)
	if n.up {
		c.linkLost(n)
	}
	n.up, n.refused, n.disks = true, false, ev.Disks
	n.lostAt, n.heard, n.beatAt, n.waitsAt = 0, c.now, c.now, 0
	n.session = ev.Session
	for _, m := range n.members {
		m.linked()
	}
	c.parentLinked()
}

func (c *Core) connDown(ev ConnDown) {
	n := c.addNode(ev.Node)
	if n.up {
		c.linkLost(n)
	}
	n.refused = ev.Refused
}

// linkLost forgets what was asked over the connection.
func (c *Core) linkLost(n *node) {
	n.up, n.waitsAt = false, 0
	if n.lostAt == 0 {
		n.lostAt = c.now
	}
	for _, m := range n.members {
		m.unlinked()
	}
}

// lost reports whether the connection is away for longer than a session may be
// resumed.
func (n *node) lost(c *Core) bool {
	return n.lostAt != 0 && (n.refused || c.now >= n.lostAt.Add(c.t.ReconnectWait))
}

func (c *Core) tickNodes() {
	for _, n := range c.nodes {
		if n.up && n.waitsAt != 0 && n.lostAt == 0 && c.now >= n.waitsAt.Add(silentAfter) {
			n.lostAt = n.waitsAt
			c.effect(Reconnect{Node: n.id})
		}
		if n.up && n.beatAt != 0 && c.now >= n.beatAt {
			c.heartbeat(n)
		}
	}
}

func (n *node) deadlines(c *Core, d *deadline) {
	if n.up {
		d.add(n.beatAt)
		if n.waitsAt != 0 && n.lostAt == 0 {
			d.add(n.waitsAt.Add(silentAfter))
		}
	}
	if n.lostAt != 0 && !n.refused && c.now < n.lostAt.Add(c.t.ReconnectWait) {
		d.add(n.lostAt.Add(c.t.ReconnectWait))
	}
}

func (c *Core) heartbeat(n *node) {
	n.beatAt = c.now.Add(c.t.Heartbeat)
	hb := &wire.Heartbeat{SendTime: c.now, Stalled: c.stalled()}
	for _, m := range n.members {
		if m.open == opened {
			hb.Volumes = append(hb.Volumes, wire.HeartbeatVolume{Handle: m.handle, Piggyback: m.v.piggyback()})
		}
	}
	if len(hb.Volumes) == 0 {
		return
	}
	if n.waitsAt == 0 {
		n.waitsAt = c.now
	}
	c.send(n, hb)
}

func (c *Core) heartbeatAck(n *node, a *wire.HeartbeatAck) {
	n.waitsAt, n.answered = 0, max(n.answered, a.SendTime)
	if n.lostAt != 0 {
		n.lostAt = 0 // it was only silent
	}
	for _, m := range n.members {
		if m.open != opened || a.SendTime < m.openedAt {
			continue
		}
		if r := refusal(a.Refused, m.handle); r != nil {
			c.refused(m, r.Status, r.Promised)
			continue
		}
		if a.Grant > 0 {
			from := a.SendTime
			if c.mut.LeaseFromReceipt {
				from = c.now
			}
			m.lease = max(m.lease, from.Add(a.Grant))
		}
	}
	for _, h := range a.Disks {
		for _, m := range n.members {
			if m.disk == h.Disk {
				m.hung = h.ProbeAge > c.t.HardLimit
				if h.Failed {
					m.failed = true
				}
			}
		}
	}
}

func refusal(rs []wire.HandleRefusal, h wire.Handle) *wire.HandleRefusal {
	for i := range rs {
		if rs[i].Handle == h {
			return &rs[i]
		}
	}
	return nil
}

// refused handles a status that speaks about the promise, from a heartbeat or
// any answer.
func (c *Core) refused(m *member, st wire.Status, by repl.Promise) {
	switch st {
	case wire.StaleEpoch, wire.OtherNonce, wire.Released, wire.OtherGeneration:
		if !c.state.owned() {
			return
		}
		if mine := m.v.promise(); by == mine && st != wire.Released {
			return // a late answer to a message of an older handle
		} else if by == mine && c.state == Releasing {
			// Our own release, heard of by a heartbeat before its answer came.
			m.released, m.releasing, m.v.dirty = true, false, true
			return
		}
		c.fence(by, st)
	case wire.BadHandle:
		if m.open == opened { // it was opened again meanwhile, or its process is new
			m.open = closed
			m.v.dirty = true
		}
	case wire.DiskFailed:
		m.failed = true
		m.v.dirty = true
	}
}

// stalled tells replicas how long acks or the lease have been frozen.
func (c *Core) stalled() time.Duration {
	if c.state != Serving && c.state != Stalled && c.state != Stalling && c.state != Releasing {
		return c.now.Sub(c.since)
	}
	var d time.Duration
	if c.lease != 0 && c.now >= c.lease {
		d = c.now.Sub(c.lease)
	}
	for _, v := range c.vols {
		if v.frozenSince != 0 {
			d = max(d, c.now.Sub(v.frozenSince))
		}
	}
	return d
}

// settleLease tells the shell until when the group may serve.
func (c *Core) settleLease() {
	lease := clock.Instant(0)
	if c.state >= Serving && c.state <= Releasing {
		for i, v := range c.vols {
			l := v.lease()
			if i == 0 || l < lease {
				lease = l
			}
		}
	}
	if lease == c.lease {
		return
	}
	back := c.lease <= c.now && lease > c.now
	c.lease = lease
	c.effect(LeaseChanged{Deadline: lease})
	if back {
		for _, v := range c.vols {
			v.retryReads()
		}
	}
}

// leased reports whether a read may be answered now.
func (c *Core) leased() bool { return c.lease > c.now }

// Lease returns until when the group may serve, or zero.
func (c *Core) Lease() clock.Instant { return c.lease }
