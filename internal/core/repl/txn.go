package repl

import "roseau/internal/base/ids"

// VolumeRecord is what etcd says about a volume, all read in one transaction.
type VolumeRecord struct {
	ID     ids.ID
	Own    Own
	OwnRev int64 // mod revision
	Cfg    Cfg
	CfgRev int64
	Seg    Segments
	SegRev int64
}

// DiskNode says on which node a disk is.
type DiskNode struct {
	Disk ids.ID
	Node ids.ID
}

// Records is everything that a group of volumes depends on, read at one
// revision.
type Records struct {
	Volumes      []VolumeRecord // in the order asked for
	VM           ids.ID         // zero: no placement
	Placement    Placement
	PlacementRev int64
	Disks        []DiskNode // all disks named in any seg, sorted by Disk
	// Parents are the volumes that clones among Volumes read, each once, in any order;
	// read after Volumes. One that is missing was not found.
	Parents []VolumeRecord
}

// Txn compares mod revisions and puts values; all or nothing.
type Txn struct {
	Compares []Compare
	Puts     []Put
}

// Key names a record.
type Key struct {
	Kind KeyKind
	ID   ids.ID // volume, or VM for KeyPlacement
}

// KeyKind is the kind of a record.
type KeyKind uint8

// The kinds of record.
const (
	KeyOwn KeyKind = iota + 1
	KeyCfg
	KeySeg
	KeyPlacement
	KeyClones // of the parent; never in a Txn of a writer
)

// Path returns the etcd key.
func (k Key) Path() string {
	switch k.Kind {
	case KeyOwn:
		return "/s/vol/" + k.ID.String() + "/own"
	case KeyCfg:
		return "/s/vol/" + k.ID.String() + "/cfg"
	case KeySeg:
		return "/s/vol/" + k.ID.String() + "/seg"
	case KeyClones:
		return "/s/vol/" + k.ID.String() + "/clones"
	case KeyPlacement:
		return "/s/vm/" + k.ID.String() + "/placement"
	}
	return ""
}

// Compare demands that a record still has the mod revision read.
type Compare struct {
	Key Key
	Rev int64 // 0 = the key must not exist
}

// Put writes a record. Exactly one pointer is not nil, by Key.Kind.
type Put struct {
	Key       Key
	Own       *Own
	Cfg       *Cfg
	Seg       *Segments
	Placement *Placement
}

// Outcome is what the store answered to a Txn.
type Outcome uint8

// The outcomes. OutcomeUnknown: it may have been, or may yet be, committed:
// read again, or send the same Txn again, until it is certain.
const (
	OutcomeUnknown Outcome = iota
	OutcomeCommitted
	OutcomeConflict
)
