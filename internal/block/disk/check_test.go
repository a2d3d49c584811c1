package disk_test

import (
	"bytes"
	"slices"
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
)

// check runs one check and lets the checkpoint that mends go to its end.
func (f *fixture) check(ask func(token uint64)) disk.Completion {
	f.t.Helper()
	for range 10 {
		tok := f.next()
		ask(tok)
		c := f.wait(tok)
		if c.Status == wire.Busy {
			f.Settle()
			continue
		}
		f.Core.Checkpoint()
		f.Settle()
		return c
	}
	f.t.Fatal("the check is busy for ever")
	return disk.Completion{}
}

func (f *fixture) checkMeta() disk.Completion { return f.check(f.Core.CheckMeta) }

func (f *fixture) checkImages(extent uint64) disk.Completion { return f.checkObject(extent, 0) }

func (f *fixture) checkObject(extent uint64, object uint32) disk.Completion {
	return f.check(func(tok uint64) { f.Core.CheckImages(tok, vol1, extent, object) })
}

func TestChecksFindRotAtRestAndMendIt(t *testing.T) {
	const imageBytes = 8 << 10
	for _, c := range []struct {
		name string
		off  func(disk.Superblock) []int64
		bad  []int // of CheckMeta
		img  int   // how many of CheckImages
	}{
		{"first superblock", func(disk.Superblock) []int64 { return []int64{100} }, []int{0}, 0},
		{"last superblock", func(s disk.Superblock) []int64 { return []int64{s.DeviceBytes - 1<<20 + 64<<10 + 100} }, []int{3}, 0},
		{"table", func(s disk.Superblock) []int64 {
			return []int64{s.TableOffset + int64(s.TableSeq%2)*s.TableBytes + 30}
		}, []int{4}, 0},
		{"image A", func(s disk.Superblock) []int64 { return []int64{s.MetaOffset + 4096 + 17} }, nil, 1},
		{"image B", func(s disk.Superblock) []int64 { return []int64{s.MetaOffset + imageBytes + 20} }, nil, 1},
		{"both images, tags in memory", func(s disk.Superblock) []int64 {
			return []int64{s.MetaOffset + 40, s.MetaOffset + imageBytes + 40}
		}, nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, _ := settled(t)
			if m, i := f.checkMeta(), f.checkImages(3); len(m.Bad)+len(i.Bad) != 0 {
				t.Fatalf("false alarm: %v %v", m.Bad, i.Bad)
			}
			rep, err := disk.Fsck(f.Disk, f.Disk.Size)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range c.off(rep.Superblock) { // the checkpoint moved the table

				f.Disk.Flip(off, 2)
			}
			m, i := f.checkMeta(), f.checkImages(3)
			if !slices.Equal(m.Bad, c.bad) || len(i.Bad) != c.img {
				t.Fatalf("meta %v, images %v", m.Bad, i.Bad)
			}
			if p := problems(t, f.Disk); p != "" {
				t.Fatalf("not mended: %s", p)
			}
			f = open(t, f.Disk, disk.Options{})
			if got := f.read(vol1, 3, 2, 4); got.Status != wire.OK || !bytes.Equal(got.Data, pattern(4, 1)) {
				t.Fatalf("after a restart: %+v", got.Status)
			}
		})
	}
}

// Both images are lost and memory has no tags: the blocks are unknown, each can
// be repaired with the tag and data of a peer, and nothing else is taken for good.
func TestLostTagsAreRepairedBlockByBlock(t *testing.T) {
	const imageBytes = 8 << 10
	f, sb := settled(t)
	f = open(t, f.Disk, disk.Options{TagCacheBytes: 1})
	f.Disk.Flip(sb.MetaOffset+40, 1)
	f.Disk.Flip(sb.MetaOffset+imageBytes+40, 1)
	f.checkImages(3)
	got := f.read(vol1, 3, 0, extentBlocks)
	if got.Status != wire.Unreadable || len(got.Bad) != extentBlocks {
		t.Fatalf("%+v", got)
	}
	repair := func(block int, tag wire.Tag, data []byte) wire.Status {
		r := f.record(disk.KindRepair, vol1, 1, 1, 3, block, 1, data)
		r.CRC, r.Expect, r.Tag = nil, got.Tags[block], tag
		return f.append(r)
	}
	for i := range extentBlocks {
		tag, data := wire.Tag{}, []byte(nil)
		if i >= 2 && i < 6 {
			data = pattern(4, 1)[(i-2)*disk.BlockBytes : (i-1)*disk.BlockBytes]
			tag = wire.Tag{CRC: wire.Checksum(data), Stamp: 1}
		}
		if st := repair(i, tag, data); st != wire.OK {
			t.Fatalf("repair of block %d: status %d", i, st)
		}
	}
	if st := repair(5, wire.Tag{}, nil); st != wire.TagChanged {
		t.Fatalf("a second repair against the lost tag: status %d", st)
	}
	f.flush(vol1, 1, 1)
	f.Quiesce()
	// Whether something else was lost only a resync can tell.
	if p := problems(t, f.Disk); p != "volume "+vol1.String()+": is marked damaged" {
		t.Fatalf("fsck: %s", p)
	}
	f = open(t, f.Disk, disk.Options{})
	if got := f.read(vol1, 3, 2, 4); got.Status != wire.OK || !bytes.Equal(got.Data, pattern(4, 1)) {
		t.Fatalf("%+v", got.Status)
	}
	if got := f.read(vol1, 3, 0, extentBlocks); got.Status != wire.OK {
		t.Fatalf("absent blocks: %+v", got)
	}
}

// Every object of an extent has images of its own, and each is looked at alone: what
// rots of an older one is found, told under its number, and written again.
func TestChecksReachOlderObjects(t *testing.T) {
	f, sb := settled(t)
	f.tell(wire.Told{CfgVersion: 1, SnapSeq: 1, Snaps: []uint32{1}})
	f.writeObject(1, 2, 3, 2, pattern(1, 7))
	f.flush(vol1, 1, 2)
	f.Quiesce()
	if got := f.Core.ObjectsOf(vol1, 3); !slices.Equal(got, []uint32{1, 0}) {
		t.Fatalf("objects %v", got)
	}
	f.Disk.Flip(sb.MetaOffset+50, 1) // the first slot is object 0's
	if c := f.checkObject(3, 1); c.Status != wire.OK || len(c.Bad) != 0 {
		t.Fatalf("the newest object: %+v", c)
	}
	if c := f.checkObject(3, 0); c.Status != wire.OK || len(c.Bad) != 1 {
		t.Fatalf("the older object: %+v", c)
	}
	if p := problems(t, f.Disk); p != "" {
		t.Fatalf("not mended: %s", p)
	}
	if c := f.checkObject(3, 5); c.Status != wire.OK || len(c.Bad) != 0 {
		t.Fatalf("no such object: %+v", c)
	}
	f = open(t, f.Disk, disk.Options{})
	f.wantAt(1, 3, 2, pattern(4, 1))
	f.wantAt(0, 3, 2, pattern(1, 7))
}

// A scrub beside writes and checkpoints never calls good metadata bad.
func TestChecksBesideWrites(t *testing.T) {
	f, _ := settled(t)
	for i := range uint64(200) {
		f.write(vol1, 1, i+2, 3, int(i%extentBlocks), pattern(1, byte(i)))
		tok := f.next()
		f.Core.CheckImages(tok, vol1, 3, 0)
		meta := f.next()
		f.Core.CheckMeta(meta)
		if c := f.wait(tok); len(c.Bad) > 0 {
			t.Fatalf("write %d: images %v", i, c.Bad)
		}
		if c := f.wait(meta); len(c.Bad) > 0 {
			t.Fatalf("write %d: meta %v", i, c.Bad)
		}
	}
}
