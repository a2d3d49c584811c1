package sim

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// clones makes the world's volume a clone: of a snapshot of another volume, the
// parent, whose blocks get other values as soon as the snapshot exists. Whoever
// reads one of those in the clone read the parent as it is now. The parent has a
// writer of its own, which loses and regains copies like the VM's. It draws from a
// stream of its own.
type clones struct {
	w      *world
	rng    *rand.Rand
	on     bool
	parent ids.ID
	number uint32 // of the snapshot; 0: not taken yet
	quiet  bool   // a script says what the parent's writer does
	pause  time.Duration
	guard  *guard
	stuck  int // looks at a guard that does not serve
	next   uint64
	other  []uint32 // snapshots that nobody reads
	busy   bool     // an order is not answered
	done   map[uint64]bool
}

// Values that the parent's blocks have in the snapshot, and later.
const (
	parentValue value  = 1 << 40
	wrongValue  value  = 1 << 41
	parentToken uint64 = 1 << 51
)

func newClones(w *world) *clones {
	c := &clones{w: w, rng: rand.New(rand.NewPCG(w.opt.Seed, 0x636c6f6e65)), done: map[uint64]bool{}}
	c.on = c.rng.IntN(6) == 0 && w.opt.Scenario == nil && w.opt.Bias == nil
	c.pause = []time.Duration{0, 50 * time.Millisecond, time.Second, 10 * time.Second}[c.rng.IntN(4)]
	if b := w.opt.Bias; b != nil && b.Clones {
		c.on, c.pause = true, b.Flatten
	}
	if s := w.opt.Scenario; s != nil && slices.ContainsFunc(s.script, func(l scriptLine) bool { return l.words[0] == "clone" }) {
		c.on, c.quiet, c.pause = true, true, 20*time.Second
	}
	if c.on {
		c.parent = c.newID()
		// The oracle knows no last copy of the parent: its copies are not destroyed.
		spared := []string{"disk_dead", "bit_rot", "log_rot", "lost_write", "misdirected_write", "stale_read"}
		w.profile.faults = slices.DeleteFunc(w.profile.faults, func(f fault) bool { return slices.Contains(spared, f.name) })
	}
	return c
}

func (c *clones) newID() ids.ID { return drawID(c.rng) }

// prepare fills the parent, takes the snapshot and makes the clone.
func (c *clones) prepare() bool {
	w := c.w
	if !c.on {
		return true
	}
	cfg := repl.Key{Kind: repl.KeyCfg, ID: w.volume}.Path()
	var clone repl.Cfg
	var seg repl.Segments
	w.etcd.get(cfg, &clone)
	w.etcd.get(repl.Key{Kind: repl.KeySeg, ID: w.volume}.Path(), &seg)
	w.etcd.rev++
	w.etcd.put(repl.Key{Kind: repl.KeyCfg, ID: c.parent}.Path(), repl.Cfg{SizeBytes: volumeBytes, Copies: 3, MinISR: 1, State: repl.VolumeLive})
	w.etcd.put(repl.Key{Kind: repl.KeySeg, ID: c.parent}.Path(), seg)
	w.etcd.put(repl.Key{Kind: repl.KeyOwn, ID: c.parent}.Path(), repl.Own{})
	c.start(w.nodes[0])
	if !w.run(w.now.Add(time.Minute), func() bool { return c.serves() }) {
		w.failf("the parent's writer does not serve")
		return false
	}
	blocks := slices.Clone(w.hot)
	for e := range extentCount {
		blocks = append(blocks, e*repl.ExtentBlocks+7) // for scripts
	}
	for half := range 2 { // an older snapshot, so that objects below the clone's may merge
		for i, b := range blocks {
			if i%4 != 0 && i%2 == half && i < len(w.hot) || half == 0 && i >= len(w.hot) { // the others stay zero
				c.write(b, parentValue+value(b))
				bs := &w.oracle.blocks[b]
				bs.now, bs.floor, bs.ever = []value{parentValue + value(b)}, []value{parentValue + value(b)}, []value{parentValue + value(b)}
				w.oracle.history.set(b, bs)
			}
		}
		c.order(writer.SnapshotOrder{ID: c.newID(), Name: []string{"old", "base"}[half]})
		if !w.run(w.now.Add(time.Minute), func() bool { return !c.busy && len(c.other) == 1 && (half == 0 || c.number != 0) }) {
			w.failf("a snapshot of the parent does not come to be")
			return false
		}
	}
	for _, b := range blocks {
		c.write(b, wrongValue+value(b))
	}
	w.run(w.now.Add(100*time.Millisecond), func() bool { return false })
	w.etcd.rev++
	w.etcd.put(cfg, repl.CloneCfg(clone, repl.Parent{Volume: c.parent, Snapshot: c.number}))
	w.note("clone")
	if !c.quiet {
		c.tick()
	}
	return w.err == nil
}

func (c *clones) serves() bool {
	return c.guard != nil && !c.guard.ended() && c.guard.state == writer.Serving && c.guard.leaseHeld() && !c.guard.frozen
}

// start begins a writer of the parent.
func (c *clones) start(n *node) {
	w := c.w
	g := &guard{w: w, t: w.tenant, node: n, id: c.newID(), run: c.newID(), lastBoot: n.boot, idle: true, parent: true}
	g.core = writer.New(writer.Config{
		Node: n.id, Run: g.run, Purpose: repl.PurposeMaintenance, Nonce: c.newID(), Volumes: []ids.ID{c.parent},
		SegmentBytes: segmentBytes, Mutations: w.opt.Mutations.Writer,
	})
	w.guards, n.guards = append(w.guards, g), append(n.guards, g)
	n.sleeps(g)
	g.onClaim = func(o writer.ClaimOutcome) {
		switch o {
		case writer.Made:
			g.later(writer.Command{Kind: writer.Activate})
		case writer.NotMade:
			w.after(time.Millisecond, func() { c.end(g) })
		}
	}
	c.guard, c.stuck, c.busy = g, 0, false
	g.step(w.liveness())
	g.step(writer.Command{Kind: writer.Prepare})
}

func (c *clones) end(g *guard) {
	g.step(writer.Command{Kind: writer.Stop})
	g.done = true
	g.dropLinks()
}

// tick is the life of the parent: a writer that is gone or stuck gets a successor,
// one that serves changes it.
func (c *clones) tick() {
	w := c.w
	w.after(50*time.Millisecond+time.Duration(c.rng.Int64N(int64(400*time.Millisecond))), c.tick)
	if c.serves() {
		c.stuck = 0
		if !w.calm {
			c.change()
		}
		return
	}
	if c.stuck++; c.guard == nil || c.guard.ended() || c.stuck > 40 {
		n := w.nodes[c.rng.IntN(len(w.nodes))]
		if n.powered && n.serving() && w.etcdReachable(n) {
			if c.guard != nil && !c.guard.ended() && !c.guard.claimed {
				c.end(c.guard)
			}
			c.start(n)
		}
	}
}

// change does something to the parent that the clone must not see.
func (c *clones) change() {
	b := c.w.hot[c.rng.IntN(len(c.w.hot))]
	switch x := c.rng.IntN(20); {
	case x < 14:
		c.next++
		c.write(b, wrongValue+value(c.next)<<20+value(b))
	case x < 15:
		c.request(writer.OpDiscard, b/repl.ExtentBlocks*repl.ExtentBlocks, repl.ExtentBlocks, nil)
	case c.busy:
	case x < 18 && len(c.other) < 3:
		c.order(writer.SnapshotOrder{ID: c.newID(), Name: c.newID().String()})
	case len(c.other) > 0:
		c.order(writer.SnapshotOrder{Volumes: []int{0}, Delete: c.other[c.rng.IntN(len(c.other))]})
	}
}

func (c *clones) order(o writer.SnapshotOrder) {
	c.busy = true
	c.guard.step(writer.Command{Kind: writer.Snapshot, Snapshot: o})
}

// parent move nX SEGMENT | delete NUMBER | write B: the copy on a node moves to its
// other disk; a snapshot of it is deleted, which is not waited for; a block of it is
// written, which is not waited for either.
func (p *player) parent(a []string) error {
	c := p.w.clones
	switch {
	case !c.serves():
		return errors.New("want a writer of the parent that serves")
	case len(a) == 2 && a[0] == "delete":
		n, err := strconv.ParseUint(a[1], 10, 32)
		if err == nil {
			c.order(writer.SnapshotOrder{Volumes: []int{0}, Delete: uint32(n)})
		}
		return err
	case len(a) == 2 && a[0] == "write":
		b, err := p.block(a[1])
		if err == nil {
			c.next++
			c.write(b, wrongValue+value(c.next)<<20+value(b))
		}
		return err
	case len(a) != 3 || a[0] != "move":
		return errors.New("want move NODE SEGMENT, delete NUMBER or write BLOCK")
	}
	n, err := p.node(a[1])
	if err != nil {
		return err
	}
	k, err := strconv.Atoi(a[2])
	if err != nil {
		return err
	}
	row := func() []ids.ID {
		return p.w.etcd.records(ids.ID{}, idsOf(c.parent), p.w.diskIdx).Volumes[0].Seg.Row(k)
	}
	i := slices.IndexFunc(n.disks, func(d *simDisk) bool { return slices.Contains(row(), d.id) })
	if i < 0 || len(n.disks) != 2 {
		return errors.New("the node has no copy of the segment, or no other disk")
	}
	from, to := n.disks[i].id, n.disks[1-i].id
	c.guard.step(writer.Command{Kind: writer.ReplaceDisk, Replace: writer.Replace{Old: from, New: to, NewNode: n.id, Segments: []uint32{uint32(k)}, Live: true}})
	err = p.await("the move", 2*time.Minute, func() bool { return slices.Contains(row(), to) && !slices.Contains(row(), from) })
	if err == nil {
		err = p.pass(100 * time.Millisecond)
	}
	return err
}

// ended: the parent's writer answered an order.
func (c *clones) ended(g *guard) {
	if g == c.guard {
		c.busy = false
	}
}

// committed takes which snapshots of the parent exist.
func (c *clones) committed(cfg *repl.Cfg) {
	c.other = nil
	for _, s := range cfg.Snap.List {
		switch {
		case s.Name == "base":
			c.number = s.Number
		case s.Number != c.number:
			c.other = append(c.other, s.Number)
		}
	}
}

func (c *clones) write(b int, v value) {
	data := make([]byte, repl.BlockBytes)
	encodeValue(data, v, b)
	c.request(writer.OpWrite, b, 1, data)
}

func (c *clones) request(op writer.Op, first, count int, data []byte) {
	c.next++
	r := &writer.Request{Token: parentToken + c.next, Op: op, Offset: int64(first) * repl.BlockBytes, Length: int64(count) * repl.BlockBytes, Data: data}
	if data != nil {
		r.CRC = []uint32{crc32.Checksum(data, castagnoli)}
	}
	c.guard.step(r)
}

// independent reports whether the clone needs its parent no more.
func (c *clones) independent() bool {
	return c.w.etcd.records(c.w.vm, idsOf(c.w.volume), c.w.diskIdx).Volumes[0].Cfg.Parent.IsZero()
}

// flattened waits until the clone is independent, and takes the parent away.
func (c *clones) flattened() bool {
	w := c.w
	if !c.on {
		return true
	}
	if !w.run(w.now.Add(10*time.Minute), c.independent) {
		w.failf("the clone is never flattened; %s", w.describe())
		return false
	}
	w.note("flattened")
	for _, p := range []repl.KeyKind{repl.KeyOwn, repl.KeyCfg, repl.KeySeg} {
		delete(w.etcd.keys, repl.Key{Kind: p, ID: c.parent}.Path())
	}
	c.guard.kill()
	return true
}

// cloneFaults are those that matter to a clone and spare its parent.
var cloneFaults = []string{
	"power_cut", "power_blip", "power_cut_all", "storage_kill", "guard_kill", "guard_freeze", "partition", "one_way", "link_reset", "etcd_down", "false_alarm", "disk_hang", "split_flush",
}
