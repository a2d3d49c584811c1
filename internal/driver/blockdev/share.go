package blockdev

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Share opens a disk that Open opened once more, for reading only: a descriptor
// that may be given to another process. It holds no lock.
// Unavailable: f is not a plain disk, and what it does would be passed by.
func Share(f File) (*os.File, error) {
	d, ok := f.(*direct)
	if !ok {
		return nil, errs.New(errs.Unavailable, "share disk: not a plain disk")
	}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	defer d.release()
	flags, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("share disk %s: %w", d.path, err)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.fd), unix.O_RDONLY|flags&unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share disk %s: %w", d.path, err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Shared makes a File of a descriptor that Share opened, perhaps in another
// process. It can only be read. f is closed in any case.
func Shared(f *os.File) (File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open shared disk: %w", err)
	}
	var st unix.Stat_t
	size := uint64(0)
	if err = unix.Fstat(fd, &st); err == nil {
		if size = uint64(st.Size); st.Mode&unix.S_IFMT == unix.S_IFBLK {
			err = ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size))
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open shared disk: %w", err)
	}
	return newDirect(fd, f.Name(), int64(size)), nil
}
