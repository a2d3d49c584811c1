package disk_test

import (
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// freshFixture is a disk that may write in place already.
func freshFixture(t *testing.T) *fixture {
	t.Helper()
	f := open(t, format(t), disk.Options{FreshBlocks: 2})
	f.promise(vol1, 1)
	f.write(vol1, 1, 1, 9, 0, pattern(2, 1))
	if n := f.Core.Stats().FreshBlocks; n != 0 {
		t.Fatalf("%d blocks in place before the superblock says so", n)
	}
	f.Quiesce()
	if rep, err := disk.Fsck(f.Disk, f.Disk.Size); err != nil || rep.Superblock.Incompat != 1<<2 {
		t.Fatalf("%+v %v", rep.Superblock, err)
	}
	return f
}

func TestFreshWritesGoInPlace(t *testing.T) {
	f := freshFixture(t)
	fresh := func(want uint64) {
		t.Helper()
		if n := f.Core.Stats().FreshBlocks; n != want {
			t.Fatalf("%d blocks went in place, want %d", n, want)
		}
	}
	head := f.Core.Stats().HeadLSN
	a, b := pattern(8, 3), pattern(2, 5)
	f.write(vol1, 1, 2, 1, 0, a)
	fresh(8)
	if n := f.Core.Stats().HeadLSN - head; n > 2*disk.BlockBytes {
		t.Errorf("%d bytes of log for a record without payload", n)
	}
	f.want(vol1, 1, 0, a)
	f.write(vol1, 1, 3, 1, 4, b) // present: through the log
	fresh(8)
	copy(a[4*disk.BlockBytes:], b)
	f.want(vol1, 1, 0, a)
	f.write(vol1, 1, 4, 1, 8, pattern(1, 7)) // too small
	fresh(8)
	f.write(vol1, 1, 5, 1, 9, b)
	fresh(10)
	f.flush(vol1, 1, 5)
	for range 2 {
		f.want(vol1, 1, 0, a)
		f.want(vol1, 1, 8, pattern(1, 7))
		f.want(vol1, 1, 9, b)
		w := f.Core.Window(vol1, repl.Mark{})
		if len(w) != 5 || w[1].Kind != wire.RecordWrite || !w[1].Verified || len(w[1].CRC) != 8 {
			t.Fatalf("%+v", w)
		}
		f = open(t, f.Disk, disk.Options{FreshBlocks: 2}) // from the log
		f.Quiesce()                                       // from the extents
	}
	if rep, err := disk.Fsck(f.Disk, f.Disk.Size); err != nil || len(rep.Problems) > 0 {
		t.Fatalf("%+v %v", rep, err)
	}
}

// The record survives a power cut, its data does not: the blocks are absent, and
// the write is listed as not verified.
func TestTornFreshWriteIsAbsent(t *testing.T) {
	f := freshFixture(t)
	d := f.Disk
	f.write(vol1, 1, 2, 1, 0, pattern(2, 3))
	f.flush(vol1, 1, 2)
	f.write(vol1, 1, 3, 1, 4, pattern(2, 5))
	f.write(vol1, 1, 4, 1, 6, pattern(1, 6))
	before, err := disk.Fsck(d, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	list := d.Volatile()
	d.Crash(list, func(i int) bool { return list[i].Offset < before.Superblock.DataOffset })
	v, rep, err := disktest.Open(d, disk.Options{}, nil)
	if err != nil || rep.Unverified != 2 || len(rep.DamagedRanges) != 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	f = &fixture{Driver: v, t: t}
	f.want(vol1, 1, 0, pattern(2, 3))
	f.want(vol1, 1, 4, make([]byte, 3*disk.BlockBytes))
	w := f.Core.Window(vol1, repl.Mark{Epoch: 1, Wseq: 2})
	if len(w) != 2 || w[0].Verified || w[0].Kind != wire.RecordWrite || w[0].Count != 2 {
		t.Fatalf("%+v", w)
	}
}
