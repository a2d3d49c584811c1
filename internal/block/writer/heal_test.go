package writer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// askRead reads several blocks.
func (w *world) askRead(g *fakeGuard, block, count int64) (*Request, func() bool) {
	r := &Request{Op: OpRead, Offset: block * repl.BlockBytes, Length: count * repl.BlockBytes}
	w.plain[r] = false
	g.step(r)
	return r, func() bool { return w.plain[r] }
}

func blocksOf(blocks ...int64) map[int64]bool {
	m := map[int64]bool{}
	for _, b := range blocks {
		m[b] = true
	}
	return m
}

// Every copy has a bad block, each another one: no block is bad on all, so
// nothing may fail (C5).
func TestReadIsPutTogetherOfAllCopies(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	for b := range int64(4) {
		w.ask(g, OpWrite, 10+b, uint64(70+b))
	}
	w.run(20 * time.Millisecond)
	for i := range 3 {
		w.replica(i).rot = blocksOf(int64(10 + i))
	}
	r, done := w.askRead(g, 9, 6)
	w.run(20 * time.Millisecond)
	if !done() || w.ioErrors > 0 {
		t.Fatalf("done %v, errors %d", done(), w.ioErrors)
	}
	for b := range int64(6) {
		want := uint64(0)
		if b >= 1 && b < 5 {
			want = uint64(69 + b)
		}
		if got := stampOf(r.Data[b*repl.BlockBytes:]); got != want {
			t.Errorf("block %d reads %d, want %d", 9+b, got, want)
		}
	}
	w.run(20 * time.Millisecond)
	repaired := 0
	for i := range 3 {
		if v := w.replica(i); len(v.rot) == 0 && v.blocks[int64(10+i)].value == uint64(70+i) {
			repaired++
		}
	}
	if repaired != 2 { // two copies have it all; the third was not asked
		t.Errorf("%d copies were repaired", repaired)
	}
	// Two blocks bad on all copies fail the read that has them, and no other.
	for i := range 3 {
		w.replica(i).rot = blocksOf(11)
	}
	_, done = w.askRead(g, 10, 3)
	_, other := w.askRead(g, 12, 2)
	w.run(20 * time.Millisecond)
	if !done() || !other() || w.ioErrors != 1 {
		t.Errorf("done %v %v, errors %d", done(), other(), w.ioErrors)
	}
}

// A read that has everything, but no lease any more, is neither answered nor
// failed: it waits for the lease.
func TestReadOfTheLastCopyWaitsForTheLease(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.ask(g, OpWrite, 3, 7)
	w.run(10 * time.Millisecond)
	w.replica(0).rot, w.replica(1).rot = blocksOf(3), blocksOf(3)
	c := g.core
	r := &Request{Op: OpRead, Offset: 3 * repl.BlockBytes, Length: repl.BlockBytes}
	w.plain[r] = false
	for _, n := range w.nodes[:3] {
		for _, v := range n.disks[0].vols {
			v.reserved = w.now.Add(5 * time.Second) // no renewals
		}
	}
	w.run(3500 * time.Millisecond)
	if c.leased() {
		t.Fatal("the lease is still held")
	}
	g.step(r)
	w.run(time.Second)
	if w.plain[r] {
		t.Fatal("answered without a lease")
	}
	w.run(4 * time.Second)
	if !w.plain[r] || w.ioErrors > 0 || stampOf(r.Data) != 7 {
		t.Errorf("after the lease came back: done %v, errors %d", w.plain[r], w.ioErrors)
	}
}

// What a replica tells of damage is repaired without any client, also what it
// knew before it was opened.
func TestDamageIsHealedWithoutAClient(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	for b := range int64(3) {
		w.ask(g, OpWrite, 20+b, uint64(70+b))
	}
	w.run(20 * time.Millisecond)
	v := w.replica(1)
	v.rot, v.lost = blocksOf(20), blocksOf(21, 30) // 30 was never written
	tell := &wire.Damage{Handle: v.handle, Blocks: []wire.SyncBlock{{Block: 20, Tag: v.tag(20)}, {Block: 21, Tag: lostTag}, {Block: 22, Tag: v.tag(22)}, {Block: 30, Tag: lostTag}, {Block: 1023, Tag: lostTag}}}
	before := v.blocks[22]
	g.step(&Received{Node: w.nodes[1].id, Msg: tell})
	if h := g.core.Health().Volumes[0]; h.Healing != 5 {
		t.Errorf("healing %d blocks, want 5", h.Healing)
	}
	w.run(50 * time.Millisecond)
	if len(v.rot)+len(v.lost) > 0 || v.blocks[20].value != 70 || v.blocks[21].value != 71 || v.blocks[22] != before {
		t.Errorf("rot %v lost %v", v.rot, v.lost)
	}
	if _, there := v.blocks[30]; there {
		t.Error("a block that nobody wrote has data now")
	}
	if h := g.core.Health().Volumes[0]; h.Healing != 0 {
		t.Errorf("still healing %d blocks", h.Healing)
	}
}

// scrubbed runs one comparison to its end.
func (w *world) scrubbed(t *testing.T, g *fakeGuard) ScrubHealth {
	t.Helper()
	runs := g.core.Health().Volumes[0].Scrub.Runs
	g.command(Command{Kind: Scrub})
	for range 100 {
		w.run(10 * time.Millisecond)
		if h := g.core.Health().Volumes[0]; h.Scrub.Runs > runs && h.Healing == 0 {
			w.run(10 * time.Millisecond)
			return h.Scrub
		}
	}
	t.Fatal("the scrub does not end")
	return ScrubHealth{}
}

func TestScrubFindsWhatDiffers(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	for b := range int64(8) {
		w.ask(g, OpWrite, 1020+b, uint64(70+b)) // over two extents
	}
	w.ask(g, OpWrite, 5, 50)
	w.run(20 * time.Millisecond)
	if h := w.scrubbed(t, g); h.Done != 2 || h.Skipped+h.Differ+h.Repaired != 0 || len(g.reports) > 0 {
		t.Fatalf("false alarm: %+v %v", h, g.reports)
	}
	// A member lost the newest write of block 1021 and says nothing; the other
	// lost the tag of block 5. Two of three have the older version of 1025.
	old := fakeBlock{1, wire.Tag{CRC: 1, Stamp: 1}, repl.Mark{Epoch: 1, Wseq: 1}}
	w.replica(2).blocks[1021] = old
	w.replica(1).lost = blocksOf(5)
	w.replica(0).blocks[1025], w.replica(1).blocks[1025] = old, old
	h := w.scrubbed(t, g)
	if h.Differ != 2 || h.Repaired != 4 || h.Runs != 2 {
		t.Errorf("%+v", h)
	}
	for i := range 3 {
		v := w.replica(i)
		if v.blocks[1021].value != 71 || v.blocks[1025].value != 75 || v.blocks[5].value != 50 || len(v.lost) > 0 {
			t.Errorf("copy %d: %v %v %v lost %v", i, v.blocks[1021], v.blocks[1025], v.blocks[5], v.lost)
		}
	}
	if len(g.evidence) != 3 || stampOf(g.evidence[0].Data) != 1 {
		t.Errorf("evidence %v", g.evidence)
	}
	if n := len(slices.DeleteFunc(slices.Clone(g.reports), func(r Report) bool { return r.Kind != ReportDiffer })); n != 2 {
		t.Errorf("%d alarms, want 2: %v", n, g.reports)
	}
	if h := w.scrubbed(t, g); h.Differ+h.Repaired != 0 {
		t.Errorf("not healed: %+v", h)
	}
}

// The scrub goes on over a connection that breaks and a member that is put out,
// and stops when it is told to.
func TestScrubOutlivesItsMembers(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.ask(g, OpWrite, 5, 50)
	w.run(20 * time.Millisecond)
	g.command(Command{Kind: Scrub})
	g.conns[w.nodes[1].id].break_(false)
	w.run(3 * time.Second)
	if h := g.core.Health().Volumes[0].Scrub; h.Running || h.Runs != 1 || h.Done != 1 {
		t.Errorf("after a reset: %+v", h)
	}
	g.command(Command{Kind: Scrub})
	g.command(Command{Kind: StopScrub})
	g.command(Command{Kind: Scrub})
	w.run(100 * time.Millisecond)
	if h := g.core.Health().Volumes[0].Scrub; h.Running || h.Runs != 2 {
		t.Errorf("stopped and begun again: %+v", h)
	}
}

// A copy that lost part of its durable log has records below the flush mark
// missing, which no window shows: it is put out before anything is read.
func TestDamagedCopyIsPutOutAtTakeover(t *testing.T) {
	for _, adopt := range []bool{false, true} {
		w := quiet(t, Mutations{})
		g := w.served(time.Second)
		w.ask(g, OpWrite, 3, 7)
		w.ask(g, OpFlush, 0, 0)
		w.run(1500 * time.Millisecond)
		v := w.replica(0)
		delete(v.blocks, 3) // the record is gone with the log
		v.log, v.damaged = nil, true
		if adopt {
			w.crash(g, true)
		} else {
			w.kill(g)
			w.start(w.nodes[0])
		}
		r, done := w.ask(w.last(), OpRead, 3, 0)
		w.run(6 * time.Second)
		if !done() || r.Data == nil || stampOf(r.Data) != 7 {
			t.Fatalf("adopt %v: done %v: the damaged copy was read", adopt, done())
		}
		w.run(10 * time.Second)
		if out := w.own().Out; len(out) > 0 || v.damaged || v.blocks[3].value != 7 {
			t.Errorf("adopt %v: not back: out %v damaged %v", adopt, out, v.damaged)
		}
	}
}

func sprint(list []int) string { return fmt.Sprint(list) }

func TestCompareTags(t *testing.T) {
	mark := func(w uint64) repl.Mark { return repl.Mark{Epoch: 3, Wseq: w} }
	tag := func(crc, stamp uint32) wire.Tag { return wire.Tag{CRC: crc, Stamp: stamp} }
	one := func(m repl.Mark, t wire.Tag) copyTags { return copyTags{m, []wire.Tag{t}} }
	absent := wire.Tag{}
	for _, c := range []struct {
		name   string
		copies []copyTags
		want   string // "bug source/bad"
	}{
		{"equal", []copyTags{one(mark(9), tag(5, 9)), one(mark(9), tag(5, 9))}, ""},
		{"no table is all absent", []copyTags{{mark(9), nil}, one(mark(9), absent)}, ""},
		{"zeros and absent", []copyTags{one(mark(9), tag(zeroCRC, 9)), one(mark(9), absent)}, ""},
		{"newer stamp", []copyTags{one(mark(9), tag(5, 8)), one(mark(9), tag(6, 9)), one(mark(9), tag(5, 8))}, "bug [1]/[0 2]"},
		{"stamps wrap", []copyTags{one(mark(1<<32+5), tag(5, 3)), one(mark(1<<32+5), tag(6, 0xfffffff0))}, "bug [0]/[1]"},
		{"the older mark does not mislead", []copyTags{one(mark(1<<32-1), tag(6, 0xfffffff0)), one(mark(1<<32+5), tag(5, 3))}, "bug [1]/[0]"},
		{"lost", []copyTags{one(mark(9), lostTag), one(mark(9), tag(6, 9))}, "[1]/[0]"},
		{"lost, the others absent", []copyTags{one(mark(9), lostTag), one(mark(9), absent)}, "[1]/[0]"},
		{"lost is not zeros", []copyTags{one(mark(9), tag(zeroCRC, 2)), one(mark(9), lostTag)}, "[0]/[1]"},
		{"all lost", []copyTags{one(mark(9), lostTag), one(mark(9), lostTag)}, "[]/[0 1]"},
		{"absent and data at one mark", []copyTags{one(mark(9), absent), one(mark(9), tag(6, 9))}, "bug [1]/[0]"},
		{"discarded later", []copyTags{one(mark(10), absent), one(mark(9), tag(6, 9))}, "bug [0]/[1]"},
		{"one stamp, two contents", []copyTags{one(mark(9), tag(5, 9)), one(mark(10), tag(6, 9))}, "bug [1]/[0]"},
	} {
		got := ""
		for _, d := range compareTags(c.copies, 1) {
			if d.bug {
				got = "bug "
			}
			got += strings.ReplaceAll(strings.Join([]string{sprint(d.source), sprint(d.bad)}, "/"), ",", "")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Extents with older objects are compared as each snapshot shows them that sees
// something else than the head does.
func TestScrubTargets(t *testing.T) {
	objects := []scrubTarget{{7, 2}, {1, 0}, {7, 0}, {1, 0}, {7, 2}, {9, 5}, {7, 4}}
	got := scrubTargets(objects, []uint32{1, 3, 4, 5})
	want := []scrubTarget{{1, 0}, {7, 0}, {7, 1}, {7, 3}, {7, 4}, {9, 0}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
