package volume

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/nbd"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
)

// Identity makes the client side of mutual TLS; package pki implements it.
type Identity interface {
	// ClientTLS returns a configuration that presents this node's certificate
	// and accepts only peer's.
	ClientTLS(peer ids.ID) *tls.Config
}

// Directory finds nodes. Implementations must be safe for concurrent use.
type Directory interface {
	// StorageAddrs returns the addresses (host:port) of `roseau storage` on a
	// node, best first: storage network, then the others. Empty: not known.
	StorageAddrs(node ids.ID) []string
}

// Etcd is the part of *clientv3.Client that a Set uses. The caller owns the
// client and closes it after the Set.
type Etcd interface {
	clientv3.KV
	clientv3.Watcher
}

// Config says which volumes to open, and as whom.
type Config struct {
	Cluster    ids.ID
	Generation uint32 // of the cluster
	Node       ids.ID // this node
	Guard      ids.ID // this run of this process; random
	Run        ids.ID // guest memory lineage; new at each start from power-on and for each offline writer
	Purpose    repl.Purpose

	// VM and Attempt name the placement record that a take compares and, with
	// TakeOptions.Placement, writes. VM zero: the volumes change hands alone.
	VM      ids.ID
	Attempt uint64

	Volumes []ids.ID // 1 to 32, taken together or not at all

	// GuestAlive: a guest with memory of Run exists (adoption, migration's
	// destination), so copies that forgot acked writes are no good for it.
	GuestAlive bool
	// ReadOnly exports refuse writes (purpose export).
	ReadOnly bool
	// Cache is a file where the records are kept, so that a successor on this
	// node can Reopen without etcd. Empty: none.
	Cache string

	Etcd     Etcd
	Identity Identity
	Nodes    Directory
	// StorageSocket is the unix socket of this node's storage process; empty
	// means paths.StorageSocket; "-" means: dial it like any other.
	StorageSocket string
	Clock         clock.Clock // nil: the machine's
	Log           *slog.Logger

	// Evidence is a directory for blocks that a scrub overwrites although they were
	// sound; empty: paths.Evidence.
	Evidence string

	// Timing of the core; zero fields mean its defaults.
	Timing writer.Timing
	// SegmentBytes is for tests; 0 means repl.SegmentBytes.
	SegmentBytes int64

	// OnLease is called, in a turn, whenever the lease changes or is
	// renewed: it must not block or call the Set. nil: not called.
	OnLease func(Lease)

	nonce ids.ID // drawn by Open
}

// Lease is the right to run: the earliest lease of all volumes of the set.
type Lease struct {
	// Held is true while the set may serve: taken, every lease running.
	Held bool
	// Deadline is when the right ends unless it is renewed. Ports are opened
	// until Deadline - 0.5 s, never beyond. Meaningless if !Held.
	Deadline clock.Instant
}

// EventKind tells events apart.
type EventKind string

// The kinds of events. Fenced and GuestInvalid are final.
const (
	// EventTaken: the set serves. Sent once a take, reopen or reclaim.
	EventTaken EventKind = "taken"
	// EventFenced: another promise ended this epoch. By tells whose: same run
	// and node: exit without touching QEMU; same run, other node: a migration,
	// ask Owner; another run: shut the ports and kill QEMU.
	EventFenced EventKind = "fenced"
	// EventGuestInvalid: every copy of a segment lost power under the guest and
	// may have lost acked writes: kill QEMU, start with a new run.
	EventGuestInvalid EventKind = "guest-invalid"
	// EventAskMove: the storage link of this node is sick and the set stalls
	// rather than go on with one copy: the HA manager should move the VM.
	EventAskMove EventKind = "ask-move"
	// EventLeaseLost and EventLeaseBack: same epoch; the guest pauses and goes on.
	EventLeaseLost EventKind = "lease-lost"
	EventLeaseBack EventKind = "lease-back"
	// EventMoveOver: the reason of EventAskMove is gone.
	EventMoveOver EventKind = "move-over"
	// EventHealth: the in-sync set or a sync changed; see Status.
	EventHealth EventKind = "health"
	// EventNoSpace and EventSpaceBack: a write waits for space on Disk.
	EventNoSpace   EventKind = "no-space"
	EventSpaceBack EventKind = "space-back"
	// EventForgotten: a replica knows a newer configuration than etcd does:
	// etcd lost something; the set stopped before its CAS.
	EventForgotten EventKind = "etcd-forgot"
	// EventWaiting: a take waits for copies; Text names them.
	EventWaiting EventKind = "waiting"
	// EventStalled: acks are frozen and cannot be released yet.
	EventStalled EventKind = "stalled"
	// EventRepaired: a block was rewritten from another copy.
	EventRepaired EventKind = "repaired"
	// EventDiffer: in-sync copies of a block differed although each was sound, a
	// replication bug; what was overwritten is kept under Config.Evidence.
	EventDiffer EventKind = "differ"
	// EventBug: a replica answered against the protocol.
	EventBug EventKind = "bug"
	// EventExhausted: this process may open no further descriptor, so no connection
	// that is lost can be made anew. Sent once: it should end and be started again.
	EventExhausted EventKind = "exhausted"
	// EventDamaged: blocks of which no verified copy is left (an EIO was given).
	EventDamaged EventKind = "damaged"
)

// Event is something that a guard acts on or an operator would want to read.
type Event struct {
	At     clock.Instant
	Kind   EventKind
	Volume ids.ID       // zero: all
	Disk   ids.ID       // zero: none in particular
	By     repl.Promise // EventFenced
	Text   string       // one line for people
}

// Prepared is the outcome of one round of PREPARE: nothing was changed but the
// 2 s reservation at the replicas.
type Prepared struct {
	// Ready: Take may be called at once. Only if every segment has an answering
	// in-sync member and the present writer's grant is over.
	Ready bool
	// Reachable: every segment of every volume has an answering in-sync member
	// (what a migration's destination asks for: the source's grant lives).
	Reachable bool
	// Retry is how long the present grant runs yet, at most; ask again then.
	Retry time.Duration
	// Live: the present writer lives and is left alone.
	Live bool
	// Waiting names disks of segments that have no answering in-sync member:
	// "waiting for copy".
	Waiting []Missing
	// Text explains a refusal in one line.
	Text string
}

// Missing is a copy that is waited for.
type Missing struct {
	Volume ids.ID
	Disk   ids.ID
	Node   ids.ID
}

// Outcome is what is known of a compare-and-swap.
type Outcome string

// The outcomes.
const (
	Made    Outcome = "made"
	NotMade Outcome = "not made" // certain: it was not and never will be
	Unknown Outcome = "unknown"  // neither; Owner decides once etcd answers
)

// Claim is the one CAS over the own records of all volumes and the placement.
type Claim struct {
	// ExpectRun, if not zero, is compared with own.run: adoption and hand-over
	// set it to their QEMU's run; a mismatch is errs.Fenced, and that QEMU must
	// be killed.
	ExpectRun ids.ID
	// ExpectEpoch, if not zero, is compared with own.epoch (migration: the
	// source's epoch, so that no other take goes unnoticed).
	ExpectEpoch uint64
	// Placement, if not nil, is written in the same txn. It is compared first:
	// node and attempt must be as Config says, or, with a Target, the target
	// must be this node.
	Placement *repl.Placement
	// Timeout bounds the wait for a certain answer; 0 means until ctx ends.
	// After it the outcome is Unknown.
	Timeout time.Duration
}

// Owner is the decisive record, read linearizably.
type Owner struct {
	Epoch   uint64
	Inc     uint32
	Node    ids.ID
	Run     ids.ID
	Nonce   ids.ID
	Purpose repl.Purpose
	// Mine: the record carries this set's nonce: its CAS was made.
	Mine bool
}

// Predecessor is the guard that this one follows on the same node, holding its
// lock, so that it is certainly gone.
type Predecessor struct {
	Epoch uint64
	Nonce ids.ID
	Inc   uint32
}

// Phase is where a set stands.
type Phase string

// The phases.
const (
	PhaseOpen     Phase = "open"     // records read, connections made, nothing owned
	PhaseClaimed  Phase = "claimed"  // the CAS is made, members not reconciled
	PhaseServing  Phase = "serving"  // requests are answered (while the lease is held)
	PhaseStalled  Phase = "stalled"  // reads and writes wait, FLUSH is answered
	PhaseReleased Phase = "released" // final
	PhaseFenced   Phase = "fenced"   // final
	PhaseInvalid  Phase = "invalid"  // final: the guest's memory is invalid
	PhaseStopped  Phase = "stopped"  // final: closed, or etcd is behind its replicas
)

// Replace names the disks of ReplaceDisk.
type Replace struct {
	Volume   ids.ID
	Old      ids.ID
	New      ids.ID   // zero: Old, which was to take the place of another copy, leaves
	Node     ids.ID   // of New
	Segments []uint32 // empty: all of Old's
	Live     bool     // Old may be in sync, and stays until New is
}

// Status is a snapshot for people and reconcilers.
type Status struct {
	Phase   Phase          `json:"phase"`
	Lease   bool           `json:"lease"`
	Epoch   uint64         `json:"epoch"`
	Run     ids.ID         `json:"run"`
	Volumes []VolumeStatus `json:"volumes"`
}

// VolumeStatus describes one volume.
type VolumeStatus struct {
	Volume    ids.ID `json:"volume"`
	SizeBytes int64  `json:"size_bytes"`
	Epoch     uint64 `json:"epoch"`
	Inc       uint32 `json:"inc"`
	Nonce     ids.ID `json:"nonce"`
	Healthy   bool   `json:"healthy"` // every disk of the placement is in sync
	Copies    int    `json:"copies"`  // wanted
	// CopiesInSync is the number of in-sync copies of the worst segment.
	CopiesInSync int           `json:"copies_in_sync"`
	Stalled      time.Duration `json:"stalled_ns"`
	Waiting      int           `json:"waiting"` // client requests not answered yet
	Disks        []DiskStatus  `json:"disks"`
	Healing      int           `json:"healing,omitempty"` // blocks that are being repaired
	// Rollback is the number of the snapshot that the volume is being taken back
	// to, while clients wait; 0: none.
	Rollback         uint32   `json:"rollback,omitempty"`
	RollbackProgress Progress `json:"rollback_progress,omitzero"`
	// Parent is what the volume was cloned from, as long as it reads there.
	Parent  repl.Parent `json:"parent,omitzero"`
	Flatten Progress    `json:"flatten,omitzero"` // how far it is copied
	Lost    int         `json:"lost,omitempty"`   // blocks found readable on no copy, and not written since
	Scrub   ScrubStatus `json:"scrub"`
	// The client I/O since the volume was opened.
	Reads uint64 `json:"reads"`
	// ReadsDirect are parts of reads that this process read from a local disk by itself.
	ReadsDirect uint64 `json:"reads_direct"`
	Writes      uint64 `json:"writes"`
	Flushes     uint64 `json:"flushes"`
	ReadBytes   uint64 `json:"read_bytes"`
	WriteBytes  uint64 `json:"write_bytes"`
	// Hedged are the reads that were asked of a second copy because the first took
	// long; HedgesWon those that it answered first.
	Hedged    uint64 `json:"hedged,omitempty"`
	HedgesWon uint64 `json:"hedges_won,omitempty"`
}

// Progress counts the steps of a job; Total 0: not known yet, or there is none.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// Percent is how far it is; never 100 before the end.
func (p Progress) Percent() int {
	if p.Total <= 0 {
		return 0
	}
	return int(min(p.Done*100/p.Total, 99))
}

// ScrubStatus tells how the comparison of the copies goes on, or how the last one
// of this writer went.
type ScrubStatus struct {
	Running  bool `json:"running"`
	Runs     int  `json:"runs"` // ended ones
	Done     int  `json:"done"` // extents compared
	Total    int  `json:"total"`
	Skipped  int  `json:"skipped,omitempty"`  // fewer than two copies answered
	Differ   int  `json:"differ,omitempty"`   // blocks that differed although each copy was sound
	Repaired int  `json:"repaired,omitempty"` // blocks rewritten
}

// DiskStatus is a copy of a volume.
type DiskStatus struct {
	Disk      ids.ID        `json:"disk"`
	Node      ids.ID        `json:"node"`
	InSync    bool          `json:"in_sync"`
	Connected bool          `json:"connected"`
	Reason    string        `json:"reason,omitempty"`       // why it is out
	Foreign   bool          `json:"foreign,omitempty"`      // its copy is of a generation that was given up: it is left alone
	Syncing   bool          `json:"syncing,omitempty"`      // a resync or rebuild is running
	SyncDone  uint64        `json:"sync_done,omitempty"`    // objects compared or copied
	SyncTotal uint64        `json:"sync_total,omitempty"`   // objects known to be stale
	SyncBytes uint64        `json:"sync_bytes,omitempty"`   // copied
	SyncLeft  time.Duration `json:"sync_left_ns,omitempty"` // about how long yet; 0: not known
}

// Opener is what a guard needs of this package; Open satisfies it. Guards take
// it as a value so that tests can do without storage.
type Opener func(ctx context.Context, cfg Config) (Handle, error)

// Handle is the method set of *Set.
//
// The usual life: Open, Serve (requests wait), Prepare until Ready, Take, …,
// Drain, Release, Close. A guard that follows one on the same node: Open, Serve,
// Reopen. A migration's destination: Open, Serve, Prepare (Reachable), Claim,
// tell the source, Activate. Its source: Stall, then Resume ("never sent"), or
// Reclaim (own CAS), or Release (the destination's CAS is known), by what Owner
// or the destination says.
type Handle interface {
	// Prepare asks every member once; see Prepared.
	Prepare(ctx context.Context) (Prepared, error)
	// Claim makes the CAS. Unknown comes with a nil error; NotMade with the
	// reason. After Unknown call Owner or Claim again: the nonce is kept.
	Claim(ctx context.Context, c Claim) (Outcome, error)
	// Activate opens the members under the claimed epoch, waits for the old
	// lease, reconciles, and returns when the set serves.
	Activate(ctx context.Context) error
	// Take is Claim, repeated while unknown, and Activate.
	Take(ctx context.Context, c Claim) error
	// Reopen takes up after a predecessor that is certainly gone: the same epoch
	// with the next inc if all members promise (no etcd needed), else a take
	// with run compared. errs.Fenced: own names another run: kill that QEMU.
	Reopen(ctx context.Context, p Predecessor) error
	// Abort ends Prepare. NotMade binds: no CAS was sent and none ever will be
	// ("never", the answer that lets a migration's source go on). Made, Unknown:
	// one was sent.
	Abort(ctx context.Context) (Outcome, error)
	// Reclaim is the migration source's own CAS (epoch + 1, same run and node)
	// while stalled; after Made it serves again.
	Reclaim(ctx context.Context, c Claim) (Outcome, error)
	// Owner reads own of the first volume linearizably.
	Owner(ctx context.Context) (Owner, error)

	// Backend returns the block device of a volume; requests wait until served.
	Backend(vol ids.ID) (nbd.Backend, error)
	// Serve answers NBD clients of a volume on l until ctx ends or the set is
	// closed; it closes l. The export's name is the volume's id, or empty.
	Serve(ctx context.Context, vol ids.ID, l net.Listener) error
	// ServeSnapshot is Serve for the content of a snapshot, read-only.
	ServeSnapshot(ctx context.Context, vol ids.ID, number uint32, l net.Listener) error

	// ReplaceDisk gives the disk new (on the same node's or another's storage
	// process) segments that lie on old, and starts the copying. Conflict: another
	// change of the volume is under way, or it cannot be.
	ReplaceDisk(ctx context.Context, r Replace) error
	// Snapshot takes a snapshot of one volume, or of all at one moment, or deletes
	// one. errs.Conflict with the reason if it did not come to be; if ctx ends
	// first it may still.
	Snapshot(ctx context.Context, o repl.SnapshotOrder) error
	// Scrub starts the comparison of a volume's copies, or stops it where it is;
	// Status tells how it goes on.
	Scrub(ctx context.Context, vol ids.ID, stop bool) error
	// MoveRefused ends the wait that EventAskMove announced: no other node can
	// take the VM, so the set goes on with the copy that it has.
	MoveRefused() error
	// AcceptTail tells which copies a volume waits to be allowed to go on with, and
	// with accept, an operator's word, goes on with them: what they lack is lost.
	// errs.Conflict if it waits for nothing of the kind.
	AcceptTail(vol ids.ID, accept bool) (volumectl.Tail, error)

	// Drain waits until every request received so far is answered, then flushes.
	Drain(ctx context.Context) error
	// Stall drains, flushes, and from then on lets reads and writes wait; FLUSH
	// is answered. The lease is kept. On error nothing is stalled.
	Stall(ctx context.Context) error
	// Resume ends Stall under the same epoch.
	Resume() error
	// Release drains, flushes and ends the epoch for good at every member.
	// After Stall it sends no further write. errs.Unavailable if a member that
	// could not be excluded did not confirm before ctx ended: the next writer
	// then waits out the lease, nothing worse.
	Release(ctx context.Context) error

	// Ping returns when a turn was taken: what a watchdog asks for.
	Ping(ctx context.Context) error
	// Lease is the present right to run.
	Lease() Lease
	// Status is a snapshot.
	Status() Status
	// Events is closed by Close. It is buffered; a reader that falls 1024
	// behind loses EventHealth events, never others.
	Events() <-chan Event
	// Close stops everything without release: open requests are left
	// unanswered, connections closed. Idempotent.
	Close() error
}
