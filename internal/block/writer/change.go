package writer

import (
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// changeKind is the kind of a transaction on one volume.
type changeKind uint8

const (
	changeShrink changeKind = iota + 1
	changeGrow
	changeReplace
	changeReserve  // a snapshot number
	changeSnapshot // a snapshot exists, or does not any more
	changeFlatten  // the volume needs its parent no more
	changeRollback // the volume reads as the snapshot that it was to be taken back to
)

// change is a transaction on one volume whose outcome is not known. Until it is,
// every member of the set before and of the set after is counted (I3).
type change struct {
	kind    changeKind
	id      uint64
	txn     repl.Txn
	next    repl.VolumeRecord
	members []*member // put out, or taken back
	replace Replace
	retryAt clock.Instant // send again then
}

// putsSeg reports whether the placement changes, too.
func (ch *change) putsSeg() bool {
	return slices.ContainsFunc(ch.txn.Puts, func(p repl.Put) bool { return p.Seg != nil })
}

// txnRetry is how long to wait before a transaction of unknown outcome is
// looked at again.
const txnRetry = 200e6

// putsCfg reports whether the configuration changes, too.
func (ch *change) putsCfg() bool {
	return slices.ContainsFunc(ch.txn.Puts, func(p repl.Put) bool { return p.Cfg != nil })
}

// settleMembers finds out which counted members have to go or may stay.
func (v *volume) settleMembers() {
	frozen := false
	for _, m := range v.members {
		if !m.counted {
			continue
		}
		if m.leaving == "" {
			if why := m.lostReason(); why != "" {
				m.leaving, m.leftAt = why, v.c.now
				v.retireReads(m)
				v.askStaying()
			}
		} else if why := m.lostReason(); why != "" && m.leavable() {
			m.leaving = why // a lost connection may turn out to be a restart
		} else if m.leavable() && !m.newRun && !m.failed && !m.hung && m.open == opened && m.resumed {
			m.leaving = "" // it was silent for a while only
			m.catchUp()
		}
		if m.leaving != "" && v.pending == m && v.change == nil && v.isOut(m) && !v.c.reopen.unwritten {
			v.cancelGrow(m)
		}
		frozen = frozen || m.leaving != "" && !m.trailing()
	}
	if !frozen {
		v.frozenSince, v.awaited = 0, false
	} else if v.frozenSince == 0 {
		v.frozenSince = v.c.now
	}
}

// lostReason says why m has to be put out, or "".
func (m *member) lostReason() repl.OutReason {
	c := m.v.c
	switch {
	case m.failed:
		return repl.OutDiskFailed
	case m.suspect():
		return repl.OutDamaged
	case c.now < c.graceUntil:
		return "" // what the others have to say is not read yet
	case m.newRun:
		return repl.OutRestarted
	case m.node.lost(c) && m.node.refused:
		return repl.OutRefused
	case m.node.lost(c):
		return repl.OutLost
	case m.hung:
		return repl.OutHung
	case m.node.up && m.node.lostAt == 0:
		if m.overdue() && m.nospcAt == 0 {
			return repl.OutHung
		}
	}
	return ""
}

// suspect reports whether m was found damaged when the epoch was opened: a
// durable part of its log is lost and nobody knows which blocks that concerns.
// It is put out, and every object compared when it joins again. Damage that
// shows while it serves is found by reads, block by block.
func (m *member) suspect() bool {
	return m.damaged && m.ack.Damaged && !m.v.acceptTail && !m.v.c.mut.TrustDamaged
}

// retireReads asks another member for what m was asked.
func (v *volume) retireReads(m *member) {
	c := v.c
	for i := range c.slots {
		if s := c.slots[i]; (s.kind == slotRead || s.kind == slotDirect) && s.m == m && s.op.kind == opRead {
			c.dropSlot(uint32(i))
			v.readLost(s.op, m)
		}
	}
	v.retryReads()
}

// settleChange starts the transaction that the volume needs next.
func (v *volume) settleChange() {
	c := v.c
	if ch := v.change; ch != nil {
		if ch.retryAt != 0 && c.now >= ch.retryAt {
			ch.retryAt = 0
			c.readRecords()
		}
		return
	}
	if v.frozenSince == 0 && v.sick {
		c.moveNeeded(v, false)
	}
	if v.frozenSince == 0 || c.reopen.unwritten {
		return
	}
	v.keepNeeded()
	if c.state.final() {
		return
	}
	go_ := v.removable()
	if len(go_) == 0 {
		return
	}
	disks := make([]ids.ID, len(go_))
	reasons := make([]repl.OutReason, len(go_))
	for i, m := range go_ {
		disks[i], reasons[i] = m.disk, m.leaving
	}
	txn, next, err := repl.Shrink(v.rec, disks, reasons, v.shrinkBase())
	if err != nil {
		return // a segment would be empty: wait
	}
	if c.cfg.WallAtZero != 0 {
		for _, d := range disks { // the transaction shares the map
			x := next.Own.Out[d]
			x.Since = c.cfg.WallAtZero + int64(time.Duration(c.now)/time.Second)
			next.Own.Out[d] = x
		}
	}
	v.commitChange(&change{kind: changeShrink, txn: txn, next: next, members: go_})
}

func (v *volume) commitChange(ch *change) {
	c := v.c
	c.lastTxn++
	ch.id = c.lastTxn
	v.change = ch
	c.wake = true
	c.effect(Commit{ID: ch.id, Txn: ch.txn})
}

// shrinkBase is the ISR-wide flush mark; during a takeover, that of the epochs
// before.
func (v *volume) shrinkBase() repl.Mark {
	if v.c.state == Reconciling || v.c.state == Opening {
		return v.rc.from
	}
	return v.flushMark
}

// removable picks the leaving members that may be put out now. A segment is
// never emptied, never brought below min_isr but to get back to it (see mends),
// never left to copies that may have lost acked writes (see needed), and never
// brought down to one copy for lost connections while the nodes behind them live
// [S13].
func (v *volume) removable() []*member {
	c := v.c
	var out []*member
	for _, m := range v.members {
		if m.counted && m.leaving != "" && !v.isOut(m) {
			out = append(out, m)
		}
	}
	sick := false
	var kept []*member // nobody stays, and they may have it all
	for i := range v.segs {
		s := &v.segs[i]
		if s.rest() > 0 {
			continue
		}
		out = slices.DeleteFunc(out, func(m *member) bool {
			if !s.needed(m) {
				return false
			}
			kept = append(kept, m)
			sick = sick || m.sickLink()
			return true
		})
	}
	for i := range v.segs {
		s := &v.segs[i]
		rest, waits := s.rest(), countFunc(kept, s.holds)
		least := max(1, v.rec.Cfg.MinISR)
		if s.mends() {
			least = 1
		}
		for rest+waits < least || rest <= 1 && !c.moveNever && !c.mut.ShrinkToOneForLostLink {
			// Keep the last in placement order that may still come back.
			k := slices.IndexFunc(out, func(m *member) bool {
				return s.holds(m) && (rest+waits < least || m.sickLink())
			})
			if k < 0 {
				break
			}
			sick = sick || out[k].sickLink()
			out = slices.Delete(out, k, k+1)
			rest++
		}
	}
	c.moveNeeded(v, sick)
	v.tellAwaited(kept)
	return slices.DeleteFunc(out, func(m *member) bool {
		return slices.ContainsFunc(v.segs, func(s segment) bool { return s.needed(m) })
	})
}

// awaitTold is how long a copy that may have everything is waited for in silence.
const awaitTold = 5 * time.Second

// tellAwaited says once for whom the guest waits, and what ends the wait besides.
func (v *volume) tellAwaited(kept []*member) {
	if v.awaited || len(kept) == 0 || v.c.now < v.frozenSince.Add(awaitTold) {
		return
	}
	v.awaited = true
	for i, m := range kept {
		if !slices.Contains(kept[:i], m) && m.mayBeWarm() {
			v.c.report(ReportStalled, v.id, m.disk, "waits for this copy, which may have kept writes that were acknowledged and not flushed: no other is known to have them. To go on without them: `vm stop --force` and `vm start`")
		}
	}
}

// needed reports whether s may need m, which is leaving, for writes that were
// acked and not flushed: m may have kept them (a machine that is silent may have
// its cache), and nobody who stays is known to have lived when m was given up, and to
// live. Without that the others may have lost power before m fell silent, or while
// something else held the exclusion back, and what m has is nowhere else [S6].
func (s *segment) needed(m *member) bool {
	if !s.holds(m) || m.failed || m.suspect() || !m.v.unflushed(s) || m.v.c.mut.SilentGo {
		return false
	}
	c := m.v.c
	since := m.leftAt
	if since != 0 { // else it is missing at a takeover: who stays has just been opened
		since = max(since, c.now.Add(-c.t.Heartbeat-silentAfter))
	}
	return !slices.ContainsFunc(s.members, func(o *member) bool {
		return s.stays(o) && (o.usable() && o.node.answered >= since && !o.behind(s) || c.mut.TrustStaying)
	})
}

// mayBeWarm reports whether m may have everything that it acked: nothing says that it
// lost some.
func (m *member) mayBeWarm() bool {
	return !m.failed && !m.suspect() && !(m.open == opened && m.cold)
}

// behind reports whether m, in sync, may lack writes of s that a living guest was
// acked, until a takeover has given them to it.
func (m *member) behind(s *segment) bool {
	c := m.v.c
	return m.cold && c.state < Serving && c.cfg.GuestAlive && !m.v.lossless(s) && !c.mut.ColdAlone && !c.mut.AdoptCold
}

// askStaying has a heartbeat sent at once: who answers was alive when somebody else
// was given up.
func (v *volume) askStaying() {
	for _, m := range v.members {
		if m.usable() && !v.isOut(m) {
			m.node.beatAt = v.c.now
		}
	}
}

// unflushed reports whether s has writes that were acked and are not flushed, as far
// as a living guest knows.
func (v *volume) unflushed(s *segment) bool {
	if v.c.state < Serving {
		return v.c.cfg.GuestAlive && (s.dirtyWseq > v.flushMark.Wseq || !v.lossless(s))
	}
	return s.dirtyWseq > v.flushMark.Wseq
}

// sickLink reports whether m is away only by its connection while its node
// lives and does not say that its storage process is dead: the cable may be
// ours.
func (m *member) sickLink() bool {
	c := m.v.c
	lost := m.leaving == repl.OutLost || m.leaving == repl.OutRefused || m.leaving == repl.OutMissing
	return lost && c.isAlive(m.node.id) && !m.failed && !c.isBroken(m.node.id)
}

func (c *Core) moveNeeded(v *volume, sick bool) {
	v.sick = sick
	any := false
	for _, o := range c.vols {
		any = any || o.sick
	}
	if any == c.moveWanted {
		return
	}
	c.moveWanted = any
	text := "the storage link works again"
	if any {
		text = "volume " + v.id.String() + ": connections to living nodes are lost; going on would leave one copy"
	}
	c.moveNever = c.moveNever && any
	c.effect(AskMove{Over: !any, Text: text})
}

// keepNeeded looks for segments that would be left without a copy, or with fewer
// than min_isr: one that has come back with a new storage process is kept, opened
// again under the same promise [S22]. It has all that it acked, unless it is cold.
func (v *volume) keepNeeded() {
	for i := range v.segs {
		s := &v.segs[i]
		rest := countFunc(s.members, func(m *member) bool { return s.stays(m) && !m.behind(s) })
		if rest >= max(1, v.rec.Cfg.MinISR) || v.c.mut.NoSoleKeep {
			continue
		}
		all, cold := true, 0
		var warm, any *member
		for _, m := range s.members {
			if !m.counted || v.isOut(m) || s.lacks(m) {
				continue
			}
			if why := m.lostReason(); m.open != opened || why != "" && why != repl.OutRestarted || m.newRun && m.ack.Damaged && !v.acceptTail {
				all = false
				continue
			}
			if any == nil {
				any = m
			}
			if m.leaving == "" {
				continue
			}
			if m.cold && !v.c.mut.KeepColdForMinISR {
				cold++
			} else if warm == nil {
				warm = m
			}
		}
		keep := warm
		if keep == nil && rest == 0 && all && cold > 0 {
			// A disk is in or out as a whole: it must have lost nothing in any of
			// its segments, not only in this one.
			if k := v.lostBy(any); k >= 0 {
				v.c.invalid(fmt.Sprintf("volume %s, segment %d: every copy lost power with writes that were acked and not flushed", v.id, k))
				return
			}
			keep = any
		}
		if keep != nil {
			v.c.report(ReportHealth, v.id, keep.disk, "opened again under the same promise")
			keep.resume()
		}
	}
}

// lostBy returns a segment of m in which a cold m may lack acked writes, or -1.
func (v *volume) lostBy(m *member) int {
	if v.c.mut.KeepCold {
		return -1
	}
	return slices.IndexFunc(v.segs, func(s segment) bool { return s.holds(m) && v.unflushed(&s) })
}

// txnDone takes the answer to a Commit.
func (c *Core) txnDone(ev TxnDone) {
	if c.claim.txn != nil && c.claim.id == ev.ID {
		c.claimDone(ev)
		return
	}
	if c.reopen.txn != nil && c.reopen.id == ev.ID {
		c.reincDone(ev)
		return
	}
	for _, v := range c.vols {
		ch := v.change
		if ch == nil || ch.id != ev.ID {
			continue
		}
		switch ev.Outcome {
		case repl.OutcomeCommitted:
			ch.next.OwnRev = ev.Revision
			if ch.putsSeg() {
				ch.next.SegRev = ev.Revision
			}
			if ch.putsCfg() {
				ch.next.CfgRev = ev.Revision
			}
			if c.mut.SnapshotWithoutOwn && ch.kind == changeSnapshot {
				ch.next.OwnRev = v.rec.OwnRev
			}
			v.changed(ch)
		case repl.OutcomeConflict:
			c.readRecords()
		case repl.OutcomeUnknown:
			ch.retryAt = c.now.Add(txnRetry)
		}
		return
	}
}

// judgeChange settles the change under way by a fresh read.
func (v *volume) judgeChange(read repl.Records) {
	ch := v.change
	if ch == nil {
		return
	}
	rec := read.Volumes[v.index]
	if v.c.mut.SnapshotWithoutOwn && ch.kind == changeSnapshot && rec.CfgRev != v.rec.CfgRev {
		ch.next.OwnRev, ch.next.SegRev, ch.next.CfgRev = rec.OwnRev, rec.SegRev, rec.CfgRev
		v.changed(ch)
		return
	}
	switch repl.Judge(ch.txn, read) {
	case repl.Committed:
		ch.next.OwnRev, ch.next.SegRev, ch.next.CfgRev = rec.OwnRev, rec.SegRev, rec.CfgRev
		v.changed(ch)
	case repl.Superseded:
		if rec.Own.Promise() != v.promise() {
			v.c.fence(rec.Own.Promise(), wire.StaleEpoch)
			return
		}
		v.c.stop("volume " + v.id.String() + ": somebody else changed own under this writer's epoch")
	case repl.Undecided:
		// The same value under the same revision: at most one of them commits.
		v.c.effect(Commit{ID: ch.id, Txn: ch.txn})
	}
}

// changed takes a committed change into force.
func (v *volume) changed(ch *change) {
	c := v.c
	v.change = nil
	v.dirty, c.wake = true, true
	switch ch.kind {
	case changeShrink:
		for _, m := range ch.members {
			m.abortSync("put out") // while own still says what it lacks
		}
		v.rec = ch.next
		v.refill()
		for _, m := range ch.members {
			m.putOut()
			c.report(ReportHealth, v.id, m.disk, "out of the in-sync set: "+string(m.leaving))
		}
		if c.mut.ReleaseBeforeConfig {
			v.releaseOut()
		}
	case changeGrow:
		m := ch.members[0]
		v.pending = nil
		m.counted = true
		m.sync = nil
		if ch.putsSeg() { // the copies that it takes the place of leave
			v.discardMoved(v.rec.Own.Out[m.disk].Fill)
			v.layout(ch.next, c.recs.Disks)
			c.wantNodes()
		} else {
			v.rec = ch.next
			v.refill()
		}
		c.report(ReportHealth, v.id, m.disk, "in sync")
	case changeReserve:
		v.rec = ch.next
		if c.snap != nil {
			v.snapReserved(v.rec.Cfg.Snap.Next)
		}
	case changeSnapshot:
		v.rec = ch.next
		v.snap.done = true
	case changeFlatten:
		v.rec = ch.next
		v.flattened()
	case changeRollback:
		v.rec = ch.next
		v.rolledBack()
	case changeReplace:
		v.restartSync(ch.replace.New)
		// layout searches disks by halves: the new one must stand in its place.
		if !ch.replace.New.IsZero() && !slices.ContainsFunc(c.recs.Disks, func(d repl.DiskNode) bool { return d.Disk == ch.replace.New }) {
			c.recs.Disks = append(slices.Clone(c.recs.Disks), repl.DiskNode{Disk: ch.replace.New, Node: ch.replace.NewNode})
			slices.SortFunc(c.recs.Disks, func(a, b repl.DiskNode) int { return a.Disk.Compare(b.Disk) })
		}
		v.layout(ch.next, c.recs.Disks)
		c.wantNodes()
		c.effect(Replaced{Replace: ch.replace, OK: true})
	}
	v.config.serial++
	v.syncRecords()
	c.effect(RecordsKnown{Records: c.recs})
}

// restartSync begins the join of a disk anew that has just been given more
// segments: what it has listed and copied so far knows nothing of them.
func (v *volume) restartSync(disk ids.ID) {
	if i := slices.IndexFunc(v.members, func(m *member) bool { return m.disk == disk }); i >= 0 && !v.c.mut.KeepSyncOnReplace {
		v.members[i].abortSync("it was given more segments")
	}
}

// putOut counts the exclusion for the back-off of the next join.
func (m *member) putOut() {
	c := m.v.c
	m.trails = false
	if m.outLast != 0 && c.now.Sub(m.outLast) > c.t.RejoinForget {
		m.outCount = 0
	}
	m.outLast = c.now
	m.outCount++
	m.rejoinAt = c.now
	if m.outCount > 1 {
		m.rejoinAt = c.now.Add(min(c.t.RejoinBackoff<<min(m.outCount-2, 6), 60*c.t.RejoinBackoff))
	}
	if m.v.pending == m {
		m.v.pending = nil
	}
	m.abortSync("put out")
}

// syncRecords copies what is decided back to the group's records.
func (v *volume) syncRecords() {
	c := v.c
	c.recs.Volumes = slices.Clone(c.recs.Volumes)
	c.recs.Volumes[v.index] = v.rec
}

func (v *volume) toldNow() wire.Told {
	t := wire.Told{Epoch: v.epoch(), CfgVersion: v.rec.Own.CfgVersion, Complete: v.config.complete}
	for d, o := range v.rec.Own.Out {
		if !o.Partial {
			t.Out = append(t.Out, d)
		}
	}
	slices.SortFunc(t.Out, ids.ID.Compare)
	if v.pending != nil && !v.c.mut.NoPending {
		t.Pending = v.pending.disk
	}
	t.Whole = len(v.rec.Own.Out) == 0 && v.pending == nil && (!v.cloned() || v.c.mut.CloneWhole)
	t.SnapSeq, t.Snaps = max(v.snap.seq, v.rec.Cfg.Snap.Next), v.snapNumbers()
	return t
}

// settleConfig makes every in-sync member hold the configuration durably, and
// then lets go of those that are out.
func (v *volume) settleConfig() {
	c := v.c
	all := true
	for _, m := range v.members {
		if !m.counted || v.isOut(m) {
			continue
		}
		if m.told == v.config.serial && m.open == opened {
			continue
		}
		all = false
		if m.usable() && !m.telling {
			m.telling, m.tellSerial = true, v.config.serial
			id := c.newSlot(slotConfig, m, nil, uint64(v.config.serial))
			c.send(m.node, &wire.Config{ReqID: id, Handle: m.handle, Told: v.toldNow()})
		}
	}
	if all && v.change == nil {
		v.releaseOut()
	}
}

// told reports whether the configuration is durable on every in-sync member.
func (v *volume) told() bool {
	for _, m := range v.members {
		if m.counted && !v.isOut(m) && m.told != v.config.serial {
			return false
		}
	}
	return true
}

// releaseOut stops waiting for the members that are out, and durably known to
// be so (I2).
func (v *volume) releaseOut() {
	for _, m := range v.members {
		if m.counted && v.isOut(m) && m != v.pending {
			v.release(m)
			m.leaving = ""
		}
	}
}

func (c *Core) configAck(n *node, a *wire.ConfigAck) {
	s, ok := c.takeSlot(n, a.ReqID, slotConfig)
	if !ok {
		return
	}
	m := s.m
	m.telling = false
	m.v.dirty = true
	switch a.Status {
	case wire.OK:
		m.told = uint32(s.arg)
	case wire.DiskFailed:
		m.failed = true
	default:
		c.refused(m, a.Status, m.v.promise())
		m.open, m.retryAt = closed, c.now.Add(c.t.OpenRetry)
	}
}

func (v *volume) changeDeadlines(d *deadline) {
	if v.change != nil {
		d.later(v.change.retryAt)
	}
	if v.frozenSince != 0 && !v.awaited {
		d.later(v.frozenSince.Add(awaitTold))
	}
}
