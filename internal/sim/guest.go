package sim

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// guest is the machine that uses the volume: it issues random requests, keeps
// those that its guard has not answered (the NBD client re-sends them to a
// successor), and dies with its memory when its run ends.
type guest struct {
	w       *world
	t       *tenant
	run     ids.ID
	guard   *guard // that serves it; nil while none does
	alive   bool
	paused  bool
	depth   int
	nextID  uint64
	pending map[uint64]*request
	served  ids.ID // newest run that got an answer
	issuing bool
	pace    time.Duration // a script's: at most one request of its own in so long
	nextAt  clock.Instant
	rests   *rand.Rand // when it asks for nothing for seconds; nil: never
	retired bool       // the verifier has taken over: no request of its own any more
}

// request is one request of the guest, whoever serves it.
type request struct {
	id     uint64
	op     writer.Op
	first  int // block
	count  int
	fua    bool
	value  []value
	handed *writer.Request
	by     *guard
	alone  bool // the guard knew of one copy only when it was handed over
}

func newGuest(t *tenant) *guest {
	m := &guest{w: t.w, t: t, pending: map[uint64]*request{}, depth: 1 + t.dice.IntN(8)}
	if r := rand.New(rand.NewPCG(t.w.opt.Seed, 0x72657374+uint64(t.index))); t.w.opt.Bias == nil && t.w.opt.Scenario == nil && r.IntN(4) == 0 {
		m.rests = r
	}
	return m
}

// rest has the guest ask for nothing for seconds, now and then: so what lasts only
// as long as no write comes has its time, too.
func (m *guest) rest() {
	const requests, most = 100, 4 * time.Second
	if m.rests == nil || m.w.calm || m.w.now < m.nextAt || m.rests.IntN(requests) > 0 {
		return
	}
	m.w.note("guest_rests")
	m.nextAt = m.w.now.Add(time.Second + time.Duration(m.rests.Int64N(int64(most))))
	m.w.after(m.nextAt.Sub(m.w.now), m.issue)
}

// boot starts a new run, served by g once it serves.
func (m *guest) boot(g *guard) {
	m.t.onlyOneRuns(g)
	m.die()
	m.run, m.guard, m.alive, m.paused = g.run, g, true, false
	g.booted = true
	m.t.oracle.alive = true
	m.issue()
}

// attach gives a living guest to the guard's successor: what was not answered
// is sent again.
func (m *guest) attach(g *guard) {
	m.guard, m.paused = g, false
	for _, id := range sortedKeys(m.pending) {
		m.hand(m.pending[id])
	}
	m.issue()
}

// die ends the run: its memory is gone, unanswered requests with it.
func (m *guest) die() {
	if !m.alive {
		return
	}
	m.alive = false
	defer m.t.oracle.guestDied()
	for _, id := range sortedKeys(m.pending) {
		switch r := m.pending[id]; r.op {
		case writer.OpRead:
			m.t.oracle.forgetRead(id)
		case writer.OpFlush:
			m.t.oracle.forgetFlush(id)
		default:
			m.t.oracle.forgetWrites([]uint64{id})
			_ = r
		}
	}
	m.pending = map[uint64]*request{}
	m.guard = nil
}

// guardEnded: the guard was fenced, or says that the guest's memory is invalid.
func (m *guest) guardEnded(g *guard) {
	if m.guard == g && !m.t.manager.adoptable(g) {
		m.die()
	}
}

// issue keeps the queue filled.
func (m *guest) issue() {
	if m.issuing || m.retired {
		return
	}
	m.issuing = true
	defer func() { m.issuing = false }()
	for m.alive && !m.paused && m.guard != nil && !m.guard.ended() && len(m.pending) < m.depth {
		if m.w.calm && m.w.ops >= m.w.opt.Ops || m.w.now < m.nextAt {
			return
		}
		if m.pace > 0 {
			m.nextAt = m.w.now.Add(m.pace)
			m.w.after(m.pace, m.issue)
		}
		r := m.draw()
		m.pending[r.id] = r
		m.w.ops++
		m.hand(r)
	}
}

// put issues one request.
func (m *guest) put(op writer.Op, first, count int, fua bool) *request {
	m.nextID++
	r := &request{id: m.nextID, op: op, first: first, count: count, fua: fua}
	m.record(r)
	m.pending[r.id] = r
	m.w.ops++
	m.hand(r)
	return r
}

func (m *guest) draw() *request {
	t := m.t
	m.nextID++
	r := &request{id: m.nextID, first: t.hot[t.dice.IntN(len(t.hot))], count: 1 + t.dice.IntN(4)}
	r.count = min(r.count, volumeBlocks-r.first)
	switch p := t.dice.IntN(100); {
	case p < 45:
		r.op, r.fua = writer.OpWrite, t.dice.Float64() < 0.1
	case p < 75:
		r.op = writer.OpRead
	case p < 90:
		r.op = writer.OpFlush
	case p < 95:
		r.op = writer.OpZero
	case p < 98:
		r.op = writer.OpDiscard
	default: // a whole extent
		r.op, r.first, r.count = writer.OpDiscard, t.dice.IntN(extentCount)*repl.ExtentBlocks, repl.ExtentBlocks
	}
	m.record(r)
	return r
}

// record tells the oracle of a request.
func (m *guest) record(r *request) {
	t := m.t
	switch r.op {
	case writer.OpRead:
		t.oracle.issueRead(r.id, r.first, r.count)
	case writer.OpFlush:
		t.oracle.issueFlush(r.id)
	default:
		for range r.count {
			v := value(0)
			if r.op == writer.OpWrite {
				v = value(r.id)
			}
			r.value = append(r.value, v)
		}
		t.oracle.issueWrite(r.id, r.first, r.value, r.fua)
	}
}

// hand passes a request to the guard that serves.
func (m *guest) hand(r *request) {
	wr := &writer.Request{Token: r.id, Op: r.op, FUA: r.fua}
	if r.op != writer.OpFlush {
		wr.Offset, wr.Length = int64(r.first)*repl.BlockBytes, int64(r.count)*repl.BlockBytes
	}
	switch r.op {
	case writer.OpWrite:
		wr.Data = make([]byte, wr.Length)
		for i := range r.count {
			b := wr.Data[i*repl.BlockBytes:][:repl.BlockBytes]
			encodeValue(b, r.value[i], r.first+i)
			wr.CRC = append(wr.CRC, crc32.Checksum(b, castagnoli))
		}
	case writer.OpRead:
		wr.Data = make([]byte, wr.Length)
	}
	r.handed, r.by, r.alone = wr, m.guard, m.guard.aloneFor(r)
	m.t.tell("guest: request %d op %d blocks %d+%d fua=%v", r.id, r.op, r.first, r.count, r.fua)
	m.guard.step(wr)
}

// completed is called by guards; answers of a guard that does not serve the
// guest any more are of no consequence, but must not come from an old run.
func (m *guest) completed(g *guard, c writer.Completion) {
	r := m.pending[c.Request.Token]
	if r == nil || r.handed != c.Request || m.guard != g || !m.alive {
		return
	}
	delete(m.pending, r.id)
	m.t.tell("guest: request %d done, result %d", r.id, c.Result)
	if c.Result == writer.IOError && r.op == writer.OpRead && m.t.rottenAlone(r) {
		m.w.note("io_error_of_last_copy")
		m.t.oracle.forgetRead(r.id)
		m.w.after(0, m.issue)
		return
	}
	if c.Result != writer.Done {
		m.w.failf("request %d (op %d, blocks %d+%d) ended with result %d", r.id, r.op, r.first, r.count, c.Result)
		return
	}
	m.served = m.run
	if r.op != writer.OpRead && g.hasKnown && g.shortFor(r) {
		m.w.failf("request %d (op %d, blocks %d+%d) was answered with fewer in-sync copies than min_isr", r.id, r.op, r.first, r.count)
		return
	}
	switch r.op {
	case writer.OpRead:
		got, err := decodeValues(c.Request.Data, r.first, r.count)
		if err == nil {
			err = m.t.oracle.ackRead(r.id, got)
		}
		if err != nil {
			m.w.failf("%s: %v", g.name(), err)
			return
		}
	case writer.OpFlush:
		m.t.oracle.ackFlush(r.id)
	default:
		if r.alone && g.aloneFor(r) {
			m.t.oracle.writes[r.id].fua = true // C7
		}
		m.t.oracle.ackWrite(r.id)
		for b := r.first; b < r.first+r.count; b++ {
			delete(m.t.givenUp, b)
		}
	}
	m.rest()
	m.w.after(m.t.pause(0, m.w.profile.think), m.issue)
}

// encodeValue fills a block so that each of its sectors names the value and the
// place: a torn or misplaced block does not decode.
func encodeValue(b []byte, v value, block int) {
	if v == 0 {
		return
	}
	for s := 0; s < len(b); s += 512 {
		binary.LittleEndian.PutUint64(b[s:], uint64(v))
		binary.LittleEndian.PutUint64(b[s+8:], uint64(block)+1)
	}
}

type tornError struct{ block int }

func (e tornError) Error() string { return "a block read is torn, or not what was written there" }

func decodeValues(data []byte, first, count int) ([]value, error) {
	out := make([]value, count)
	if data == nil {
		return out, nil
	}
	for i := range count {
		b := data[i*repl.BlockBytes:][:repl.BlockBytes]
		v, at := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		for s := 0; s < len(b); s += 512 {
			if binary.LittleEndian.Uint64(b[s:]) != v || binary.LittleEndian.Uint64(b[s+8:]) != at {
				return nil, tornError{first + i}
			}
		}
		if v != 0 && at != uint64(first+i)+1 || v == 0 && at != 0 {
			return nil, tornError{first + i}
		}
		out[i] = value(v)
	}
	return out, nil
}

const thinkMost = 20 * time.Millisecond
