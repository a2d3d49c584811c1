package disk_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/disk/formattest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// The frozen images: see testdata/frozen/README.md.

var rewriteFrozen = flag.Bool("rewrite", false, "make the frozen images that do not exist yet, and all their dumps")

const frozenDir = "testdata/frozen"

// makers make the images of the version that the engine writes now. A new
// version or feature gets a new name; a file that exists is never made again.
var makers = map[string]func(t *testing.T) *disktest.Disk{
	"v1":         func(t *testing.T) *disktest.Disk { return frozenDisk(t) },
	"v1-damaged": frozenDamaged,
	"v1-objects": frozenObjects,
	"v1-lost":    frozenLost,
}

func frozenGeometry() disk.Geometry {
	return disk.Geometry{DeviceBytes: 6 << 20, WALBytes: 512 << 10, VolumeTableBytes: 8 << 10, ExtentBlocks: extentBlocks, UnixTime: 1_700_000_000}
}

func (f *fixture) ok(s wire.Status) {
	f.t.Helper()
	if s != wire.OK {
		f.t.Fatalf("status %d", s)
	}
}

func (f *fixture) control(c disk.Control) {
	f.t.Helper()
	tok := f.next()
	f.Core.Control(tok, c)
	f.ok(f.wait(tok).Status)
}

// frozenDisk has two volumes and a dropped one, images and a log on top of them,
// every type of record, a note, a tombstone, a torn tail.
func frozenDisk(t *testing.T) *disktest.Disk {
	d, err := disktest.Format(identity, frozenGeometry())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, d, disk.Options{})
	vol3 := ids.MustParse("33333333-0000-4000-8000-000000000001")
	for _, v := range []ids.ID{vol1, vol2, vol3} {
		f.ok(f.promise(v, 1))
	}
	f.control(disk.Control{Kind: disk.ControlConfig, Volume: vol1, Told: wire.Told{
		Epoch: 1, CfgVersion: 3, Out: []ids.ID{{0xd1}, {0xd2}}, Pending: ids.ID{0xd3}, Complete: true}})
	f.ok(f.write(vol1, 1, 1, 0, 0, pattern(extentBlocks, 1)))
	f.ok(f.write(vol1, 1, 2, 1, 3, pattern(5, 2)))
	f.ok(f.write(vol2, 1, 1, 7, 15, pattern(1, 3)))
	f.ok(f.write(vol3, 1, 1, 2, 0, pattern(2, 4)))
	f.ok(f.flush(vol1, 1, 2))
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 1})
	f.Quiesce()
	f.control(disk.Control{Kind: disk.ControlDrop, Volume: vol3})
	f.ok(f.append(f.record(disk.KindZero, vol1, 1, 3, 0, 4, 2, nil)))
	f.ok(f.append(f.record(disk.KindTombstone, vol1, 1, 4, 1, 0, extentBlocks, nil)))
	f.control(disk.Control{Kind: disk.ControlRelease, Volume: vol2})
	f.Quiesce()

	f = open(t, d, disk.Options{})
	f.ok(f.promise(vol1, 2))
	f.ok(f.write(vol1, 2, 5, 0, 5, pattern(3, 5)))
	sync := f.record(disk.KindSync, vol1, 2, 6, 9, 0, 0, nil)
	data := pattern(2, 6)
	c := crcs(data)
	sync.Blocks = []wire.SyncBlock{{Block: 1, Tag: wire.Tag{CRC: c[0], Stamp: 70}}, {Block: 2}, {Block: 6, Tag: wire.Tag{CRC: c[1], Stamp: 71}}}
	sync.Data = f.Pool.Alloc(len(data))
	copy(sync.Data, data)
	f.ok(f.append(sync))
	f.ok(f.flush(vol1, 2, 6))
	tag := f.read(vol1, 9, 1, 1).Tags[0]
	repair := f.record(disk.KindRepair, vol1, 2, 6, 9, 1, 1, pattern(1, 6))
	repair.CRC, repair.Expect, repair.Tag = nil, tag, tag
	f.ok(f.append(repair))
	f.ok(f.flush(vol1, 2, 6))
	f.Core.Idle()
	f.Settle()
	f.ok(f.write(vol1, 2, 7, 0, 9, pattern(2, 8))) // from here on the log is on top of the images
	f.ok(f.append(f.record(disk.KindZero, vol1, 2, 8, 0, 5, 1, nil)))
	again := f.record(disk.KindSync, vol1, 2, 9, 4, 0, 0, nil)
	again.Blocks = []wire.SyncBlock{{Block: 0}, {Block: 15, Tag: wire.Tag{CRC: c[0], Stamp: 72}}}
	again.Data = f.Pool.Alloc(disk.BlockBytes)
	copy(again.Data, data)
	f.ok(f.append(again))
	f.ok(f.append(f.record(disk.KindTombstone, vol1, 2, 10, 9, 0, extentBlocks, nil)))
	f.ok(f.flush(vol1, 2, 10))
	f.ok(f.promise(vol2, 2))
	f.ok(f.write(vol1, 2, 11, 3, 0, pattern(4, 7)))
	last := d.Volatile()
	d.Crash(last, func(i int) bool { return i < len(last)/2 }) // the power goes in the middle of it
	return d
}

// frozenDamaged has lost a batch of its log that was durable.
func frozenDamaged(t *testing.T) *disktest.Disk {
	d, err := disktest.Format(identity, frozenGeometry())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, d, disk.Options{})
	f.ok(f.promise(vol1, 1))
	for i := range uint64(4) {
		f.ok(f.write(vol1, 1, i+1, i, 0, pattern(2, byte(i))))
		f.ok(f.flush(vol1, 1, i+1))
	}
	f.ok(f.promise(vol2, 1)) // its batch proves what stands before it
	n := 0
	if _, err := disk.Check(d, d.Size, disk.FsckOptions{Dump: func(i disk.Item) {
		if b := i.Batch; b != nil && b.Records > 0 {
			if n++; n == 4 {
				d.Flip(2<<20+int64(b.LSN)+50, 3)
			}
		}
	}}); err != nil || n < 4 {
		t.Fatal(n, err)
	}
	return d
}

// frozenObjects has what snapshots leave and data that went in place at once: the
// incompat bits 1 and 2. Objects, holes, a tombstone over an older object, merged
// and freed ones in images and in the log, fresh records that a later batch proves,
// and a last one that has only its data.
func frozenObjects(t *testing.T) *disktest.Disk {
	d, err := disktest.Format(identity, frozenGeometry())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, d, disk.Options{FreshBlocks: 2})
	f.ok(f.promise(vol1, 1))
	f.ok(f.promise(vol2, 1))
	f.ok(f.write(vol1, 1, 1, 9, 0, pattern(2, 1)))
	f.Quiesce() // the superblock has the bit of fresh records from here on
	f.writeObject(0, 2, 0, 0, pattern(extentBlocks, 2))
	f.writeObject(0, 3, 1, 0, pattern(extentBlocks, 3))
	f.writeObject(0, 4, 2, 4, pattern(6, 4))
	f.ok(f.flush(vol1, 1, 4))
	f.tell(wire.Told{CfgVersion: 1, SnapSeq: 1, Snaps: []uint32{1}})
	f.writeObject(1, 5, 0, 3, pattern(2, 5))
	f.zeroObject(disk.KindZero, 1, 6, 0, 8, 2)
	f.zeroObject(disk.KindTombstone, 1, 7, 1, 0, extentBlocks)
	f.ok(f.flush(vol1, 1, 7))
	f.tell(wire.Told{CfgVersion: 2, SnapSeq: 2, Snaps: []uint32{1, 2}})
	f.writeObject(2, 8, 0, 4, pattern(1, 6))
	f.writeObject(2, 9, 2, 4, pattern(3, 7))
	f.writeObject(2, 10, 3, 0, pattern(4, 8))
	f.ok(f.flush(vol1, 1, 10))
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 10})
	f.tell(wire.Told{CfgVersion: 3, Whole: true, SnapSeq: 3, Snaps: []uint32{2, 3}}) // the first one is deleted
	f.mergeAll()
	f.Quiesce()

	f = open(t, d, disk.Options{FreshBlocks: 2})
	f.ok(f.promise(vol1, 1))
	f.writeObject(3, 11, 0, 0, pattern(1, 9))
	f.zeroObject(disk.KindZero, 3, 12, 0, 5, 2)
	f.writeObject(3, 13, 4, 2, pattern(5, 10)) // fresh
	f.zeroObject(disk.KindTombstone, 3, 14, 3, 0, extentBlocks)
	f.ok(f.flush(vol1, 1, 14))
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 14})
	f.tell(wire.Told{CfgVersion: 4, Whole: true, SnapSeq: 3, Snaps: []uint32{3}}) // so is the second
	for f.Core.Merge() {
		f.Settle() // and no checkpoint: the log has it
	}
	f.ok(f.write(vol2, 1, 1, 6, 1, pattern(4, 11)))
	f.ok(f.flush(vol2, 1, 1))
	f.ok(f.promise(vol2, 2)) // its batch proves what stands before it
	f.writeObject(3, 15, 5, 3, pattern(3, 12))
	last := d.Volatile()
	d.Crash(last, func(i int) bool { return last[i].Offset >= 2<<20+512<<10 }) // the record of the last write is lost
	return d
}

// frozenLost has blocks that a sync gave up: in an image, and in the log.
func frozenLost(t *testing.T) *disktest.Disk {
	d, err := disktest.Format(identity, frozenGeometry())
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, d, disk.Options{FreshBlocks: -1}) // one feature at a time
	f.ok(f.promise(vol1, 1))
	f.ok(f.promise(vol2, 1))
	f.ok(f.write(vol1, 1, 1, 0, 0, pattern(6, 1)))
	f.ok(f.write(vol2, 1, 1, 3, 2, pattern(3, 2)))
	give := func(wseq, extent uint64, block uint16) {
		data := pattern(1, byte(wseq))
		r := f.record(disk.KindSync, vol1, 1, wseq, extent, 0, 0, data)
		r.CRC, r.Blocks = nil, []wire.SyncBlock{{Block: block, Tag: wire.Lost}, {Block: block + 1}, {Block: block + 2, Tag: wire.Tag{CRC: crcs(data)[0], Stamp: 9}}}
		f.ok(f.append(r))
	}
	give(2, 0, 1)
	give(3, 1, 0) // nothing was there
	f.ok(f.flush(vol1, 1, 3))
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 3})
	f.Quiesce()
	give(4, 0, 4)
	give(5, 2, 7)
	f.ok(f.flush(vol1, 1, 5))
	return d
}

func frozenImage(t *testing.T, name string) *disktest.Disk {
	z, err := os.ReadFile(filepath.Join(frozenDir, name+".img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		t.Fatal(err)
	}
	img, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	d := disktest.New(int64(len(img)))
	d.Overwrite(0, img)
	return d
}

func content(t *testing.T, d *disktest.Disk) []byte {
	b := make([]byte, d.Size)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMakeFrozenImages shows that the engine still writes what was frozen, or
// makes new files with -rewrite.
func TestMakeFrozenImages(t *testing.T) {
	for name, makeIt := range makers {
		img := content(t, makeIt(t))
		path := filepath.Join(frozenDir, name+".img.gz")
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && *rewriteFrozen {
			var z bytes.Buffer
			w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
			if _, err := w.Write(img); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, z.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if again := content(t, makeIt(t)); !bytes.Equal(img, again) {
			t.Errorf("%s: not made twice the same", name)
		}
	}
}

// dumped is a dump as lines of JSON, without findings.
func dumped(t *testing.T, d *disktest.Disk) (lines []string, rep *disk.Report) {
	rep, err := disk.Check(d, d.Size, disk.FsckOptions{Data: true, Dump: func(i disk.Item) {
		var b strings.Builder
		if i.Finding == nil {
			if err := i.WriteJSON(&b); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, strings.TrimSpace(b.String()))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return lines, rep
}

func asAny(t *testing.T, line []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestFrozenImages: every image that was ever frozen is still read, by the
// engine as by the reader that was written from the page, and both agree with
// the dump of that time.
func TestFrozenImages(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(frozenDir, "*.img.gz"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".img.gz")
		t.Run(name, func(t *testing.T) {
			d := frozenImage(t, name)
			lines, rep := dumped(t, d)
			golden := strings.Join(lines, "\n") + "\n"
			for _, f := range rep.Findings {
				golden += f.String() + "\n"
			}
			path := filepath.Join(frozenDir, name+".dump")
			if *rewriteFrozen {
				if err := os.WriteFile(path, []byte(golden), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != golden {
				t.Errorf("the dump changed:\n%s", golden)
			}
			compareReaders(t, d, lines)
		})
	}
}

func compareReaders(t *testing.T, d *disktest.Disk, lines []string) {
	other, err := formattest.Read(content(t, d))
	if err != nil {
		t.Fatal(err)
	}
	for i, item := range other.Items {
		b, err := json.Marshal(item)
		if err != nil {
			t.Fatal(err)
		}
		if i >= len(lines) {
			t.Fatalf("the page says that there is more: %s", b)
		}
		if !reflect.DeepEqual(asAny(t, b), asAny(t, []byte(lines[i]))) {
			t.Fatalf("item %d: by the page\n%s\nby the engine\n%s", i, b, lines[i])
		}
	}
	if len(lines) != len(other.Items) {
		t.Fatalf("%d items by the page, %d by the engine", len(other.Items), len(lines))
	}
	f := open(t, d.Clone(), disk.Options{})
	compared := 0
	for _, v := range []ids.ID{vol1, vol2} {
		for no := range uint64(10) {
			for i := range 4 * extentBlocks {
				b, snap := i%extentBlocks, uint32(i/extentBlocks) // as the head, and as snapshots 1 to 3
				data, good := other.Block(v, no, b, uint64(snap))
				tok := f.next()
				f.Core.Read(tok, disk.ReadRequest{Volume: v, Extent: no, Object: snap, Block: b, Count: 1, Buf: f.Pool.Alloc(disk.BlockBytes)})
				c := f.wait(tok)
				if bad := len(c.Bad) > 0; bad == good {
					t.Fatalf("volume %s extent %d block %d of snapshot %d: good %v by the page, bad %v by the engine", v, no, b, snap, good, bad)
				} else if bad {
					continue
				}
				got := c.Data
				if got == nil {
					got = make([]byte, disk.BlockBytes)
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("volume %s extent %d block %d of snapshot %d differs", v, no, b, snap)
				}
				if !bytes.Equal(got, make([]byte, len(got))) {
					compared++
				}
			}
		}
	}
	if compared < 6 {
		t.Fatalf("only %d blocks with data were compared", compared)
	}
}
