package blockdev

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"roseau/internal/base/errs"
	"roseau/internal/driver/blockdev/faultdisk"
)

// openRing returns a disk with a ring, and the way its results come.
func openRing(t *testing.T, size int64) (File, *Ring, chan RingResult) {
	t.Helper()
	f, err := Open(newFile(t, size))
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan RingResult, ringSlots)
	r, err := NewRing(f, func(list []RingResult) {
		for _, x := range list {
			results <- x
		}
	})
	if errors.Is(err, errs.Unavailable) {
		f.Close()
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		<-r.Ended()
		f.Close()
	})
	return f, r, results
}

// As many operations as there are slots, twice, in one submit each; what was
// written is read by the blocking methods, and the other way round.
func TestRingReadsAndWrites(t *testing.T) {
	f, r, results := openRing(t, 4*mib)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := alignedBytes(ringSlots * 8192)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	other := alignedBytes(4096)
	for round, write := range []bool{true, false} {
		got := alignedBytes(len(want))
		if write {
			copy(got, want)
		}
		for i := range ringSlots {
			b := got[i*8192:][:8192:8192]
			bufs := [][]byte{b[:4096], b[4096:]} // neighbours
			if !r.Add(RingOp{Token: uint64(i), Write: write, Offset: int64(i) * 8192, Bufs: bufs}) {
				t.Fatalf("round %d: no room for operation %d", round, i)
			}
		}
		if r.Add(RingOp{Bufs: [][]byte{other}}) {
			t.Fatal("one more than there are slots was taken")
		}
		r.Submit()
		seen := map[uint64]bool{}
		for range ringSlots {
			x := <-results
			if x.Err != nil || seen[x.Token] || x.Write != write || x.Bytes != 8192 {
				t.Fatalf("%+v", x)
			}
			seen[x.Token] = true
			if x.Again { // allowed, so the caller does it
				if write {
					x.Err = f.WritevAt(x.Bufs, x.Offset)
				} else {
					_, x.Err = f.ReadAt(got[x.Offset:][:8192], x.Offset)
				}
				if x.Err != nil {
					t.Fatal(x.Err)
				}
			}
		}
		if write {
			clear(got)
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: other bytes", round)
		}
	}
}

// What a ring cannot take whole is the caller's.
func TestRingRefuses(t *testing.T) {
	f, r, results := openRing(t, mib)
	var bufs [][]byte
	for range ringIovecs + 1 {
		bufs = append(bufs, alignedBytes(8192)[:4096]) // no neighbours
	}
	if r.Add(RingOp{Write: true, Bufs: bufs}) {
		t.Error("too many buffers were taken")
	}
	if !r.Add(RingOp{Token: 7, Write: true, Bufs: bufs[:ringIovecs]}) {
		t.Error("as many buffers as a slot has were refused")
	}
	if !r.Add(RingOp{Token: 8, Offset: f.Size() - 4096, Bufs: bufs[:2]}) {
		t.Error("a read past the end was refused before it was tried")
	}
	r.Submit()
	for range 2 {
		switch x := <-results; {
		case x.Token == 7 && (x.Err != nil || x.Bytes != 4096*ringIovecs):
			t.Errorf("%+v", x)
		case x.Token == 8 && !x.Again && x.Err == nil:
			t.Error("a short read passed for a whole one")
		}
	}
	r.Close()
	if r.Add(RingOp{Bufs: bufs[:1]}) {
		t.Error("taken after close")
	}
	<-r.Ended()
	if _, err := NewRing(&faultdisk.Disk{}, nil); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a ring past a fault-injecting layer: %v", err)
	}
}

// Close does not drop what is under way, and the disk stays locked until then.
func TestRingCloseWaitsForOperations(t *testing.T) {
	f, r, results := openRing(t, 4*mib)
	b := alignedBytes(mib)
	for i := range 4 {
		if !r.Add(RingOp{Token: uint64(i), Write: true, Offset: int64(i) * mib, Bufs: [][]byte{b}}) {
			t.Fatal("no room")
		}
	}
	r.Close()
	f.Close()
	r.Submit() // what was added before
	<-r.Ended()
	if n := len(results); n != 4 {
		t.Fatalf("%d of 4 operations ended before the ring did", n)
	}
	for range 4 {
		if x := <-results; x.Err != nil {
			t.Error(x.Err)
		}
	}
}

func TestRingAllocatesNothing(t *testing.T) {
	_, r, results := openRing(t, mib)
	bufs := [][]byte{alignedBytes(4096)}
	n := testing.AllocsPerRun(200, func() {
		if !r.Add(RingOp{Write: true, Bufs: bufs}) {
			t.Fatal("no room")
		}
		r.Submit()
		<-results
	})
	if n >= 1 {
		t.Errorf("%v allocations an operation", n)
	}
}

func TestRingLayout(t *testing.T) {
	if a, b, c := unsafe.Sizeof(sqe{}), unsafe.Sizeof(cqe{}), unsafe.Sizeof(ringParams{}); a != 64 || b != 16 || c != 120 {
		t.Errorf("%d, %d and %d bytes, want 64, 16 and 120", a, b, c)
	}
}
