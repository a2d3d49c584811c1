package nbd

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"roseau/internal/block/nbd/nbdtest"
)

var record = flag.Bool("record", false, "write what real clients send into the fuzz corpus (testdata/fuzz)")

// recordedBytes is how much of one connection becomes a seed: the fuzzer is
// slower with long ones, and what follows is payload.
const recordedBytes = 32 << 10

// tap keeps what a client sent.
type tap struct {
	net.Conn
	mu   *sync.Mutex
	sent *[]byte
}

func (c tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	if room := recordedBytes - len(*c.sent); room > 0 {
		*c.sent = append(*c.sent, p[:min(n, room)]...)
	}
	c.mu.Unlock()
	return n, err
}

// tapListener hands out tapped connections.
type tapListener struct {
	net.Listener
	mu    sync.Mutex
	conns []*[]byte
}

func (l *tapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, new([]byte))
	return tap{c, &l.mu, l.conns[len(l.conns)-1]}, nil
}

// TestRecordCorpus writes the seeds of FuzzConnection: go test -run RecordCorpus -record.
func TestRecordCorpus(t *testing.T) {
	if !*record {
		t.Skip("the corpus is in testdata; -record makes it anew")
	}
	for _, x := range []struct {
		name string
		tool []string // the URI takes the place of "@"
	}{
		{"nbdinfo", []string{"nbdinfo", "@"}},
		{"nbdinfo-map", []string{"nbdinfo", "--map", "@"}},
		{"nbdinfo-list", []string{"nbdinfo", "--list", "@"}},
		{"qemu-img-info", []string{"qemu-img", "info", "@"}},
		{"qemu-img-map", []string{"qemu-img", "map", "--output=json", "@"}},
		{"qemu-io-write", []string{"qemu-io", "-f", "raw", "-c", "write -P 7 4096 8192", "-c", "write -f 0 4096", "-c", "flush", "-c", "read -P 7 4096 8192", "@"}},
		{"qemu-io-zero", []string{"qemu-io", "-f", "raw", "-c", "write -z 0 16384", "-c", "write -z -u 16384 65536", "-c", "write -z -n -u 0 4096", "@"}},
		{"qemu-io-discard", []string{"qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 0 65536", "-c", "discard 8192 4096", "@"}},
		{"qemu-io-unaligned", []string{"qemu-io", "-f", "raw", "-c", "write -P 3 512 1024", "-c", "read 512 1024", "-c", "discard 1024 1024", "@"}},
	} {
		sock := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		tl := &tapListener{Listener: l}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- NewServer(nil, Export{Name: "d", Description: "a disk", Backend: newMem(1 << 20)}).Serve(ctx, tl)
		}()
		args := append([]string{}, x.tool...)
		for i := range args {
			if args[i] == "@" {
				args[i] = "nbd+unix:///d?socket=" + sock
			}
		}
		nbdtest.Tool(t, args[0], args[1:]...)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for i, b := range tl.conns {
			writeSeed(t, fmt.Sprintf("testdata/fuzz/FuzzConnection/%s-%d", x.name, i), *b)
		}
	}
}

// writeSeed writes a file of go test's corpus format with one argument.
func writeSeed(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", b), 0o644); err != nil {
		t.Fatal(err)
	}
}
