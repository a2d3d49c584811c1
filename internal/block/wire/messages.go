// Package wire has the replication protocol between a writer (in a guard) and a
// replica (in a storage process): message types here, their encoding beside.
//
// One connection per (guard, storage process), mutual TLS over TCP or a unix
// socket on the same node. It carries the messages of all volumes and disks of
// that pair in one order. Requests carry a ReqID that the answer repeats.
package wire

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// ProtocolVersion is spoken by this build; HELLO negotiates the range.
//
// Version 2 has snapshots: the fields of Told and Read that speak of them.
// Version 3 has clones: SnapRead, and SyncBegin.Partial.
const ProtocolVersion = 3

// Handle stands for (volume, disk, promise) after OPEN_ACK. A new promise and a
// re-OPEN end all older handles of the volume on that disk.
type Handle uint64

// Status is the result of a request. Zero is success.
type Status uint16

// The statuses; a NACK in the protocol's text is an answer with Status != OK.
const (
	OK Status = iota
	StaleEpoch
	StaleCfg
	OtherGeneration
	OtherNonce
	OutOfOrder
	NoSpace
	DiskFailed
	Damaged
	Busy
	BadHandle
	BadRequest
	Unreadable   // read: checksum or media error on this replica; the others may have it
	TagChanged   // REPAIR: the block changed meanwhile
	LeaseRunning // OPEN: promise refused yet, GrantLeft tells when to ask again
	Released     // the epoch was released: final
	VersionMismatch
)

// Message is one of the types below.
type Message interface{ isMessage() }

// Hello opens a connection.
type Hello struct {
	Cluster    ids.ID
	Generation uint32
	Node       ids.ID
	Guard      ids.ID // one run of one guard process
	ProtoMin   uint8
	ProtoMax   uint8
}

// HelloAck answers Hello. Session is one run of one storage process: if it
// changed, what that process had not flushed may be gone.
type HelloAck struct {
	Status  Status
	Node    ids.ID
	Session ids.ID
	Proto   uint8
	Disks   []ids.ID
}

// OpenFlags modify Open.
type OpenFlags uint8

// The flags of Open.
const (
	OpenTry             OpenFlags = 1 << iota // PREPARE: changes nothing but the 2 s reservation
	OpenPredecessorDead                       // the opener proved (by the lock) that Predecessor is gone
	OpenImport                                // a copy of an older volume generation is taken into that of Promise
)

// Open asks a disk to promise Promise for a volume (OpenTry: asks whether it
// would). The promise is durable before the answer.
type Open struct {
	ReqID       uint64
	Flags       OpenFlags
	Volume      ids.ID
	Disk        ids.ID
	Promise     repl.Promise
	Predecessor PredecessorID // with OpenPredecessorDead
	CfgVersion  uint32
	SizeBytes   int64
}

// PredecessorID names exactly one promise.
type PredecessorID struct {
	Epoch uint64
	Nonce ids.ID
	Inc   uint32
}

// GrantState is what a storage process knows of the lease of a volume's present
// guard.
type GrantState uint8

// The grant states. GrantUnknown (within L*1.1 of the process's start) counts
// as live.
const (
	GrantNone GrantState = iota // never opened, or released
	GrantLive
	GrantStalled // heartbeats come and say stalled for more than 2 s
	GrantLapsed
	GrantUnknown
)

// Told is the newest configuration that a replica holds durably.
type Told struct {
	Epoch      uint64
	CfgVersion uint32
	Out        []ids.ID
	Pending    ids.ID // a disk that a grow in progress counts; zero = none
	Complete   bool
	Whole      bool     // every copy is in sync in all its segments: objects may be merged. Not kept on disk
	SnapSeq    uint32   // highest snapshot number reserved: no write of this volume may bear a higher one
	Snaps      []uint32 // rising: snapshots that exist, and the one under way; at most repl.MaxSnapshots+1
}

// OpenAck answers Open. Marks are of this (volume, disk).
type OpenAck struct {
	ReqID       uint64
	Status      Status
	Handle      Handle
	Promised    repl.Promise // the promise in force (after a refusal: the one that refused)
	Released    bool         // Promised's epoch was released
	Grant       GrantState
	GrantLeft   time.Duration // until the last grant has surely run out (L*1.1); 0 if not live
	Cold        bool          // rebooted since the promise for this run was first made
	Told        Told
	DurableMark repl.Mark // newest write surely on media: upto of the last completed FLUSH
	FlushMark   repl.Mark // ISR-wide flush mark as far as this replica learned it
	MaxMark     repl.Mark // newest record held
	Damaged     bool
	Unverified  uint32 // entries of the dropped log tail that Window will list
	WindowBytes uint64 // the writer must flush at least every so many bytes
}

// RecordKind is the kind of a logged change.
type RecordKind uint8

// The record kinds that a window can hold.
const (
	RecordWrite RecordKind = iota + 1
	RecordZero
	RecordTombstone
)

// WindowReq asks for every record above From, durable or not, and the
// unverified tail, below From as well: if From is what every copy had flushed,
// such an entry was no torn tail. The answer may come in several messages; Last marks the end.
type WindowReq struct {
	ReqID  uint64
	Handle Handle
	From   repl.Mark
}

// WindowEntry describes blocks [Block, Block+Count) of an extent changed by one
// record.
type WindowEntry struct {
	Kind     RecordKind
	Verified bool
	Object   uint32 // snap_seq of the object written
	Extent   uint64
	Block    uint16
	Count    uint16
	Mark     repl.Mark
	CRC      []uint32 // one a block; nil for zero and tombstone
}

// Window answers WindowReq.
type Window struct {
	ReqID   uint64
	Status  Status
	Last    bool
	Entries []WindowEntry
}

// WriteFlags modify Write and Zero.
type WriteFlags uint16

// The flags of Write and Zero.
const (
	WriteFUA     WriteFlags = 1 << iota
	WriteResent             // after a resumed session: a duplicate (same mark, same crc) is acked
	ZeroDiscard             // Zero: the client does not need the space (TRIM)
	WriteReserve            // Write: a repair, which may use the space kept for it
)

// Piggyback rides on Write, Zero, Flush and Heartbeat.
type Piggyback struct {
	CommitWseq uint64
	FlushMark  repl.Mark // ISR-wide
	CfgVersion uint32
}

// Write changes whole blocks inside one extent. CRC is crc32c of each block,
// computed once where the data entered. Data is owned by the receiver after
// decoding and shared, read-only, among the sends of one write.
type Write struct {
	ReqID     uint64
	Handle    Handle
	Flags     WriteFlags
	Mark      repl.Mark
	Offset    int64 // bytes from the start of the volume, block aligned
	SnapSeq   uint32
	Piggyback Piggyback
	CRC       []uint32
	Data      []byte
}

// Zero makes Length bytes read as zeros; it does not cross an extent.
type Zero struct {
	ReqID     uint64
	Handle    Handle
	Flags     WriteFlags
	Mark      repl.Mark
	Offset    int64
	Length    int64
	SnapSeq   uint32
	Piggyback Piggyback
}

// Ack answers Write, Zero, SyncWrite and Repair: the record was pwritten (with
// WriteFUA: is durable). It grants nothing.
type Ack struct {
	ReqID    uint64
	Status   Status
	Mark     repl.Mark
	Promised repl.Promise // with StaleEpoch or OtherNonce: who has it now
}

// Flush makes every write acked on this handle with wseq <= Upto durable.
type Flush struct {
	ReqID     uint64
	Handle    Handle
	Upto      uint64
	Piggyback Piggyback
}

// FlushAck answers Flush. The writer refuses it if Session changed.
type FlushAck struct {
	ReqID   uint64
	Status  Status
	Upto    uint64
	Session ids.ID
}

// Read asks for whole blocks inside one extent.
type Read struct {
	ReqID  uint64
	Handle Handle
	Offset int64
	Length int64
	Repair bool   // read for resync or repair, also when the tag is needed
	Raw    bool   // Object names one object, and nothing older shows through
	Object uint32 // Raw: the object; else the snapshot to be read, 0 = head
}

// SnapRead asks for blocks of a snapshot, without a promise: a snapshot never
// changes. It is answered by ReadReply. Any status but OK and Unreadable: this copy
// cannot show it, or not to a reader whose records are so old (StaleCfg).
type SnapRead struct {
	ReqID      uint64
	Volume     ids.ID
	Disk       ids.ID
	Generation repl.Generation
	CfgVersion uint32 // own's, in the record by which the reader chose the copy
	Snapshot   uint32 // number, > 0
	Offset     int64  // bytes from the start of the volume, block aligned
	Length     int64  // it does not cross an extent
}

// Tag is the checksum and stamp of a block as stored. Stamp is the low half of
// the write's wseq, and 0 only for a block without data. The zero Tag means
// absent: older objects of the extent show through, then zeros.
type Tag struct {
	CRC   uint32
	Stamp uint32
}

// Hole is the tag of a block that reads as zeros and hides older objects.
var Hole = Tag{CRC: 0xfffffffe}

// Lost is the tag of a block that cannot be verified here: its metadata is gone, or
// no copy could read it when this one joined. It reads as an error until another
// copy or a write heals it.
var Lost = Tag{CRC: 0xffffffff}

// HasData reports whether a block of this tag has data of its own.
func (t Tag) HasData() bool { return t.Stamp != 0 }

// ReadReply answers Read. Status Unreadable: no byte of the blocks in Bad may be
// used; the others are as good as with OK.
type ReadReply struct {
	ReqID  uint64
	Status Status
	Tags   []Tag       // one a block
	Marks  []repl.Mark // ext mark of the extent, len 1; for resync
	Bad    []uint16    // rising indexes into Tags of blocks that cannot be read or verified
	Data   []byte      // nil if every block is absent, zero or bad
}

// Damage is sent by a replica on its own, after OPEN_ACK and whenever it finds
// blocks of the handle's volume that cannot be read or verified. Blocks has them
// with their tags as they were found; a lost tag is {CRC: 0xffffffff, Stamp: 0}.
// There is no answer: the writer sends REPAIR.
type Damage struct {
	Handle Handle
	Extent uint64
	Object uint32
	Blocks []SyncBlock // rising
}

// Heartbeat is sent every 500 ms, at the head of the queue.
type Heartbeat struct {
	SendTime clock.Instant // the guard's clock, echoed
	Stalled  time.Duration // how long acks or leases have been frozen; 0 = serving
	Volumes  []HeartbeatVolume
}

// HeartbeatVolume carries the marks of one open handle.
type HeartbeatVolume struct {
	Handle    Handle
	Piggyback Piggyback
}

// HeartbeatAck is the only carrier of grants.
type HeartbeatAck struct {
	SendTime clock.Instant // echo: the lease counts from it
	Grant    time.Duration // L, or 0 = renewal refused
	Refused  []HandleRefusal
	Disks    []DiskHealth
}

// HandleRefusal names a handle whose epoch is not renewed any more.
type HandleRefusal struct {
	Handle   Handle
	Status   Status // StaleEpoch, OtherNonce, Released, BadHandle, or Busy = reserved for 2 s by a PREPARE
	Promised repl.Promise
}

// DiskHealth tells the age of the last finished probe write of a disk.
type DiskHealth struct {
	Disk      ids.ID
	ProbeAge  time.Duration
	Failed    bool
	FreeSlots uint64
}

// Config makes (CfgVersion, Out, Pending) durable at a member.
type Config struct {
	ReqID  uint64
	Handle Handle
	Told   Told
}

// ConfigAck answers Config.
type ConfigAck struct {
	ReqID  uint64
	Status Status
}

// ExtListReq lists the objects of a volume on this disk whose mark is above
// From. Many answers; Last ends.
type ExtListReq struct {
	ReqID  uint64
	Handle Handle
	From   repl.Mark
}

// ExtEntry is one object. Tombstone: the extent was discarded as a whole.
type ExtEntry struct {
	Extent    uint64
	Object    uint32
	Mark      repl.Mark
	Tombstone bool
}

// ExtList answers ExtListReq.
type ExtList struct {
	ReqID   uint64
	Status  Status
	Last    bool
	Entries []ExtEntry
}

// ExtTagsReq asks for the tags of one object.
type ExtTagsReq struct {
	ReqID  uint64
	Handle Handle
	Extent uint64
	Object uint32
	// Resolved: not the object's own tags, but what a reader sees, whatever objects
	// they stand in; Object is the snapshot, 0 = head.
	Resolved bool
}

// ExtTags answers ExtTagsReq; absent objects have nil Tags.
type ExtTags struct {
	ReqID  uint64
	Status Status
	Mark   repl.Mark
	Tags   []Tag
}

// SyncBegin starts a sync session on a joining disk: from now on the replica
// keeps the live set (extent, object, block) written by live writes. Unless it is
// Partial, the disk may not know yet that it is out, and shows no snapshot to clones
// until the next CONFIG.
type SyncBegin struct {
	ReqID   uint64
	Handle  Handle
	Partial bool // it is in sync for other segments, and was told which it is given
}

// SyncBlock is one block of a SyncWrite.
type SyncBlock struct {
	Block uint16
	Tag   Tag // as at the source; zero = make absent; Lost = no copy can read it
}

// SyncWrite copies blocks of one object from the source; it bypasses the order
// check and never overwrites a block of the live set. Mark is the source's
// extent mark. Data holds the non-absent blocks in order.
type SyncWrite struct {
	ReqID     uint64
	Handle    Handle
	Extent    uint64
	Object    uint32
	Mark      repl.Mark
	Blocks    []SyncBlock
	Data      []byte
	Tombstone bool
}

// SyncEnd ends the session: everything so far is durable before the answer, and
// the boot identity of the run is renewed.
type SyncEnd struct {
	ReqID  uint64
	Handle Handle
}

// SimpleAck answers SyncBegin, SyncEnd and Release.
type SimpleAck struct {
	ReqID  uint64
	Status Status
}

// Repair rewrites one block whose tag must still be Expect. Object names the
// reader, as in Read: the block is rewritten in the object where that one finds it.
type Repair struct {
	ReqID  uint64
	Handle Handle
	Extent uint64
	Object uint32
	Block  uint16
	Expect Tag
	Tag    Tag
	Mark   repl.Mark
	Data   []byte
}

// Release ends the epoch for good; sent by its holder after a drain and a
// flush. Durable before the answer.
type Release struct {
	ReqID  uint64
	Handle Handle
}

func (*Hello) isMessage()        {}
func (*HelloAck) isMessage()     {}
func (*Open) isMessage()         {}
func (*OpenAck) isMessage()      {}
func (*WindowReq) isMessage()    {}
func (*Window) isMessage()       {}
func (*Write) isMessage()        {}
func (*Zero) isMessage()         {}
func (*Ack) isMessage()          {}
func (*Flush) isMessage()        {}
func (*FlushAck) isMessage()     {}
func (*Read) isMessage()         {}
func (*ReadReply) isMessage()    {}
func (*Heartbeat) isMessage()    {}
func (*HeartbeatAck) isMessage() {}
func (*Config) isMessage()       {}
func (*ConfigAck) isMessage()    {}
func (*ExtListReq) isMessage()   {}
func (*ExtList) isMessage()      {}
func (*ExtTagsReq) isMessage()   {}
func (*ExtTags) isMessage()      {}
func (*SyncBegin) isMessage()    {}
func (*SyncWrite) isMessage()    {}
func (*SyncEnd) isMessage()      {}
func (*SimpleAck) isMessage()    {}
func (*Repair) isMessage()       {}
func (*Release) isMessage()      {}
func (*Damage) isMessage()       {}
func (*SnapRead) isMessage()     {}
