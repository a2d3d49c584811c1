package writer

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// received dispatches a message of a storage node.
func (c *Core) received(n *node, msg wire.Message) {
	n.heard = c.now
	switch a := msg.(type) {
	case *wire.Ack:
		switch c.kindOf(a.ReqID) {
		case slotWrite:
			c.writeAck(n, a)
		case slotSync:
			c.syncAnswer(n, a.ReqID, a)
		case slotRepair:
			if _, ok := c.takeSlot(n, a.ReqID, slotRepair); ok && a.Status == wire.DiskFailed {
				c.wake = true
			}
		}
	case *wire.ReadReply:
		if c.kindOf(a.ReqID) == slotParent {
			c.parentReply(n, a)
			return
		}
		c.readReply(n, a)
	case *wire.FlushAck:
		c.flushAck(n, a)
	case *wire.HeartbeatAck:
		c.heartbeatAck(n, a)
	case *wire.OpenAck:
		c.openAck(n, a)
	case *wire.Window:
		c.windowReply(n, a)
	case *wire.ConfigAck:
		c.configAck(n, a)
	case *wire.ExtList:
		if c.kindOf(a.ReqID) == slotScrub {
			c.scrubList(n, a)
			return
		}
		if c.kindOf(a.ReqID) == slotRollback {
			c.rollbackList(n, a)
			return
		}
		c.syncAnswer(n, a.ReqID, a)
	case *wire.ExtTags:
		if c.kindOf(a.ReqID) == slotFlatten {
			c.flattenTags(n, a)
			return
		}
		if c.kindOf(a.ReqID) == slotScrub {
			c.scrubTags(n, a)
			return
		}
		c.syncAnswer(n, a.ReqID, a)
	case *wire.Damage:
		c.damaged(n, a)
	case *wire.SimpleAck:
		if c.kindOf(a.ReqID) == slotRelease {
			c.releaseAck(n, a)
		} else {
			c.syncAnswer(n, a.ReqID, a)
		}
	}
}

func (c *Core) kindOf(id uint64) slotKind {
	if i := uint32(id); int(i) < len(c.slots) && c.slots[i].gen == uint32(id>>32) {
		return c.slots[i].kind
	}
	return slotFree
}

func (c *Core) command(ev Command) {
	switch ev.Kind {
	case Prepare:
		if c.state == Idle && !c.prep.never {
			c.prep = prepare{on: true, nextAt: c.now}
			c.readRecords()
		}
	case DoClaim:
		c.doClaim(ev.Claim, false)
	case Activate:
		c.claim.activate = true
		if c.state == Owned {
			c.beginOpening()
		}
	case Reopen:
		if c.state == Idle {
			c.beginReopen()
		}
	case Drain, Stall, Release:
		c.beginDrain(ev.Kind)
	case Resume:
		if c.state == Stalled || c.state == Stalling {
			c.draining = false
			c.setState(Serving, "")
			for _, v := range c.vols {
				v.admit()
			}
		}
	case Reclaim:
		c.doClaim(ev.Claim, true)
	case Snapshot:
		c.beginSnapshot(ev.Snapshot)
	case ReplaceDisk:
		c.replaceDisk(ev.Replace)
	case Scrub:
		c.beginScrub(ev.Volume)
	case StopScrub:
		c.stopScrub(ev.Volume)
	case AcceptUnverified:
		if ev.Volume >= 0 && ev.Volume < len(c.vols) {
			c.vols[ev.Volume].acceptTail = true
		}
	case MoveRefused:
		c.moveNever = true
	case Abort:
		c.abort()
	case Stop:
		c.setState(StoppedState, "")
	}
}

func (c *Core) abort() {
	c.prep.never = true
	if c.claim.txn == nil && c.state == Idle {
		c.prep.on = false
		c.effect(Claimed{Outcome: NotMade, Text: "aborted"})
	}
}

// beginDrain answers what was received so far; Stall and Release keep what
// comes later waiting.
func (c *Core) beginDrain(kind CommandKind) {
	switch {
	case kind == Release && (c.state == Serving || c.state == Stalled):
		for _, v := range c.vols {
			for _, m := range v.members {
				if m.sync != nil && m.sync.phase < syncCount {
					m.abortSync("release")
				}
			}
		}
		c.setState(Releasing, "")
	case kind == Stall && c.state == Serving:
		c.setState(Stalling, "")
	case kind == Drain && c.state == Serving:
	default:
		return
	}
	c.draining, c.drainTo = true, c.reqSeq
	c.drainFlushed = false
	c.wake = true
}

// settleDrain goes on once the requests received before are answered.
func (c *Core) settleDrain() {
	if !c.draining || c.active.head != nil && c.active.head.state.seq <= c.drainTo {
		return
	}
	if !c.drainFlushed {
		c.drainFlushed = true
		for _, v := range c.vols {
			v.drainWant = v.wseq
			if v.flushMark.Wseq < v.wseq || v.flushMark.Epoch != v.epoch() {
				v.flushAll()
			}
		}
		// Go on at once if there was nothing to flush: the next event may be the
		// next heartbeat.
		c.wake = true
		return
	}
	for _, v := range c.vols {
		if v.flushMark.Epoch != v.epoch() || v.flushMark.Wseq < v.drainWant {
			return
		}
	}
	c.draining = false
	switch c.state {
	case Stalling:
		c.setState(Stalled, "")
		c.effect(Drained{})
		for _, v := range c.vols {
			v.admitFlushes()
		}
	case Releasing:
		c.wake = true
	default:
		c.effect(Drained{})
	}
}

// admitFlushes answers the FLUSHes that came while stalling: nothing was replied
// since that is not durable.
func (v *volume) admitFlushes() {
	if v.rolling() {
		return
	}
	for r := v.held.head; r != nil; {
		next := r.state.next
		if r.Op == OpFlush {
			v.held.remove(r)
			v.begin(r)
		}
		r = next
	}
}

// settleRelease ends the epoch at every in-sync member once all is durable and
// no change is under way.
func (v *volume) settleRelease() {
	c := v.c
	if c.state != Releasing || c.draining || c.snap != nil || v.change != nil || v.frozenSince != 0 {
		return
	}
	all := true
	for _, m := range v.members {
		if !m.counted || m.released {
			continue
		}
		all = false
		if !m.releasing && m.usable() {
			m.releasing = true
			id := c.newSlot(slotRelease, m, nil, 0)
			c.send(m.node, &wire.Release{ReqID: id, Handle: m.handle})
		}
	}
	v.released = all
	for _, o := range c.vols {
		if !o.released {
			return
		}
	}
	c.setState(ReleasedState, "")
}

func (c *Core) releaseAck(n *node, a *wire.SimpleAck) {
	s, ok := c.takeSlot(n, a.ReqID, slotRelease)
	if !ok {
		return
	}
	s.m.releasing = false
	s.m.v.dirty = true
	if a.Status == wire.OK || a.Status == wire.Released {
		s.m.released = true
		return
	}
	c.refused(s.m, a.Status, s.m.v.promise())
	s.m.open, s.m.retryAt = closed, c.now.Add(c.t.OpenRetry)
}

func (c *Core) replaceDisk(r Replace) {
	deny := func(text string) { c.effect(Replaced{Replace: r, Text: text}) }
	if r.Volume < 0 || r.Volume >= len(c.vols) || c.state != Serving {
		deny("the volume is not being served")
		return
	}
	v := c.vols[r.Volume]
	if v.change != nil || v.pending != nil || v.frozenSince != 0 || !v.told() || c.reopen.unwritten {
		c.effect(Replaced{Replace: r, Busy: true, Text: "another change of the volume is under way"})
		return
	}
	txn, next, err := r.transition(v.rec)
	if err != nil {
		deny(err.Error())
		return
	}
	for _, m := range v.members {
		if (m.disk == r.Old || m.disk == r.New) && m.counted && (v.isOut(m) || m.leaving != "") {
			deny("the disk is still being put out")
			return
		}
	}
	v.commitChange(&change{kind: changeReplace, txn: txn, next: next, replace: r})
}

// transition is the transaction of r: a move, or the end of one.
func (r Replace) transition(rec repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
	if r.New.IsZero() {
		return repl.CancelMove(rec, r.Old)
	}
	return repl.MoveCopies(rec, repl.Move{Old: r.Old, New: r.New, Segments: r.Segments, Live: r.Live})
}

func (v *volume) memberOf(d ids.ID) *member {
	for _, m := range v.members {
		if m.disk == d {
			return m
		}
	}
	return nil
}

// Health returns a snapshot for people.
func (c *Core) Health() Health {
	h := Health{State: c.state, Lease: c.lease}
	for _, v := range c.vols {
		vh := VolumeHealth{Volume: v.id, SizeBytes: v.rec.Cfg.SizeBytes, Own: v.rec.Own, DirtyBytes: v.window(), Hedged: v.hedged, HedgesWon: v.hedgesWon}
		if v.frozenSince != 0 {
			vh.Stalled = c.now.Sub(v.frozenSince)
		}
		if c.lease != 0 && c.lease <= c.now {
			vh.Stalled = max(vh.Stalled, c.now.Sub(c.lease))
		}
		for r := v.held.head; r != nil; r = r.state.next {
			vh.Inflight++
		}
		for r := c.active.head; r != nil; r = r.state.next {
			if r.Volume == v.index {
				vh.Inflight++
			}
		}
		vh.Rollback, vh.RollbackProgress = v.rec.Cfg.Rollback, v.roll.progress()
		vh.Parent, vh.Flatten = v.rec.Cfg.Parent, v.flattenProgress()
		vh.Doubts = v.doubts()
		vh.Scrub, vh.Healing, vh.Lost = v.scrubHealth(), v.healing(), len(v.lost)
		for _, m := range v.members {
			_, out := v.rec.Own.Out[m.disk]
			mh := MemberHealth{Disk: m.disk, Node: m.node.id, InSync: !out, Connected: m.node.up && m.node.lostAt == 0, Reason: v.rec.Own.Out[m.disk].Reason, Foreign: m.other}
			if m.sync != nil {
				mh.Syncing = true
				mh.SyncDone, mh.SyncTotal, mh.SyncBytes, mh.SyncLeft = m.sync.progress()
			}
			vh.Members = append(vh.Members, mh)
		}
		h.Volumes = append(h.Volumes, vh)
	}
	return h
}
