package disk_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// settled is a disk with one applied extent, and its layout.
func settled(t *testing.T) (*fixture, disk.Superblock) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	f.write(vol1, 1, 1, 3, 2, pattern(4, 1))
	f.flush(vol1, 1, 1)
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 1})
	f.Quiesce()
	rep, err := disk.Fsck(f.Disk, f.Disk.Size)
	if err != nil || len(rep.Problems) != 0 || rep.Extents != 1 || rep.Blocks != 4 {
		t.Fatalf("%+v %v", rep, err)
	}
	return f, rep.Superblock
}

func problems(t *testing.T, d *disktest.Disk) string {
	t.Helper()
	rep, err := disk.Fsck(d, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(rep.Problems, "\n")
}

func TestRotOfEachArea(t *testing.T) {
	const imageBytes = 8 << 10 // of 16 blocks: header page and one page of tags
	for _, c := range []struct {
		name    string
		off     func(disk.Superblock) int64
		problem string
		status  wire.Status
	}{
		{"superblock", func(disk.Superblock) int64 { return 100 }, "3 of 4 copies", wire.OK},
		{"data", func(s disk.Superblock) int64 { return s.DataOffset + 3*disk.BlockBytes + 9 }, "does not match its checksum", wire.Unreadable},
		{"image A", func(s disk.Superblock) int64 { return s.MetaOffset + 4096 + 17 }, "broken image", wire.OK},
		{"image B", func(s disk.Superblock) int64 { return s.MetaOffset + imageBytes + 20 }, "broken image", wire.OK},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, sb := settled(t)
			f.Disk.Flip(c.off(sb), 2)
			if p := problems(t, f.Disk); !strings.Contains(p, c.problem) {
				t.Fatalf("fsck says %q", p)
			}
			f = open(t, f.Disk, disk.Options{})
			got := f.read(vol1, 3, 0, extentBlocks)
			if got.Status != c.status {
				t.Fatalf("%+v", got)
			}
			if c.status == wire.Unreadable && (len(got.Bad) != 1 || got.Bad[0] != 3) {
				t.Fatalf("bad %v", got.Bad)
			}
		})
	}
	f, sb := settled(t)
	for i := range int64(2) {
		f.Disk.Flip(sb.TableOffset+i*sb.TableBytes+30, 1)
	}
	v, _, err := disktest.Open(f.Disk, disk.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The promise is forgotten: the volume is kept, and it is damaged.
	if info, ok := v.Core.Volume(vol1); !ok || !info.Damaged || info.Extents != 1 {
		t.Fatalf("%+v %v", info, ok)
	}
}

// The older image must not be taken for the newest: blocks first written since
// would read as zeros.
func TestRotOfAnImageForgetsNothing(t *testing.T) {
	const imageBytes = 8 << 10
	for _, open1 := range []bool{false, true} {
		for mask := 1; mask < 4; mask++ {
			f, sb := settled(t)
			f.write(vol1, 1, 2, 3, 9, pattern(1, 7)) // this block was absent
			f.flush(vol1, 1, 2)
			f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 2})
			f.Quiesce()
			f = open(t, f.Disk, disk.Options{TagCacheBytes: 1})
			for i := range int64(2) {
				if mask>>i&1 == 1 {
					f.Disk.Flip(sb.MetaOffset+i*imageBytes+4096+17, 3)
				}
			}
			if open1 {
				f = open(t, f.Disk, disk.Options{})
			}
			c := f.read(vol1, 3, 9, 1)
			info, _ := f.Core.Volume(vol1)
			if mask < 3 && (c.Status != wire.OK || !bytes.Equal(c.Data, pattern(1, 7)) || info.Damaged) {
				t.Fatalf("open %v mask %d: %+v %+v", open1, mask, c.Status, info)
			}
			if mask == 3 && !info.Damaged {
				t.Fatalf("open %v: both images lost, %+v", open1, info)
			}
		}
	}
}

func TestMisdirectedWriteIsFound(t *testing.T) {
	f, sb := settled(t)
	f.Disk.Fault = func(io disk.IO) disktest.Effect {
		if io.Op == disk.OpWrite && io.Offset >= sb.DataOffset && io.Offset < sb.DeviceBytes-(1<<20) {
			return disktest.Effect{Move: disk.BlockBytes}
		}
		return disktest.Effect{}
	}
	f.write(vol1, 1, 2, 3, 2, pattern(1, 9))
	f.flush(vol1, 1, 2)
	f.Quiesce()
	if c := f.read(vol1, 3, 2, 2); c.Status != wire.Unreadable || len(c.Bad) != 2 {
		t.Fatalf("%+v", c)
	}
}

func TestAfterAFailedWriteNothingIsAnswered(t *testing.T) {
	for _, op := range []disk.Op{disk.OpWrite, disk.OpSync} {
		f, _ := settled(t)
		f.Disk.Fault = func(io disk.IO) disktest.Effect {
			if io.Op == op {
				f.Disk.Fault = nil // once: later ones would succeed
				return disktest.Effect{Err: disktest.ErrIO}
			}
			return disktest.Effect{}
		}
		w := f.record(disk.KindWrite, vol1, 1, 2, 3, 0, 1, pattern(1, 5))
		w.Durable = true
		if s := f.append(w); s != wire.DiskFailed {
			t.Fatal(op, s)
		}
		if s := f.flush(vol1, 1, 2); s != wire.DiskFailed || f.Core.Dead() == nil {
			t.Fatal(op, s)
		}
		f.Settle()
		if _, _, err := disktest.Open(f.Disk, disk.Options{}, nil); err == nil {
			t.Fatal("a failed disk was opened")
		}
	}
}

func TestNoSpaceIsAStatus(t *testing.T) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	n := uint64(f.Core.Stats().Slots)
	for e := range n {
		if s := f.write(vol1, 1, e+1, e, 0, pattern(1, 1)); s != wire.OK {
			t.Fatal(e, s)
		}
	}
	if s := f.write(vol1, 1, 1000, n, 0, pattern(1, 1)); s != wire.NoSpace {
		t.Fatal(s)
	}
	if s := f.write(vol1, 1, 1000, 0, 1, pattern(1, 1)); s != wire.OK {
		t.Fatal(s) // an extent that is there
	}
	f.append(f.record(disk.KindTombstone, vol1, 1, 1001, 5, 0, extentBlocks, nil))
	f.flush(vol1, 1, 1001)
	f.Quiesce()
	if s := f.write(vol1, 1, 1002, n, 0, pattern(1, 2)); s != wire.NoSpace {
		t.Fatal("a later write passed the one that was refused:", s)
	}
	if s := f.write(vol1, 1, 1000, n, 0, pattern(1, 3)); s != wire.OK {
		t.Fatal(s)
	}
	f.want(vol1, 5, 0, make([]byte, disk.BlockBytes))
	f.want(vol1, n, 0, pattern(1, 3))
	f = open(t, f.Disk, disk.Options{})
	f.want(vol1, n, 0, pattern(1, 3))
	if o := f.Core.Objects(vol1, repl.Mark{Epoch: 1, Wseq: 1000}); len(o) != 1 || !o[0].Tombstone {
		t.Fatalf("%+v", o)
	}
	f.Core.ForgetTombstones(vol1, repl.Mark{Epoch: 1, Wseq: 1001})
	if o := f.Core.Objects(vol1, repl.Mark{Epoch: 1, Wseq: 1000}); len(o) != 0 {
		t.Fatalf("%+v", o)
	}
}

// The limit stops what guests write into new extents, and nothing else: what is
// there is overwritten, repairs use the reserve, a discard makes room.
func TestLimitKeepsTheReserve(t *testing.T) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	f.Core.SetLimit(2)
	for e := range uint64(2) {
		if s := f.write(vol1, 1, e+1, e, 0, pattern(1, 1)); s != wire.OK {
			t.Fatal(e, s)
		}
	}
	if s := f.write(vol1, 1, 10, 7, 0, pattern(1, 1)); s != wire.NoSpace {
		t.Fatal("a guest used the reserve:", s)
	}
	if s := f.write(vol1, 1, 11, 1, 3, pattern(1, 2)); s != wire.OK {
		t.Fatal(s)
	}
	r := f.record(disk.KindWrite, vol1, 1, 12, 8, 0, 1, pattern(1, 4))
	r.Reserve = true
	if s := f.append(r); s != wire.OK {
		t.Fatal("a repair must not stop at the limit:", s)
	}
	r = f.record(disk.KindSync, vol1, 1, 0, 9, 0, 0, pattern(1, 5))
	r.Blocks, r.CRC = []wire.SyncBlock{{Block: 0, Tag: wire.Tag{CRC: r.CRC[0], Stamp: 7}}}, nil
	if s := f.append(r); s != wire.OK {
		t.Fatal("a rebuild must not stop at the limit:", s)
	}
	for i, e := range []uint64{0, 8, 9} {
		f.append(f.record(disk.KindTombstone, vol1, 1, uint64(20+i), e, 0, extentBlocks, nil))
	}
	f.flush(vol1, 1, 22)
	f.Quiesce()
	if s := f.write(vol1, 1, 10, 7, 0, pattern(1, 1)); s != wire.OK {
		t.Fatal("the space that was given back is not used:", s)
	}
}

func TestSyncResentAndDrop(t *testing.T) {
	f, _ := settled(t)
	src := pattern(2, 40)
	r := f.record(disk.KindSync, vol1, 1, 0, 3, 0, 0, src) // an older mark: no order check
	c := r.CRC
	r.CRC, r.Blocks = nil, []wire.SyncBlock{
		{Block: 1, Tag: wire.Tag{CRC: c[0], Stamp: 77}}, {Block: 3}, {Block: 9, Tag: wire.Tag{CRC: c[1], Stamp: 78}},
	}
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	check := func() {
		t.Helper()
		f.want(vol1, 3, 1, src[:disk.BlockBytes])
		f.want(vol1, 3, 3, make([]byte, disk.BlockBytes))
		f.want(vol1, 3, 9, src[disk.BlockBytes:])
		tok := f.next()
		f.Core.Tags(tok, vol1, 3, 0)
		if c := f.wait(tok); c.Tags[1].Stamp != 77 || c.Tags[3] != (wire.Tag{}) || c.Tags[9].Stamp != 78 || c.Tags[2].Stamp != 1 {
			t.Fatalf("%+v", c.Tags)
		}
	}
	check()
	f.flush(vol1, 1, 1)
	f.Quiesce()
	f = open(t, f.Disk, disk.Options{})
	check()

	if s := f.write(vol1, 1, 5, 3, 0, pattern(1, 1)); s != wire.OK {
		t.Fatal(s)
	}
	if s := f.write(vol1, 1, 5, 3, 0, pattern(1, 1)); s != wire.OutOfOrder {
		t.Fatal(s)
	}
	again := f.record(disk.KindWrite, vol1, 1, 5, 3, 0, 1, pattern(1, 1))
	again.Resent = true
	if s := f.append(again); s != wire.OK {
		t.Fatal(s)
	}
	again = f.record(disk.KindWrite, vol1, 1, 5, 3, 0, 1, pattern(1, 2))
	again.Resent = true
	if s := f.append(again); s != wire.OutOfOrder {
		t.Fatal(s)
	}

	tok := f.next()
	f.Core.Control(tok, disk.Control{Kind: disk.ControlDrop, Volume: vol1})
	if c := f.wait(tok); c.Status != wire.OK {
		t.Fatal(c.Status)
	}
	f.Quiesce()
	if s := f.Core.Stats(); s.FreeSlots != s.Slots || s.Volumes != 0 {
		t.Fatalf("%+v", s)
	}
	f = open(t, f.Disk, disk.Options{})
	if _, known := f.Core.Volume(vol1); known || f.Core.Stats().FreeSlots != f.Core.Stats().Slots {
		t.Fatal("the volume came back")
	}
}

// A dead volume's window must not stop the others on its disk.
func TestDeadVolumeDoesNotPinTheRing(t *testing.T) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	f.promise(vol2, 1)
	for i := range uint64(16) {
		f.write(vol1, 1, i+1, i, 0, pattern(1, byte(i)))
	}
	for i := range uint64(600) { // many times round the ring; vol1's flush mark never moves
		if s := f.write(vol2, 1, i+1, i%8, 0, pattern(4, byte(i))); s != wire.OK {
			t.Fatal(i, s)
		}
		f.Core.SetFlushMark(vol2, repl.Mark{Epoch: 1, Wseq: i})
	}
	for range 2 {
		if w := f.Core.Window(vol1, repl.Mark{}); len(w) != 16 || !w[0].Verified {
			t.Fatalf("%d entries", len(w))
		}
		if f.Core.Stats().CheckpointLSN == 0 {
			t.Fatal("the tail never moved")
		}
		f.flush(vol2, 1, 600)
		f = open(t, f.Disk, disk.Options{})
	}
	f.want(vol1, 3, 0, pattern(1, 3))
}

func TestDumpAndForeignDisk(t *testing.T) {
	f, _ := settled(t)
	var out bytes.Buffer
	if err := disk.Dump(&out, f.Disk, f.Disk.Size); err != nil || !strings.Contains(out.String(), "slot slot=0") {
		t.Fatal(err, out.String())
	}
	if _, _, err := disktest.Open(disktest.New(8<<20), disk.Options{}, nil); err == nil {
		t.Fatal("an empty device was opened")
	}
	// A new format of the same device does not see what was there.
	id := identity
	id.Disk = ids.ID{9}
	list, err := disk.Format(id, smallGeometry())
	if err != nil {
		t.Fatal(err)
	}
	for _, io := range list {
		if err := f.Disk.Do(io); err != nil {
			t.Fatal(err)
		}
	}
	g := open(t, f.Disk, disk.Options{})
	if len(g.Core.Volumes()) != 0 {
		t.Fatal("volumes of the old format")
	}
}

func TestBuffersComeBack(t *testing.T) {
	v, _, err := disktest.Open(format(t), disk.Options{TagCacheBytes: 1}, rand.New(rand.NewPCG(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Driver: v, t: t}
	f.promise(vol1, 1)
	for i := range uint64(200) {
		f.write(vol1, 1, i+1, i%5, int(i%13), pattern(2, byte(i)))
	}
	f.flush(vol1, 1, 200)
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 200})
	f.Quiesce()
	if f.Pool.Live != 0 {
		t.Fatalf("%d bytes of buffers are still out", f.Pool.Live)
	}
}

// A checkpoint begins before payload leaves the memory, and tables that take no
// room leave theirs to it.
func TestCheckpointBeginsByMemory(t *testing.T) {
	for _, tables := range []int{1, 1 << 20} {
		f := open(t, format(t), disk.Options{DataCacheBytes: 8 * disk.BlockBytes, TagCacheBytes: tables, FreshBlocks: -1})
		f.promise(vol1, 1)
		for i := range uint64(7) {
			if s := f.write(vol1, 1, i+1, i, 0, pattern(1, byte(i))); s != wire.OK {
				t.Fatal(i, s)
			}
		}
		f.Settle()
		s := f.Core.Stats()
		if s.RingUsedBytes > s.RingBytes/4 {
			t.Fatalf("%d of %d bytes of the ring are used: it would begin a checkpoint by itself", s.RingUsedBytes, s.RingBytes)
		}
		if (s.Checkpoints > 0) != (tables == 1) {
			t.Errorf("tables of %d bytes: %d checkpoints, %d blocks pending", tables, s.Checkpoints, s.PendingApplyBlocks)
		}
	}
}
