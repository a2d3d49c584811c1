package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// Pool gives memory for block data; block/disk's Pool is the same. The runtime
// has page-aligned memory off the heap; Heap is for tests and tools.
type Pool interface {
	// Alloc returns byteCount bytes (a multiple of the block size) of any content.
	Alloc(byteCount int) []byte
	// Free takes back exactly a slice that Alloc returned.
	Free(buf []byte)
}

// Heap allocates from the Go heap, without alignment.
type Heap struct{}

// Alloc returns new memory.
func (Heap) Alloc(byteCount int) []byte { return make([]byte, byteCount) }

// Free leaves buf to the collector.
func (Heap) Free([]byte) {}

// readBytes is the size of the read buffer: one system call takes many messages.
const readBytes = 256 << 10

// Decoder reads messages from a stream. It is not for concurrent use. After an
// error the stream is unusable: close the connection.
type Decoder struct {
	r       io.Reader
	pool    Pool
	version uint8 // 0 until SetVersion: HELLO and HELLO_ACK only
	buf     []byte
	from    int // buf[from:to] is read and not decoded yet
	to      int
	body    []byte // a body that is larger than what buf holds
	c       coder
}

// NewDecoder returns a decoder of r. Block data goes into memory of pool,
// which the receiver of the message owns.
func NewDecoder(r io.Reader, pool Pool) *Decoder {
	return &Decoder{r: r, pool: pool, buf: make([]byte, readBytes)}
}

// SetVersion admits all messages of the negotiated version. Before it only
// Hello and HelloAck pass, whose layout never changes and whose version byte
// says nothing.
func (d *Decoder) SetVersion(v uint8) { d.version = v }

// Buffered is the number of bytes read and not decoded yet. When it is 0 the
// next call of Next may block: a good moment to send what has gathered.
func (d *Decoder) Buffered() int { return d.to - d.from }

// Complete reports whether Next would return without reading from the stream.
func (d *Decoder) Complete() bool {
	b := d.buf[d.from:d.to]
	if len(b) < HeaderBytes {
		return false
	}
	body, payload := binary.LittleEndian.Uint32(b[52:]), binary.LittleEndian.Uint32(b[56:])
	return int64(len(b)) >= HeaderBytes+int64(body)+int64(payload)
}

// Next returns the next message. io.EOF: the stream ended between messages;
// io.ErrUnexpectedEOF: within one; ErrCorrupt: see there.
func (d *Decoder) Next() (Message, error) {
	if err := d.fill(HeaderBytes); err != nil {
		return nil, err
	}
	c := &d.c
	*c = coder{}
	head := d.buf[d.from : d.from+HeaderBytes]
	if err := c.h.get(head); err != nil {
		return nil, err
	}
	crc := checksum(0, head[:60])
	greeting := c.h.kind == kindHello || c.h.kind == kindHelloAck
	if !greeting && (d.version == 0 || c.h.version != d.version) {
		return nil, corrupt("type %d of version %d on a connection of version %d", c.h.kind, c.h.version, d.version)
	}
	d.from += HeaderBytes
	body, err := d.take(int(c.h.bodyLen))
	if err != nil {
		return nil, err
	}
	if got := checksum(crc, body); got != c.h.crc {
		return nil, corrupt("type %d: checksum %#08x, header says %#08x", c.h.kind, got, c.h.crc)
	}
	m := newMessage(c.h.kind)
	c.b = body
	m.code(c)
	if len(c.b) != 0 {
		c.fail("type %d: %d bytes too many in the body", c.h.kind, len(c.b))
	}
	if c.data == nil && c.h.payloadLen != 0 {
		c.fail("type %d: payload of %d bytes", c.h.kind, c.h.payloadLen)
	}
	if c.err != nil {
		Recycle(m)
		return nil, c.err
	}
	if c.data != nil {
		if err := d.payload(c.data, int(c.h.payloadLen)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// payload reads n bytes into new memory of the allocator: what is buffered is
// copied, the rest goes from the stream to its place.
func (d *Decoder) payload(p *[]byte, n int) error {
	*p = nil
	if n == 0 {
		return nil
	}
	b := d.pool.Alloc(n)
	k := copy(b, d.buf[d.from:d.to])
	d.from += k
	if _, err := io.ReadFull(d.r, b[k:]); err != nil {
		d.pool.Free(b)
		return inMessage(err)
	}
	*p = b
	return nil
}

// take returns the next n bytes, valid until the next read.
func (d *Decoder) take(n int) ([]byte, error) {
	if n <= len(d.buf) {
		if err := d.fill(n); err != nil {
			return nil, inMessage(err)
		}
		p := d.buf[d.from : d.from+n : d.from+n]
		d.from += n
		return p, nil
	}
	d.body = grow(d.body, n)
	k := copy(d.body, d.buf[d.from:d.to])
	d.from += k
	if _, err := io.ReadFull(d.r, d.body[k:]); err != nil {
		return nil, inMessage(err)
	}
	return d.body, nil
}

// fill reads until n bytes are buffered. io.EOF only if none was.
func (d *Decoder) fill(n int) error {
	if d.to-d.from >= n {
		return nil
	}
	if d.from+n > len(d.buf) || d.from == d.to {
		d.to = copy(d.buf, d.buf[d.from:d.to])
		d.from = 0
	}
	k, err := io.ReadAtLeast(d.r, d.buf[d.to:], n-(d.to-d.from))
	had := d.to > d.from
	d.to += k
	if d.to-d.from >= n {
		return nil
	}
	if had || k > 0 {
		return inMessage(err)
	}
	return err
}

func inMessage(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// The messages of the hot path are recycled: no garbage per write.
var (
	writes      = sync.Pool{New: func() any { return new(Write) }}
	acks        = sync.Pool{New: func() any { return new(Ack) }}
	reads       = sync.Pool{New: func() any { return new(Read) }}
	readReplies = sync.Pool{New: func() any { return new(ReadReply) }}
)

// Recycle takes back a message that nobody uses any more. It is a kindness to
// the collector, never a duty. Block data is not touched: its owner puts it back.
func Recycle(m Message) {
	switch m := m.(type) {
	case *Write:
		*m = Write{CRC: m.CRC[:0]}
		writes.Put(m)
	case *Ack:
		*m = Ack{}
		acks.Put(m)
	case *Read:
		*m = Read{}
		reads.Put(m)
	case *ReadReply:
		*m = ReadReply{Tags: m.Tags[:0], Marks: m.Marks[:0]}
		readReplies.Put(m)
	}
}

// NewWrite returns a Write of any content, perhaps a recycled one.
func NewWrite() *Write { return writes.Get().(*Write) }

// NewRead returns a zero Read, perhaps a recycled one.
func NewRead() *Read { return reads.Get().(*Read) }

// NewAck returns a zero Ack, perhaps a recycled one.
func NewAck() *Ack { return acks.Get().(*Ack) }

func newMessage(k kind) coded {
	switch k {
	case kindWrite:
		return writes.Get().(*Write)
	case kindAck:
		return acks.Get().(*Ack)
	case kindRead:
		return reads.Get().(*Read)
	case kindReadReply:
		return readReplies.Get().(*ReadReply)
	}
	return constructors[k]()
}

var constructors = [kindEnd]func() coded{
	kindHello:        func() coded { return new(Hello) },
	kindHelloAck:     func() coded { return new(HelloAck) },
	kindOpen:         func() coded { return new(Open) },
	kindOpenAck:      func() coded { return new(OpenAck) },
	kindWindowReq:    func() coded { return new(WindowReq) },
	kindWindow:       func() coded { return new(Window) },
	kindWrite:        func() coded { return new(Write) },
	kindZero:         func() coded { return new(Zero) },
	kindAck:          func() coded { return new(Ack) },
	kindFlush:        func() coded { return new(Flush) },
	kindFlushAck:     func() coded { return new(FlushAck) },
	kindRead:         func() coded { return new(Read) },
	kindReadReply:    func() coded { return new(ReadReply) },
	kindHeartbeat:    func() coded { return new(Heartbeat) },
	kindHeartbeatAck: func() coded { return new(HeartbeatAck) },
	kindConfig:       func() coded { return new(Config) },
	kindConfigAck:    func() coded { return new(ConfigAck) },
	kindExtListReq:   func() coded { return new(ExtListReq) },
	kindExtList:      func() coded { return new(ExtList) },
	kindExtTagsReq:   func() coded { return new(ExtTagsReq) },
	kindExtTags:      func() coded { return new(ExtTags) },
	kindSyncBegin:    func() coded { return new(SyncBegin) },
	kindSyncWrite:    func() coded { return new(SyncWrite) },
	kindSyncEnd:      func() coded { return new(SyncEnd) },
	kindSimpleAck:    func() coded { return new(SimpleAck) },
	kindRepair:       func() coded { return new(Repair) },
	kindRelease:      func() coded { return new(Release) },
	kindDamage:       func() coded { return new(Damage) },
	kindSnapRead:     func() coded { return new(SnapRead) },
}
