package writer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// prepare is the state of PREPARE: rounds of OPEN with TRY [S9].
type prepare struct {
	on      bool
	running bool
	endAt   clock.Instant // the round ends then, answered or not
	nextAt  clock.Instant
	wait    time.Duration // how long a round may take; 0 = tryWait
	last    Prepared
	known   bool // last is of this claim attempt
	suspect bool // a replica seemed to know more than etcd: etcd is read again before we stop
	never   bool // Abort: no CAS will ever be sent
}

// tryWait bounds the first round of PREPARE. A round that could not say more for
// lack of answers makes the next one longer, for the network may be slow; but not
// as long as a reservation lasts, which must still stand when the round ends.
const (
	tryWait     = 400 * time.Millisecond
	tryWaitMost = 4 * tryWait
)

func (c *Core) readRecords() {
	if !c.reading {
		c.reading = true
		c.effect(ReadRecords{})
	}
}

func (c *Core) recordsRead(ev RecordsRead) {
	if !ev.Cached {
		c.reading = false
	}
	if len(ev.Records.Volumes) != len(c.vols) {
		c.stop("the records of a volume are missing in etcd")
		return
	}
	c.wake = true
	c.parentsRead(ev)
	if c.claim.txn != nil {
		c.judgeClaim(ev.Records)
		return
	}
	if c.reopen.txn != nil {
		c.judgeReinc(ev.Records)
		return
	}
	if c.state == Idle {
		if ev.Cached && c.haveRecs {
			return
		}
		c.recs, c.haveRecs, c.cached = ev.Records, true, ev.Cached
		for i, v := range c.vols {
			v.layout(ev.Records.Volumes[i], ev.Records.Disks)
		}
		c.wantNodes()
		return
	}
	if ev.Cached {
		return
	}
	if c.reopen.unwritten {
		c.writeInc(ev.Records)
		return
	}
	for _, v := range c.vols {
		v.judgeChange(ev.Records)
		if c.state.final() {
			return
		}
	}
}

// settlePrepare runs the rounds.
func (c *Core) settlePrepare() {
	p := &c.prep
	if !p.on || !c.haveRecs || c.reading && !(c.cached && c.reopen.on) || c.state > Claiming {
		return
	}
	if !p.running && c.now >= p.nextAt {
		if err := repl.CheckPlacement(c.recs, c.cfg.Node, c.cfg.Attempt); err != nil && !c.reopen.on {
			// Not ours to take: a round would only reserve what we must not have.
			p.on, p.known, p.last = false, false, Prepared{Text: err.Error()}
			c.effect(p.last)
			return
		}
		p.running = true
		p.wait = max(p.wait, tryWait)
		p.endAt, p.nextAt = c.now.Add(p.wait), c.now.Add(c.t.PrepareEvery)
		for _, v := range c.vols {
			for _, m := range v.members {
				m.tried = false
				c.forget(m, func(slot) {})
				m.open = closed
			}
		}
	}
	if !p.running {
		return
	}
	all := true
	for _, v := range c.vols {
		for _, m := range v.members {
			if m.tried || m.absent {
				continue
			}
			if m.open == closed && m.node.up {
				m.open = opening
				c.sendTry(m)
			}
			all = all && v.isOut(m)
		}
	}
	if !all && c.now < p.endAt {
		return
	}
	p.running = false
	c.endRound()
}

func (c *Core) prepareDeadlines(d *deadline) {
	p := &c.prep
	if !p.on || !c.haveRecs || c.state > Claiming {
		return
	}
	if p.running {
		d.later(p.endAt)
	} else {
		d.later(p.nextAt)
	}
	if c.claim.txn != nil {
		d.later(c.claim.retryAt)
	}
}

func (c *Core) sendTry(m *member) {
	p := m.v.promise()
	p.Epoch++
	p.Nonce, p.Inc, p.Node, p.Run = c.cfg.Nonce, 0, c.cfg.Node, c.cfg.Run
	id := c.newSlot(slotTry, m, nil, 0)
	flags := wire.OpenTry
	if m.v.imports(m) {
		flags |= wire.OpenImport
	}
	c.send(m.node, &wire.Open{
		ReqID: id, Flags: flags, Volume: m.v.id, Disk: m.disk, Promise: p,
		CfgVersion: m.v.rec.Own.CfgVersion, SizeBytes: m.v.rec.Cfg.SizeBytes,
	})
}

func (c *Core) tryAck(m *member, a *wire.OpenAck) {
	m.open = closed
	m.tried, m.tryAck, m.learned = true, *a, a.Promised
	if a.Status == wire.DiskFailed || a.Status == wire.BadRequest {
		m.absent = true
	}
	c.wake = true
}

// answered reports whether m took part in the last round.
func (m *member) triedOK() bool {
	if !m.tried || m.absent {
		return false
	}
	switch m.tryAck.Status {
	case wire.DiskFailed, wire.BadRequest, wire.OtherGeneration, wire.Damaged, wire.Busy:
		return false
	}
	return true
}

// over reports whether m says that the grant of the present writer is over.
func (c *Core) over(m *member) bool {
	a := &m.tryAck
	if a.Released || c.ownDead(a.Promised) {
		return true
	}
	switch a.Grant {
	case wire.GrantNone, wire.GrantLapsed, wire.GrantStalled:
	default:
		return false
	}
	own := &m.v.rec.Own
	if c.cfg.Purpose != repl.PurposeVM && own.Purpose == repl.PurposeVM {
		return a.Grant == wire.GrantNone // only a released volume [S10]
	}
	return true
}

// ownDead reports whether p was promised to a predecessor that is certainly
// gone: we hold its lock.
func (c *Core) ownDead(p repl.Promise) bool {
	return c.reopen.dead && p.Node == c.cfg.Node && p.Run == c.cfg.Run
}

// endRound judges the answers. (a) every segment has an answering in-sync
// member; (b) of each present holder, at least one in-sync member says that its
// grant is over: the writer needs all of them.
func (c *Core) endRound() {
	p := &c.prep
	if c.reopen.on {
		return
	}
	if text := c.disagreement(); text != "" {
		if p.suspect {
			c.stop(text)
			return
		}
		p.suspect, p.nextAt = true, c.now
		c.readRecords()
		return
	}
	p.suspect = false
	res := Prepared{Reachable: true, Ready: true}
	for _, v := range c.vols {
		if !v.reachable() {
			res.Reachable, res.Ready = false, false
			res.Waiting = v.missing(res.Waiting, (*member).triedOK)
		}
	}
	if !res.Reachable {
		res.Text = "waiting for a copy: " + res.Waiting[0].Disk.String()
	}
	for i, v := range c.vols {
		if !c.holderOver(i) {
			res.Live, res.Ready = true, false
			if res.Text == "" {
				res.Text = fmt.Sprintf("volume %s: its writer on node %s lives", v.id, v.rec.Own.Node)
			}
		}
	}
	for _, v := range c.vols {
		for _, m := range v.members {
			if res.Live && m.triedOK() && m.tryAck.GrantLeft > 0 && (res.Retry == 0 || m.tryAck.GrantLeft < res.Retry) {
				res.Retry = m.tryAck.GrantLeft
			}
		}
	}
	if res.Retry > 0 && res.Retry < c.t.PrepareEvery {
		p.nextAt = min(p.nextAt, c.now.Add(res.Retry))
	}
	if !res.Ready && res.Retry == 0 && c.tryLate() && !c.mut.PrepareNeverLonger {
		p.wait = min(2*p.wait, tryWaitMost)
	}
	p.last, p.known = res, true
	c.effect(res)
}

// tryLate reports whether an in-sync member over a working connection has not
// answered the round.
func (c *Core) tryLate() bool {
	for _, v := range c.vols {
		for _, m := range v.members {
			if !v.isOut(m) && !m.tried && !m.absent && m.node.up {
				return true
			}
		}
	}
	return false
}

func (v *volume) reachable() bool {
	for i := range v.segs {
		if !slices.ContainsFunc(v.segs[i].members, func(m *member) bool { return !v.isOut(m) && !v.segs[i].lacks(m) && m.triedOK() }) {
			return false
		}
	}
	return true
}

// holderOver reports whether some in-sync member of a volume of the same holder
// says that the holder's grant is over.
func (c *Core) holderOver(i int) bool {
	own := &c.vols[i].rec.Own
	if own.Epoch == 0 {
		return true
	}
	for _, v := range c.vols {
		o := &v.rec.Own
		if o.Epoch == 0 || o.Node != own.Node || o.Run != own.Run {
			continue
		}
		for _, m := range v.members {
			if !v.isOut(m) && m.triedOK() && c.over(m) {
				return true
			}
		}
	}
	return false
}

// disagreement says what a replica knows that etcd does not, or "".
func (c *Core) disagreement() string {
	for _, v := range c.vols {
		if c.mut.TrustEtcd {
			return ""
		}
		own := &v.rec.Own
		for _, m := range v.members {
			if !m.tried || m.absent {
				continue
			}
			a := &m.tryAck
			p := a.Promised
			switch {
			case p.Generation != own.Generation && p != (repl.Promise{}):
				continue // of another generation: not ours to judge; it refuses
			case p.Epoch > own.Epoch, p.Epoch == own.Epoch && own.Epoch > 0 && p.Nonce != own.Nonce, a.Told.CfgVersion > own.CfgVersion:
				return fmt.Sprintf("take volume %s: disk %s knows epoch %d, configuration %d; etcd knows epoch %d, configuration %d",
					v.id, m.disk, p.Epoch, a.Told.CfgVersion, own.Epoch, own.CfgVersion)
			}
		}
	}
	return ""
}

// claim is the takeover transaction.
type claim struct {
	arg      Claim
	txn      *repl.Txn
	next     repl.Records
	id       uint64
	retryAt  clock.Instant
	conflict bool
	activate bool
	reclaim  bool
}

func (c *Core) doClaim(arg Claim, reclaim bool) {
	cl := &c.claim
	if cl.txn != nil {
		return // its outcome is told when it is known
	}
	deny := func(text string) { c.effect(Claimed{Outcome: NotMade, Text: text}) }
	handOver := arg.ExpectEpoch != 0 && !arg.ExpectRun.IsZero()
	switch {
	case c.prep.never:
		deny("the hand-over was aborted")
		return
	case !c.haveRecs:
		deny("etcd has not answered yet")
		return
	case reclaim && c.state != Stalled || !reclaim && c.state != Idle:
		deny("not in state " + c.state.String())
		return
	case reclaim || c.mut.ClaimWithoutPrepare:
	case !c.prep.known || !c.prep.last.Ready && !(handOver && c.prep.last.Reachable):
		deny("not prepared: " + c.prep.last.Text)
		return
	}
	take := c.take(arg)
	if reclaim {
		take.Nonce = arg.Nonce
		take.ExpectRun, take.ExpectEpoch = c.cfg.Run, c.vols[0].rec.Own.Epoch
	}
	txn, next, err := repl.Takeover(c.recs, take)
	if err != nil {
		deny(err.Error())
		if errors.Is(err, errs.Fenced) { // another run owns it: this guest is history [S1]
			c.fence(c.recs.Volumes[0].Own.Promise(), wire.StaleEpoch)
			return
		}
		c.readRecords()
		return
	}
	c.lastTxn++
	*cl = claim{arg: arg, txn: &txn, next: next, id: c.lastTxn, reclaim: reclaim, activate: cl.activate || reclaim}
	if !reclaim {
		c.setState(Claiming, "")
	}
	c.effect(Commit{ID: cl.id, Txn: txn})
}

func (c *Core) take(arg Claim) repl.Take {
	t := repl.Take{
		Node: c.cfg.Node, Run: c.cfg.Run, Purpose: c.cfg.Purpose, Nonce: c.cfg.Nonce, Attempt: c.cfg.Attempt,
		ExpectRun: arg.ExpectRun, ExpectEpoch: arg.ExpectEpoch, Placement: arg.Placement,
	}
	if c.mut.AdoptWithoutRun {
		t.ExpectRun = ids.ID{}
	}
	return t
}

func (c *Core) claimDone(ev TxnDone) {
	cl := &c.claim
	switch ev.Outcome {
	case repl.OutcomeCommitted:
		for i := range cl.next.Volumes {
			cl.next.Volumes[i].OwnRev = ev.Revision
		}
		if cl.arg.Placement != nil {
			cl.next.PlacementRev = ev.Revision
		}
		c.claimMade(cl.next)
	case repl.OutcomeConflict:
		cl.conflict = true
		c.readRecords()
	case repl.OutcomeUnknown:
		c.effect(Claimed{Outcome: Unknown})
		c.readRecords()
	}
}

func (c *Core) judgeClaim(read repl.Records) {
	cl := &c.claim
	switch repl.Judge(*cl.txn, read) {
	case repl.Committed:
		for i := range cl.next.Volumes {
			r := &read.Volumes[i]
			cl.next.Volumes[i].OwnRev, cl.next.Volumes[i].CfgRev, cl.next.Volumes[i].SegRev = r.OwnRev, r.CfgRev, r.SegRev
		}
		cl.next.PlacementRev = read.PlacementRev
		c.claimMade(cl.next)
	case repl.Superseded:
		if !c.claimAgain(read) {
			c.claimLost(read, "somebody else changed own first")
		}
	case repl.Undecided:
		if cl.conflict {
			c.claimLost(read, "the placement has changed")
			return
		}
		c.effect(Commit{ID: cl.id, Txn: *cl.txn})
	}
}

// claimAgain sends the claim of a hand-over on what was read, if own still is of the
// run and epoch that it takes: its holder has changed the members after they were
// read here, as it does when a copy comes back while the guest moves. The claim that
// lost can be made no more, for own has another revision.
func (c *Core) claimAgain(read repl.Records) bool {
	cl := &c.claim
	if cl.reclaim || c.prep.never || cl.arg.ExpectEpoch == 0 || cl.arg.ExpectRun.IsZero() {
		return false
	}
	txn, next, err := repl.Takeover(read, c.take(cl.arg))
	if err != nil {
		return false // it is another's
	}
	c.recs = read
	for i, v := range c.vols {
		v.layout(read.Volumes[i], read.Disks)
	}
	c.wantNodes()
	c.lastTxn++
	cl.txn, cl.next, cl.id, cl.conflict = &txn, next, c.lastTxn, false
	c.effect(Commit{ID: cl.id, Txn: txn})
	return true
}

func (c *Core) claimMade(recs repl.Records) {
	cl := &c.claim
	cl.txn = nil
	reclaim := cl.reclaim
	for i, v := range c.vols {
		if reclaim { // our own old epoch is stalled, drained and over
			for _, m := range v.members {
				m.learned = v.promise()
			}
			c.reopen.dead = true
		}
		v.layout(recs.Volumes[i], recs.Disks)
	}
	c.recs, c.cached = recs, false
	c.prep.on = false
	c.effect(Claimed{Outcome: Made})
	c.effect(RecordsKnown{Records: recs})
	c.setState(Owned, "")
	if cl.activate {
		c.beginOpening()
	}
}

func (c *Core) claimLost(read repl.Records, text string) {
	cl := &c.claim
	cl.txn = nil
	c.effect(Claimed{Outcome: NotMade, Text: text})
	if cl.reclaim {
		c.fence(read.Volumes[0].Own.Promise(), wire.StaleEpoch)
		return
	}
	c.recs = read
	for i, v := range c.vols {
		v.layout(read.Volumes[i], read.Disks)
	}
	c.wantNodes()
	c.prep.known = false
	c.setState(Idle, text)
}
