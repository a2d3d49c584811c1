package disk_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

func (f *fixture) writeObject(object uint32, wseq, extent uint64, block int, data []byte) {
	f.t.Helper()
	r := f.record(disk.KindWrite, vol1, 1, wseq, extent, block, len(data)/disk.BlockBytes, data)
	r.Object = object
	if s := f.append(r); s != wire.OK {
		f.t.Fatalf("write into object %d: status %d", object, s)
	}
}

func (f *fixture) zeroObject(kind disk.Kind, object uint32, wseq, extent uint64, block, count int) {
	f.t.Helper()
	r := f.record(kind, vol1, 1, wseq, extent, block, count, nil)
	r.Object = object
	if s := f.append(r); s != wire.OK {
		f.t.Fatalf("zero in object %d: status %d", object, s)
	}
}

func (f *fixture) tell(told wire.Told) {
	f.t.Helper()
	told.Epoch = 1
	tok := f.next()
	f.Core.Control(tok, disk.Control{Kind: disk.ControlConfig, Volume: vol1, Told: told})
	if c := f.wait(tok); c.Status != wire.OK {
		f.t.Fatalf("config: status %d", c.Status)
	}
}

// wantAt compares what snapshot snap (0 = head) shows; nil data: zeros.
func (f *fixture) wantAt(snap uint32, extent uint64, block int, data []byte) {
	f.t.Helper()
	n := max(1, len(data)/disk.BlockBytes)
	tok := f.next()
	f.Core.Read(tok, disk.ReadRequest{Volume: vol1, Extent: extent, Object: snap, Block: block, Count: n, Buf: f.Pool.Alloc(n * disk.BlockBytes)})
	c := f.wait(tok)
	got := c.Data
	if got == nil {
		got = make([]byte, n*disk.BlockBytes)
	}
	if data == nil {
		data = make([]byte, disk.BlockBytes)
	}
	if c.Status != wire.OK || !bytes.Equal(got, data) {
		f.t.Fatalf("snapshot %d, block %d/%d: status %d, bad %v, equal %v", snap, extent, block, c.Status, c.Bad, bytes.Equal(got, data))
	}
}

func (f *fixture) mergeAll() {
	f.t.Helper()
	for range 1000 {
		if !f.Core.Merge() {
			f.Quiesce()
			return
		}
		f.Settle()
	}
	f.t.Fatal("merging does not end")
}

func (f *fixture) flushAll(wseq uint64) {
	f.t.Helper()
	f.flush(vol1, 1, wseq)
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: wseq})
}

func used(f *fixture) int { s := f.Core.Stats(); return s.Slots - s.FreeSlots }

func TestSnapshotsShowTheirContent(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{TagCacheBytes: 1})
	f.promise(vol1, 1)
	f.writeObject(0, 1, 0, 0, pattern(4, 1))
	f.writeObject(1, 2, 0, 1, pattern(1, 2)) // after snapshot 1
	f.zeroObject(disk.KindZero, 1, 3, 0, 2, 1)
	f.writeObject(2, 4, 0, 3, pattern(1, 3)) // after snapshot 2
	f.zeroObject(disk.KindTombstone, 3, 5, 0, 0, extentBlocks)
	f.writeObject(3, 6, 0, 0, pattern(1, 4)) // after snapshot 3
	f.writeObject(3, 7, 1, 0, pattern(1, 5)) // an extent that no snapshot has
	check := func() {
		t.Helper()
		base := pattern(4, 1)
		f.wantAt(1, 0, 0, base)
		f.wantAt(2, 0, 1, pattern(1, 2))
		f.wantAt(2, 0, 2, nil)
		f.wantAt(2, 0, 3, base[3*disk.BlockBytes:])
		f.wantAt(3, 0, 0, base[:disk.BlockBytes])
		f.wantAt(3, 0, 3, pattern(1, 3))
		f.wantAt(0, 0, 0, pattern(1, 4))
		for b := 1; b < 4; b++ {
			f.wantAt(0, 0, b, nil)
		}
		f.wantAt(3, 1, 0, nil)
		f.wantAt(0, 1, 0, pattern(1, 5))
	}
	check()
	for range 2 {
		f = open(t, d, disk.Options{TagCacheBytes: 1})
		check()
		f.Quiesce()
		check()
	}
	rep, err := disk.Fsck(d, d.Size)
	if err != nil || len(rep.Problems) > 0 || rep.Superblock.Incompat == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestADiskWithoutSnapshotsKeepsItsFormat(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	f.writeObject(0, 1, 0, 0, pattern(1, 1))
	f.Quiesce()
	if rep, err := disk.Fsck(d, d.Size); err != nil || rep.Superblock.Incompat != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestDeletedSnapshotsGiveTheirSpaceBack(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	wseq := uint64(0)
	for n := range uint32(4) {
		for e := range uint64(3) {
			wseq++
			f.writeObject(n, wseq, e, int(n), pattern(2, byte(10*n)+byte(e)))
		}
	}
	f.tell(wire.Told{Whole: true, SnapSeq: 3, Snaps: []uint32{1, 2, 3}})
	f.flushAll(wseq)
	f.mergeAll()
	if n := used(f); n != 12 {
		t.Fatalf("%d slots used with three snapshots of three extents", n)
	}
	f.tell(wire.Told{SnapSeq: 3, Snaps: []uint32{2}, Out: []ids.ID{{1}}})
	f.mergeAll()
	if n := used(f); n != 12 {
		t.Fatalf("%d slots used: merged although a copy is out", n)
	}
	f.tell(wire.Told{Whole: true, SnapSeq: 3, Snaps: []uint32{2}})
	f.Core.ForbidMerge(vol1)
	f.mergeAll()
	if n := used(f); n != 12 {
		t.Fatalf("%d slots used: merged in a sync", n)
	}
	if !f.Core.MergeStuck(vol1) {
		t.Fatal("the merge does not wait for a writer's word")
	}
	f.tell(wire.Told{Whole: true, SnapSeq: 3, Snaps: []uint32{2}})
	if !f.Core.MergeLeft(vol1) || f.Core.MergeStuck(vol1) {
		t.Fatal("nothing to merge, or not permitted")
	}
	f.mergeAll()
	if n := used(f); n != 6 || f.Core.MergeLeft(vol1) {
		t.Fatalf("%d slots used with one snapshot", n)
	}
	check := func() {
		t.Helper()
		for e := range uint64(3) {
			at := func(n uint32) []byte { return pattern(2, byte(10*n)+byte(e)) }
			f.wantAt(2, e, 0, at(0)[:disk.BlockBytes])
			f.wantAt(2, e, 1, at(1))
			f.wantAt(2, e, 3, nil)
			f.wantAt(0, e, 2, at(2)[:disk.BlockBytes])
			f.wantAt(0, e, 3, at(3))
		}
	}
	check()
	f = open(t, d, disk.Options{})
	check()
	if n := used(f); n != 6 {
		t.Fatalf("%d slots used after a restart", n)
	}
	f.promise(vol1, 1)
	f.tell(wire.Told{Whole: true, SnapSeq: 3})
	f.mergeAll()
	if n := used(f); n != 3 {
		t.Fatalf("%d slots used without snapshots", n)
	}
	f.wantAt(0, 0, 0, pattern(2, 0)[:disk.BlockBytes])
	if rep, err := disk.Fsck(d, d.Size); err != nil || len(rep.Problems) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// A joining disk gets a live write of a new number before it has the older
// objects, and holes that hide what the source sends of them.
func TestSyncInsertsObjectsBelowTheHead(t *testing.T) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	f.writeObject(2, 10, 0, 0, pattern(1, 1))
	f.zeroObject(disk.KindZero, 2, 11, 0, 1, 1)
	r := f.record(disk.KindSync, vol1, 1, 5, 0, 0, 0, pattern(3, 7))
	r.Object = 1
	for b, crc := range r.CRC {
		r.Blocks = append(r.Blocks, wire.SyncBlock{Block: uint16(b), Tag: wire.Tag{CRC: crc, Stamp: 5}})
	}
	r.CRC = nil
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	f.wantAt(0, 0, 0, pattern(1, 1))
	f.wantAt(0, 0, 1, nil)
	f.wantAt(0, 0, 2, pattern(3, 7)[2*disk.BlockBytes:])
	f.wantAt(2, 0, 0, pattern(3, 7))
	// The source has no object 2: what the disk has of it becomes absent, also
	// where it was a tombstone.
	f.zeroObject(disk.KindTombstone, 2, 12, 0, 0, extentBlocks)
	f.wantAt(0, 0, 2, nil)
	f.Quiesce()
	r = f.record(disk.KindSync, vol1, 1, 13, 0, 0, 0, nil)
	r.Object = 2
	for b := range extentBlocks {
		r.Blocks = append(r.Blocks, wire.SyncBlock{Block: uint16(b)})
	}
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	f.wantAt(0, 0, 0, pattern(3, 7))
	f.Quiesce()
	f.wantAt(0, 0, 0, pattern(3, 7))
	for _, e := range f.Core.Window(vol1, repl.Mark{Epoch: 1, Wseq: 12}) {
		t.Fatalf("the window has %+v: absent blocks would be rewritten as holes", e)
	}
}

// A repair names a reader: the block may lie in another object than where its
// peer has it.
func TestRepairFindsTheObject(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	f.writeObject(0, 1, 0, 0, pattern(1, 1))
	f.writeObject(1, 2, 0, 1, pattern(1, 2))
	f.Quiesce()
	tag := wire.Tag{CRC: crcs(pattern(1, 1))[0], Stamp: 1}
	r := f.record(disk.KindRepair, vol1, 1, 2, 0, 0, 1, pattern(1, 1))
	r.CRC, r.Count, r.Expect, r.Tag = nil, 0, tag, tag
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	f.Quiesce()
	tok := f.next()
	f.Core.Tags(tok, vol1, 0, 1)
	if c := f.wait(tok); c.Tags[0] != (wire.Tag{}) {
		t.Fatalf("the repair went into the newest object: %+v", c.Tags[0])
	}
	f.wantAt(0, 0, 0, pattern(1, 1))
}

// Live writes go on while objects are merged.
func TestMergeBesideWrites(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		f := open(t, format(t), disk.Options{TagCacheBytes: 1, DataCacheBytes: 1})
		f.promise(vol1, 1)
		want := pattern(extentBlocks, 1)
		f.writeObject(0, 1, 0, 0, want)
		f.writeObject(1, 2, 0, 3, pattern(1, 9))
		copy(want[3*disk.BlockBytes:], pattern(1, 9))
		f.flushAll(2)
		f.tell(wire.Told{Whole: true, SnapSeq: 1})
		wseq := uint64(2)
		for range 200 {
			switch r.IntN(4) {
			case 0:
				wseq++
				b := r.IntN(extentBlocks)
				f.writeObject(1, wseq, 0, b, pattern(1, byte(wseq)))
				copy(want[b*disk.BlockBytes:], pattern(1, byte(wseq)))
			case 1:
				f.Core.Merge()
				f.Pump()
			default:
				f.Step()
			}
		}
		f.mergeAll()
		f.wantAt(0, 0, 0, want)
		if n := used(f); n != 1 {
			t.Fatalf("seed %d: %d slots used", seed, n)
		}
	}
}

// A block is written over a tombstone while a checkpoint moves the tail past the
// tombstone's record: it must stay in the log, for the block's neighbours would
// show older objects.
func TestTombstoneUnderAWriteIsRemembered(t *testing.T) {
	run := func(o disk.Options, steps int) (shown bool) {
		d := format(t)
		f := open(t, d, o)
		f.promise(vol1, 1)
		f.writeObject(0, 1, 0, 0, pattern(2, 1))
		f.zeroObject(disk.KindTombstone, 1, 2, 0, 0, extentBlocks)
		f.writeObject(0, 3, 1, 0, pattern(1, 7)) // work for the next checkpoint
		f.flushAll(3)
		f.Quiesce()
		f.writeObject(0, 4, 1, 0, pattern(1, 8))
		f.flushAll(4)
		f.Core.Idle()
		f.Pump()
		for range steps {
			f.Step()
		}
		f.writeObject(1, 5, 0, 0, pattern(1, 9))
		f.Settle() // the checkpoint ends
		f = open(t, d, o)
		f.wantAt(0, 0, 0, pattern(1, 9))
		c := f.read(vol1, 0, 1, 1)
		return c.Data != nil
	}
	lost := false
	for steps := range 30 {
		if run(disk.Options{}, steps) {
			t.Fatalf("%d steps into the checkpoint: what was discarded shows again", steps)
		}
		lost = lost || run(disk.Options{Mutations: disk.Mutations{ForgetHoles: true}}, steps)
	}
	if !lost {
		t.Fatal("the broken rule is not seen")
	}
}
