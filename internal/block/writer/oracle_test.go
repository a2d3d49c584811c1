package writer

import (
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// oracle knows, per block, the writes in the order of their arrival. A read may
// return write i only if no newer one was acked, or read, before the read began.
type oracle struct {
	blocks  map[int64]*oracleBlock
	value   uint64
	reads   int
	writes  int
	flushes int
	owner   *fakeGuard
	open    map[*Request]*oracleReq
}

type oracleBlock struct {
	hist  []oracleWrite
	low   int // a read may return hist[i] only for i >= low
	floor int // of which this much is flushed
}

type oracleWrite struct{ value uint64 }

type oracleReq struct {
	g     *fakeGuard
	low   map[int64]int // reads: low at the beginning; writes: index; flushes: low
	first int64
}

func (o *oracle) block(b int64) *oracleBlock {
	if o.blocks[b] == nil {
		o.blocks[b] = &oracleBlock{hist: []oracleWrite{{0}}}
	}
	return o.blocks[b]
}

func (o *oracle) epochStart(w *world) {}

func (o *oracle) claimed(w *world, g *fakeGuard) {}

func (o *oracle) serving(w *world, g *fakeGuard) { o.owner = g }

func (o *oracle) gone(w *world, g *fakeGuard) {}

// blocksUsed are the blocks that the guests touch: some neighbours, over two
// extents, which are two segments.
var blocksUsed = []int64{0, 1, 2, 3, 40, 1022, 1023, 1024, 1025, 1060}

// request gives g a random request.
func (o *oracle) request(w *world, g *fakeGuard) {
	r := &Request{}
	q := &oracleReq{g: g, low: map[int64]int{}}
	b := blocksUsed[w.rng.IntN(len(blocksUsed))]
	n := int64(1 + w.rng.IntN(3))
	q.first = b
	r.Offset, r.Length = b*repl.BlockBytes, n*repl.BlockBytes
	switch k := w.rng.IntN(100); {
	case k < 50:
		r.Op, r.FUA = OpWrite, w.rng.IntN(10) == 0
		for range n {
			o.value++
			r.Data = append(r.Data, blockOf(o.value)...)
			r.CRC = append(r.CRC, uint32(o.value))
		}
		first := o.value - uint64(n) + 1
		for i := range n {
			q.low[b+i] = o.add(b+i, first+uint64(i))
		}
	case k < 55:
		r.Op = OpZero
		if w.rng.IntN(2) == 0 {
			r.Op, b, n = OpDiscard, 0, repl.ExtentBlocks
			r.Offset, r.Length = 0, repl.ExtentBytes
		}
		for i := range n {
			if n < 10 || o.blocks[b+i] != nil {
				q.low[b+i] = o.add(b+i, 0)
			}
		}
	case k < 65:
		r.Op, r.Offset, r.Length = OpFlush, 0, 0
		for b, s := range o.blocks {
			q.low[b] = s.low
		}
	default:
		r.Op = OpRead
		for i := range n {
			q.low[b+i] = o.block(b + i).low
		}
	}
	o.open[r] = q
	w.logf("request op %d blocks %d+%d value %d", r.Op, q.first, n, o.value)
	g.step(r)
}

func (o *oracle) add(b int64, value uint64) int {
	s := o.block(b)
	s.hist = append(s.hist, oracleWrite{value})
	return len(s.hist) - 1
}

func (o *oracle) done(w *world, g *fakeGuard, d Completion) {
	r := d.Request
	q := o.open[r]
	delete(o.open, r)
	w.logf("done op %d blocks %d+%d", r.Op, r.Offset/repl.BlockBytes, r.Length/repl.BlockBytes)
	if d.Result != Done {
		w.fail("result %d of op %d at %d", d.Result, r.Op, r.Offset)
		return
	}
	switch r.Op {
	case OpWrite, OpZero, OpDiscard:
		o.writes++
		for b, i := range q.low {
			s := o.block(b)
			s.low = max(s.low, i)
			if r.FUA {
				s.floor = max(s.floor, i)
			}
		}
	case OpFlush:
		o.flushes++
		for b, i := range q.low {
			s := o.block(b)
			s.floor = max(s.floor, i)
		}
	case OpRead:
		o.reads++
		for i := range r.Length / repl.BlockBytes {
			var value uint64
			if r.Data != nil {
				value = stampOf(r.Data[i*repl.BlockBytes:])
			}
			o.readBlock(w, g, q.first+i, q.low[q.first+i], value)
		}
	}
}

func (o *oracle) readBlock(w *world, g *fakeGuard, b int64, low int, value uint64) {
	s := o.block(b)
	for i := len(s.hist) - 1; i >= low; i-- {
		if s.hist[i].value != value {
			continue
		}
		if value != 0 { // zeros are not unique: they prove nothing
			s.low = max(s.low, i)
		}
		return
	}
	for _, n := range w.nodes {
		if v := n.disks[0].vols[w.vol]; v != nil {
			w.logf("disk %s block %+v ext %v durable %v flush %v", n.disks[0].id.String()[30:], v.blocks[b], v.exts[uint64(b/repl.ExtentBlocks)], v.durable, v.flush)
			for _, r := range v.log {
				if r.block <= b && r.block+int64(r.count) > b {
					w.logf("   %v %v %v sync %v", r.kind, r.mark, r.values, r.sync)
				}
			}
		}
	}
	w.logf("hist %v low %d floor %d", s.hist, low, s.floor)
	w.fail("block %d: read %d, but %d was acked or read before (owner %v)", b, value, s.hist[low].value, g == o.owner)
}

// powerLoss: all copies lost power at once; what was not flushed may be gone.
func (o *oracle) powerLoss() {
	for _, s := range o.blocks {
		s.low = s.floor
	}
}

var _ = wire.OK
