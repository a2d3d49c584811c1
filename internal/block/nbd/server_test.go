package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// client is a raw client: tests say exactly which bytes are sent.
type client struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, sock string) *client {
	t.Helper()
	nc, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &client{t, nc}
	c.read(18)
	c.send(be(uint32(handshakeFixedNewstyle | handshakeNoZeroes)))
	return c
}

// be encodes values big endian, one after another.
func be(vs ...any) []byte {
	var b bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			b.WriteString(s)
			continue
		}
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// option sends one option and returns the types of the replies, up to the last.
func (c *client) option(opt uint32, data []byte) (types []uint32, bodies []string) {
	c.t.Helper()
	c.send(be(uint64(magicOption), opt, uint32(len(data)), data))
	for {
		h := c.read(20)
		typ := binary.BigEndian.Uint32(h[12:])
		types = append(types, typ)
		bodies = append(bodies, string(c.read(int(binary.BigEndian.Uint32(h[16:])))))
		if typ == repAck || typ >= 1<<31 {
			return types, bodies
		}
	}
}

func request(flags, cmd uint16, handle, offset uint64, length uint32) []byte {
	return be(uint32(magicRequest), flags, cmd, handle, offset, length)
}

func (c *client) simple() (errno uint32, handle uint64) {
	c.t.Helper()
	h := c.read(16)
	if binary.BigEndian.Uint32(h) != magicSimple {
		c.t.Fatalf("not a simple reply: %x", h)
	}
	return binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
}

func (c *client) structured() (typ uint16, handle uint64, body []byte) {
	c.t.Helper()
	h := c.read(20)
	if binary.BigEndian.Uint32(h) != magicStructured || binary.BigEndian.Uint16(h[4:]) != chunkDone {
		c.t.Fatalf("not a final structured reply: %x", h)
	}
	return binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint64(h[8:]), c.read(int(binary.BigEndian.Uint32(h[16:])))
}

func TestNegotiationRefusals(t *testing.T) {
	sock := serve(t, Export{Name: "a", Backend: newMem(1 << 20)}, Export{Name: "b", Backend: newMem(1 << 20)})
	c := dial(t, sock)
	for _, x := range []struct {
		opt  uint32
		data []byte
		want uint32
	}{
		{5, nil, repErrUnsup},                      // STARTTLS
		{99, []byte("zz"), repErrUnsup},            //
		{optList, []byte("x"), repErrInvalid},      //
		{optGo, nil, repErrInvalid},                //
		{optGo, be(uint32(9), "a"), repErrInvalid}, // the name is longer than the data
		{optGo, be(uint32(1), "c", uint16(0)), repErrUnknown},
		{optGo, be(uint32(1), "a", uint16(2), uint16(3)), repErrInvalid},
		{optSetMetaContext, be(uint32(1), "a", uint32(1), uint32(15), metaAllocation), repErrInvalid}, // before structured replies
		{optStructuredReply, []byte("x"), repErrInvalid},
		{7, make([]byte, maxOptionBytes+1), repErrTooBig},
	} {
		types, _ := c.option(x.opt, x.data)
		if got := types[len(types)-1]; got != x.want {
			t.Errorf("option %d %q: reply %#x, want %#x", x.opt, x.data[:min(len(x.data), 20)], got, x.want)
		}
	}
	if types, names := c.option(optList, nil); len(types) != 3 || names[0] != "\x00\x00\x00\x01a" || names[1] != "\x00\x00\x00\x01b" {
		t.Errorf("list: %v %q", types, names)
	}
	c.option(optStructuredReply, nil)
	if types, _ := c.option(optSetMetaContext, be(uint32(1), "a", uint32(1), uint32(8), "qemu:xyz")); len(types) != 1 {
		t.Errorf("a context that nobody has: %v", types)
	}
	if types, b := c.option(optListMetaContext, be(uint32(1), "a", uint32(0))); len(types) != 2 || b[0][4:] != metaAllocation {
		t.Errorf("list contexts: %v %q", types, b)
	}
	if types, _ := c.option(optAbort, nil); types[0] != repAck {
		t.Errorf("abort: %v", types)
	}
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after abort: %v", err)
	}
}

func TestExportName(t *testing.T) {
	sock := serve(t, Export{Name: "a", Backend: newMem(1 << 20)})
	c := dial(t, sock)
	c.send(be(uint64(magicOption), uint32(optExportName), uint32(1), "a"))
	if b := c.read(10); binary.BigEndian.Uint64(b) != 1<<20 || binary.BigEndian.Uint16(b[8:])&txDF != 0 {
		t.Fatalf("export: %x", b)
	}
	c.send(request(0, cmdRead, 7, 0, 4096)) // simple replies
	if e, h := c.simple(); e != 0 || h != 7 {
		t.Fatal(e, h)
	}
	c.read(4096)
	c.send(request(0, cmdBlockStatus, 8, 0, 4096))
	if e, _ := c.simple(); e != eInval {
		t.Fatalf("block status without structured replies: %d", e)
	}
	d := dial(t, sock)
	d.send(be(uint64(magicOption), uint32(optExportName), uint32(1), "z"))
	if _, err := d.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("unknown export: %v", err)
	}
}

func ready(t *testing.T, sock string) *client {
	c := dial(t, sock)
	c.option(optStructuredReply, nil)
	c.option(optSetMetaContext, be(uint32(0), uint32(1), uint32(15), metaAllocation))
	if types, _ := c.option(optGo, be(uint32(0), uint16(0))); types[len(types)-1] != repAck {
		t.Fatal(types)
	}
	return c
}

func TestCommandRefusals(t *testing.T) {
	m := newMem(1 << 20)
	c := ready(t, serve(t, Export{Name: "a", Backend: m}))
	block := make([]byte, 4096)
	for i, x := range []struct {
		req  []byte
		want uint32
	}{
		{append(request(0, cmdWrite, 1, 512, 512), block[:512]...), eInval},
		{append(request(0, cmdWrite, 1, 0, 100), block[:100]...), eInval},
		{request(0, cmdWrite, 1, 0, 0), eInval},
		{append(request(0, cmdWrite, 1, 1<<20, 4096), block...), eNoSpace},
		{append(request(0, cmdWrite, 1, 1<<63, 4096), block...), eNoSpace},
		{request(0, cmdWriteZeroes, 1, 1<<20-4096, 8192), eNoSpace},
		{request(0, cmdTrim, 1, 1<<20, 4096), eInval},
		{request(0, 5, 1, 0, 4096), eInval},   // CACHE is not announced
		{request(0, 999, 1, 0, 4096), eInval}, //
		{request(0, cmdFlush, 1, 4096, 0), eInval},
		{request(cmdFlagDF, cmdTrim, 1, 0, 4096), eInval},
		{append(request(1<<9, cmdWrite, 1, 0, 4096), block...), eInval},
	} {
		c.send(x.req)
		if e, h := c.simple(); e != x.want || h != 1 {
			t.Errorf("case %d: error %d, want %d", i, e, x.want)
		}
	}
	c.send(request(0, cmdRead, 2, 1, 4096))
	if typ, h, b := c.structured(); typ != chunkError || h != 2 || binary.BigEndian.Uint32(b) != eInval {
		t.Errorf("unaligned read: %d %d %x", typ, h, b)
	}
	c.send(request(0, cmdRead, 3, 0, 8192))
	if typ, _, b := c.structured(); typ != chunkOffsetHole || binary.BigEndian.Uint32(b[8:]) != 8192 {
		t.Errorf("read of a hole: %d %x", typ, b)
	}
	ro := newMem(1 << 20)
	ro.ro = true
	d := ready(t, serve(t, Export{Name: "a", Backend: ro}))
	d.send(append(request(0, cmdWrite, 1, 0, 4096), block...))
	if e, _ := d.simple(); e != ePerm {
		t.Errorf("write to a read-only export: %d", e)
	}
	d.send(request(0, cmdRead, 1, 0, MaxPayloadBytes+1))
	if _, err := d.Conn.Read(block); err != io.EOF {
		t.Errorf("an oversized read does not end the connection: %v", err)
	}
}

// QEMU sends a guest's discards below the announced block size.
func TestTrimOfPartsOfBlocks(t *testing.T) {
	m := newMem(1 << 20)
	for b := range 8 {
		m.have[b] = true
	}
	c := ready(t, serve(t, Export{Name: "a", Backend: m}))
	for i, x := range []struct {
		offset uint64
		length uint32
		left   string // blocks that are still there, of the first eight
		errno  uint32
	}{
		{0, 1024, "01234567", 0},
		{512, 4096, "01234567", 0},
		{4095, 4098, "0234567", 0},
		{8192, 8191, "034567", 0},
		{1<<20 - 512, 1024, "034567", eInval},
		{0, 0, "034567", eInval},
	} {
		c.send(request(cmdFlagFUA, cmdTrim, uint64(i), x.offset, x.length))
		if e, h := c.simple(); e != x.errno || h != uint64(i) {
			t.Errorf("trim of %d at %d: error %d, want %d", x.length, x.offset, e, x.errno)
		}
		left := ""
		m.mu.Lock()
		for b := range 8 {
			if m.have[b] {
				left += string(rune('0' + b))
			}
		}
		m.mu.Unlock()
		if left != x.left {
			t.Errorf("trim of %d at %d: blocks %s are left, want %s", x.length, x.offset, left, x.left)
		}
	}
}

func TestBlockStatus(t *testing.T) {
	m := newMem(1 << 20)
	m.have[2], m.have[3] = true, true
	c := ready(t, serve(t, Export{Backend: m}))
	c.send(request(0, cmdBlockStatus, 1, 0, 8*4096))
	if _, _, b := c.structured(); !bytes.Equal(b, be(uint32(1), uint32(8192), uint32(3), uint32(8192), uint32(0), uint32(4*4096), uint32(3))) {
		t.Errorf("status: %x", b)
	}
	c.send(request(cmdFlagReqOne, cmdBlockStatus, 1, 4096, 8*4096))
	if _, _, b := c.structured(); !bytes.Equal(b, be(uint32(1), uint32(4096), uint32(3))) {
		t.Errorf("one status: %x", b)
	}
}

// A stalled backend makes clients wait, more requests than fit the bounds
// included, and DISC is obeyed only after every answer.
func TestStallAndBounds(t *testing.T) {
	m := newMem(1 << 20)
	c := ready(t, serve(t, Export{Backend: m}))
	m.stall.Lock()
	const n = 3 * maxInflightRequests
	go func() {
		var b []byte
		for i := range n {
			b = append(b, request(0, cmdWrite, uint64(i), uint64(i%200)*4096, 4096)...)
			b = append(b, bytes.Repeat([]byte{byte(i)}, 4096)...)
		}
		c.Write(append(b, request(0, cmdDisconnect, 0, 0, 0)...))
	}()
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("a stalled backend was answered")
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	m.stall.Unlock()
	seen := map[uint64]bool{}
	for range n {
		e, h := c.simple()
		if e != 0 || seen[h] {
			t.Fatal(e, h)
		}
		seen[h] = true
	}
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("after DISC: %v", err)
	}
}

// The path of a request allocates nothing once the pools are warm.
func TestAllocations(t *testing.T) {
	b := &syncBackend{}
	c := ready(t, serve(t, Export{Backend: b}))
	req := append(request(0, cmdWrite, 1, 0, 4096), make([]byte, 4096)...)
	ans := make([]byte, 16)
	one := func() {
		c.Conn.Write(req)
		io.ReadFull(c.Conn, ans)
	}
	for range 100 {
		one()
	}
	if n := testing.AllocsPerRun(500, one); n > 0.5 {
		t.Errorf("%v allocations a request", n)
	}
}

type syncBackend struct{}

func (*syncBackend) SizeBytes() int64 { return 1 << 20 }
func (*syncBackend) ReadOnly() bool   { return false }
func (*syncBackend) Submit(rs []*Request) {
	for _, r := range rs {
		r.Zero = true
		r.Done(nil)
	}
}

// pipeConn gives fuzzed bytes to the server and swallows the answers.
type pipeConn struct {
	net.Conn
	r *bytes.Reader
}

func (p *pipeConn) Read(b []byte) (int, error)       { return p.r.Read(b) }
func (p *pipeConn) Write(b []byte) (int, error)      { return len(b), nil }
func (p *pipeConn) Close() error                     { return nil }
func (p *pipeConn) SetDeadline(time.Time) error      { return nil }
func (p *pipeConn) SetReadDeadline(time.Time) error  { return nil }
func (p *pipeConn) SetWriteDeadline(time.Time) error { return nil }

func FuzzConnection(f *testing.F) {
	hello := be(uint32(3))
	goOpt := be(uint64(magicOption), uint32(optGo), uint32(6), uint32(0), uint16(0))
	sr := be(uint64(magicOption), uint32(optStructuredReply), uint32(0))
	meta := be(uint64(magicOption), uint32(optSetMetaContext), uint32(27), uint32(0), uint32(1), uint32(15), metaAllocation)
	f.Add(be(hello, sr, meta, goOpt, request(0, cmdRead, 1, 0, 4096), request(0, cmdBlockStatus, 2, 0, 65536)))
	f.Add(be(hello, goOpt, request(1, cmdWrite, 1, 0, 4096), make([]byte, 4096), request(0, cmdDisconnect, 0, 0, 0)))
	f.Add(be(hello, be(uint64(magicOption), uint32(optExportName), uint32(0)), request(0, cmdFlush, 1, 0, 0)))
	f.Add(be(hello, be(uint64(magicOption), uint32(optList), uint32(0)), be(uint64(magicOption), uint32(optInfo), uint32(8), uint32(0), uint16(1), uint16(3))))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewServer(nil, Export{Name: "a", Backend: &syncBackend{}})
		s.serveConn(context.Background(), &pipeConn{r: bytes.NewReader(data)})
	})
}
