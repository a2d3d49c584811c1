package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// inlineBytes is how much flush writes by itself: more costs more time than a
// wake-up of the writer.
const inlineBytes = 64 << 10

// take takes the answers that wait, and the right to write. nil: there are none,
// or somebody writes. mu is held.
func (c *conn) take() *Request {
	if c.writing || c.quit {
		return nil
	}
	list := c.done
	c.done, c.doneTail = nil, nil
	c.writing = list != nil
	return list
}

// flush: see Flusher.
func (c *conn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		n := int64(0)
		for r := c.done; r != nil && n <= inlineBytes; r = r.next {
			n += r.weight
		}
		if n > inlineBytes {
			c.signal()
			return
		}
		list := c.take()
		if list == nil {
			return
		}
		c.mu.Unlock()
		for r := list; r != nil; r = r.next {
			c.iov = c.appendReply(c.iov, r)
		}
		for _, b := range c.iov {
			c.raw.Write(b) // gathers only
		}
		c.dropIOV()
		sent, err := c.raw.TryFlush()
		c.mu.Lock()
		c.release(list)
		if !sent || err != nil { // the writer meets the error again
			c.left = true
			c.signal()
			return
		}
		c.writing = false
	}
}

// release ends the requests of a list. mu is held.
func (c *conn) release(list *Request) {
	for r := list; r != nil; {
		next := r.next
		c.releaseLocked(r)
		r = next
	}
	c.room.Broadcast()
	if c.draining {
		c.signal()
	}
}

func (c *conn) dropIOV() {
	clear(c.iov) // references to payloads
	c.iov = c.iov[:0]
}

// writeLoop writes answers until the connection is over. It takes everything
// that has completed at once, so that answers gather while it writes.
func (c *conn) writeLoop() error {
	for range c.wake {
		for {
			c.mu.Lock()
			left := c.left
			if left {
				c.left, c.writing = false, false
			}
			over := c.quit || c.draining && c.requests == 0 && !left && !c.writing
			list := c.take()
			if left {
				c.writing = true
			}
			c.mu.Unlock()
			if over {
				return nil
			}
			if list == nil && !left {
				break
			}
			err := c.raw.Flush()
			if err == nil && list != nil {
				for r := list; r != nil; r = r.next {
					c.iov = c.appendReply(c.iov, r)
				}
				err = c.writev()
				c.dropIOV()
			}
			c.mu.Lock()
			c.writing = false
			c.release(list)
			c.mu.Unlock()
			if err != nil {
				return fmt.Errorf("write replies: %w", err)
			}
		}
	}
	return nil
}

// writev is WriteTo, on a field so that the slice header does not escape anew
// each time.
func (c *conn) writev() error {
	c.bufs = c.iov
	err := c.raw.WriteBuffers(&c.bufs)
	c.bufs = nil
	return err
}

// errNoSpans is a backend's fault: the protocol has no empty status.
var errNoSpans = errors.New("no spans")

// errno maps the error of a request to the protocol's number.
func errno(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInvalid):
		return eInval
	case errors.Is(err, ErrNoSpace):
		return eNoSpace
	case errors.Is(err, ErrNotSupported):
		return eNotSup
	case errors.Is(err, ErrReadOnly):
		return ePerm
	}
	return eIO
}

// appendReply appends the bytes of r's answer. The header lives in r.
func (c *conn) appendReply(iov [][]byte, r *Request) [][]byte {
	if c.s.structured && (r.cmd == cmdRead || r.cmd == cmdBlockStatus) {
		return c.appendStructured(iov, r)
	}
	h := r.head[:simpleBytes]
	binary.BigEndian.PutUint32(h[0:], magicSimple)
	binary.BigEndian.PutUint32(h[4:], errno(r.err))
	binary.BigEndian.PutUint64(h[8:], r.handle)
	iov = append(iov, h)
	if r.cmd == cmdRead && r.err == nil {
		iov = appendData(iov, r)
	}
	return iov
}

func appendData(iov [][]byte, r *Request) [][]byte {
	if !r.Zero {
		return append(iov, r.Data)
	}
	for left := r.Length; left > 0; {
		n := min(left, int64(len(zeros)))
		iov = append(iov, zeros[:n])
		left -= n
	}
	return iov
}

func (c *conn) appendStructured(iov [][]byte, r *Request) [][]byte {
	if r.cmd == cmdBlockStatus && r.err == nil && len(r.Spans) == 0 {
		r.err = errNoSpans
	}
	switch {
	case r.err != nil:
		h := chunk(r, chunkError, 6)
		binary.BigEndian.PutUint32(h[structuredBytes:], errno(r.err))
		binary.BigEndian.PutUint16(h[structuredBytes+4:], 0) // no message
		return append(iov, h)
	case r.cmd == cmdBlockStatus:
		return appendStatus(iov, r)
	case r.Zero:
		h := chunk(r, chunkOffsetHole, 12)
		binary.BigEndian.PutUint64(h[structuredBytes:], uint64(r.Offset))
		binary.BigEndian.PutUint32(h[structuredBytes+8:], uint32(r.Length))
		return append(iov, h)
	}
	h := chunk(r, chunkOffsetData, 8)
	binary.BigEndian.PutUint32(h[16:], uint32(8+r.Length))
	binary.BigEndian.PutUint64(h[structuredBytes:], uint64(r.Offset))
	return append(iov, h, r.Data)
}

// chunk fills the header of a reply's only chunk and returns it with body bytes
// behind it.
func chunk(r *Request, typ uint16, body int) []byte {
	h := r.head[:structuredBytes+body]
	binary.BigEndian.PutUint32(h[0:], magicStructured)
	binary.BigEndian.PutUint16(h[4:], chunkDone)
	binary.BigEndian.PutUint16(h[6:], typ)
	binary.BigEndian.PutUint64(h[8:], r.handle)
	binary.BigEndian.PutUint32(h[16:], uint32(body))
	return h
}

// appendStatus merges neighbours of a kind and cuts at the end of the request.
func appendStatus(iov [][]byte, r *Request) [][]byte {
	e := r.extents[:0]
	left := r.Length
	for _, s := range r.Spans {
		n := min(s.Length, left)
		if n <= 0 {
			break
		}
		left -= n
		var flags uint32
		if s.Hole {
			flags = statusHole | statusZero
		}
		if k := len(e) - 8; k >= 0 && binary.BigEndian.Uint32(e[k+4:]) == flags {
			binary.BigEndian.PutUint32(e[k:], binary.BigEndian.Uint32(e[k:])+uint32(n))
			continue
		}
		if len(e) > 0 && r.flags&cmdFlagReqOne != 0 {
			break
		}
		e = binary.BigEndian.AppendUint32(e, uint32(n))
		e = binary.BigEndian.AppendUint32(e, flags)
	}
	r.extents = e
	h := chunk(r, chunkBlockStatus, 4)
	binary.BigEndian.PutUint32(h[16:], uint32(4+len(e)))
	binary.BigEndian.PutUint32(h[structuredBytes:], metaAllocationID)
	return append(iov, h, e)
}
