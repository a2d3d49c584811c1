package wire

import (
	"fmt"
	"net"

	"roseau/internal/base/errs"
)

// Append appends the header and body of m to dst and returns the longer slice,
// and the block data that follows on the wire: the memory of m itself, not a
// copy. A message that its own decoder would refuse is an error, and dst is
// returned as it was.
func Append(dst []byte, m Message) (head, payload []byte, err error) {
	var c coder
	if err := c.encode(dst, m); err != nil {
		return dst, nil, err
	}
	return c.b, c.pay, nil
}

func (c *coder) encode(dst []byte, m Message) error {
	v, ok := m.(coded)
	if !ok {
		return errs.New(errs.Invalid, "encode message of type %T: not on the wire", m)
	}
	start := len(dst)
	*c = coder{enc: true, b: append(dst, zeroHeader[:]...)}
	c.h.version, c.h.kind = ProtocolVersion, v.kind()
	v.code(c)
	body := len(c.b) - start - HeaderBytes
	if body > MaxBodyBytes {
		c.fail("body of %d bytes, limit %d", body, MaxBodyBytes)
	}
	if c.err != nil {
		return errs.New(errs.Invalid, "encode message: %w", c.err)
	}
	c.h.bodyLen = uint32(body)
	head := c.b[start : start+HeaderBytes]
	c.h.put(head)
	c.h.crc = checksum(checksum(0, head[:60]), c.b[start+HeaderBytes:])
	c.h.put(head)
	return nil
}

var zeroHeader [HeaderBytes]byte

// Batch gathers messages for one writev. The zero value is empty. It keeps its
// memory over Reset, so that a sender that swaps two batches makes no garbage.
// Block data is referred to, not copied: it must stay unchanged until the bytes
// are sent.
type Batch struct {
	buf   []byte // heads, one after another
	cuts  []cut  // where payloads stand between them
	vecs  net.Buffers
	bytes int
	c     coder
}

type cut struct {
	at      int // the payload follows buf[:at]
	payload []byte
}

// Add appends m.
func (b *Batch) Add(m Message) error {
	if err := b.c.encode(b.buf, m); err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	b.bytes += len(b.c.b) - len(b.buf) + len(b.c.pay)
	b.buf = b.c.b
	if len(b.c.pay) > 0 {
		b.cuts = append(b.cuts, cut{len(b.buf), b.c.pay})
	}
	return nil
}

// Len is the number of bytes to send.
func (b *Batch) Len() int { return b.bytes }

// Buffers returns the bytes in order, valid until the next Add or Reset. A
// WriteTo of the result consumes it.
func (b *Batch) Buffers() *net.Buffers {
	b.vecs = b.vecs[:0]
	from := 0
	for _, c := range b.cuts {
		b.vecs = append(b.vecs, b.buf[from:c.at], c.payload)
		from = c.at
	}
	if from < len(b.buf) {
		b.vecs = append(b.vecs, b.buf[from:])
	}
	v := b.vecs
	return &v
}

// AppendTo appends the bytes in order to dst: for a connection that copies
// anyway (TLS), where one large write is one run of records.
func (b *Batch) AppendTo(dst []byte) []byte {
	from := 0
	for _, c := range b.cuts {
		dst = append(append(dst, b.buf[from:c.at]...), c.payload...)
		from = c.at
	}
	return append(dst, b.buf[from:]...)
}

// Reset empties b and drops its references to block data.
func (b *Batch) Reset() {
	clear(b.cuts)
	clear(b.vecs[:cap(b.vecs)])
	b.buf, b.cuts, b.vecs, b.bytes = b.buf[:0], b.cuts[:0], b.vecs[:0], 0
	b.c.pay = nil
}
