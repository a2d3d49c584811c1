package writer

import (
	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// reopen is the state of a successor on the same node: the same epoch is taken
// up with a higher inc if all in-sync members promise it [S16][S18].
type reopen struct {
	dead      bool // predecessors of this run on this node are certainly gone
	on        bool
	endAt     clock.Instant
	txn       *repl.Txn
	next      repl.Records
	id        uint64
	unwritten bool // inc is promised by the members but not in etcd yet
	same      bool // the epoch was reopened: wseq needs the gap
}

// reopenWait bounds the wait for the members' answers, after which the
// successor takes a new epoch instead.
const reopenWait = 1500e6

// learn notes a promise in force at m.
func (r *reopen) learn(m *member, p repl.Promise) { m.learned = p }

// predecessor names the promise at m that ended with its holder.
func (r *reopen) predecessor(m *member) (wire.PredecessorID, bool) {
	p, c := m.learned, m.v.c
	if !c.ownDead(p) {
		return wire.PredecessorID{}, false
	}
	return wire.PredecessorID{Epoch: p.Epoch, Nonce: p.Nonce, Inc: p.Inc}, true
}

func (c *Core) beginReopen() {
	c.reopen.dead, c.reopen.on = true, true
	c.reopen.endAt = c.now.Add(reopenWait)
	c.prep.on, c.prep.nextAt = true, c.now
}

// settleReopen looks whether every member of the union promised our run's epoch.
func (c *Core) settleReopen() {
	r := &c.reopen
	if !r.on || r.txn != nil || c.state != Idle || !c.haveRecs {
		return
	}
	for _, v := range c.vols {
		own := &v.rec.Own
		if !c.cached && !c.mut.AdoptWithoutRun && own.Epoch > 0 && (own.Run != c.cfg.Run || own.Node != c.cfg.Node) {
			c.fence(own.Promise(), wire.StaleEpoch)
			return
		}
	}
	recs, inc, ok := c.reopenable()
	if c.state.final() {
		return
	}
	if !ok {
		if c.now >= r.endAt {
			r.on = false
			c.prep.on, c.prep.known = false, false
			c.setState(Idle, "the epoch cannot be reopened: not all in-sync members answered with its promise")
		}
		return
	}
	r.same = true
	if c.cached {
		for i := range recs.Volumes {
			recs.Volumes[i].Own.Inc = inc[i]
		}
		r.unwritten = true
		c.reopened(recs)
		c.readRecords()
		return
	}
	c.commitInc(recs, inc)
}

func (c *Core) commitInc(recs repl.Records, inc []uint32) {
	r := &c.reopen
	txn, next, err := repl.Reincarnate(recs, inc)
	if err != nil {
		c.stop(err.Error())
		return
	}
	c.lastTxn++
	r.txn, r.next, r.id = &txn, next, c.lastTxn
	c.effect(Commit{ID: r.id, Txn: txn})
}

// reopenable returns the records and the new inc of each volume if all members
// of the union have our run's promise.
func (c *Core) reopenable() (repl.Records, []uint32, bool) {
	recs := c.recs
	recs.Volumes = append([]repl.VolumeRecord(nil), recs.Volumes...)
	inc := make([]uint32, len(c.vols))
	for i, v := range c.vols {
		rec := &recs.Volumes[i]
		told, ok := v.newestTold()
		if !ok {
			return recs, nil, false
		}
		if c.cached && told.CfgVersion > rec.Own.CfgVersion {
			rec.Own = rec.Own.Clone()
			rec.Own.CfgVersion = told.CfgVersion
			rec.Own.Out = make(map[ids.ID]repl.Out, len(told.Out))
			for _, d := range told.Out {
				rec.Own.Out[d] = repl.Out{Base: v.rec.Own.Out[d].Base}
			}
		}
		if c.cached {
			// Also under the same version: a snapshot that the predecessor was taking
			// is told and not recorded, and may exist by now.
			adoptSnapshots(&rec.Cfg, told)
		}
		inc[i] = rec.Own.Inc
		for _, m := range v.members {
			if _, out := rec.Own.Out[m.disk]; out && m.disk != told.Pending {
				continue
			}
			if !m.triedOK() {
				return recs, nil, false
			}
			p := m.tryAck.Promised
			if p.Epoch > rec.Own.Epoch {
				if !c.cached {
					c.prep.nextAt = c.now // our read is older: see the next round
				}
				return recs, nil, false
			}
			if p.Generation != rec.Own.Generation || p.Epoch != rec.Own.Epoch || p.Nonce != rec.Own.Nonce ||
				p.Node != c.cfg.Node || p.Run != c.cfg.Run && !c.mut.AdoptWithoutRun || m.tryAck.Released {
				return recs, nil, false
			}
			inc[i] = max(inc[i], p.Inc)
		}
		inc[i]++
	}
	return recs, inc, true
}

// newestTold is the newest configuration that an answering in-sync member holds.
func (v *volume) newestTold() (wire.Told, bool) {
	var best wire.Told
	ok := false
	for _, m := range v.members {
		if !m.triedOK() {
			continue
		}
		t := m.tryAck.Told
		if !ok || t.CfgVersion > best.CfgVersion || t.CfgVersion == best.CfgVersion && !t.Pending.IsZero() {
			best, ok = t, true
		}
	}
	return best, ok
}

func (c *Core) reincDone(ev TxnDone) {
	r := &c.reopen
	switch ev.Outcome {
	case repl.OutcomeCommitted:
		for i := range r.next.Volumes {
			r.next.Volumes[i].OwnRev = ev.Revision
		}
		c.reincMade(r.next)
	default:
		c.readRecords()
	}
}

func (c *Core) judgeReinc(read repl.Records) {
	r := &c.reopen
	switch repl.Judge(*r.txn, read) {
	case repl.Committed:
		for i := range r.next.Volumes {
			r.next.Volumes[i].OwnRev = read.Volumes[i].OwnRev
		}
		c.reincMade(r.next)
	case repl.Superseded:
		r.txn = nil
		if r.unwritten {
			c.writeInc(read)
			return
		}
		c.recs, c.cached = read, false
		for i, v := range c.vols {
			v.layout(read.Volumes[i], read.Disks)
		}
		c.prep.nextAt = c.now
	case repl.Undecided:
		c.effect(Commit{ID: r.id, Txn: *r.txn})
	}
}

// reincMade: etcd has our inc; whatever the predecessor had under way is settled.
func (c *Core) reincMade(recs repl.Records) {
	r := &c.reopen
	r.txn = nil
	if !r.unwritten {
		c.reopened(recs)
		return
	}
	r.unwritten = false
	c.recs, c.cached = recs, false
	for i, v := range c.vols {
		v.layout(recs.Volumes[i], recs.Disks)
		v.config.serial++
		for _, m := range v.members {
			if !v.isOut(m) && !m.counted {
				m.counted, m.leaving = true, repl.OutMissing
			}
		}
		v.dropStalePending()
	}
	c.wantNodes()
	c.effect(RecordsKnown{Records: recs})
	c.wake = true
}

// writeInc writes the inc that the members promised, now that etcd answers.
func (c *Core) writeInc(read repl.Records) {
	inc := make([]uint32, len(c.vols))
	for i, v := range c.vols {
		o := &read.Volumes[i].Own
		if !o.Promise().SameHolder(v.promise()) || o.Inc >= v.rec.Own.Inc {
			c.fence(o.Promise(), wire.StaleEpoch)
			return
		}
		inc[i] = v.rec.Own.Inc
	}
	c.commitInc(read, inc)
}

// reopened goes on with steps 2 to 7 of a takeover under the same epoch.
func (c *Core) reopened(recs repl.Records) {
	r := &c.reopen
	r.on = false
	c.prep.on = false
	c.recs = recs
	for i, v := range c.vols {
		v.layout(recs.Volumes[i], recs.Disks)
	}
	c.effect(RecordsKnown{Records: recs})
	pending := make([]ids.ID, len(c.vols))
	for i, v := range c.vols {
		told, _ := v.newestTold()
		pending[i] = told.Pending
	}
	c.beginOpening() // forgets the answers
	for i, v := range c.vols {
		for _, m := range v.members {
			if m.disk == pending[i] && v.isOut(m) && r.unwritten {
				m.counted = true
				v.pending = m
			}
		}
	}
}

// dropStalePending ends a grow that the predecessor had begun and that etcd
// does not know: the disk is joined again from the start.
func (v *volume) dropStalePending() {
	if m := v.pending; m != nil && m.sync == nil && v.change == nil {
		if v.isOut(m) {
			v.cancelGrow(m)
		} else {
			v.pending = nil
		}
	}
}
