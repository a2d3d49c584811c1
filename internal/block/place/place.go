// Package place has what a writer needs to read blocks of a local copy by itself:
// where the blocks of an extent stand on the disk, and the rule by which what was
// read there counts. docs/design/direct-reads.md has the reasons.
package place

import (
	"encoding/binary"

	"roseau/internal/base/errs"
	"roseau/internal/core/repl"
)

// Slot is a place of an extent's data on a disk. Version is that of the slot when
// the map was made: it rises before the slot can be given to something else.
type Slot struct {
	Number  uint64 // of the slot on its disk
	Version uint64
	Offset  int64 // bytes from the start of the disk, of the extent's first block
}

// Map tells which blocks of an extent stand in place, as the head shows it: their
// slot, and the checksum of what they hold. It is not changed once it is made.
// The zero Map knows no block.
type Map struct {
	Session uint64 // of the disk: see Cells
	Slots   []Slot // at most 255
	Source  []byte // one a block: 1 + index in Slots; 0 = to be asked of the disk's owner
	CRC     []uint32
}

// Empty returns a map of an extent of so many blocks of which none is known.
func Empty(session uint64, blocks int) *Map {
	return &Map{Session: session, Source: make([]byte, blocks), CRC: make([]uint32, blocks)}
}

// Read is a read of neighbouring blocks in one slot.
type Read struct {
	Session uint64
	Slot    uint64
	Version uint64
	Offset  int64 // bytes from the start of the disk
	CRC     []uint32
}

// Find returns how to read count blocks from block; false: not all of them stand
// one after another in one slot.
func (m *Map) Find(block, count int) (Read, bool) {
	if block < 0 || count <= 0 || block+count > len(m.Source) {
		return Read{}, false
	}
	at := m.Source[block]
	if at == 0 {
		return Read{}, false
	}
	for _, s := range m.Source[block+1 : block+count] {
		if s != at {
			return Read{}, false
		}
	}
	s := &m.Slots[at-1]
	return Read{
		Session: m.Session, Slot: s.Number, Version: s.Version, Offset: s.Offset + int64(block)*repl.BlockBytes,
		CRC: m.CRC[block : block+count : block+count],
	}, true
}

// Cells are the numbers that the owner of a disk shows to those who read it
// beside him. Each is looked at after the read has ended.
type Cells interface {
	// Session rises before another opening of the disk writes anything to it, and
	// when its owner gives it up.
	Session() uint64
	// Version of a slot rises after the slot was freed and before anything is
	// written to it for another extent.
	Version(slot uint64) uint64
}

// Valid reports whether what r read is what the map said: nobody can have begun to
// write something else there before the read ended. The caller has compared the
// checksums, and knows of no write of its own to the blocks.
func (r *Read) Valid(c Cells) bool {
	return c.Session() == r.Session && c.Version(r.Slot) == r.Version
}

const slotBytes = 24

// Append appends the encoding of m: session u64, count of slots u8, slots of number,
// version and offset u64 each, one source a block, one checksum a block that has a source.
func (m *Map) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, m.Session)
	b = append(b, byte(len(m.Slots)))
	for _, s := range m.Slots {
		b = binary.LittleEndian.AppendUint64(b, s.Number)
		b = binary.LittleEndian.AppendUint64(b, s.Version)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Offset))
	}
	b = append(b, m.Source...)
	for i, s := range m.Source {
		if s != 0 {
			b = binary.LittleEndian.AppendUint32(b, m.CRC[i])
		}
	}
	return b
}

// MaxBytes bounds an encoded map.
const MaxBytes = 9 + 255*slotBytes + 5*repl.ExtentBlocks

// Decode reads what Append wrote of an extent of repl.ExtentBlocks; errs.Corrupt:
// these are other bytes.
func Decode(b []byte) (*Map, error) {
	bad := func(what string) (*Map, error) {
		return nil, errs.New(errs.Corrupt, "decode map of an extent: %s", what)
	}
	if len(b) < 9 {
		return bad("too short")
	}
	m := Empty(binary.LittleEndian.Uint64(b), repl.ExtentBlocks)
	n := int(b[8])
	if b = b[9:]; len(b) < n*slotBytes+repl.ExtentBlocks {
		return bad("too short")
	}
	for range n {
		s := Slot{Number: binary.LittleEndian.Uint64(b), Version: binary.LittleEndian.Uint64(b[8:]), Offset: int64(binary.LittleEndian.Uint64(b[16:]))}
		if s.Offset < 0 || s.Offset%repl.BlockBytes != 0 || s.Offset > 1<<62 {
			return bad("offset of a slot")
		}
		m.Slots = append(m.Slots, s)
		b = b[slotBytes:]
	}
	copy(m.Source, b)
	b = b[repl.ExtentBlocks:]
	for i, s := range m.Source {
		switch {
		case s == 0:
			continue
		case int(s) > n:
			return bad("a block in a slot that is not there")
		case len(b) < 4:
			return bad("too short")
		}
		m.CRC[i] = binary.LittleEndian.Uint32(b)
		b = b[4:]
	}
	if len(b) != 0 {
		return bad("too long")
	}
	return m, nil
}
