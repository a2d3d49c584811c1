package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// snapshots is the operator who takes, reads and deletes snapshots, and what the
// oracle knows of them.
type snapshots struct {
	stream
	rollRng  *rand.Rand // of rollbacks; nil: there are none
	attempts map[ids.ID]*attempt
	open     []*attempt          // not ended: what is written now may be in them
	exist    map[uint32]*attempt // by number, as the store has it
	leaving  map[uint32]bool     // a deletion was asked for: no read proves anything
	busy     *guard              // an order is not answered
	rolled   bool                // a rollback was ordered that may not be over
	nextRead uint64
	reads    map[uint64]snapRead
}

// attempt is one order to take a snapshot. For each block it keeps what the
// snapshot may show: what was acknowledged when it was ordered, and what was under
// way until it ended. A read leaves one value, for ever (I13).
type attempt struct {
	id      ids.ID
	by      *guard
	allowed [][]value
}

type snapRead struct {
	number       uint32
	att          *attempt
	first, count int
	by           *guard
	must         bool // must succeed
}

func newSnapshots(w *world) *snapshots {
	s := &snapshots{stream: newStream(w, 0x736e6170, 100*time.Millisecond, 2*time.Second), attempts: map[ids.ID]*attempt{},
		exist: map[uint32]*attempt{}, leaving: map[uint32]bool{}, reads: map[uint64]snapRead{}}
	if b := w.opt.Bias; b != nil && b.Snapshots > 0 {
		s.bias(b.Snapshots)
	}
	s.rollRng = rand.New(rand.NewPCG(w.opt.Seed, 0x726f6c6c))
	if b := w.opt.Bias; b != nil && !b.Rollbacks || b == nil && s.rollRng.IntN(2) == 0 {
		s.rollRng = nil
	}
	w.oracle.touched = s.touched
	s.run(s.act)
	return s
}

// touched: block b may hold v from now on, so an open attempt may show it.
func (s *snapshots) touched(b int, v value) {
	for _, a := range s.open {
		a.allowed[b] = add(a.allowed[b], v)
	}
}

// act does one thing with the guard that serves.
func (s *snapshots) act() {
	g := s.w.manager.active
	if g == nil || g.ended() || g.frozen || g.state != writer.Serving {
		return
	}
	if n, ok := s.pick(); ok {
		s.read(g, n, s.w.hot[s.rng.IntN(len(s.w.hot))], 1+s.rng.IntN(4), false)
	}
	if s.busy != nil && !s.busy.ended() {
		return
	}
	if s.rollRng != nil && s.rollRng.IntN(3) == 0 && s.w.manager.challenger == nil {
		if n, ok := s.pick(); ok {
			s.rollback(n, false)
			return
		}
	}
	x := s.rng.IntN(10)
	if n, ok := s.pick(); ok && (x < 4 || len(s.exist) > 4) {
		s.leaving[n] = true
		s.order(g, writer.SnapshotOrder{Volumes: []int{0}, Delete: n})
		return
	}
	s.take(g)
}

// take orders a snapshot of the volume.
func (s *snapshots) take(g *guard) {
	a := &attempt{id: s.newID(), by: g, allowed: make([][]value, volumeBlocks)}
	for b := range a.allowed {
		a.allowed[b] = slices.Clone(s.w.oracle.blocks[b].now)
	}
	for _, id := range sortedKeys(s.w.oracle.writes) {
		p := s.w.oracle.writes[id]
		for i, v := range p.values {
			a.allowed[p.first+i] = add(a.allowed[p.first+i], v)
		}
	}
	s.attempts[a.id] = a
	s.open = append(s.open, a)
	s.order(g, writer.SnapshotOrder{ID: a.id, Name: a.id.String()})
}

func (s *snapshots) newID() ids.ID { return drawID(s.rng) }

func (s *snapshots) order(g *guard, o writer.SnapshotOrder) {
	s.busy = g
	s.w.tracef("operator: snapshot order to %s: delete %d id %s", g.name(), o.Delete, o.ID.Short())
	g.step(writer.Command{Kind: writer.Snapshot, Snapshot: o})
}

// pick draws a snapshot that exists.
func (s *snapshots) pick() (uint32, bool) {
	var list []uint32
	for n := range s.exist {
		if !s.leaving[n] {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return 0, false
	}
	slices.Sort(list)
	return list[s.rng.IntN(len(list))], true
}

// ended: the guard answered an order.
func (s *snapshots) ended(g *guard, e writer.Snapshotted) {
	s.w.tracef("%s snapshotted: %+v", g.name(), e)
	if s.busy == g {
		s.busy = nil
	}
	s.open = slices.DeleteFunc(s.open, func(a *attempt) bool { return a.id == e.Order.ID })
	switch {
	case e.Order.Delete != 0:
		s.w.note("snapshot_deleted")
	case e.OK:
		s.w.note("snapshot_taken")
		if s.exist[e.Numbers[0]] != s.attempts[e.Order.ID] && !s.w.opt.Mutations.Writer.SnapshotNumberReused {
			s.w.failf("%s says that snapshot %d exists; the store does not", g.name(), e.Numbers[0])
		}
	default:
		s.w.note("snapshot_failed")
	}
}

// guardEnded: nothing that is written later is in its attempts.
func (s *snapshots) guardEnded(g *guard) {
	s.open = slices.DeleteFunc(s.open, func(a *attempt) bool { return a.by == g })
	for id, r := range s.reads {
		if r.by == g {
			delete(s.reads, id)
		}
	}
}

// committed takes what a transaction says of the snapshots that exist.
func (s *snapshots) committed(cfg *repl.Cfg) {
	for _, n := range cfg.Snap.List {
		if s.exist[n.Number] == nil {
			s.exist[n.Number] = s.attempts[n.ID]
			s.w.tracef("etcd: snapshot %d exists (%s)", n.Number, n.ID.Short())
		}
	}
	if s.rolled && cfg.Rollback == 0 {
		s.rolled = false
		s.w.note("rolled_back")
	}
	for n := range s.exist {
		if cfg.Snap.Find(n) == nil {
			delete(s.exist, n)
		}
	}
}

// accept is the oracle's accept for what snapshots show.
func (s *snapshots) accept(rotten bool) {
	for _, a := range s.exist {
		for b := range a.allowed {
			for _, v := range s.w.oracle.blocks[b].ever {
				if rotten {
					a.allowed[b] = add(a.allowed[b], v)
				}
			}
		}
	}
}

const snapToken = 1 << 50

// read reads a snapshot through the guard.
func (s *snapshots) read(g *guard, n uint32, first, count int, must bool) {
	count = min(count, volumeBlocks-first)
	s.nextRead++
	id := snapToken + s.nextRead
	s.reads[id] = snapRead{number: n, att: s.exist[n], first: first, count: count, by: g, must: must}
	g.step(&writer.Request{Token: id, Op: writer.OpRead, Snap: n, Offset: int64(first) * repl.BlockBytes, Length: int64(count) * repl.BlockBytes})
}

func (s *snapshots) completed(c writer.Completion) {
	r, ok := s.reads[c.Request.Token]
	if !ok {
		return
	}
	delete(s.reads, c.Request.Token)
	switch {
	case s.leaving[r.number] || s.exist[r.number] != r.att:
		return
	case c.Result == writer.IOError && (s.w.lied() || s.w.counts["disk_dead"] > 0):
		s.w.note("snapshot_io_error")
		return
	case c.Result == writer.BadRequest && !r.must:
		return // the guard does not know yet that it exists
	case c.Result != writer.Done:
		s.w.failf("read of snapshot %d, blocks %d+%d, ended with result %d", r.number, r.first, r.count, c.Result)
		return
	}
	got, err := decodeValues(c.Request.Data, r.first, r.count)
	if err != nil {
		s.w.failf("snapshot %d: %v", r.number, err)
		return
	}
	s.w.note("snapshot_read")
	for i, v := range got {
		b := r.first + i
		if len(s.w.tainted) > 0 && slices.Contains(s.w.oracle.blocks[b].ever, v) {
			continue
		}
		if !slices.Contains(r.att.allowed[b], v) {
			s.w.failf("snapshot %d, block %d shows write %d; legal are %v", r.number, b, v, r.att.allowed[b])
			return
		}
		r.att.allowed[b] = []value{v}
	}
}

// numbers are the snapshots that exist.
func (s *snapshots) numbers() []uint32 {
	var list []uint32
	for n := range s.exist {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}

// verify reads every snapshot as a whole.
func (s *snapshots) verify(g *guard) {
	s.leaving = map[uint32]bool{}
	for _, n := range s.numbers() {
		for first := 0; first < volumeBlocks; first += 256 {
			s.read(g, n, first, 256, true)
		}
	}
}

// snapshot take | delete NUMBER | read NUMBER BLOCK [within D]: the operator orders
// one, or the end of one, and does not wait for it; or he reads a block of one, and it
// must succeed; within D: the contract promises that, also where disks rot.
func (p *player) snapshot(a []string) error {
	s, g := p.w.snaps, p.t.manager.active
	if g == nil || g.ended() || g.state != writer.Serving {
		return errors.New("no guard serves")
	}
	switch {
	case len(a) == 1 && a[0] == "take":
		s.take(g)
		return nil
	case len(a) == 2 && a[0] == "delete", len(a) == 3 && a[0] == "read", len(a) == 5 && a[0] == "read" && a[3] == "within":
	default:
		return errors.New("want take, delete NUMBER, or read NUMBER BLOCK [within D]")
	}
	n, err := strconv.ParseUint(a[1], 10, 32)
	if err != nil {
		return err
	}
	if s.exist[uint32(n)] == nil {
		return fmt.Errorf("snapshot %d does not exist", n)
	}
	if a[0] == "delete" {
		s.leaving[uint32(n)] = true
		s.order(g, writer.SnapshotOrder{Volumes: []int{0}, Delete: uint32(n)})
		return nil
	}
	block, err := p.block(a[2])
	if err != nil {
		return err
	}
	before := p.w.counts["snapshot_read"]
	s.read(g, uint32(n), block, 1, true)
	if len(a) == 5 {
		d, err := p.duration(a[4])
		if err != nil {
			return err
		}
		if !p.w.run(p.w.now.Add(d), func() bool { return len(s.reads) == 0 }) || p.w.counts["snapshot_read"] == before {
			p.w.failf("block %s of snapshot %d is not read: %s", a[2], n, p.w.describe())
		}
		return nil
	}
	return p.await("the answer", 2*time.Minute, func() bool { return len(s.reads) == 0 })
}

// mergesLeft reports whether a copy has objects that nobody tells apart, and all
// copies are in sync.
func (s *snapshots) mergesLeft() bool {
	r := s.w.etcd.records(s.w.vm, idsOf(s.w.volume), s.w.diskIdx)
	if len(r.Volumes[0].Own.Out) > 0 {
		return false
	}
	for _, n := range s.w.nodes {
		for _, d := range n.disks {
			if e := n.engines[d.id]; e != nil && !d.dead && e.MergeLeft(s.w.volume) && slices.Contains(r.Volumes[0].Seg.Disks, d.id) {
				return true
			}
		}
	}
	return false
}

// noteMerges counts the objects that merges ended, and the blocks that went in
// place at once.
func (s *snapshots) noteMerges() {
	for _, n := range s.w.nodes {
		for _, d := range n.disks {
			if e := n.engines[d.id]; e != nil {
				s.w.counts["snapshot_merges"] += int(e.Stats().FreedObjects)
				s.w.counts["fresh_blocks"] += int(e.Stats().FreshBlocks)
			}
		}
	}
}

// readTags returns what a reader of a copy sees, by tags.
func (n *node) readTags(d, volume ids.ID, extent uint64, snap uint32) ([]wire.Tag, error) {
	c, err := n.ask(d, func(e *disk.Core, token uint64) { e.ReadTags(token, volume, extent, snap) })
	if err != nil {
		return nil, err
	}
	if c.Status == wire.Unreadable { // some tags are lost, and say so
		c.Status = wire.OK
	}
	return c.Tags, statusError(c.Status)
}
