package writer

import (
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// openState is where the opening of a member stands.
type openState uint8

const (
	closed openState = iota
	opening
	opened
)

// member is one copy of a volume: a disk of its placement.
//
//	counted  = its answer is needed for acks, flushes and the lease: it is in a
//	           set that may be the in-sync set
//	live     = it gets new writes: counted, or joining
//	counted && in own.Out = put out, but CONFIG is not durable on the rest yet,
//	           or about to be taken back by a grow
type member struct {
	v     *volume
	index int // in v.members
	disk  ids.ID
	node  *node

	open     openState
	handle   wire.Handle
	session  ids.ID // under which it was opened
	openedAt clock.Instant
	retryAt  clock.Instant // open again then; zero = as soon as there is a connection
	ack      wire.OpenAck  // of the last successful OPEN
	answered bool          // an OPEN of this epoch succeeded
	absent   bool          // HELLO does not name it, or it failed: nothing is asked of it
	unsure   bool          // absent, and its node has not said yet that it is not merely being opened
	cold     bool
	other    bool // its copy is of a generation that was given up: see foreign

	counted bool
	live    bool
	leaving repl.OutReason // not "": it must be put out, or return in time
	leftAt  clock.Instant  // since then, while the group serves
	newRun  bool           // its storage process is not the one that has our unflushed writes
	failed  bool           // its storage reports failure
	hung    bool           // probe writes are not finished
	damaged bool           // it was damaged when the epoch was opened, see suspect
	resumed bool           // opened in the present session, unanswered writes sent again
	trails  bool           // it came back while the transaction that puts it out is under way, see trail

	lease      clock.Instant
	highAcked  uint64 // newest wseq acked by it
	flushed    uint64 // upto of its last completed flush
	flushWait  bool   // the round under way needs it
	flushSent  bool   // a FLUSH is unanswered
	zombies    int    // writes committed without its ack
	told       uint32 // config serial that is durable there
	telling    bool   // a CONFIG is unanswered
	tellSerial uint32
	releasing  bool
	released   bool
	nospcAt    clock.Instant // when to send refused writes again
	notBefore  clock.Instant // overdue is false until then

	places memberPlaces // of a local copy

	outCount int // exclusions, for the back-off of the next join
	outLast  clock.Instant
	rejoinAt clock.Instant
	sync     *syncJob

	tried   bool         // the round of PREPARE has its answer
	tryAck  wire.OpenAck // of the last round that it answered
	learned repl.Promise // in force there, as last heard
}

// segment is a row of the placement.
type segment struct {
	members   []*member
	filling   []*member // of members: in sync elsewhere, being given this segment
	dirtyWseq uint64    // newest committed write that was not written through
}

// volume is one volume of the group.
type volume struct {
	c       *Core
	index   int
	id      ids.ID
	rec     repl.VolumeRecord // as decided
	members []*member         // by place in Segments.Disks
	segs    []segment

	wseq       uint64 // newest issued
	commitWseq uint64 // every write <= it is committed
	flushMark  repl.Mark
	inflight   opList // uncommitted writes by wseq
	zombies    opList // committed, not yet acked by joining members
	extents    map[int64]*extent
	held       requestList // requests that wait for Serving
	short      bool        // fewer in-sync copies than min_isr: see setShort
	unanswered requestList // done, and not answered while short
	blocked    opList      // writes that wait for window space
	refused    int         // extents in which a write waits for space
	reads      opList      // reads that wait for a lease or a member

	flush     flushState
	drainWant uint64 // newest wseq when a drain began its flush
	released  bool

	acceptTail bool // AcceptUnverified

	config  configState
	change  *change
	pending *member // counted by a grow that is not decided

	// Cumulative bytes of writes: cumFlushed <= cumIssued <= cumSubmitted.
	cumSubmitted, cumIssued, cumFlushed int64
	windowLimit                         int64         // WindowBytes of the tightest member
	frozenSince                         clock.Instant // since when a member is leaving
	awaited                             bool          // it was told which copies are waited for

	scrub             *scrubJob
	roll              *rollbackJob
	flat              *flattenJob
	heals             healQueue
	hedged, hedgesWon uint64 // reads asked of a second copy; those that it answered first

	lost map[int64]bool // blocks that no copy can read, by number in the volume

	// Newest wseq of what a disk alone was told in this epoch: to give up what it had
	// of segments that it left.
	alone map[ids.ID]uint64

	parent parentView
	rc     reconcile
	snap   snapVolume
	sick   bool // the sick-link rule holds a shrink back
	dirty  bool // something changed that settle must look at
}

// configState is what members must hold durably.
type configState struct {
	serial   uint32 // +1 with each change of what is told
	complete bool
}

func newVolume(c *Core, index int, id ids.ID) *volume {
	return &volume{c: c, index: index, id: id, extents: make(map[int64]*extent), alone: make(map[ids.ID]uint64)}
}

// promise is what members are asked to promise.
func (v *volume) promise() repl.Promise { return v.rec.Own.Promise() }

func (v *volume) epoch() uint64 { return v.rec.Own.Epoch }

func (v *volume) mark(wseq uint64) repl.Mark { return repl.Mark{Epoch: v.epoch(), Wseq: wseq} }

// isOut reports whether m is outside the in-sync set of all of its segments. One
// that is outside for some counts as in sync, but see segment.lacks.
func (v *volume) isOut(m *member) bool {
	o, out := v.rec.Own.Out[m.disk]
	return out && !o.Partial
}

func (v *volume) piggyback() wire.Piggyback {
	return wire.Piggyback{CommitWseq: v.commitWseq, FlushMark: v.flushMark, CfgVersion: v.rec.Own.CfgVersion}
}

// layout makes members and segments from the records, keeping the members that
// stay.
func (v *volume) layout(rec repl.VolumeRecord, disks []repl.DiskNode) {
	c := v.c
	old := v.members
	v.members = nil
	for _, d := range rec.Seg.Disks {
		i := slices.IndexFunc(old, func(m *member) bool { return m.disk == d })
		if i >= 0 {
			v.members = append(v.members, old[i])
			continue
		}
		m := &member{v: v, disk: d}
		if j, ok := slices.BinarySearchFunc(disks, d, func(dn repl.DiskNode, d ids.ID) int { return dn.Disk.Compare(d) }); ok {
			m.node = c.addNode(disks[j].Node)
		} else {
			m.node = c.addNode(ids.ID{})
		}
		m.node.members = append(m.node.members, m)
		v.members = append(v.members, m)
	}
	for i, m := range v.members {
		m.index = i
	}
	if cap(v.segs) < len(rec.Seg.Map) {
		v.segs = slices.Grow(v.segs, len(rec.Seg.Map)-len(v.segs))
	}
	for i, row := range rec.Seg.Map {
		// Ops point to their segment: it keeps its place.
		if i == len(v.segs) {
			v.segs = append(v.segs, segment{})
		}
		s := &v.segs[i]
		s.members = nil
		for _, d := range row {
			s.members = append(s.members, v.members[d])
		}
	}
	v.segs = v.segs[:len(rec.Seg.Map)]
	if !slices.Equal(old, v.members) {
		v.rc.restart = true // its windows name members by their place
	}
	v.rec = rec
	v.refill()
	for _, m := range old {
		if !slices.Contains(v.members, m) {
			m.drop()
		}
	}
}

// drop ends a member that is no longer in the placement.
func (m *member) drop() {
	m.abortSync("replaced")
	m.v.retireReads(m)
	m.v.release(m)
	n := m.node
	n.members = slices.DeleteFunc(n.members, func(o *member) bool { return o == m })
}

// usable reports whether m may be read and written now.
func (m *member) usable() bool {
	return m.open == opened && m.resumed && m.node.up && m.leaving == ""
}

// writable reports whether m may be sent writes and flushes now.
func (m *member) writable() bool { return m.usable() || m.trailing() }

// trailing reports whether m keeps up although it is to be put out.
func (m *member) trailing() bool {
	return m.trails && m.open == opened && m.resumed && m.node.up && m.leaving != ""
}

// rest returns how many members of a segment stay if all that are leaving or
// out go.
func (s *segment) rest() int { return countFunc(s.members, s.stays) }

func countFunc[E any](s []E, f func(E) bool) (n int) {
	for _, e := range s {
		if f(e) {
			n++
		}
	}
	return n
}

// stays reports whether m is in sync for s and nothing speaks against it.
func (s *segment) stays(m *member) bool {
	return m.counted && m.leaving == "" && !m.v.isOut(m) && !s.lacks(m)
}

// lease is the earliest lease of the counted members.
func (v *volume) lease() clock.Instant {
	var l clock.Instant
	first := true
	for _, m := range v.members {
		if v.c.mut.ReadBeforeOut && m.leaving != "" {
			continue
		}
		if m.counted && (first || m.lease < l) {
			l, first = m.lease, false
		}
	}
	return l
}

// settle draws the volume's conclusions from what has changed.
func (v *volume) settle() {
	c := v.c
	if !c.state.owned() {
		return
	}
	if c.state != Opening {
		v.settleMembers()
	}
	v.settleOpen()
	if c.state == Opening || c.state.final() {
		return
	}
	v.settleReads()
	v.settleChange()
	v.settleConfig()
	v.settleNoSpace()
	v.settleReconcile()
	v.settleSync()
	v.settleScrub()
	v.settleRollback()
	v.settleParent()
	v.settleFlatten()
	v.settleHeals()
	v.settleFlush()
	v.settleRelease()
}

func (v *volume) deadlines(d *deadline) {
	c := v.c
	if !c.state.owned() {
		return
	}
	for _, m := range v.members {
		if m.open == closed && m.node.up {
			d.later(m.retryAt)
		}
		d.later(m.nospcAt)
		if m.counted && m.leaving == "" && m.node.up {
			if at := c.oldest(m); at != 0 {
				d.later(at.Add(c.t.HardLimit))
			}
		}
		if !m.counted && m.sync == nil && m.node.up {
			d.later(m.rejoinAt)
		}
		if m.sync != nil && len(m.sync.waiting) > 0 {
			d.later(m.sync.again)
		}
	}
	if j := v.scrub; j != nil && j.health.Running {
		d.later(j.retryAt)
	}
	if j := v.roll; j != nil && !j.listed {
		d.later(j.retryAt)
	}
	v.parentDeadlines(d)
	v.flattenDeadlines(d)
	v.flushDeadlines(d)
	v.changeDeadlines(d)
}
