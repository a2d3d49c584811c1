package direct

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// Owner and reader see one file: what the owner says, a reader sees at once, and the
// next owner goes on where the last one ended.
func TestCells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cells", "disk")
	own, err := OwnCells(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadCells(f)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	session := read.Session()
	if session == 0 {
		t.Error("a new file has no session")
	}
	own.Freed(3)
	own.Freed(3 + cellCount)
	if got := read.Version(3); got != 2 || read.Version(4) != 0 {
		t.Errorf("versions %d and %d, want 2 and 0", got, read.Version(4))
	}
	own.Begin()
	if read.Session() != session+1 {
		t.Errorf("session %d after %d", read.Session(), session)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OwnCells(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	again.Begin()
	if read.Session() != session+2 || read.Version(3) != 2 {
		t.Errorf("the next owner is not seen: session %d, version %d", read.Session(), read.Version(3))
	}
}

func TestForeignCellsAreRefused(t *testing.T) {
	for name, content := range map[string][]byte{"short": make([]byte, 100), "empty": nil, "other": make([]byte, cellsBytes)} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OwnCells(path); !errors.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// pair is a client with the other end of its connection.
func pair(t *testing.T) (*Client, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: SocketPath(path), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c, s
}

func TestAnswers(t *testing.T) {
	want := Request{Kind: AskPlaces, Disk: ids.New(), Volume: ids.New(), Extent: 1 << 40}
	huge := make([]byte, replyBytes)
	binary.LittleEndian.PutUint32(huge[4:], 1<<30)
	for _, a := range []struct {
		name   string
		answer func(*net.UnixConn) error
		kind   error // of what the client says; nil: io.ErrUnexpectedEOF or alike
	}{
		{"refused", func(c *net.UnixConn) error { return WriteReply(c, wire.Busy, nil) }, errs.Unavailable},
		{"a map of other bytes", func(c *net.UnixConn) error { return WriteReply(c, wire.OK, []byte("no map")) }, errs.Corrupt},
		{"longer than any map", func(c *net.UnixConn) error { _, err := c.Write(huge); return err }, errs.Corrupt},
		{"half", func(c *net.UnixConn) error { _, err := c.Write(huge[:4]); return errors.Join(err, c.Close()) }, nil},
	} {
		c, s := pair(t)
		asked := make(chan error, 1)
		go func() {
			q, err := ReadRequest(s)
			if err == nil && q != want {
				err = errors.New("another question arrived")
			}
			asked <- errors.Join(err, a.answer(s))
		}()
		_, err := c.Places(want.Disk, want.Volume, want.Extent)
		if err == nil || a.kind != nil && !errors.Is(err, a.kind) || Refused(err) != (a.kind == errs.Unavailable) {
			t.Errorf("%s: %v", a.name, err)
		}
		if err := <-asked; err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
	}
}

// A disk comes with its cells; one descriptor alone is no answer, and is closed.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	cells, err := OwnCells(filepath.Join(dir, "cells"))
	if err != nil {
		t.Fatal(err)
	}
	defer cells.Close()
	if err := os.WriteFile(filepath.Join(dir, "disk"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	session := binary.LittleEndian.AppendUint64(nil, cells.Session())
	for _, files := range [][]*os.File{{disk, cells.File()}, {disk}, nil} {
		c, s := pair(t)
		go func() {
			if _, err := ReadRequest(s); err == nil {
				WriteReply(s, wire.OK, session, files...)
			}
		}()
		f, got, n, err := c.Disk(ids.New())
		if len(files) < 2 {
			if !errors.Is(err, errs.Corrupt) {
				t.Errorf("%d descriptors: %v", len(files), err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil || string(b) != "content" || n != cells.Session() || got.Session() != n {
			t.Errorf("read %q, %v; session %d, want %d", b, err, n, cells.Session())
		}
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("the descriptor can write")
		}
		f.Close()
		got.Close()
	}
}

func FuzzRequest(f *testing.F) {
	var b [requestBytes]byte
	(&Request{Kind: OpenDisk, Disk: ids.New()}).encode(&b)
	f.Add(b[:])
	(&Request{Kind: AskPlaces, Disk: ids.New(), Volume: ids.New(), Extent: 7}).encode(&b)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := ReadRequest(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out [requestBytes]byte
		q.encode(&out)
		if !bytes.Equal(out[:], in[:requestBytes]) {
			t.Errorf("%x became %x", in[:requestBytes], out)
		}
	})
}
