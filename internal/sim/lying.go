package sim

import (
	"slices"
	"time"

	"roseau/internal/base/ids"
)

// lieSync nX on|off: the caches of its disks answer fdatasync before anything is
// durable. One node of three may: what a power cut takes from it the others have.
func (p *player) lieSync(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	p.w.profile.rotNode = n.index
	for _, d := range n.disks {
		d.syncLies = a[1] == "on"
		d.rotten++ // what it holds proves nothing
	}
	return nil
}

// faultLyingCache: one disk of the node that may rot answers fdatasync before
// anything is durable, for a while; then the power of that node fails, or the
// cache is written after all. One disk, for what is torn may not open again, and
// is then rebuilt on the other.
func (w *world) faultLyingCache() {
	n := w.nodes[w.profile.rotNode]
	if w.profile.rotNode == w.profile.failingNode || !n.serving() || w.atRest() {
		return
	}
	d := n.disks[w.rng.IntN(len(n.disks))]
	if d.syncLies || slices.ContainsFunc(n.disks, func(d *simDisk) bool { return d.dead }) {
		return
	}
	w.note("lying_cache")
	w.tracef("disk %s of %s begins to lie about fdatasync", d.id.Short(), n.name())
	d.syncLies = true
	d.rotten++ // what it holds proves nothing
	cut := w.chance(0.7)
	w.after(w.between(10*time.Millisecond, 3*time.Second), func() {
		if cut && d.syncLies && n.powered && !w.calm {
			n.powerCut()
			w.after(w.between(10*time.Millisecond, 5*time.Second), n.restore)
		}
		d.tellTruth()
	})
}

// tellTruth: the cache is written, and fdatasync means something again.
func (d *simDisk) tellTruth() {
	if d.syncLies {
		d.syncLies = false
		d.settle(len(d.cache))
	}
}

// lostByLie: power failed while a disk of n lied. Its copy may lack what it called
// durable, and not know: nothing but a comparison of the copies tells. Until then a
// read may be stale, and whoever joins may take over what is stale.
func (w *world) lostByLie(n *node) {
	if slices.ContainsFunc(n.disks, func(d *simDisk) bool { return d.syncLies && !d.dead }) {
		w.note("lying_cut")
		for _, t := range w.living() {
			t.tainted[n.index] = true
			t.oracle.history.off = true
		}
		w.judgeTaint()
	}
}

// judgeTaint: a copy that joins while a tainted one is in sync is tainted; if no
// other is left in sync of a segment, what it lacks is gone: one fault more than the
// contract bears.
func (w *world) judgeTaint() {
	for _, t := range w.living() {
		if len(t.tainted) > 0 {
			t.judgeTaint()
		}
	}
}

func (t *tenant) judgeTaint() {
	w, v := t.w, t.record()
	for s := range v.Seg.Map {
		isr := v.ISR(s)
		tainted := func(d ids.ID) bool { return t.tainted[w.nodeOfDisk(d).index] }
		dirty := slices.ContainsFunc(isr, tainted)
		for _, d := range isr {
			if dirty && !slices.Contains(t.wasISR[s], d) && t.wasISR[s] != nil {
				t.tainted[w.nodeOfDisk(d).index] = true
			}
		}
		t.wasISR[s] = isr
		if !slices.ContainsFunc(isr, func(d ids.ID) bool { return !tainted(d) }) {
			w.note("lying_alone")
			t.oracle.accept(true)
			if t.first() {
				w.snaps.accept(true)
			}
		}
	}
}
