package volume

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/nbd"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

var (
	_ Opener = Open
	_ Handle = (*Set)(nil)
)

// maxVolumes is what fits one etcd transaction of 128 operations.
const maxVolumes = 32

// core is what the turns drive; *writer.Core in production.
type core interface {
	Step(now clock.Instant, ev writer.Event)
	Tick(now clock.Instant)
	NextDeadline() clock.Instant
	Ready() writer.Ready
	State() writer.State
	Health() writer.Health
}

// Set is a Handle: all volumes of one VM, or one volume of an offline writer.
type Set struct {
	cfg   Config
	log   *slog.Logger
	clock clock.Clock

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine of the set
	events *eventQueue
	vols   []*device

	// inbox is what the next turn has to do. Whoever finds nobody at work takes
	// the turn himself, so a request goes from its socket to the storage nodes
	// without a wake-up; the others leave their work to him.
	mu     sync.Mutex
	inbox  turn
	taken  bool          // somebody has the turn
	load   int           // requests under way lately, in 16ths
	crowd  bool          // the load is above crowd
	closed bool          // there are no turns any more
	idle   *sync.Cond    // with mu: closed, and nobody has the turn
	wake   chan struct{} // the turn is handed to keepTime; capacity 1

	deadline atomic.Int64 // of the lease; 0 = not held
	serving  atomic.Bool
	status   atomic.Pointer[Status]
	known    chan struct{} // closed when the records are known
	failed   error         // set before known is closed, in a turn; nil = records are there

	// The rest is owned by the turn.
	work         turn
	timer        *time.Timer
	now          clock.Instant // as the core was told last, or about to be
	armed        clock.Instant // when timer ends; 0 = it is not set
	disks        *disks        // of this node, read past their storage process
	answered     []nbd.Flusher // clients' connections that have answers to write
	core         core
	recs         repl.Records
	peers        map[ids.ID]*peer
	touched      []*peer // got messages in this turn
	ops          []*op   // by token
	freeOps      []*op
	waiters      []*waiter
	state        writer.State
	reason       string // of the last state
	newState     bool   // nobody who waits for a state was told of it yet
	prepared     Prepared
	claimed      claimState
	lastReplaced writer.Replaced
	replaces     atomic.Uint64
	lastSnapshot writer.Snapshotted
	leaseUp      bool
	checked      clock.Instant // last look for silent peers
	exhausted    bool          // EventExhausted was sent
}

// turn is the work of one turn.
type turn struct {
	events []writer.Event
	reqs   []request
}

// Open reads the records of the volumes, connects to their storage nodes, and
// owns nothing yet. It returns when the records are known. ctx bounds the wait
// only; the set lives until Close.
func Open(ctx context.Context, cfg Config) (Handle, error) {
	s, err := open(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func open(ctx context.Context, cfg Config, c core) (*Set, error) {
	if err := check(&cfg); err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, log: cfg.Log, clock: cfg.Clock, wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour), known: make(chan struct{}),
		peers: map[ids.ID]*peer{}, events: newEventQueue(), core: c}
	if s.core == nil {
		s.core = writer.New(writer.Config{Node: cfg.Node, Run: cfg.Run, Purpose: cfg.Purpose, VM: cfg.VM, Attempt: cfg.Attempt,
			Nonce: cfg.nonce, Volumes: cfg.Volumes, SegmentBytes: cfg.SegmentBytes, GuestAlive: cfg.GuestAlive, Direct: cfg.StorageSocket != "-", Timing: cfg.Timing,
			WallAtZero: time.Now().Unix() - int64(time.Duration(cfg.Clock.Now())/time.Second)})
	}
	for i, v := range cfg.Volumes {
		s.vols = append(s.vols, &device{s: s, id: v, index: i})
	}
	s.disks = newDisks(s)
	s.status.Store(&Status{Phase: PhaseOpen, Run: cfg.Run})
	s.idle = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.wg.Go(s.keepTime)
	s.call(func() {}) // the core's first wishes
	s.wg.Go(func() { s.watchNodes(s.ctx) })
	select {
	case <-s.known:
		if s.failed != nil {
			s.Close()
			return nil, fmt.Errorf("open volumes: %w", s.failed)
		}
		return s, nil
	case <-ctx.Done():
		s.Close()
		return nil, errs.New(errs.Unavailable, "open volumes: etcd does not answer: %w", ctx.Err())
	}
}

func check(cfg *Config) error {
	if n := len(cfg.Volumes); n == 0 || n > maxVolumes {
		return errs.New(errs.Invalid, "open volumes: %d volumes, want 1 to %d", n, maxVolumes)
	}
	seen := slices.Clone(cfg.Volumes)
	slices.SortFunc(seen, ids.ID.Compare)
	if len(slices.Compact(seen)) != len(cfg.Volumes) {
		return errs.New(errs.Invalid, "open volumes: a volume is named twice")
	}
	if cfg.Node.IsZero() || cfg.Guard.IsZero() || cfg.Run.IsZero() || cfg.Purpose == "" {
		return errs.New(errs.Invalid, "open volumes: node, guard, run and purpose are needed")
	}
	cfg.nonce = ids.New()
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.StorageSocket == "" {
		cfg.StorageSocket = paths.StorageSocket
	}
	return nil
}

// post hands events to the core; any goroutine.
func (s *Set) post(ev writer.Event) { s.postAll([]writer.Event{ev}) }

func (s *Set) postAll(evs []writer.Event) {
	s.mu.Lock()
	s.inbox.events = append(s.inbox.events, evs...)
	s.takeTurn(false)
}

// takePatient is takeTurn for a caller who may wait for a disk. mu is held.
func (s *Set) takePatient() {
	for x := s.takeTurn(true); x != nil; {
		if x = s.disks.alone(x); x == nil {
			return
		}
		s.mu.Lock()
		s.inbox.events = append(s.inbox.events, x)
		x = s.takeTurn(true)
	}
}

// call runs f in a turn; any goroutine. f never runs after Close.
func (s *Set) call(f func()) {
	s.mu.Lock()
	// A call keeps its place among the events: what a connection posted before
	// it was lost comes before the loss.
	s.inbox.events = append(s.inbox.events, writer.Event(callEvent{f: f}))
	s.takeTurn(false)
}

// crowd is the load up to which turns are taken at once. Above it is better to
// gather: then the turn is keepTime's, after its wake-up.
const crowd = 2 * 16

func (s *Set) crowded() bool { return s.load > crowd }

// note follows a higher load at once and a lower one slowly.
func (s *Set) note() {
	n := (len(s.ops) - len(s.freeOps)) * 16
	s.load = max(n, s.load-(s.load-n+15)/16)
}

// takeTurn unlocks mu, which is held, and runs the turn if nobody has it. It may
// return a read that a patient caller does.
func (s *Set) takeTurn(patient bool) *directRead {
	mine := !s.taken && !s.closed
	s.taken = s.taken || mine
	if mine && s.crowd {
		mine = false
		s.wake <- struct{}{}
	}
	s.mu.Unlock()
	if mine {
		return s.turns(patient)
	}
	return nil
}

// callEvent carries a function through the queue of events; it never reaches
// the core. The embedded event is nil.
type callEvent struct {
	writer.Event
	f func()
}

// maxTurns bounds how long a goroutine with other duties works for all.
const maxTurns = 64

// turns runs the core until there is nothing to do. The caller has the turn.
func (s *Set) turns(patient bool) (lone *directRead) {
	s.disks.patient = patient
	for range maxTurns {
		s.mu.Lock()
		s.crowd = s.crowded()
		s.work, s.inbox = s.inbox, s.work
		if len(s.work.events) == 0 && len(s.work.reqs) == 0 || s.closed {
			lone, s.disks.lone = s.disks.lone, nil
			s.endTurn()
			s.mu.Unlock()
			return lone
		}
		s.mu.Unlock()
		s.turn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	lone, s.disks.lone = s.disks.lone, nil
	if s.closed {
		s.endTurn()
		return lone
	}
	s.wake <- struct{}{} // keepTime goes on
	return lone
}

// endTurn gives the turn back. mu is held.
func (s *Set) endTurn() {
	s.taken = false
	if s.closed {
		s.idle.Broadcast()
	}
}

// clockEvery is for how many events the time is read once.
const clockEvery = 4

// turn gives the work to the core and does what it wants.
func (s *Set) turn() {
	w := &s.work
	for i, ev := range w.events {
		if i%clockEvery == 0 {
			s.now = s.clock.Now()
		}
		switch ev := ev.(type) {
		case callEvent:
			ev.f()
			s.now = s.clock.Now()
		case *directRead:
			s.stepDirect(ev)
		case *writer.Received:
			s.received(ev)
		default:
			s.step(ev)
		}
	}
	for i, r := range w.reqs {
		if i%clockEvery == 0 {
			s.now = s.clock.Now()
		}
		s.submit(r)
	}
	clear(w.events)
	clear(w.reqs)
	w.events, w.reqs = w.events[:0], w.reqs[:0]
	s.now = s.clock.Now() // always: what an event makes due at once is due a moment after it
	if d := s.core.NextDeadline(); d != 0 && !s.now.Before(d) {
		s.core.Tick(s.now)
	}
	s.act()
	s.housekeeping(s.now)
	s.arm()
}

// housekeepingEvery is the pace of what needs no precision.
const housekeepingEvery = 250 * time.Millisecond

// arm sets the timer if the core wants to be called before it ends. It is not
// set anew at each request: a timer that ends too early costs less.
func (s *Set) arm() {
	next := s.now.Add(housekeepingEvery)
	if at := s.core.NextDeadline(); at != 0 && at < next {
		next = max(at, s.now)
	}
	if s.armed == 0 || next < s.armed {
		s.armed = next
		s.timer.Reset(next.Sub(s.now))
	}
}

// keepTime calls the core when it wants to, until the set is closed.
func (s *Set) keepTime() {
	defer s.timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.closed = true
			select {
			case <-s.wake:
				s.endTurn()
			default:
			}
			return
		case <-s.wake:
			s.turns(false)
		case <-s.timer.C:
			s.call(func() { s.armed = 0 })
		}
	}
}

func (s *Set) step(ev writer.Event) { s.core.Step(s.now, ev) }

// act does what the core wants, until it wants nothing.
func (s *Set) act() {
	for {
		r := s.core.Ready()
		if len(r.Sends) == 0 && len(r.Done) == 0 && len(r.Effects) == 0 && len(r.Reads) == 0 {
			break
		}
		// Effects first: what a copy is told of the records is in the cache already,
		// so that a successor without etcd never knows less than a copy.
		for _, e := range r.Effects {
			s.effect(e)
		}
		if s.newState {
			s.newState = false
			s.notify(onState)
		}
		for _, m := range r.Sends {
			s.send(m)
		}
		for i := range r.Reads {
			s.disks.begin(&r.Reads[i], len(r.Reads) == 1)
		}
		for _, d := range r.Done {
			s.complete(d)
		}
	}
	s.disks.submit()
	s.note()
	for i, p := range s.touched {
		if p.cur != nil {
			p.cur.out.Flush()
		}
		s.touched[i] = nil
	}
	s.touched = s.touched[:0]
	for i, f := range s.answered {
		f.Flush()
		s.answered[i] = nbd.Flusher{}
	}
	s.answered = s.answered[:0]
}

func (s *Set) send(m writer.Send) {
	p := s.peers[m.Node]
	if p == nil || p.cur == nil {
		return
	}
	if p.cur.asked.Load() == 0 {
		p.cur.asked.Store(int64(s.now))
	}
	if err := p.cur.out.Put(m.Msg); err != nil {
		return // the loss of the connection is told by its reader
	}
	if !slices.Contains(s.touched, p) {
		s.touched = append(s.touched, p)
	}
}

// effect performs one of the rarer actions.
func (s *Set) effect(e writer.Effect) {
	switch e := e.(type) {
	case writer.ReadRecords:
		s.wg.Go(func() { s.readRecords(s.ctx) })
	case writer.WantPlaces:
		s.disks.want(e)
	case writer.Commit:
		s.wg.Go(func() { s.runTxn(s.ctx, e) })
	case writer.WantNodes:
		s.want(e.Nodes)
	case writer.LeaseChanged:
		s.leaseChanged(e.Deadline)
	case writer.StateChanged:
		s.stateChanged(e)
	case writer.Prepared:
		s.preparedRound(e)
	case writer.Claimed:
		s.claimKnown(e)
	case writer.Drained:
		s.drained()
	case writer.Replaced:
		s.replaced(e)
	case writer.Snapshotted:
		s.snapshotted(e)
	case writer.Reconnect:
		if p := s.peers[e.Node]; p != nil && p.cur != nil {
			s.log.Info("storage is silent, reconnect", "peer", e.Node)
			p.cur.nc.Close()
		}
	case writer.RecordsKnown:
		s.recordsKnown(e.Records)
	default:
		s.report(e)
	}
}

// want starts and ends peers.
func (s *Set) want(nodes []ids.ID) {
	for id, p := range s.peers {
		if !slices.Contains(nodes, id) {
			p.stop()
			delete(s.peers, id)
		}
	}
	for _, id := range nodes {
		if s.peers[id] != nil {
			continue
		}
		ctx, stop := context.WithCancel(s.ctx)
		p := &peer{s: s, node: id, stop: stop}
		s.peers[id] = p
		s.wg.Go(func() { p.run(ctx) })
	}
}

// recordsRead tells the core what etcd, or the cache, says.
func (s *Set) recordsRead(e writer.RecordsRead) {
	s.keep(e.Records)
	s.step(e)
	s.fail(nil)
}

// recordsKnown: the records as decided, worth a cache.
func (s *Set) recordsKnown(r repl.Records) {
	s.keep(r)
	if s.cfg.Cache != "" {
		s.storeCache(r)
	}
}

func (s *Set) keep(r repl.Records) {
	s.recs = r
	for i, v := range r.Volumes {
		s.vols[i].size.Store(v.Cfg.SizeBytes)
	}
}

// fail ends the wait of Open: with nil when the records are known.
func (s *Set) fail(err error) {
	select {
	case <-s.known:
	default:
		s.failed = err
		close(s.known)
	}
}

// housekeeping looks for silent connections and renews the status.
func (s *Set) housekeeping(now clock.Instant) {
	if now.Sub(s.checked) < housekeepingEvery {
		return
	}
	s.checked = now
	for _, p := range s.peers {
		p.checkSilence(int64(now))
	}
	s.disks.forgetOld()
	s.leaseLapsed(now)
	s.publish()
}

// Close stops everything without release.
func (s *Set) Close() error {
	s.cancel(errs.New(errs.Unavailable, "the set is closed"))
	s.mu.Lock()
	s.closed = true
	for s.taken {
		s.idle.Wait() // a turn starts goroutines
	}
	s.mu.Unlock()
	s.disks.closeAll()
	s.wg.Wait()
	s.events.close()
	return nil
}

// Backend returns the block device of a volume.
func (s *Set) Backend(vol ids.ID) (nbd.Backend, error) {
	for _, d := range s.vols {
		if d.id == vol {
			return d, nil
		}
	}
	return nil, errs.New(errs.NotFound, "serve volume %s: it is not in this set", vol)
}

// Serve answers NBD clients of a volume on l.
func (s *Set) Serve(ctx context.Context, vol ids.ID, l net.Listener) error {
	return s.serveNBD(ctx, vol, 0, l)
}

// ServeSnapshot answers NBD clients with the content of a snapshot.
func (s *Set) ServeSnapshot(ctx context.Context, vol ids.ID, number uint32, l net.Listener) error {
	return s.serveNBD(ctx, vol, number, l)
}

func (s *Set) serveNBD(ctx context.Context, vol ids.ID, snap uint32, l net.Listener) error {
	b, err := s.Backend(vol)
	if err != nil {
		l.Close()
		return err
	}
	if snap != 0 {
		b = &snapDevice{device: b.(*device), snap: snap}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	return nbd.NewServer(s.log, nbd.Export{Name: vol.String(), Backend: b}).Serve(ctx, l)
}
