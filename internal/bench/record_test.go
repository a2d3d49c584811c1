package bench

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"roseau/internal/block/nbd/nbdtest"
	"roseau/internal/block/volume"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

var record = flag.Bool("record", false, "write the messages of a real writer and its storage into the fuzz corpus of package wire")

// seedsOfType is how many messages of a type become seeds; longer ones than
// seedBytes do not.
const (
	seedsOfType = 2
	seedBytes   = 12 << 10
)

// seeds keeps some messages of each type.
type seeds struct {
	mu    sync.Mutex
	types map[string][][]byte
}

// take decodes what r brings, and keeps the encoding of some.
func (s *seeds) take(r io.Reader) error {
	d := wire.NewDecoder(r, wire.Heap{})
	d.SetVersion(wire.ProtocolVersion)
	for {
		m, err := d.Next()
		if err != nil {
			return err
		}
		head, payload, err := wire.Append(nil, m)
		if err != nil {
			return err
		}
		s.mu.Lock()
		name := fmt.Sprintf("%T", m)[len("*wire."):]
		if b := append(head, payload...); len(s.types[name]) < seedsOfType && len(b) <= seedBytes {
			s.types[name] = append(s.types[name], bytes.Clone(b))
		}
		s.mu.Unlock()
	}
}

// between listens at path and carries each connection on to there, with every
// byte of both directions going to s, too.
func (s *seeds) between(t *testing.T, path, there string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	carry := func(to, from net.Conn) {
		pr, pw := io.Pipe()
		go func() {
			if err := s.take(pr); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("recorded bytes do not decode: %v", err)
			}
			io.Copy(io.Discard, pr)
		}()
		io.Copy(io.MultiWriter(to, pw), from)
		to.Close()
		pw.Close()
	}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", there)
			if err != nil {
				a.Close() // the storage is away just now
				continue
			}
			go carry(a, b)
			go carry(b, a)
		}
	}()
}

// TestRecordWireCorpus writes the seeds of wire's FuzzDecoder: a volume is
// written, flushed, read, discarded, its local copy dies and is brought back.
// go test -run RecordWireCorpus -record ./internal/bench
func TestRecordWireCorpus(t *testing.T) {
	if !*record {
		t.Skip("the corpus is in wire's testdata; -record makes it anew")
	}
	c, ctx := testCluster(t, 1<<30)
	vol, err := c.CreateVolume(ctx, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	s := &seeds{types: map[string][][]byte{}}
	cfg := c.Writer(0, vol)
	cfg.Timing.RejoinBackoff = time.Millisecond
	cfg.StorageSocket = filepath.Join(t.TempDir(), "tapped")
	s.between(t, cfg.StorageSocket, c.node(0).path("s"))
	set := take(t, ctx, cfg)
	uri := export(t, set, vol)
	io1 := []string{"-f", "raw", "-d", "unmap", "-c", "write -P 5 0 8192", "-c", "flush", "-c", "read -P 5 0 8192", "-c", "read 1M 4096",
		"-c", "write -z -n 8192 4096", "-c", "discard 0 4096", "-c", "write -f -P 6 4M 4096", uri}
	nbdtest.Tool(t, "qemu-io", io1...)
	if err := c.KillStorage(0); err != nil {
		t.Fatal(err)
	}
	nbdtest.Tool(t, "qemu-io", io1...)
	eventually(t, "two copies", time.Minute, set, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 2 })
	nbdtest.Tool(t, "qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -P 9 8M 8192", "-c", "discard 4M 4096", uri)
	if err := c.StartStorage(ctx, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three copies", time.Minute, set, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 3 })
	if err := set.Snapshot(ctx, repl.SnapshotOrder{Volume: vol, Snapshot: repl.Snapshot{Name: "a"}}); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.types) < 15 {
		t.Errorf("only %d types of messages were seen", len(s.types))
	}
	dir := "../block/wire/testdata/fuzz/FuzzDecoder"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, list := range s.types {
		for i, b := range list {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d", name, i)), fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
