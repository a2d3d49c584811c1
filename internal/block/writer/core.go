package writer

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Core is the writer of one group of volumes. Not safe for concurrent use.
type Core struct {
	cfg Config
	t   Timing
	mut Mutations
	now clock.Instant

	out   Ready // being filled
	spare Ready // returned last; its memory is used again

	state      State
	since      clock.Instant // of state
	pace       pace          // of resyncs beside the guest
	graceUntil clock.Instant // after a pause of our own, nobody is judged by the clock

	recs     repl.Records
	haveRecs bool
	cached   bool // recs come from this node's memory, not from etcd
	reading  bool // a ReadRecords is unanswered

	nodes  []*node // sorted by ID
	vols   []*volume
	alive  []ids.ID // sorted
	broken []ids.ID // nodes whose storage process is dead, as they say; sorted

	slots    []slot
	freeSlot []uint32
	opPool   *op
	freeExts []*extent

	prep   prepare
	claim  claim
	reopen reopen
	snap   *snapJob
	hedge  hedging

	lastTxn     uint64
	placeSerial uint64
	reply       wire.ReadReply // of a direct read, while it is handed on
	reqSeq      uint64

	active       requestList // received and begun, by arrival
	drainTo      uint64      // a drain waits for requests up to this sequence
	draining     bool
	drainFlushed bool // the flush that ends the drain was asked for

	lease      clock.Instant // told last
	moveWanted bool
	moveNever  bool // MoveRefused
	doubtTold  bool // see tellDoubt

	wake bool // evaluate again before returning
}

// New returns a core that owns nothing. Its first effect is ReadRecords.
func New(cfg Config) *Core {
	c := &Core{cfg: cfg, t: cfg.Timing.withDefaults(), mut: cfg.Mutations}
	if c.cfg.SegmentBytes == 0 {
		c.cfg.SegmentBytes = repl.SegmentBytes
	}
	c.slots = append(c.slots, slot{}) // request id 0 means none
	for i, id := range cfg.Volumes {
		c.vols = append(c.vols, newVolume(c, i, id))
	}
	c.readRecords()
	return c
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Heartbeat, 500*time.Millisecond)
	def(&t.ReconnectWait, time.Second)
	def(&t.HardLimit, 4*time.Second)
	def(&t.FlushEvery, time.Second)
	def(&t.PrepareEvery, time.Second)
	def(&t.OpenRetry, time.Second)
	def(&t.MemberWait, 10*time.Second)
	def(&t.ColdWait, time.Minute)
	def(&t.RejoinBackoff, time.Minute)
	def(&t.RejoinForget, time.Hour)
	def(&t.PlacesAgain, time.Second)
	if t.PlacesMisses == 0 {
		t.PlacesMisses = 8
	}
	if t.FlushBytes == 0 {
		t.FlushBytes = 64 << 20
	}
	if t.SyncWindow == 0 {
		t.SyncWindow = 16
	}
	return t
}

// final reports whether nothing more is done.
func (s State) final() bool { return s >= ReleasedState }

// owned reports whether members are (being) opened under our epoch.
func (s State) owned() bool { return s >= Opening && s <= Releasing }

// Step takes one event at time now, which never goes back.
func (c *Core) Step(now clock.Instant, ev Event) {
	c.advance(now)
	if c.state.final() {
		return
	}
	switch ev := ev.(type) {
	case *Request:
		c.request(ev)
	case *Received:
		if n := c.node(ev.Node); n != nil && n.up {
			c.received(n, ev.Msg)
		}
	case ConnUp:
		c.connUp(ev)
	case ConnDown:
		c.connDown(ev)
	case Liveness:
		c.alive = slices.SortedFunc(slices.Values(ev.Alive), ids.ID.Compare)
		c.broken = slices.SortedFunc(slices.Values(ev.Broken), ids.ID.Compare)
	case RecordsRead:
		c.recordsRead(ev)
	case TxnDone:
		c.txnDone(ev)
	case Command:
		c.command(ev)
	case *DirectDone:
		c.directDone(*ev)
	case PlacesKnown:
		c.placesKnown(ev)
	}
	c.settle()
}

// advance notes the time. If this process itself was frozen, the answers of the
// others are waiting to be read: nobody is judged by the clock before that.
func (c *Core) advance(now clock.Instant) {
	if c.now != 0 && now.Sub(c.now) > c.t.Heartbeat+ownPause {
		c.graceUntil = now.Add(c.t.ReconnectWait)
		for _, n := range c.nodes {
			if n.waitsAt != 0 {
				n.waitsAt = now
			}
		}
	}
	c.now = now
}

// ownPause is how much later than a heartbeat is due this process may be called
// before it counts as having been frozen.
const ownPause = 500 * time.Millisecond

// Tick lets time pass; call it at NextDeadline at the latest. Calling it
// earlier, or more often, does no harm.
func (c *Core) Tick(now clock.Instant) {
	c.advance(now)
	if c.state.final() {
		return
	}
	c.tickNodes()
	c.tickHedge()
	c.settle()
}

// settle draws the conclusions of an event until there are none.
func (c *Core) settle() {
	for range 64 {
		c.wake = false
		if c.state.final() {
			return
		}
		c.settlePrepare()
		c.settleReopen()
		c.settleOpening()
		for _, v := range c.vols {
			v.settle()
		}
		c.settleSnapshot()
		c.settleDrain()
		c.settleLease()
		if !c.wake {
			return
		}
	}
	c.report(ReportBug, ids.ID{}, ids.ID{}, "the writer's state does not settle")
}

// Ready returns what has to be done since the last call. Its slices are valid
// until the next call.
func (c *Core) Ready() Ready {
	r := c.out
	c.out = Ready{Sends: c.spare.Sends[:0], Done: c.spare.Done[:0], Effects: c.spare.Effects[:0], Reads: c.spare.Reads[:0]}
	clear(c.spare.Sends[:cap(c.spare.Sends)])
	clear(c.spare.Reads[:cap(c.spare.Reads)])
	c.spare = r
	return r
}

// State returns where the group stands.
func (c *Core) State() State { return c.state }

func (c *Core) effect(e Effect) { c.out.Effects = append(c.out.Effects, e) }

func (c *Core) report(kind ReportKind, vol, disk ids.ID, text string) {
	c.effect(Report{Kind: kind, Volume: vol, Disk: disk, Text: text})
}

func (c *Core) setState(s State, text string) {
	if c.state.final() {
		return
	}
	c.wake = true
	c.state, c.since = s, c.now
	c.effect(StateChanged{State: s, Text: text})
	if s.final() && c.lease != 0 {
		c.lease = 0
		c.effect(LeaseChanged{})
	}
}

// fence ends the core: another promise is in force.
func (c *Core) fence(by repl.Promise, what wire.Status) {
	if c.state.final() {
		return
	}
	c.effect(Fenced{By: by, What: what})
	c.setState(FencedState, "another writer has the volumes")
}

// stop ends the core because going on could lose data [S7].
func (c *Core) stop(text string) {
	c.report(ReportForgotten, ids.ID{}, ids.ID{}, text)
	c.setState(StoppedState, text)
}

func (c *Core) invalid(text string) {
	c.effect(GuestInvalid{Text: text})
	c.setState(InvalidState, text)
}

func (c *Core) isAlive(node ids.ID) bool {
	_, ok := slices.BinarySearchFunc(c.alive, node, ids.ID.Compare)
	return ok
}

func (c *Core) isBroken(node ids.ID) bool {
	_, ok := slices.BinarySearchFunc(c.broken, node, ids.ID.Compare)
	return ok
}

// deadline keeps the earliest instant of interest; zero is never.
type deadline struct{ now, at clock.Instant }

// later is add for instants after which settle has nothing more to do than it
// just did: those that are over do not count.
func (d *deadline) later(t clock.Instant) {
	if t > d.now {
		d.add(t)
	}
}

func (d *deadline) add(t clock.Instant) {
	if t != 0 && (d.at == 0 || t < d.at) {
		d.at = t
	}
}

// NextDeadline returns when Tick must be called, or zero for never.
func (c *Core) NextDeadline() clock.Instant {
	if c.state.final() {
		return 0
	}
	d := deadline{now: c.now}
	for _, n := range c.nodes {
		n.deadlines(c, &d)
	}
	d.add(c.hedge.scanAt)
	c.prepareDeadlines(&d)
	c.openingDeadlines(&d)
	for _, v := range c.vols {
		v.deadlines(&d)
	}
	d.later(c.lease)
	d.later(c.graceUntil)
	if c.snap != nil {
		d.later(c.snap.holdEnd)
	}
	if d.at != 0 && d.at <= c.now {
		d.at = c.now + 1
	}
	return d.at
}
