package writer

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// snapDrain is how long writes may be kept waiting for a snapshot: a copy that
// does not answer must not stop the guest for the sake of one.
const snapDrain = 5 * time.Second

// snapPhase is how far a snapshot is.
type snapPhase uint8

const (
	snapReserve snapPhase = iota // the number is reserved, and durable on every in-sync copy
	snapDrained                  // new writes wait; what was begun is committed
	snapFlush                    // and durable on every in-sync copy
	snapCommit                   // writes go on under the new number; the transaction makes it exist
)

// snapJob takes a snapshot of some volumes at one moment, or deletes one.
type snapJob struct {
	order   SnapshotOrder
	phase   snapPhase
	vols    []*volume
	holdEnd clock.Instant // when writes that wait are let go, whatever happens
}

// snapVolume is a volume's part in the job.
type snapVolume struct {
	seq     uint32 // number that writes bear
	pending uint32 // reserved by the job, not yet in cfg; 0 = none
	hold    bool   // new writes wait
	done    bool   // its transaction of the job is committed
}

// beginSnapshot starts a job; one runs at a time.
func (c *Core) beginSnapshot(order SnapshotOrder) {
	deny := func(text string) { c.effect(Snapshotted{Order: order, Text: text}) }
	if c.state != Serving || c.reopen.unwritten {
		deny("the volumes are not being served")
		return
	}
	if c.snap != nil {
		deny("another snapshot is being taken or deleted")
		return
	}
	j := &snapJob{order: order}
	for i, v := range c.vols {
		if order.Volumes != nil && !slices.Contains(order.Volumes, i) {
			continue
		}
		var err error
		if order.Delete == 0 {
			_, _, err = repl.ReserveSnapshot(v.rec, order.Name)
		} else {
			_, _, err = repl.DeleteSnapshot(v.rec, order.Delete)
		}
		if err != nil {
			deny(err.Error())
			return
		}
		j.vols = append(j.vols, v)
		v.snap.done = false
	}
	if len(j.vols) == 0 || order.Delete != 0 && len(j.vols) != 1 {
		deny("no such volume")
		return
	}
	if order.Delete != 0 {
		j.phase = snapCommit
	}
	c.snap, c.wake = j, true
}

// settleSnapshot moves the job on. Stamping does not wait for the transaction: if
// it fails, the number is unused and harmless [S8].
func (c *Core) settleSnapshot() {
	j := c.snap
	if j == nil || c.state.final() {
		return
	}
	if c.state != Serving && j.phase < snapCommit {
		c.endSnapshot("the volumes are not being served any more")
		return
	}
	if j.holdEnd != 0 && c.now >= j.holdEnd {
		c.endSnapshot("what was being written did not become durable in time; a copy does not answer")
		return
	}
	switch j.phase {
	case snapReserve:
		if !j.all((*volume).reserveSnapshot) {
			return
		}
		j.phase, j.holdEnd = snapDrained, c.now.Add(snapDrain)
		for _, v := range j.vols {
			v.snap.hold = true
		}
		c.wake = true
	case snapDrained:
		if !c.mut.SnapshotWithoutDrain && !j.all(func(v *volume) bool { return v.inflight.head == nil && v.cumSubmitted == v.cumIssued }) {
			return
		}
		for _, v := range j.vols {
			v.flushAll()
		}
		j.phase, c.wake = snapFlush, true
	case snapFlush:
		if !c.mut.SnapshotWithoutDrain && !j.all((*volume).clean) {
			return
		}
		j.phase, j.holdEnd, c.wake = snapCommit, 0, true
		for _, v := range j.vols {
			v.snap.seq = max(v.snap.seq, v.snap.pending)
			v.snap.hold = false
			v.unblock()
		}
	case snapCommit:
		if j.all((*volume).commitSnapshot) {
			c.endSnapshot("")
		}
	}
}

func (j *snapJob) all(f func(*volume) bool) bool {
	all := true
	for _, v := range j.vols {
		if !f(v) {
			all = false
		}
	}
	return all
}

// reserveSnapshot reports whether the volume's number is reserved and told.
func (v *volume) reserveSnapshot() bool {
	c := v.c
	if v.snap.pending != 0 {
		return v.change == nil && v.frozenSince == 0 && v.told()
	}
	if v.change != nil || v.frozenSince != 0 {
		return false
	}
	if c.mut.SnapshotNumberReused {
		n := uint32(1)
		if list := v.rec.Cfg.Snap.List; len(list) > 0 {
			n = list[len(list)-1].Number + 1
		}
		if n <= v.rec.Cfg.Snap.Next {
			v.snapReserved(n)
			return false
		}
	}
	txn, next, err := repl.ReserveSnapshot(v.rec, c.snap.order.Name)
	if err != nil {
		c.endSnapshot(err.Error())
		return false
	}
	v.commitChange(&change{kind: changeReserve, txn: txn, next: next})
	return false
}

// snapReserved: from now on CONFIG names n, so that no copy merges objects that
// it will tell apart.
func (v *volume) snapReserved(n uint32) {
	v.snap.pending = n
	v.config.serial++
	v.dirty, v.c.wake = true, true
}

// commitSnapshot reports whether the volume's transaction is committed.
func (v *volume) commitSnapshot() bool {
	c := v.c
	if v.snap.done || v.change != nil || v.frozenSince != 0 {
		return v.snap.done
	}
	o := c.snap.order
	var txn repl.Txn
	var next repl.VolumeRecord
	var err error
	if o.Delete != 0 {
		txn, next, err = repl.DeleteSnapshot(v.rec, o.Delete)
	} else {
		s := repl.Snapshot{Number: v.snap.pending, ID: o.ID, Name: o.Name, CreatedUnix: o.CreatedUnix, Group: o.Group}
		txn, next, err = repl.CommitSnapshot(v.rec, s)
	}
	if err != nil {
		c.endSnapshot(err.Error())
		return false
	}
	if c.mut.SnapshotWithoutOwn {
		txn.Compares = slices.DeleteFunc(txn.Compares, func(p repl.Compare) bool { return p.Key.Kind == repl.KeyOwn })
		txn.Puts = slices.DeleteFunc(txn.Puts, func(p repl.Put) bool { return p.Key.Kind == repl.KeyOwn })
		next.Own, next.OwnRev = v.rec.Own, v.rec.OwnRev
	}
	v.commitChange(&change{kind: changeSnapshot, txn: txn, next: next})
	return false
}

// endSnapshot ends the job; text is empty if the snapshots exist now. A number
// that was reserved and not used is never used again.
func (c *Core) endSnapshot(text string) {
	j := c.snap
	c.snap, c.wake = nil, true
	s := Snapshotted{Order: j.order, OK: text == "", Text: text}
	for _, v := range j.vols {
		s.Numbers = append(s.Numbers, v.snap.pending)
		if v.snap.hold {
			v.snap.hold = false
			v.unblock()
		}
		if v.snap.pending != 0 {
			v.snap.pending = 0
			v.config.serial++
			v.dirty = true
		}
	}
	c.effect(s)
}

// snapNumbers are the snapshots that CONFIG names: those that exist and the one
// under way.
func (v *volume) snapNumbers() []uint32 {
	list := v.rec.Cfg.Snap.Numbers()
	if n := v.snap.pending; n != 0 && !slices.Contains(list, n) {
		list = append(list, n)
		slices.Sort(list)
	}
	return list
}

// beginStamping is part of a takeover: writes bear the highest number that etcd
// or a copy knows to be reserved.
func (v *volume) beginStamping() {
	v.snap = snapVolume{seq: v.rec.Cfg.Snap.Next}
	for _, m := range v.members {
		if m.open == opened && m.counted {
			v.snap.seq = max(v.snap.seq, m.ack.Told.SnapSeq)
		}
	}
	if v.c.mut.SnapshotNumberReused {
		v.snap.seq = 0
		if list := v.rec.Cfg.Snap.List; len(list) > 0 {
			v.snap.seq = list[len(list)-1].Number
		}
	}
}

// adoptSnapshots takes what a copy was told into records that may be older.
func adoptSnapshots(cfg *repl.Cfg, told wire.Told) {
	s := &cfg.Snap
	s.Next = max(s.Next, told.SnapSeq)
	s.List = slices.Clone(s.List)
	for _, n := range told.Snaps {
		if s.Find(n) == nil {
			s.List = append(s.List, repl.Snapshot{Number: n})
		}
	}
	slices.SortFunc(s.List, func(a, b repl.Snapshot) int { return int(int64(a.Number) - int64(b.Number)) })
}
