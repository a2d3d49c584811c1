package disk

import (
	"fmt"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// Places that do not depend on the geometry.
const (
	copySpacing     = 64 << 10 // superblock copies stand in 64 KiB of their own
	scratchOffset   = 512 << 10
	tailBytes       = 1 << 20 // the last superblock copies are in the last MiB
	tableOffset     = 1 << 20
	superblockMagic = 0x3142535541455352 // "RSEAUSB1"
	formatVersion   = 1
	superblockBytes = BlockBytes
	superblockCRC   = superblockBytes - 4
)

// Features that a build must know to open a disk (Superblock.Incompat). A bit is
// set before the first thing is written that needs it.
const (
	incompatObjects = 1 << 1 // records and images of objects above 0, FREE records, holes
	incompatFresh   = 1 << 2 // records of data in place
	incompatLost    = 1 << 3 // SYNC records of blocks that no copy could read

	incompatKnown = incompatObjects | incompatFresh | incompatLost
)

// DiskState is the state in the superblock.
type DiskState uint32

// The states of a disk.
const (
	DiskOK DiskState = iota
	DiskRetiring
	DiskFailed
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
	WALBytes         int64 // default 1/64 of the device, between 256 MiB and 8 GiB (at most a quarter); min 256 KiB
	VolumeTableBytes int64 // one image; default 1 MiB, min 8 KiB; 1 KiB a volume
	ExtentBlocks     int   // default and at most repl.ExtentBlocks; the simulator uses fewer
	UnixTime         int64 // format time, for people; seconds
}

// Superblock is the root of a disk. Four copies are kept.
type Superblock struct {
	Version          uint32
	Incompat, Compat uint64
	Identity         Identity
	Seq              uint64 // +1 at each update
	DeviceBytes      int64
	TableOffset      int64 // volume table images A, B, one after another
	TableBytes       int64 // of one image
	WALOffset        int64
	WALBytes         int64
	MetaOffset       int64
	DataOffset       int64
	Slots            uint64
	ExtentBlocks     uint32
	State            DiskState
	CheckpointLSN    uint64 // recovery starts here
	CheckpointChain  uint32 // header crc of the batch before CheckpointLSN
	CheckpointSess   uint64 // session of that batch
	SlotLimit        uint64 // slots from here on were never used
	TableSeq         uint64 // the volume table image in force is at least this one
	UnixTime         int64
}

func (s *Superblock) slotBytes() int64  { return int64(s.ExtentBlocks) * BlockBytes }
func (s *Superblock) imageBytes() int64 { return imageBytes(int(s.ExtentBlocks)) }

// copyOffsets returns where the superblock copies of a device of that size are.
func copyOffsets(deviceBytes int64) [4]int64 {
	deviceBytes = deviceBytes / BlockBytes * BlockBytes
	return [4]int64{0, copySpacing, deviceBytes - tailBytes, deviceBytes - tailBytes + copySpacing}
}

func (s *Superblock) encode(b []byte) {
	clear(b[:superblockBytes])
	e := enc{b: b[:superblockBytes]}
	e.u64(superblockMagic)
	e.u32(s.Version)
	e.u64(s.Incompat)
	e.u64(s.Compat)
	e.id(s.Identity.Cluster)
	e.id(s.Identity.Disk)
	e.id(s.Identity.Pool)
	e.u64(s.Seq)
	e.u64(uint64(s.DeviceBytes))
	e.u32(512)
	e.u32(BlockBytes)
	e.u64(uint64(s.TableOffset))
	e.u64(uint64(s.TableBytes))
	e.u64(uint64(s.WALOffset))
	e.u64(uint64(s.WALBytes))
	e.u64(uint64(s.MetaOffset))
	e.u64(uint64(s.DataOffset))
	e.u64(s.Slots)
	e.u32(s.ExtentBlocks)
	e.u32(uint32(s.State))
	e.u64(s.CheckpointLSN)
	e.u32(s.CheckpointChain)
	e.u64(s.CheckpointSess)
	e.u64(s.SlotLimit)
	e.u64(s.TableSeq)
	e.u64(uint64(s.UnixTime))
	putCRC(e.b, superblockCRC)
}

// decodeSuperblock reads one copy and checks that its layout makes sense.
func decodeSuperblock(b []byte) (Superblock, error) {
	var s Superblock
	if len(b) < superblockBytes {
		return s, errs.New(errs.Corrupt, "read superblock: %d bytes", len(b))
	}
	b = b[:superblockBytes]
	d := dec{b: b}
	if d.u64() != superblockMagic {
		return s, errs.New(errs.NotFound, "read superblock: no magic number")
	}
	if !goodCRC(b, superblockCRC) {
		return s, errs.New(errs.Corrupt, "read superblock: bad checksum")
	}
	s.Version = d.u32()
	s.Incompat, s.Compat = d.u64(), d.u64()
	s.Identity = Identity{Cluster: d.id(), Disk: d.id(), Pool: d.id()}
	s.Seq = d.u64()
	s.DeviceBytes = int64(d.u64())
	d.u64() // sector sizes
	s.TableOffset, s.TableBytes = int64(d.u64()), int64(d.u64())
	s.WALOffset, s.WALBytes = int64(d.u64()), int64(d.u64())
	s.MetaOffset, s.DataOffset = int64(d.u64()), int64(d.u64())
	s.Slots, s.ExtentBlocks = d.u64(), d.u32()
	s.State = DiskState(d.u32())
	s.CheckpointLSN, s.CheckpointChain, s.CheckpointSess = d.u64(), d.u32(), d.u64()
	s.SlotLimit, s.TableSeq, s.UnixTime = d.u64(), d.u64(), int64(d.u64())
	if s.Version != formatVersion || s.Incompat&^incompatKnown != 0 {
		return s, errs.New(errs.Invalid, "read superblock: format version %d with features %#x; this build reads version %d", s.Version, s.Incompat, formatVersion).
			WithHint("a newer version of Roseau wrote this disk: upgrade this node")
	}
	return s, s.check()
}

func (s *Superblock) check() error {
	max := int64(1) << 60
	for _, v := range []int64{s.DeviceBytes, s.TableOffset, s.TableBytes, s.WALOffset, s.WALBytes, s.MetaOffset, s.DataOffset} {
		if v <= 0 || v > max || v%BlockBytes != 0 {
			return errs.New(errs.Corrupt, "read superblock: layout field %d", v)
		}
	}
	switch {
	case s.ExtentBlocks == 0 || s.ExtentBlocks > repl.ExtentBlocks,
		s.Slots == 0 || s.Slots > uint64(s.DeviceBytes/s.slotBytes()),
		s.SlotLimit > s.Slots,
		s.TableBytes < 2*BlockBytes,
		s.WALBytes < minWALBytes,
		s.TableOffset < tableOffset,
		s.WALOffset < s.TableOffset+2*s.TableBytes,
		s.MetaOffset < s.WALOffset+s.WALBytes,
		s.DataOffset < s.MetaOffset+int64(s.Slots)*2*s.imageBytes(),
		s.DeviceBytes-tailBytes < s.DataOffset+int64(s.Slots)*s.slotBytes():
		return errs.New(errs.Corrupt, "read superblock: areas overlap")
	}
	return nil
}

const minWALBytes = 256 << 10

// plan computes the layout of an empty disk.
func plan(id Identity, g Geometry) (Superblock, error) {
	s := Superblock{Version: formatVersion, Identity: id, Seq: 1, UnixTime: g.UnixTime, ExtentBlocks: uint32(g.ExtentBlocks)}
	s.DeviceBytes = g.DeviceBytes / BlockBytes * BlockBytes
	if s.ExtentBlocks == 0 {
		s.ExtentBlocks = repl.ExtentBlocks
	}
	s.TableOffset, s.TableBytes = tableOffset, g.VolumeTableBytes
	if s.TableBytes == 0 {
		s.TableBytes = 1 << 20
	}
	s.WALBytes = g.WALBytes
	if s.WALBytes == 0 {
		s.WALBytes = min(max(s.DeviceBytes/64, 256<<20), 8<<30, s.DeviceBytes/4)
	}
	s.TableBytes, s.WALBytes = s.TableBytes/BlockBytes*BlockBytes, s.WALBytes/BlockBytes*BlockBytes
	s.WALOffset = roundUp(s.TableOffset+2*s.TableBytes, 1<<20)
	s.MetaOffset = s.WALOffset + s.WALBytes
	align := min(s.slotBytes(), 4<<20)
	free := s.DeviceBytes - tailBytes - s.MetaOffset - align
	if s.ExtentBlocks > repl.ExtentBlocks || free < s.slotBytes()+2*s.imageBytes() {
		return s, errs.New(errs.Invalid, "format disk %s: %d bytes with a log of %d leave no room for an extent", id.Disk, g.DeviceBytes, s.WALBytes)
	}
	s.Slots = uint64(free / (s.slotBytes() + 2*s.imageBytes()))
	s.DataOffset = roundUp(s.MetaOffset+int64(s.Slots)*2*s.imageBytes(), align)
	if err := s.check(); err != nil {
		return s, fmt.Errorf("format disk %s: %w", id.Disk, err)
	}
	return s, nil
}

// Format returns the actions that make an empty disk, in order: the owner does
// them one after another (an OpSync in between is part of the list). Superblocks
// come last, so that an interrupted format leaves no disk.
func Format(id Identity, g Geometry) ([]IO, error) {
	s, err := plan(id, g)
	if err != nil {
		return nil, err
	}
	var list []IO
	add := func(io IO) { io.ID = uint64(len(list) + 1); list = append(list, io) }
	zero := func(off, n int64) { add(IO{Op: OpZero, Offset: off, Length: n}) }
	zero(0, s.TableOffset)
	zero(s.DeviceBytes-tailBytes, tailBytes)
	zero(s.TableOffset, 2*s.TableBytes)
	zero(s.WALOffset, s.WALBytes)
	zero(s.MetaOffset, int64(s.Slots)*2*s.imageBytes())
	add(IO{Op: OpSync})
	buf := alignedBuf(superblockBytes)
	s.encode(buf)
	for i, off := range copyOffsets(s.DeviceBytes) {
		add(IO{Op: OpWrite, Offset: off, Bufs: [][]byte{buf}, Length: superblockBytes})
		if i == 1 || i == 3 {
			add(IO{Op: OpSync})
		}
	}
	return list, nil
}

// chooseSuperblock returns the newest superblock with at least two equal valid
// copies, else the newest valid one, and its number of valid copies.
func chooseSuperblock(copies [4][]byte) (Superblock, int, error) {
	var found [4]*Superblock
	var firstErr error
	for i, b := range copies {
		s, err := decodeSuperblock(b)
		if err == nil {
			found[i] = &s
		} else if firstErr == nil || errs.Kind(firstErr) == errs.NotFound {
			firstErr = err
		}
	}
	var best *Superblock
	bestCount := 0
	for _, s := range found {
		if s == nil {
			continue
		}
		n := 0
		for _, o := range found {
			if o != nil && *o == *s {
				n++
			}
		}
		if best == nil || (n >= 2) != (bestCount >= 2) && n >= 2 || (n >= 2) == (bestCount >= 2) && s.Seq > best.Seq {
			best, bestCount = s, n
		}
	}
	if best == nil {
		return Superblock{}, 0, firstErr
	}
	return *best, bestCount, nil
}
