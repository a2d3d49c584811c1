package storage

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/disk"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
)

// event is something for the core. Exactly one of the kinds is set.
type event struct {
	conn   replica.Conn
	msg    wire.Message // from conn
	closed bool         // conn is gone

	disk  *device // an action ended
	io    uint64
	later bool // it was of a checkpoint
	err   error

	tick bool   // time has passed
	call func() // runs in the turn
}

// queue is the way to the core: many writers. Whoever finds nobody at work takes
// a turn himself, so a request goes from its socket to the disk without a
// wake-up; the others leave their events to him. When many requests are under
// way it is better to gather: then the turn is keepTime's, after its wake-up.
type queue struct {
	mu     sync.Mutex
	events []event
	taken  bool // somebody has the turn
	closed bool
	crowd  bool          // many requests are under way: a turn of keepTime gathers more
	wake   chan struct{} // the turn is handed to keepTime; capacity 1
	over   chan struct{} // closed with the queue
}

// take swaps the gathered events for p.batch, and returns how many there are. If
// there are none and last is set the turn is over: nothing of it may be touched.
func (p *process) take(last bool) int {
	clear(p.batch)
	crowd := p.load.crowded()
	q := &p.q
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events, p.batch = p.batch[:0], q.events
	q.crowd = crowd
	if len(p.batch) == 0 && last {
		q.taken = false
		return 0
	}
	return len(p.batch)
}

// push gives events to the core and returns whether the caller ran the turn.
// reader is the connection whose reader it is, if it is one that brings a single
// message: it may find an action in reader.alone afterwards.
func (p *process) push(reader *conn, es ...event) bool {
	q := &p.q
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	q.events = append(q.events, es...)
	mine := !q.taken
	q.taken = true
	if mine && q.crowd {
		mine = false
		q.wake <- struct{}{}
	}
	q.mu.Unlock()
	if mine {
		p.turns(reader)
	}
	return mine
}

// ended takes the result of a disk's action.
func (p *process) ended(d *device, io *disk.IO, err error) {
	p.push(nil, event{disk: d, io: io.ID, later: io.Later, err: err})
}

// load is how many requests have been under way lately, in 16ths: it follows
// more at once and fewer slowly.
type load int

// crowd is the load up to which turns are taken at once.
const crowd = 2 * 16

func (l *load) note(n int) {
	now := load(n * 16)
	*l = max(now, *l-(*l-now+15)/16)
}

func (l load) crowded() bool { return l > crowd }

const (
	// drainRounds bounds how long senders wait under constant load.
	drainRounds = 4
	// maxTurns bounds how long a goroutine with other duties works for all.
	maxTurns = 64
)

// turns runs the core until there is nothing to do. The caller has the turn.
func (p *process) turns(reader *conn) {
	for n := 0; ; n++ {
		if n == maxTurns {
			p.q.wake <- struct{}{} // keepTime goes on
			return
		}
		// Go on for a while as long as something has come meanwhile: its answers
		// join the batches that are sent together.
		for round := range drainRounds {
			got := p.take(round == 0)
			if got == 0 && round == 0 {
				return
			}
			if got == 0 {
				break
			}
			if got > 1 {
				reader = nil
			}
			p.round(reader)
			reader = nil
		}
		for i, c := range p.dirty {
			c.out.Flush()
			p.dirty[i], c.dirty = nil, false
		}
		p.dirty = p.dirty[:0]
		p.arm()
	}
}

// round gives the batch to the core and does what it wants.
func (p *process) round(reader *conn) {
	now := p.o.Clock.Now()
	for i := range p.batch {
		p.handle(now, &p.batch[i])
	}
	if now >= p.core.Next() {
		p.core.Tick(now)
	}
	p.core.Ready(now, &p.ready)
	p.load.note(p.core.Outstanding())
	p.dispatch(&p.ready, reader)
}

// arm sets the timer if the core wants to be called before it ends. It is not
// set anew at each request: a timer that ends too early costs less.
func (p *process) arm() {
	next := p.core.Next()
	if p.armed != 0 && next >= p.armed {
		return
	}
	p.armed = next
	p.timer.Reset(max(next.Sub(p.o.Clock.Now()), time.Millisecond))
}

// keepTime calls the core when it wants to, until ctx ends.
func (p *process) keepTime(ctx context.Context) {
	defer p.timer.Stop()
	for {
		select {
		case <-p.q.wake:
			p.turns(nil)
		case <-p.timer.C:
			p.push(nil, event{tick: true})
		case <-ctx.Done():
			p.push(nil, event{call: p.endTurns})
			for {
				select {
				case <-p.q.wake:
					p.turns(nil)
				case <-p.q.over:
					return
				}
			}
		}
	}
}

// endTurns: nothing is given to the core any more.
func (p *process) endTurns() {
	for _, c := range p.conns {
		c.close()
	}
	p.q.mu.Lock()
	p.q.closed, p.q.events = true, nil
	p.q.mu.Unlock()
	close(p.q.over)
}

func (p *process) handle(now clock.Instant, e *event) {
	switch {
	case e.msg != nil:
		p.core.Received(now, e.conn, e.msg)
	case e.closed:
		p.core.ConnClosed(e.conn)
		delete(p.conns, e.conn)
	case e.disk != nil:
		e.disk.inflight--
		if e.later {
			e.disk.laterOut--
			p.refill(e.disk)
		}
		if e.disk.core != nil && p.device(e.disk.id) == e.disk { // not a former opening's
			p.core.DiskDone(e.disk.id, e.io, e.err)
		}
	case e.tick:
		p.armed = 0
	case e.call != nil:
		e.call()
	}
}

// dispatch does what the core wants. reader, if not nil, runs the turn for one
// message alone.
func (p *process) dispatch(r *replica.Ready, reader *conn) {
	for i := range r.IO {
		d := p.device(r.IO[i].Disk)
		if d == nil {
			continue
		}
		d.inflight++
		if reader != nil && len(r.IO) == 1 && !r.IO[i].IO.Later && d.inflight-len(d.later)-d.laterOut == 1 && p.othersIdle(d) {
			reader.alone.dev, reader.alone.io = d, r.IO[i].IO
			continue
		}
		d.start(r.IO[i].IO)
		if i+1 == len(r.IO) || r.IO[i+1].Disk != r.IO[i].Disk {
			p.refill(d)
		}
	}
	for i, d := range p.working {
		d.submit()
		p.working[i] = nil
	}
	p.working = p.working[:0]
	for i := range r.Sends {
		c := p.conns[r.Sends[i].Conn]
		if c == nil {
			if m, ok := r.Sends[i].Msg.(*wire.ReadReply); ok {
				p.pool.Free(m.Data)
			}
			continue
		}
		if err := c.out.Put(r.Sends[i].Msg); err != nil {
			c.log.Debug("answer dropped", "err", err)
		}
		if !c.dirty {
			c.dirty = true
			p.dirty = append(p.dirty, c)
		}
	}
	for _, cl := range r.Closes {
		if c := p.conns[cl.Conn]; c != nil {
			c.log.Warn("close connection", "err", cl.Why)
			c.out.Flush()
			time.AfterFunc(lastAnswer, c.close)
		}
	}
	for _, e := range r.Events {
		p.event(e)
	}
}

// othersIdle reports whether no other disk than d has actions under way. Else the
// reader's thread may be one that put them into its ring: see workers.run.
func (p *process) othersIdle(d *device) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.disks {
		if o != d && o.inflight > len(o.later) {
			return false
		}
	}
	return true
}

// refill lets d begin at the end of the turn what it has put off.
func (p *process) refill(d *device) {
	if !slices.Contains(p.working, d) {
		p.working = append(p.working, d)
	}
}

// inTurn runs f in a turn and waits for it.
func (p *process) inTurn(ctx context.Context, f func()) error {
	done := make(chan struct{})
	p.push(nil, event{call: func() { f(); close(done) }})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takenOver as conn.busy: see there.
const takenOver = -1

// assistants are the readers that do disk I/O by themselves: a message that came
// alone to an idle disk is not worth a worker's wake-up. A disk that hangs would
// hold up the heartbeats of the connection; so a reader that does not come back
// soon is relieved.
type assistants struct {
	last  atomic.Int64 // number of the newest action
	awake atomic.Bool  // relieve looks at the readers
	wake  chan struct{}
	mu    sync.Mutex
	conns map[*conn]struct{}
}

func (a *assistants) add(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns == nil {
		a.conns = map[*conn]struct{}{}
	}
	a.conns[c] = struct{}{}
}

func (a *assistants) remove(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
}

// perform does the action that a turn has left to the reader of c, and those
// that follow from it. false: another reader has taken over meanwhile.
func (p *process) perform(c *conn) bool {
	for c.alone.dev != nil {
		d, io := c.alone.dev, c.alone.io
		c.alone.dev = nil
		n := p.assist.last.Add(1)
		c.busy.Store(n)
		if !p.assist.awake.Load() && !p.assist.awake.Swap(true) {
			p.assist.wake <- struct{}{}
		}
		err := perform(d.file, io)
		if !c.busy.CompareAndSwap(n, 0) {
			p.ended(d, &io, err)
			return false
		}
		if !p.push(c, event{disk: d, io: io.ID, later: io.Later, err: err}) {
			return true
		}
	}
	return true
}

const (
	relieveEvery = 4 * time.Millisecond // a reader is away for at most twice as long
	relieveIdle  = 50                   // looks without any action until it rests
)

// relieve puts another reader in the place of each one that stays away.
func (p *process) relieve(ctx context.Context) {
	a := &p.assist
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			return
		}
		last := int64(0)
		for idle := 0; idle < relieveIdle || a.sleep(last); idle++ {
			if clock.Sleep(ctx, relieveEvery) != nil {
				return
			}
			n := a.last.Load()
			if p.lookAround() || n != last {
				last, idle = n, 0
			}
		}
	}
}

// sleep says that nobody looks any more; false: nothing has happened since last.
func (a *assistants) sleep(last int64) (goOn bool) {
	a.awake.Store(false)
	return a.last.Load() != last && !a.awake.Swap(true)
}

// lookAround relieves the readers that are still at the action which the last look
// saw, and returns whether any is at one.
func (p *process) lookAround() (any bool) {
	a := &p.assist
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		n := c.busy.Load()
		if n <= 0 {
			continue
		}
		any = true
		if c.looked == n && c.busy.CompareAndSwap(n, takenOver) {
			p.spawn(func() {
				c.busy.Store(0)
				p.readUntilEnd(c)
			})
		}
		c.looked = n
	}
	return any
}
