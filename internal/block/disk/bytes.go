package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// enc writes little-endian fields one after another into b.
type enc struct {
	b   []byte
	off int
}

func (e *enc) u8(v uint8)   { e.b[e.off] = v; e.off++ }
func (e *enc) u16(v uint16) { binary.LittleEndian.PutUint16(e.b[e.off:], v); e.off += 2 }
func (e *enc) u32(v uint32) { binary.LittleEndian.PutUint32(e.b[e.off:], v); e.off += 4 }
func (e *enc) u64(v uint64) { binary.LittleEndian.PutUint64(e.b[e.off:], v); e.off += 8 }
func (e *enc) id(v ids.ID)  { e.off += copy(e.b[e.off:], v[:]) }
func (e *enc) mark(m repl.Mark) {
	e.u64(m.Epoch)
	e.u64(m.Wseq)
}
func (e *enc) flag(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

// dec reads what enc wrote; past the end it returns zeros and sets short.
type dec struct {
	b     []byte
	off   int
	short bool
}

func (d *dec) take(n int) []byte {
	if d.off+n > len(d.b) {
		d.short = true
		return nil
	}
	s := d.b[d.off : d.off+n]
	d.off += n
	return s
}

func (d *dec) u8() uint8 {
	if s := d.take(1); s != nil {
		return s[0]
	}
	return 0
}

func (d *dec) u16() uint16 {
	if s := d.take(2); s != nil {
		return binary.LittleEndian.Uint16(s)
	}
	return 0
}

func (d *dec) u32() uint32 {
	if s := d.take(4); s != nil {
		return binary.LittleEndian.Uint32(s)
	}
	return 0
}

func (d *dec) u64() uint64 {
	if s := d.take(8); s != nil {
		return binary.LittleEndian.Uint64(s)
	}
	return 0
}

func (d *dec) id() (v ids.ID) { copy(v[:], d.take(16)); return v }
func (d *dec) mark() repl.Mark {
	epoch := d.u64()
	return repl.Mark{Epoch: epoch, Wseq: d.u64()}
}
func (d *dec) flag() bool { return d.u8() != 0 }

// putCRC stores the crc32c of b, taken with the field at off zero, at off.
func putCRC(b []byte, off int) uint32 {
	crc := crcWithout(b, off)
	binary.LittleEndian.PutUint32(b[off:], crc)
	return crc
}

// goodCRC reports whether the field at off is the crc32c of b without it.
func goodCRC(b []byte, off int) bool {
	return binary.LittleEndian.Uint32(b[off:]) == crcWithout(b, off)
}

var zeroCRC [4]byte // on the heap for the hash function, so once

func crcWithout(b []byte, off int) uint32 {
	crc := crc32.Update(0, castagnoli, b[:off])
	crc = crc32.Update(crc, castagnoli, zeroCRC[:])
	return crc32.Update(crc, castagnoli, b[off+4:])
}

func roundUp[T int | int64 | uint64](n, unit T) T { return (n + unit - 1) / unit * unit }

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// volumeCRC starts mix for a volume: see blockMix.
func volumeCRC(v ids.ID) uint32 { return crc32.Update(0, castagnoli, v[:]) }

// blockMix returns mix(volume, block), which is xored into a stored checksum so
// that a block of another place is never taken for this one. For one volume it
// is injective in the low 32 bits of the block number.
func blockMix(volumeCRC uint32, block uint64) uint32 {
	// As crc32.Update of its 8 bytes, but nothing has to be put on the heap.
	crc := ^volumeCRC
	for range 8 {
		crc = castagnoli[byte(crc)^byte(block)] ^ crc>>8
		block >>= 8
	}
	return ^crc
}

// assert ends the process on a broken invariant: going on would spread it.
func assert(ok bool, format string, args ...any) {
	if !ok {
		panic("disk: invariant broken: " + fmt.Sprintf(format, args...))
	}
}
