package faultdisk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Handle keeps the overlay of a disk reachable for the lab after the node that
// made it, and its tmpfs, are gone.
type Handle struct {
	backingPath string
	overlay     *os.File
	control     *Control
}

// Hold opens the overlay and the control page of a running node's disk.
// controlPath and overlayPath are as the lab sees them (under
// /proc/<init>/root), backingPath likewise.
func Hold(controlPath, overlayPath, backingPath string) (*Handle, error) {
	control, err := OpenControl(controlPath)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(overlayPath, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return &Handle{backingPath: backingPath, overlay: f, control: control}, nil
}

// Control returns the disk's switches.
func (h *Handle) Control() *Control { return h.control }

// PowerLoss tears the disk by seed and ends the handle. Every process of the
// node must be gone: it is the only user of the overlay.
func (h *Handle) PowerLoss(seed uint64) (loss Loss, err error) {
	f := h.overlay
	h.overlay = nil
	if f == nil {
		return Loss{}, os.ErrClosed
	}
	defer func() { err = errors.Join(err, h.control.Close()) }()
	if h.control.lossPending() { // pulled before: that loss came first
		seed = h.control.load(wordLossSeed)
	}
	o, err := mapOverlay(f)
	if err != nil {
		return Loss{}, errors.Join(err, f.Close())
	}
	defer func() { err = errors.Join(err, o.close()) }()
	backing, err := os.OpenFile(h.backingPath, os.O_RDWR, 0)
	if err != nil {
		return Loss{}, err
	}
	defer func() { err = errors.Join(err, backing.Close()) }()
	return o.tear(backing, seed)
}

// Close ends the handle without a loss.
func (h *Handle) Close() error {
	if h.overlay == nil {
		return nil
	}
	err := errors.Join(h.overlay.Close(), h.control.Close())
	h.overlay = nil
	return err
}

// Flip is one bit that Corrupt turned over.
type Flip struct {
	Offset int64 `json:"offset"`
	Bit    uint8 `json:"bit"`
}

// Corrupt flips count random bits (from seed) of the file at path, among the
// bytes [from, to) that are allocated; to = 0 means the end. It is what a disk
// does at rest: nobody is told. A block that is in the overlay hides its flip
// until it is dropped. It is Invalid if nothing is allocated there.
func Corrupt(path string, from, to int64, count int, seed uint64) ([]Flip, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	spans, total, err := allocated(f, from, to)
	if err != nil {
		return nil, fmt.Errorf("corrupt %s: %w", path, err)
	}
	if total == 0 {
		return nil, errs.New(errs.Invalid, "corrupt %s: nothing is written between %d and %d", path, from, to)
	}
	rng := rand.New(rand.NewPCG(seed, 0x666c6970))
	flips := make([]Flip, 0, count)
	for range count {
		at := rng.Int64N(total)
		for _, s := range spans {
			if at < s.to-s.from {
				at += s.from
				break
			}
			at -= s.to - s.from
		}
		flip := Flip{Offset: at, Bit: uint8(rng.IntN(8))}
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			return flips, err
		}
		b[0] ^= 1 << flip.Bit
		if _, err := f.WriteAt(b[:], at); err != nil {
			return flips, err
		}
		flips = append(flips, flip)
	}
	return flips, nil
}

type span struct{ from, to int64 }

// allocated returns the parts of [from, to) that are not holes.
func allocated(f *os.File, from, to int64) (spans []span, total int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if to <= 0 || to > fi.Size() {
		to = fi.Size()
	}
	for at := max(from, 0); at < to; {
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		if start >= to {
			break
		}
		end = min(end, to)
		spans = append(spans, span{start, end})
		total += end - start
		at = end
	}
	return spans, total, nil
}
