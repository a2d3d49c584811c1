package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Open opens the block device or regular file at path for direct I/O and holds
// it exclusively: a device by O_EXCL, which the kernel keeps for the device
// whatever path leads to it, a file by an open-file-description lock of the
// whole inode. Both last until the last reference to this open file is gone,
// that of a system call that hangs in the kernel included; so whoever opens it
// next knows that no write of this process can still land.
//
// Conflict: another process holds it, or it is mounted. A symbolic link is
// followed. A file on a file system without direct I/O (an old tmpfs) is
// opened without it: slower, not less safe.
func Open(path string) (File, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, wrapNotExist(path, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return nil, wrapNotExist(path, err)
	}
	switch mode := st.Mode(); {
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return openDevice(real)
	case mode.IsRegular():
		return openFile(real)
	}
	return nil, errs.New(errs.Invalid, "open disk %s: neither a block device nor a regular file", path)
}

func wrapNotExist(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "open disk %s: %w", path, err)
	}
	return fmt.Errorf("open disk %s: %w", path, err)
}

func openDevice(path string) (File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, errs.New(errs.Conflict, "open disk %s: in use: mounted, part of a volume group or array, or held by another process", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	var size uint64
	if err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open disk %s: size: %w", path, err)
	}
	return newDirect(fd, path, int64(size)), nil
}

func openFile(path string) (File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, errs.New(errs.Conflict, "open disk %s: another process holds it", path)
		}
		return nil, fmt.Errorf("open disk %s: lock: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	return newDirect(fd, path, st.Size), nil
}

func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// direct is a disk through its file descriptor. The descriptor is closed when
// Close was called and the last operation has returned: closing never waits
// for a disk that hangs, and no operation meets a reused descriptor.
type direct struct {
	fd     int
	path   string
	size   int64
	refs   atomic.Int64 // operations under way, +1 while open
	closed atomic.Bool
}

func newDirect(fd int, path string, size int64) *direct {
	d := &direct{fd: fd, path: path, size: size / Align * Align}
	d.refs.Store(1)
	return d
}

func (d *direct) acquire() error {
	for {
		n := d.refs.Load()
		if n == 0 || d.closed.Load() {
			return &os.PathError{Op: "use", Path: d.path, Err: os.ErrClosed}
		}
		if d.refs.CompareAndSwap(n, n+1) {
			return nil
		}
	}
}

func (d *direct) release() error {
	if d.refs.Add(-1) == 0 {
		return unix.Close(d.fd)
	}
	return nil
}

func (d *direct) fail(op string, err error) error {
	return &os.PathError{Op: op, Path: d.path, Err: err}
}

// Size implements File.
func (d *direct) Size() int64 { return d.size }

// ReadAt implements File.
func (d *direct) ReadAt(p []byte, off int64) (int, error) {
	if err := d.acquire(); err != nil {
		return 0, err
	}
	defer d.release()
	done := 0
	for done < len(p) {
		n, err := unix.Pread(d.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, d.fail("read", err)
		case n == 0:
			return done, d.fail("read", io.ErrUnexpectedEOF)
		}
		done += max(n, 0)
	}
	return done, nil
}

// iovMax is the kernel's limit of buffers a call.
const iovMax = 1024

// WritevAt implements File.
func (d *direct) WritevAt(bufs [][]byte, off int64) error {
	if err := d.acquire(); err != nil {
		return err
	}
	defer d.release()
	for len(bufs) > 0 {
		part := bufs[:min(len(bufs), iovMax)]
		want := 0
		for _, b := range part {
			want += len(b)
		}
		n, err := unix.Pwritev(d.fd, part, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return d.fail("write", err)
		}
		if n < want {
			if err := d.writeRest(part, n, off+int64(n)); err != nil {
				return err
			}
		}
		off += int64(want)
		bufs = bufs[len(part):]
	}
	return nil
}

// writeRest writes what a short pwritev left of bufs after skip bytes. The
// kernel ends a direct write early at a memory limit, and says why at the next.
func (d *direct) writeRest(bufs [][]byte, skip int, off int64) error {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b, skip = b[skip:], 0
		for len(b) > 0 {
			n, err := unix.Pwrite(d.fd, b, off)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return d.fail("write", err)
			}
			if n == 0 {
				return d.fail("write", io.ErrShortWrite)
			}
			b, off = b[n:], off+int64(n)
		}
	}
	return nil
}

// Datasync implements File.
func (d *direct) Datasync() error {
	if err := d.acquire(); err != nil {
		return err
	}
	defer d.release()
	for {
		err := unix.Fdatasync(d.fd)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return d.fail("fdatasync", err)
		}
	}
}

// Close implements File.
func (d *direct) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.release()
}

// Create makes a regular file of size bytes that stands for a disk, filled with
// real zeros: an unwritten extent would make each first write a transaction of
// the file system's journal. An existing file is a Conflict.
func Create(path string, size int64) (err error) {
	if size <= 0 || size%Align != 0 {
		return errs.New(errs.Invalid, "create disk file %s: size %d is not a positive multiple of %d", path, size, Align)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return errs.New(errs.Conflict, "create disk file %s: exists already", path)
	}
	if err != nil {
		return fmt.Errorf("create disk file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return errs.New(errs.Exhausted, "create disk file %s of %d bytes: %w", path, size, err)
	}
	zeros := make([]byte, 4<<20)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return fmt.Errorf("create disk file: %w", err)
		}
	}
	return f.Sync()
}
