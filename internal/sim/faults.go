package sim

import (
	"slices"
	"time"

	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// profile is what a seed does: a random subset of the faults (swarm testing)
// and the tempo.
// Source: A. Groce et al., "Swarm Testing" (ISSTA 2012).
type profile struct {
	faults      []fault
	every       time.Duration // mean time between faults
	etcdLo      time.Duration
	etcdHi      time.Duration
	etcdUnknown float64
	netHiccup   float64
	lag         time.Duration // of every message
	think       time.Duration // most time between an answer and the next request
	patience    time.Duration // of the manager with a stuck guard
	diskLo      time.Duration
	diskHi      time.Duration
	tornLikely  float64
	compute     int // nodes without disks
	disks       int // of each other node
	rotNode     int // the one node whose disks may rot
	failingNode int // the one node whose disks may die
	minISR      int // of the volume; 0 = 1
}

type fault struct {
	name string
	do   func(w *world)
}

// allFaults, each with its counter's name.
var allFaults = []fault{
	{"power_cut", (*world).faultPowerCut},
	{"power_blip", (*world).faultPowerBlip},
	{"power_cut_all", (*world).faultPowerCutAll},
	{"storage_kill", (*world).faultStorageKill},
	{"guard_kill", (*world).faultGuardKill},
	{"guard_freeze", (*world).faultGuardFreeze},
	{"partition", (*world).faultPartition},
	{"one_way", (*world).faultOneWay},
	{"link_reset", (*world).faultLinkReset},
	{"etcd_down", (*world).faultEtcdDown},
	{"false_alarm", (*world).faultFalseAlarm},
	{"disk_hang", (*world).faultDiskHang},
	{"disk_dead", (*world).faultDiskDead},
	{"bit_rot", (*world).faultBitRot},
	{"power_cut_copies", (*world).faultPowerCutCopies},
	{"local_disk_hang", (*world).faultLocalDiskHang},
	{"forgetful", (*world).faultForgetful},
	{"late_successor", (*world).faultLateSuccessor},
	{"lost_write", (*world).faultLostWrite},
	{"misdirected_write", (*world).faultMisdirectedWrite},
	{"stale_read", (*world).faultStaleRead},
	{"scrub", (*world).faultScrub},
	{"log_rot", (*world).faultLogRot},
	{"split_flush", (*world).faultSplitFlush},
	{"lying_cache", (*world).faultLyingCache},
}

func drawProfile(w *world) profile {
	p := profile{
		disks:       2,
		every:       w.between(100*time.Millisecond, 3*time.Second),
		etcdLo:      time.Millisecond,
		etcdHi:      w.between(3*time.Millisecond, 40*time.Millisecond),
		think:       w.between(0, thinkMost),
		patience:    w.between(500*time.Millisecond, 5*time.Second),
		diskLo:      20 * time.Microsecond,
		diskHi:      w.between(100*time.Microsecond, 10*time.Millisecond),
		tornLikely:  w.rng.Float64(),
		rotNode:     w.rng.IntN(storageNodes),
		failingNode: w.rng.IntN(storageNodes),
	}
	if w.chance(0.4) {
		p.compute = 1 + w.rng.IntN(2)
	}
	if w.chance(0.5) {
		p.etcdUnknown = 0.3 * w.rng.Float64()
	}
	if w.chance(0.5) {
		p.netHiccup = 0.05 * w.rng.Float64()
	}
	for _, f := range allFaults {
		if f.name == "lying_cache" && w.opt.Bias != nil {
			continue // the seeds that biases were made for stay what they were
		}
		if w.chance(0.5) {
			p.faults = append(p.faults, f)
		}
	}
	if w.opt.Bias != nil {
		w.opt.Bias.apply(&p)
	} else if w.opt.Seed%8 == 5 {
		p.minISR = 2
	}
	if w.opt.Scenario != nil {
		scripted(&p, w.opt.Scenario)
	}
	return p
}

// Bias narrows what a seed does, for a mutant that random faults seldom meet.
// Zero fields change nothing.
type Bias struct {
	Faults  []string      // these and no others; a name given twice is twice as likely
	Every   time.Duration // mean time between faults
	Unknown float64       // how often the outcome of a transaction is unknown
	DiskHi  time.Duration // longest time of a disk action
	Torn    float64       // how likely a sector survives a power cut
	Think   time.Duration
	// Snapshots: the mean time between orders of the operator who takes and
	// deletes them; 0 = as the seed draws.
	Snapshots time.Duration
	Clones    bool          // the volume is a clone
	Flatten   time.Duration // then: the pause between extents of its flattening
	Rollbacks bool          // he takes the volume back to one now and then
	// Moves: the mean time between moves of segments; 0 = none.
	Moves time.Duration
	Full  time.Duration // the mean time until disks are full; 0 = none ever is
	Drift bool          // clocks run apart, and nodes are suspended
}

func (b *Bias) apply(p *profile) {
	if len(b.Faults) > 0 {
		p.faults = nil
	}
	for _, name := range b.Faults {
		i := slices.IndexFunc(allFaults, func(f fault) bool { return f.name == name })
		p.faults = append(p.faults, allFaults[i])
	}
	if b.Every > 0 {
		p.every = b.Every
	}
	if b.Unknown > 0 {
		p.etcdUnknown = b.Unknown
	}
	if b.DiskHi > 0 {
		p.diskHi = b.DiskHi
	}
	if b.Torn > 0 {
		p.tornLikely = b.Torn
	}
	if b.Think > 0 {
		p.think = b.Think
	}
}

// chaos runs the guest's operations with faults among them.
func (w *world) chaos() {
	for _, n := range w.nodes {
		n.start()
	}
	if !w.clones.prepare() {
		return
	}
	for _, t := range w.tenants {
		t.manager.tick()
	}
	w.janitor.tick()
	w.scheduleFault()
	limit := w.now.Add(10 * time.Minute)
	w.run(limit, func() bool { return w.ops >= w.opt.Ops })
}

func (w *world) scheduleFault() {
	w.after(w.between(w.profile.every/4, w.profile.every*2), func() {
		if w.calm {
			return
		}
		if len(w.profile.faults) > 0 {
			f := w.profile.faults[w.rng.IntN(len(w.profile.faults))]
			f.do(w)
		}
		w.replaceDisks()
		w.scheduleFault()
	})
}

func (w *world) randomNode() *node { return w.nodes[w.rng.IntN(len(w.nodes))] }

func (w *world) faultPowerCut() {
	n := w.randomNode()
	if !n.powered || w.poweredNodes() < 2 {
		return
	}
	w.note("power_cut")
	n.powerCut()
	w.after(w.between(500*time.Millisecond, 20*time.Second), n.restore)
}

// faultPowerBlip: a reboot faster than any timeout.
func (w *world) faultPowerBlip() {
	n := w.randomNode()
	if !n.powered {
		return
	}
	w.note("power_blip")
	n.powerCut()
	w.after(w.between(10*time.Millisecond, 400*time.Millisecond), n.restore)
}

// atRest reports whether no guest is served: most faults that stop everything
// then prove nothing and only use the seed up.
func (w *world) atRest() bool {
	served := func(t *tenant) bool {
		g := t.manager.active
		return g != nil && !g.ended() && g.leaseHeld()
	}
	return !slices.ContainsFunc(w.tenants, served) && !w.chance(0.3)
}

func (w *world) faultPowerCutAll() {
	if w.atRest() {
		return
	}
	w.note("power_cut_all")
	for _, n := range w.nodes {
		if n.powered {
			n.powerCut()
		}
		w.after(w.between(100*time.Millisecond, 5*time.Second), n.restore)
	}
}

// faultPowerCutCopies: every node reboots but the one of the guest, whose own
// copy is kept out by a dead or slow disk now and then.
func (w *world) faultPowerCutCopies() {
	g := w.some().manager.active
	if g == nil || g.ended() {
		return
	}
	w.note("power_cut_copies")
	for _, n := range w.nodes {
		if n != g.node && n.powered {
			n.powerCut()
			w.after(w.between(10*time.Millisecond, time.Second), n.restore)
		}
	}
}

// faultLocalDiskHang: the disks of the guest's node answer nothing for so long
// that they are put out.
func (w *world) faultLocalDiskHang() {
	g := w.some().manager.active
	if g == nil || g.ended() || !g.node.serving() {
		return
	}
	w.note("local_disk_hang")
	for _, d := range g.node.disks {
		d.hang(w.now.Add(w.between(6*time.Second, 15*time.Second)))
	}
}

func (w *world) poweredNodes() int {
	c := 0
	for _, n := range w.nodes {
		if n.powered {
			c++
		}
	}
	return c
}

func (w *world) faultStorageKill() {
	n := w.randomNode()
	if !n.serving() {
		return
	}
	w.note("storage_kill")
	n.killStorage()
	w.after(w.between(5*time.Millisecond, 4*time.Second), n.startStorage)
}

func (w *world) faultGuardKill() {
	t := w.some()
	g := t.manager.active
	if g == nil || g.ended() {
		return
	}
	w.note("guard_kill")
	w.tracef("kill guard %s", g.name())
	g.kill()
	t.manager.guardKilled(g, w.between(20*time.Millisecond, 2*time.Second))
}

func (w *world) faultGuardFreeze() {
	g := w.some().manager.active
	if g == nil || g.ended() || g.frozen {
		return
	}
	w.note("guard_freeze")
	w.tracef("freeze guard %s", g.name())
	g.freeze()
	w.after(w.between(50*time.Millisecond, 8*time.Second), g.thaw)
}

func (w *world) faultPartition() {
	n := w.randomNode()
	w.note("partition")
	w.tracef("partition %s", n.name())
	for i := range w.nodes {
		if i != n.index {
			w.net.set(n.index, i, true)
			w.net.set(i, n.index, true)
		}
	}
	w.isolated(n)
	w.after(w.between(100*time.Millisecond, 10*time.Second), func() { w.heal(n) })
}

// isolated: beats and the session of a node that is cut off end after a while.
func (w *world) isolated(n *node) {
	w.after(w.between(1500*time.Millisecond, 2500*time.Millisecond), func() {
		if reach := slices.ContainsFunc(w.nodes, func(o *node) bool { return o != n && w.net.both(n.index, o.index) }); !reach {
			n.setSeen(false)
		}
	})
}

// faultForgetful: the node of the active guard is cut off while the storage
// processes of all others restart and forget what they granted, and the manager
// wants the VM elsewhere at once.
func (w *world) faultForgetful() {
	t := w.some()
	g := t.manager.active
	if g == nil || g.ended() || !g.leaseHeld() || t.manager.challenger != nil {
		return
	}
	w.note("forgetful")
	w.tracef("partition %s and restart every other storage process", g.node.name())
	for i, o := range w.nodes {
		if o == g.node {
			continue
		}
		w.net.set(g.node.index, i, true)
		w.net.set(i, g.node.index, true)
		if o.powered && o.core != nil {
			o.killStorage()
			w.after(w.between(time.Millisecond, 20*time.Millisecond), o.startStorage)
		}
	}
	w.isolated(g.node)
	n := g.node
	w.after(w.between(100*time.Millisecond, 600*time.Millisecond), func() {
		if to := t.manager.pick(n); to != nil && to != n && !w.calm {
			t.manager.challenge(to, t.drawID(), 0)
		}
	})
	w.after(w.between(4*time.Second, 10*time.Second), func() { w.heal(n) })
}

// faultLateSuccessor: a supervisor starts a successor for a guard whose run is
// history, on the node where the VM runs now.
func (w *world) faultLateSuccessor() {
	t := w.some()
	now := t.manager.active
	if now == nil || now.ended() || t.guest.run != now.run {
		return
	}
	var old *guard
	for _, o := range w.guards {
		if o.t == t && o.run != now.run && o.claimed && !o.parent && o.lastOwn.Epoch > 0 {
			old = o
		}
	}
	if old == nil {
		return
	}
	w.note("late_successor")
	w.haunt(now.node, old)
}

// haunt starts a guard for the QEMU that an earlier run left behind.
func (w *world) haunt(n *node, old *guard) {
	g := newGuard(old.t, n, old.run, old.t.manager.attempt, true)
	g.ghost = true
	w.tracef("%s: a late successor of %s", g.name(), old.name())
	g.onState = func(s writer.State) {
		switch s {
		case writer.Serving:
			w.failf("%s adopted a guest of a run that is history", g.name())
		case writer.Idle:
			w.after(0, func() { g.step(writer.Command{Kind: writer.Prepare}) })
		}
	}
	g.onClaim = func(o writer.ClaimOutcome) {
		if o == writer.Made {
			g.later(writer.Command{Kind: writer.Activate})
		}
	}
	g.predecessor = wire.PredecessorID{Epoch: old.lastOwn.Epoch, Nonce: old.lastOwn.Nonce, Inc: old.lastOwn.Inc}
	g.step(writer.Command{Kind: writer.Reopen, Predecessor: g.predecessor})
	w.after(w.between(time.Second, 8*time.Second), g.layDown)
}

// layDown ends a ghost.
func (g *guard) layDown() {
	if !g.ended() {
		g.step(writer.Command{Kind: writer.Stop})
		g.done = true
		g.dropLinks()
	}
}

func (w *world) heal(n *node) {
	for i := range w.nodes {
		w.net.set(n.index, i, false)
		w.net.set(i, n.index, false)
	}
	if n.powered {
		n.setSeen(true)
	}
}

func (w *world) faultOneWay() {
	a, b := w.rng.IntN(len(w.nodes)), w.rng.IntN(len(w.nodes))
	if a == b {
		return
	}
	w.note("one_way")
	w.net.set(a, b, true)
	w.after(w.between(100*time.Millisecond, 6*time.Second), func() { w.net.set(a, b, false) })
}

func (w *world) faultLinkReset() {
	g := w.some().manager.active
	if g == nil || g.ended() {
		return
	}
	if l := g.links[w.rng.IntN(len(w.nodes))]; l != nil && l.open {
		w.note("link_reset")
		l.reset(false)
	}
}

func (w *world) faultEtcdDown() {
	if !w.etcd.up {
		return
	}
	w.note("etcd_down")
	w.etcd.up = false
	w.after(w.between(200*time.Millisecond, 15*time.Second), func() { w.etcd.up = true })
}

// faultFalseAlarm: the manager believes that a healthy VM is lost.
func (w *world) faultFalseAlarm() {
	t := w.some()
	g := t.manager.active
	if g == nil || g.ended() {
		return
	}
	if n := t.manager.pick(g.node); n != nil && n != g.node {
		w.note("false_alarm")
		t.manager.challenge(n, t.drawID(), 0)
	}
}

func (w *world) faultDiskHang() {
	n := w.nodes[w.rng.IntN(storageNodes)]
	d := n.disks[w.rng.IntN(len(n.disks))]
	if !n.serving() || d.dead {
		return
	}
	w.note("disk_hang")
	d.hang(w.now.Add(w.between(100*time.Millisecond, 9*time.Second)))
}

// faultDiskDead: at most one disk dies in a run, so that a copy is left.
func (w *world) faultDiskDead() {
	n := w.nodes[w.profile.failingNode]
	for _, d := range n.disks {
		if d.dead {
			return
		}
	}
	w.note("disk_dead")
	w.killDisk(n, n.disks[w.rng.IntN(len(n.disks))])
}

func (w *world) killDisk(n *node, d *simDisk) {
	w.tracef("disk %s of %s dies", d.id.Short(), n.name())
	d.die()
	for _, t := range w.living() {
		v := t.record()
		t.oracle.lose(n.index, t.isrByBlock(), func(block int) bool {
			return slices.Contains(v.Seg.Row(block*repl.BlockBytes/segmentBytes), d.id)
		})
	}
}

// faultBitRot flips bits at rest, on one node only: the atlas of good copies.
func (w *world) faultBitRot() {
	n := w.nodes[w.profile.rotNode]
	if w.profile.rotNode == w.profile.failingNode || len(n.disks) == 0 {
		return
	}
	d := n.disks[w.rng.IntN(len(n.disks))]
	if at, ok := d.rot(w.rng); ok {
		w.note("bit_rot")
		w.tracef("disk %s of %s: a bit at %d rots", d.id.Short(), n.name(), at)
	}
}

// faultLogRot flips a bit of what a log holds durably, and every node reboots
// before a checkpoint makes it history.
func (w *world) faultLogRot() {
	if w.profile.rotNode == w.profile.failingNode || w.atRest() || !w.rotLogs(w.nodes[w.profile.rotNode], false) {
		return
	}
	w.note("log_rot")
	w.faultPowerCutAll()
}

// durableLog says what is on the medium of the log: up to where it proves that it
// was durable, for a later batch says so, and where the payloads of what was
// flushed after that lie. If one of these rots it looks like a torn tail, and a
// writer finds out by the flush mark; if a header does, nothing is left that
// tells: docs/design/disk.md states that as a limit.
func (d *simDisk) durableLog() (proven int64, payloads []int64) {
	volatile := d.cache
	d.cache = nil
	defer func() { d.cache = volatile }()
	var batch *disk.ItemBatch
	var at []int64
	_, err := disk.Check(d, diskBytes, disk.FsckOptions{Dump: func(i disk.Item) {
		switch {
		case i.Batch != nil:
			batch = i.Batch
			proven = max(proven, int64(i.Batch.DurableLSN))
		case i.Record != nil && batch != nil && batch.Good && i.Record.Payload > 0:
			at = append(at, int64(batch.LSN)+int64(i.Record.Payload))
		}
	}})
	if err != nil {
		return 0, nil
	}
	return proven, slices.DeleteFunc(at, func(lsn int64) bool { return lsn < proven })
}

// rotLogs flips a bit in the durable part of the log of each disk of n. tail: in
// the last payload that was flushed and is not proved durable; else anywhere, there
// too.
func (w *world) rotLogs(n *node, tail bool) bool {
	any := false
	for _, d := range n.disks {
		eng := n.engines[d.id]
		if eng == nil || d.dead {
			continue
		}
		from := int64(eng.Stats().CheckpointLSN)
		proven, payloads := d.durableLog()
		pages := max(0, (proven-from)/repl.BlockBytes)
		if tail {
			pages, payloads = 0, payloads[max(0, len(payloads)-1):]
		}
		if pages+int64(len(payloads)) == 0 {
			continue
		}
		k := w.rng.Int64N(pages + int64(len(payloads)))
		lsn := from + k*repl.BlockBytes
		if k >= pages {
			lsn = payloads[k-pages]
		}
		if at, ok := d.flip(w.rng, ringOffset+lsn%ringBytes); ok {
			any = true
			w.tracef("disk %s of %s: a bit of its log at %d rots, proven %d", d.id.Short(), n.name(), at, proven)
		}
	}
	return any
}

// faultSplitFlush: one copy finishes no fdatasync while the others do; then power
// fails everywhere.
func (w *world) faultSplitFlush() {
	n := w.nodes[w.rng.IntN(storageNodes)]
	if !n.serving() || w.atRest() {
		return
	}
	w.note("split_flush")
	for _, d := range n.disks {
		d.hangSync(w.now.Add(2 * time.Second))
	}
	w.after(w.between(50*time.Millisecond, 900*time.Millisecond), func() {
		if !w.calm { // the verifier reads disks by then
			w.faultPowerCutAll()
		}
	})
}
