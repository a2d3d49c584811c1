package repl_test

import "math/bits"

// holds reports whether disk r still answers to writer i.
func (s *state) holds(i, r int) bool {
	w, d := &s.w[i], &s.d[r]
	return d.up && w.opened&bit(r) != 0 && d.epoch == w.own.epoch && d.nonce == w.nonce && d.inc == w.own.inc && !d.rel
}

// leased: without the lease in the model, the promises of all counted disks stand for it.
func (m model) leased(s *state, i int) bool {
	w := &s.w[i]
	if m.leases {
		return w.counted != 0 && w.lease&w.counted == w.counted
	}
	for r := range s.d {
		if w.counted&bit(r) != 0 && !s.holds(i, r) {
			return false
		}
	}
	return w.counted != 0
}

// comes: after a restore of etcd only who remembers can veto, so all that may
// come are waited for.
func (m model) comes(s *state, set uint8) bool {
	if !m.restore || s.restores > 0 {
		return false
	}
	for r := range s.d {
		if set&bit(r) != 0 && s.d[r].up {
			return true
		}
	}
	return false
}

func (m model) memberSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if away := w.counted &^ w.opened &^ w.leaving &^ w.own.out; w.phase == opening && away != 0 && w.counted&w.opened != 0 && !m.comes(&s, away) {
		n := s // the one waiting rule: who does not come is missing
		n.w[i].leaving |= away
		emit("writer: goes on without the missing", i, -1, n)
	}
	for r := range s.d {
		b, d := bit(r), &s.d[r]
		if w.own.place&b == 0 {
			continue
		}
		if m.leases && w.lease&b != 0 {
			n := s
			n.w[i].lease &^= b
			emit("writer: the grant lapses at it", i, r, n)
		}
		if w.counted&b != 0 && w.opened&b != 0 && w.leaving&b == 0 && w.own.out&b == 0 && s.faults > 0 {
			n := s
			n.faults--
			n.lose(i, r)
			emit("writer: loses a disk", i, r, n)
		}
		if d.up && w.opened&b == 0 {
			m.openDisk(s, i, r, emit)
		}
		if m.leases && s.holds(i, r) && w.lease&b == 0 && (d.resv == 0 || d.resv == uint8(i)+1) {
			n := s
			n.w[i].lease |= b
			n.d[r].grant = uint8(i) + 1
			emit("writer: renews its grant", i, r, n)
		}
		if s.holds(i, r) && !w.waits && !w.unwritten && w.told&b == 0 && w.own.out&b == 0 {
			n := s
			e := &n.d[r]
			e.toldEpoch, e.toldCfg, e.toldOut, e.toldPend = w.own.epoch, w.own.cfg, w.own.out, w.pend
			if m.rules.pendingUntold {
				e.toldPend = 0
			}
			n.w[i].told |= b
			emit("writer: CONFIG", i, r, n)
		}
	}
}

// openDisk asks for the promise, or takes a silent disk back.
func (m model) openDisk(s state, i, r int, emit emitter) {
	w, d := &s.w[i], &s.d[r]
	b := bit(r)
	o := w.own
	o.nonce = w.nonce
	same := d.epoch == o.epoch && d.nonce == o.nonce && d.inc == o.inc
	if d.rel && d.epoch == o.epoch && d.nonce == o.nonce && !m.rules.releaseReopens {
		return
	}
	if !takes(d, o) && !(m.rules.equalEpochPasses && d.epoch == o.epoch) {
		return
	}
	if m.leases && !same && !m.rules.noLeaseWait {
		mine := slotOf(d.nonce) == i && d.epoch != 0 // PREDECESSOR_DEAD
		if !mine && (d.grant != 0 || d.unknown) {
			return
		}
	}
	if !m.rules.toldIgnored && d.toldCfg > o.cfg && d.toldEpoch >= o.epoch && !w.unwritten {
		n := s
		n.w[i].phase = gone
		emit("writer: stops, a disk knows more than etcd", i, r, n)
		return
	}
	n := s
	v, e := &n.w[i], &n.d[r]
	if w.newrun&b != 0 {
		// Another process: it goes out, unless all that are left are such.
		needed := m.min > 0 && bits.OnesCount8(w.counted&^w.leaving&^w.own.out) < int(m.min)
		if w.phase == serving && needed && w.own.out&b == 0 && !w.waits && (!d.cold || m.rules.keepColdForMin) {
			v.newrun &^= b
			v.sent &^= b
			v.fdone &^= b
			v.leaving &^= b
			v.opened |= b
			emit("writer: keeps a restarted disk for min_isr", i, r, n)
			return
		}
		if w.phase != serving || w.counted&^w.newrun != 0 || w.own.out&b != 0 {
			if m.rules.sessionIgnored && w.phase == serving {
				v.leaving &^= b
				v.newrun &^= b
				v.opened |= b
				emit("writer: takes a restarted disk back", i, r, n)
			}
			return
		}
		if e.cold && !m.rules.coldForgotten {
			for x := range s.d { // a warm one is waited for
				if w.counted&bit(x) != 0 && !s.d[x].cold {
					return
				}
			}
			v.phase = gone
			emit("writer: every copy lost power: its guest is killed", i, r, n)
			return
		}
		v.newrun &^= b
		v.sent &^= b
		v.fdone &^= b
	}
	if !same {
		if slotOf(e.nonce) != slotOf(o.nonce) || m.rules.coldForgotten {
			e.cold = false // recorded anew for another run
		}
		e.epoch, e.nonce, e.inc, e.rel, e.grant = o.epoch, o.nonce, o.inc, false, 0
		if o.epoch >= e.resvFor || m.rules.promiseEndsReservation {
			e.resv, e.resvFor = 0, 0
		}
		for x := range n.w { // its handles end
			if x != i {
				n.w[x].opened &^= b
			}
		}
	}
	v.opened |= b
	v.leaving &^= b
	if d.rel && d.epoch == o.epoch && d.nonce == o.nonce {
		n.bad = releasedServes
	}
	emit("writer: OPEN, promised", i, r, n)
}

func (m model) changeSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	isr := w.own.isr()
	if out := w.counted & w.own.out &^ w.pend; out != 0 && !w.waits && (w.told&isr == isr || m.rules.ackBeforeConfig) {
		n := s // CONFIG is durable on the rest: its answers are not needed any more
		v := &n.w[i]
		v.counted &^= out
		v.leaving &^= out
		v.newrun &^= out
		emit("writer: counts no more what is out", i, -1, n)
	}
	if w.waits && w.phase == serving && m.rules.growFailsEarly && w.pend != 0 && w.txn.put.out&w.pend == 0 {
		n := s
		v := &n.w[i]
		v.counted &^= w.pend
		emit("writer: takes the unknown grow for failed", i, -1, n)
	}
	if w.waits || w.unwritten || w.phase == releasing {
		return
	}
	if go_ := w.leaving &^ w.own.out; go_ != 0 {
		if w.newrun&w.counted == w.counted {
			return // kept: one of them is opened again
		}
		name := "writer: sends a shrink"
		if m.min > 0 && bits.OnesCount8(w.own.isr()&^go_) < int(m.min) {
			if m.mends(&s, i, go_) {
				name = "writer: sends a shrink below min_isr"
			}
			for name == "writer: sends a shrink" && go_ != 0 && bits.OnesCount8(w.own.isr()&^go_) < int(m.min) {
				go_ &= go_ - 1 // it waits for one of them
			}
			if go_ == 0 {
				return
			}
		}
		if c, ok := m.shrink(w.own, go_); ok {
			n := s
			v := &n.w[i]
			v.txn, v.waits, v.pend, v.barrier = c, true, w.pend&^go_, w.barrier && w.pend&go_ == 0
			v.joining &^= go_
			emit(name, i, -1, n)
		}
	}
	if w.phase != serving {
		return
	}
	for r := range s.d {
		b := bit(r)
		if w.own.place&b != 0 && w.own.out&b != 0 && s.holds(i, r) && w.pend&^b == 0 {
			m.growSteps(s, i, r, emit)
		}
		if m.replacing && s.swaps < 2 && w.own.place&b != 0 && w.own.out&b != 0 && w.counted&b == 0 && w.pend == 0 {
			for x := range s.d {
				if s.own.place&bit(x) != 0 {
					continue
				}
				if c, ok := m.replace(w.own, r, x); ok {
					if m.rules.replaceInSync {
						c.put.out &^= bit(x)
					}
					n := s
					n.swaps++
					n.w[i].txn, n.w[i].waits = c, true
					n.w[i].joining &^= b
					emit("writer: sends a replacement", i, x, n)
				}
			}
		}
	}
}

// mends: all that stay answer, and a copy is there to be brought up to date.
func (m model) mends(s *state, i int, leaving uint8) bool {
	w := &s.w[i]
	there := false
	for r := range s.d {
		switch b := bit(r); {
		case w.own.place&b == 0:
		case w.own.isr()&^leaving&b != 0:
			if !s.holds(i, r) {
				return false
			}
		case s.d[r].up && (w.own.out|w.newrun)&b != 0:
			there = true
		}
	}
	return there
}

// answers reports whether writer i may answer writes and FLUSHes.
func (m model) answers(i int, s *state) bool {
	return !m.short(s.w[i].own) || m.rules.answerBelowMin
}

// tooFew: what is answered now is on fewer copies than min_isr.
func (m model) tooFew(w *writer) bool {
	return m.min > 0 && bits.OnesCount8(w.counted) < int(m.min)
}

func (m model) growSteps(s state, i, r int, emit emitter) {
	w, d := &s.w[i], &s.d[r]
	b := bit(r)
	n := s
	v, e := &n.w[i], &n.d[r]
	switch {
	case w.joining&b == 0:
		// Resync: equal to a source, but for what is under way, which it gets too.
		for x := range s.d {
			if w.own.isr()&bit(x) == 0 || !s.holds(i, x) || w.counted&bit(x) == 0 || w.inflight != 0 && w.sent&bit(x) == 0 {
				continue
			}
			keep := uint8(0)
			if m.rules.baseOfJoiner {
				keep = d.has & d.dur
			}
			e.has = s.d[x].has | keep
			e.dur = e.has & d.dur
			e.lost, e.cold = false, false
			v.joining |= b
			v.leaving &^= b
			v.newrun &^= b
			v.sent &^= b
			if w.inflight != 0 && e.has&w.inflight != 0 {
				v.sent |= b
			}
			emit("writer: resyncs", i, r, n)
			break
		}
	case w.pend == 0:
		v.pend = b
		if !m.rules.growWithoutCount {
			v.counted |= b
			v.told = 0 // CONFIG{pending} on all
		}
		emit("writer: grow 1, it counts", i, r, n)
	case !w.barrier && w.told&w.own.isr() == w.own.isr():
		// What was answered before it counted may still be under way to it.
		if e.has |= s.acked; w.undone > 0 {
			e.has |= undo
		}
		e.dur = e.has
		v.barrier = true
		emit("writer: grow 2, barrier", i, r, n)
	case w.barrier:
		if c, ok := m.grow(w.own, r); ok {
			v.txn, v.waits = c, true
			emit("writer: grow 3, sends the CAS", i, r, n)
		}
	}
}

// openStep ends a takeover: reconcile, FLUSH, COMPLETE.
func (m model) openStep(s state, i int, emit emitter) {
	w := &s.w[i]
	isr := w.own.isr()
	if w.phase != opening {
		return
	}
	need := isr | w.pend
	ready := !w.waits && w.counted == need && w.leaving == 0 && w.told&isr == isr
	if w.unwritten {
		ready = (w.counted == need || m.rules.reopenWithoutAll) && w.leaving == 0
	}
	members := w.counted
	if m.rules.serveBeforeOut {
		members = w.counted & w.opened
		ready = members != 0 && !w.waits
	}
	warm, true_, has := false, false, uint8(0)
	for r := range s.d {
		d := &s.d[r]
		if members&bit(r) == 0 {
			continue
		}
		if !s.holds(i, r) {
			return
		}
		has |= d.has
		warm = warm || !d.cold
		true_ = true_ || !d.lost
	}
	if !ready || members == 0 {
		return
	}
	n := s
	v := &n.w[i]
	if w.guest && !warm && !m.rules.coldForgotten {
		v.phase = gone
		emit("writer: every copy lost power: its guest is killed", i, -1, n)
		return
	}
	must := s.acked | s.read
	switch {
	case s.flushed&^has != 0, must&^has != 0 && !w.guest && true_:
		n.bad = takeoverLost
	case must&^has != 0 && w.guest:
		n.bad = guestOverLoss
	case must&^has != 0: // a power loss of every copy is one of the guest
		n.acked &= has
		n.read &= has
	}
	for r := range n.d {
		if members&bit(r) != 0 {
			d := &n.d[r]
			d.has, d.dur, d.lost = has, has, false
			if warm {
				d.cold = false // COMPLETE
			}
		}
	}
	v.phase, v.guest = serving, true
	n.served = max(n.served, w.own.epoch)
	emit("writer: reconciles, serves", i, -1, n)
}

// missed says whether what writer i answers misses a disk that is in by etcd.
func (m model) missed(s *state, i int) bool {
	if m.restore && s.restores == 0 {
		return false // etcd has forgotten it
	}
	return s.own.nonce == s.w[i].nonce && s.own.isr()&^s.w[i].counted != 0
}

func (m model) ioSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if w.own.roll && (!m.rules.rollbackServesEarly || w.inflight&undo != 0) {
		m.rollSteps(s, i, emit)
		return
	}
	if m.rules.rollbackServesEarly && w.own.roll && w.inflight == 0 {
		m.rollSteps(s, i, emit)
	}
	if w.inflight == 0 && s.issued < bit(int(m.writes))-1 {
		n := s
		n.w[i].inflight, n.w[i].sent = s.issued+1, 0
		n.issued = s.issued<<1 | 1
		emit("writer: gets a write", i, -1, n)
	}
	if w.inflight != 0 {
		m.writeSteps(s, i, emit)
	}
	m.readSteps(s, i, emit)
	if !m.flush {
		return
	}
	m.flushSteps(s, i, emit)
}

func (m model) flushSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if w.flush == 0 && s.acked&^s.flushed != 0 && w.inflight == 0 {
		n := s
		n.w[i].flush, n.w[i].fdone = s.acked, 0
		emit("writer: gets a FLUSH", i, -1, n)
	}
	if w.flush == 0 {
		return
	}
	m.fdoneSteps(s, i, emit)
	if w.fdone&w.counted == w.counted && m.answers(i, &s) {
		n := s
		if !m.silent(&s, i) {
			n.flushed |= w.flush
		}
		n.w[i].flush, n.w[i].fdone = 0, 0
		if m.missed(&s, i) {
			n.bad = ackMisses
		} else if m.tooFew(w) {
			n.bad = answeredBelowMin
		}
		m.halfway(&n, i)
		emit("writer: replies to the FLUSH", i, -1, n)
	}
}

func (m model) fdoneSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	for r := range s.d {
		if b := bit(r); w.counted&b != 0 && w.fdone&b == 0 && s.holds(i, r) {
			n := s
			n.d[r].dur |= s.d[r].has
			n.w[i].fdone |= b
			emit("writer: FLUSH answered", i, r, n)
		}
	}
}

func (m model) writeSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	for r := range s.d {
		if b := bit(r); (w.counted|w.joining)&b != 0 && w.sent&b == 0 && s.holds(i, r) {
			n := s
			n.d[r].has |= w.inflight
			n.w[i].sent |= b
			emit("writer: WRITE taken", i, r, n)
		}
	}
	need := w.counted
	if m.rules.ackBeforeCAS {
		need &^= w.leaving
	}
	if need == 0 || w.sent&need != need || !m.answers(i, &s) {
		return
	}
	n := s
	if need&(need-1) == 0 { // C7: a lone copy is written through
		for r := range n.d {
			if need == bit(r) {
				if !s.holds(i, r) {
					return
				}
				n.d[r].dur |= n.d[r].has
			}
		}
		if w.inflight != undo {
			n.flushed |= w.inflight
		}
	}
	if w.inflight == undo {
		n.w[i].inflight, n.w[i].sent, n.w[i].undone = 0, 0, 1
		emit("writer: every disk has what it took back", i, -1, n)
		return
	}
	if !m.silent(&s, i) {
		n.acked |= w.inflight
	} else {
		n.flushed = s.flushed
	}
	n.w[i].inflight, n.w[i].sent = 0, 0
	if m.missed(&s, i) {
		n.bad = ackMisses
	} else if m.tooFew(w) {
		n.bad = answeredBelowMin
	}
	m.halfway(&n, i)
	emit("writer: replies to the write", i, -1, n)
}

// silent: a writer of a higher epoch has served, so the guest of this one is silent and
// will be killed (H1): what it is told binds nobody.
func (m model) silent(s *state, i int) bool {
	return s.served > s.w[i].own.epoch || s.w[i].stray
}

func (m model) readSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if !m.leased(&s, i) {
		return
	}
	for r := range s.d {
		b := bit(r)
		if w.counted&b == 0 || w.own.out&b != 0 || w.leaving&b != 0 || !s.holds(i, r) {
			continue
		}
		has := s.shows(r) &^ w.inflight // a read waits for what it overlaps
		miss := s.issued &^ has &^ w.inflight
		for x := range s.w {
			miss &^= s.w[x].inflight
		}
		n := s
		if !w.stray {
			n.read |= has
			n.absent |= miss
		}
		switch {
		case w.stray:
			if m.other(&s, i) {
				n.bad = readWithoutLease
			}
		case miss&(s.acked|s.read) != 0, has&s.absent != 0:
			n.bad = staleRead
		case m.other(&s, i):
			n.bad = readWithoutLease
		case m.missed(&s, i):
			n.bad = ackMisses
		}
		m.halfway(&n, i)
		if n != s {
			emit("writer: reads", i, r, n)
		}
	}
}

// other reports whether another writer can complete writes.
func (m model) other(s *state, i int) bool {
	for x := range s.w {
		if x != i && s.w[x].phase == serving && s.completes(x) {
			return true
		}
	}
	return false
}

// completes: every disk that its ack needs still answers to writer i.
func (s *state) completes(i int) bool {
	w := &s.w[i]
	for r := range s.d {
		if w.counted&bit(r) != 0 && !s.holds(i, r) {
			return false
		}
	}
	return w.counted != 0
}

// releaseSteps: drained and flushed everywhere, then final at each disk.
func (m model) releaseSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if !m.release {
		return
	}
	if w.phase == serving {
		if w.inflight == 0 && w.flush == 0 && !w.waits && w.leaving == 0 && s.acked&^s.flushed == 0 {
			n := s
			n.w[i].phase = releasing
			emit("writer: drained, releases", i, -1, n)
		}
		return
	}
	done := true
	for r := range s.d {
		b, d := bit(r), &s.d[r]
		if w.counted&b == 0 {
			continue
		}
		if d.epoch == w.own.epoch && d.nonce == w.nonce && d.rel {
			continue
		}
		done = false
		if s.holds(i, r) {
			n := s
			n.d[r].rel, n.d[r].grant = true, 0
			n.w[i].lease &^= b
			emit("writer: RELEASE", i, r, n)
		}
	}
	if done {
		n := s
		n.w[i].phase = gone
		emit("writer: released", i, -1, n)
	}
}

// Broken judges a state.
func (m model) Broken(s state) string {
	if s.bad != fine {
		return badnesses[s.bad]
	}
	if s.w[0].phase == serving && s.w[1].phase == serving && s.completes(0) && s.completes(1) {
		return "I1: two writers can complete writes"
	}
	forgot := m.restore && s.restores == 0
	for r := range s.d {
		d := &s.d[r]
		if !forgot && s.own.epoch >= d.toldEpoch && d.toldCfg > s.own.cfg {
			return "I22: a disk knows a cfg_version that etcd does not"
		}
		if d.dur&^d.has != 0 {
			return "model: more is durable than is there"
		}
	}
	if forgot {
		return ""
	}
	if text := s.incomplete(s.own.isr()); text != "" {
		return text
	}
	for i := range s.w { // and every set that may yet come true
		for _, t := range []change{s.w[i].txn, s.w[i].old} {
			if t.live && t.rev == s.own.rev {
				if text := s.incomplete(t.put.isr()); text != "" {
					return text
				}
			}
		}
	}
	return ""
}

// incomplete is I3 and I11 for a set.
func (s *state) incomplete(set uint8) string {
	for r := range s.d {
		d := &s.d[r]
		switch {
		case set&bit(r) == 0:
		case s.flushed&^d.dur != 0:
			return "I3: a member of the in-sync set has a flushed write not on stable media"
		case (s.acked|s.read)&^d.has != 0 && !d.lost:
			return "I3: a member of the in-sync set lacks a write that was acked or read"
		case s.absent&s.shows(r) != 0:
			return "I11: a member of the in-sync set has what a read ruled out"
		}
	}
	return ""
}
