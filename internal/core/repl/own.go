// Package repl has the records that decide who may write a volume, and the pure
// transitions between them: takeover, shrink, grow, replace, reopen, hand-over.
// It imports no I/O and no clock; production code, the simulator and the model
// checker drive the same functions.
//
// The records live in etcd; every transaction that touches own, cfg or seg of a
// volume compares the revision of its own record and bumps CfgVersion.
package repl

import (
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Fixed sizes of the engine, in bytes.
const (
	BlockBytes   = 4 << 10 // checksum and atomicity unit
	ExtentBytes  = 4 << 20 // allocation, version and resync unit
	SegmentBytes = 1 << 30 // placement unit
	ExtentBlocks = ExtentBytes / BlockBytes
)

// MaxSnapshots is how many snapshots a volume may have: a read may have to look
// into one object more, and CONFIG names them all.
const MaxSnapshots = 31

// Generation tells apart histories that etcd itself cannot order. A replica of
// another generation answers only to an explicit import.
type Generation struct {
	Cluster uint32 `json:"cluster"` // +1 by `cluster recover`
	Volume  uint32 `json:"volume"`  // +1 by `volume force`
}

// Mark is a position in a volume's write order: compared as (Epoch, Wseq).
type Mark struct {
	Epoch uint64 `json:"epoch"`
	Wseq  uint64 `json:"wseq"`
}

// Less reports whether m is before n.
func (m Mark) Less(n Mark) bool {
	return m.Epoch < n.Epoch || m.Epoch == n.Epoch && m.Wseq < n.Wseq
}

// Purpose says what a writer opened a volume for.
type Purpose string

// The purposes.
const (
	PurposeVM          Purpose = "vm"
	PurposeMaintenance Purpose = "maintenance"
	PurposeServe       Purpose = "serve"
	PurposeImport      Purpose = "import"
	PurposeExport      Purpose = "export"
)

// OutReason says why a disk left the in-sync set.
type OutReason string

// Out describes a disk that is outside the in-sync set of a volume.
type Out struct {
	// Base is the ISR-wide flush mark at the moment of exclusion: the disk may
	// miss anything newer, and nothing flushed that is older.
	Base   Mark      `json:"base"`
	Reason OutReason `json:"reason"`
	// Fill lists segments that the disk was given and never held completely: for
	// them Base is zero. Not changed once it is in a record.
	Fill []Fill `json:"fill,omitempty"`
	// Partial: it is in sync for its segments that are not in Fill. Else it is
	// outside for all of them, and Base is zero if Fill is not empty.
	Partial bool `json:"partial,omitempty"`
	// Since is when it was put out, in seconds since 1970 by the writer's clock; 0:
	// not known. For people.
	Since int64 `json:"since,omitempty"`
}

// Fill is a segment whose copy a disk is being given.
type Fill struct {
	Segment uint32 `json:"segment"`
	// Drop is the copy that leaves the segment once this one is in sync; zero:
	// none.
	Drop ids.ID `json:"drop,omitzero"`
}

// Fills reports whether the disk is being given a segment.
func (o Out) Fills(segment int) bool {
	for i := range o.Fill {
		if int(o.Fill[i].Segment) == segment {
			return true
		}
	}
	return false
}

// Covers reports whether the disk is outside the in-sync set of a segment.
func (o Out) Covers(segment int) bool { return !o.Partial || o.Fills(segment) }

// Own is /s/vol/<uuid>/own, the one compare-and-swap object of a volume.
//
// The in-sync set of a segment is placement(segment) minus the disks whose Out
// covers it.
type Own struct {
	Generation Generation `json:"generation"`
	Epoch      uint64     `json:"epoch"` // +1 at each takeover; 0 = never opened
	Nonce      ids.ID     `json:"nonce"` // drawn by the taker; tells two epochs of one number apart
	Inc        uint32     `json:"inc"`   // +1 when a successor on the same node reopens the same epoch
	Node       ids.ID     `json:"node"`
	Run        ids.ID     `json:"run"` // guest memory lineage
	Purpose    Purpose    `json:"purpose"`
	CfgVersion uint32     `json:"cfg_version"` // +1 in every txn on own, cfg or seg
	// Import lists, sorted, the disks whose copies of an older volume generation are
	// taken into the present one when they are opened (`volume force`).
	Import []ids.ID       `json:"import,omitempty"`
	Out    map[ids.ID]Out `json:"out,omitempty"`
}

// Promise is what a replica promised: no lower (Epoch, Inc) of this generation
// completes a write there any more.
type Promise struct {
	Generation Generation
	Epoch      uint64
	Nonce      ids.ID
	Inc        uint32
	Node       ids.ID
	Run        ids.ID
}

// VolumeState is the life of a volume.
type VolumeState string

// The volume states. Replicas free extents only on reading VolumeDeleting.
const (
	VolumeLive     VolumeState = "live"
	VolumeDeleting VolumeState = "deleting"
)

// Cfg is /s/vol/<uuid>/cfg.
type Cfg struct {
	SizeBytes int64       `json:"size_bytes"` // multiple of BlockBytes
	Copies    int         `json:"copies"`     // 3
	MinISR    int         `json:"min_isr"`    // default 1
	State     VolumeState `json:"state"`
	VM        ids.ID      `json:"vm,omitzero"` // the VM that it belongs to, if any
	Pool      ids.ID      `json:"pool"`
	Snap      SnapContext `json:"snap,omitzero"`
	// Rollback is the number of the snapshot that the volume is being taken back
	// to; 0: none. Whoever opens the volume finishes that before it serves.
	Rollback uint32 `json:"rollback,omitempty"`
	// Parent is where a block is read that this volume has nothing of, as long as the
	// volume is a clone.
	Parent Parent `json:"parent,omitzero"`
	// Incompat has a bit for each feature without which the volume would be
	// written wrongly. A writer that does not know one refuses the volume.
	Incompat uint64 `json:"incompat,omitempty"`
}

// SnapContext is what etcd knows of a volume's snapshots.
type SnapContext struct {
	Next uint32     `json:"next"` // the highest number ever reserved; writes bear it, or a higher one
	List []Snapshot `json:"list,omitempty"`
}

// Snapshot is one snapshot of a volume. List is sorted by Number.
type Snapshot struct {
	Number      uint32 `json:"number"` // > 0; names this boundary for ever
	ID          ids.ID `json:"id"`
	Name        string `json:"name"` // unique in the volume
	CreatedUnix int64  `json:"created_unix"`
	// Group is shared by the snapshots of a VM's volumes that were taken at one
	// moment; zero: taken alone.
	Group ids.ID `json:"group,omitzero"`
}

// Find returns the snapshot of that number, or nil.
func (s SnapContext) Find(number uint32) *Snapshot {
	for i := range s.List {
		if s.List[i].Number == number {
			return &s.List[i]
		}
	}
	return nil
}

// Numbers returns the numbers of the snapshots that exist, rising.
func (s SnapContext) Numbers() []uint32 {
	list := make([]uint32, len(s.List))
	for i := range s.List {
		list[i] = s.List[i].Number
	}
	return list
}

// KnownFeatures are the bits of Cfg.Incompat that this build knows. A bit is
// never given a second meaning; docs/formats/disk.md has the same rule for disks.
const KnownFeatures = FeatureSnapshots | FeatureRollback | FeatureClone | FeatureImport

// The features.
const (
	// FeatureSnapshots: numbers of snapshots were reserved, and writes must bear
	// them.
	FeatureSnapshots uint64 = 1 << 0
	// FeatureRollback: Rollback is set, and nobody may be served before it is not.
	FeatureRollback uint64 = 1 << 1
	// FeatureClone: Parent is set, and what the copies have nothing of is read there.
	FeatureClone uint64 = 1 << 2
	// FeatureImport: Own.Import counts.
	FeatureImport uint64 = 1 << 3
)

// Supported returns nil if this build knows every feature that the volume needs,
// else errs.Invalid.
func (r *VolumeRecord) Supported() error {
	if unknown := r.Cfg.Incompat &^ KnownFeatures; unknown != 0 {
		return errs.New(errs.Invalid, "open volume %s: it uses features %#x, this build knows %#x", r.ID, unknown, KnownFeatures).
			WithHint("a newer version of Roseau made this volume: upgrade this node, or run it on one that was")
	}
	return nil
}

// Segments is /s/vol/<uuid>/seg: Disks indexed by Map, one row a segment.
type Segments struct {
	Disks []ids.ID   `json:"disks"`
	Map   [][]uint16 `json:"map"` // Map[segment] = indexes into Disks, len = copies
}

// Placement is /s/vm/<uuid>/placement.
type Placement struct {
	Node    ids.ID `json:"node"`            // who may take the volumes; zero = nobody
	Attempt uint64 `json:"attempt"`         // +1 at every decision of the scheduler
	State   string `json:"state"`           // starting | running | migrating | stopping | stopped
	Target  ids.ID `json:"target,omitzero"` // destination while migrating
	// MoveRate bounds a migration's stream, bytes a second; 0: no bound. MoveNetwork
	// is the role of the network that carries it; empty: storage, then cluster.
	MoveRate    int64  `json:"move_rate,omitempty"`
	MoveNetwork string `json:"move_network,omitempty"`
	// MovePatienceMS is how long a migration is tried that does not come to its end;
	// 0: until it is hopeless.
	MovePatienceMS int64  `json:"move_patience_ms,omitempty"`
	Run            ids.ID `json:"run,omitzero"`
	// Stay: no other node can take the VM that asked to leave Node for its sick
	// storage link; its writer may go on with one copy [S13].
	Stay bool `json:"stay,omitempty"`
}
