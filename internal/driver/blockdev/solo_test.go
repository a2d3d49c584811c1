package blockdev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"roseau/internal/base/errs"
)

func page() []byte {
	raw := make([]byte, 2*Align)
	skip := -int(uintptr(unsafe.Pointer(&raw[0]))) & (Align - 1)
	return raw[skip : skip+Align : skip+Align]
}

// A shared disk is read past its owner, by one who cannot write.
func TestSharedDiskIsReadAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	if err := Create(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	owner, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	want := page()
	copy(want, "what the owner wrote")
	if err := owner.WritevAt([][]byte{want}, 8*Align); err != nil {
		t.Fatal(err)
	}
	f, err := Share(owner)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := Shared(f)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if shared.Size() != 1<<20 {
		t.Errorf("size %d", shared.Size())
	}
	if err := shared.WritevAt([][]byte{want}, 0); err == nil {
		t.Error("a shared disk was written to")
	}
	s, err := NewSolo(shared)
	if errors.Is(err, errs.Unavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := page()
	bufs := [][]byte{got}
	for range 200 {
		clear(got)
		ended, err := s.Read(bufs, 8*Align, time.Minute)
		if err != nil || !ended || !bytes.Equal(got, want) {
			t.Fatalf("%v, ended %v", err, ended)
		}
	}
	if ended, err := s.Read(bufs, 1<<20, time.Minute); err == nil || !ended {
		t.Errorf("behind the end: %v, ended %v", err, ended)
	}
	// Without patience the end is waited for elsewhere.
	for range 50 {
		clear(got)
		ended, err := s.Read(bufs, 8*Align, 0)
		if !ended {
			err = s.Wait()
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v, ended %v", err, ended)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { s.Read(bufs, 8*Align, time.Minute) }); allocs != 0 {
		t.Errorf("%v allocations a read", allocs)
	}
	if _, err := Share(&struct{ File }{owner}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("share a disk that is not plain: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
