package disk

import (
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Identity says whose disk it is.
type Identity struct {
	Cluster ids.ID
	Disk    ids.ID // new at each format: what an older format left is not recognised
	Pool    ids.ID
}

// Geometry is the layout chosen at format; zero fields take defaults.
type Geometry struct {
	DeviceBytes      int64 // required; rounded down to BlockBytes
	WALBytes         int64 // default 1/64 of the device, between 256 MiB and 8 GiB; min 256 KiB
	VolumeTableBytes int64 // one image; default 1 MiB, min 8 KiB; about 1 KiB a volume
	ExtentBlocks     int   // default and at most repl.ExtentBlocks; the simulator uses fewer
	UnixTime         int64 // format time, for people; seconds
}

// Format returns the actions that make an empty disk, in order: the owner does
// them one after another (an OpSync in between is part of the list).
func Format(id Identity, g Geometry) ([]IO, error) { panic("todo") }

// Core is the engine of one disk.
type Core struct{}

// Open starts recovery: run Ready/Done until Opened says so.
func Open(o Options) *Core { panic("todo") }

// Opened reports whether recovery ended, and how. Before it ended no other call
// than Ready and Done is allowed; after an error none at all.
func (c *Core) Opened() (Recovery, bool, error) { panic("todo") }

// Identity returns whose disk it is; valid after Opened.
func (c *Core) Identity() Identity { panic("todo") }

// ExtentBlocks returns the blocks of an extent on this disk.
func (c *Core) ExtentBlocks() int { panic("todo") }

// Ready moves what is to be done into r (its slices are reused). Call it after
// every call of another method, until both slices are empty.
func (c *Core) Ready(r *Ready) { panic("todo") }

// Done reports that an action ended. A read's Bufs are filled if err is nil.
func (c *Core) Done(id uint64, err error) { panic("todo") }

// Append logs a record. The order of calls is the order of the log. Statuses:
// OK (written; with Durable: durable), StaleEpoch, Released, OutOfOrder,
// NoSpace (not logged: send it again; later marks of that extent are refused
// until it came), TagChanged, BadRequest, DiskFailed.
func (c *Core) Append(token uint64, r Record) { panic("todo") }

// Control logs a control record; it is in force for every later Append at once
// and answered when durable. A promise below the one in force answers
// StaleEpoch, OtherNonce or OtherGeneration, see CheckPromise.
func (c *Core) Control(token uint64, ctl Control) { panic("todo") }

// Flush makes every record appended before it durable and then moves the
// volume's durable mark to upto.
func (c *Core) Flush(token uint64, volume ids.ID, upto repl.Mark) { panic("todo") }

// ReadRequest asks for Count blocks from Block of an extent.
type ReadRequest struct {
	Volume ids.ID
	Extent uint64
	Object uint32
	Block  int
	Count  int
	Buf    []byte // from the pool, Count*BlockBytes; the caller's again at the completion
}

// Read reads and verifies blocks. Status Unreadable: Bad lists the blocks.
func (c *Core) Read(token uint64, r ReadRequest) { panic("todo") }

// Tags reads the tags of an extent, as a read now would find them.
func (c *Core) Tags(token uint64, volume ids.ID, extent uint64, object uint32) { panic("todo") }

// Probe writes and completes a scratch block, to see that the device answers.
func (c *Core) Probe(token uint64) { panic("todo") }

// Idle is called when nothing was asked for about 50 ms: it writes an empty
// batch that says what is durable, and applies what waits.
func (c *Core) Idle() { panic("todo") }

// Volume returns what is known of a volume, and whether anything is.
func (c *Core) Volume(volume ids.ID) (VolumeInfo, bool) { panic("todo") }

// Volumes returns the known volumes in order.
func (c *Core) Volumes() []ids.ID { panic("todo") }

// Window returns every record above from, durable or not, and the unverified
// tail, in log order.
func (c *Core) Window(volume ids.ID, from repl.Mark) []wire.WindowEntry { panic("todo") }

// Objects returns the objects of a volume whose mark is above from, by extent.
func (c *Core) Objects(volume ids.ID, from repl.Mark) []wire.ExtEntry { panic("todo") }

// SetFlushMark tells the in-sync-set-wide flush mark; it never moves back.
func (c *Core) SetFlushMark(volume ids.ID, m repl.Mark) { panic("todo") }

// ForgetTombstones drops tombstones up to m: all members of the placement are
// in sync and durable beyond it.
func (c *Core) ForgetTombstones(volume ids.ID, m repl.Mark) { panic("todo") }

// Stats returns counters.
func (c *Core) Stats() Stats { panic("todo") }

// Dead returns the error that ended the disk, or nil.
func (c *Core) Dead() error { panic("todo") }

// CheckPromise compares a promise in force (zero = none) with a new one: OK
// means that it is to be logged. The same promise again is OK too.
func CheckPromise(cur repl.Promise, released bool, next repl.Promise) wire.Status { panic("todo") }

// Stamp returns the stamp that a write of mark m leaves in its tags.
func Stamp(m repl.Mark) uint32 { panic("todo") }

// CheckCRC reports whether the crc32c (Castagnoli) of every block of data is
// the one given.
func CheckCRC(data []byte, crc []uint32) bool { panic("todo") }
