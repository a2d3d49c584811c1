package faultdisk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The overlay file: an index of one word a slot (the block number + 1, or 0 for
// a free slot), then the slots' data. A slot's data is copied before its word
// is stored, so a process killed between leaves a free slot; one killed while
// it overwrites a slot leaves old and new bytes mixed inside one write that was
// not acknowledged.
const (
	slotCount        = OverlayBytes / BlockBytes
	indexBytes       = slotCount * 8
	overlayFileBytes = indexBytes + OverlayBytes
	// keepBytes of the data area stay allocated after a flush; what was used
	// beyond is given back to the tmpfs.
	keepBytes = 4 << 20
)

// overlay is not safe for concurrent use, but for reads against reads.
type overlay struct {
	file *os.File
	mem  []byte          // the whole file, shared
	slot map[int64]int32 // block -> slot
	used int32           // slots [0, used) may be taken
	wide bool            // more than keepBytes were used since the last release
}

func openOverlay(path string) (*overlay, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	o, err := mapOverlay(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open overlay %s: %w", path, err)
	}
	return o, nil
}

// mapOverlay takes over f unless it fails.
func mapOverlay(f *os.File) (*overlay, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() != overlayFileBytes {
		return nil, fmt.Errorf("%d bytes, want %d", fi.Size(), overlayFileBytes)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, overlayFileBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	o := &overlay{file: f, mem: mem, slot: map[int64]int32{}}
	for i := range int32(slotCount) {
		if w := atomic.LoadUint64(o.word(i)); w != 0 {
			o.slot[int64(w-1)] = i
			o.used = i + 1
		}
	}
	o.wide = int(o.used)*BlockBytes > keepBytes
	return o, nil
}

func (o *overlay) close() error {
	err := unix.Munmap(o.mem)
	o.mem = nil
	if cerr := o.file.Close(); err == nil {
		err = cerr
	}
	return err
}

func (o *overlay) word(i int32) *uint64 { return (*uint64)(unsafe.Pointer(&o.mem[int(i)*8])) }

func (o *overlay) data(i int32) []byte {
	off := indexBytes + int(i)*BlockBytes
	return o.mem[off : off+BlockBytes : off+BlockBytes]
}

// full reports whether no slot is free.
func (o *overlay) full() bool { return o.used == slotCount }

// put stores one block; the caller saw to it that a slot is free.
func (o *overlay) put(block int64, p []byte) {
	if i, ok := o.slot[block]; ok {
		copy(o.data(i), p)
		return
	}
	i := o.used
	copy(o.data(i), p)
	atomic.StoreUint64(o.word(i), uint64(block)+1)
	o.slot[block] = i
	o.used++
	o.wide = o.wide || int(o.used)*BlockBytes > keepBytes
}

// patch overwrites p, read from the backing file at block first, with what the
// overlay holds.
func (o *overlay) patch(first int64, p []byte) {
	if len(o.slot) == 0 {
		return
	}
	for b := first; len(p) > 0; b, p = b+1, p[BlockBytes:] {
		if i, ok := o.slot[b]; ok {
			copy(p, o.data(i))
		}
	}
}

// flush moves all blocks to backing, in the order of their offsets, joined.
func (o *overlay) flush(backing *os.File) error {
	if len(o.slot) == 0 {
		return nil
	}
	blocks := make([]int64, 0, len(o.slot))
	for b := range o.slot {
		blocks = append(blocks, b)
	}
	sort.Slice(blocks, func(i, j int) bool { return blocks[i] < blocks[j] })
	const iovMax = 512
	vec := make([][]byte, 0, iovMax)
	for i := 0; i < len(blocks); {
		vec = vec[:0]
		first := blocks[i]
		for i < len(blocks) && blocks[i] == first+int64(len(vec)) && len(vec) < iovMax {
			vec = append(vec, o.data(o.slot[blocks[i]]))
			i++
		}
		if err := pwritevAll(backing, vec, first*BlockBytes); err != nil {
			return err
		}
	}
	o.clear()
	return nil
}

func pwritevAll(f *os.File, vec [][]byte, off int64) error {
	want := len(vec) * BlockBytes
	n, err := unix.Pwritev(int(f.Fd()), vec, off)
	if err != nil {
		return os.NewSyscallError("pwritev", err)
	}
	for n < want { // rare: the rest block by block
		k := n / BlockBytes
		m, err := f.WriteAt(vec[k][n%BlockBytes:], off+int64(n))
		if err != nil {
			return err
		}
		n += m
	}
	return nil
}

// clear forgets every block. A process killed in the middle leaves entries that
// equal the backing file (after a flush).
func (o *overlay) clear() {
	for i := range o.used {
		atomic.StoreUint64(o.word(i), 0)
	}
	clear(o.slot)
	o.used = 0
	if o.wide {
		// Failing to give memory back is not worth failing a flush.
		_ = unix.Fallocate(int(o.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			indexBytes+keepBytes, OverlayBytes-keepBytes)
		o.wide = false
	}
}

// Loss tells what a loss of power did to a disk.
type Loss struct {
	Seed    uint64  `json:"seed"`
	Chance  float64 `json:"chance"`  // that a sector reached the medium
	Sectors int     `json:"sectors"` // that were in the overlay
	Kept    int     `json:"kept"`    // of them, moved to the backing file
}

// tear moves a random subset of the sectors to backing and forgets the rest. The
// chance itself is drawn: one cut in four keeps nothing, one in eight all, since
// the extremes find other faults than the middle.
func (o *overlay) tear(backing *os.File, seed uint64) (Loss, error) {
	rng := rand.New(rand.NewPCG(seed, 0x6c6f7373)) // any constant
	loss := Loss{Seed: seed}
	switch pick := rng.IntN(8); {
	case pick < 2:
		loss.Chance = 0
	case pick == 2:
		loss.Chance = 1
	default:
		loss.Chance = rng.Float64()
	}
	for i := range o.used {
		w := atomic.LoadUint64(o.word(i))
		if w == 0 {
			continue
		}
		data, off := o.data(i), int64(w-1)*BlockBytes
		for s := 0; s < BlockBytes; s += SectorBytes {
			loss.Sectors++
			if rng.Float64() >= loss.Chance {
				continue
			}
			if _, err := backing.WriteAt(data[s:s+SectorBytes], off+int64(s)); err != nil {
				return loss, err
			}
			loss.Kept++
		}
	}
	o.clear()
	return loss, nil
}
