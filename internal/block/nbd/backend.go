package nbd

// Op is what a Request asks for.
type Op uint8

// The operations.
const (
	OpRead Op = iota + 1
	OpWrite
	OpZero // Length bytes read as zeros afterwards
	OpTrim // the client does not need the range; the backend makes it read as zeros
	OpFlush
	OpStatus // which ranges are allocated
)

// String returns the name of the operation.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpZero:
		return "zero"
	case OpTrim:
		return "trim"
	case OpFlush:
		return "flush"
	case OpStatus:
		return "status"
	}
	return "unknown"
}

// Flags modify a Request.
type Flags uint8

// The flags.
const (
	FlagFUA    Flags = 1 << iota // OpWrite, OpZero, OpTrim: durable before Done
	FlagNoHole                   // OpZero: keep the space allocated (a wish)
	FlagFast                     // OpZero: answer ErrNotSupported if it is no faster than writing zeros
)

// Span is one answer of OpStatus.
type Span struct {
	Length int64 // bytes, > 0
	Hole   bool  // not allocated; reads as zeros
}

// Request is one command of a client. The server has checked that Offset and
// Length are multiples of BlockBytes and lie inside the export, so a backend
// need not. The backend owns the request from Submit until it calls Done, and
// must not touch it afterwards.
type Request struct {
	Op     Op
	Flags  Flags
	Offset int64 // bytes; 0 for OpFlush
	Length int64 // bytes; 0 for OpFlush, at most MaxPayloadBytes for OpRead and OpWrite

	// Data holds Length bytes. OpWrite: the payload, which nobody changes any
	// more. OpRead: nil; the backend sets it to what it read, in memory of its
	// own or of Alloc.
	Data []byte

	// Keep, set by the backend before Done, says that it (or somebody that it
	// shared Data with) may still read Data: the server then leaves the
	// memory to the garbage collector instead of using it again.
	Keep bool

	// Sums is free for the backend. Its memory is used again as Data's is.
	Sums []uint32

	// Pooled, set by the backend before Done of an OpRead, says that Data is from
	// Pool and nobody else's: it is used again after the reply.
	Pooled bool

	// Zero, set by the backend before Done of an OpRead, says that the whole
	// range reads as zeros; Data is not looked at.
	Zero bool

	// Spans is the answer to OpStatus: they start at Offset, in order, without
	// gaps, and cover at least one block. Longer than Length is cut.
	Spans []Span

	// Tag is free for the backend.
	Tag uint64

	conn    *conn
	handle  uint64
	cmd     uint16
	flags   uint16
	err     error
	buf     *buffer
	weight  int64    // bytes that it counts in conn.bytes
	head    [48]byte // of the answer
	extents []byte   // of the answer to OpStatus
	next    *Request
}

// Alloc sets Data to Length bytes of arbitrary contents, aligned to BlockBytes,
// that are used again after the reply. For OpRead.
func (r *Request) Alloc() []byte {
	r.buf = getBuffer(int(r.Length), nil)
	r.Data = r.buf.data[:r.Length:r.Length]
	return r.Data
}

// Done finishes r: exactly once, from any goroutine, never blocking. An error
// is what the client sees (see ErrNotSupported, ErrNoSpace; any other is EIO):
// a backend that is only stalled does not call Done at all.
func (r *Request) Done(err error) {
	r.err = err
	if r.conn.complete(r) {
		r.conn.signal()
	}
}

// Finish is Done, but the answer is written at the latest when Flush is called.
// A backend that finishes several requests at a time calls it for all, then
// Flush once.
func (r *Request) Finish(err error) Flusher {
	r.err = err
	c := r.conn
	c.complete(r)
	return Flusher{c}
}

// Flusher is the connection of a finished request.
type Flusher struct{ c *conn }

// Flush writes the answers that wait; at once, without a wake-up, if they are
// small and the client reads. It never blocks.
func (f Flusher) Flush() { f.c.flush() }

// Backend is what an export serves. One backend serves all connections of an
// export at once, and a completed OpFlush covers every write replied on any of
// them before: the server announces CAN_MULTI_CONN.
type Backend interface {
	// SizeBytes is the size of the export, a multiple of BlockBytes. It is
	// asked once a connection.
	SizeBytes() int64
	// ReadOnly exports refuse writes with EPERM.
	ReadOnly() bool
	// Submit takes the requests of one read of the socket, in their order. It
	// must not block, keeps no reference to the slice, and answers each request
	// with Done, in any order, perhaps before it returns.
	Submit(rs []*Request)
}
