package sim

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/place"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// node is a machine with its disks and its storage process.
type node struct {
	w       *world
	index   int
	id      ids.ID
	disks   []*simDisk
	powered bool
	boot    ids.ID // boot identity, new at each power-on

	process   int // number of the storage process; a new one forgets
	core      *replica.Core
	opening   map[ids.ID]*disk.Core // disks whose recovery runs
	engines   map[ids.ID]*disk.Core
	links     map[replica.Conn]*link
	timer     clock.Instant
	patient   bool // it listens although a disk is not open yet
	guards    []*guard
	seenAlive bool // session in etcd, or beats, as everybody sees it
	broken    bool // its daemon says that the storage process does not answer
	mergesOff bool // a script keeps it from merging objects
	clockFace
	onTags     map[uint64]func(disk.Completion)
	onPlaces   map[uint64]func(*place.Map)
	lastPlaces uint64
}

const (
	diskBytes  = 256 << 20 // sparse; objects pile up while a copy is away
	ringBytes  = 1 << 20
	tableBytes = 16 << 10
	ringOffset = 2 << 20 // where disk.Format puts the log
)

func newNode(w *world, index int) *node {
	n := &node{w: w, index: index, id: w.newID()}
	for i := 0; i < w.profile.disks && index < storageNodes; i++ {
		d := newSimDisk(w.newID())
		n.disks = append(n.disks, d)
		w.diskIdx = append(w.diskIdx, repl.DiskNode{Disk: d.id, Node: n.id})
		list, err := disk.Format(disk.Identity{Cluster: w.cluster, Disk: d.id, Pool: w.cluster}, disk.Geometry{DeviceBytes: diskBytes, WALBytes: ringBytes, VolumeTableBytes: tableBytes})
		if err != nil {
			w.failf("format: %v", err)
			return n
		}
		for _, io := range list {
			if err := d.do(w, io); err != nil {
				w.failf("format: %v", err)
			}
		}
		d.settle(len(d.cache))
	}
	return n
}

func (n *node) name() string { return fmt.Sprintf("n%d", n.index+1) }

func (w *world) nodeByID(id ids.ID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	panic("sim: no such node")
}

// serving: the storage process runs and listens, which it does when the recovery
// of its disks has ended, or has taken settleTime.
func (n *node) serving() bool {
	return n.powered && n.core != nil && (len(n.opening) == 0 || n.patient)
}

// settleTime is how long a storage process that starts keeps guards waiting for its
// disks.
const settleTime = 10 * time.Second

// start powers the node on.
func (n *node) start() {
	n.powered = true
	if n.boot.IsZero() || !n.w.opt.Mutations.KernelBootID {
		n.boot = n.w.newID()
	}
	n.startStorage()
	n.setSeen(true)
}

// restore is start for a node whose power was cut.
func (n *node) restore() {
	if n.powered {
		return
	}
	n.w.tracef("%s powered on", n.name())
	n.start()
}

// setSeen changes what sessions and beats say of the node.
func (n *node) setSeen(alive bool) {
	if n.seenAlive == alive {
		return
	}
	n.seenAlive = alive
	n.w.tellLiveness()
}

func (w *world) tellLiveness() {
	for _, g := range w.guards {
		g.step(w.liveness())
	}
}

func (w *world) liveness() writer.Liveness {
	l := writer.Liveness{Alive: w.liveNodes()}
	for _, n := range w.nodes {
		if n.broken {
			l.Broken = append(l.Broken, n.id)
		}
	}
	return l
}

// setBroken changes what the node says of its storage process.
func (n *node) setBroken(broken bool) {
	if n.broken != broken {
		n.broken = broken
		n.w.tellLiveness()
	}
}

// powerCut ends every process and loses what is in the disks' caches.
func (n *node) powerCut() {
	n.w.tracef("%s power cut", n.name())
	n.powered = false
	n.asleep, n.held, n.slept = false, nil, nil
	n.killStorage()
	for _, g := range n.guards {
		if !g.killed {
			g.kill()
			if g.t.guest.guard == g {
				g.t.guest.die()
			}
		}
	}
	for _, t := range n.w.tenants {
		if t.guest.alive && t.guest.guard == nil && t.manager.active != nil && t.manager.active.node == n {
			t.guest.die() // it waited for a successor of its guard
		}
		t.last[n.index] = lastKnown{}
	}
	n.guards = nil
	n.w.lostByLie(n)
	for _, d := range n.disks {
		d.losePower(n.w, n.w.survival(n))
	}
	for _, t := range n.w.living() {
		t.oracle.losePower(n.index, t.isrByBlock())
	}
	process := n.process
	// Beats stop for 1.5 s, the session for 2 s, before others see the loss.
	n.w.after(n.w.between(1500e6, 2500e6), func() {
		if !n.powered && n.process == process {
			n.setSeen(false)
		}
	})
}

// killStorage is SIGKILL of the storage process: what was written stays in the
// disks' caches.
func (n *node) killStorage() {
	n.process++
	n.core, n.engines, n.opening = nil, nil, nil
	links := n.links
	n.links = nil
	for _, id := range sortedConns(links) {
		l := links[id]
		if n.powered {
			l.reset(true)
		} else {
			l.stall()
		}
	}
	// The node's daemon asks once a second whether its storage process answers.
	process := n.process
	n.w.after(time.Second, func() {
		if n.powered && n.process == process {
			n.setBroken(true)
		}
	})
}

func sortedConns(m map[replica.Conn]*link) []replica.Conn {
	out := make([]replica.Conn, 0, len(m))
	for c := range m {
		out = append(out, c)
	}
	slices.Sort(out)
	return out
}

// startStorage starts the storage process; each disk serves when its recovery
// has ended.
func (n *node) startStorage() {
	if !n.powered || n.core != nil {
		return
	}
	if n.asleep {
		n.awake(n.startStorage)
		return
	}
	if slices.ContainsFunc(n.disks, func(d *simDisk) bool { return len(d.flying) > 0 }) {
		// A killed process ends, and lets go of its lock, when its last write has.
		n.w.after(5*time.Millisecond, n.startStorage)
		return
	}
	n.process++
	n.setBroken(false)
	n.core = replica.New(replica.Options{
		Node: n.id, Cluster: n.w.cluster, Session: n.w.newID(), Boot: n.boot, Pool: heap{}, Mutations: n.w.opt.Mutations.Replica,
	})
	n.links, n.engines, n.opening = map[replica.Conn]*link{}, map[ids.ID]*disk.Core{}, map[ids.ID]*disk.Core{}
	n.onTags, n.onPlaces = map[uint64]func(disk.Completion){}, map[uint64]func(*place.Map){}
	process := n.process
	n.patient = false
	n.w.after(settleTime, func() { n.patient = n.patient || n.process == process })
	for _, d := range n.disks {
		if d.dead {
			continue
		}
		d.cells.session++
		n.core.Opening(d.id, true)
		n.opening[d.id] = disk.Open(disk.Options{Pool: heap{}, Expect: disk.Identity{Cluster: n.w.cluster, Disk: d.id}, Cells: &d.cells, DeviceBytes: diskBytes, TagCacheBytes: 1 << 20, DataCacheBytes: 1 << 20, FreshBlocks: 2, Mutations: n.w.opt.Mutations.Disk})
		n.pumpOpening(d)
	}
	n.pump()
}

// pumpOpening drives a disk's recovery.
func (n *node) pumpOpening(d *simDisk) {
	eng := n.opening[d.id]
	for {
		var r disk.Ready
		eng.Ready(&r)
		if len(r.IO) == 0 {
			break
		}
		for _, io := range r.IO {
			n.perform(d, io, func(err error) {
				eng.Done(io.ID, err)
				n.pumpOpening(d)
			})
		}
	}
	rec, done, err := eng.Opened()
	if !done && err == nil || n.engines[d.id] != nil {
		return
	}
	if err != nil {
		n.w.tracef("%s disk %s does not open: %v", n.name(), d.id.Short(), err)
		delete(n.opening, d.id)
		n.core.Opening(d.id, false)
		if d.foreign {
			n.w.note("disk_refused")
			return
		}
		n.w.note("disk_not_opened")
		d.die()
		return
	}
	if rec.DroppedBytes > 0 {
		n.w.note("torn_tail")
	}
	if len(rec.DamagedRanges) > 0 {
		n.w.note("damaged_log")
	}
	n.engines[d.id] = eng
	delete(n.opening, d.id)
	n.core.AddDisk(n.clock(), tapped{eng, n}, ids.ID{})
	n.pump()
	if n.patient { // guards connect again: HELLO names it now
		for _, id := range sortedConns(n.links) {
			n.links[id].reset(false)
		}
	}
}

// perform hands an action to the disk and reports its end. If the process that
// asked is gone by then, a write still happens, as in a kernel; if power failed,
// it may have happened in part.
func (n *node) perform(d *simDisk, io disk.IO, done func(error)) {
	process, boot := n.process, n.boot
	fly := &inFlight{io: io}
	if io.Op == disk.OpWrite {
		fly.io.Bufs = nil
		for _, b := range io.Bufs {
			fly.io.Bufs = append(fly.io.Bufs, bytes.Clone(b))
		}
		d.flying = append(d.flying, fly)
	}
	d.schedule(n.w, io.Op, func() {
		n.awake(func() {
			if n.boot != boot || !n.powered {
				return // see simDisk.losePower
			}
			d.landed(fly)
			if n.process == process {
				done(d.do(n.w, io))
			} else if io.Op == disk.OpWrite {
				d.do(n.w, fly.io)
			}
		})
	})
}

// pump performs what the replica core wants.
func (n *node) pump() {
	if n.core == nil {
		return
	}
	for range 10000 {
		var r replica.Ready
		n.core.Ready(n.clock(), &r)
		if len(r.Sends) == 0 && len(r.Closes) == 0 && len(r.IO) == 0 && len(r.Events) == 0 {
			n.arm()
			return
		}
		for _, io := range r.IO {
			d := n.diskByID(io.Disk)
			n.perform(d, io.IO, func(err error) {
				n.core.DiskDone(d.id, io.IO.ID, err)
				n.pump()
			})
		}
		for _, s := range r.Sends {
			if l := n.links[s.Conn]; l != nil {
				l.answer(s.Msg)
			}
		}
		for _, c := range r.Closes {
			if l := n.links[c.Conn]; l != nil {
				n.w.tracef("%s closes a connection: %v", n.name(), c.Why)
				delete(n.links, c.Conn)
				l.reset(false)
			}
		}
		for _, e := range r.Events {
			if e.Kind == replica.PlacesDone {
				n.placesDone(e)
			}
			if e.Kind == replica.DiskDied {
				n.w.tracef("%s disk %s died: %v", n.name(), e.Disk.Short(), e.Err)
			}
		}
	}
	n.w.failf("the replica core of %s never has nothing to do", n.name())
}

func (n *node) diskByID(id ids.ID) *simDisk {
	for _, d := range n.disks {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (n *node) arm() {
	at, now := n.core.Next(), n.clock()
	if n.timer != 0 && n.timer <= at && n.timer >= now || at > now.Add(1e18) {
		return
	}
	n.timer = at
	process := n.process
	n.timerAt(at, func() {
		if n.timer != at {
			return
		}
		n.timer = 0
		if n.process == process && n.core != nil {
			n.core.Tick(n.clock())
			n.pump()
		}
	})
}

func (n *node) connOpened(l *link, peer ids.ID) {
	n.links[replica.Conn(l.conn)] = l
	n.core.ConnOpened(replica.Conn(l.conn), peer)
}

func (n *node) connClosed(l *link) {
	if n.asleep {
		n.awake(func() { n.connClosed(l) })
		return
	}
	if n.core == nil || n.links[replica.Conn(l.conn)] != l {
		return
	}
	delete(n.links, replica.Conn(l.conn))
	n.core.ConnClosed(replica.Conn(l.conn))
	n.pump()
}

func (n *node) receive(l *link, m wire.Message) {
	n.core.Received(n.clock(), replica.Conn(l.conn), m)
	n.pump()
}

// ask puts a question to the engine of a disk and lets the world go on until it
// is answered. Each question has a token of its own: a late answer to an earlier
// one must not pass for it.
func (n *node) ask(d ids.ID, put func(eng *disk.Core, token uint64)) (disk.Completion, error) {
	eng := n.engines[d]
	if eng == nil {
		return disk.Completion{}, fmt.Errorf("disk %s is not open", d.Short())
	}
	n.w.seq++
	token := tagsToken | n.w.seq
	var answer *disk.Completion
	n.onTags[token] = func(c disk.Completion) { answer = &c }
	put(eng, token)
	n.core.DiskDone(d, nudge, nil)
	n.pump()
	if !n.w.run(n.w.now.Add(20*time.Second), func() bool { return answer != nil }) {
		return disk.Completion{}, fmt.Errorf("no answer")
	}
	return *answer, nil
}

// tapped is an engine whose replica does not see the answers to the verifier.
type tapped struct {
	*disk.Core
	n *node
}

// nudge is the number of no action: its end makes the replica look at the disk.
const nudge = 0

func (t tapped) Done(id uint64, err error) {
	if id != nudge {
		t.Core.Done(id, err)
	}
}

func (t tapped) Ready(r *disk.Ready) {
	t.Core.Ready(r)
	r.Done = slices.DeleteFunc(r.Done, func(c disk.Completion) bool {
		fn := t.n.onTags[c.Token]
		if fn == nil {
			return false
		}
		delete(t.n.onTags, c.Token)
		fn(c)
		return true
	})
}

const tagsToken = 1 << 63

func statusError(s wire.Status) error {
	if s == wire.OK {
		return nil
	}
	return fmt.Errorf("status %d", s)
}

// heap is the buffer pool of the simulator.
type heap struct{}

func (heap) Alloc(n int) []byte { return make([]byte, n) }
func (heap) Free([]byte)        {}

// codec passes messages through their encoding.
type codec struct {
	bytes bytes.Buffer
	dec   *wire.Decoder
}

func newCodec() *codec {
	c := &codec{}
	c.dec = wire.NewDecoder(&c.bytes, wire.Heap{})
	c.dec.SetVersion(wire.ProtocolVersion)
	return c
}

// roundTrip encodes a message and decodes the bytes.
func (c *codec) roundTrip(m wire.Message) (wire.Message, error) {
	head, payload, err := wire.Append(nil, m)
	if err != nil {
		return nil, err
	}
	c.bytes.Write(head)
	c.bytes.Write(payload)
	return c.dec.Next()
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func idsOf(list ...ids.ID) []ids.ID { return list }
