package bench

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"roseau/internal/block/disk"
	"roseau/internal/block/nbd"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
)

// nbdClient is a client of EXPORT_NAME, for one goroutine.
type nbdClient struct {
	t *testing.T
	c net.Conn
}

func dialNBD(t *testing.T, sock, name string) *nbdClient {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	k := &nbdClient{t, c}
	k.get(18) // magic, magic, flags
	req := binary.BigEndian.AppendUint32(nil, 3)
	req = append(req, "IHAVEOPT"...)
	req = binary.BigEndian.AppendUint32(req, 1)
	req = binary.BigEndian.AppendUint32(req, uint32(len(name)))
	k.put(append(req, name...))
	k.get(10)
	return k
}

func (k *nbdClient) put(b []byte) {
	if _, err := k.c.Write(b); err != nil {
		k.t.Errorf("write to the export: %v", err)
		runtime.Goexit() // of the worker
	}
}

func (k *nbdClient) get(n int) []byte {
	b := make([]byte, n)
	for at := 0; at < n; {
		m, err := k.c.Read(b[at:])
		if err != nil {
			k.t.Errorf("read from the export: %v", err)
			runtime.Goexit()
		}
		at += m
	}
	return b
}

func (k *nbdClient) do(cmd uint16, off int64, length int, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 7)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	k.put(append(b, data...))
	if h := k.get(16); binary.BigEndian.Uint32(h[4:]) != 0 {
		k.t.Errorf("command %d at %d: error %d", cmd, off, binary.BigEndian.Uint32(h[4:]))
	}
	if cmd == 0 {
		return k.get(length)
	}
	return nil
}

// worker changes and reads blocks that are its own (one in workers), and knows what
// is in each.
type worker struct {
	k    *nbdClient
	r    *rand.Rand
	mine []int64
	have map[int64][]byte
	wseq uint64
}

const directWorkers = 4

func (w *worker) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		b := w.mine[w.r.IntN(len(w.mine))]
		off := b * repl.BlockBytes
		switch p := w.r.IntN(100); {
		case p < 12:
			data := make([]byte, repl.BlockBytes)
			w.wseq++
			for i := 0; i < len(data); i += 16 {
				binary.LittleEndian.PutUint64(data[i:], w.wseq)
				binary.LittleEndian.PutUint64(data[i+8:], uint64(b))
			}
			w.have[b] = data
			w.k.do(1, off, len(data), data)
		case p < 14:
			w.have[b] = nil
			w.k.do(6, off, repl.BlockBytes, nil)
		case p < 15:
			w.k.do(3, 0, 0, nil)
		default:
			want := w.have[b]
			if want == nil {
				want = make([]byte, repl.BlockBytes)
			}
			if got := w.k.do(0, off, repl.BlockBytes, nil); !bytes.Equal(got, want) {
				w.k.t.Errorf("block %d reads %x, want %x", b, got[:16], want[:16])
				return
			}
		}
	}
}

// Reads by the writer's own process give what was written, whatever happens to the
// storage process and the disk beside it.
func TestDirectReads(t *testing.T) {
	c, ctx := testCluster(t, testDisk)
	vol, err := c.CreateVolume(ctx, testVolume)
	if err != nil {
		t.Fatal(err)
	}
	s := take(t, ctx, c.Writer(0, vol))
	sock := filepath.Join(c.dir, "nbd")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(ctx, vol, l) }()
	t.Cleanup(func() { s.Close(); <-served })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for i := range directWorkers {
		w := &worker{k: dialNBD(t, sock, vol.String()), r: rand.New(rand.NewPCG(1, uint64(i))), have: map[int64][]byte{}, wseq: 1}
		for b := int64(i); b < 64; b += directWorkers { // of three extents
			w.mine = append(w.mine, b, 1024+b, 2048+b*16)
		}
		wg.Go(func() { w.run(stop) })
	}
	direct := func(more uint64) {
		t.Helper()
		at := s.Status().Volumes[0].ReadsDirect
		eventually(t, "direct reads", 40*time.Second, s, func(v volume.VolumeStatus) bool { return v.ReadsDirect >= at+more || t.Failed() })
	}
	direct(500)
	if err := c.KillStorage(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the local copy is out", 20*time.Second, s, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 2 })
	at := s.Status().Volumes[0].Reads
	eventually(t, "reads go on", 20*time.Second, s, func(v volume.VolumeStatus) bool { return v.Reads > at+100 })
	if err := c.StartStorage(ctx, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "healthy again", 40*time.Second, s, func(v volume.VolumeStatus) bool { return v.Healthy && v.CopiesInSync == 3 })
	direct(500)
	// Rot: the copies elsewhere have it, and the reader must see nothing.
	rot(t, c.node(0).path("disks/d"))
	direct(200)
}

// rot flips a bit of each block of the test that is at rest on a disk.
func rot(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rep, err := disk.Fsck(f, testDisk)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, nbd.BlockBytes)
	hit := 0
	for off := rep.Superblock.DataOffset; off < testDisk-4<<20; off += nbd.BlockBytes {
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if v, at := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]); v != 0 && bytes.Equal(b[:16], b[16:32]) && at < testVolume/nbd.BlockBytes {
			b[100] ^= 1
			if _, err := f.WriteAt(b[:512], off); err != nil {
				t.Fatal(err)
			}
			hit++
		}
	}
	if hit == 0 {
		t.Error("no block at rest was found")
	}
}
