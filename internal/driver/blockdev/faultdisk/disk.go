package faultdisk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Disk is an open fault disk; it has the methods of blockdev.File. Offsets,
// lengths and buffer lengths are multiples of BlockBytes.
type Disk struct {
	path    string
	backing *os.File
	control *Control
	size    int64
	closed  atomic.Bool

	// Lock order: life, mu. An operation holds life for reading from enter to
	// leave, so that Close unmaps nothing under it.
	life sync.RWMutex
	mu   sync.RWMutex // protects over; a reader of the backing file holds it, too
	over *overlay
}

// Open opens the disk at path, whose control page and overlay are under dir
// (Dir in a lab node). What a killed predecessor left in the overlay is there
// again. It is a Conflict if another process has the disk open, and ENODEV if
// the disk is pulled.
func Open(dir, path string) (*Disk, error) {
	controlPath, overlayPath := Files(dir, path)
	control, err := OpenControl(controlPath)
	if err != nil {
		return nil, err
	}
	d := &Disk{path: path, control: control}
	if err := d.open(overlayPath); err != nil {
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

func (d *Disk) open(overlayPath string) error {
	if d.control.load(wordPulled) != 0 {
		return d.fail("open", unix.ENODEV)
	}
	var err error
	if d.backing, err = os.OpenFile(d.path, os.O_RDWR, 0); err != nil {
		return err
	}
	if err := unix.Flock(int(d.backing.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errs.New(errs.Conflict, "open disk %s: another process has it open: %w", d.path, err)
	}
	fi, err := d.backing.Stat()
	if err != nil {
		return err
	}
	d.size = fi.Size() / BlockBytes * BlockBytes
	if d.over, err = openOverlay(overlayPath); err != nil {
		return err
	}
	return d.settle()
}

func (d *Disk) release() error {
	var err error
	if d.over != nil {
		err = d.over.close()
		d.over = nil
	}
	if d.backing != nil {
		err = errors.Join(err, d.backing.Close()) // and its lock
	}
	return errors.Join(err, d.control.Close())
}

// Close releases the disk. What was not flushed stays in the overlay, as in a
// drive's cache. Hanging operations end with os.ErrClosed.
func (d *Disk) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.life.Lock()
	defer d.life.Unlock()
	return d.release()
}

// Size returns the length in bytes, rounded down to whole blocks.
func (d *Disk) Size() int64 { return d.size }

func (d *Disk) fail(op string, err error) error {
	return &os.PathError{Op: op, Path: d.path, Err: err}
}

// hangPoll is how often a hanging operation looks at its switches.
const hangPoll = 5 * time.Millisecond

// enter applies the switches before an operation. leave must follow if it
// returns nil.
func (d *Disk) enter(op string, length int, off int64) error {
	if off < 0 || off%BlockBytes != 0 || length%BlockBytes != 0 || off+int64(length) > d.size {
		return fmt.Errorf("%s at %d+%d of %d bytes: %w", op, off, length, d.size, d.fail(op, unix.EINVAL))
	}
	d.life.RLock()
	if err := d.obey(op); err != nil {
		d.life.RUnlock()
		return err
	}
	return nil
}

func (d *Disk) leave() { d.life.RUnlock() }

func (d *Disk) obey(op string) error {
	if d.closed.Load() {
		return d.fail(op, os.ErrClosed)
	}
	if lat := d.control.latency(); lat > 0 {
		time.Sleep(lat)
	}
	for d.control.load(wordHang) != 0 && d.control.load(wordPulled) == 0 && !d.closed.Load() {
		time.Sleep(hangPoll)
	}
	if d.closed.Load() {
		return d.fail(op, os.ErrClosed)
	}
	if d.control.lossPending() {
		d.mu.Lock()
		err := d.settle()
		d.mu.Unlock()
		if err != nil {
			return d.fail(op, err)
		}
	}
	if d.control.load(wordPulled) != 0 {
		return d.fail(op, unix.ENODEV)
	}
	return nil
}

// settle tears the overlay if the lab ordered it since the last time. mu is held
// for writing, or the disk is not shared yet.
func (d *Disk) settle() error {
	wanted := d.control.load(wordLossWanted)
	if wanted == d.control.load(wordLossDone) {
		return nil
	}
	if _, err := d.over.tear(d.backing, d.control.load(wordLossSeed)); err != nil {
		return err
	}
	d.control.store(wordLossDone, wanted)
	d.control.store(wordDirtyBlocks, 0)
	return nil
}

// ReadAt fills p from byte off.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter("read", len(p), off); err != nil {
		return 0, err
	}
	defer d.leave()
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, err := d.backing.ReadAt(p, off)
	if err != nil {
		return n, err
	}
	d.over.patch(off/BlockBytes, p)
	d.control.add(wordReads, 1)
	return n, nil
}

// WritevAt writes the buffers one after another from byte off, into the overlay.
func (d *Disk) WritevAt(bufs [][]byte, off int64) error {
	total := 0
	for _, b := range bufs {
		if len(b)%BlockBytes != 0 {
			return d.fail("write", unix.EINVAL)
		}
		total += len(b)
	}
	if err := d.enter("write", total, off); err != nil {
		return err
	}
	defer d.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	// Again under the lock: a write that began before a pull must not land in the
	// overlay after that pull tore it.
	if d.control.load(wordPulled) != 0 || d.control.lossPending() {
		return d.fail("write", unix.ENODEV)
	}
	block := off / BlockBytes
	for _, b := range bufs {
		for ; len(b) > 0; b = b[BlockBytes:] {
			if d.over.full() {
				if err := d.over.flush(d.backing); err != nil {
					return d.fail("write", err)
				}
				d.control.add(wordEvictions, 1)
			}
			d.over.put(block, b[:BlockBytes])
			block++
		}
	}
	d.control.add(wordWrites, 1)
	d.control.store(wordDirtyBlocks, uint64(len(d.over.slot)))
	return nil
}

// Datasync moves the overlay to the backing file.
func (d *Disk) Datasync() error {
	if err := d.enter("datasync", 0, 0); err != nil {
		return err
	}
	defer d.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.control.load(wordPulled) != 0 || d.control.lossPending() {
		return d.fail("datasync", unix.ENODEV)
	}
	if err := d.over.flush(d.backing); err != nil {
		return d.fail("datasync", err)
	}
	d.control.add(wordFlushes, 1)
	d.control.store(wordDirtyBlocks, 0)
	return nil
}
