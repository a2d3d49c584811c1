package faultdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	controlBytes = 4096
	controlMagic = 0x314c5443_44465352 // "RSFDCTL1" little-endian, as one word
)

// Words of the control page, by index. All are 64 bits, read and written
// atomically by the disk's process and by the lab.
const (
	wordMagic = iota
	wordPulled
	wordHang
	wordLatencyNS
	wordLossWanted // counts the losses of power ordered by the lab
	wordLossDone   // the owner of the overlay sets it to wordLossWanted after a tear
	wordLossSeed
	wordDirtyBlocks
	wordFlushes
	wordEvictions
	wordReads
	wordWrites
)

// Control is the shared page by which the lab steers a disk. Its methods may be
// called from any goroutine and process.
type Control struct {
	mu   sync.Mutex // protects page against use after Close
	page []byte
}

// Prepare makes the control page and an empty overlay for the disk at path, under
// dir. It is called by a lab node's init at each boot, on a fresh tmpfs.
func Prepare(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	control, overlay := Files(dir, path)
	page := make([]byte, controlBytes)
	*(*uint64)(unsafe.Pointer(&page[0])) = controlMagic
	f, err := os.OpenFile(overlay, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("prepare overlay: %w", err)
	}
	if err := errors.Join(f.Truncate(overlayFileBytes), f.Close()); err != nil {
		return fmt.Errorf("prepare overlay: %w", err)
	}
	// The control page last: a disk is a fault disk once it exists.
	tmp := control + ".new"
	if err := os.WriteFile(tmp, page, 0o600); err != nil {
		return fmt.Errorf("prepare control page: %w", err)
	}
	return os.Rename(tmp, control)
}

// IsFaultDisk reports whether the disk at path has a control page under dir.
func IsFaultDisk(dir, path string) bool {
	control, _ := Files(dir, filepath.Clean(path))
	_, err := os.Stat(control)
	return err == nil
}

// OpenControl maps the control page at path.
func OpenControl(path string) (*Control, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() != controlBytes {
		return nil, fmt.Errorf("open control page %s: %d bytes, want %d", path, fi.Size(), controlBytes)
	}
	page, err := unix.Mmap(int(f.Fd()), 0, controlBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map control page %s: %w", path, err)
	}
	c := &Control{page: page}
	if c.load(wordMagic) != controlMagic {
		c.Close()
		return nil, fmt.Errorf("open control page %s: not a control page", path)
	}
	return c, nil
}

// Close unmaps the page.
func (c *Control) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page == nil {
		return nil
	}
	err := unix.Munmap(c.page)
	c.page = nil
	return err
}

func (c *Control) word(i int) *uint64     { return (*uint64)(unsafe.Pointer(&c.page[i*8])) }
func (c *Control) load(i int) uint64      { return atomic.LoadUint64(c.word(i)) }
func (c *Control) store(i int, v uint64)  { atomic.StoreUint64(c.word(i), v) }
func (c *Control) add(i int, v uint64)    { atomic.AddUint64(c.word(i), v) }
func (c *Control) lossPending() bool      { return c.load(wordLossWanted) != c.load(wordLossDone) }
func (c *Control) latency() time.Duration { return time.Duration(c.load(wordLatencyNS)) }
func boolWord(b bool) (v uint64) {
	if b {
		v = 1
	}
	return v
}

// State is what a control page says.
type State struct {
	Pulled     bool          `json:"pulled,omitempty"`
	Hang       bool          `json:"hang,omitempty"`
	Latency    time.Duration `json:"latency_ns,omitempty"`
	DirtyBytes int64         `json:"unflushed_bytes"` // in the overlay: lost by a power cut
	Flushes    uint64        `json:"flushes"`
	Evictions  uint64        `json:"evictions"` // times that the full overlay was moved without a flush
	Reads      uint64        `json:"reads"`
	Writes     uint64        `json:"writes"`
}

// State returns the switches and counters.
func (c *Control) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page == nil {
		return State{}
	}
	return State{
		Pulled: c.load(wordPulled) != 0, Hang: c.load(wordHang) != 0, Latency: c.latency(),
		DirtyBytes: int64(c.load(wordDirtyBlocks)) * BlockBytes,
		Flushes:    c.load(wordFlushes), Evictions: c.load(wordEvictions),
		Reads: c.load(wordReads), Writes: c.load(wordWrites),
	}
}

// Pull takes the disk out: every operation fails with ENODEV from now on. The
// drive loses power, so what it had not flushed is torn by seed: by the process
// that has the disk open, at its next operation, or by the next one to open it.
func (c *Control) Pull(seed uint64) {
	c.set(func() {
		c.store(wordLossSeed, seed)
		c.store(wordPulled, 1)
		c.add(wordLossWanted, 1)
	})
}

// Insert puts the disk back; operations work again.
func (c *Control) Insert() { c.set(func() { c.store(wordPulled, 0) }) }

// Slow adds d to every operation; 0 ends it.
func (c *Control) Slow(d time.Duration) {
	c.set(func() { c.store(wordLatencyNS, uint64(max(d, 0))) })
}

// Hang makes operations wait until it is called with false, the disk is pulled
// or closed.
func (c *Control) Hang(on bool) { c.set(func() { c.store(wordHang, boolWord(on)) }) }

func (c *Control) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.page != nil {
		f()
	}
}
