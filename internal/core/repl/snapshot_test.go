package repl

import (
	"errors"
	"slices"
	"testing"

	"roseau/internal/base/errs"
)

func TestSnapshotTransactions(t *testing.T) {
	v := testRecords().Volumes[0]
	v.CfgRev = 5
	txn, v, err := ReserveSnapshot(v, "a")
	want := []Compare{{Key{KeyOwn, v.ID}, 7}, {Key{KeyCfg, v.ID}, 5}}
	if err != nil || !slices.Equal(txn.Compares, want) || len(txn.Puts) != 2 || v.Own.CfgVersion != 1 || v.Cfg.Snap.Next != 1 {
		t.Fatalf("%+v %+v %v", txn, v, err)
	}
	if _, _, err := CommitSnapshot(v, Snapshot{Number: 2}); !errors.Is(err, errs.Invalid) {
		t.Fatalf("a number that was not reserved: %v", err)
	}
	_, v, err = CommitSnapshot(v, Snapshot{Number: 1, Name: "a"})
	if err != nil || v.Cfg.Snap.Find(1) == nil || v.Own.CfgVersion != 2 {
		t.Fatalf("%+v %v", v, err)
	}
	if _, _, err := CommitSnapshot(v, Snapshot{Number: 1}); !errors.Is(err, errs.Invalid) {
		t.Fatalf("a number twice: %v", err)
	}
	if _, _, err := ReserveSnapshot(v, "a"); !errors.Is(err, errs.Conflict) {
		t.Fatalf("a name twice: %v", err)
	}
	_, v, _ = ReserveSnapshot(v, "b") // this attempt fails
	_, v, _ = ReserveSnapshot(v, "c")
	_, v, err = CommitSnapshot(v, Snapshot{Number: 3, Name: "c"})
	if err != nil || !slices.Equal(v.Cfg.Snap.Numbers(), []uint32{1, 3}) {
		t.Fatalf("%+v %v", v.Cfg.Snap, err)
	}
	if _, _, err := DeleteSnapshot(v, 2); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	_, v, err = DeleteSnapshot(v, 3)
	if err != nil || !slices.Equal(v.Cfg.Snap.Numbers(), []uint32{1}) || v.Cfg.Snap.Next != 3 {
		t.Fatalf("%+v %v", v.Cfg.Snap, err)
	}
	for i := len(v.Cfg.Snap.List); i < MaxSnapshots; i++ {
		v.Cfg.Snap.List = append(v.Cfg.Snap.List, Snapshot{Number: uint32(i) + 10})
	}
	if _, _, err := ReserveSnapshot(v, "z"); !errors.Is(err, errs.Conflict) {
		t.Fatalf("too many: %v", err)
	}
}

// The model of snapshots: two writers that take the volume from each other, the
// transactions of production, answers that are lost, commits that come late,
// attempts that fail at every point. What copies do is one promise: the epoch
// below which nothing is written any more.
type snapModel struct {
	epoch, holder, cfg, rev uint8
	next                    uint8
	list                    uint8 // mask of numbers
	promised                uint8 // epoch
	w                       [2]snapWriter
	top                     uint8 // highest number that an acked write bears
	crashes                 uint8
	broken                  bool
}

type snapWriter struct {
	phase   snapState
	epoch   uint8
	cfg     uint8
	rev     uint8 // of own, as decided
	next    uint8
	list    uint8
	seq     uint8 // number that its writes bear
	pending uint8 // reserved, told
	marked  bool  // the boundary is behind
	txn     snapTxn
	waits   bool
}

type snapTxn struct {
	live                     bool
	rev                      uint8 // compared
	free                     bool  // the broken rule: compares cfg alone
	was                      uint8 // cfg's list and next, compared by free
	epoch, holder, cfg, next uint8
	list                     uint8
	commits                  uint8 // number that it makes exist
}

type snapState uint8

const (
	snapIdle snapState = iota
	snapClaiming
	snapServing
	snapDead
)

type snapRules struct{ reuse, withoutOwn, stampOld bool }

func (s *snapModel) record(w *snapWriter) VolumeRecord {
	v := VolumeRecord{ID: tid(90), Cfg: Cfg{State: VolumeLive}, Own: Own{Epoch: uint64(s.epoch), CfgVersion: uint32(s.cfg)}, OwnRev: int64(s.rev)}
	next, list := s.next, s.list
	if w != nil {
		v.Own.Epoch, v.Own.CfgVersion, v.OwnRev = uint64(w.epoch), uint32(w.cfg), int64(w.rev)
		next, list = w.next, w.list
	}
	v.Cfg.Snap.Next = uint32(next)
	for n := uint32(1); n < 8; n++ {
		if list&(1<<n) != 0 {
			v.Cfg.Snap.List = append(v.Cfg.Snap.List, Snapshot{Number: n})
		}
	}
	return v
}

func (s *snapModel) fromTxn(i int, txn Txn, next VolumeRecord) snapTxn {
	t := snapTxn{live: true, rev: uint8(txn.Compares[0].Rev), epoch: uint8(next.Own.Epoch), holder: uint8(i), cfg: uint8(next.Own.CfgVersion), next: uint8(next.Cfg.Snap.Next)}
	for _, n := range next.Cfg.Snap.Numbers() {
		t.list |= 1 << n
	}
	return t
}

func (s snapModel) steps(rules snapRules, yield func(snapModel)) {
	for i := range s.w {
		s.commitTxn(i, yield)
		w := &s.w[i]
		if w.phase == snapDead {
			continue
		}
		if s.crashes < 2 && w.phase != snapIdle {
			n := s
			n.crashes++
			n.w[i] = snapWriter{txn: w.txn} // starts again; its transaction may yet arrive
			yield(n)
		}
		if w.waits {
			s.decide(i, rules, yield)
			continue
		}
		switch w.phase {
		case snapIdle:
			if w.txn.live || s.epoch >= 3 {
				continue
			}
			if txn, recs, err := Takeover(Records{Volumes: []VolumeRecord{s.record(nil)}}, Take{}); err == nil {
				n := s
				n.w[i].phase, n.w[i].waits, n.w[i].txn = snapClaiming, true, s.fromTxn(i, txn, recs.Volumes[0])
				yield(n)
			}
		case snapServing:
			s.serve(i, rules, yield)
		}
	}
}

// commitTxn lets a transaction arrive.
func (s snapModel) commitTxn(i int, yield func(snapModel)) {
	t := s.w[i].txn
	if !t.live {
		return
	}
	s.w[i].txn.live = false
	if t.free && t.was == s.list && t.next == s.next {
		s.list |= 1 << t.commits
	} else if !t.free && t.rev == s.rev {
		s.epoch, s.holder, s.cfg, s.next, s.list = t.epoch, t.holder, t.cfg, t.next, t.list
		s.rev++
	}
	yield(s)
}

// decide reads etcd to judge the transaction of unknown outcome.
func (s snapModel) decide(i int, rules snapRules, yield func(snapModel)) {
	w := &s.w[i]
	t := w.txn
	switch {
	case t.free && s.list&(1<<t.commits) != 0, !t.free && s.epoch == t.epoch && s.holder == t.holder && s.cfg == t.cfg:
		w.waits, w.txn.live = false, false
		w.epoch, w.cfg, w.rev, w.next, w.list = s.epoch, s.cfg, s.rev, s.next, s.list
		switch {
		case w.phase == snapClaiming:
			w.phase, s.promised = snapServing, max(s.promised, s.epoch)
			w.seq = s.next
			if rules.stampOld || rules.reuse {
				w.seq = uint8(0)
				for n := uint8(1); n < 8; n++ {
					if s.list&(1<<n) != 0 {
						w.seq = n
					}
				}
			}
		case t.commits != 0:
			w.pending, w.marked = 0, false
		default:
			w.pending = w.next
		}
	case !t.free && s.rev != t.rev || t.free && s.promised > w.epoch:
		*w = snapWriter{phase: snapDead, txn: t} // fenced
	default:
		w.txn.live = true
	}
	yield(s)
}

func (s snapModel) serve(i int, rules snapRules, yield func(snapModel)) {
	w := &s.w[i]
	if s.promised == w.epoch { // a write, acked: it must not change what exists
		n := s
		n.broken = n.broken || w.seq < s.top // an older write would hide it
		n.top = max(n.top, w.seq)
		for k := w.seq + 1; k < 8; k++ {
			n.broken = n.broken || s.list&(1<<k) != 0
		}
		yield(n)
	}
	if w.pending != 0 && w.marked { // given up
		n := s
		n.w[i].pending, n.w[i].marked = 0, false
		yield(n)
	}
	rec := s.record(w)
	switch {
	case w.pending == 0 && rules.reuse:
		n := s
		for k := uint8(1); k < 5; k++ {
			if w.list>>k == 0 {
				if n.w[i].pending = k; k <= w.next {
					yield(n)
					return
				}
				break
			}
		}
		fallthrough
	case w.pending == 0:
		if txn, next, err := ReserveSnapshot(rec, "x"); err == nil && next.Cfg.Snap.Next < 5 {
			n := s
			n.w[i].txn, n.w[i].waits = s.fromTxn(i, txn, next), true
			yield(n)
		}
	case !w.marked && s.promised == w.epoch: // drain and flush: only a writer whose epoch holds gets through
		n := s
		// The boundary: everything acked before must bear a lower number.
		n.broken = n.broken || s.top >= w.pending
		n.w[i].marked, n.w[i].seq = true, max(w.seq, w.pending)
		yield(n)
	case w.marked:
		txn, next, err := CommitSnapshot(rec, Snapshot{Number: uint32(w.pending)})
		if err != nil {
			return
		}
		n := s
		t := s.fromTxn(i, txn, next)
		t.commits = w.pending
		if rules.withoutOwn {
			t.free, t.was = true, w.list
		}
		n.w[i].txn, n.w[i].waits = t, true
		yield(n)
	}
}

func searchSnapshots(rules snapRules, crashes uint8, limit int) (states int, broken, complete bool) {
	first := snapModel{rev: 1, crashes: 2 - crashes}
	seen := map[snapModel]struct{}{first: {}}
	queue := []snapModel{first}
	for i := 0; i < len(queue) && i < limit; i++ {
		if queue[i].broken {
			return len(seen), true, false
		}
		queue[i].steps(rules, func(s snapModel) {
			if _, ok := seen[s]; !ok {
				seen[s] = struct{}{}
				queue = append(queue, s)
			}
		})
	}
	return len(seen), false, len(queue) <= limit
}

func TestModelOfSnapshots(t *testing.T) {
	for crashes := range uint8(3) {
		n, broken, complete := searchSnapshots(snapRules{}, crashes, 250_000)
		t.Logf("%d crashes: %d states, all of them: %v", crashes, n, complete)
		if broken {
			t.Errorf("%d crashes: what a snapshot shows changed after it was committed, or a number names two boundaries", crashes)
		}
	}
	for name, r := range map[string]snapRules{
		"a number used again":                {reuse: true},
		"a transaction without own":          {withoutOwn: true},
		"stamping with the newest committed": {stampOld: true},
	} {
		if n, broken, _ := searchSnapshots(r, 2, 250_000); !broken {
			t.Errorf("%s: not seen in %d states", name, n)
		} else {
			t.Logf("%s: seen after %d states", name, n)
		}
	}
}
