package disk

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// BlockBytes is the unit of checksums, of atomicity and of alignment.
const BlockBytes = repl.BlockBytes

// Pool provides buffers whose address and length are multiples of BlockBytes.
type Pool interface {
	// Alloc returns byteCount bytes (a multiple of BlockBytes) of any content.
	Alloc(byteCount int) []byte
	// Free takes back exactly a slice that Alloc returned.
	Free(buf []byte)
}

// Options of Open. The zero value of a field means its default.
type Options struct {
	Pool Pool // required

	DeviceBytes int64 // size of the device; required, to find the last superblock copies
	// Expect, if its Disk is not zero, is whose disk it must be (cluster and disk);
	// another one is refused with errs.Conflict before anything is written.
	Expect Identity
	// SeenSession is a session that the caller has seen end or begin on this disk
	// (Recovery.Session): an older copy of it, one that went back in time, is refused
	// with errs.Conflict before anything is written. 0 = none.
	SeenSession   uint64
	TagCacheBytes int // tag tables kept in memory; default 192 MiB: those of 96 GiB
	// DataCacheBytes of payload of logged, unapplied blocks are kept in memory, and as
	// many more as the tables leave of TagCacheBytes; default 64 MiB. A checkpoint
	// starts when 5/8 of that is used.
	DataCacheBytes     int
	LogQueueDepth      int // log writes in flight; default 2
	ExtraBatchBytes    int // payload that must have gathered for a batch beside others in flight: small ones had better gather; default 0
	BatchBytes         int // largest log batch; default 1 MiB, at most an eighth of the ring
	CheckpointFraction int // a checkpoint starts when 1/n of the ring is used; default 4
	ApplyDepth         int // extents applied at a time; default 16
	FreshBlocks        int // blocks of a first write that goes in place; default 4, negative: none does
	// Cells, if not nil, are shown to those who read the disk beside the engine: see
	// Core.Places.
	Cells Cells

	Mutations Mutations
}

// Cells are what place.Cells shows, as the engine writes them.
type Cells interface {
	place.Cells
	// Freed raises the version of a slot. It is called before anything can be
	// written to the slot for another extent.
	Freed(slot uint64)
}

// Mutations switches off one protection each, so that tests and the simulator
// prove that they would notice. The zero value is the correct engine; nothing
// but tests sets a field.
type Mutations struct {
	SkipFlushSync        bool // Flush answers without an fdatasync
	TruncateDamagedLog   bool // recovery drops everything from the first bad batch, durable or not
	ApplyBeforeDurable   bool // blocks are applied in place although their record is not durable
	AckPromiseNotDurable bool // a promise is acknowledged before the fdatasync
	TailIgnoresFlushMark bool // the log forgets records above the flush mark without re-appending them
	NonceUnchecked       bool // two promises of one epoch are one
	NoDuplicates         bool // a record sent again is refused
	EpochUnchecked       bool // Append does not compare the writer's epoch with the promise
	ZeroAboveIsAbsent    bool // a zero in an object above others lets them show through
	FreeBeforeCopy       bool // a merge frees the older object first and copies afterwards
	MergeIgnoresTold     bool // a merge does not look which snapshots exist
	FreshUnverified      bool // recovery trusts data in place without its checksum
	FreshOverPresent     bool // a write goes in place although its blocks are not absent
	FreedUnseen          bool // a slot that is freed keeps its version
	PlacePending         bool // a map of places has blocks whose newest version is in the log
	NoLimit              bool // writes of guests use the reserve, too
	FullForAll           bool // above the limit nothing is taken that is no repair, also what needs no slot
	PassRefused          bool // writes pass one of their extent that was refused for lack of space
	PassHeld             bool // records pass those that wait until the superblock says what the log has
	WindowPinsTail       bool // the log's tail waits for the flush mark of every volume
	RelistOnce           bool // what was re-appended once is not re-appended again
	TailBeforeNotes      bool // the tail moves before what was re-appended is durable
	FlushMarkOfAll       bool // the flush mark of one volume counts for all
	FreeSlotEarly        bool // a slot is free before a checkpoint has said so durably
	ForgetHoles          bool // a tombstone above older objects is not kept when a block is written over it
}

// Op is the kind of an I/O action.
type Op uint8

// The kinds of I/O actions.
const (
	OpRead Op = iota + 1
	OpWrite
	OpSync // fdatasync: everything whose Done was called before this action was handed out becomes durable
	OpZero // make Length bytes read as zeros; Format only
)

// IO is an action for the shell. Bufs belong to the core and are valid, and not
// to be changed by anyone else, until Done.
type IO struct {
	ID     uint64
	Op     Op
	Offset int64    // bytes from the start of the device
	Bufs   [][]byte // read into, or written from, one after another
	Length int64    // bytes in all
	Later  bool     // of a checkpoint: no request waits for it alone, others may pass it
}

// Completion is the answer to one request.
type Completion struct {
	Token  uint64 // the caller's
	Status wire.Status

	// Reads and Tags only:
	Tags []wire.Tag // one a block, crc32c of the data as a client sees it; nil if the object is absent
	Mark repl.Mark  // of the extent
	Data []byte     // Read: the caller's buffer; nil if every block is zero or absent
	Bad  []int      // Read: indexes of the blocks that could not be read or verified

	Places *place.Map // Places
}

// Ready is what a core wants from its owner.
type Ready struct {
	IO   []IO
	Done []Completion
}

// Kind is the kind of a Record.
type Kind uint8

// The kinds of records that change blocks.
const (
	KindWrite         Kind = iota + 1 // Count blocks from Block, Data and CRC
	KindZero                          // Count blocks from Block read as zeros
	KindTombstone                     // the whole object reads as zeros, its slot is freed
	KindSync                          // Blocks as at the source; no order check
	KindRepair                        // one block, if its tag is still Expect; no order check; Object names the reader
	KindSyncTombstone                 // as KindTombstone, from the source of a sync; no order check
)

// Writer names the right under which a record is appended; both must equal the
// promise in force.
type Writer struct {
	Epoch uint64
	Inc   uint32
}

// Record is a change of blocks of one extent.
//
// Append takes ownership of Blocks, Data, and of a CRC of more than one block.
// Data comes from Options.Pool and goes back there; it holds the blocks one after
// another (KindSync: the non-absent ones). The core does not compare Data with CRC: see CheckCRC.
type Record struct {
	Kind   Kind
	Volume ids.ID
	Writer Writer
	Extent uint64
	Object uint32    // number of the object; KindRepair: the snapshot to be repaired, 0 = head
	Mark   repl.Mark // of the write; of the source's extent for KindSync and KindSyncTombstone; of the tag for KindRepair
	Block  int       // first block inside the extent
	Count  int       // blocks
	CRC    []uint32  // KindWrite: one a block
	Blocks []wire.SyncBlock
	Expect wire.Tag // KindRepair: the tag that must still be there
	Tag    wire.Tag // KindRepair: the tag to store
	Data   []byte

	Durable bool // FUA: answer after an fdatasync that covers it
	Reserve bool // KindWrite: may use slots above the limit; every kind but KindWrite may
	Resent  bool // a duplicate of a record that is still in the window is answered OK
}

// ControlKind is the kind of a Control record.
type ControlKind uint8

// The kinds of control records. All are durable before their completion.
const (
	ControlPromise  ControlKind = iota + 1 // Promise and Boot; creates the volume if it is unknown
	ControlRelease                         // the promised epoch is over for good
	ControlConfig                          // Told; Boot if not zero
	ControlSyncDone                        // a verified resync ended: not damaged any more; Boot if not zero
	ControlDrop                            // the volume was deleted: forget it and free its extents
)

// Control changes what a disk remembers of a volume.
type Control struct {
	Kind    ControlKind
	Volume  ids.ID
	Promise repl.Promise // ControlPromise
	Boot    ids.ID       // boot identity to record for the promise's run; zero = keep
	Told    wire.Told    // ControlConfig
	Import  bool         // ControlPromise: also over a promise of an older volume generation
}

// VolumeInfo is what a disk knows of a volume. A volume that is not known has
// the zero value.
type VolumeInfo struct {
	Volume      ids.ID
	Promise     repl.Promise // newest in log order, durable or not
	Boot        ids.ID       // boot identity recorded for Promise.Run
	Released    bool         // Promise's epoch was released
	Told        wire.Told
	Untold      bool      // no ControlConfig came since Open or ForbidMerge: Told may lack snapshots that objects here belong to
	DurableMark repl.Mark // upto of the last completed Flush
	FlushMark   repl.Mark // in-sync-set-wide, as far as SetFlushMark told
	MaxMark     repl.Mark // newest record held
	Damaged     bool      // a durable part of the log or of the metadata was lost
	Unverified  int       // entries of a dropped log tail that Window lists
	WindowBytes int64     // the writer must flush at least every so many bytes
	Extents     int       // extents with a slot
}

// Recovery tells how Open went.
type Recovery struct {
	Session         uint64 // +1 at each open
	Superblocks     int    // valid copies of the one chosen; 1 is to be reported
	Batches         int
	Records         int
	DroppedBytes    int64 // torn tail: never durable
	Unverified      int   // records listed from the torn tail
	DamagedRanges   []LSNRange
	DamagedExtents  int // extents whose metadata was lost
	UnreadableSlots int // slots whose both images are lost
}

// LSNRange is a part of the log; an LSN is a byte position in the endless log.
type LSNRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Stats are counters and gauges.
type Stats struct {
	Slots, FreeSlots   int
	SlotBytes          int64
	UsedBytes          int64 // slots in use * SlotBytes
	RingBytes          int64
	RingUsedBytes      int64
	DurableLSN         uint64
	HeadLSN            uint64
	CheckpointLSN      uint64
	Batches            uint64 // written since Open
	Syncs              uint64
	Checkpoints        uint64
	AppliedBlocks      uint64
	FreshBlocks        uint64 // written in place at once
	MergedBlocks       uint64 // copied into the next newer object
	FreedObjects       uint64 // objects that a merge made needless
	RelistedRecords    uint64 // re-appended because only the flush mark or a tombstone held them
	ReadBlocks         uint64
	UnreadableBlocks   uint64 // reads that ended in an error or a mismatch, in blocks
	BadMetadata        uint64 // images, superblocks and tables found bad at rest by a check
	TagCacheHits       uint64
	TagCacheMisses     uint64
	Volumes            int
	Gathering          int // records waiting for a batch
	PendingApplyBlocks int
}
