package volume

import (
	"bytes"
	"slices"
	"sync/atomic"

	"roseau/internal/base/ids"
	"roseau/internal/block/nbd"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// device is the nbd.Backend of one volume. Requests go to the core in
// batches; they wait in the core until the set serves.
type device struct {
	s     *Set
	id    ids.ID
	index int
	size  atomic.Int64

	reads, readsDirect, writes, flushes, readBytes, writeBytes atomic.Uint64
}

func (d *device) SizeBytes() int64 { return d.size.Load() }
func (d *device) ReadOnly() bool   { return d.s.cfg.ReadOnly }

// snapDevice is a snapshot of a volume: it refuses writes.
type snapDevice struct {
	*device
	snap uint32
}

func (d *snapDevice) ReadOnly() bool           { return true }
func (d *snapDevice) Submit(rs []*nbd.Request) { d.submit(rs, d.snap) }

// op ties a client's request to the core's. Ops are used again.
type op struct {
	w writer.Request
	n *nbd.Request
}

// request is a client's request on its way to the core.
type request struct {
	r    *nbd.Request
	d    *device
	snap uint32 // to be read; 0 = the volume as it is
}

// Submit hands the requests to the core. Checksums of writes are made before,
// outside of the turn: it is the bottleneck.
func (d *device) Submit(rs []*nbd.Request) { d.submit(rs, 0) }

func (d *device) submit(rs []*nbd.Request, snap uint32) {
	for _, r := range rs {
		if r.Op == nbd.OpWrite {
			r.Sums = appendChecksums(r.Sums[:0], r.Data)
		}
	}
	s := d.s
	s.mu.Lock()
	for _, r := range rs {
		s.inbox.reqs = append(s.inbox.reqs, request{r: r, d: d, snap: snap})
	}
	s.takePatient()
}

// appendChecksums appends crc32c of each block.
func appendChecksums(crc []uint32, data []byte) []uint32 {
	for b := 0; b < len(data); b += repl.BlockBytes {
		crc = append(crc, wire.Checksum(data[b:b+repl.BlockBytes]))
	}
	return crc
}

// submit passes a request to the core; in the turn.
func (s *Set) submit(q request) {
	r, d := q.r, q.d
	var o *op
	if n := len(s.freeOps); n > 0 {
		o, s.freeOps = s.freeOps[n-1], s.freeOps[:n-1]
	} else {
		o = &op{}
		o.w.Token = uint64(len(s.ops))
		s.ops = append(s.ops, o)
	}
	o.n = r
	token := o.w.Token
	o.w = writer.Request{Token: token, Volume: d.index, FUA: r.Flags&nbd.FlagFUA != 0, Offset: r.Offset, Length: r.Length}
	switch r.Op {
	case nbd.OpRead:
		o.w.Op, o.w.Snap = writer.OpRead, q.snap
		d.reads.Add(1)
		d.readBytes.Add(uint64(r.Length))
	case nbd.OpStatus:
		// Which blocks are absent is known to the replicas, and a read of absent
		// blocks is cheap: it brings no data. One extent at a time; the client
		// asks again from there.
		o.w.Op, o.w.Snap = writer.OpRead, q.snap
		o.w.Length = min(r.Length, repl.ExtentBytes-r.Offset%repl.ExtentBytes)
	case nbd.OpWrite:
		o.w.Op, o.w.Data, o.w.CRC = writer.OpWrite, r.Data, r.Sums
		d.writes.Add(1)
		d.writeBytes.Add(uint64(r.Length))
	case nbd.OpZero:
		o.w.Op = writer.OpZero
		d.writes.Add(1)
	case nbd.OpTrim:
		o.w.Op = writer.OpDiscard
	case nbd.OpFlush:
		o.w.Op = writer.OpFlush
		d.flushes.Add(1)
	}
	s.step(&o.w)
}

// complete answers a client; in the turn.
func (s *Set) complete(c writer.Completion) {
	o := s.ops[c.Request.Token]
	r := o.n
	r.Keep = c.Shared // a member that is behind may be sent it after the answer
	var err error
	switch c.Result {
	case writer.IOError:
		err = errIO
	case writer.BadRequest:
		err = nbd.ErrNotSupported
	default:
		switch r.Op {
		case nbd.OpRead:
			r.Data = o.w.Data
			r.Zero = r.Data == nil
			r.Pooled = !c.Shared
		case nbd.OpStatus:
			r.Spans = appendSpans(r.Spans, o.w.Data, o.w.Length)
		}
	}
	o.n, o.w.Data, o.w.CRC = nil, nil, nil
	s.freeOps = append(s.freeOps, o)
	if f := r.Finish(err); !slices.Contains(s.answered, f) {
		s.answered = append(s.answered, f)
	}
}

var zeroBlock [repl.BlockBytes]byte

// appendSpans tells which blocks of data read as zeros; nil data: all do.
func appendSpans(spans []nbd.Span, data []byte, length int64) []nbd.Span {
	if data == nil {
		return append(spans, nbd.Span{Length: length, Hole: true})
	}
	for b := int64(0); b < length; b += repl.BlockBytes {
		hole := bytes.Equal(data[b:b+repl.BlockBytes], zeroBlock[:])
		if n := len(spans); n > 0 && spans[n-1].Hole == hole {
			spans[n-1].Length += repl.BlockBytes
		} else {
			spans = append(spans, nbd.Span{Length: repl.BlockBytes, Hole: hole})
		}
	}
	return spans
}
