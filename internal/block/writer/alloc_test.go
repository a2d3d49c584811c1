package writer

import (
	"testing"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// From a client's write to its completion, with the answers of three copies, the
// core makes no garbage.
func TestWriteDoesNotAllocate(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(2e9)
	c, now := g.core, w.now
	c.t.FlushBytes, c.vols[0].windowLimit = 1<<40, 0 // no rounds of flushing
	req := &Request{Op: OpWrite, Length: repl.BlockBytes, Data: blockOf(7), CRC: []uint32{wire.Checksum(blockOf(7))}}
	var acks [3]wire.Ack
	var answers [3]Received
	n := int64(0)
	one := func() {
		n++
		req.Offset = n * 7919 % 1024 * repl.BlockBytes
		c.Step(now, req)
		r := c.Ready()
		if len(r.Sends) != len(acks) {
			t.Fatalf("%d messages for a write, want %d", len(r.Sends), len(acks))
		}
		for i, s := range r.Sends {
			m := s.Msg.(*wire.Write)
			acks[i] = wire.Ack{ReqID: m.ReqID, Mark: m.Mark}
			answers[i] = Received{Node: s.Node, Msg: &acks[i]}
			m.CRC = nil // the request's, as for who sends it
			wire.Recycle(m)
		}
		for i := range answers {
			if len(c.Ready().Done) > 0 {
				t.Fatal("answered too early")
			}
			c.Step(now, &answers[i])
		}
		if r = c.Ready(); len(r.Done) != 1 || r.Done[0].Request != req || r.Done[0].Shared {
			t.Fatalf("completions %v", r.Done)
		}
	}
	for range 100 {
		one()
	}
	if n := testing.AllocsPerRun(1000, one); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}
