package writer

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Config describes a group of volumes and who opens it. Every zero duration
// and size means its default.
type Config struct {
	Node    ids.ID // this node; its replica is preferred for reads
	Run     ids.ID // guest memory lineage
	Purpose repl.Purpose
	VM      ids.ID // zero: offline purpose, no placement record
	Attempt uint64 // attempt of the placement that Claim compares
	Nonce   ids.ID // drawn for this taker; Claim puts it into own
	Volumes []ids.ID

	SegmentBytes int64 // default repl.SegmentBytes; a multiple of repl.ExtentBytes
	// GuestAlive is true for adoption and migration: a guest with memory of
	// Run exists, so copies that forgot acked writes cannot be accepted [S6].
	GuestAlive bool

	// WallAtZero is the wall clock at instant 0, in seconds since 1970, for the times
	// that people read; 0: not known.
	WallAtZero int64
	// Direct: the shell can read disks of this node by itself (DirectRead).
	Direct bool

	Timing    Timing
	Mutations Mutations // zero = correct
}

// Timing has the time limits. Zero fields mean the defaults.
type Timing struct {
	Heartbeat     time.Duration // 500 ms between heartbeats
	ReconnectWait time.Duration // 1 s: a session may be resumed so long before it is put out
	HardLimit     time.Duration // 4 s without ack or probe write of a disk: it is put out
	FlushEvery    time.Duration // 1 s between internal flushes of dirty data
	FlushBytes    int64         // 64 MiB of dirty data force a flush (less if a replica's window is smaller)
	PrepareEvery  time.Duration // 1 s between rounds of PREPARE (the reservation lasts 2 s)
	OpenRetry     time.Duration // 1 s between attempts to open a member that answered "not yet"
	MemberWait    time.Duration // 10 s: at takeover, for a member whose node lives and does not answer
	ColdWait      time.Duration // 60 s: at takeover, for members not known to be cold, if only cold ones answered
	RejoinBackoff time.Duration // 1 min: after the second exclusion of a disk within RejoinForget, doubled each time, at most 1 h
	RejoinForget  time.Duration // 1 h
	FlattenPause  time.Duration // 0: before each extent of a clone's flattening
	PlacesAgain   time.Duration // 1 s between two maps of an extent, see DirectRead
	PlacesMisses  int           // 8 reads that a map does not serve until a new one is asked for
	SyncWindow    int           // 16: objects of a resync in flight while the guest is idle; else 4 at most
}

// Mutations break one rule each, to prove that the simulator sees it.
type Mutations struct {
	AckBeforeShrinkKnown   bool // acks go on before the CAS of a shrink is known
	OwnWatermark           bool // takeover asks each member for its window above its own watermark
	GrowWithoutCount       bool // the grow CAS is made without counting the new member's answers
	ReadBeforeOut          bool // reads are served before the missing members are out
	AdoptWithoutRun        bool // adoption does not compare run
	NoSyncLock             bool // resync reads without the interval lock
	IgnoreCold             bool // cold members count as warm
	ReleaseBeforeConfig    bool // acks are released before CONFIG is durable
	KeepWinnerOnHolder     bool // the winner of reconcile is not rewritten on its holder
	SourceNotRestored      bool // a join that met an unreadable block goes on with another source
	ReadsPassWrites        bool // a read does not wait for the writes to its blocks
	LeaveUnreadableRun     bool // a stretch with an unreadable winner is left as it is on each copy
	ShrinkToOneForLostLink bool // the sick-link rule is off
	ClaimWithoutPrepare    bool // the CAS is made without PREPARE
	FillCounts             bool // a copy of a segment counts before it is complete
	TrustDamaged           bool // a damaged copy stays in sync at takeover
	TrustLostTail          bool // a dropped log tail below the flush mark is taken for a torn one
	ServeBeforeConfig      bool // a takeover serves before its CONFIG is durable
	TrustEtcd              bool // replicas that know more than etcd are not listened to
	ResyncFromOwnMark      bool // a join lists what is newer than the disk's own mark
	BarrierBeforeCount     bool // grow's barrier comes before the disk's answers count
	WaitForDead            bool // a takeover waits for members whose nodes are silent
	LoneCopyVolatile       bool // a lone copy is not written through
	NoSoleKeep             bool // the sole member that came back is not opened again
	AnswerBelowMin         bool // min_isr bounds who may be put out, and not what is answered
	KeepColdForMinISR      bool // a cold copy without which min_isr is not met is kept as it is
	NoMending              bool // nobody is put out below min_isr, not even to be brought up to date
	NoTrailing             bool // a member whose exclusion is under way is sent nothing when it is back
	NeverHedge             bool // a read waits for the copy that it was sent to
	ImportAll              bool // copies that were given up are taken back, too
	NoPending              bool // CONFIG does not name the disk of a grow under way
	TakeSentGrowBack       bool // a grow whose CAS may have been made is taken back when its disk fails
	IgnoreSession          bool // a new storage process counts as the old one
	LeaseFromReceipt       bool // a lease runs from the answer, not from the question
	ReadAnyMember          bool // reads go to members that are out, too
	QuorumAck              bool // a write is committed when most members have it
	FlushOneMember         bool // a flush is answered when one member has done it
	GivenUpAlone           bool // a disk that left a segment and comes back may count what it gave up there
	SilentGo               bool // silent copies go although nobody who stays is known to have outlived them
	TrustStaying           bool // who stays need not have been heard of since the silent copy was given up
	KeepCold               bool // a living writer keeps cold copies that lost acked writes
	ColdAlone              bool // a takeover of a living guest goes on with cold copies when the warm one falls silent
	AdoptCold              bool // a successor adopts a guest although only cold copies answer
	FlushWhileReconciling  bool // the flush mark moves before a takeover has rewritten every window
	PrepareNeverLonger     bool // a round of PREPARE never waits longer than the first
	LostWithoutAsking      bool // a join gives a block up although an in-sync copy was not asked
	LostToItsLister        bool // with snapshots a join gives a block up that the copy lacks which listed the extent, and asks no other for its list
	ResyncMixedSources     bool // a join takes objects of one extent from several copies
	LostAsAbsent           bool // a join makes a block that no copy can read absent
	AbsentIsLost           bool // a disk that its node says it does not have counts as behind a lost link
	KeepSyncOnReplace      bool // a disk that is given more segments goes on joining as it was
	NoSpaceIsFailure       bool // a copy that refuses a write for lack of space counts as failed
	NoReserve              bool // what repairs is sent like a guest's write, and stops at the limit
	JoinWaitsForSpace      bool // a join waits for writes that wait for space
	JoinPassesRefused      bool // a join does not, and is not given them

	DirectUntouched bool // a block is read in place although it was written since its map

	SnapshotNumberReused bool // a number that a failed attempt left is used again
	SnapshotWithoutOwn   bool // the snapshot's transaction does not compare own
	SnapshotWithoutDrain bool // the boundary waits neither for writes under way nor for a flush
	RollbackServesEarly  bool // clients are served while a rollback is under way
	RollbackWithoutFlush bool // a rollback is over before it is durable
	FlattenOver          bool // flattening writes the parent's blocks where the guest writes
	FlattenHeadOnly      bool // flattening copies only what the volume lacks as it is now, not what its snapshots lack
	FlattenWithoutFlush  bool // a clone is flattened before that is durable
	CloneWhole           bool // copies of a clone may merge and forget holes before it is flattened
	ParentAnyMember      bool // copies of the parent that are out are read, too
	DiscardSnapshots     bool // a copy that leaves a segment gives it back although snapshots exist
	RawListFromBase      bool // resync compares only the objects above BASE, not all of their extents
}

// Op is the kind of a client request.
type Op uint8

// The operations. Discard makes the range read as zeros and gives space back.
const (
	OpRead Op = iota + 1
	OpWrite
	OpZero
	OpDiscard
	OpFlush
)

// Request is a client's request. The caller fills the exported fields, passes
// a pointer in Step, and must not touch it until its Completion is returned; it
// may then use it again.
type Request struct {
	Token  uint64 // the caller's, not looked at
	Volume int    // index in Config.Volumes
	Op     Op
	FUA    bool
	Offset int64 // bytes; block aligned; may cross extents
	Length int64
	// Data of a write is read-only from now on and may still be referred to by
	// messages after completion. Data of a read is filled by the core; it has
	// Length bytes, or is nil: then the core allocates, or leaves it nil if every
	// byte is zero.
	Data []byte
	CRC  []uint32 // of a write: crc32c of each block
	Snap uint32   // OpRead: the snapshot to be read, 0 = the volume as it is

	state requestState
}

// Event is an input of Step.
type Event interface{ isEvent() }

// The events.
type (
	// ConnUp: the connection to a storage node is made and HELLO is answered.
	ConnUp struct {
		Node    ids.ID
		Session ids.ID   // one run of one storage process
		Disks   []ids.ID // that it serves
	}
	// ConnDown: lost on every network, or refused (the process is dead). The
	// shell reports the first loss and each change; it goes on trying by itself.
	ConnDown struct {
		Node    ids.ID
		Refused bool
	}
	// Received is a message from a storage node, in the order of the connection. The
	// core keeps neither it nor a wire.Ack in it.
	Received struct {
		Node ids.ID
		Msg  wire.Message
	}
	// Liveness lists the nodes that may still come: session in etcd, or direct
	// beats. Sent at the start and at every change. Broken lists those of them
	// that say themselves that their storage process does not answer.
	Liveness struct{ Alive, Broken []ids.ID }
	// RecordsRead answers ReadRecords. Cached records are those that RecordsKnown
	// last told a predecessor on this node, used when etcd does not answer.
	RecordsRead struct {
		Records repl.Records
		Cached  bool
	}
	// TxnDone answers Commit. Revision is the new mod revision when committed.
	TxnDone struct {
		ID       uint64
		Outcome  repl.Outcome
		Revision int64
	}
	// DirectDone answers DirectRead. OK: every block was read, has its checksum, and
	// Read.Valid said so after the read; Data has them, and is the core's. Busy: not
	// OK, and not tried, for too much is under way.
	DirectDone struct {
		ID   uint64
		OK   bool
		Busy bool
		Data []byte
	}
	// PlacesKnown answers WantPlaces. Map nil: not known now. Off: disks are not to
	// be read by this process.
	PlacesKnown struct {
		Serial uint64
		Extent int64
		Map    *place.Map
		Off    bool
	}
	// Command is an order of the shell.
	Command struct {
		Kind  CommandKind
		Claim Claim
		// Predecessor of Reopen: the guard that is certainly gone.
		Predecessor wire.PredecessorID
		// Replace of ReplaceDisk.
		Replace Replace
		// Snapshot of Snapshot.
		Snapshot SnapshotOrder
		// Volume of Scrub, StopScrub and AcceptUnverified: index in Config.Volumes.
		Volume int
	}
)

func (ConnUp) isEvent()      {}
func (ConnDown) isEvent()    {}
func (*Received) isEvent()   {}
func (Liveness) isEvent()    {}
func (RecordsRead) isEvent() {}
func (TxnDone) isEvent()     {}
func (Command) isEvent()     {}
func (*DirectDone) isEvent() {}
func (PlacesKnown) isEvent() {}
func (*Request) isEvent()    {}

// CommandKind names a command.
type CommandKind uint8

// The commands; each is answered by the effect named.
const (
	// Prepare asks all members whether they would promise: Prepared after each
	// round. It is repeated every second until Claim, Abort or Stop.
	Prepare CommandKind = iota + 1
	// DoClaim makes the CAS over all volumes and the placement: Claimed. Refused
	// (NotMade) if the last round of Prepare does not allow it.
	DoClaim
	// Activate opens the members under the claimed epoch, reconciles and serves:
	// StateChanged{Serving}.
	Activate
	// Reopen takes up the same epoch after a predecessor on this node; if that
	// cannot be, StateChanged{Idle} with the reason: take with a claim then.
	Reopen
	// Drain answers what was received, then flushes: Drained.
	Drain
	// Stall drains and flushes; from then on reads and writes wait and FLUSH is
	// answered: Drained, StateChanged{Stalled}.
	Stall
	// Resume ends Stall under the same epoch.
	Resume
	// Reclaim is the migration source's own CAS while stalled: Claimed, and then
	// as Activate.
	Reclaim
	// Release drains, flushes and ends the epoch at every member: StateChanged{Released}.
	Release
	// Snapshot takes a snapshot or deletes one: Snapshotted.
	Snapshot
	// ReplaceDisk gives a disk segments that another one holds or held: Replaced.
	ReplaceDisk
	// AcceptUnverified goes on with a volume although the unverified tail of the
	// only answering member cannot be judged, or a durable part of its log is lost
	// (an operator said so); see Doubt.
	AcceptUnverified
	// MoveRefused: the manager found no other node; shrink in spite of the
	// sick-link rule.
	MoveRefused
	// Abort ends Prepare; answered by Claimed{NotMade} if no CAS was sent, and
	// then none ever will be.
	Abort
	// Stop ends the core at once, without a release.
	Stop
	// Scrub compares the tags of a volume's in-sync copies, extent by extent, and
	// repairs what differs; Health tells how it goes on. Not served now: nothing.
	Scrub
	// StopScrub ends Scrub where it is.
	StopScrub
)

// Claim parametrizes DoClaim and Reclaim.
type Claim struct {
	ExpectRun   ids.ID          // not zero: compared with own.run (adoption, hand-over)
	ExpectEpoch uint64          // not zero: compared with own.epoch of every volume
	Placement   *repl.Placement // not nil: written in the same txn
	Nonce       ids.ID          // of Reclaim: drawn for the new epoch
}

// Replace names the disks of ReplaceDisk: New is given segments of Old.
type Replace struct {
	ID       uint64 // the caller's, told in Replaced
	Volume   int
	Old, New ids.ID // New zero: Old, one too many, takes no copy's place after all
	NewNode  ids.ID
	Segments []uint32 // empty: all of Old's
	Live     bool     // Old may be in sync, and stays until New is
}

// SnapshotOrder asks for a snapshot of volumes at one moment, or for the deletion
// of one.
type SnapshotOrder struct {
	Volumes []int // indexes in Config.Volumes; nil = all
	// Delete is the number of the snapshot of the one volume to be deleted; 0:
	// take one. Its space comes back when the copies have merged their objects.
	Delete      uint32
	ID          ids.ID
	Name        string
	CreatedUnix int64
	Group       ids.ID
}

// Ready is what must be done, in order within each slice; between the slices
// the order does not matter. The slices are valid until the next call of Ready.
type Ready struct {
	Sends   []Send
	Done    []Completion
	Effects []Effect
	Reads   []DirectRead
}

// Send puts a message at the end of the queue of a node's connection;
// heartbeats go to its head. If the connection is not the one of the last
// ConnUp, drop it. Messages are not changed afterwards.
type Send struct {
	Node ids.ID
	Msg  wire.Message
}

// Result is the outcome of a request.
type Result uint8

// The results.
const (
	Done    Result = iota
	IOError        // every in-sync copy of a block is provably unreadable (C5)
	BadRequest
)

// Completion answers a request.
type Completion struct {
	Request *Request
	Result  Result
	Shared  bool // its Data may still be read by a send
}

// Effect is one of the rarer actions.
type Effect interface{ isEffect() }

// The effects.
type (
	// ReadRecords: read own, cfg and seg of all volumes, the placement and the
	// disks, linearizably, as often as it takes: RecordsRead.
	ReadRecords struct{}
	// Commit: send the transaction once: TxnDone.
	Commit struct {
		ID  uint64
		Txn repl.Txn
	}
	// WantNodes is the whole set of storage nodes to be connected with.
	WantNodes struct{ Nodes []ids.ID }
	// Reconnect: nothing is heard over the connection; drop it and try every
	// network between the two nodes.
	Reconnect struct{ Node ids.ID }
	// LeaseChanged: the right to run ends at Deadline unless renewed; zero =
	// not held.
	LeaseChanged struct{ Deadline clock.Instant }
	// StateChanged tells the state of the group.
	StateChanged struct {
		State State
		Text  string
	}
	// Prepared is the outcome of a round of PREPARE.
	Prepared struct {
		Ready     bool          // DoClaim may be called
		Reachable bool          // every segment has an answering in-sync member
		Live      bool          // the present writer lives
		Retry     time.Duration // how long its grant runs yet, at most
		Waiting   []Missing
		Text      string
	}
	// Claimed is the outcome of DoClaim, Reclaim or Abort. Unknown is followed
	// by a certain one when etcd answers.
	Claimed struct {
		Outcome ClaimOutcome
		Text    string
	}
	// Drained answers Drain and Stall.
	Drained struct{}
	// Replaced answers ReplaceDisk.
	Replaced struct {
		Replace Replace
		OK      bool
		Busy    bool // not OK: another change is under way; ask again
		Text    string
	}
	// Snapshotted answers Snapshot. OK: it exists (is deleted), under Numbers in
	// the order of the volumes. Else it does not, and if it was asked for several
	// volumes some may have one: those of its Group are of no use.
	Snapshotted struct {
		Order   SnapshotOrder
		Numbers []uint32
		OK      bool
		Text    string
	}
	// WantPlaces: ask the storage process of this node where the blocks of an extent
	// stand on a disk: PlacesKnown.
	WantPlaces struct {
		Serial uint64
		Disk   ids.ID
		Volume ids.ID
		Extent int64
	}
	// Fenced is final: another promise ended this epoch. The shell decides by
	// run and node of By what becomes of the guest.
	Fenced struct {
		By   repl.Promise
		What wire.Status // StaleEpoch, or Released
	}
	// GuestInvalid is final: acked writes that the guest knows are lost [S6].
	GuestInvalid struct{ Text string }
	// AskMove: the storage link of this node is sick [S13]. Over: no longer.
	AskMove struct {
		Over bool
		Text string
	}
	// RecordsKnown: the records as decided; a shell that wants to be reopened
	// without etcd keeps them.
	RecordsKnown struct{ Records repl.Records }
	// Evidence is a block as a copy held it before it was overwritten because the
	// copies differed although each was sound.
	Evidence struct {
		Volume ids.ID
		Disk   ids.ID
		Extent uint64
		Block  int
		Tag    wire.Tag
		Mark   repl.Mark
		Data   []byte // nil: it read as zeros, or could not be read
	}
	// Report is something that an operator would read.
	Report struct {
		Kind   ReportKind
		Volume ids.ID
		Disk   ids.ID
		Text   string
	}
)

func (ReadRecords) isEffect()  {}
func (Commit) isEffect()       {}
func (WantNodes) isEffect()    {}
func (Reconnect) isEffect()    {}
func (LeaseChanged) isEffect() {}
func (StateChanged) isEffect() {}
func (Prepared) isEffect()     {}
func (Claimed) isEffect()      {}
func (Drained) isEffect()      {}
func (Replaced) isEffect()     {}
func (Snapshotted) isEffect()  {}
func (Fenced) isEffect()       {}
func (GuestInvalid) isEffect() {}
func (AskMove) isEffect()      {}
func (RecordsKnown) isEffect() {}
func (Report) isEffect()       {}
func (WantPlaces) isEffect()   {}
func (Evidence) isEffect()     {}

// ClaimOutcome is what is known of a claim.
type ClaimOutcome uint8

// The outcomes of a claim.
const (
	Unknown ClaimOutcome = iota
	Made
	NotMade // certain: it was not and never will be
)

// Missing is a copy that is waited for.
type Missing struct {
	Volume ids.ID
	Disk   ids.ID
	Node   ids.ID
}

// ReportKind classifies reports.
type ReportKind string

// The kinds of report.
const (
	ReportHealth    ReportKind = "health"      // the in-sync set or a sync changed
	ReportNoSpace   ReportKind = "no-space"    // a write waits for space on Disk
	ReportSpaceBack ReportKind = "space-back"  // no write waits any more
	ReportForgotten ReportKind = "etcd-forgot" // replicas know more than etcd: stopped [S7]
	ReportDamaged   ReportKind = "damaged"     // blocks without a verified copy
	ReportRepaired  ReportKind = "repaired"    // a block was rewritten from a peer
	ReportWaiting   ReportKind = "waiting"     // for copies, at takeover
	ReportStalled   ReportKind = "stalled"     // acks are frozen and cannot be released yet
	ReportBug       ReportKind = "bug"         // a replica answered against the protocol
	ReportForeign   ReportKind = "foreign"     // a disk has a copy of a generation that was given up
	ReportDiffer    ReportKind = "differ"      // in-sync copies of a block differ, and each is sound: a replication bug
)

// State is where a group stands.
type State uint8

// The states.
const (
	Idle        State = iota // nothing owned; may be preparing
	Claiming                 // the CAS is under way
	Owned                    // the CAS is made, nothing opened
	Opening                  // members are being opened, see 2.6 step 2
	Reconciling              // the window is being reconciled
	Serving
	Stalling // draining before Stalled
	Stalled
	Releasing
	ReleasedState // final
	FencedState   // final
	InvalidState  // final: GuestInvalid
	StoppedState  // final: by command, or etcd is behind its replicas
)

// String returns the state's name.
func (s State) String() string {
	names := [...]string{"idle", "claiming", "owned", "opening", "reconciling", "serving",
		"stalling", "stalled", "releasing", "released", "fenced", "invalid", "stopped"}
	if int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// Health describes the volumes, for people.
type Health struct {
	State   State
	Lease   clock.Instant
	Volumes []VolumeHealth
}

// VolumeHealth describes one volume.
type VolumeHealth struct {
	Volume    ids.ID
	SizeBytes int64
	Own       repl.Own
	Stalled   time.Duration // how long acks or the lease have been frozen
	Inflight  int           // requests begun or waiting
	// Reads that were asked of a second copy because the first took long, and those
	// that the second answered first.
	Hedged, HedgesWon uint64
	DirtyBytes        int64 // acked and not flushed
	Healing           int   // blocks that are being repaired, or wait for it
	Lost              int   // blocks that were found readable on no copy, and not written since
	Scrub             ScrubHealth
	Rollback          uint32 // the snapshot that it is being taken back to; clients wait; 0: none
	// RollbackProgress is how far that is.
	RollbackProgress Progress
	// Parent is what the volume was cloned from, as long as it reads there.
	Parent  repl.Parent
	Flatten Progress // of that
	Members []MemberHealth
	Doubts  []Doubt // what AcceptUnverified would let go on now
}

// Progress counts the steps of a job; Total 0: it is not known yet, or there is
// none.
type Progress struct{ Done, Total int64 }

// ScrubHealth tells how the comparison of the copies goes on, or how the last
// one under this epoch went.
type ScrubHealth struct {
	Running  bool
	Runs     int // ended ones
	Done     int // extents compared
	Total    int
	Skipped  int // compared with nothing: fewer than two copies answered
	Differ   int // blocks that differed although each copy was sound
	Repaired int // blocks rewritten, of those and of lost ones
}

// MemberHealth describes one copy.
type MemberHealth struct {
	Disk      ids.ID
	Node      ids.ID
	InSync    bool
	Connected bool
	Reason    repl.OutReason // why it is out
	Syncing   bool
	Foreign   bool   // its copy is of a generation that was given up
	SyncDone  uint64 // objects
	SyncTotal uint64
	SyncBytes uint64        // bytes sent
	SyncLeft  time.Duration // about how long yet; 0: not known
}
