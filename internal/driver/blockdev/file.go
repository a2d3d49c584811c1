// Package blockdev opens block devices and disk files for direct I/O, holds
// them exclusively, and tells what is on a device. It formats nothing and knows
// nothing of what the engine keeps on a disk.
package blockdev

// File is an open disk: a whole block device, or a preallocated file that
// stands for one. The engine reaches its disks through it alone, so that a lab
// can put a fault-injecting layer below (see Opener).
//
// Offsets, lengths and buffer addresses are multiples of Align. The methods may
// be called at the same time from several goroutines; each blocks for as long
// as the kernel does, which for a sick disk can be for ever.
type File interface {
	// ReadAt fills p from byte off. A short read is an error.
	ReadAt(p []byte, off int64) (int, error)
	// WritevAt writes the buffers one after another from byte off: one pwritev
	// if the kernel takes it whole. When it returns nil the bytes are in the
	// device, perhaps in its volatile cache. A short write is an error. It does
	// not change the outer slice.
	WritevAt(bufs [][]byte, off int64) error
	// Datasync makes every write that had returned before the call durable. An
	// error leaves unknown which writes are: the disk is dead to the engine.
	Datasync() error
	// Size returns the length in bytes, fixed at opening.
	Size() int64
	// Close releases the disk and its exclusive lock.
	Close() error
}

// Align is the alignment in bytes of offsets, lengths and buffers. It covers
// every logical sector size up to 4 KiB.
const Align = 4096

// Opener opens the disk at path exclusively.
type Opener func(path string) (File, error)
