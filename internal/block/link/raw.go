package link

import (
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Raw is a transport whose writes only gather once Gather was called: crypto/tls
// writes each record of 16 KiB by itself. Reads pass through.
type Raw struct {
	net.Conn
	rc  syscall.RawConn // nil: cannot be tried
	try func(uintptr) bool

	wait, waited func(uintptr) // of a quiet connection; nil: it is not

	mu   sync.Mutex
	on   bool
	buf  []byte // gathered; buf[:sent] is written
	sent int
	err  error
}

// NewRaw wraps a connection. Nothing else may write to it.
func NewRaw(nc net.Conn) *Raw {
	r := &Raw{Conn: nc}
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			r.rc = rc
		}
	}
	r.try = r.attempt
	if _, ok := nc.(*net.UnixConn); ok && r.rc != nil {
		r.rc.Control(roomy) // a wish: less room costs time only
		r.rc.Control(r.hush)
	}
	return r
}

// sendRoom is how much a unix socket takes before its sender has to wait for the
// reader: with the usual 208 KiB it is woken five times a MiB.
const sendRoom = 2 << 20

func roomy(fd uintptr) {
	if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendRoom) != nil { // for root
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendRoom)
	}
}

// Gather lets Write only gather from now on.
func (r *Raw) Gather() {
	r.mu.Lock()
	r.on = true
	r.mu.Unlock()
}

// Write implements net.Conn.
func (r *Raw) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.on {
		r.waiting(true)
		defer r.waiting(false)
		return r.Conn.Write(p)
	}
	r.buf = append(r.buf, p...)
	return len(p), nil
}

// Flush writes what is gathered, and waits until the kernel has taken it.
func (r *Raw) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent == len(r.buf) {
		return nil
	}
	r.waiting(true)
	_, err := r.Conn.Write(r.buf[r.sent:])
	r.waiting(false)
	r.buf, r.sent = r.buf[:0], 0
	return err
}

// WriteBuffers writes what is gathered, then list, which it consumes, and waits
// until the kernel has taken it.
func (r *Raw) WriteBuffers(list *net.Buffers) error {
	r.waiting(true)
	_, err := list.WriteTo(r.Conn)
	r.waiting(false)
	return err
}

// TryFlush writes as much of what is gathered as the kernel takes at once; done:
// that was all.
func (r *Raw) TryFlush() (done bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent < len(r.buf) && r.rc != nil {
		r.err = nil
		if err := r.rc.Write(r.try); err != nil {
			return false, err
		}
		if r.err != nil {
			return false, r.err
		}
	}
	if r.sent < len(r.buf) {
		return false, nil
	}
	r.buf, r.sent = r.buf[:0], 0
	return true, nil
}

// attempt is one write that does not block; true: do not wait until it can go on.
func (r *Raw) attempt(fd uintptr) bool {
	for {
		n, err := unix.Write(int(fd), r.buf[r.sent:])
		switch err {
		case nil:
			r.sent += n
		case unix.EINTR:
			continue
		case unix.EAGAIN:
		default:
			r.err = err
		}
		return true
	}
}
