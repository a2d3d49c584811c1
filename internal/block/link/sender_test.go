package link

import (
	"io"
	"net"
	"testing"
	"time"

	"roseau/internal/block/link/linktest"
	"roseau/internal/block/wire"
)

func decoder(c net.Conn) *wire.Decoder {
	d := wire.NewDecoder(c, wire.Heap{})
	d.SetVersion(wire.ProtocolVersion)
	return d
}

func ack(n uint64) *wire.Ack {
	a := wire.NewAck()
	a.ReqID = n
	return a
}

// Without anybody in Run a small message is sent all the same.
func TestFlushSendsAtOnce(t *testing.T) {
	a, b := linktest.Pair(t)
	raw := NewRaw(a)
	s := NewSender(raw, raw, nil)
	for i := range uint64(3) {
		if err := s.Put(ack(i)); err != nil {
			t.Fatal(err)
		}
	}
	s.Flush()
	d := decoder(b)
	for i := range uint64(3) {
		if m, err := d.Next(); err != nil || m.(*wire.Ack).ReqID != i {
			t.Fatal(i, m, err)
		}
	}
}

func TestFlushAllocatesNothing(t *testing.T) {
	a, b := linktest.Pair(t)
	go io.Copy(io.Discard, b)
	raw := NewRaw(a)
	s := NewSender(raw, raw, nil)
	data, crc := make([]byte, 4096), []uint32{1}
	var m wire.Write
	send := func() {
		m = wire.Write{ReqID: 1, CRC: crc, Data: data}
		s.mu.Lock()
		err := s.tail().batch.Add(&m)
		s.bytes = s.queue[0].batch.Len()
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		s.Flush()
		for s.busy { // the kernel's buffer was full
			if done, err := raw.TryFlush(); err != nil {
				t.Fatal(err)
			} else if done {
				s.busy = false
			}
		}
	}
	send()
	if n := testing.AllocsPerRun(200, send); n >= 1 {
		t.Errorf("%v allocations a write", n)
	}
}

// A peer that does not read blocks neither Put nor Flush, and loses nothing:
// everything arrives in order once it reads, heartbeats before what waits.
func TestSlowPeer(t *testing.T) {
	a, b := linktest.Pair(t)
	raw := NewRaw(a)
	freed := 0
	s := NewSender(raw, raw, func([]byte) { freed++ })
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	const n, size = 64, 256 << 10
	for i := range uint64(n) {
		if err := s.Put(&wire.ReadReply{ReqID: i, Data: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
		s.Flush()
	}
	if err := s.Put(&wire.HeartbeatAck{SendTime: 1}); err != nil {
		t.Fatal(err)
	}
	s.Flush()
	d := decoder(b)
	next, beatAt := uint64(0), uint64(0)
	for next < n || beatAt == 0 {
		b.SetReadDeadline(time.Now().Add(10 * time.Second))
		m, err := d.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *wire.HeartbeatAck:
			beatAt = next + 1
		case *wire.ReadReply:
			if m.ReqID != next || len(m.Data) != size {
				t.Fatalf("reply %d of %d bytes, want %d", m.ReqID, len(m.Data), next)
			}
			next++
		}
	}
	if beatAt > n/2 {
		t.Errorf("the heartbeat came after %d of %d replies", beatAt-1, n)
	}
	s.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if freed != n {
		t.Errorf("%d of %d buffers given back", freed, n)
	}
	if err := s.Put(ack(1)); err != ErrClosed {
		t.Errorf("put after close: %v", err)
	}
}

// What is queued when the connection breaks is given back, once.
func TestBrokenConnection(t *testing.T) {
	a, b := linktest.Pair(t)
	raw := NewRaw(a)
	freed := 0
	s := NewSender(raw, raw, func([]byte) { freed++ })
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	b.Close()
	n := 0
	for s.Put(&wire.ReadReply{ReqID: 1, Data: make([]byte, 128<<10)}) == nil {
		n++
		s.Flush()
	}
	if err := <-ended; err == nil {
		t.Error("Run says nothing of the broken connection")
	}
	s.Close()
	if freed != n+1 {
		t.Errorf("%d of %d buffers given back", freed, n+1)
	}
}
