package disk_test

import (
	"bytes"
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
)

// A block that no copy could read when this one joined reads as an error: while it
// is in the log, when it is applied, and after a restart. A write heals it. A build
// that would read it as zeros cannot open the disk.
func TestLostBlockIsNeverZeros(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	if s := f.write(vol1, 1, 1, 0, 0, pattern(3, 7)); s != wire.OK {
		t.Fatal(s)
	}
	f.Quiesce()
	r := f.record(disk.KindSync, vol1, 1, 5, 0, 0, 0, pattern(1, 9))
	crc := r.CRC[0]
	r.CRC = nil
	r.Blocks = []wire.SyncBlock{{Block: 1, Tag: wire.Lost}, {Block: 2, Tag: wire.Tag{CRC: crc, Stamp: 5}}}
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	want := func(when string) {
		t.Helper()
		c := f.read(vol1, 0, 0, 3)
		if c.Status != wire.Unreadable || len(c.Bad) != 1 || c.Bad[0] != 1 || c.Tags[1] != wire.Lost ||
			!bytes.Equal(c.Data[:disk.BlockBytes], pattern(1, 7)) || !bytes.Equal(c.Data[2*disk.BlockBytes:], pattern(1, 9)) {
			t.Fatalf("%s: status %v, bad %v, tags %v", when, c.Status, c.Bad, c.Tags)
		}
		tok := f.next()
		f.Core.ReadTags(tok, vol1, 0, 0)
		if c := f.wait(tok); c.Status != wire.Unreadable || c.Tags[1] != wire.Lost {
			t.Fatalf("%s: tags say %v %v", when, c.Status, c.Tags[1])
		}
	}
	want("in the log")
	f.flushAll(5)
	f.Quiesce()
	want("applied")
	if rep, err := disk.Fsck(d, d.Size); err != nil || rep.Superblock.Incompat&(1<<3) == 0 {
		t.Errorf("the disk does not say that it has lost blocks: %v, features %#x", err, rep.Superblock.Incompat)
	}
	f = open(t, d, disk.Options{})
	want("after a restart")
	if s := f.write(vol1, 1, 6, 0, 1, pattern(1, 3)); s != wire.OK {
		t.Fatal(s)
	}
	if c := f.read(vol1, 0, 1, 1); c.Status != wire.OK || !bytes.Equal(c.Data, pattern(1, 3)) {
		t.Errorf("after a write: status %v", c.Status)
	}
	// Nobody but a sync may say that a block is lost.
	r = f.record(disk.KindRepair, vol1, 1, 6, 0, 1, 0, nil)
	r.Expect, r.Tag = wire.Tag{CRC: crcs(pattern(1, 3))[0], Stamp: 6}, wire.Lost
	if s := f.append(r); s != wire.BadRequest {
		t.Errorf("a repair to nothing: %v", s)
	}
}

// The first lost block of a disk waits until the superblock says that there are some.
// A discard that comes meanwhile is newer and waits behind it (I10).
func TestNothingPassesTheFirstLostBlock(t *testing.T) {
	for _, pass := range []bool{false, true} {
		f := open(t, format(t), disk.Options{Mutations: disk.Mutations{PassHeld: pass}})
		f.promise(vol1, 1)
		r := f.record(disk.KindSync, vol1, 1, 5, 0, 0, 0, pattern(1, 9))
		crc := r.CRC[0]
		r.CRC = nil
		r.Blocks = []wire.SyncBlock{{Block: 1, Tag: wire.Lost}, {Block: 2, Tag: wire.Tag{CRC: crc, Stamp: 5}}}
		sync, discard := f.next(), f.next()
		f.Core.Append(sync, r)
		f.Core.Append(discard, f.record(disk.KindTombstone, vol1, 1, 6, 0, 0, extentBlocks, nil))
		if a, b := f.wait(sync), f.wait(discard); a.Status != wire.OK || b.Status != wire.OK {
			t.Fatalf("pass %v: sync %v, discard %v", pass, a.Status, b.Status)
		}
		if c := f.read(vol1, 0, 0, 3); (c.Status == wire.OK) == pass {
			t.Errorf("pass %v: status %v, bad %v", pass, c.Status, c.Bad)
		}
	}
}

// A DROP that no checkpoint has passed is played again: the volume does not come back,
// what it had is freed, and others and one of the same name that came later stay.
func TestDropIsReplayed(t *testing.T) {
	for _, applied := range []bool{false, true} {
		f := open(t, format(t), disk.Options{})
		f.promise(vol1, 1)
		f.promise(vol2, 1)
		f.write(vol1, 1, 1, 0, 0, pattern(1, 1))
		f.write(vol2, 1, 1, 0, 0, pattern(1, 2))
		if applied { // images and the table have it
			f.flush(vol1, 1, 1)
			f.Quiesce()
		}
		f.write(vol1, 1, 2, 1, 0, pattern(1, 3))
		tok := f.next()
		f.Core.Control(tok, disk.Control{Kind: disk.ControlDrop, Volume: vol1})
		if c := f.wait(tok); c.Status != wire.OK {
			t.Fatal(c.Status)
		}
		again := open(t, f.Disk.Clone(), disk.Options{})
		if _, known := again.Core.Volume(vol1); known {
			t.Fatalf("applied %v: the volume came back", applied)
		}
		again.want(vol2, 0, 0, pattern(1, 2))
		again.Quiesce()
		if s := again.Core.Stats(); s.Slots-s.FreeSlots != 1 || s.Volumes != 1 {
			t.Fatalf("applied %v: %d slots in use, %d volumes", applied, s.Slots-s.FreeSlots, s.Volumes)
		}

		f.promise(vol1, 7)
		f.write(vol1, 7, 1, 0, 0, pattern(1, 4))
		again = open(t, f.Disk.Clone(), disk.Options{})
		again.want(vol1, 0, 0, pattern(1, 4))
		again.want(vol1, 1, 0, make([]byte, disk.BlockBytes))
		again.Quiesce()
		if s := again.Core.Stats(); s.Slots-s.FreeSlots != 2 || s.Volumes != 2 {
			t.Fatalf("applied %v, made again: %d slots in use, %d volumes", applied, s.Slots-s.FreeSlots, s.Volumes)
		}
	}
}
