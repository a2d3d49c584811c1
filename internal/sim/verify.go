package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// verifyAll reads every block that was ever used through the writer, flushes,
// and compares the copies with each other.
func (t *tenant) verifyAll(limit clock.Instant) {
	w, m := t.w, t.guest
	m.retired = true
	t.readAll()
	m.nextID++
	f := &request{id: m.nextID, op: writer.OpFlush}
	t.oracle.issueFlush(f.id)
	m.pending[f.id] = f
	m.hand(f)
	if t.first() && !w.run(limit, func() bool { return w.snaps.busy == nil || w.snaps.busy.ended() }) {
		w.failf("an order of a snapshot is never answered; %s", w.describe())
		return
	}
	if t.first() {
		w.snaps.verify(m.guard)
	}
	if !w.run(limit, func() bool { return len(m.pending) == 0 && len(w.snaps.reads) == 0 && t.whole() }) {
		w.failf("the final read did not end: %d requests open, %d of snapshots; %s", len(m.pending), len(w.snaps.reads), w.describe())
		return
	}
	if !w.clones.on || !t.first() { // else flattening may be under way
		t.compareCopies()
	}
	if !t.first() && w.err == nil {
		t.checkLinear()
	}
	if !t.first() || w.err != nil || !w.clones.flattened() {
		return
	}
	// A block that cannot be read must be repaired before it can be merged. Scrubs look
	// at what only snapshots show, too; what no copy has any more, or what a disk lost
	// since the last scrub, may still hold a merge back.
	if !w.run(w.now.Add(5*time.Minute), func() bool { return len(m.pending) == 0 && !w.snaps.mergesLeft() }) && w.err == nil {
		if !w.lied() {
			w.failf("objects that no reader tells apart are not merged; %s", w.describe())
			return
		}
		w.note("merge_waits_for_repair")
	}
	w.snaps.noteMerges()
	t.compareCopies()
	if w.clones.on && w.err == nil {
		t.readAll()
		w.snaps.verify(m.guard)
		if !w.run(limit, func() bool { return len(m.pending) == 0 && len(w.snaps.reads) == 0 }) {
			w.failf("the read of a clone without its parent did not end; %s", w.describe())
		}
	}
	if w.err == nil {
		t.checkLinear()
	}
}

// readAll reads every block through the writer.
func (t *tenant) readAll() {
	m := t.guest
	for first := 0; first < volumeBlocks; first += 64 {
		m.nextID++
		r := &request{id: m.nextID, op: writer.OpRead, first: first, count: min(64, volumeBlocks-first)}
		t.oracle.issueRead(r.id, r.first, r.count)
		m.pending[r.id] = r
		m.hand(r)
	}
}

// compareCopies demands equal tags at all members of each segment (I11), as each
// reader sees them: what stands in which object may differ.
func (t *tenant) compareCopies() {
	for _, snap := range append([]uint32{0}, t.snapshots()...) {
		t.compareReader(snap)
	}
}

func (t *tenant) compareReader(snap uint32) {
	w, v := t.w, t.record()
	for e := range uint64(extentCount) {
		var want []wire.Tag
		from := ""
		for _, d := range v.ISR(int(e) * repl.ExtentBytes / segmentBytes) {
			n := w.nodeOfDisk(d)
			if n.diskByID(d).dead {
				continue // it died since
			}
			got, err := n.readTags(d, t.volume, e, snap)
			if err != nil {
				w.failf("read the tags of extent %d on %s: %v", e, n.name(), err)
				return
			}
			if got == nil {
				got = make([]wire.Tag, repl.ExtentBlocks)
			}
			if t.scrubCopy(n, d, e, snap, got); w.err != nil {
				return
			}
			if want == nil {
				want, from = got, n.name()
				continue
			}
			for b := range want {
				if !sameContent(want[b], got[b]) && want[b] != lostTag && got[b] != lostTag {
					w.failf("extent %d block %d of snapshot %d differs: %s has %v, %s has %v", e, b, snap, from, want[b], n.name(), got[b])
					return
				}
			}
		}
	}
}

// zeroCRC is the checksum of a block of zeros: such a block and an absent one
// read the same.
var zeroCRC = crcOf(make([]byte, repl.BlockBytes))

// lostTag stands where rotten metadata was dropped; scrub repairs it.
var lostTag = wire.Lost

func sameContent(a, b wire.Tag) bool {
	if a.CRC == b.CRC && a.Stamp == b.Stamp {
		return true
	}
	zero := func(t wire.Tag) bool { return t.Stamp == 0 || t.CRC == zeroCRC }
	return zero(a) && zero(b)
}

// describe says how the nodes and the volumes are, but those of which nothing more is
// asked.
func (w *world) describe() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s powered=%v serving=%v; ", n.name(), n.powered, n.serving())
	}
	for i, t := range w.asked() {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(t.describeGuard())
	}
	return b.String()
}

func (t *tenant) describeGuard() string {
	var b strings.Builder
	if t.index > 0 {
		fmt.Fprintf(&b, "vol%d: ", t.index+1)
	}
	g := t.manager.active
	if g == nil {
		return b.String() + "no active guard"
	}
	h := g.core.Health()
	fmt.Fprintf(&b, "active %s %v lease=%v ended=%v pending=%d", g.name(), h.State, g.leaseHeld(), g.ended(), len(t.guest.pending))
	for _, v := range h.Volumes {
		for _, m := range v.Members {
			fmt.Fprintf(&b, "; member %s in=%v conn=%v reason=%s syncing=%v %d/%d", t.w.nodeByID(m.Node).name(), m.InSync, m.Connected, m.Reason, m.Syncing, m.SyncDone, m.SyncTotal)
		}
	}
	return b.String()
}

// observeSend counts live writes into an extent of which a resync is just
// writing a part.
func (l *link) observeSend(m wire.Message) {
	at := int64(-1)
	switch m := m.(type) {
	case *wire.SyncWrite:
		l.g.observeLost(m)
		if l.syncing == nil {
			l.syncing = map[uint64]uint64{}
		}
		l.syncing[m.ReqID] = m.Extent
	case *wire.Write:
		at = m.Offset / repl.ExtentBytes
	case *wire.Zero:
		at = m.Offset / repl.ExtentBytes
	case *wire.Repair:
		l.g.w.note("repair_sent")
	}
	for _, e := range l.syncing {
		if at >= 0 && e == uint64(at) {
			l.g.w.note("resync_race")
			return
		}
	}
}

// observeLost notes blocks that a join gives up, which it may only if the one node
// whose disks rot has the last copies.
func (g *guard) observeLost(m *wire.SyncWrite) {
	w, t := g.w, g.t
	for _, b := range m.Blocks {
		if b.Tag != wire.Lost {
			continue
		}
		block := int(m.Extent)*repl.ExtentBlocks + int(b.Block)
		set := t.isr(block)[0]
		if known := t.knownISR(g, block); known != nil {
			set = known // a grow whose answer is under way is not known yet
		}
		for _, i := range set {
			if (i != w.profile.rotNode || !w.lied()) && !t.givenUp[block] && !t.lostIn[[2]int{int(m.Object), block}] {
				w.failf("block %d is given up although %s is in sync", block, w.nodes[i].name())
			}
		}
		w.note("block_given_up")
		t.givenUp[block], t.lostIn[[2]int{int(m.Object), block}] = true, true
	}
}

// healGivenUp writes the blocks that were given up: they must be whole again.
func (w *world) healGivenUp() bool {
	for _, t := range w.asked() {
		for _, b := range slices.Sorted(maps.Keys(t.givenUp)) {
			if t.guest.alive {
				t.guest.put(writer.OpWrite, b, 1, false)
			}
			if !w.run(w.now.Add(time.Minute), t.whole) {
				w.failf("block %d, which was given up, cannot be written; %s", b, w.describe())
				return false
			}
		}
	}
	return true
}

// observe looks at what passes, to count the interesting states.
func (w *world) observe(g *guard, l *link, m wire.Message) {
	switch m := m.(type) {
	case *wire.OpenAck:
		w.tracef("%s open of %s: status %d cold=%v grant=%d left=%s unverified=%d damaged=%v epoch %d marks %v %v %v", g.name(), l.node.name(), m.Status, m.Cold, m.Grant, m.GrantLeft,
			m.Unverified, m.Damaged, m.Promised.Epoch, m.DurableMark, m.FlushMark, m.MaxMark)
		if m.Unverified > 0 {
			w.note("unverified_tail")
		}
		if m.Cold {
			w.note("cold_member")
		}
		if m.Grant == wire.GrantUnknown {
			w.note("grant_unknown")
		}
	case *wire.Window:
		w.observeWindow(g, l, m)
	case *wire.Ack:
		w.filler.noteFullJoin(l, m)
		delete(l.syncing, m.ReqID)
	case *wire.ExtTags:
		w.note("sync_tags")
	case *wire.ExtList:
		w.note("resync")
	}
}

// observeWindow counts takeovers whose members differ above the flush mark.
func (w *world) observeWindow(g *guard, l *link, m *wire.Window) {
	if g.windows == nil {
		g.windows = map[int]string{}
	}
	for _, e := range m.Entries {
		w.tracef("%s window of %s: %+v", g.name(), l.node.name(), e)
		g.windows[l.node.index] += fmt.Sprintf("%d/%d/%d/%d.%d ", e.Extent, e.Block, e.Count, e.Mark.Epoch, e.Mark.Wseq)
	}
	if !m.Last {
		return
	}
	g.windows[l.node.index] += "."
	for i := range w.nodes {
		if o, ok := g.windows[i]; ok && strings.HasSuffix(o, ".") && o != g.windows[l.node.index] && !g.divergent {
			g.divergent = true
			w.note("divergent_window")
		}
	}
}
