package sim

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// rollback: the VM is stopped, in whatever state its guard and the copies are,
// and its volume is to be taken back to a snapshot: a transaction of etcd says
// so. From then on whoever is served sees the snapshot, whatever becomes of the
// writers that do the work. unseen: the VM's guard is not stopped, the operator only
// believes so; its guest counts for nothing from now on.
func (s *snapshots) rollback(number uint32, unseen bool) bool {
	w := s.w
	if !w.etcd.up {
		return false
	}
	if g := w.manager.active; unseen && g != nil {
		g.buried = true
		w.placeNowhere()
		w.guest.die()
	} else {
		w.stopByForce()
	}
	r := w.etcd.records(w.vm, []ids.ID{w.volume}, w.diskIdx)
	txn, err := repl.BeginRollback(r, []uint32{number})
	if err != nil {
		w.tracef("operator: rollback to snapshot %d: %v", number, err)
		return false
	}
	if w.opt.Mutations.RollbackKeepsEpoch {
		for i := range txn.Puts {
			if p := &txn.Puts[i]; p.Own != nil {
				own := r.Volumes[0].Own.Clone()
				own.CfgVersion = p.Own.CfgVersion
				p.Own = &own
			}
		}
	}
	if out, _ := w.apply(txn); out != repl.OutcomeCommitted {
		w.failf("the store refused a rollback of a volume that nobody may write")
		return false
	}
	w.tracef("operator: the volume is to be taken back to snapshot %d", number)
	w.note("rollback")
	w.oracle.restore(s.exist[number].allowed, w.rots())
	s.rolled = true
	return true
}

// stopByForce ends the VM in whatever state its guard is, and says in etcd that it
// is stopped.
func (t *tenant) stopByForce() {
	if g := t.manager.active; g != nil {
		g.kill()
	}
	t.guest.die()
	t.placeNowhere()
}

// placeNowhere says in etcd that the VM is stopped.
func (t *tenant) placeNowhere() {
	m := &t.manager
	m.attempt++
	t.w.etcd.rev++
	t.w.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: t.vm}.Path(), repl.Placement{Attempt: m.attempt, State: "stopped"})
}

// rots reports whether blocks of a snapshot may be unreadable on every copy: then
// the volume keeps them as they were.
func (w *world) rots() bool {
	return slices.ContainsFunc(w.profile.faults, func(f fault) bool {
		return slices.Contains([]string{"bit_rot", "log_rot", "disk_dead", "lost_write", "misdirected_write", "stale_read", "lying_cache"}, f.name)
	})
}

// restore: from now on a block holds what a snapshot shows of it, whatever power
// is lost; or what it held, if it may be that the snapshot cannot be read.
func (o *oracle) restore(allowed [][]value, or bool) {
	for i := range o.blocks {
		b := &o.blocks[i]
		set := slices.Clone(allowed[i])
		if or {
			for _, v := range slices.Concat(b.now, b.ever) {
				set = add(set, v)
			}
		}
		b.now, b.floor, b.since, b.at = set, slices.Clone(set), nil, o.seq
		b.lostOn, b.lost = map[int]bool{}, false
		b.seen++
		o.history.set(i, b)
	}
}
