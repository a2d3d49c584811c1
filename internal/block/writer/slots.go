package writer

import (
	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
)

// slotKind says what an unanswered message was.
type slotKind uint8

const (
	slotFree slotKind = iota
	slotTry
	slotOpen
	slotWindow
	slotWrite
	slotFlush
	slotRead
	slotConfig
	slotSync // any request of a resync job, see syncJob
	slotRepair
	slotRelease
	slotRollback // a list of extents
	slotLate     // a read that another copy has answered
	slotFlatten  // the tags of an extent
	slotParent   // SNAP_READ; arg is the first block asked for, in the op
	slotDirect   // not a message: a read by the shell
	slotScrub    // a list (op nil) or a table of tags for a scrub
)

// slot remembers one unanswered message. A request id is its index and
// generation, so that a late answer to a slot used again is not mistaken.
type slot struct {
	gen  uint32
	kind slotKind
	m    *member
	op   *op      // write, read
	arg  uint64   // kind's own
	job  *syncJob // slotSync
	sent clock.Instant
}

func (c *Core) newSlot(kind slotKind, m *member, o *op, arg uint64) uint64 {
	var i uint32
	if n := len(c.freeSlot); n > 0 {
		i = c.freeSlot[n-1]
		c.freeSlot = c.freeSlot[:n-1]
	} else {
		i = uint32(len(c.slots))
		c.slots = append(c.slots, slot{})
	}
	s := &c.slots[i]
	*s = slot{gen: s.gen + 1, kind: kind, m: m, op: o, arg: arg, sent: c.now}
	return uint64(s.gen)<<32 | uint64(i)
}

// takeSlot frees the slot of a request id and returns what it was; ok is false
// if the answer is late or was never asked for.
func (c *Core) takeSlot(n *node, id uint64, kind slotKind) (slot, bool) {
	i := uint32(id)
	if int(i) >= len(c.slots) {
		return slot{}, false
	}
	s := c.slots[i]
	if s.kind != kind || s.gen != uint32(id>>32) || s.m.node != n {
		return slot{}, false
	}
	c.dropSlot(i)
	return s, true
}

// peekSlot is takeSlot for answers of several messages.
func (c *Core) peekSlot(n *node, id uint64, kind slotKind) (slot, bool) {
	i := uint32(id)
	if int(i) >= len(c.slots) {
		return slot{}, false
	}
	s := c.slots[i]
	return s, s.kind == kind && s.gen == uint32(id>>32) && s.m.node == n
}

func (c *Core) dropSlot(i uint32) {
	s := &c.slots[i]
	*s = slot{gen: s.gen}
	c.freeSlot = append(c.freeSlot, i)
}

// forget drops every unanswered message to m; done is called for each.
func (c *Core) forget(m *member, done func(slot)) {
	for i := range c.slots {
		if s := c.slots[i]; s.kind != slotFree && s.m == m {
			c.dropSlot(uint32(i))
			done(s)
		}
	}
}

// oldest returns when the oldest unanswered message to m that a disk should
// have answered was sent, or zero.
func (c *Core) oldest(m *member) clock.Instant {
	var at clock.Instant
	for i := range c.slots {
		s := &c.slots[i]
		if s.m != m || s.kind == slotFree || s.kind == slotOpen || s.kind == slotTry || s.kind == slotWindow {
			continue
		}
		if at == 0 || s.sent < at {
			at = s.sent
		}
	}
	return at
}

// overdue reports whether something has waited for m for the hard limit. It is asked
// after each event: what is sent later than the oldest at the last look cannot be due
// before that would have been.
func (m *member) overdue() bool {
	c := m.v.c
	if c.now < m.notBefore {
		return false
	}
	at := c.oldest(m)
	if at == 0 {
		at = c.now // what will be sent is not older
	}
	m.notBefore = at.Add(c.t.HardLimit)
	return c.now >= m.notBefore
}

func (c *Core) send(n *node, msg wire.Message) {
	if n.up {
		c.out.Sends = append(c.out.Sends, Send{Node: n.id, Msg: msg})
	}
}
