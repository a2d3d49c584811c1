package link

import (
	"errors"
	"net"
	"sync"

	"roseau/internal/block/wire"
)

const (
	// inlineBytes is how much Flush writes by itself: more costs more time than a
	// wake-up, and the caller may hold up others.
	inlineBytes = 64 << 10
	// batchBytes bounds what stands before a heartbeat in one write: with one
	// message more, 8 ms at 1 Gbit/s.
	batchBytes = 256 << 10
)

// ErrClosed is returned by Put after Close or a failed write.
var ErrClosed = errors.New("connection is closed")

// Sender is the writing half of a connection. Put, Flush and Close may be called
// from several goroutines, the order of messages is that of Put.
type Sender struct {
	nc   net.Conn // TLS over raw, or raw itself
	raw  *Raw
	tls  bool
	free func([]byte)

	mu     sync.Mutex
	urgent *outgoing   // heartbeats and their answers
	queue  []*outgoing // the rest, in order
	bytes  int         // of both
	spare  []*outgoing
	closed bool
	err    error
	busy   bool          // Run writes, or has been told to
	wake   chan struct{} // capacity 1
	flat   []byte
}

// outgoing is what one write takes.
type outgoing struct {
	batch wire.Batch
	data  [][]byte // block data to give back when it is written
}

// NewSender returns a sender to nc, which is raw itself or TLS over it; then raw
// gathers from here on. free gets the block data of each ReadReply back once it
// is written or dropped; nil: nothing.
func NewSender(nc net.Conn, raw *Raw, free func([]byte)) *Sender {
	s := &Sender{nc: nc, raw: raw, free: free, urgent: new(outgoing), wake: make(chan struct{}, 1)}
	s.tls = nc != net.Conn(raw)
	raw.Gather()
	return s
}

// Put queues m, and owns it from now on. Block data of other messages than
// ReadReply must stay unchanged until it is written.
func (s *Sender) Put(m wire.Message) error {
	r, isReply := m.(*wire.ReadReply)
	s.mu.Lock()
	o, err := s.urgent, error(nil)
	switch m.(type) {
	case *wire.Heartbeat, *wire.HeartbeatAck:
	default:
		o = s.tail()
	}
	if s.closed {
		err = ErrClosed
	} else {
		before := o.batch.Len()
		err = o.batch.Add(m)
		s.bytes += o.batch.Len() - before
	}
	if isReply && r.Data != nil && s.free != nil {
		if err != nil {
			s.free(r.Data)
		} else {
			o.data = append(o.data, r.Data)
		}
	}
	s.mu.Unlock()
	if w, ok := m.(*wire.Write); ok {
		w.CRC = nil // the request's
	}
	wire.Recycle(m)
	return err
}

// tail is the batch that the next message goes to.
func (s *Sender) tail() *outgoing {
	if n := len(s.queue); n > 0 && s.queue[n-1].batch.Len() < batchBytes {
		return s.queue[n-1]
	}
	o := s.take()
	s.queue = append(s.queue, o)
	return o
}

func (s *Sender) take() *outgoing {
	if n := len(s.spare); n > 0 {
		o := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return o
	}
	return new(outgoing)
}

// Flush sends what was put. It never blocks.
func (s *Sender) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy || s.closed || s.bytes == 0 {
		return
	}
	s.busy = true
	if s.bytes > inlineBytes {
		s.signal()
		return
	}
	s.flat = s.flat[:0]
	for o := s.next(); o != nil; o = s.next() {
		s.flat = o.batch.AppendTo(s.flat)
		s.done(o)
	}
	// The lock is kept: nothing here waits for the peer.
	_, err := s.nc.Write(s.flat)
	sent := false
	if err == nil {
		sent, err = s.raw.TryFlush()
	}
	s.err = err
	if s.busy = !sent; s.busy {
		s.signal()
	}
}

// next takes what is to be written next, nil if there is nothing.
func (s *Sender) next() *outgoing {
	var o *outgoing
	if s.urgent.batch.Len() > 0 {
		o, s.urgent = s.urgent, s.take()
	} else if len(s.queue) > 0 {
		o = s.queue[0]
		s.queue = append(s.queue[:0], s.queue[1:]...)
		s.queue[:cap(s.queue)][len(s.queue)] = nil
	} else {
		return nil
	}
	s.bytes -= o.batch.Len()
	return o
}

// done takes back what was written, or is dropped.
func (s *Sender) done(o *outgoing) {
	for i, b := range o.data {
		s.free(b)
		o.data[i] = nil
	}
	o.data = o.data[:0]
	o.batch.Reset()
	if len(s.spare) < 4 {
		s.spare = append(s.spare, o)
	}
}

func (s *Sender) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes what Flush leaves to it until Close (nil) or until a write fails.
// Close the connection then; nothing is sent any more.
func (s *Sender) Run() error {
	for range s.wake {
		s.mu.Lock()
		for s.busy && !s.closed && s.err == nil {
			o := s.next()
			s.mu.Unlock()
			err := s.write(o)
			s.mu.Lock()
			if o == nil {
				s.busy = s.bytes > 0
			} else {
				s.done(o)
			}
			s.err = err
		}
		if s.closed || s.err != nil {
			err := s.err
			if s.closed {
				err = nil
			}
			s.drop()
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
	}
	return nil
}

// write writes o, or with nil what an unfinished Flush left.
func (s *Sender) write(o *outgoing) error {
	if err := s.raw.Flush(); err != nil || o == nil {
		return err
	}
	if !s.tls {
		return s.raw.WriteBuffers(o.batch.Buffers())
	}
	for _, b := range *o.batch.Buffers() {
		if _, err := s.nc.Write(b); err != nil {
			return err
		}
	}
	return s.raw.Flush()
}

// Close drops what is not written and ends Run. It does not close the
// connection. It may be called more than once.
func (s *Sender) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.drop()
	}
	s.mu.Unlock()
	s.signal()
}

// drop gives back what is queued; nothing is added any more.
func (s *Sender) drop() {
	s.closed = true
	for o := s.next(); o != nil; o = s.next() {
		s.done(o)
	}
}
