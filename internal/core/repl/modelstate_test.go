package repl_test

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// The model of one volume. Two nodes (slots) may each have a writer, and each
// writer one successor; up to four disks, three of them in the placement. All
// writes go to blocks of their own, so a copy is a mask of the writes that it
// has. What is production's own: the transitions of own, Judge, and the rule by
// which a disk takes a promise. The rest of writer and replica is its rules in a
// few lines each; see docs/design/model.md.

const (
	slots = 2
	disks = 4
)

// owner is `own` in etcd. The sets are masks of disks.
type owner struct {
	epoch, nonce, inc, cfg uint8
	out, place             uint8
	rev                    uint8
	roll                   bool // the volume is being taken back to a snapshot
}

func (o owner) isr() uint8   { return o.place &^ o.out }
func (o owner) slot() int    { return slotOf(o.nonce) }
func slotOf(nonce uint8) int { return int(nonce+1) % slots } // nonces: 1, 3, .. slot 0; 2, 4, .. slot 1

// change is a transaction: it commits at any time, or never, and only if its
// revision is still the record's.
type change struct {
	live bool
	cfg  bool // it writes the configuration, too
	rev  uint8
	put  owner
}

// undo is the rollback's write. It goes over every write that was issued before it.
const undo = 0x80

type phase uint8

const (
	idle phase = iota
	claiming
	opening
	serving
	releasing
	dead    // crashed: a successor may come
	succ    // a successor that has not decided yet
	claimed // its Reincarnate is under way
	gone    // fenced, invalid, released or stopped: for good
)

type writer struct {
	phase     phase
	nonce     uint8
	guest     bool // the guest of its run lives: its memory knows what was acked
	fresh     bool // no successor was used yet
	unwritten bool // inc is promised by the members, not in etcd
	own       owner
	cached    owner  // as its node keeps it for a successor without etcd
	txn, old  change // its own, and its predecessor's
	waits     bool   // the outcome of txn is not known to it
	opened    uint8  // disks that promised, and nothing broke since
	counted   uint8  // their answers are needed
	leaving   uint8  // must go, or come back
	newrun    uint8  // of those: their process is another one
	told      uint8  // hold own.cfg durably
	joining   uint8  // complete but for live writes, which they get
	pend      uint8  // of the grow under way
	barrier   bool   // of that grow
	lease     uint8
	inflight  uint8 // a write
	sent      uint8 // disks that answered it
	flush     uint8 // the writes that the flush under way stands for
	fdone     uint8
	undone    uint8 // 1: undo is on every counted disk, 2: durably
	stray     bool  // it had the volume open when the rollback was resolved
}

type replica struct {
	epoch, nonce, inc  uint8 // the promise
	rel                bool
	up, unknown        bool
	cold               bool // as it tells the run in force
	lost               bool // in truth: it lost what it had not flushed, and is not complete since
	has, dur           uint8
	toldEpoch, toldCfg uint8
	toldOut, toldPend  uint8
	grant, resv        uint8 // 1 + slot
	resvFor            uint8 // the epoch that PREPARE named
}

type state struct {
	own, backup            owner
	w                      [slots]writer
	d                      [disks]replica
	issued, acked, flushed uint8
	read, absent           uint8  // writes that a read returned; or did not return
	served                 uint8  // the highest epoch that has served
	swaps                  uint8  // disks replaced
	op                     change // the operator's
	under                  uint8  // writes that undo goes over
	rolls                  uint8  // left
	faults, cuts, restores uint8  // left
	bad                    badness
}

// world is a scenario: how it starts, what may happen, how often.
type world struct {
	name               string
	place, out         uint8 // masks; place 0 = disks 0 to 2
	served             bool  // it begins with writer 0 serving
	ahead              bool  // disk 1 has flushed a write that nobody else has
	faults, cuts       uint8 // crashes and lost connections; power cuts of a disk
	writes, epochs     uint8
	flush, leases      bool
	successor, noEtcd  bool
	replacing, restore bool
	release            bool
	rolls              uint8 // rollbacks
	written            bool  // a write is flushed on every disk
	min                uint8 // min_isr; 0 = 1
	rules              rules
}

func id(n uint8) ids.ID { return ids.ID{0: 1, 15: n + 1} }

func bit(r int) uint8 { return 1 << r }

func (o owner) record() repl.VolumeRecord {
	v := repl.VolumeRecord{ID: id(90), OwnRev: int64(o.rev), SegRev: int64(o.rev), Cfg: repl.Cfg{State: repl.VolumeLive, Copies: 3}}
	var row []uint16
	for r := range disks {
		if o.place&bit(r) != 0 {
			row = append(row, uint16(len(v.Seg.Disks)))
			v.Seg.Disks = append(v.Seg.Disks, id(uint8(r)))
		}
	}
	v.Seg.Map = [][]uint16{row}
	v.Cfg.Snap = repl.SnapContext{Next: 1, List: []repl.Snapshot{{Number: 1}}}
	if o.roll {
		v.Cfg.Rollback = 1
	}
	v.Own = repl.Own{Generation: repl.Generation{Cluster: 1, Volume: 1}, Epoch: uint64(o.epoch), Inc: uint32(o.inc), CfgVersion: uint32(o.cfg)}
	if o.nonce != 0 {
		v.Own.Nonce, v.Own.Node, v.Own.Run = id(20+o.nonce), id(40+uint8(o.slot())), id(60+uint8(o.slot()))
	}
	for r := range disks {
		if o.out&bit(r) != 0 {
			if v.Own.Out == nil {
				v.Own.Out = map[ids.ID]repl.Out{}
			}
			v.Own.Out[id(uint8(r))] = repl.Out{}
		}
	}
	return v
}

// decide turns a transition of production into one of the model.
func decide(from owner, txn repl.Txn, next repl.VolumeRecord, err error) (change, bool) {
	if err != nil {
		return change{}, false
	}
	if txn.Compares[0] != (repl.Compare{Key: repl.Key{Kind: repl.KeyOwn, ID: id(90)}, Rev: int64(from.rev)}) {
		panic("a transaction that does not compare own's revision")
	}
	o := next.Own
	p := owner{epoch: uint8(o.Epoch), inc: uint8(o.Inc), cfg: uint8(o.CfgVersion), roll: next.Cfg.Rollback != 0}
	if !o.Nonce.IsZero() {
		p.nonce = o.Nonce[15] - 21
	}
	for r := range disks {
		if slices.Contains(next.Seg.Disks, id(uint8(r))) {
			p.place |= bit(r)
		}
		if _, out := o.Out[id(uint8(r))]; out {
			p.out |= bit(r)
		}
	}
	cfg := slices.ContainsFunc(txn.Puts, func(p repl.Put) bool { return p.Cfg != nil })
	return change{live: true, cfg: cfg, rev: uint8(txn.Compares[0].Rev), put: p}, true
}

// Transitions are pure, so their results can be kept.
type transition struct {
	kind uint8
	own  owner
	a, b uint8
}

type outcome struct {
	c  change
	ok bool
}

type memo struct {
	changes  map[transition]outcome
	verdicts map[[2]owner]repl.Verdict
	shorts   map[owner]bool
}

// short asks production whether fewer copies are in sync than min_isr.
func (m model) short(o owner) bool {
	if m.min == 0 {
		return false
	}
	k := owner{out: o.out, place: o.place}
	is, known := m.shorts[k]
	if !known {
		v := k.record()
		v.Cfg.MinISR = int(m.min)
		is = v.Short()
		m.shorts[k] = is
	}
	return is
}

func (m *memo) do(kind uint8, o owner, a, b uint8, f func(repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error)) (change, bool) {
	k := transition{kind, o, a, b}
	if r, ok := m.changes[k]; ok {
		return r.c, r.ok
	}
	txn, next, err := f(o.record())
	var r outcome
	r.c, r.ok = decide(o, txn, next, err)
	m.changes[k] = r
	return r.c, r.ok
}

func (m *memo) takeover(o owner, slot int, nonce uint8, expectRun bool) (change, bool) {
	e := uint8(0)
	if expectRun {
		e = 1
	}
	return m.do(1, o, nonce, e, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		t := repl.Take{Node: id(40 + uint8(slot)), Run: id(60 + uint8(slot)), Nonce: id(20 + nonce)}
		if expectRun {
			t.ExpectRun = t.Run
		}
		txn, next, err := repl.Takeover(repl.Records{Volumes: []repl.VolumeRecord{v}}, t)
		return txn, next.Volumes[0], err
	})
}

func (m *memo) reincarnate(o owner, inc uint8) (change, bool) {
	return m.do(2, o, inc, 0, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		txn, next, err := repl.Reincarnate(repl.Records{Volumes: []repl.VolumeRecord{v}}, []uint32{uint32(inc)})
		return txn, next.Volumes[0], err
	})
}

func (m *memo) shrink(o owner, mask uint8) (change, bool) {
	return m.do(3, o, mask, 0, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		var d []ids.ID
		var why []repl.OutReason
		for r := range disks {
			if mask&bit(r) != 0 {
				d, why = append(d, id(uint8(r))), append(why, repl.OutLost)
			}
		}
		return repl.Shrink(v, d, why, repl.Mark{})
	})
}

func (m *memo) grow(o owner, r int) (change, bool) {
	return m.do(4, o, uint8(r), 0, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		return repl.Grow(v, id(uint8(r)))
	})
}

func (m *memo) replace(o owner, old, r int) (change, bool) {
	return m.do(5, o, uint8(old), uint8(r), func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		return repl.MoveCopies(v, repl.Move{Old: id(uint8(old)), New: id(uint8(r))})
	})
}

// begin is the operator's resolution to take the volume back, end the writer's word
// that it is done.
func (m *memo) begin(o owner) (change, bool) {
	return m.do(6, o, 0, 0, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		txn, err := repl.BeginRollback(repl.Records{Volumes: []repl.VolumeRecord{v}}, []uint32{1})
		for _, p := range txn.Puts {
			if p.Own != nil {
				v.Own = *p.Own
			} else if p.Cfg != nil {
				v.Cfg = *p.Cfg
			}
		}
		return txn, v, err
	})
}

func (m *memo) end(o owner) (change, bool) {
	return m.do(7, o, 0, 0, func(v repl.VolumeRecord) (repl.Txn, repl.VolumeRecord, error) {
		txn, next := repl.EndRollback(v)
		return txn, next, nil
	})
}

// judge asks production what a fresh read says of a transaction.
func (m *memo) judge(c change, read owner) repl.Verdict {
	want := c.put
	want.rev = c.rev // what is compared
	k := [2]owner{want, read}
	if v, ok := m.verdicts[k]; ok {
		return v
	}
	put := c.put.record().Own
	key := repl.Key{Kind: repl.KeyOwn, ID: id(90)}
	txn := repl.Txn{Compares: []repl.Compare{{Key: key, Rev: int64(c.rev)}}, Puts: []repl.Put{{Key: key, Own: &put}}}
	v := repl.Judge(txn, repl.Records{Volumes: []repl.VolumeRecord{read.record()}})
	m.verdicts[k] = v
	return v
}

// takes is production's rule by which a disk takes a promise.
func takes(d *replica, o owner) bool {
	return disk.CheckPromise(promise(d.epoch, d.nonce, d.inc), promise(o.epoch, o.nonce, o.inc), false) == wire.OK
}

func promise(epoch, nonce, inc uint8) repl.Promise {
	if epoch == 0 {
		return repl.Promise{}
	}
	slot := uint8(slotOf(nonce))
	return repl.Promise{Generation: repl.Generation{Cluster: 1, Volume: 1}, Epoch: uint64(epoch), Inc: uint32(inc),
		Nonce: id(20 + nonce), Node: id(40 + slot), Run: id(60 + slot)}
}

// key is the state with its disks in a canonical order: they differ in nothing
// but what the state says of them.
func (s state) key() state {
	var cols [disks]uint64
	for r := range disks {
		c := uint64(0)
		s.masks(func(m *uint8) { c = c<<1 | uint64(*m>>r&1) })
		cols[r] = c
	}
	perm := [disks]int{0, 1, 2, 3}
	slices.SortFunc(perm[:], func(a, b int) int {
		if cols[a] != cols[b] {
			if cols[a] < cols[b] {
				return -1
			}
			return 1
		}
		return s.d[a].compare(s.d[b])
	})
	n := s
	move := func(m *uint8) {
		v := uint8(0)
		for to, from := range perm {
			v |= *m >> from & 1 << to
		}
		*m = v
	}
	n.masks(move)
	for to, from := range perm {
		n.d[to] = s.d[from]
		move(&n.d[to].toldOut)
		move(&n.d[to].toldPend)
	}
	return n
}

func (d replica) compare(e replica) int {
	return slices.Compare(d.bytes(), e.bytes())
}

func (d replica) bytes() []uint8 {
	b := [...]uint8{d.epoch, d.nonce, d.inc, d.has, d.dur, d.toldEpoch, d.toldCfg, d.grant, d.resv, d.resvFor, 0}
	for i, f := range []bool{d.rel, d.up, d.unknown, d.cold, d.lost} {
		if f {
			b[len(b)-1] |= bit(i)
		}
	}
	return b[:]
}

// masks visits every mask of disks but those inside the disks.
func (s *state) masks(f func(*uint8)) {
	visit := func(o *owner) { f(&o.out); f(&o.place) }
	visit(&s.own)
	visit(&s.backup)
	visit(&s.op.put)
	for i := range s.w {
		w := &s.w[i]
		visit(&w.own)
		visit(&w.cached)
		visit(&w.txn.put)
		visit(&w.old.put)
		for _, m := range []*uint8{&w.opened, &w.counted, &w.leaving, &w.newrun, &w.told, &w.joining, &w.pend, &w.lease, &w.sent, &w.fdone} {
			f(m)
		}
	}
}
