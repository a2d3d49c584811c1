package sim

import (
	"time"

	"roseau/internal/core/repl"
)

// delete ends a VM in whatever state its guard is, and its volume: the records go, and
// a tomb says so, in one transaction. Who has a handle yet finds it ended.
func (t *tenant) delete() {
	w := t.w
	if !w.etcd.up || t.deleted {
		return
	}
	w.note("volume_deleted")
	t.tell("the VM is deleted, and its volume")
	if c := t.manager.challenger; c != nil {
		c.kill()
		t.manager.challenger = nil
	}
	t.stopByForce()
	t.deleted = true
	w.etcd.rev++
	for _, kind := range []repl.KeyKind{repl.KeyOwn, repl.KeyCfg, repl.KeySeg} {
		delete(w.etcd.keys, repl.Key{Kind: kind, ID: t.volume}.Path())
	}
	w.etcd.tombs[t.volume] = true
}

// nothingLeft demands that no disk holds anything of a deleted volume, and that every
// slot in use is a volume's.
func (w *world) nothingLeft() {
	done := func() bool { return w.leftOver() == "" }
	for range 60 {
		if done() || w.err != nil {
			return
		}
		w.janitor.round()
		w.run(w.now.Add(time.Second), done)
	}
	if what := w.leftOver(); what != "" {
		w.failf("%s is never freed", what)
	}
}

// leftOver names what should be free and is not.
func (w *world) leftOver() string {
	for _, n := range w.nodes {
		for _, d := range n.disks {
			e := n.engines[d.id]
			if d.dead || e == nil {
				continue
			}
			used := 0
			for _, id := range e.Volumes() {
				if w.etcd.tombs[id] {
					return "what disk " + d.id.Short() + " of " + n.name() + " holds of a deleted volume"
				}
				info, _ := e.Volume(id)
				used += info.Extents
			}
			if st := e.Stats(); d.rotten == 0 && st.Slots-st.FreeSlots != used {
				return "a slot of disk " + d.id.Short() + " of " + n.name() + " that no volume names"
			}
		}
	}
	return ""
}

// deleteVolume: the VM is deleted with its volume.
func (p *player) deleteVolume([]string) error {
	p.t.delete()
	return nil
}
