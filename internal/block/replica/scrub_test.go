package replica

import (
	"bytes"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// scrubWorld is a replica core over a real engine on a disk in memory, with one
// guard connected.
type scrubWorld struct {
	t      *testing.T
	c      *Core
	dev    *disktest.Disk
	id     ids.ID
	now    clock.Instant
	req    uint64
	msgs   []wire.Message
	events []Event
	took   time.Duration // of each action
}

var scrubVolume = id("vol")

func newScrubWorld(t *testing.T) *scrubWorld {
	w := &scrubWorld{t: t, id: id("disk"), now: clock.Instant(time.Hour), took: time.Millisecond}
	dev, err := disktest.Format(disk.Identity{Cluster: id("cluster"), Disk: w.id}, disk.Geometry{DeviceBytes: 16 << 20, WALBytes: 512 << 10, VolumeTableBytes: 64 << 10, ExtentBlocks: 64})
	if err != nil {
		t.Fatal(err)
	}
	w.dev = dev
	w.start()
	return w
}

// start begins a new process on the disk and opens the volume.
func (w *scrubWorld) start() {
	v, _, err := disktest.Open(w.dev, disk.Options{TagCacheBytes: 1}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.c = New(Options{Node: id("n1"), Cluster: id("cluster"), Session: id("s"), Boot: id("b"), Pool: &disk.HeapPool{}})
	w.c.AddDisk(w.now, v.Core, ids.ID{})
	w.pump()
	w.now = w.now.Add(4 * time.Second) // what an earlier process may have granted
	w.c.ConnOpened(1, id("n1"))
	w.c.Received(w.now, 1, &wire.Hello{Cluster: id("cluster"), Node: id("n1"), Guard: id("g"), ProtoMin: 1, ProtoMax: wire.ProtocolVersion})
	w.pump()
}

func (w *scrubWorld) open() wire.Handle {
	w.t.Helper()
	w.req++
	w.c.Received(w.now, 1, &wire.Open{ReqID: w.req, Volume: scrubVolume, Disk: w.id, SizeBytes: 1 << 30,
		Promise: repl.Promise{Epoch: 1, Nonce: id("x"), Node: id("n1"), Run: id("r")}})
	w.pump()
	for _, m := range w.msgs {
		if a, ok := m.(*wire.OpenAck); ok && a.ReqID == w.req && a.Status == wire.OK {
			return a.Handle
		}
	}
	w.t.Fatalf("not opened: %+v", w.msgs)
	return 0
}

// pump performs actions until there are none; each takes w.took.
func (w *scrubWorld) pump() {
	for range 10000 {
		var r Ready
		w.c.Ready(w.now, &r)
		for _, s := range r.Sends {
			w.msgs = append(w.msgs, s.Msg)
		}
		w.events = append(w.events, r.Events...)
		if len(r.IO) == 0 {
			return
		}
		for _, io := range append([]DiskIO(nil), r.IO...) {
			w.now = w.now.Add(w.took)
			w.c.DiskDone(io.Disk, io.IO.ID, w.dev.Do(io.IO))
		}
	}
	w.t.Fatal("the core never has nothing to do")
}

func (w *scrubWorld) write(h wire.Handle, wseq uint64, block int64, data []byte) {
	w.req++
	w.c.Received(w.now, 1, &wire.Write{ReqID: w.req, Handle: h, Mark: repl.Mark{Epoch: 1, Wseq: wseq}, Offset: block * repl.BlockBytes,
		Data: bytes.Clone(data), CRC: []uint32{wire.Checksum(data)}})
	w.pump()
}

// tick lets time pass until cond, at most for a minute.
func (w *scrubWorld) until(what string, cond func() bool) time.Duration {
	w.t.Helper()
	from := w.now
	for !cond() {
		if w.now.Sub(from) > time.Hour {
			w.t.Fatalf("not within an hour: %s", what)
		}
		w.now = max(w.now+1, w.c.Next())
		w.c.Tick(w.now)
		w.pump()
	}
	return w.now.Sub(from)
}

func (w *scrubWorld) scrub(o ScrubOptions) time.Duration {
	w.t.Helper()
	if !w.c.StartScrub(w.now, w.id, o) {
		w.t.Fatal("the disk is not there")
	}
	return w.until("the pass to end", func() bool { return !w.c.Scrub(w.id).Running })
}

func (w *scrubWorld) count(k EventKind) (n int) {
	for _, e := range w.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func (w *scrubWorld) damage() (list []*wire.Damage) {
	for _, m := range w.msgs {
		if d, ok := m.(*wire.Damage); ok {
			list = append(list, d)
		}
	}
	return list
}

// filled has n extents with two blocks each, all of it at rest.
func (w *scrubWorld) filled(n int) wire.Handle {
	h := w.open()
	for e := range int64(n) {
		for b := range int64(2) {
			w.write(h, uint64(e*2+b+1), e*64+b, bytes.Repeat([]byte{byte(e), byte(b + 1)}, repl.BlockBytes/2))
		}
	}
	w.scrub(ScrubOptions{DutyPercent: 100}) // begins with a checkpoint
	return h
}

func (w *scrubWorld) layout() disk.Superblock {
	rep, err := disk.Fsck(w.dev, w.dev.Size)
	if err != nil {
		w.t.Fatal(err)
	}
	return rep.Superblock
}

func TestScrubTellsTheWriterAndRemembers(t *testing.T) {
	w := newScrubWorld(t)
	h := w.filled(3)
	if st := w.c.Scrub(w.id); st.Extents != 3 || st.Total != 3 || st.Bytes != 6*repl.BlockBytes || st.BadBlocks+st.BadMetadata+st.Skipped != 0 {
		t.Fatalf("clean pass: %+v", st)
	}
	sb := w.layout()
	w.dev.Flip(sb.DataOffset+64*repl.BlockBytes+repl.BlockBytes+5, 1) // second extent, second block
	w.dev.Flip(sb.MetaOffset+40, 1)
	w.scrub(ScrubOptions{})
	if st := w.c.Scrub(w.id); st.BadBlocks != 1 || st.BadMetadata != 1 || w.count(BlockBad) != 1 || w.count(MetaRepaired) != 1 || w.count(ScrubEnded) != 2 {
		t.Fatalf("%+v, events %v", st, w.events)
	}
	told := w.damage()
	if len(told) != 1 || told[0].Handle != h || told[0].Extent != 1 || len(told[0].Blocks) != 1 || told[0].Blocks[0].Block != 1 {
		t.Fatalf("told %+v", told)
	}
	if list := w.c.DamageOf(w.id); len(list) != 1 || list[0] != (Damage{scrubVolume, 1}) {
		t.Fatalf("damage %v", list)
	}
	// A second pass tells it again: the first word may have met a writer that
	// could not act. A new handle hears of it.
	w.scrub(ScrubOptions{})
	if n := len(w.damage()); n != 2 {
		t.Errorf("told %d times", n)
	}
	h = w.open()
	if told = w.damage(); len(told) != 3 || told[2].Handle != h {
		t.Fatalf("not told at OPEN: %+v", told)
	}
	good := bytes.Repeat([]byte{1, 2}, repl.BlockBytes/2)
	w.req++
	w.c.Received(w.now, 1, &wire.Repair{ReqID: w.req, Handle: h, Extent: 1, Block: 1, Expect: told[1].Blocks[0].Tag, Tag: told[1].Blocks[0].Tag,
		Mark: repl.Mark{Epoch: 1, Wseq: 4}, Data: good})
	w.pump()
	if len(w.c.DamageOf(w.id)) > 0 || w.count(BlockRepaired) != 1 {
		t.Errorf("after REPAIR: %v, %d events", w.c.DamageOf(w.id), w.count(BlockRepaired))
	}
	w.scrub(ScrubOptions{})
	if st := w.c.Scrub(w.id); st.BadBlocks+st.BadMetadata != 0 {
		t.Errorf("after the repair: %+v", st)
	}
}

// What only a snapshot shows is read, too: its damage is told under the snapshot's
// number, repaired there, and forgotten with the snapshot.
func TestScrubReadsWhatOnlySnapshotsSee(t *testing.T) {
	w := newScrubWorld(t)
	h := w.open()
	version := uint32(0)
	tell := func(snaps ...uint32) {
		w.req++
		version++
		w.c.Received(w.now, 1, &wire.Config{ReqID: w.req, Handle: h, Told: wire.Told{Epoch: 1, CfgVersion: version, SnapSeq: 1, Snaps: snaps}})
		w.pump()
	}
	write := func(wseq uint64, snap uint32, data []byte) {
		w.req++
		w.c.Received(w.now, 1, &wire.Write{ReqID: w.req, Handle: h, Mark: repl.Mark{Epoch: 1, Wseq: wseq}, Offset: 0, SnapSeq: snap,
			Data: bytes.Clone(data), CRC: []uint32{wire.Checksum(data)}})
		w.pump()
	}
	old := bytes.Repeat([]byte{1}, repl.BlockBytes)
	write(1, 0, old)
	w.scrub(ScrubOptions{DutyPercent: 100}) // at rest, in the first slot
	tell(1)
	write(2, 1, bytes.Repeat([]byte{2}, repl.BlockBytes))
	w.scrub(ScrubOptions{})
	if st := w.c.Scrub(w.id); st.BadBlocks != 0 || st.Bytes != 2*repl.BlockBytes {
		t.Fatalf("clean pass: %+v", st)
	}
	rot := func() { w.dev.Flip(w.layout().DataOffset+5, 1) }
	rot()
	w.scrub(ScrubOptions{})
	told := w.damage()
	if len(told) != 1 || told[0].Object != 1 || told[0].Extent != 0 || len(told[0].Blocks) != 1 || told[0].Blocks[0].Block != 0 {
		t.Fatalf("told %+v", told)
	}
	w.req++
	tag := told[0].Blocks[0].Tag
	w.c.Received(w.now, 1, &wire.Repair{ReqID: w.req, Handle: h, Object: 1, Expect: tag, Tag: tag, Mark: repl.Mark{Epoch: 1, Wseq: 1}, Data: old})
	w.pump()
	if list := w.c.DamageOf(w.id); len(list) > 0 || w.count(BlockRepaired) != 1 {
		t.Fatalf("after REPAIR: %v, %d events", list, w.count(BlockRepaired))
	}
	w.scrub(ScrubOptions{})
	if st := w.c.Scrub(w.id); st.BadBlocks != 0 {
		t.Errorf("after the repair: %+v", st)
	}
	rot()
	w.scrub(ScrubOptions{})
	if list := w.c.DamageOf(w.id); len(list) != 1 {
		t.Fatalf("damage %v", list)
	}
	tell()
	if list := w.c.DamageOf(w.id); len(list) > 0 {
		t.Errorf("damage of a snapshot that is gone: %v", list)
	}
}

// twoObjects brings an extent with one object below snapshot 1 and one above it to rest;
// the older lies in the first slot.
func (w *scrubWorld) twoObjects(h wire.Handle) {
	for i, snap := range []uint32{0, 1} {
		data := bytes.Repeat([]byte{byte(i + 1)}, repl.BlockBytes)
		w.req++
		w.c.Received(w.now, 1, &wire.Write{ReqID: w.req, Handle: h, Mark: repl.Mark{Epoch: 1, Wseq: uint64(i + 1)}, SnapSeq: snap, Data: data, CRC: []uint32{wire.Checksum(data)}})
		w.pump()
		w.scrub(ScrubOptions{DutyPercent: 100})
	}
}

// A copy that was told of no snapshot yet is read in full all the same: the number of
// the newer object stands for it, and the damage is kept until a CONFIG says more.
func TestScrubReadsObjectsOfUntoldSnapshots(t *testing.T) {
	w := newScrubWorld(t)
	h := w.open()
	w.twoObjects(h)
	w.dev.Flip(w.layout().DataOffset+5, 1) // the first slot: the older object
	w.scrub(ScrubOptions{})
	told := w.damage()
	if len(told) != 1 || told[0].Object != 1 || len(told[0].Blocks) != 1 || told[0].Blocks[0].Block != 0 {
		t.Fatalf("told %+v", told)
	}
	tell := func(version uint32, snaps ...uint32) int {
		w.req++
		w.c.Received(w.now, 1, &wire.Config{ReqID: w.req, Handle: h, Told: wire.Told{Epoch: 1, CfgVersion: version, SnapSeq: 1, Snaps: snaps}})
		w.pump()
		return len(w.c.DamageOf(w.id))
	}
	if n := len(w.c.DamageOf(w.id)); n != 1 {
		t.Errorf("before CONFIG: %d", n)
	}
	if n := tell(1, 1); n != 1 {
		t.Errorf("the snapshot is there: %d", n)
	}
	if n := tell(2); n != 0 {
		t.Errorf("the snapshot is gone: %d", n)
	}
}

// A copy that knew snapshots and joins again hides them, and counts as untold: a pass
// reads its objects all the same, and keeps what it finds.
func TestScrubReadsObjectsOfHiddenSnapshots(t *testing.T) {
	w := newScrubWorld(t)
	h := w.open()
	tell := func(version uint32) {
		w.req++
		w.c.Received(w.now, 1, &wire.Config{ReqID: w.req, Handle: h, Told: wire.Told{Epoch: 1, CfgVersion: version, SnapSeq: 1, Snaps: []uint32{1}}})
		w.pump()
	}
	tell(1)
	w.twoObjects(h)
	w.req++
	w.c.Received(w.now, 1, &wire.SyncBegin{ReqID: w.req, Handle: h})
	w.pump()
	w.dev.Flip(w.layout().DataOffset+5, 1) // the first slot: the older object
	w.scrub(ScrubOptions{})
	if st := w.c.Scrub(w.id); st.BadBlocks != 1 {
		t.Fatalf("the pass: %+v", st)
	}
	if told := w.damage(); len(told) != 1 || told[0].Object != 1 || len(told[0].Blocks) != 1 || told[0].Blocks[0].Block != 0 {
		t.Errorf("told %+v", told)
	}
	tell(2)
	if n := len(w.c.DamageOf(w.id)); n != 1 {
		t.Errorf("kept until the snapshot is known again: %d", n)
	}
}

// A pass reads the images of every object of an extent: one that rots costs nothing as
// long as its twin is whole, and both are written again before that rots as well.
func TestScrubReadsImagesOfOlderObjects(t *testing.T) {
	w := newScrubWorld(t)
	h := w.open()
	w.req++
	w.c.Received(w.now, 1, &wire.Config{ReqID: w.req, Handle: h, Told: wire.Told{Epoch: 1, CfgVersion: 1, SnapSeq: 2, Snaps: []uint32{1, 2}}})
	w.pump()
	for i := range uint32(3) { // three objects, so three slots, in this order
		data := bytes.Repeat([]byte{byte(i + 1)}, repl.BlockBytes)
		w.req++
		w.c.Received(w.now, 1, &wire.Write{ReqID: w.req, Handle: h, Mark: repl.Mark{Epoch: 1, Wseq: uint64(i + 1)}, SnapSeq: i, Data: data, CRC: []uint32{wire.Checksum(data)}})
		w.pump()
		w.scrub(ScrubOptions{DutyPercent: 100}) // at rest
	}
	if st := w.c.Scrub(w.id); st.BadBlocks+st.BadMetadata+st.Skipped != 0 || st.Extents != 1 || st.Bytes != 3*repl.BlockBytes {
		t.Fatalf("clean pass: %+v", st)
	}
	sb := w.layout()
	const imageBytes = 2 * repl.BlockBytes // of 64 blocks: header page and one page of tags
	for slot := range int64(3) {
		for image := range int64(2) {
			repaired := w.count(MetaRepaired)
			w.dev.Flip(sb.MetaOffset+(2*slot+image)*imageBytes+70, 1)
			w.scrub(ScrubOptions{DutyPercent: 100})
			if st := w.c.Scrub(w.id); st.BadMetadata != 1 || st.BadBlocks != 0 || w.count(MetaRepaired) != repaired+1 {
				t.Errorf("slot %d, image %d: %+v", slot, image, st)
			}
		}
	}
	w.scrub(ScrubOptions{DutyPercent: 100})
	if st := w.c.Scrub(w.id); st.BadBlocks+st.BadMetadata != 0 {
		t.Errorf("not written again: %+v", st)
	}
	rep, err := disk.Fsck(w.dev, w.dev.Size)
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("at the end: %v %v", err, rep.Problems)
	}
}

// A write over a bad block ends its damage; so does nothing else.
func TestDamageEndsByAWrite(t *testing.T) {
	w := newScrubWorld(t)
	h := w.filled(1)
	w.dev.Flip(w.layout().DataOffset+5, 1)
	w.scrub(ScrubOptions{})
	w.write(h, 10, 1, make([]byte, repl.BlockBytes))
	if n := len(w.c.DamageOf(w.id)); n != 1 {
		t.Fatalf("a write beside it: %d", n)
	}
	w.write(h, 11, 0, make([]byte, repl.BlockBytes))
	if n := len(w.c.DamageOf(w.id)); n != 0 {
		t.Errorf("still %d", n)
	}
}

func TestScrubTakesItsShareOfTheTime(t *testing.T) {
	w := newScrubWorld(t)
	w.filled(30)
	quick := w.scrub(ScrubOptions{DutyPercent: 100})
	slow := w.scrub(ScrubOptions{DutyPercent: 5})
	if slow < 15*quick || slow > 30*quick {
		t.Errorf("at 100 %%: %v, at 5 %%: %v", quick, slow)
	}
}

func TestScrubStopsAndGoesOn(t *testing.T) {
	w := newScrubWorld(t)
	w.filled(4)
	w.c.StartScrub(w.now, w.id, ScrubOptions{})
	w.until("the third extent", func() bool { return w.c.Scrub(w.id).Extents == 2 })
	w.c.StopScrub(w.id)
	st := w.c.Scrub(w.id)
	if st.Running || st.Cursor.Volume != scrubVolume || w.count(ScrubEnded) != 1 {
		t.Fatalf("%+v", st)
	}
	w.start() // another process
	w.scrub(ScrubOptions{From: st.Cursor})
	if got := w.c.Scrub(w.id); got.Extents != 4-int(st.Cursor.Extent) || got.Cursor != (ScrubCursor{}) {
		t.Errorf("from %+v: %+v", st.Cursor, got)
	}
}
