package repl_test

import (
	"roseau/internal/base/explore"
	"roseau/internal/core/repl"
)

// badness is a property broken by a step (the others are read off a state).
type badness uint8

const (
	fine badness = iota
	staleRead
	readWithoutLease
	ackMisses
	unseated
	takeoverLost
	guestOverLoss
	versionSkipped
	releasedServes
	answeredBelowMin
	servedHalfway
	strayChanges
)

var badnesses = [...]string{
	staleRead:        "C3: a read returned what an earlier read or ack rules out",
	readWithoutLease: "I9: a read while another writer may complete writes",
	ackMisses:        "I2: an ack or a read misses a disk that etcd has not put out",
	unseated:         "I25: a writer that holds its whole lease was unseated",
	takeoverLost:     "I3: a takeover serves without a write that was acked or flushed",
	guestOverLoss:    "I21: a guest goes on over the loss of an acked write",
	versionSkipped:   "I22: a change of own that does not raise cfg_version by one",
	releasedServes:   "I24: a released epoch is opened",
	answeredBelowMin: "C1: a write or FLUSH is answered, and fewer copies than min_isr have it",
	servedHalfway:    "rollback: a guest is served before its volume is taken back",
	strayChanges:     "rollback: a writer that had the volume open when it was resolved changes own, or goes on as its holder",
}

// rules are switched off one by one, to show that the search sees each.
type rules struct {
	ackBeforeCAS, ackBeforeConfig, growWithoutCount, growFailsEarly, pendingUntold, serveBeforeOut,
	noLeaseWait, noReservation, equalEpochPasses, toldIgnored, reopenWithoutAll,
	coldForgotten, baseOfJoiner, replaceInSync, noCompare, restartForgetsGrants, sessionIgnored, releaseReopens, promiseEndsReservation,
	answerBelowMin, keepColdForMin,
	rollbackServesEarly, rollbackWithoutFlush, rollbackKeepsEpoch, rollbackUncompared bool
}

type model struct {
	world
	*memo
}

func (m model) Key(s state) state { return s.key() }

func (m model) first() state {
	var s state
	s.own = owner{rev: 1, place: m.place, out: m.out}
	if m.place == 0 {
		s.own.place = 7
	}
	s.faults, s.cuts, s.rolls = m.faults, m.cuts, m.rolls
	if m.restore {
		s.restores = 1
	}
	for r := range s.d {
		s.d[r].up = true
	}
	for i := range s.w {
		s.w[i] = writer{nonce: uint8(i) + 1, fresh: m.successor}
	}
	if m.served {
		o := &s.own
		o.epoch, o.nonce, o.cfg = 1, 1, 1
		w := &s.w[0]
		w.phase, w.guest, w.own, w.cached = serving, true, *o, *o
		w.cached.rev = 0
		w.opened, w.counted, w.told = o.isr(), o.isr(), o.isr()
		for r := range s.d {
			if d := &s.d[r]; o.isr()&bit(r) != 0 {
				d.epoch, d.nonce, d.toldEpoch, d.toldCfg, d.toldOut = 1, 1, 1, 1, o.out
				if m.leases {
					d.grant = 1
					w.lease |= bit(r)
				}
			}
		}
	}
	if m.ahead {
		s.issued, s.d[1].has, s.d[1].dur = 1, 1, 1
	}
	if m.written {
		s.issued, s.acked, s.flushed = 1, 1, 1
		for r := range s.d {
			s.d[r].has, s.d[r].dur = 1, 1
		}
	}
	if m.restore {
		s.backup = s.own
	}
	return s
}

func (m model) Next(s state, emit func(explore.Step, state)) {
	step := func(name string, a, b int, n state) {
		for i := range n.w {
			if w := &n.w[i]; w.phase == gone { // what it knew does not matter any more
				*w = writer{phase: gone, txn: w.txn, old: w.old, stray: w.stray && (w.txn.live || w.old.live)}
			}
		}
		emit(explore.Step{Name: name, A: int8(a), B: int8(b)}, n)
	}
	m.storeSteps(s, step)
	for i := range s.w {
		m.writerSteps(s, i, step)
	}
	for r := range s.d {
		if s.own.place&bit(r) != 0 || m.replacing {
			m.diskSteps(s, r, step)
		}
	}
}

type emitter func(name string, a, b int, n state)

// storeSteps: transactions arrive whenever they like, also those of the dead.
func (m model) storeSteps(s state, emit emitter) {
	for i := range s.w {
		if t := s.w[i].txn; t.live {
			n := s
			n.w[i].txn.live = false
			m.commit(&n, t, i)
			emit("etcd: transaction of writer", i, -1, n)
		}
		if t := s.w[i].old; t.live {
			n := s
			n.w[i].old.live = false
			m.commit(&n, t, i)
			emit("etcd: late transaction of the predecessor of writer", i, -1, n)
		}
	}
	m.operatorSteps(s, emit)
	if s.restores > 0 {
		if s.backup.rev != s.own.rev {
			n := s
			n.own = s.backup
			n.own.rev = s.own.rev + 1 // a restored etcd counts on, at the latest by our own writes
			n.restores, n.backup = 0, owner{}
			emit("etcd: restored from the backup", -1, -1, n)
		}
		n := s
		n.backup = s.own
		if n != s {
			emit("etcd: backup", -1, -1, n)
		}
	}
}

func (m model) commit(n *state, t change, i int) {
	if t.rev != n.own.rev && !m.rules.noCompare {
		return
	}
	if t.put.cfg != n.own.cfg+1 {
		n.bad = versionSkipped
	}
	if m.leases && t.put.nonce != n.own.nonce && n.w[i].phase == claiming {
		o := &n.w[1-i]
		if o.phase == serving && o.nonce == n.own.nonce && o.counted != 0 && o.lease&o.counted == o.counted {
			n.bad = unseated
		}
	}
	if n.w[i].stray {
		n.bad = strayChanges
	}
	n.put(t)
}

func (m model) diskSteps(s state, r int, emit emitter) {
	d := &s.d[r]
	if d.up && s.faults > 0 {
		n := s
		n.faults--
		n.d[r].up = false
		n.drop(r, true)
		emit("disk: process killed", r, -1, n)
	}
	if d.up && s.cuts > 0 {
		n := s
		n.cuts--
		e := &n.d[r]
		e.lost = e.lost || e.has != e.dur
		e.up, e.has, e.cold = false, e.dur, true
		n.drop(r, true)
		emit("disk: power cut", r, -1, n)
	}
	if !d.up {
		n := s
		n.d[r].up = true
		n.d[r].unknown = m.leases && !m.rules.restartForgetsGrants
		n.d[r].grant, n.d[r].resv, n.d[r].resvFor = 0, 0, 0
		emit("disk: starts", r, -1, n)
	}
	if !m.leases {
		return
	}
	held := uint8(0)
	for i := range s.w {
		if s.w[i].lease&bit(r) != 0 {
			held |= bit(i)
		}
	}
	// Clocks: the holder's deadline is before the disk's.
	if d.grant != 0 && held&bit(int(d.grant)-1) == 0 {
		n := s
		n.d[r].grant = 0
		emit("disk: its grant lapses", r, -1, n)
	}
	if d.unknown && held == 0 {
		n := s
		n.d[r].unknown = false
		emit("disk: has waited out the grants of its predecessor", r, -1, n)
	}
	if d.resv != 0 && s.w[d.resv-1].phase != claiming {
		n := s
		n.d[r].resv, n.d[r].resvFor = 0, 0
		emit("disk: its reservation ends", r, -1, n)
	}
}

// drop ends what writers had with disk r.
func (s *state) drop(r int, restarted bool) {
	for i := range s.w {
		w := &s.w[i]
		if w.phase != opening && w.phase != serving && w.phase != releasing {
			continue
		}
		s.lose(i, r)
		if restarted {
			w.newrun |= w.counted & bit(r)
		}
	}
}

func (s *state) lose(i, r int) {
	w := &s.w[i]
	b := bit(r)
	w.opened &^= b
	w.joining &^= b & w.own.out
	w.leaving |= w.counted & b
	if w.pend == b {
		w.barrier = false
	}
}

func (m model) writerSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	if w.phase != gone && w.phase != dead && w.phase != idle && s.faults > 0 {
		n := s
		n.faults--
		v := &n.w[i]
		if m.successor && w.fresh && w.phase >= opening && w.phase <= releasing {
			*v = writer{phase: dead, nonce: w.nonce, guest: w.guest, cached: w.cached, old: w.txn, stray: w.stray}
		} else {
			*v = writer{phase: gone, nonce: w.nonce, txn: w.txn, old: w.old, stray: w.stray}
		}
		emit("writer: crashes", i, -1, n)
	}
	switch w.phase {
	case idle:
		m.take(s, i, w.nonce, false, emit)
	case dead:
		n := s
		n.w[i].phase = succ
		n.w[i].fresh = false
		emit("writer: a successor starts", i, -1, n)
	case succ:
		m.successorSteps(s, i, emit)
	case claiming, claimed:
		m.settle(s, i, emit)
	case opening, serving, releasing:
		m.settle(s, i, emit)
		m.memberSteps(s, i, emit)
		m.changeSteps(s, i, emit)
		m.openStep(s, i, emit)
		if w.phase == serving {
			m.ioSteps(s, i, emit)
		}
		if w.phase != opening {
			m.releaseSteps(s, i, emit)
		}
	}
}

// take is PREPARE and the CAS that follows it.
func (m model) take(s state, i int, nonce uint8, expectRun bool, emit emitter) {
	if s.own.epoch >= m.epochs {
		return
	}
	c, ok := m.takeover(s.own, i, nonce, expectRun)
	if !ok {
		if s.w[i].phase == succ {
			n := s
			n.w[i].phase = gone // another run: this guest is killed
			emit("writer: fenced", i, -1, n)
		}
		return
	}
	n := s
	answers, over := uint8(0), false
	for r := range s.d {
		d := &n.d[r]
		if s.own.place&bit(r) == 0 || !d.up {
			continue
		}
		if !m.rules.toldIgnored && (d.toldCfg > s.own.cfg && d.toldEpoch >= s.own.epoch || d.epoch > s.own.epoch) {
			n = s
			n.w[i].phase = gone
			emit("writer: stops, a disk knows more than etcd", i, -1, n)
			return
		}
		if s.own.isr()&bit(r) == 0 {
			continue
		}
		answers |= bit(r)
		mine := expectRun && slotOf(d.nonce) == i // its holder is certainly gone
		if !m.leases || d.rel || mine || d.grant == 0 && !d.unknown {
			over = true
			if m.leases && !m.rules.noReservation {
				d.resv, d.resvFor = uint8(i)+1, s.own.epoch+1
			}
		}
	}
	if answers == 0 || !over {
		return // I25: nothing was touched
	}
	for r := range s.d {
		if s.own.place&bit(r) != 0 && !s.d[r].up && m.restore && s.restores == 0 {
			return // as in comes
		}
	}
	n.w[i].phase, n.w[i].nonce, n.w[i].txn, n.w[i].waits = claiming, nonce, c, true
	emit("writer: PREPARE, sends its CAS", i, -1, n)
}

// successorSteps: the same node and run; the lock proves that its predecessor is gone.
func (m model) successorSteps(s state, i int, emit emitter) {
	w := &s.w[i]
	m.take(s, i, w.nonce+slots, true, emit)
	if s.own.nonce == w.nonce {
		if inc, ok := m.reopenable(&s, i, s.own, s.own.isr()); ok {
			if c, ok := m.reincarnate(s.own, max(inc, s.own.inc)+1); ok {
				n := s
				n.w[i].phase, n.w[i].txn, n.w[i].waits = claimed, c, true
				emit("writer: reopens its epoch, by CAS", i, -1, n)
			}
		}
	}
	if !m.noEtcd {
		return
	}
	// Without etcd: its cached record, and what the members were told.
	o := w.cached
	pend := uint8(0)
	told := uint8(0)
	for r := range s.d {
		d := &s.d[r]
		if !d.up || d.toldEpoch != o.epoch || o.place&bit(r) == 0 {
			continue
		}
		if d.toldCfg > told || d.toldCfg == told && d.toldPend != 0 {
			told, pend = d.toldCfg, d.toldPend
			if told > o.cfg {
				o.cfg, o.out = told, d.toldOut
			}
		}
	}
	inc, ok := m.reopenable(&s, i, o, o.isr()|pend)
	if !ok {
		return
	}
	n := s
	v := &n.w[i]
	o.inc = inc + 1
	v.phase, v.own, v.unwritten, v.counted, v.pend = opening, o, true, o.isr()|pend, pend
	v.cached = o
	for r := range s.d {
		if m.rules.reopenWithoutAll && !s.d[r].up {
			v.counted &^= bit(r)
		}
	}
	emit("writer: reopens its epoch, without etcd", i, -1, n)
}

// reopenable: every member of the set holds a promise of this epoch.
func (m model) reopenable(s *state, i int, o owner, set uint8) (inc uint8, ok bool) {
	some := false
	for r := range s.d {
		d := &s.d[r]
		if set&bit(r) == 0 {
			continue
		}
		if m.rules.reopenWithoutAll && !d.up {
			continue
		}
		if !d.up || d.epoch != o.epoch || d.nonce != o.nonce || d.rel && !m.rules.releaseReopens {
			return 0, false
		}
		inc, some = max(inc, d.inc), true
	}
	return inc, some
}

// settle reads own and judges the transaction of unknown outcome.
func (m model) settle(s state, i int, emit emitter) {
	w := &s.w[i]
	if w.unwritten && !w.waits {
		o := s.own
		n := s
		if o.epoch != w.own.epoch || o.nonce != w.own.nonce || o.inc >= w.own.inc {
			n.w[i].phase = gone
			emit("writer: fenced", i, -1, n)
			return
		}
		if c, ok := m.reincarnate(o, w.own.inc); ok {
			n.w[i].txn, n.w[i].waits = c, true
			emit("writer: writes its inc", i, -1, n)
		}
		return
	}
	if !w.waits {
		return
	}
	n := s
	v := &n.w[i]
	switch m.judge(w.txn, s.own) {
	case repl.Committed:
		// What it takes into force is what it sent, under the revision that it read.
		v.own, v.waits, v.txn.live, v.told = w.txn.put, false, false, 0
		v.own.rev = s.own.rev
		if w.phase == claiming || w.phase == claimed {
			v.phase, v.counted, v.cached = opening, v.own.isr(), v.own
			v.cached.rev = 0
		}
		if w.unwritten {
			v.unwritten = false
			v.leaving |= v.own.isr() &^ w.counted
			v.counted |= v.own.isr()
			if v.pend&v.own.out == 0 || v.joining&v.pend == 0 {
				v.pend = 0 // the predecessor's grow: made, or begun again from the start
			}
		}
		v.joining &= v.own.out
		if v.pend&v.own.out == 0 {
			v.pend, v.barrier = 0, false
		}
	case repl.Superseded:
		v.phase = gone
	default:
		if w.txn.live {
			return
		}
		v.txn.live = true // the same again, under the same revision
	}
	emit("writer: reads own", i, -1, n)
}
