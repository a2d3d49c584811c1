package sim

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// readRecords answers a guard's linearizable read, as soon as etcd can be
// reached from its node.
func (w *world) readRecords(g *guard) {
	w.after(w.between(w.profile.etcdLo, w.profile.etcdHi), func() {
		if g.ended() || g.t.deleted {
			return
		}
		if !w.etcdReachable(g.node) {
			if g.hasCached() && !g.usedCache {
				g.usedCache = true
				w.note("cached_records")
				g.step(writer.RecordsRead{Records: g.t.last[g.node.index].records, Cached: true})
			}
			w.after(etcdRetry, func() { w.readRecords(g) })
			return
		}
		vm := g.t.vm
		if g.idle {
			vm = ids.ID{}
		}
		vol := g.t.volume
		if g.parent {
			vol = w.clones.parent
		}
		g.step(writer.RecordsRead{Records: w.etcd.records(vm, []ids.ID{vol}, w.diskIdx)})
	})
}

// commit sends a transaction once. It may be lost before it arrives, be
// committed and its answer lost, or be committed late, long after its sender
// was told that the outcome is unknown.
func (w *world) commit(g *guard, id uint64, t repl.Txn) {
	d := w.between(w.profile.etcdLo, w.profile.etcdHi)
	unknown := func() {
		w.note("etcd_unknown")
		w.after(etcdTimeout, func() { g.step(writer.TxnDone{ID: id, Outcome: repl.OutcomeUnknown}) })
	}
	if !w.etcdReachable(g.node) {
		unknown()
		return
	}
	w.noteSent(t)
	fate := w.etcd.next
	w.etcd.next = ""
	if fate == "" && !w.calm && w.chance(w.profile.etcdUnknown) {
		fate = []string{"lost", "unanswered", "late"}[w.rng.IntN(3)]
	}
	if fate != "" {
		switch fate {
		case "lost":
			w.note("etcd_lost")
		case "unanswered":
			w.note("etcd_answer_lost")
			w.after(d, func() { w.apply(t) })
		case "late":
			w.note("etcd_late_commit")
			w.after(w.between(0, 2*etcdTimeout), func() { w.apply(t) })
		}
		unknown()
		return
	}
	w.after(d, func() {
		if !w.etcd.up {
			unknown()
			return
		}
		out, rev := w.apply(t)
		if !w.etcdReachable(g.node) {
			w.note("etcd_answer_lost")
			unknown()
			return
		}
		w.after(d/2, func() { g.step(writer.TxnDone{ID: id, Outcome: out, Revision: rev}) })
	})
}

// apply commits to the store and lets the oracles see a smaller in-sync set.
func (w *world) apply(t repl.Txn) (repl.Outcome, int64) {
	var before []repl.VolumeRecord
	for _, o := range w.tenants {
		before = append(before, o.record())
	}
	out, rev := w.etcd.commit(t)
	if out != repl.OutcomeCommitted {
		return out, rev
	}
	for _, p := range t.Puts {
		if w.clones.on && p.Key.ID == w.clones.parent {
			if p.Cfg != nil {
				w.clones.committed(p.Cfg)
			}
			continue
		}
		if o := w.tenantOf(p.Key.ID); o != nil {
			o.committed(p, before[o.index])
		}
	}
	w.judgeTaint()
	for _, o := range w.living() {
		o.oracle.losePower(-1, o.isrByBlock())
	}
	return out, rev
}

// committed looks at what a transaction put.
func (t *tenant) committed(p repl.Put, before repl.VolumeRecord) {
	w := t.w
	if p.Own != nil {
		if p.Own.Epoch != before.Own.Epoch {
			w.note("claim_made")
		}
		t.tell("etcd: own epoch %d inc %d cfg %d out %d", p.Own.Epoch, p.Own.Inc, p.Own.CfgVersion, len(p.Own.Out))
		t.noteISR()
		w.judgeOut(before.Own, *p.Own)
	}
	if p.Seg != nil {
		w.noteMoves(before.Seg, *p.Seg)
	}
	if p.Cfg != nil && t.first() {
		w.snaps.committed(p.Cfg)
		if w.clones.on && p.Cfg.Parent.IsZero() {
			w.note("independent")
		}
	}
}

// noteSent counts what transactions ask for.
func (w *world) noteSent(t repl.Txn) {
	for _, p := range t.Puts {
		o := w.tenantOf(p.Key.ID)
		if p.Own == nil || o == nil {
			continue
		}
		switch was := o.record().Own; {
		case p.Own.Epoch != was.Epoch:
			w.note("claim_sent")
		case len(p.Own.Out) > len(was.Out):
			w.note("shrink_sent")
		case len(p.Own.Out) < len(was.Out):
			w.note("grow_sent")
		}
	}
}

func (t *tenant) noteISR() {
	v := t.record()
	for s := range v.Seg.Map {
		if len(v.ISR(s)) == 1 {
			t.w.note("isr_of_one")
			return
		}
	}
}

// etcdReachable: etcd runs, and a majority of the nodes can be talked to.
func (w *world) etcdReachable(n *node) bool {
	if !w.etcd.up {
		return false
	}
	if w.etcd.cutOff == n || n.asleep {
		return false
	}
	if w.etcd.apart {
		return true
	}
	reach := 0
	for _, o := range w.nodes[:storageNodes] {
		if o.powered && !o.asleep && w.net.both(n.index, o.index) {
			reach++
		}
	}
	return reach*2 > storageNodes
}

// liveNodes are those whose session or beats are seen.
func (w *world) liveNodes() []ids.ID {
	var out []ids.ID
	for _, n := range w.nodes {
		if n.seenAlive {
			out = append(out, n.id)
		}
	}
	return out
}
