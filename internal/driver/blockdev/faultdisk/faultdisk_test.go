package faultdisk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"roseau/internal/base/errs"
)

const testBlocks = 24

// rig is a disk with its files; the run directory stands for a node's tmpfs.
type rig struct {
	t       testing.TB
	run     string
	path    string
	disk    *Disk
	handle  *Handle
	control *Control
}

func newRig(t testing.TB, dir string, blocks int64) *rig {
	r := &rig{t: t, path: filepath.Join(dir, "d1")}
	f, err := os.Create(r.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(blocks*BlockBytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	r.boot(dir)
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) boot(dir string) {
	run, err := os.MkdirTemp(dir, "run")
	r.must(err)
	r.run = run
	r.must(Prepare(run, r.path))
	r.disk, err = Open(run, r.path)
	r.must(err)
	c, o := Files(run, r.path)
	r.handle, err = Hold(c, o, r.path)
	r.must(err)
	r.control = r.handle.Control()
}

func (r *rig) reopen() {
	r.must(r.disk.Close())
	var err error
	r.disk, err = Open(r.run, r.path)
	r.must(err)
}

func (r *rig) read(block int64, n int) []byte {
	r.t.Helper()
	p := make([]byte, n*BlockBytes)
	_, err := r.disk.ReadAt(p, block*BlockBytes)
	r.must(err)
	return p
}

func (r *rig) stop() { r.must(errors.Join(r.disk.Close(), r.handle.Close())) }

func fill(v byte, n int) []byte { return bytes.Repeat([]byte{v}, n*BlockBytes) }

// TestModel compares the disk with two plain images: what a reader must see and
// what must be on the medium, through writes, flushes, kills and power cuts.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "m")
		if err != nil {
			rt.Fatal(err)
		}
		r := newRig(t, dir, testBlocks)
		defer func() { r.stop() }()
		seen, flushed := fill(0, testBlocks), fill(0, testBlocks)
		version := byte(0)
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				version++
				b := rapid.IntRange(0, testBlocks-1).Draw(rt, "block")
				n := rapid.IntRange(1, min(8, testBlocks-b)).Draw(rt, "count")
				p := fill(version, n)
				r.must(r.disk.WritevAt([][]byte{p[:BlockBytes], p[BlockBytes:]}, int64(b)*BlockBytes))
				copy(seen[b*BlockBytes:], p)
			},
			"flush": func(*rapid.T) {
				r.must(r.disk.Datasync())
				copy(flushed, seen)
			},
			"kill": func(*rapid.T) { r.reopen() },
			"power": func(rt *rapid.T) {
				r.must(r.disk.Close())
				_, err := r.handle.PowerLoss(rapid.Uint64().Draw(rt, "seed"))
				r.must(err)
				r.boot(dir)
				got := r.read(0, testBlocks)
				for s := 0; s < len(got); s += SectorBytes {
					g := got[s : s+SectorBytes]
					if !bytes.Equal(g, seen[s:s+SectorBytes]) && !bytes.Equal(g, flushed[s:s+SectorBytes]) {
						rt.Fatalf("sector at %d is neither the last write nor the last flush", s)
					}
				}
				copy(seen, got)
				copy(flushed, got)
			},
			"": func(rt *rapid.T) {
				if got := r.read(0, testBlocks); !bytes.Equal(got, seen) {
					rt.Fatal("a read differs from what was written")
				}
			},
		})
	})
}

// TestTornCut shows that a cut between write and flush really tears: over many
// seeds some sectors stay, some go, and what was flushed is never touched.
func TestTornCut(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir, testBlocks)
	defer func() { r.stop() }()
	torn := 0
	for seed := range uint64(40) {
		r.must(r.disk.WritevAt([][]byte{fill(1, testBlocks)}, 0))
		r.must(r.disk.Datasync())
		r.must(r.disk.WritevAt([][]byte{fill(2, 16)}, 0))
		r.must(r.disk.Close())
		loss, err := r.handle.PowerLoss(seed)
		r.must(err)
		if loss.Sectors != 16*BlockBytes/SectorBytes || loss.Kept > loss.Sectors {
			t.Fatalf("loss %+v", loss)
		}
		r.boot(dir)
		got := r.read(0, testBlocks)
		if n := bytes.Count(got[:16*BlockBytes], fill(2, 1)[:SectorBytes]); n != loss.Kept {
			t.Fatalf("seed %d: %d sectors kept, report says %d", seed, n, loss.Kept)
		}
		if !bytes.Equal(got[16*BlockBytes:], fill(1, testBlocks-16)) {
			t.Fatalf("seed %d: flushed data changed", seed)
		}
		for b := range 16 {
			if blk := got[b*BlockBytes : (b+1)*BlockBytes]; bytes.Contains(blk, []byte{1}) && bytes.Contains(blk, []byte{2}) {
				torn++
			}
		}
	}
	if torn == 0 {
		t.Fatal("no block was torn inside by 40 cuts")
	}
}

func TestOverlayIsBounded(t *testing.T) {
	r := newRig(t, t.TempDir(), slotCount+64)
	defer func() { r.stop() }()
	p := fill(7, 64)
	for b := int64(0); b < slotCount+64; b += 64 {
		r.must(r.disk.WritevAt([][]byte{p}, b*BlockBytes))
	}
	if s := r.control.State(); s.Evictions != 1 || s.DirtyBytes > OverlayBytes {
		t.Fatalf("state %+v: want one eviction", s)
	}
	if got := r.read(slotCount-1, 4); !bytes.Equal(got, fill(7, 4)) {
		t.Fatal("data across the eviction differs")
	}
	r.must(r.disk.Datasync())
	_, o := Files(r.run, r.path)
	var st unix.Stat_t
	r.must(unix.Stat(o, &st))
	if used := st.Blocks * 512; used > keepBytes+indexBytes+1<<20 {
		t.Fatalf("overlay keeps %d bytes after a flush", used)
	}
}

func TestPullInsert(t *testing.T) {
	r := newRig(t, t.TempDir(), testBlocks)
	defer func() { r.stop() }()
	r.must(r.disk.WritevAt([][]byte{fill(1, 4)}, 0))
	r.must(r.disk.Datasync())
	r.must(r.disk.WritevAt([][]byte{fill(2, 4)}, 0))
	r.control.Pull(0) // this seed keeps nothing or a part; both are allowed
	if _, err := r.disk.ReadAt(fill(0, 1), 0); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("read of a pulled disk: %v", err)
	}
	if err := r.disk.Datasync(); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("flush of a pulled disk: %v", err)
	}
	r.must(r.disk.Close())
	if _, err := Open(r.run, r.path); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("open of a pulled disk: %v", err)
	}
	r.control.Insert()
	var err error
	r.disk, err = Open(r.run, r.path)
	r.must(err)
	if s := r.control.State(); s.DirtyBytes != 0 || s.Pulled {
		t.Fatalf("state after insert: %+v", s)
	}
	r.must(r.disk.WritevAt([][]byte{fill(3, 4)}, 0))
	if !bytes.Equal(r.read(0, 4), fill(3, 4)) {
		t.Fatal("a write after insert is not seen")
	}
}

func TestHangSlowAndExclusive(t *testing.T) {
	r := newRig(t, t.TempDir(), testBlocks)
	defer func() { r.stop() }()
	if _, err := Open(r.run, r.path); !errors.Is(err, errs.Conflict) {
		t.Fatalf("second open: %v", err)
	}
	r.control.Hang(true)
	done := make(chan error, 1)
	go func() { done <- r.disk.Datasync() }()
	select {
	case err := <-done:
		t.Fatalf("a hanging flush returned: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	r.control.Hang(false)
	r.must(<-done)
	r.control.Slow(20 * time.Millisecond)
	begin := time.Now()
	r.must(r.disk.Datasync())
	if d := time.Since(begin); d < 20*time.Millisecond {
		t.Fatalf("a slow flush took %v", d)
	}
	r.control.Slow(0)
	if err := r.disk.WritevAt([][]byte{make([]byte, 512)}, 0); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("unaligned write: %v", err)
	}
	if _, err := r.disk.ReadAt(fill(0, 1), testBlocks*BlockBytes); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("read past the end: %v", err)
	}
}

func TestCorrupt(t *testing.T) {
	r := newRig(t, t.TempDir(), testBlocks)
	defer func() { r.stop() }()
	if _, err := Corrupt(r.path, 0, 0, 1, 1); !errors.Is(err, errs.Invalid) {
		t.Fatalf("corrupt of an empty disk: %v", err)
	}
	r.must(r.disk.WritevAt([][]byte{fill(9, 2)}, 8*BlockBytes))
	r.must(r.disk.Datasync())
	flips, err := Corrupt(r.path, 0, 0, 3, rand.Uint64())
	r.must(err)
	got := r.read(8, 2)
	for _, f := range flips {
		got[f.Offset-8*BlockBytes] ^= 1 << f.Bit
	}
	if len(flips) != 3 || !bytes.Equal(got, fill(9, 2)) {
		t.Fatalf("flips %v do not explain what is read", flips)
	}
}
