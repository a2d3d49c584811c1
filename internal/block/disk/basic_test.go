package disk_test

import (
	"bytes"
	"hash/crc32"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	identity   = disk.Identity{
		Cluster: ids.MustParse("c0000000-0000-4000-8000-000000000001"),
		Disk:    ids.MustParse("d0000000-0000-4000-8000-000000000001"),
		Pool:    ids.MustParse("b0000000-0000-4000-8000-000000000001"),
	}
	vol1 = ids.MustParse("11111111-0000-4000-8000-000000000001")
	vol2 = ids.MustParse("22222222-0000-4000-8000-000000000001")
	boot = ids.MustParse("bbbbbbbb-0000-4000-8000-000000000001")
)

const extentBlocks = 16

func smallGeometry() disk.Geometry {
	return disk.Geometry{DeviceBytes: 8 << 20, WALBytes: 512 << 10, VolumeTableBytes: 64 << 10, ExtentBlocks: extentBlocks}
}

// fixture is a driver with helpers that wait.
type fixture struct {
	*disktest.Driver
	t     testing.TB
	token uint64
}

func format(t testing.TB) *disktest.Disk {
	d, err := disktest.Format(identity, smallGeometry())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func open(t testing.TB, d *disktest.Disk, o disk.Options) *fixture {
	t.Helper()
	v, _, err := disktest.Open(d, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{Driver: v, t: t}
}

func (f *fixture) next() uint64 { f.token++; return f.token }

func (f *fixture) wait(tok uint64) disk.Completion {
	f.t.Helper()
	c, ok := f.Wait(tok)
	if !ok {
		f.t.Fatalf("request %d was never answered", tok)
	}
	return c
}

func promise(epoch uint64) repl.Promise {
	return repl.Promise{Epoch: epoch, Nonce: ids.ID{1, byte(epoch)}, Node: ids.ID{2}, Run: ids.ID{3}}
}

func (f *fixture) promise(v ids.ID, epoch uint64) wire.Status {
	f.t.Helper()
	tok := f.next()
	f.Core.Control(tok, disk.Control{Kind: disk.ControlPromise, Volume: v, Promise: promise(epoch), Boot: boot})
	return f.wait(tok).Status
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n*disk.BlockBytes)
	for i := range b {
		b[i] = seed + byte(i/disk.BlockBytes) ^ byte(i*7)
	}
	return b
}

func crcs(data []byte) []uint32 {
	var list []uint32
	for ; len(data) > 0; data = data[disk.BlockBytes:] {
		list = append(list, crc32.Checksum(data[:disk.BlockBytes], castagnoli))
	}
	return list
}

func (f *fixture) record(kind disk.Kind, v ids.ID, epoch, wseq, extent uint64, block, count int, data []byte) disk.Record {
	r := disk.Record{
		Kind: kind, Volume: v, Writer: disk.Writer{Epoch: epoch}, Extent: extent,
		Mark: repl.Mark{Epoch: epoch, Wseq: wseq}, Block: block, Count: count,
	}
	if data != nil {
		r.CRC = crcs(data)
		r.Data = f.Pool.Alloc(len(data))
		copy(r.Data, data)
	}
	return r
}

func (f *fixture) append(r disk.Record) wire.Status {
	f.t.Helper()
	tok := f.next()
	f.Core.Append(tok, r)
	return f.wait(tok).Status
}

func (f *fixture) write(v ids.ID, epoch, wseq, extent uint64, block int, data []byte) wire.Status {
	f.t.Helper()
	return f.append(f.record(disk.KindWrite, v, epoch, wseq, extent, block, len(data)/disk.BlockBytes, data))
}

func (f *fixture) read(v ids.ID, extent uint64, block, count int) disk.Completion {
	f.t.Helper()
	tok := f.next()
	f.Core.Read(tok, disk.ReadRequest{Volume: v, Extent: extent, Block: block, Count: count, Buf: f.Pool.Alloc(count * disk.BlockBytes)})
	return f.wait(tok)
}

func (f *fixture) flush(v ids.ID, epoch, upto uint64) wire.Status {
	f.t.Helper()
	tok := f.next()
	f.Core.Flush(tok, v, repl.Mark{Epoch: epoch, Wseq: upto})
	return f.wait(tok).Status
}

func (f *fixture) want(v ids.ID, extent uint64, block int, data []byte) {
	f.t.Helper()
	c := f.read(v, extent, block, len(data)/disk.BlockBytes)
	got := c.Data
	if got == nil {
		got = make([]byte, len(data))
	}
	if c.Status != wire.OK || !bytes.Equal(got, data) {
		f.t.Fatalf("read %d/%d: status %d, bad %v, equal %v", extent, block, c.Status, c.Bad, bytes.Equal(got, data))
	}
}

func TestWriteReadReopen(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	if s := f.promise(vol1, 1); s != wire.OK {
		t.Fatal(s)
	}
	if s := f.write(vol1, 1, 1, 3, 2, pattern(4, 1)); s != wire.OK {
		t.Fatal(s)
	}
	f.want(vol1, 3, 2, pattern(4, 1))
	f.want(vol1, 3, 0, make([]byte, 2*disk.BlockBytes))
	if s := f.flush(vol1, 1, 1); s != wire.OK {
		t.Fatal(s)
	}
	f.Core.Idle() // the marks go into a later batch than what they speak of
	f.Settle()
	f = open(t, d, disk.Options{}) // from the log
	f.want(vol1, 3, 2, pattern(4, 1))
	f.Quiesce()
	f.want(vol1, 3, 2, pattern(4, 1))
	st := f.Core.Stats()
	if st.PendingApplyBlocks != 0 {
		t.Fatalf("after quiesce: %+v", st)
	}
	f = open(t, d, disk.Options{}) // from the extents
	f.want(vol1, 3, 2, pattern(4, 1))
	info, ok := f.Core.Volume(vol1)
	if !ok || info.Promise != promise(1) || info.Boot != boot || info.MaxMark.Wseq != 1 {
		t.Fatalf("volume %+v %v", info, ok)
	}
	if info.DurableMark.Wseq != 1 {
		t.Fatalf("durable mark %+v", info.DurableMark)
	}
	if w := f.Core.Window(vol1, repl.Mark{}); len(w) != 1 || !w[0].Verified || w[0].Mark.Wseq != 1 || len(w[0].CRC) != 4 {
		t.Fatalf("window %+v", w)
	}
	f.Core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: 1})
	if w := f.Core.Window(vol1, repl.Mark{}); len(w) != 0 {
		t.Fatalf("window %+v", w)
	}
}
