package writer

import (
	"math/bits"
	"time"

	"roseau/internal/base/clock"
)

// Hedged reads: a client's read that its copy does not answer in a time that is
// long for this group is asked of a second in-sync copy, and the first answer
// wins. Reads know no timers of their own: while some are unanswered their slots
// are looked through every hedgeScan.
const (
	hedgeScan  = 10 * time.Millisecond
	hedgeLeast = 20 * time.Millisecond  // no read is hedged earlier
	hedgeMost  = 500 * time.Millisecond // any is hedged then, if the budget allows
	hedgeCost  = 8                      // a hedge costs the tokens of so many answered reads
	hedgeBurst = 32 * hedgeCost         // so an eighth of the reads at most, and 32 at once
	hedgeFew   = 64                     // with fewer answers the bound is hedgeMost
)

// hedging is the state of a group.
type hedging struct {
	scanAt clock.Instant // look through the slots then; zero: no read is known to wait
	tokens int
	// hist counts answers by the length of their time in microseconds, in bits; it is
	// halved now and then. Answers that came too late to count are in it, too.
	hist  [32]uint32
	count uint32
}

// sent: a read was sent to a copy.
func (h *hedging) sent(now clock.Instant) {
	if h.scanAt == 0 {
		h.scanAt = now.Add(hedgeScan)
	}
}

// answered notes how long a copy took.
func (h *hedging) answered(d time.Duration) {
	h.hist[min(bits.Len64(uint64(d/time.Microsecond)), len(h.hist)-1)]++
	h.tokens = min(h.tokens+1, hedgeBurst)
	if h.count++; h.count >= 4096 {
		h.count = 0
		for i := range h.hist {
			h.hist[i] /= 2
			h.count += h.hist[i]
		}
	}
}

// bound is how long a read may take before a second copy is asked: four times what
// 19 of 20 take.
func (h *hedging) bound() time.Duration {
	if h.count < hedgeFew {
		return hedgeMost
	}
	left := h.count / 20
	for i := len(h.hist) - 1; i > 0; i-- {
		if h.hist[i] > left {
			return min(max(4*time.Microsecond<<i, hedgeLeast), hedgeMost)
		}
		left -= h.hist[i]
	}
	return hedgeLeast
}

// tickHedge looks through the reads that wait, if it is time.
func (c *Core) tickHedge() {
	h := &c.hedge
	if h.scanAt == 0 || c.now < h.scanAt {
		return
	}
	h.scanAt = 0
	bound := h.bound()
	for i := range c.slots {
		s := &c.slots[i]
		if s.kind != slotRead && s.kind != slotDirect || s.op.kind != opRead || s.op.req == nil {
			continue
		}
		h.scanAt = c.now.Add(hedgeScan)
		if o := s.op; !o.hedged && o.rep == nil && c.now.Sub(s.sent) >= bound && h.tokens >= hedgeCost && !c.mut.NeverHedge {
			if m := o.v.second(o, s.m); m != nil {
				h.tokens -= hedgeCost
				o.v.hedged++
				o.hedged = true
				o.v.askRead(o, m) // may move the slots
			}
		}
	}
}

// second picks another copy to read o from than m, or nil: in sync, and not one
// that leaves something unanswered for as long itself.
func (v *volume) second(o *op, m *member) *member {
	for i := range o.seg.members {
		x := o.seg.members[(i+int(o.ext))%len(o.seg.members)]
		if x == m || !x.counted || v.isOut(x) || o.seg.lacks(x) || !x.usable() {
			continue
		}
		if at := v.c.oldest(x); at == 0 || v.c.now.Sub(at) < hedgeLeast {
			return x
		}
	}
	return nil
}

// unhedge ends the wait for the other answer to o, which m has answered. The slot
// stays until that comes: a disk that hangs is known by what it leaves unanswered.
func (c *Core) unhedge(o *op, m *member) {
	if !o.hedged {
		return
	}
	o.hedged = false
	if o.from != m {
		o.v.hedgesWon++
	}
	for i := range c.slots {
		if s := &c.slots[i]; (s.kind == slotRead || s.kind == slotDirect) && s.op == o {
			s.kind, s.op = slotLate, nil
		}
	}
}

// takeRead takes the slot of a read whose answer has come. Of one that another copy
// has answered only the time counts.
func (c *Core) takeRead(n *node, id uint64, kind slotKind) (slot, bool) {
	s, ok := c.takeSlot(n, id, kind)
	if !ok {
		if late, is := c.takeSlot(n, id, slotLate); is {
			c.hedge.answered(c.now.Sub(late.sent))
		}
	}
	return s, ok
}

// hedgeLost reports whether o, one of whose two copies is gone, is still asked of
// the other.
func (c *Core) hedgeLost(o *op) bool {
	if !o.hedged {
		return false
	}
	o.hedged = false
	for i := range c.slots {
		if s := &c.slots[i]; (s.kind == slotRead || s.kind == slotDirect) && s.op == o {
			o.from = s.m
			return true
		}
	}
	return false
}
