package blockdev

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Ring does many reads and writes of a disk at a time with one system call and
// without a thread for each: an io_uring. Add and Submit are one goroutine's at
// a time.
//
// The kernel may read and write the buffers until the operation has ended, also
// after Close; as with a blocking call, an operation that hangs keeps the disk's
// lock.
type Ring struct {
	disk *direct
	done func([]RingResult)
	fd   int
	file *os.File // fd as the poller sees it

	sqes           []sqe
	sqTail         *uint32
	sqMask         uint32
	sqArray        []uint32
	tail           uint32 // of what Add has put
	begun          uint32 // of what the kernel has taken
	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe
	maps           [][]byte
	iovs           []ringVec // ringIovecs for each slot; not on the heap

	mu     sync.Mutex
	slots  []ringSlot
	free   []uint32
	closed bool
	batch  []RingResult // of the goroutine that reaps
	ended  chan struct{}
}

// RingOp is an operation: Bufs are read into, or written from, one after another
// at byte Offset.
type RingOp struct {
	Token  uint64 // the caller's
	Later  bool   // the caller's
	Write  bool
	Offset int64
	Bufs   [][]byte
}

// RingResult is the end of an operation.
type RingResult struct {
	RingOp
	Bytes int
	Took  time.Duration // since Add
	Err   error
	Again bool // not done, or a part only: to be done by the blocking methods of File
}

// ringSlot is an operation under way; it keeps the buffers alive.
type ringSlot struct {
	op    RingOp
	bytes int
	began time.Time
}

const (
	ringSlots  = 128
	ringIovecs = 32

	ringOpReadv  = 1
	ringOpWritev = 2
	ringOpRead   = 22
	ringOpWrite  = 23

	ringSetupClamp = 1 << 4
	ringFeatSingle = 1 << 0
	ringFeatNoDrop = 1 << 1
	ringOffSQEs    = 0x10000000
)

// sqe and cqe as the kernel has them.
type sqe struct {
	op, flags  uint8
	ioprio     uint16
	fd         int32
	off, addr  uint64
	len        uint32
	rwFlags    uint32
	user       uint64
	bufIndex   uint16
	_          uint16
	spliceFd   int32
	_, padding uint64
}

// ringVec is struct iovec. It is in memory that the collector does not know, where a
// pointer left behind would be followed by a write barrier after its buffer is gone:
// so it is a number, and the slot keeps the buffer.
type ringVec struct{ base, len uintptr }

type cqe struct {
	user  uint64
	res   int32
	flags uint32
}

type ringParams struct {
	sqEntries, cqEntries, flags, sqCPU, sqIdle, features, wqFd uint32
	_                                                          [3]uint32
	sq                                                         struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// NewRing returns a ring for a disk that Open opened. done is called with what
// has ended, on a goroutine of the ring; the slice is valid during the call.
// Unavailable: the kernel refuses io_uring, or f is not a plain disk.
func NewRing(f File, done func([]RingResult)) (*Ring, error) {
	r, _, err := setupRing(f, done)
	if err != nil {
		return nil, err
	}
	if err := r.poll(); err != nil {
		r.unmap()
		unix.Close(r.fd)
		return nil, fmt.Errorf("open ring for %s: %w", r.disk.path, err)
	}
	if err := r.disk.acquire(); err != nil {
		r.unmap()
		r.file.Close()
		return nil, err
	}
	go r.reap()
	return r, nil
}

// setupRing makes a ring that nobody waits on yet.
func setupRing(f File, done func([]RingResult)) (*Ring, *ringParams, error) {
	d, ok := f.(*direct)
	if !ok {
		return nil, nil, errs.New(errs.Unavailable, "open ring: not a plain disk")
	}
	p := &ringParams{flags: ringSetupClamp}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, ringSlots, uintptr(unsafe.Pointer(p)), 0)
	if e != 0 {
		return nil, nil, errs.New(errs.Unavailable, "open ring for %s: %w", d.path, e)
	}
	r := &Ring{disk: d, done: done, fd: int(fd), ended: make(chan struct{})}
	if err := r.init(p); err != nil {
		r.unmap()
		unix.Close(r.fd)
		return nil, nil, fmt.Errorf("open ring for %s: %w", d.path, err)
	}
	return r, p, nil
}

func (r *Ring) init(p *ringParams) error {
	if p.features&ringFeatSingle == 0 || p.features&ringFeatNoDrop == 0 || p.sqEntries < ringSlots || p.cqEntries < ringSlots {
		return errs.New(errs.Unavailable, "the kernel's io_uring is too old")
	}
	unix.CloseOnExec(r.fd)
	rings, err := r.mmap(0, max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{}))))
	if err != nil {
		return err
	}
	sqes, err := r.mmap(ringOffSQEs, p.sqEntries*uint32(unsafe.Sizeof(sqe{})))
	if err != nil {
		return err
	}
	iovs, err := unix.Mmap(-1, 0, ringSlots*ringIovecs*int(unsafe.Sizeof(ringVec{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	r.maps = append(r.maps, iovs)
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[off])) }
	r.sqTail, r.sqMask = at(p.sq.tail), *at(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	r.sqArray = unsafe.Slice(at(p.sq.array), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&rings[p.cq.cqes])), p.cqEntries)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&sqes[0])), p.sqEntries)
	r.iovs = unsafe.Slice((*ringVec)(unsafe.Pointer(&iovs[0])), ringSlots*ringIovecs)
	r.slots = make([]ringSlot, ringSlots)
	for i := range uint32(ringSlots) {
		r.free = append(r.free, ringSlots-1-i)
	}
	return nil
}

// poll lets the poller watch the ring.
func (r *Ring) poll() error {
	if err := unix.SetNonblock(r.fd, true); err != nil {
		return err
	}
	r.file = os.NewFile(uintptr(r.fd), "io_uring")
	return r.file.SetReadDeadline(time.Time{}) // else it cannot be polled
}

func (r *Ring) mmap(off int64, n uint32) ([]byte, error) {
	b, err := unix.Mmap(r.fd, off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err == nil {
		r.maps = append(r.maps, b)
	}
	return b, err
}

func (r *Ring) unmap() {
	for _, m := range r.maps {
		unix.Munmap(m) // ends with the process at the latest
	}
	r.maps = nil
}

// Add puts an operation that Submit will begin. It reports whether there was
// room; if not the caller does it otherwise.
func (r *Ring) Add(op RingOp) bool {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.free) == 0 {
		return false
	}
	slot := r.free[len(r.free)-1]
	iov := r.iovs[slot*ringIovecs:][:0:ringIovecs]
	total := 0
	for _, b := range op.Bufs {
		if len(b) == 0 {
			continue
		}
		total += len(b)
		base := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
		if n := len(iov); n > 0 && iov[n-1].base+iov[n-1].len == base {
			iov[n-1].len += uintptr(len(b)) // neighbours in memory
			continue
		}
		if len(iov) == ringIovecs {
			return false
		}
		iov = append(iov, ringVec{base: base, len: uintptr(len(b))})
	}
	if total == 0 {
		return false
	}
	r.free = r.free[:len(r.free)-1]
	r.slots[slot] = ringSlot{op: op, bytes: total, began: now}
	at := r.tail & r.sqMask
	e := &r.sqes[at]
	*e = sqe{fd: int32(r.disk.fd), off: uint64(op.Offset), user: uint64(slot)}
	switch {
	case len(iov) == 1:
		e.op, e.addr, e.len = ringOpRead, uint64(iov[0].base), uint32(total)
		if op.Write {
			e.op = ringOpWrite
		}
	default:
		e.op, e.addr, e.len = ringOpReadv, uint64(uintptr(unsafe.Pointer(&iov[0]))), uint32(len(iov))
		if op.Write {
			e.op = ringOpWritev
		}
	}
	r.sqArray[at] = at
	r.tail++
	return true
}

// Submit begins what Add has put. It does not wait for the disk. A ring that the
// kernel does not take operations of any more is given up: they end with Again.
func (r *Ring) Submit() {
	for r.begun != r.tail {
		atomic.StoreUint32(r.sqTail, r.tail)
		n, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.begun), 0, 0, 0, 0)
		switch e {
		case 0:
			r.begun += uint32(n)
		case unix.EINTR, unix.EAGAIN, unix.EBUSY:
			runtime.Gosched()
		default:
			r.giveUp()
		}
	}
}

// giveUp ends what is not begun, and lets nothing begin any more.
func (r *Ring) giveUp() {
	var left []RingResult
	r.mu.Lock()
	for ; r.begun != r.tail; r.begun++ {
		slot := uint32(r.sqes[r.begun&r.sqMask].user)
		left = append(left, RingResult{RingOp: r.slots[slot].op, Again: true})
		r.slots[slot] = ringSlot{}
		r.free = append(r.free, slot)
	}
	r.mu.Unlock()
	r.Close()
	r.done(left)
}

// reap tells what has ended, until the ring is closed and empty.
func (r *Ring) reap() {
	defer close(r.ended)
	rc, err := r.file.SyscallConn()
	for err == nil {
		// The poller reports each change of the ring; it is looked at before each wait.
		if err = rc.Read(func(uintptr) bool { return r.collect() }); err == nil {
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // Close wants a look
			err = r.file.SetReadDeadline(time.Time{})
			if r.collect() {
				break
			}
		}
	}
	if err != nil {
		panic(fmt.Sprintf("blockdev: wait for ring of %s: %v", r.disk.path, err)) // the poller is broken
	}
	r.file.Close()
	r.unmap()
	r.disk.release()
}

// collect takes all completions that are there; true: there will be no more.
func (r *Ring) collect() (over bool) {
	for {
		r.mu.Lock()
		head, tail := *r.cqHead, atomic.LoadUint32(r.cqTail)
		r.batch = r.batch[:0]
		now := time.Now()
		for ; head != tail; head++ {
			e := &r.cqes[head&r.cqMask]
			slot := uint32(e.user)
			r.batch = append(r.batch, r.result(&r.slots[slot], e.res, now))
			r.slots[slot] = ringSlot{}
			r.free = append(r.free, slot)
		}
		atomic.StoreUint32(r.cqHead, head)
		over = r.closed && len(r.free) == len(r.slots)
		r.mu.Unlock()
		if len(r.batch) == 0 {
			return over
		}
		r.done(r.batch)
	}
}

func (r *Ring) result(s *ringSlot, res int32, now time.Time) RingResult {
	t := RingResult{RingOp: s.op, Bytes: s.bytes, Took: now.Sub(s.began)}
	e := unix.Errno(-res)
	switch {
	case res == int32(s.bytes):
	case res >= 0, e == unix.EAGAIN, e == unix.EINTR, e == unix.ECANCELED:
		t.Again = true
	case s.op.Write:
		t.Err = r.disk.fail("write", e)
	default:
		t.Err = r.disk.fail("read", e)
	}
	return t
}

// Close lets nothing begin any more but what was added. It does not wait for what
// is under way.
func (r *Ring) Close() {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if !closed {
		r.file.SetReadDeadline(time.Unix(1, 0)) // reap looks; it has ended if this fails
	}
}

// Ended is closed when the last operation has ended after Close.
func (r *Ring) Ended() <-chan struct{} { return r.ended }
