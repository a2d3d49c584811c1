// Package direct is how a guard reads a disk of its node past the storage process:
// the file of cells by which it sees that a place has changed hands, and the
// socket over which it gets descriptors and maps. docs/design/direct-reads.md.
package direct

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/block/place"
)

// A file of cells is a page with magic and session, then the versions of slots:
// slot i has cell i mod cellCount, so two slots may share one, which costs a map.
const (
	cellCount  = 16384
	cellsPage  = 4096
	cellsBytes = cellsPage + 8*cellCount
	cellsMagic = 0x314c4543_52534f52 // "ROSRCEL1", little-endian
)

// Cells is a mapped file of cells. Its methods may be called from any goroutine;
// none after Close.
type Cells struct {
	file  *os.File
	words []uint64
}

var _ place.Cells = (*Cells)(nil)

// OwnCells maps the file at path for the owner of a disk, and makes it if it is
// not there: it lies where only a boot empties it, so that readers who still have
// it mapped see what the next owner does.
func OwnCells(path string) (*Cells, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open cells: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = newCells(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open cells: %w", err)
	}
	c, err := mapCells(f, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return c, nil
}

// newCells makes the file whole before it has its name.
func newCells(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	page := make([]uint64, cellsPage/8)
	// No session is used twice, also if the file was lost.
	page[0], page[1] = cellsMagic, uint64(time.Now().UnixNano())
	_, werr := f.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&page[0])), cellsPage), 0)
	if err := errors.Join(werr, f.Truncate(cellsBytes), os.Rename(path+".new", path)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadCells maps the cells that f is open on, read-only. f is the result's.
func ReadCells(f *os.File) (*Cells, error) { return mapCells(f, unix.PROT_READ) }

func mapCells(f *os.File, prot int) (*Cells, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != cellsBytes {
		return nil, errs.New(errs.Corrupt, "open cells %s: %d bytes, want %d", f.Name(), st.Size(), cellsBytes)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, cellsBytes, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map cells %s: %w", f.Name(), err)
	}
	c := &Cells{file: f, words: unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), cellsBytes/8)}
	if c.words[0] != cellsMagic {
		c.unmap()
		return nil, errs.New(errs.Corrupt, "open cells %s: other bytes", f.Name())
	}
	return c, nil
}

// File is what a reader is given; it is c's.
func (c *Cells) File() *os.File { return c.file }

// Session implements place.Cells.
func (c *Cells) Session() uint64 { return atomic.LoadUint64(&c.words[1]) }

// Begin makes everything void that was mapped before. The owner calls it before he
// opens the disk, and when he gives it up.
func (c *Cells) Begin() { atomic.AddUint64(&c.words[1], 1) }

func (c *Cells) cell(slot uint64) *uint64 { return &c.words[cellsPage/8+slot%cellCount] }

// Version implements place.Cells.
func (c *Cells) Version(slot uint64) uint64 { return atomic.LoadUint64(c.cell(slot)) }

// Freed implements disk.Cells; for the owner.
func (c *Cells) Freed(slot uint64) { atomic.AddUint64(c.cell(slot), 1) }

func (c *Cells) unmap() error {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&c.words[0])), cellsBytes)
	c.words = nil
	return unix.Munmap(b)
}

// Close unmaps the cells and closes their file.
func (c *Cells) Close() error { return errors.Join(c.unmap(), c.file.Close()) }
