package disk_test

import (
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/core/repl"
)

// steady is an engine on a device that does nothing at once, and writes to it as
// guests do: the cost of the engine alone.
type steady struct {
	core  *disk.Core
	pool  *disk.HeapPool
	ready disk.Ready
	crc   []uint32
	wseq  uint64
	mark  repl.Mark
}

func newSteady(t testing.TB) *steady {
	t.Helper()
	d, err := disktest.Format(identity, disk.Geometry{DeviceBytes: 256 << 20, WALBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	return &steady{core: f.Core, pool: f.Pool, crc: make([]uint32, 1), mark: repl.Mark{Epoch: 1}}
}

// write logs a block at some place.
func (s *steady) write(t testing.TB) { s.put(t, int((s.wseq+1)*7919%8192), 1) }

// overwrite logs 1 MiB behind the last one.
func (s *steady) overwrite(t testing.TB) { s.put(t, int((s.wseq+1)*256%8192), 256) }

// put logs count blocks and runs the engine until nothing is under way.
func (s *steady) put(t testing.TB, block, count int) {
	s.wseq++
	s.mark.Wseq = s.wseq
	s.core.SetFlushMark(vol1, repl.Mark{Epoch: 1, Wseq: s.wseq - min(s.wseq, 64)})
	s.core.Append(s.wseq, disk.Record{Kind: disk.KindWrite, Volume: vol1, Writer: disk.Writer{Epoch: 1}, Extent: uint64(block / 1024), Block: block % 1024, Count: count,
		Mark: s.mark, CRC: s.crc, Data: s.pool.Alloc(count * disk.BlockBytes)})
	answered := false
	for {
		s.core.Ready(&s.ready)
		if len(s.ready.IO)+len(s.ready.Done) == 0 {
			break
		}
		for _, io := range s.ready.IO {
			s.core.Done(io.ID, nil)
		}
		for _, c := range s.ready.Done {
			answered = answered || c.Token == s.wseq && c.Status == 0
		}
	}
	if !answered {
		t.Fatalf("write %d was not answered", s.wseq)
	}
}

// A logged write makes no garbage; what checkpoints and slabs of records take is
// less than one allocation a write.
func TestWriteAllocations(t *testing.T) {
	s := newSteady(t)
	for range 4000 {
		s.write(t)
	}
	if n := testing.AllocsPerRun(4000, func() { s.write(t) }); n > 0 {
		t.Errorf("%v allocations a write", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	s := newSteady(b)
	b.ReportAllocs()
	for b.Loop() {
		s.write(b)
	}
}

// BenchmarkOverwriteLarge is the engine's work for 1 MiB over what is there already,
// in order: log, checkpoints, no device.
func BenchmarkOverwriteLarge(b *testing.B) {
	s := newSteady(b)
	s.crc = make([]uint32, 256)
	b.ReportAllocs()
	for b.Loop() {
		s.overwrite(b)
	}
}
