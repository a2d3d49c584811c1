package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"roseau/internal/block/link"
)

const (
	gulpBytes = 256 << 10
	// A connection stops reading above either bound. The bytes must leave room
	// for one request of MaxPayloadBytes at least.
	maxInflightBytes    = 64 << 20
	maxInflightRequests = 1024
	maxBatch            = 128 // requests of one Submit
)

// Errors that a backend may pass to Done; every other one is EIO.
var (
	ErrNotSupported = errors.New("not supported")
	ErrNoSpace      = errors.New("no space")
	ErrReadOnly     = errors.New("read-only")
	errInvalid      = errors.New("invalid request")
)

// conn is one connection. The reader goroutine owns in, lo, hi, batch and slab;
// whoever has set writing owns iov and bufs.
type conn struct {
	nc      net.Conn
	raw     *link.Raw // nc: gathers what flush writes
	s       session
	backend Backend
	size    int64
	ro      bool

	in     []byte // bytes [lo, hi) are read and not parsed
	lo, hi int
	batch  []*Request
	slab   slab
	iov    [][]byte
	bufs   net.Buffers

	wake chan struct{} // capacity 1: done is not empty, or quit or drained changed

	mu       sync.Mutex
	room     *sync.Cond // inflight fell, or quit
	done     *Request   // completed, not written; in order of completion
	doneTail *Request
	writing  bool // somebody writes answers; with left, the writer has to
	left     bool // raw has bytes that did not go at once
	free     *Request
	bytes    int64 // in flight; counted from parsing to the written reply
	requests int
	quit     bool // the connection is over: answers go nowhere
	draining bool // the client said DISC: the writer ends once requests is 0
}

func newConn(nc net.Conn) *conn {
	c := &conn{nc: nc, raw: link.NewRaw(nc), in: aligned(gulpBytes), wake: make(chan struct{}, 1)}
	c.room = sync.NewCond(&c.mu)
	return c
}

// Read lets the negotiation read through the same buffer.
func (c *conn) Read(p []byte) (int, error) {
	if c.lo == c.hi {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.in[c.lo:c.hi])
	c.lo += n
	return n, nil
}

// fill reads as much as there is room for, at least one byte.
func (c *conn) fill() error {
	if c.lo > 0 {
		c.hi = copy(c.in, c.in[c.lo:c.hi])
		c.lo = 0
	}
	n, err := c.nc.Read(c.in[c.hi:])
	c.hi += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// transmit runs the reader here and the writer beside it, until the client says
// DISC and everything is answered, or the connection breaks.
func (c *conn) transmit(s session) error {
	c.s, c.backend = s, s.export.Backend
	c.raw.Gather()
	c.size, c.ro = c.backend.SizeBytes(), c.backend.ReadOnly()
	var wg sync.WaitGroup
	var werr error
	wg.Go(func() {
		werr = c.writeLoop()
		c.end(true)
		c.nc.Close() // wakes the reader
	})
	err := c.readLoop()
	c.end(err != nil)
	wg.Wait()
	if err == nil || errors.Is(err, net.ErrClosed) && werr != nil {
		err = werr
	}
	return err
}

// end marks the connection as over (quit), or as over once all is answered.
func (c *conn) end(quit bool) {
	c.mu.Lock()
	c.quit = c.quit || quit
	c.draining = true
	c.room.Broadcast()
	c.mu.Unlock()
	c.signal()
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// readLoop parses commands until DISC (nil) or an error.
func (c *conn) readLoop() error {
	for {
		for c.hi-c.lo >= requestBytes {
			more, err := c.command()
			if err != nil || !more {
				c.submit()
				return err
			}
		}
		c.submit()
		if err := c.fill(); err != nil {
			return fmt.Errorf("read commands: %w", err)
		}
	}
}

func (c *conn) submit() {
	if len(c.batch) == 0 {
		return
	}
	c.backend.Submit(c.batch)
	clear(c.batch)
	c.batch = c.batch[:0]
}

// command parses one command, whose header is in the buffer. more is false
// after DISC.
func (c *conn) command() (more bool, err error) {
	h := c.in[c.lo : c.lo+requestBytes]
	if m := binary.BigEndian.Uint32(h); m != magicRequest {
		return false, fmt.Errorf("read commands: magic %#x", m)
	}
	flags, cmd := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:])
	handle, offset := binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint64(h[16:])
	length := binary.BigEndian.Uint32(h[24:])
	c.lo += requestBytes
	if cmd == cmdDisconnect {
		return false, nil
	}
	payload := cmd == cmdRead || cmd == cmdWrite
	if payload && length > MaxPayloadBytes {
		// A write of that length cannot be skipped in good time; for a read the
		// protocol allows to end the connection as well.
		return false, fmt.Errorf("read commands: payload of %d bytes", length)
	}
	var weight int64
	if payload {
		weight = int64(length)
	}
	r, err := c.admit(weight)
	if err != nil {
		return false, err
	}
	r.handle, r.cmd, r.flags = handle, cmd, flags
	r.Length = int64(length)
	r.err = c.check(r, offset)
	if cmd == cmdWrite && length > 0 {
		r.buf = getBuffer(int(length), &c.slab)
		r.Data = r.buf.data[:length:length]
		if err := c.payload(r.Data); err != nil {
			return false, err
		}
	}
	if r.err != nil || r.Length == 0 && r.Op == OpTrim {
		r.Done(r.err)
		return true, nil
	}
	c.batch = append(c.batch, r)
	if len(c.batch) == maxBatch {
		c.submit()
	}
	return true, nil
}

// payload copies what was read already and reads the rest in place.
func (c *conn) payload(p []byte) error {
	n := copy(p, c.in[c.lo:c.hi])
	c.lo += n
	if n == len(p) {
		return nil
	}
	c.submit() // do not let others wait for these bytes
	if _, err := io.ReadFull(c.nc, p[n:]); err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	return nil
}

// admit waits until the request fits the bounds and counts it.
func (c *conn) admit(weight int64) (*Request, error) {
	c.mu.Lock()
	for !c.quit && c.requests > 0 && (c.requests >= maxInflightRequests || c.bytes+weight > maxInflightBytes) {
		if len(c.batch) > 0 {
			c.mu.Unlock()
			c.submit() // nothing would ever complete while it waits here
			c.mu.Lock()
			continue
		}
		c.room.Wait()
	}
	if c.quit {
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	c.requests++
	c.bytes += weight
	r := c.free
	if r != nil {
		c.free, r.next = r.next, nil
	} else {
		r = &Request{conn: c}
	}
	c.mu.Unlock()
	r.weight = weight
	return r, nil
}

// commandFlags lists, for each command, its operation and the flags it allows.
var commandFlags = [...]struct {
	op    Op
	flags uint16
}{
	cmdRead:        {OpRead, cmdFlagFUA | cmdFlagDF},
	cmdWrite:       {OpWrite, cmdFlagFUA},
	cmdFlush:       {OpFlush, cmdFlagFUA},
	cmdTrim:        {OpTrim, cmdFlagFUA},
	cmdWriteZeroes: {OpZero, cmdFlagFUA | cmdFlagNoHole | cmdFlagFast},
	cmdBlockStatus: {OpStatus, cmdFlagFUA | cmdFlagReqOne},
}

// check validates r and sets what the backend reads.
func (c *conn) check(r *Request, offset uint64) error {
	if int(r.cmd) >= len(commandFlags) || commandFlags[r.cmd].op == 0 {
		return errInvalid
	}
	r.Op = commandFlags[r.cmd].op
	if r.flags&^commandFlags[r.cmd].flags != 0 {
		return errInvalid
	}
	if r.flags&cmdFlagDF != 0 && !c.s.structured {
		return errInvalid
	}
	if r.Op == OpFlush {
		if offset != 0 || r.Length != 0 {
			return errInvalid
		}
		return nil
	}
	if r.Op != OpTrim && (offset%BlockBytes != 0 || r.Length%BlockBytes != 0) || r.Length == 0 {
		return errInvalid
	}
	if offset > uint64(c.size) || r.Length > c.size-int64(offset) {
		if r.Op == OpWrite || r.Op == OpZero {
			return ErrNoSpace
		}
		return errInvalid
	}
	r.Offset = int64(offset)
	if r.Op == OpTrim {
		r.shrink()
	}
	switch r.Op {
	case OpStatus:
		if !c.s.status() {
			return errInvalid
		}
	case OpWrite, OpZero, OpTrim:
		if c.ro {
			return ErrReadOnly
		}
		if r.flags&cmdFlagFUA != 0 {
			r.Flags |= FlagFUA
		}
		if r.flags&cmdFlagNoHole != 0 {
			r.Flags |= FlagNoHole
		}
		if r.flags&cmdFlagFast != 0 {
			r.Flags |= FlagFast
		}
	}
	return nil
}

// shrink cuts a trim down to the whole blocks in it. QEMU passes a guest's small
// discards on below the announced block size; a trim is a hint, and an error to
// it would pause the guest.
func (r *Request) shrink() {
	end := r.Offset + r.Length
	r.Offset = (r.Offset + BlockBytes - 1) / BlockBytes * BlockBytes
	r.Length = max(end/BlockBytes*BlockBytes-r.Offset, 0)
}

// complete queues the answer of r, and returns whether it is the only one.
func (c *conn) complete(r *Request) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quit {
		c.releaseLocked(r)
		return false
	}
	first = c.done == nil
	if first {
		c.done = r
	} else {
		c.doneTail.next = r
	}
	c.doneTail = r
	return first
}

// releaseLocked takes r out of the count and makes it free. mu is held.
func (c *conn) releaseLocked(r *Request) {
	c.requests--
	c.bytes -= r.weight
	if r.buf != nil && !r.Keep {
		putBuffer(r.buf)
	}
	if r.Pooled {
		Pool{}.Free(r.Data)
	}
	next := Request{conn: c, next: c.free, Spans: r.Spans[:0], extents: r.extents}
	if !r.Keep {
		next.Sums = r.Sums[:0]
	}
	*r = next
	c.free = r
}
