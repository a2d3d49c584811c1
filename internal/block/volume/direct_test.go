package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/direct"
	"roseau/internal/block/nbd"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
	"roseau/internal/driver/blockdev"
)

// stubCore is what a core always is here: serving, well, and without deadlines.
type stubCore struct {
	out, back writer.Ready // in turns
}

func (*stubCore) Tick(clock.Instant)          {}
func (*stubCore) NextDeadline() clock.Instant { return 0 }
func (*stubCore) State() writer.State         { return writer.Serving }
func (*stubCore) Health() writer.Health       { return writer.Health{} }
func (c *stubCore) Ready() writer.Ready {
	r := c.out
	c.out = writer.Ready{Sends: c.back.Sends[:0], Reads: c.back.Reads[:0], Done: c.back.Done[:0]}
	c.back = r
	return r
}

// directCore answers every read by a direct one, and nothing if that fails.
type directCore struct {
	stubCore
	disk ids.ID
	crc  []uint32
	sess uint64
	asks map[uint64]*writer.Request
	last uint64
	bad  int
}

func (c *directCore) Step(_ clock.Instant, ev writer.Event) {
	switch ev := ev.(type) {
	case *writer.Request:
		c.last++
		c.asks[c.last] = ev
		c.out.Reads = append(c.out.Reads, writer.DirectRead{ID: c.last, Disk: c.disk, Read: place.Read{
			Session: c.sess, Slot: 1, Version: 0, Offset: ev.Offset, CRC: c.crc[ev.Offset/repl.BlockBytes:][:ev.Length/repl.BlockBytes]}})
	case *writer.DirectDone:
		r := c.asks[ev.ID]
		delete(c.asks, ev.ID)
		res := writer.Done
		if r.Data = ev.Data; !ev.OK {
			c.bad++
			res = writer.IOError
		}
		c.out.Done = append(c.out.Done, writer.Completion{Request: r, Result: res})
	}
}

// directSet serves a disk file of 4 MiB whose blocks all differ.
func directSet(t *testing.T) (s *Set, c *directCore, cells *direct.Cells, owner blockdev.File, client net.Conn) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if err := blockdev.Create(path, repl.ExtentBytes); err != nil {
		t.Fatal(err)
	}
	owner, err := blockdev.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { owner.Close() })
	if cells, err = direct.OwnCells(filepath.Join(dir, "cells")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cells.Close() })
	c = &directCore{disk: ids.New(), sess: cells.Session(), asks: map[uint64]*writer.Request{}}
	for b := range int64(repl.ExtentBlocks) {
		data := nbd.Pool{}.Alloc(repl.BlockBytes)
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], uint64(b*7919+int64(i)))
		}
		if err := owner.WritevAt([][]byte{data}, b*repl.BlockBytes); err != nil {
			t.Fatal(err)
		}
		c.crc = append(c.crc, wire.Checksum(data))
	}
	s, d := coreSet(c)

	shared, err := blockdev.Share(owner)
	if err != nil {
		t.Fatal(err)
	}
	file, err := blockdev.Shared(shared)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := direct.OwnCells(filepath.Join(dir, "cells"))
	if err != nil {
		t.Fatal(err)
	}
	l := &localDisk{id: c.disk, session: c.sess, file: file, cells: seen}
	l.refs.Store(1)
	if l.rings(s.disks); l.ring == nil {
		t.Skip("no io_uring")
	}
	s.call(func() { s.disks.put(l) })

	return s, c, cells, owner, serveClient(t, s, d)
}

// coreSet is a running set of one volume of an extent, with c as its core. No etcd,
// no storage.
func coreSet(c core) (*Set, *device) {
	s := &Set{cfg: Config{Clock: clock.System{}}, log: slog.New(slog.DiscardHandler), clock: clock.System{}, wake: make(chan struct{}, 1),
		timer: time.NewTimer(time.Hour), known: make(chan struct{}), peers: map[ids.ID]*peer{}, events: newEventQueue(), core: c}
	s.disks = newDisks(s)
	d := &device{s: s, id: ids.New()}
	d.size.Store(repl.ExtentBytes)
	s.vols = append(s.vols, d)
	s.idle = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.wg.Go(s.keepTime)
	return s, d
}

// serveClient serves d until the test ends, and returns a client of it.
func serveClient(t *testing.T, s *Set, d *device) net.Conn {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(context.Background(), d.id, ln) }()
	t.Cleanup(func() { s.Close(); <-served })
	client, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	hello := make([]byte, 18)
	if _, err := io.ReadFull(client, hello); err != nil {
		t.Fatal(err)
	}
	req := append(binary.BigEndian.AppendUint32(nil, 3), "IHAVEOPT\x00\x00\x00\x01"...)
	req = binary.BigEndian.AppendUint32(req, uint32(len(d.id.String())))
	client.Write(append(req, d.id.String()...))
	if _, err := io.ReadFull(client, hello[:10]); err != nil {
		t.Fatal(err)
	}
	return client
}

func readRequest(block, count int) []byte { return nbdRequest(0, block, count) }

// nbdRequest is the header of an NBD command for blocks.
func nbdRequest(cmd byte, block, count int) []byte {
	b := append(binary.BigEndian.AppendUint32(nil, 0x25609513), 0, 0, 0, cmd)
	b = binary.BigEndian.AppendUint64(b, uint64(block))
	b = binary.BigEndian.AppendUint64(b, uint64(block)*repl.BlockBytes)
	return binary.BigEndian.AppendUint32(b, uint32(count)*repl.BlockBytes)
}

// readAnswer reads an answer to a request of count blocks.
func readAnswer(t *testing.T, client net.Conn, count int) (block int, failed bool, data []byte) {
	t.Helper()
	head := make([]byte, 16)
	if _, err := io.ReadFull(client, head); err != nil {
		t.Fatal(err)
	}
	if failed = binary.BigEndian.Uint32(head[4:]) != 0; !failed {
		data = make([]byte, count*repl.BlockBytes)
		if _, err := io.ReadFull(client, data); err != nil {
			t.Fatal(err)
		}
	}
	return int(binary.BigEndian.Uint64(head[8:])), failed, data
}

// Alone and many at a time, what is read is checked against cells and checksums.
func TestDisksAreReadDirectly(t *testing.T) {
	_, c, cells, owner, client := directSet(t)
	all := func(depth int) (failed int) {
		t.Helper()
		for b := 0; b < 256; b += depth {
			var req []byte
			for i := range depth {
				req = append(req, readRequest(b+i, 2)...)
			}
			client.Write(req)
			for range depth {
				block, bad, data := readAnswer(t, client, 2)
				if bad {
					failed++
				} else if wire.Checksum(data[repl.BlockBytes:]) != c.crc[block+1] {
					t.Fatalf("block %d: other bytes", block)
				}
			}
		}
		return failed
	}
	for _, depth := range []int{1, 16, 128} {
		if n := all(depth); n != 0 {
			t.Errorf("depth %d: %d reads failed", depth, n)
		}
	}
	rot := nbd.Pool{}.Alloc(repl.BlockBytes)
	if _, err := owner.ReadAt(rot, 40*repl.BlockBytes); err != nil {
		t.Fatal(err)
	}
	rot[99] ^= 4
	if err := owner.WritevAt([][]byte{rot}, 40*repl.BlockBytes); err != nil {
		t.Fatal(err)
	}
	if n := all(1) + all(16); n != 4 { // as the first and as the second block, twice
		t.Errorf("%d reads of a rotten block failed, want 4", n)
	}
	cells.Freed(2)
	if n := all(128); n != 2 {
		t.Errorf("%d reads failed although another slot was freed, want 2", n)
	}
	cells.Freed(1)
	if n := all(1) + all(16); n != 512 {
		t.Errorf("%d reads of a freed slot failed, want all 512", n)
	}
}

func TestDirectReadsEndWithTheSession(t *testing.T) {
	_, _, cells, _, client := directSet(t)
	client.Write(readRequest(3, 1))
	if _, bad, _ := readAnswer(t, client, 1); bad {
		t.Fatal("failed")
	}
	cells.Begin()
	client.Write(readRequest(3, 1))
	if _, bad, _ := readAnswer(t, client, 1); !bad {
		t.Fatal("read although the disk was opened by another")
	}
}

// From the client's request to its answer nothing is allocated.
func TestDirectReadDoesNotAllocate(t *testing.T) {
	_, c, _, _, client := directSet(t)
	req, ans := readRequest(5, 1), make([]byte, 16+repl.BlockBytes)
	one := func() {
		client.Write(req)
		io.ReadFull(client, ans)
	}
	for range 300 {
		one()
	}
	n := testing.AllocsPerRun(500, one)
	if !bytes.Equal(ans[4:8], []byte{0, 0, 0, 0}) || c.bad > 0 {
		t.Fatal("a read failed")
	}
	if n != 0 { // the average is rounded down: the collector may empty a pool
		t.Errorf("%v allocations a read", n)
	}
}
