package blockdev

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Solo reads one range of a disk at a time and waits for it, as a blocking call
// does, but not for ever: a caller who has other duties goes on if the disk hangs.
// It is for one goroutine at a time.
type Solo struct {
	r   *Ring
	arg enterArg // the kernel reads both: they must not move, as a stack does
	ts  unix.Timespec
}

const (
	ringEnterGetEvents = 1 << 0
	ringEnterExtArg    = 1 << 3
	ringFeatExtArg     = 1 << 8
)

// enterArg is struct io_uring_getevents_arg.
type enterArg struct {
	sigmask uint64
	size    uint32
	_       uint32
	ts      uint64
}

// NewSolo returns a Solo for a disk that Open or Shared opened. Unavailable: the
// kernel has not what it needs, or f is not a plain disk.
func NewSolo(f File) (*Solo, error) {
	r, p, err := setupRing(f, nil)
	if err != nil {
		return nil, err
	}
	if p.features&ringFeatExtArg == 0 {
		r.unmap()
		unix.Close(r.fd)
		return nil, errs.New(errs.Unavailable, "open ring for %s: the kernel's io_uring cannot wait for a while", r.disk.path)
	}
	if err := r.disk.acquire(); err != nil {
		r.unmap()
		unix.Close(r.fd)
		return nil, err
	}
	return &Solo{r: r}, nil
}

// Read begins to read p[0] from byte off and waits until it has ended, but no
// longer than patience. ended false: the caller must call Wait, here or in another
// goroutine, before anything else, and p is the kernel's until that returns.
func (s *Solo) Read(p [][]byte, off int64, patience time.Duration) (ended bool, err error) {
	if !s.r.Add(RingOp{Offset: off, Bufs: p}) {
		return true, errs.New(errs.Unavailable, "read %s: not taken", s.r.disk.path)
	}
	atomic.StoreUint32(s.r.sqTail, s.r.tail)
	s.ts = unix.NsecToTimespec(int64(patience))
	return s.wait(1, true)
}

// Wait waits for the end of the read that Read did not wait for.
func (s *Solo) Wait() error {
	_, err := s.wait(s.r.tail-s.r.begun, false)
	return err
}

func (s *Solo) wait(submit uint32, limited bool) (ended bool, err error) {
	for {
		var e unix.Errno
		var n uintptr
		if limited {
			s.arg = enterArg{size: 8, ts: uint64(uintptr(unsafe.Pointer(&s.ts)))}
			n, _, e = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(s.r.fd), uintptr(submit), 1, ringEnterGetEvents|ringEnterExtArg, uintptr(unsafe.Pointer(&s.arg)), unsafe.Sizeof(s.arg))
		} else {
			n, _, e = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(s.r.fd), uintptr(submit), 1, ringEnterGetEvents, 0, 0)
		}
		if e == 0 {
			s.r.begun += uint32(n)
			submit -= uint32(n)
		} else if submit > 0 && e == unix.ETIME {
			s.r.begun, submit = s.r.begun+submit, 0 // it was taken: the wait alone timed out
		}
		if ended, err := s.take(); ended {
			return true, err
		}
		if e == unix.ETIME && limited {
			return false, nil
		}
	}
}

// take takes the end of the read, if it has ended.
func (s *Solo) take() (ended bool, err error) {
	r := s.r
	head, tail := *r.cqHead, atomic.LoadUint32(r.cqTail)
	if head == tail {
		return false, nil
	}
	e := &r.cqes[head&r.cqMask]
	slot := &r.slots[e.user]
	want := slot.bytes
	*slot = ringSlot{}
	r.free = append(r.free, uint32(e.user))
	res := e.res
	atomic.StoreUint32(r.cqHead, head+1)
	switch {
	case int(res) == want:
		return true, nil
	case res < 0:
		return true, r.disk.fail("read", unix.Errno(-res))
	}
	return true, r.disk.fail("read", unix.EIO) // a part only
}

// Close gives up the ring; no read may be under way.
func (s *Solo) Close() {
	s.r.unmap()
	unix.Close(s.r.fd)
	s.r.disk.release()
}
