package volume

import (
	"encoding/binary"
	"io"
	"net"
	"testing"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/link"
	"roseau/internal/block/link/linktest"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// writeCore sends each write to three nodes and completes it with the third answer,
// as the real one does when all is well.
type writeCore struct {
	stubCore
	nodes   [3]ids.ID
	req     *writer.Request
	answers int
}

func (c *writeCore) Step(_ clock.Instant, ev writer.Event) {
	switch ev := ev.(type) {
	case *writer.Request:
		c.req, c.answers = ev, 0
		for i, n := range c.nodes {
			m := wire.NewWrite()
			*m = c.write(i, ev)
			c.out.Sends = append(c.out.Sends, writer.Send{Node: n, Msg: m})
		}
	case *writer.Received:
		if _, ok := ev.Msg.(*wire.Ack); !ok {
			panic("not an answer to a write")
		}
		if c.answers++; c.answers == len(c.nodes) {
			c.out.Done = append(c.out.Done, writer.Completion{Request: c.req})
		}
	}
}

// write is what the core sends to its node i.
func (c *writeCore) write(i int, r *writer.Request) wire.Write {
	return wire.Write{ReqID: uint64(i), Handle: 1, Mark: repl.Mark{Epoch: 1, Wseq: 1}, Offset: r.Offset, CRC: r.CRC, Data: r.Data}
}

// answerWrites is a storage node that answers each write of one block with ack.
func answerWrites(nc net.Conn, writeBytes int, ack []byte) {
	buf := make([]byte, writeBytes)
	for {
		if _, err := io.ReadFull(nc, buf); err != nil {
			return
		}
		if _, err := nc.Write(ack); err != nil {
			return
		}
	}
}

// From the client's write over three storage nodes to its answer nothing is
// allocated: by the client's connection, the turns, the links and the decoders.
func TestWriteDoesNotAllocate(t *testing.T) {
	c := &writeCore{}
	s, d := coreSet(c)
	for i := range c.nodes {
		near, far := linktest.Pair(t)
		raw := link.NewRaw(near)
		l := &connection{nc: raw, out: link.NewSender(raw, raw, nil)}
		dec := wire.NewDecoder(raw, wire.Heap{})
		dec.SetVersion(wire.ProtocolVersion)
		c.nodes[i] = ids.New()
		p := &peer{s: s, node: c.nodes[i], cur: l, stop: func() {}}
		s.call(func() { s.peers[p.node] = p })
		w := c.write(i, &writer.Request{CRC: []uint32{1}, Data: make([]byte, repl.BlockBytes)})
		head, data, err := wire.Append(nil, &w)
		if err != nil {
			t.Fatal(err)
		}
		ack, _, err := wire.Append(nil, &wire.Ack{ReqID: w.ReqID, Mark: w.Mark})
		if err != nil {
			t.Fatal(err)
		}
		go answerWrites(far, len(head)+len(data), ack)
		go p.receive(l, dec)
	}
	client := serveClient(t, s, d)
	req := append(nbdRequest(1, 5, 1), make([]byte, repl.BlockBytes)...)
	ans := make([]byte, 16)
	one := func() {
		client.Write(req)
		io.ReadFull(client, ans)
	}
	for range 300 {
		one()
	}
	n := testing.AllocsPerRun(500, one)
	if binary.BigEndian.Uint32(ans) != 0x67446698 || binary.BigEndian.Uint32(ans[4:]) != 0 {
		t.Fatalf("answer %x", ans)
	}
	if n != 0 { // the average is rounded down: the collector may empty a pool
		t.Errorf("%v allocations a write", n)
	}
}
