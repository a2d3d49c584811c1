package replica

import (
	"encoding/binary"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Times of the protocol.
const (
	DefaultLease = 3 * time.Second // L: what a heartbeat grants, from its send time
	Reservation  = 2 * time.Second // no grant to an epoch that a PREPARE found lapsed
	StalledAfter = 2 * time.Second // a writer that says so has no veto
	ProbeEvery   = 2 * time.Second // a probe write a disk
	idleAfter    = 50 * time.Millisecond
	mergePause   = 30 * time.Millisecond // between steps of merging objects, under load
	mergeLook    = time.Second           // until a disk is asked again whether there is something to merge
)

// Options of New.
type Options struct {
	Node       ids.ID
	Cluster    ids.ID
	Generation uint32        // of the cluster
	Session    ids.ID        // of this run of this process
	Boot       ids.ID        // boot identity of the node
	Lease      time.Duration // L; default DefaultLease
	Pool       disk.Pool
	Mutations  Mutations
}

// Mutations break one rule each, to prove that tests and the simulator see it.
// The zero value is correct.
type Mutations struct {
	NoRestartWait     bool // a new process promises at once
	NoMargin          bool // a grant binds as long as it was given, by this clock
	IgnoreCold        bool // OPEN_ACK never says cold
	OpenBeforeDurable bool // OPEN is answered before the promise is durable
	UnknownAsLapsed   bool // grants that may have been forgotten are reported as lapsed
	NoReservation     bool // a PREPARE stops no renewal
	NonceUnchecked    bool // two promises of one epoch are one
	BootAtEveryOpen   bool // every promise renews the boot identity
	RenewAfterOpen    bool // a higher OPEN stops no renewal
	StalledVetoes     bool // a stalled writer counts as living
	NoLiveSet         bool // sync data wipes what live writes changed
	AbsenceWipesLive  bool // a synced absence does
	KeepOldHandles    bool // a new promise leaves older handles valid

	LiveSetByBlock bool // the live set of a sync does not tell objects apart

	ForgetInClone    bool // tombstones of a clone are forgotten although its parent lies below
	ShowDuringSync   bool // a copy that is being synced shows its snapshots to clones
	ShowToOldReaders bool // a copy shows a snapshot to who chose it by an older record

	OpenStopsAll       bool // OPEN of a volume stops the renewals of all others on the disk, too
	HeartbeatGrantsAll bool // the heartbeat of a guard that has a handle grants the leases of all other volumes, too

	DeadEndsLease     bool // nobody waits for the lease of a writer
	FreeOpenStrays    bool // a copy that lies elsewhere is freed although a writer still counts on it
	ScrubOutlivesDisk bool // the pass over a disk that dies between two steps goes on for ever

	ScrubKnownSnapshots bool // a pass reads what the snapshots show that the copy was told of, also before it was told
	ScrubHeadImages     bool // a pass reads the images of each extent's newest object only
	OpeningIsAbsent     bool // a disk that is still being opened counts as one that is not here
}

// Disk is what the core needs of a disk engine; *disk.Core has it.
type Disk interface {
	Identity() disk.Identity
	ExtentBlocks() int
	Ready(r *disk.Ready)
	Done(id uint64, err error)
	Append(token uint64, r disk.Record)
	Control(token uint64, ctl disk.Control)
	Flush(token uint64, volume ids.ID, upto repl.Mark)
	Read(token uint64, r disk.ReadRequest)
	Tags(token uint64, volume ids.ID, extent uint64, object uint32)
	Probe(token uint64)
	CheckMeta(token uint64)
	CheckImages(token uint64, volume ids.ID, extent uint64, object uint32)
	Checkpoint()
	Volumes() []ids.ID
	Idle()
	Volume(volume ids.ID) (disk.VolumeInfo, bool)
	Window(volume ids.ID, from repl.Mark) []wire.WindowEntry
	Objects(volume ids.ID, from repl.Mark) []wire.ExtEntry
	ObjectsOf(volume ids.ID, extent uint64) []uint32
	SetFlushMark(volume ids.ID, m repl.Mark)
	ForgetTombstones(volume ids.ID, m repl.Mark)
	Places(token uint64, volume ids.ID, extent uint64)
	ReadTags(token uint64, volume ids.ID, extent uint64, snap uint32)
	ForbidMerge(volume ids.ID)
	Merge() bool
	Stats() disk.Stats
	Dead() error
}

var _ Disk = (*disk.Core)(nil)

// Conn names a connection; the shell never uses a number twice.
type Conn uint64

// Send is a message for a connection. The block data of a ReadReply belongs to
// the pool: free it once the message is sent or dropped.
type Send struct {
	Conn Conn
	Msg  wire.Message
}

// Close asks the shell to close a connection. ConnClosed need not follow.
type Close struct {
	Conn Conn
	Why  error
}

// DiskIO is an action for a disk, answered by DiskDone.
type DiskIO struct {
	Disk ids.ID
	IO   disk.IO
}

// Event is something that the shell logs or waits for.
type Event struct {
	Kind   EventKind
	Disk   ids.ID
	Volume ids.ID
	Token  uint64      // DropDone, PlacesDone
	Status wire.Status // DropDone, PlacesDone
	Places *place.Map  // PlacesDone, if the status is OK
	Extent uint64      // BlockBad, BlockRepaired
	Block  int         // the same
	Err    error       // DiskDied
}

// EventKind names an event.
type EventKind uint8

// The events.
const (
	DiskDied      EventKind = iota + 1 // the disk answers nothing any more
	DropDone                           // Drop ended
	Promised                           // a volume was opened on a disk
	BlockBad                           // a block could not be read or verified; again each time it is met
	BlockRepaired                      // it was rewritten from another copy
	MetaRepaired                       // metadata at rest was bad; it is written again from memory
	ScrubEnded                         // a pass went through the whole disk
	PlacesDone                         // Places ended
)

// Ready is what the core wants from its owner, in order within each slice. The
// slices are reused by the next call.
type Ready struct {
	Sends  []Send
	Closes []Close
	IO     []DiskIO
	Events []Event
}

func (r *Ready) reset() {
	clear(r.Sends)
	clear(r.IO)
	r.Sends, r.Closes, r.IO, r.Events = r.Sends[:0], r.Closes[:0], r.IO[:0], r.Events[:0]
}

// Core is the replica state of one storage process.
type Core struct {
	o       Options
	conns   map[Conn]*conn
	guards  map[ids.ID]*guard
	disks   []*diskState // by disk ID
	opening map[ids.ID]bool
	handles map[wire.Handle]*handle
	lastHdl uint64
	pending pendings
	out     Ready
	dr      disk.Ready
}

type conn struct {
	id    Conn
	peer  ids.ID // node, as the certificate says
	guard *guard // nil before HELLO
}

// guard is one run of one guard process.
type guard struct {
	id      ids.ID
	conn    *conn     // nil while it has none
	handles []*handle // open ones, oldest first
}

type diskState struct {
	id         ids.ID
	d          Disk
	boot       ids.ID
	since      clock.Instant // when this process took it over
	slots      map[ids.ID]*slot
	dead       bool
	touched    bool // Ready must be asked
	activeAt   clock.Instant
	idled      bool
	probing    bool
	probedAt   clock.Instant // end of the last probe
	probeStart clock.Instant
	mergeAt    clock.Instant // next step of merging objects
	scrub      scrub
}

// slot is a volume on a disk, as far as this process must remember it.
type slot struct {
	disk   *diskState
	volume ids.ID
	handle *handle // the valid one, or nil

	granted clock.Instant // receipt of the last granted heartbeat for the promise in force; 0 = none by this process
	stalled bool          // the holder said so in its last heartbeat
	known   bool          // this process made the promise in force: it cannot have forgotten grants
	wanted  repl.Promise  // highest promise that OPEN asked for; lower ones are not renewed
	// reservedUntil: a PREPARE for reservedFor found no grant, or a lapsed or
	// stalled one.
	// A promise of a lower epoch, of a taker that is slower, does not end it.
	reservedUntil clock.Instant
	reservedFor   uint64    // epoch
	flushMark     repl.Mark // last told to the disk
	damage        damage    // known and not repaired
	syncs         uint32    // syncs that were begun: what was read across one proves nothing
}

// handle is a right to use a slot under a promise.
type handle struct {
	id      wire.Handle
	slot    *slot
	guard   *guard
	promise repl.Promise
	size    int64 // of the volume, bytes
	ended   bool
	listed  bool     // a heartbeat has named it
	left    bool     // and the last one did not: the guard has let go of it
	live    *liveSet // during a sync session
}

// New returns a core without disks.
func New(o Options) *Core {
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	return &Core{
		o: o, conns: map[Conn]*conn{}, guards: map[ids.ID]*guard{}, handles: map[wire.Handle]*handle{}, opening: map[ids.ID]bool{},
		// Handles of two runs do not meet: a message for the last one finds nothing.
		lastHdl: binary.LittleEndian.Uint64(o.Session[:]) << 32,
	}
}

// AddDisk takes a disk whose recovery has ended. Whoever had it before may have
// granted leases until now. boot is the boot identity of the disk: the node's
// (zero), or a new one if the disk lost what it had not flushed in another way,
// pulled and inserted again.
func (c *Core) AddDisk(now clock.Instant, d Disk, boot ids.ID) {
	if boot.IsZero() {
		boot = c.o.Boot
	}
	s := &diskState{id: d.Identity().Disk, d: d, boot: boot, since: now, slots: map[ids.ID]*slot{}, touched: true, probedAt: now}
	delete(c.opening, s.id)
	i, found := c.findDisk(s.id)
	if found { // the one before died
		c.leave(c.disks[i])
		c.disks[i] = s
		return
	}
	c.disks = slices.Insert(c.disks, i, s)
}

// Opening tells that a disk which the process was given is being opened, so that
// OPEN is answered Busy; false: that it could not be, and is not here. AddDisk ends
// it, too. Without it a process that has just started would say of a disk that it
// does not have it, and a copy that is complete would count as lost.
func (c *Core) Opening(id ids.ID, is bool) {
	if is && !c.o.Mutations.OpeningIsAbsent {
		c.opening[id] = true
	} else {
		delete(c.opening, id)
	}
}

// RemoveDisk forgets a disk: its handles end, its I/O is answered by nobody.
func (c *Core) RemoveDisk(id ids.ID) {
	delete(c.opening, id)
	i, found := c.findDisk(id)
	if !found {
		return
	}
	c.leave(c.disks[i])
	c.disks = slices.Delete(c.disks, i, i+1)
}

// leave ends all handles of a disk and answers what waits for it.
func (c *Core) leave(d *diskState) {
	d.dead = true
	c.diskGone(d)
	for _, v := range sortedVolumes(d.slots) {
		c.endHandle(d.slots[v])
	}
	c.pending.fail(c, d)
}

func sortedVolumes(m map[ids.ID]*slot) []ids.ID {
	list := make([]ids.ID, 0, len(m))
	for v := range m {
		list = append(list, v)
	}
	slices.SortFunc(list, ids.ID.Compare)
	return list
}

func (c *Core) findDisk(id ids.ID) (int, bool) {
	return slices.BinarySearchFunc(c.disks, id, func(d *diskState, id ids.ID) int { return d.id.Compare(id) })
}

func (c *Core) disk(id ids.ID) *diskState {
	if i, ok := c.findDisk(id); ok {
		return c.disks[i]
	}
	return nil
}

// ConnOpened tells of a connection whose peer proved to be a guard on node peer.
func (c *Core) ConnOpened(id Conn, peer ids.ID) {
	c.conns[id] = &conn{id: id, peer: peer}
}

// ConnClosed tells that a connection is gone.
func (c *Core) ConnClosed(id Conn) {
	cn := c.conns[id]
	if cn == nil {
		return
	}
	delete(c.conns, id)
	if g := cn.guard; g != nil && g.conn == cn {
		g.conn = nil
		c.forgetEnded(g)
	}
}

func (c *Core) close(cn *conn, why error) {
	c.ConnClosed(cn.id)
	c.out.Closes = append(c.out.Closes, Close{cn.id, why})
}

func (c *Core) send(id Conn, m wire.Message) {
	if _, ok := c.conns[id]; ok {
		c.out.Sends = append(c.out.Sends, Send{id, m})
		return
	}
	if r, ok := m.(*wire.ReadReply); ok && r.Data != nil {
		c.o.Pool.Free(r.Data)
	}
}

// DiskDone tells that an action of a disk ended.
func (c *Core) DiskDone(diskID ids.ID, id uint64, err error) {
	if d := c.disk(diskID); d != nil {
		d.d.Done(id, err)
		d.touched = true
	}
}

// Tick lets time pass: probes and idle work. Call it at Next at the latest.
func (c *Core) Tick(now clock.Instant) {
	for _, d := range c.disks {
		if d.dead {
			continue
		}
		if !d.probing && now >= d.probeStart.Add(ProbeEvery) {
			d.probing, d.probeStart = true, now
			d.d.Probe(c.pending.add(pending{kind: pendProbe, disk: d}))
			d.touched = true
		}
		if now >= d.mergeAt {
			d.mergeAt = now.Add(mergeLook)
			if d.d.Merge() {
				d.mergeAt = now.Add(mergePause)
				d.active(now)
			}
			d.touched = true
		}
		if !d.idled && now >= d.activeAt.Add(idleAfter) {
			d.idled = true
			d.d.Idle()
			d.touched = true
		}
		c.tickScrub(now, d)
	}
}

// Next returns when Tick wants to be called.
func (c *Core) Next() clock.Instant {
	next := clock.Instant(1<<63 - 1)
	for _, d := range c.disks {
		if d.dead {
			continue
		}
		next = min(next, d.mergeAt)
		if !d.probing {
			next = min(next, d.probeStart.Add(ProbeEvery))
		}
		if !d.idled {
			next = min(next, d.activeAt.Add(idleAfter))
		}
		if d.scrub.due() {
			next = min(next, d.scrub.nextAt)
		}
	}
	return next
}

// Ready moves what is to be done into r, whose slices are reused. Call it after
// every event.
func (c *Core) Ready(now clock.Instant, r *Ready) {
	for again := true; again; {
		again = false
		for _, d := range c.disks {
			if d.touched && !d.dead {
				again = true
				c.pump(now, d)
			}
		}
	}
	r.reset()
	*r, c.out = c.out, *r
}

// pump moves a disk's actions and completions until there are no more.
func (c *Core) pump(now clock.Instant, d *diskState) {
	d.touched = false
	for {
		d.d.Ready(&c.dr)
		if len(c.dr.IO) == 0 && len(c.dr.Done) == 0 {
			break
		}
		for _, io := range c.dr.IO {
			c.out.IO = append(c.out.IO, DiskIO{d.id, io})
		}
		for i := range c.dr.Done {
			c.complete(now, d, &c.dr.Done[i])
		}
	}
	if err := d.d.Dead(); err != nil {
		d.dead = true
		c.diskGone(d)
		c.pending.fail(c, d)
		c.out.Events = append(c.out.Events, Event{Kind: DiskDied, Disk: d.id, Err: err})
	}
}

// active notes that a disk was asked for something.
func (d *diskState) active(now clock.Instant) {
	d.touched, d.idled, d.activeAt = true, false, now
}

// Drop frees what a disk holds of a deleted volume. The caller has read the
// positive record of the deletion; absence of a record is never a reason [I14].
// DropDone with the token follows.
func (c *Core) Drop(now clock.Instant, token uint64, diskID, volume ids.ID) {
	d := c.disk(diskID)
	if d == nil || d.dead {
		c.out.Events = append(c.out.Events, Event{Kind: DropDone, Disk: diskID, Volume: volume, Token: token, Status: wire.DiskFailed})
		return
	}
	if s := d.slots[volume]; s != nil {
		c.endHandle(s)
		delete(d.slots, volume)
	}
	d.d.Control(c.pending.add(pending{kind: pendDrop, disk: d, reqID: token, volume: volume}),
		disk.Control{Kind: disk.ControlDrop, Volume: volume})
	d.active(now)
}

// DropStray frees what a disk holds of a volume that lies elsewhere now. The
// caller has read the volume's records, newer than anything that this copy was
// told, and they do not name the disk. seen is what the copy was like before they
// were read: if it was opened or written since, somebody gives it segments again,
// and it is left alone (Busy). So it is while a guard lists it in its heartbeats: that
// one does not know yet that the copy left. DropDone with the token follows.
func (c *Core) DropStray(now clock.Instant, token uint64, diskID ids.ID, seen disk.VolumeInfo) {
	d := c.disk(diskID)
	st := wire.DiskFailed
	if d != nil && !d.dead {
		st = wire.OK
		info, ok := d.d.Volume(seen.Volume)
		s := d.slots[seen.Volume]
		held := s != nil && s.handle != nil && !s.handle.left && !c.o.Mutations.FreeOpenStrays
		if !ok || held || info.Promise != seen.Promise || info.MaxMark != seen.MaxMark || info.Told.CfgVersion != seen.Told.CfgVersion {
			st = wire.Busy
		}
	}
	if st != wire.OK {
		c.out.Events = append(c.out.Events, Event{Kind: DropDone, Disk: diskID, Volume: seen.Volume, Token: token, Status: st})
		return
	}
	c.Drop(now, token, diskID, seen.Volume)
}

// Places asks where blocks of an extent stand in place: see disk.Core.Places.
// PlacesDone with the token follows.
func (c *Core) Places(now clock.Instant, token uint64, diskID, volume ids.ID, extent uint64) {
	d := c.disk(diskID)
	if d == nil || d.dead {
		c.out.Events = append(c.out.Events, Event{Kind: PlacesDone, Disk: diskID, Volume: volume, Token: token, Status: wire.DiskFailed})
		return
	}
	d.d.Places(c.pending.add(pending{kind: pendPlaces, disk: d, reqID: token, volume: volume}), volume, extent)
	d.active(now)
}

// HandleCount is the number of valid handles of a disk, and of volumes that a
// guard holds open there: for status only.
func (c *Core) HandleCount(diskID ids.ID) (n int) {
	if d := c.disk(diskID); d != nil {
		for _, s := range d.slots {
			if s.handle != nil {
				n++
			}
		}
	}
	return n
}

// Outstanding is the number of requests that disks have not completed.
func (c *Core) Outstanding() int { return len(c.pending.list) - len(c.pending.free) }

// ProbeAge is the time since a disk last finished a probe write.
func (c *Core) ProbeAge(now clock.Instant, diskID ids.ID) time.Duration {
	if d := c.disk(diskID); d != nil {
		return now.Sub(d.probedAt)
	}
	return 0
}

func protocol(format string, args ...any) error {
	return errs.New(errs.Invalid, "talk to guard: "+format, args...)
}
