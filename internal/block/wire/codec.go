package wire

import (
	"encoding/binary"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// coder walks the fields of one message in their wire order, writing them or
// reading them. One walk a type (code.go) serves both directions, so they
// cannot disagree.
type coder struct {
	h    header
	enc  bool
	b    []byte // enc: what is appended to; dec: what is left of the body
	pay  []byte // enc: the payload
	data *[]byte
	err  error // dec: the first violation
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = corrupt(format, args...)
	}
}

// take returns the next n bytes of the body, or nil after recording an error.
func (c *coder) take(n int) []byte {
	if len(c.b) < n {
		c.fail("type %d: body ends early", c.h.kind)
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

func (c *coder) u8(v *uint8) {
	if c.enc {
		c.b = append(c.b, *v)
	} else if p := c.take(1); p != nil {
		*v = p[0]
	}
}

func (c *coder) u16(v *uint16) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint16(c.b, *v)
	} else if p := c.take(2); p != nil {
		*v = binary.LittleEndian.Uint16(p)
	}
}

func (c *coder) u32(v *uint32) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint32(c.b, *v)
	} else if p := c.take(4); p != nil {
		*v = binary.LittleEndian.Uint32(p)
	}
}

func (c *coder) u64(v *uint64) {
	if c.enc {
		c.b = binary.LittleEndian.AppendUint64(c.b, *v)
	} else if p := c.take(8); p != nil {
		*v = binary.LittleEndian.Uint64(p)
	}
}

// i64 is a number that is never negative.
func (c *coder) i64(v *int64) {
	u := uint64(*v)
	c.u64(&u)
	if !c.enc {
		*v = int64(u)
	}
	if *v < 0 {
		c.fail("type %d: negative number", c.h.kind)
	}
}

func (c *coder) bool(v *bool) {
	var u uint8
	if *v {
		u = 1
	}
	c.u8(&u)
	if u > 1 {
		c.fail("type %d: truth value %d", c.h.kind, u)
	}
	if !c.enc {
		*v = u == 1
	}
}

func (c *coder) id(v *ids.ID) {
	if c.enc {
		c.b = append(c.b, v[:]...)
	} else if p := c.take(16); p != nil {
		copy(v[:], p)
	}
}

func (c *coder) status(v *Status)              { c.u16((*uint16)(v)) }
func (c *coder) duration(v *time.Duration)     { c.i64((*int64)(v)) }
func (c *coder) instant(v *clock.Instant)      { c.i64((*int64)(v)) }
func (c *coder) mark(v *repl.Mark)             { c.u64(&v.Epoch); c.u64(&v.Wseq) }
func (c *coder) tag(v *Tag)                    { c.u32(&v.CRC); c.u32(&v.Stamp) }
func (c *coder) generation(g *repl.Generation) { c.u32(&g.Cluster); c.u32(&g.Volume) }

func (c *coder) promise(p *repl.Promise) {
	c.generation(&p.Generation)
	c.u64(&p.Epoch)
	c.id(&p.Nonce)
	c.u32(&p.Inc)
	c.id(&p.Node)
	c.id(&p.Run)
}

func (c *coder) piggyback(p *Piggyback) {
	c.u64(&p.CommitWseq)
	c.mark(&p.FlushMark)
	c.u32(&p.CfgVersion)
}

func (c *coder) told(t *Told) {
	c.u64(&t.Epoch)
	c.u32(&t.CfgVersion)
	slice(c, &t.Out, 16, (*coder).id)
	c.id(&t.Pending)
	c.bool(&t.Complete)
	c.u32(&t.SnapSeq)
	slice(c, &t.Snaps, 4, (*coder).u32)
	for i, n := range t.Snaps {
		if n == 0 || i > 0 && n <= t.Snaps[i-1] {
			c.fail("snapshot %d of %d in a configuration", n, i)
		}
	}
}

// slice walks a counted list whose elements take at least minBytes each, so a
// false count cannot make the decoder allocate more than the body is long. An
// empty list decodes as nil.
func slice[T any](c *coder, s *[]T, minBytes int, each func(*coder, *T)) {
	n := uint32(len(*s))
	c.u32(&n)
	if !c.enc {
		if c.err != nil || int64(n)*int64(minBytes) > int64(len(c.b)) {
			c.fail("type %d: count %d exceeds the body", c.h.kind, n)
			return
		}
		*s = grow(*s, int(n))
	}
	for i := range *s {
		each(c, &(*s)[i])
	}
}

// grow returns a slice of length n, in the memory of s if it is large enough;
// nil for n = 0.
func grow[T any](s []T, n int) []T {
	if n <= cap(s) {
		return s[:n]
	}
	if n == 0 {
		return nil
	}
	return make([]T, n)
}

// Fields that stand in the header.

func (c *coder) hdrReq(v *uint64) { swap(c, v, &c.h.reqID) }

func (c *coder) hdrHandle(v *Handle) { swap(c, (*uint64)(v), &c.h.handle) }

func (c *coder) hdrMark(m *repl.Mark) {
	swap(c, &m.Epoch, &c.h.epoch)
	swap(c, &m.Wseq, &c.h.wseq)
}

func (c *coder) hdrStatus(s *Status) { swap(c, (*uint16)(s), &c.h.flags) }

func (c *coder) hdrFlags(f *WriteFlags, known WriteFlags) {
	swap(c, (*uint16)(f), &c.h.flags)
	if *f&^known != 0 {
		c.fail("type %d: flags %#x", c.h.kind, *f)
	}
}

// hdrRange is a block-aligned range that does not cross an extent.
func (c *coder) hdrRange(offset, length *int64) {
	o, l := uint64(*offset), uint32(*length)
	if c.enc && *length != int64(l) {
		c.fail("type %d: length %d", c.h.kind, *length)
	}
	swap(c, &o, &c.h.offset)
	swap(c, &l, &c.h.length)
	if !c.enc {
		*offset, *length = int64(o), int64(l)
	}
	if *offset < 0 || *offset%repl.BlockBytes != 0 || *length <= 0 || *length%repl.BlockBytes != 0 ||
		*offset%repl.ExtentBytes+*length > repl.ExtentBytes {
		c.fail("type %d: range %d+%d is not of whole blocks in one extent", c.h.kind, *offset, *length)
	}
}

func swap[T any](c *coder, v, h *T) {
	if c.enc {
		*h = *v
	} else {
		*v = *h
	}
}

// payload is block data of whole blocks that follows the body.
func (c *coder) payload(p *[]byte) {
	if c.enc {
		c.pay = *p
		c.h.payloadLen = uint32(len(*p))
	} else {
		c.data = p
	}
	if n := c.h.payloadLen; n > maxDataBytes || n%repl.BlockBytes != 0 {
		c.fail("type %d: payload of %d bytes", c.h.kind, n)
	}
}

// payloadExactly is payload of a known length.
func (c *coder) payloadExactly(p *[]byte, want int) {
	c.payload(p)
	if int64(c.h.payloadLen) != int64(want) {
		c.fail("type %d: payload of %d bytes, want %d", c.h.kind, c.h.payloadLen, want)
	}
}
