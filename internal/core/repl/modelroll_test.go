package repl_test

// The rollback of a volume: the operator resolves, whoever opens the volume then takes
// it back before it serves, and says in own when that is durable. What the snapshot
// has is one write over all that were issued.

// operatorSteps: the operator believes that the VM is stopped, and resolves to take its
// volume back to a snapshot from before every write. What guests were told until then
// binds nobody any more, nor what a writer tells its guest that lives nevertheless.
func (m model) operatorSteps(s state, emit emitter) {
	if s.rolls > 0 {
		if c, ok := m.begin(s.own); ok {
			if o := s.own; m.rules.rollbackKeepsEpoch {
				c.put.epoch, c.put.nonce, c.put.inc = o.epoch, o.nonce, o.inc
			}
			n := s
			n.rolls--
			n.op = c
			emit("operator: resolves to roll back", -1, -1, n)
		}
	}
	t := s.op
	if !t.live {
		return
	}
	n := s
	n.op = change{}
	if t.rev == s.own.rev || m.rules.rollbackUncompared {
		if t.put.cfg != s.own.cfg+1 {
			n.bad = versionSkipped
		}
		n.put(t)
		n.acked, n.flushed, n.read, n.absent = 0, 0, 0, 0
		for i := range n.w {
			if p := n.w[i].phase; p != idle && p != gone {
				n.w[i].stray = true
			}
		}
	}
	emit("etcd: transaction of the operator", -1, -1, n)
}

// put stores what a transaction writes: one that does not write the configuration
// leaves it as it is.
func (s *state) put(t change) {
	rev, roll := s.own.rev+1, s.own.roll
	s.own = t.put
	s.own.rev = rev
	if !t.cfg {
		s.own.roll = roll
	}
	if roll && !s.own.roll { // over: nobody reads what was before
		s.acked, s.flushed, s.absent = s.acked|undo, s.flushed|undo, s.absent|s.under
	}
}

// halfway notes that a guest that counts was served while its volume is taken back.
func (m model) halfway(n *state, i int) {
	if n.own.roll && !m.silent(n, i) {
		n.bad = servedHalfway
	}
}

// rollSteps takes the volume back: what the snapshot has is written over what was
// written since, flushed, and then own says that it is over.
func (m model) rollSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	switch {
	case w.inflight == undo:
		m.writeSteps(s, i, emit)
	case w.inflight != 0:
	case w.undone == 0:
		n := s
		n.w[i].inflight, n.w[i].sent = undo, 0
		n.under |= s.issued
		emit("writer: takes the volume back", i, -1, n)
	case w.undone == 1 && !m.rules.rollbackWithoutFlush && w.flush == 0:
		n := s
		n.w[i].flush, n.w[i].fdone = undo, 0
		emit("writer: flushes what it took back", i, -1, n)
	case w.undone == 1 && !m.rules.rollbackWithoutFlush:
		m.fdoneSteps(s, i, emit)
		if w.fdone&w.counted == w.counted {
			n := s
			n.w[i].flush, n.w[i].fdone, n.w[i].undone = 0, 0, 2
			emit("writer: it is taken back durably", i, -1, n)
		}
	case !w.waits && !w.unwritten && w.leaving == 0:
		if c, ok := m.end(w.own); ok {
			n := s
			n.w[i].txn, n.w[i].waits = c, true
			emit("writer: sends the end of the rollback", i, -1, n)
		}
	}
}

// shows are the writes that a read of disk r returns, undo among them.
func (s *state) shows(r int) uint8 {
	has := s.d[r].has
	if has&undo != 0 {
		has &^= s.under
	}
	return has
}
