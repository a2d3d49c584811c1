package writer

import (
	"fmt"
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/core/repl"
)

// beginOpening is step 2 of a takeover: OPEN to all members of all segments.
func (c *Core) beginOpening() {
	c.setState(Opening, "")
	c.doubtTold = false
	if c.snap != nil {
		c.endSnapshot("the volumes were taken again")
	}
	for _, v := range c.vols {
		v.wseq, v.commitWseq, v.flushMark = 0, 0, repl.Mark{}
		v.flush = flushState{}
		v.cumSubmitted, v.cumIssued, v.cumFlushed = 0, 0, 0
		v.rc = reconcile{}
		v.config = configState{serial: 1}
		v.snap = snapVolume{}
		v.roll = nil
		v.pending, v.change, v.frozenSince = nil, nil, 0
		for i := range v.segs {
			v.segs[i].dirtyWseq = 0
		}
		for _, m := range v.members {
			learned, absent := m.learned, m.absent
			c.forget(m, func(slot) {})
			*m = member{v: v, index: m.index, disk: m.disk, node: m.node, learned: learned, absent: absent, unsure: absent, counted: !v.isOut(m)}
		}
	}
}

// verdictOf a segment at takeover.
type openVerdict uint8

const (
	openWait openVerdict = iota
	openGo
	openInvalid // only cold copies under a living guest
)

// settleOpening applies the one waiting rule (2.6 step 2) to all segments.
func (c *Core) settleOpening() {
	if c.state != Opening {
		return
	}
	for _, v := range c.vols {
		for i := range v.segs {
			switch v.judge(&v.segs[i], v.acceptTail) {
			case openWait:
				c.tellDoubt()
				return
			case openInvalid:
				c.invalid(fmt.Sprintf("volume %s, segment %d: every copy lost power under the guest", v.id, i))
				return
			}
		}
	}
	for _, v := range c.vols {
		for _, m := range v.members {
			if m.counted && m.open != opened {
				m.leaving = m.whyMissing()
			} else if m.damaged = m.counted && m.ack.Damaged; m.suspect() {
				m.leaving = repl.OutDamaged
			} else {
				m.damaged = false
			}
		}
		v.beginReconcile()
	}
	c.setState(Reconciling, "")
}

// whyMissing says why a copy is put out that did not answer OPEN. Its storage process
// said that it does not have the disk: a failed disk, which the sick-link rule does
// not wait for. Else its node may be behind a cable of ours.
func (m *member) whyMissing() repl.OutReason {
	if m.failed {
		return repl.OutDiskFailed
	}
	return repl.OutMissing
}

// judge is the verdict on a segment; accept: an operator said that tails and damage of
// which nobody can tell what they cost are to be gone on with.
func (v *volume) judge(s *segment, accept bool) openVerdict {
	c := v.c
	warm, cold, tail, maybe, others := 0, 0, 0, 0, 0
	waited := c.now.Sub(c.since)
	for _, m := range s.members {
		if !m.counted || s.lacks(m) {
			continue
		}
		others++
		switch {
		case m.open == opened && m.ack.Damaged && !accept && !c.mut.TrustDamaged:
			// It lost what nobody can name: it can be neither source nor witness.
		case m.open == opened && m.ack.Unverified > 0 && !accept:
			tail++
			fallthrough
		case m.open == opened:
			if m.cold {
				cold++
			} else {
				warm++
			}
		case !m.absent || m.unsure:
			maybe++
			if c.mayCome(m) && (waited < c.t.MemberWait || c.reopen.same && c.reopen.unwritten) {
				return openWait
			}
		}
	}
	if warm+cold == 0 {
		return openWait // waiting for a copy
	}
	if tail == 1 && warm+cold == 1 && others > 1 {
		return openWait // no other member can judge the unverified tail [S22]
	}
	if warm > 0 {
		return openGo
	}
	if c.cfg.GuestAlive && !v.lossless(s) && !c.mut.AdoptCold {
		if maybe > 0 {
			return openWait // a warm one may exist: without limit, while the guest lives [S6]
		}
		return openInvalid
	}
	if maybe > 0 && waited < c.t.ColdWait {
		return openWait
	}
	return openGo
}

// mayCome reports whether m may still answer.
func (c *Core) mayCome(m *member) bool {
	return m.node.up || c.isAlive(m.node.id) || c.mut.WaitForDead
}

// lossless reports whether cold copies of s cannot have lost an acked write: an
// answering member knows durably that it was alone (C7).
func (v *volume) lossless(s *segment) bool {
	for _, m := range s.members {
		if m.open != opened || !m.counted || m.ack.Damaged || s.lacks(m) {
			continue
		}
		alone := true
		for _, o := range s.members {
			if o != m && !slices.Contains(m.ack.Told.Out, o.disk) {
				alone = false
			}
		}
		if alone {
			return true
		}
	}
	return false
}

func (c *Core) openingDeadlines(d *deadline) {
	if c.reopen.on {
		d.later(c.reopen.endAt)
	}
	if c.state != Opening {
		return
	}
	for _, at := range []clock.Instant{c.since.Add(c.t.MemberWait), c.since.Add(c.t.ColdWait)} {
		if at > c.now {
			d.later(at)
		}
	}
}
