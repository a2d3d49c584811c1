package disk_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
)

// reseal puts a page's checksum right after a change.
func reseal(d *disktest.Disk, off int64, length, crcAt int, change func(b []byte)) {
	b := make([]byte, length)
	d.ReadAt(b, off)
	change(b)
	binary.LittleEndian.PutUint32(b[crcAt:], 0)
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b, castagnoli))
	d.Overwrite(off, b)
}

// places finds where things of a disk are.
func places(t *testing.T, d *disktest.Disk) (sb disk.ItemSuperblock, slots []disk.ItemSlot, batches []disk.ItemBatch) {
	_, err := disk.Check(d, d.Size, disk.FsckOptions{Dump: func(i disk.Item) {
		switch {
		case i.Superblock != nil:
			sb = *i.Superblock
		case i.Slot != nil:
			slots = append(slots, *i.Slot)
		case i.Batch != nil:
			batches = append(batches, *i.Batch)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return sb, slots, batches
}

func TestFsckFindsEachDamage(t *testing.T) {
	const imageBytes = 2 * 4096 // 16 blocks
	image := func(sb disk.ItemSuperblock, slot uint64, seq uint64) int64 {
		return sb.MetaOffset + (2*int64(slot)+int64(seq%2))*imageBytes
	}
	type in struct {
		d       *disktest.Disk
		sb      disk.ItemSuperblock
		slots   []disk.ItemSlot
		batches []disk.ItemBatch
	}
	for _, c := range []struct {
		name   string
		break_ func(x in)
		sev    disk.Severity
		want   string
	}{
		{"superblock copy 0", func(x in) { x.d.Flip(100, 1) }, disk.Warning, "superblock: 3 of 4"},
		{"superblock copy 3", func(x in) { x.d.Flip(x.d.Size-1<<20+64<<10, 1) }, disk.Warning, "superblock: 3 of 4"},
		{"the disk is marked failed", func(x in) {
			for _, off := range []int64{0, 64 << 10, x.d.Size - 1<<20, x.d.Size - 1<<20 + 64<<10} {
				reseal(x.d, off, 4096, 4092, func(b []byte) { b[160] = 2 })
			}
		}, disk.Damage, "marked failed"},
		{"volume table", func(x in) { x.d.Flip(x.sb.TableOffset+int64(x.sb.TableSeq%2)*x.sb.TableBytes+4100, 1) }, disk.Damage, "volume table: image"},
		{"a durable batch", func(x in) { x.d.Flip(x.sb.WALOffset+int64(x.batches[len(x.batches)-3].LSN)+70, 1) }, disk.Damage, "was durable and is lost"},
		{"a durable payload", func(x in) {
			for _, b := range x.batches[2:] {
				if b.Bytes > 4096 {
					x.d.Flip(x.sb.WALOffset+int64(b.LSN)+4096+9, 1)
					return
				}
			}
		}, disk.Damage, "the payload does not match"},
		{"one image", func(x in) { x.d.Flip(image(x.sb, 2, x.slots[2].Seq)+4, 1) }, disk.Warning, "a broken image"},
		{"both images", func(x in) { x.d.Flip(image(x.sb, 2, 0)+4, 1); x.d.Flip(image(x.sb, 2, 1)+4, 1) }, disk.Damage, "both images are broken"},
		{"a misdirected image", func(x in) {
			b := make([]byte, imageBytes)
			x.d.ReadAt(b, image(x.sb, 0, x.slots[0].Seq))
			x.d.Overwrite(image(x.sb, 1, x.slots[0].Seq), b)
		}, disk.Damage, "an image of slot 0"},
		{"one extent in two slots", func(x in) {
			for i := range uint64(2) {
				b := make([]byte, imageBytes)
				x.d.ReadAt(b, image(x.sb, 2, i))
				x.d.Overwrite(image(x.sb, 3, i), b)
				reseal(x.d, image(x.sb, 3, i), 4096, 4092, func(b []byte) { b[24] = 3 })
			}
		}, disk.Damage, "is in slot 2 too"},
		{"an unknown volume", func(x in) {
			for i := range uint64(2) {
				reseal(x.d, image(x.sb, 2, i), 4096, 4092, func(b []byte) { b[40] = 0x77 })
			}
		}, disk.Damage, "is not known"},
		{"data", func(x in) { x.d.Flip(x.sb.DataOffset+(2*extentBlocks+15)*4096, 1) }, disk.Damage, "does not match its checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := in{d: frozenImage(t, "v1")}
			x.sb, x.slots, x.batches = places(t, x.d)
			before, err := disk.Fsck(x.d, x.d.Size)
			if err != nil || len(before.Problems) > 0 || before.Blocks == 0 {
				t.Fatalf("sound: %v %v, %d blocks", before.Problems, err, before.Blocks)
			}
			c.break_(x)
			content_ := content(t, x.d)
			rep, err := disk.Fsck(x.d, x.d.Size)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range rep.Findings {
				found = found || f.Severity == c.sev && strings.Contains(f.String(), c.want) && f.Remedy != ""
			}
			if !found {
				t.Errorf("not found: %s %q in %v", c.sev, c.want, rep.Findings)
			}
			if string(content(t, x.d)) != string(content_) {
				t.Error("a check wrote")
			}
		})
	}
}

func TestRepairSuperblocks(t *testing.T) {
	d := frozenImage(t, "v1")
	whole := content(t, d)
	repair := func() error {
		list, _, err := disk.RepairSuperblocks(d, d.Size)
		for _, io := range list {
			if e := d.Do(io); e != nil {
				t.Fatal(e)
			}
		}
		return err
	}
	d.Flip(64<<10+8, 1)
	d.Flip(d.Size-1<<20, 7)
	if err := repair(); err != nil || string(content(t, d)) != string(whole) {
		t.Fatalf("repaired: %v", err)
	}
	for _, off := range []int64{0, 64 << 10, d.Size - 1<<20} {
		d.Flip(off+90, 1)
	}
	broken := content(t, d)
	if err := repair(); !errors.Is(err, errs.Corrupt) || string(content(t, d)) != string(broken) {
		t.Fatalf("with one copy: %v", err)
	}
}

// TestUnknownFeature: a disk with a feature bit or a version that this build does
// not know is not opened, and not written.
func TestUnknownFeature(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"feature": func(b []byte) { binary.LittleEndian.PutUint64(b[12:], 1<<63) },
		"version": func(b []byte) { b[8] = 200 },
	} {
		d := frozenImage(t, "v1")
		for _, off := range []int64{0, 64 << 10, d.Size - 1<<20, d.Size - 1<<20 + 64<<10} {
			reseal(d, off, 4096, 4092, change)
		}
		before := content(t, d)
		_, _, err := disktest.Open(d, disk.Options{}, nil)
		if !errors.Is(err, errs.Invalid) || errs.Hint(err) == "" || string(content(t, d)) != string(before) {
			t.Errorf("%s: %v, hint %q", name, err, errs.Hint(err))
		}
	}
}

// TestOpenExpects: a disk that is not the one meant, or that went back in time,
// is refused before anything is written.
func TestOpenExpects(t *testing.T) {
	other := identity
	other.Disk = ids.ID{9}
	foreign := identity
	foreign.Cluster = ids.ID{9}
	for name, o := range map[string]disk.Options{
		"another disk":    {Expect: other},
		"another cluster": {Expect: foreign},
		"an older copy":   {Expect: identity, SeenSession: 3},
	} {
		d := frozenImage(t, "v1")
		before := content(t, d)
		_, _, err := disktest.Open(d, o, nil)
		if !errors.Is(err, errs.Conflict) || errs.Hint(err) == "" || string(content(t, d)) != string(before) {
			t.Errorf("%s: %v, hint %q, the same: %v", name, err, errs.Hint(err), string(content(t, d)) == string(before))
		}
	}
	v, rep, err := disktest.Open(frozenImage(t, "v1"), disk.Options{Expect: identity, SeenSession: 2}, nil)
	if err != nil || rep.Session != 3 || v.Core == nil {
		t.Fatalf("the right one: %+v, %v", rep, err)
	}
}
