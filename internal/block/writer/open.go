package writer

import (
	"fmt"
	"slices"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// linked: the node's connection is up.
func (m *member) linked() {
	m.open, m.resumed, m.trails, m.retryAt = closed, false, false, 0
	m.dropPlaces()
	m.places.offUntil = 0
	m.v.dirty = true
	if m.answered && m.session != m.node.session && !m.v.c.mut.IgnoreSession {
		m.newRun = true
	}
	m.absent, m.other = !slices.Contains(m.node.disks, m.disk), false
	m.unsure = m.absent
	m.failed = m.absent && m.answered
}

// unlinked: the node's connection is gone; what was asked must be asked again.
func (m *member) unlinked() {
	c := m.v.c
	m.open, m.resumed, m.trails, m.telling, m.releasing, m.flushSent = closed, false, false, false, false, false
	m.dropPlaces()
	c.forget(m, func(s slot) { m.v.lostSlot(m, s) })
	if c.state <= Opening {
		// Another process may answer next, with the right disk in its place.
		m.absent, m.unsure, m.failed = false, false, false
	}
	if m.sync != nil {
		m.sync.flushing = false
	}
	if m.sync != nil && m.sync.phase < syncCount {
		m.abortSync("connection lost")
	}
}

// lostSlot handles a question to m that will not be answered.
func (v *volume) lostSlot(m *member, s slot) {
	switch s.kind {
	case slotRead, slotDirect:
		v.readLost(s.op, m)
	case slotFlatten:
		v.flattenLost()
	case slotParent:
		v.parentLost(s.op)
	case slotWrite:
		s.op.unsent(m)
	case slotWindow:
		v.rc.restart = true
	case slotScrub:
		v.scrubLost(s)
	case slotRollback:
		v.rollbackLost()
	case slotSync:
		if j := s.job; j.m.sync == j && j.m != m {
			j.orphan = true
			v.c.wake = true
		}
	}
}

// settleOpen sends OPEN to every member that is reachable and closed. One that HELLO
// does not name is asked, too: the answer tells one that is being opened (Busy) from
// one that its node does not have (DiskFailed).
func (v *volume) settleOpen() {
	c := v.c
	for _, m := range v.members {
		if m.open != closed || !m.node.up || m.absent && !m.unsure || c.now < m.retryAt {
			continue
		}
		m.open = opening
		o := &wire.Open{
			Volume: v.id, Disk: m.disk, Promise: v.promise(),
			CfgVersion: v.rec.Own.CfgVersion, SizeBytes: v.rec.Cfg.SizeBytes,
		}
		if p, ok := c.reopen.predecessor(m); ok {
			o.Flags |= wire.OpenPredecessorDead
			o.Predecessor = p
		}
		if v.imports(m) {
			o.Flags |= wire.OpenImport
		}
		o.ReqID = c.newSlot(slotOpen, m, nil, 0)
		c.send(m.node, o)
	}
}

func (c *Core) openAck(n *node, a *wire.OpenAck) {
	if s, ok := c.takeSlot(n, a.ReqID, slotTry); ok {
		c.tryAck(s.m, a)
		return
	}
	s, ok := c.takeSlot(n, a.ReqID, slotOpen)
	if !ok {
		return
	}
	m := s.m
	m.v.dirty = true
	m.open = closed
	switch a.Status {
	case wire.OK:
		m.opened(a)
	case wire.LeaseRunning, wire.Busy:
		// Soon: a release (a hand-over, a clean stop) ends the wait at once.
		wait := c.t.OpenRetry / 10
		if a.GrantLeft > 0 && a.GrantLeft < wait {
			wait = a.GrantLeft
		}
		m.retryAt = c.now.Add(wait)
		if p := a.Promised; p != (repl.Promise{}) {
			c.reopen.learn(m, p)
		}
	case wire.StaleEpoch, wire.Released:
		c.refused(m, a.Status, a.Promised)
	case wire.OtherGeneration:
		if !m.counted && m.v.isOut(m) {
			m.foreign(a.Promised)
			return
		}
		fallthrough
	case wire.OtherNonce:
		c.stop("open volume " + m.v.id.String() + " on disk " + m.disk.String() + ": it promised another history of the same epoch")
	case wire.DiskFailed:
		m.failed, m.absent, m.unsure = !c.mut.AbsentIsLost, true, false
	default:
		m.retryAt = c.now.Add(c.t.OpenRetry)
	}
}

// opened takes the answer of a successful OPEN.
func (m *member) opened(a *wire.OpenAck) {
	v, c := m.v, m.v.c
	if c.forgotten(v, a.Told, a.Promised) {
		c.stop("open volume " + v.id.String() + ": disk " + m.disk.String() + " knows a newer configuration than etcd")
		return
	}
	m.open, m.handle, m.openedAt, m.ack = opened, a.Handle, c.now, *a
	m.absent, m.unsure = false, false
	m.cold = a.Cold && !c.mut.IgnoreCold
	m.telling = false
	m.node.beatAt = c.now
	if a.WindowBytes > 0 && (v.windowLimit == 0 || int64(a.WindowBytes) < v.windowLimit) {
		v.windowLimit = int64(a.WindowBytes)
	}
	first := !m.answered
	m.answered = true
	switch {
	case m.sync != nil && !m.counted:
		m.session, m.newRun, m.resumed = m.node.session, false, true
		m.sync.opened()
	case m.sync != nil && m.sync.phase == syncOpen && !m.newRun && m.leavable():
		m.resume()
		m.sync.opened()
	case c.state == Opening, first:
		m.session, m.newRun, m.resumed = m.node.session, false, true
	case m.counted && !m.newRun && m.leavable():
		m.resume()
	case m.counted && !m.newRun && !v.isOut(m) && c.state >= Serving && c.state <= Releasing && !c.mut.NoTrailing:
		m.trail()
	case !m.counted:
		m.session, m.newRun, m.resumed = m.node.session, false, true
	}
}

// imports reports whether m's copy of an older generation is taken into this one.
func (v *volume) imports(m *member) bool {
	return v.rec.Own.Imports(m.disk) || v.c.mut.ImportAll && v.rec.Own.Generation.Volume > 0
}

// foreign: m has a copy of a generation that was given up. It is left as it is,
// and not asked again on this connection.
func (m *member) foreign(by repl.Promise) {
	m.absent, m.unsure, m.other = true, false, true
	m.v.c.report(ReportForeign, m.v.id, m.disk, fmt.Sprintf("it has a copy of generation %d, up to epoch %d, which was given up; it is left alone", by.Generation.Volume, by.Epoch))
}

// leavable reports whether m may still return: no CAS that puts it out was sent.
func (m *member) leavable() bool {
	ch := m.v.change
	return (!m.v.isOut(m) || m.v.pending == m) && (ch == nil || ch.kind != changeShrink || !slices.Contains(ch.members, m))
}

// trail takes up the session of a member that the transaction under way puts out.
// Whether that is made is not known, and not soon if etcd has no majority; until
// then m is counted (I3), so writes wait for it, and it may as well have them. What is
// acked meanwhile is on every member of the set before and of the set after. Nothing
// is read from m, and nothing else changes: when the transaction is made it is out.
func (m *member) trail() {
	m.trails = true
	m.takeUp()
}

// resume takes up a session, and m stays in the set.
func (m *member) resume() {
	m.leaving = ""
	m.takeUp()
}

// takeUp sends everything unanswered again, in order.
func (m *member) takeUp() {
	v, c := m.v, m.v.c
	if m.newRun {
		// What an earlier process acked may be gone with it. The committed part
		// was judged by the caller; of the rest its acks count no more.
		for o := v.inflight.head; o != nil; o = o.next {
			if t := o.target(m); t != nil {
				t.acked = false
			}
		}
		m.told = 0 // the new process merges nothing before it is told again
	}
	m.session, m.newRun, m.resumed = m.node.session, false, true
	m.hung = false
	v.dirty = true
	for _, o := range v.unacked(m) {
		c.sendWrite(o, m, wire.WriteResent)
	}
	m.catchUp()
}

// catchUp sends what was not sent while m was about to be put out.
func (m *member) catchUp() {
	v, c := m.v, m.v.c
	for _, o := range v.unacked(m) {
		if t := o.target(m); !t.sent && !t.nospc {
			c.sendWrite(o, m, 0)
		}
	}
	if m.flushWait && !m.flushSent {
		c.sendFlush(m, v.flush.upto)
	}
	c.wake = true
}

// forgotten reports whether a replica knows something that etcd does not [S7].
func (c *Core) forgotten(v *volume, told wire.Told, p repl.Promise) bool {
	own := &v.rec.Own
	if c.cached || c.reopen.unwritten || c.mut.TrustEtcd {
		return false // our records may well be older than etcd's
	}
	if told.CfgVersion > own.CfgVersion && (v.change == nil || told.CfgVersion > v.change.next.Own.CfgVersion) {
		return true
	}
	return p.Generation == own.Generation && p.Epoch > own.Epoch && c.state < Opening
}

// missing lists members of v that are in-sync by own and not answering.
func (v *volume) missing(dst []Missing, answered func(*member) bool) []Missing {
	for _, m := range v.members {
		if !v.isOut(m) && !answered(m) {
			dst = append(dst, Missing{Volume: v.id, Disk: m.disk, Node: m.node.id})
		}
	}
	return dst
}
