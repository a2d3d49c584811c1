package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// room is what a disk has left for the volume.
type room struct {
	full   bool   // guests get no new slot; what is free is the reserve of repairs
	limit  int    // as the engine is told; 0: none yet
	others ids.ID // a volume that stands for all others on the disk; zero: never was one
	leave  int    // so many slots the others leave free; below 0: they take none
	filled bool   // they have what they want
	busy   int    // the storage process that is doing it for them
}

// filler makes disks full and gives the space back. Full is what production calls so:
// guests may not go beyond a limit, and the slots above it are for repairs; these are
// many, or as few as others' volumes leave.
type filler struct {
	stream
	tends bool // somebody was full once
}

// fillStep is how often the disks are looked at. A new storage process has no limit
// for as long; production tells it every two seconds.
const fillStep = 50 * time.Millisecond

func newFiller(w *world) *filler {
	f := &filler{stream: newStream(w, 0x66756c6c, 300*time.Millisecond, 4*time.Second)}
	if b := w.opt.Bias; b != nil {
		f.bias(b.Full)
	}
	f.run(f.act)
	return f
}

// act makes one disk, those of a node, or all of the pool full for a while.
func (f *filler) act() {
	w := f.w
	if f.anyFull() || w.tenants[0].manager.active == nil { // a clone needs its parent first
		return
	}
	n := w.nodes[f.rng.IntN(storageNodes)]
	some, leave := n.disks, -1
	kind := f.rng.IntN(10)
	if kind >= 6 {
		leave = f.rng.IntN(4)
	}
	switch {
	case kind < 3:
		w.note("disk_full")
		some = []*simDisk{n.disks[f.rng.IntN(len(n.disks))]}
	case kind < 6 || kind == 9:
		w.note("pool_full")
		some = nil
		for _, o := range w.nodes {
			some = append(some, o.disks...)
		}
	default:
		w.note("node_full")
	}
	w.tracef("%d disks are full, others leave %d slots", len(some), leave)
	tight := f.rng.IntN(2) == 0
	for _, d := range some {
		if f.fill(d, leave); tight && leave < 0 {
			d.room.limit = 1 // far below what is in use: the reserve grew
		}
	}
	if m := w.tenants[0].guest; f.rng.IntN(2) == 0 && m.alive && !m.paused && !m.retired && m.guard != nil && !m.guard.ended() {
		m.put(writer.OpDiscard, f.rng.IntN(extentCount)*repl.ExtentBlocks, repl.ExtentBlocks, false) // so that something new is written
	}
	w.after(100*time.Millisecond+time.Duration(f.rng.Int64N(int64(8*time.Second))), func() { f.giveBack(some) })
}

// fill makes a disk full. leave: so many slots the others leave for repairs; below 0:
// there are no others.
func (f *filler) fill(d *simDisk, leave int) {
	d.room.full, d.room.leave, d.room.limit, d.room.filled = true, leave, 0, leave < 0
	if !f.tends {
		f.tends = true
		f.tick()
	}
	f.look(d)
}

// giveBack: guests have space again, and the others are gone.
func (f *filler) giveBack(some []*simDisk) {
	for _, d := range some {
		if d.room.full {
			f.w.tracef("disk %s has space again", d.id.Short())
			d.room.full = false
			f.look(d)
		}
	}
}

func (f *filler) tick() {
	f.w.after(fillStep, f.tick)
	for _, n := range f.w.nodes {
		for _, d := range n.disks {
			f.look(d)
		}
	}
}

// look tells the engine of a disk its limit, and lets the others take or leave.
func (f *filler) look(d *simDisk) {
	n, r := f.w.nodeOfDisk(d.id), &d.room
	eng := n.engines[d.id]
	if eng == nil || d.dead || !n.powered || n.asleep {
		return
	}
	s := eng.Stats()
	switch {
	case !r.full:
		r.limit = 0
	case r.leave >= 0:
		r.limit = max(1, s.Slots-r.leave)
	case r.limit == 0:
		r.limit = max(1, s.Slots-s.FreeSlots)
	}
	eng.SetLimit(r.limit)
	if r.busy == n.process {
		return
	}
	if _, there := eng.Volume(r.others); r.full && !r.filled {
		f.othersTake(n, d, eng)
	} else if !r.full && there {
		r.busy = n.process
		f.w.seq++
		n.core.Drop(n.clock(), f.w.seq, d.id, r.others)
		n.pump()
		f.w.after(time.Second, func() { r.busy = 0 })
	}
}

// othersTake lets another volume take all slots of a disk but those that it leaves. It
// writes as a writer does whose writes every copy has: nothing of it is above its
// flush mark.
func (f *filler) othersTake(n *node, d *simDisk, eng *disk.Core) {
	r := &d.room
	r.busy = n.process
	if r.others.IsZero() {
		r.others = drawID(f.rng)
	}
	p := repl.Promise{Epoch: 1, Nonce: r.others, Node: n.id, Run: r.others}
	n.order(d.id, func(token uint64) {
		eng.Control(token, disk.Control{Kind: disk.ControlPromise, Volume: r.others, Promise: p})
	}, func(disk.Completion) {
		info, _ := eng.Volume(r.others)
		m := info.MaxMark.Wseq
		for range eng.Stats().FreeSlots - r.leave {
			m++
			data := make([]byte, repl.BlockBytes)
			encodeValue(data, value(m), 1<<40) // no block of the volume
			n.order(d.id, func(token uint64) {
				eng.Append(token, disk.Record{Kind: disk.KindWrite, Volume: r.others, Writer: disk.Writer{Epoch: 1}, Extent: m, Mark: repl.Mark{Epoch: 1, Wseq: m}, Count: 1, CRC: []uint32{crcOf(data)}, Data: data, Reserve: true})
			}, func(disk.Completion) {})
		}
		upto := repl.Mark{Epoch: 1, Wseq: m}
		n.order(d.id, func(token uint64) { eng.Flush(token, r.others, upto) }, func(disk.Completion) {
			eng.SetFlushMark(r.others, upto)
			r.busy, r.filled = 0, true
		})
	})
}

// order is ask for those who do not wait: then happens when the engine has answered,
// unless the storage process is gone by then.
func (n *node) order(d ids.ID, put func(token uint64), then func(disk.Completion)) {
	n.w.seq++
	token, process := tagsToken|n.w.seq, n.process
	n.onTags[token] = func(c disk.Completion) {
		n.soon(process, func() {
			then(c)
			n.core.DiskDone(d, nudge, nil)
			n.pump()
		})
	}
	put(token)
	n.soon(process, func() {
		n.core.DiskDone(d, nudge, nil)
		n.pump()
	})
}

// soon runs f in the storage process, when that has done what it is doing.
func (n *node) soon(process int, f func()) {
	n.w.after(0, func() {
		n.awake(func() {
			if n.process == process {
				f()
			}
		})
	})
}

func (f *filler) anyFull() bool {
	return slices.ContainsFunc(f.w.nodes, func(n *node) bool {
		return slices.ContainsFunc(n.disks, func(d *simDisk) bool { return d.room.full })
	})
}

// end gives all space back, for good.
func (f *filler) end() {
	for _, n := range f.w.nodes {
		f.giveBack(n.disks)
	}
}

// gone reports whether others hold nothing any more on disks that can be asked.
func (f *filler) gone() bool {
	for _, n := range f.w.nodes {
		for _, d := range n.disks {
			if eng := n.engines[d.id]; eng != nil && !d.dead {
				if _, there := eng.Volume(d.room.others); there {
					return false
				}
			}
		}
	}
	return true
}

// noteFullJoin counts what a join writes on disks that are full for guests.
func (f *filler) noteFullJoin(l *link, m *wire.Ack) {
	if _, sync := l.syncing[m.ReqID]; sync && m.Status == wire.OK && slices.ContainsFunc(l.node.disks, func(d *simDisk) bool { return d.room.full }) {
		f.w.note("full_join")
	}
}

// judgeOut: lack of space puts nobody out, and nothing else does that is not so. A
// copy leaves as failed only if its disk is dead, as hung only if it ever hung or is dead.
func (w *world) judgeOut(was, is repl.Own) {
	for d, o := range is.Out { // order does not show: the first failure ends the run
		if old, out := was.Out[d]; out && old.Reason == o.Reason {
			continue
		}
		n := w.nodeOfDisk(d)
		sd := n.diskByID(d)
		if o.Reason == repl.OutDiskFailed && !sd.dead && !sd.foreign { // foreign: another disk stands there
			w.failf("disk %s of %s is put out as failed, and is well (full: %v)", d.Short(), n.name(), sd.room.full)
		}
		if o.Reason == repl.OutHung && !sd.everHung && !sd.dead {
			w.failf("disk %s of %s is put out as hung, and never hung (full: %v)", d.Short(), n.name(), sd.room.full)
		}
	}
}

// full nX... [leaving N]: guests get no new slot on the nodes' disks; others' volumes
// leave N free slots for repairs, or take none.
func (p *player) full(a []string) error {
	leave := -1
	if i := slices.Index(a, "leaving"); i >= 0 {
		if i+2 != len(a) {
			return errors.New("want NODES, or NODES leaving NUMBER")
		}
		var err error
		if leave, err = strconv.Atoi(a[i+1]); err != nil || leave < 0 {
			return fmt.Errorf("%q: want how many slots are left, 0 or more", a[i+1])
		}
		a = a[:i]
	}
	list, err := p.nodes(a)
	if err != nil {
		return err
	}
	for _, n := range list {
		if !n.serving() {
			return fmt.Errorf("the storage process of %s does not run", n.name())
		}
		for _, d := range n.disks {
			p.w.filler.fill(d, leave)
		}
	}
	return p.await("full disks", time.Minute, func() bool {
		return !slices.ContainsFunc(list, func(n *node) bool {
			return slices.ContainsFunc(n.disks, func(d *simDisk) bool { return !d.room.filled && !d.dead })
		})
	})
}

// space nX...: the nodes' disks have space again.
func (p *player) space(a []string) error {
	list, err := p.nodes(a)
	for _, n := range list {
		p.w.filler.giveBack(n.disks)
	}
	return err
}
