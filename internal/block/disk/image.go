package disk

import (
	"encoding/binary"
	"hash/crc32"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Extent images: docs/formats/disk.md, "Extent metadata". A slot has two, at
// positions seq%2; each is a header page and the tags.
const (
	imageMagic        = 0x31475441584553 // "SEXATG1"
	imageHeaderBytes  = BlockBytes
	imageHeaderCRC    = imageHeaderBytes - 4
	imageStateHead    = 1
	imageStateFree    = 2
	tagBytes          = 8
	imageTagsCRCBytes = imageHeaderBytes - 8
)

var unknownTag = wire.Lost

// imageHeader is the header page of an extent image.
type imageHeader struct {
	Disk       ids.ID
	Slot       uint64
	Generation uint64 // +1 each time the slot is given to an extent
	Volume     ids.ID
	Extent     uint64
	Object     uint32
	State      uint32
	Mark       repl.Mark // newest record applied
	Seq        uint64    // of the image; +1 at each write in this slot, never reset
	CutLSN     uint64    // the checkpoint that wrote it applied the log up to here
}

func imageBytes(extentBlocks int) int64 {
	return imageHeaderBytes + roundUp(int64(extentBlocks)*tagBytes, BlockBytes)
}

// encode fills the header page and both checksums; the tags are in b already.
func (h *imageHeader) encode(b []byte) {
	clear(b[:imageHeaderBytes])
	e := enc{b: b[:imageHeaderBytes]}
	e.u64(imageMagic)
	e.id(h.Disk)
	e.u64(h.Slot)
	e.u64(h.Generation)
	e.id(h.Volume)
	e.u64(h.Extent)
	e.u32(h.Object)
	e.u32(h.State)
	e.mark(h.Mark)
	e.u64(h.Seq)
	e.u64(h.CutLSN)
	binary.LittleEndian.PutUint32(b[imageTagsCRCBytes:], crc32.Checksum(b[imageHeaderBytes:], castagnoli))
	putCRC(e.b, imageHeaderCRC)
}

// decodeImage reads an image. blank: never written. headerGood with an error:
// only the tags are lost.
func decodeImage(b []byte) (h imageHeader, blank, headerGood bool, err error) {
	if len(b) < imageHeaderBytes+tagBytes {
		return h, false, false, errs.New(errs.Corrupt, "read extent image: %d bytes", len(b))
	}
	page := b[:imageHeaderBytes]
	d := dec{b: page}
	magic := d.u64()
	if magic == 0 && isZero(b) {
		return h, true, false, nil
	}
	if magic != imageMagic || !goodCRC(page, imageHeaderCRC) {
		return h, false, false, errs.New(errs.Corrupt, "read extent image: bad header")
	}
	h.Disk = d.id()
	h.Slot, h.Generation = d.u64(), d.u64()
	h.Volume = d.id()
	h.Extent, h.Object, h.State = d.u64(), d.u32(), d.u32()
	h.Mark = d.mark()
	h.Seq, h.CutLSN = d.u64(), d.u64()
	if h.State != imageStateHead && h.State != imageStateFree {
		return h, false, false, errs.New(errs.Corrupt, "read extent image: state %d", h.State)
	}
	if binary.LittleEndian.Uint32(b[imageTagsCRCBytes:]) != crc32.Checksum(b[imageHeaderBytes:], castagnoli) {
		return h, false, true, errs.New(errs.Corrupt, "read extent image: slot %d: bad tag checksum", h.Slot)
	}
	return h, false, true, nil
}

// tagAt and setTag access the tag of a block in an image; mix is the volume's
// checksum start. In memory and on the wire tags are without mix.
func tagAt(img []byte, vcrc uint32, extentBlocks int, extent uint64, block int) wire.Tag {
	off := imageHeaderBytes + block*tagBytes
	t := wire.Tag{CRC: binary.LittleEndian.Uint32(img[off:]), Stamp: binary.LittleEndian.Uint32(img[off+4:])}
	if t.Stamp != 0 {
		t.CRC ^= blockMix(vcrc, extent*uint64(extentBlocks)+uint64(block))
	}
	return t
}

func setTag(img []byte, vcrc uint32, extentBlocks int, extent uint64, block int, t wire.Tag) {
	if t.Stamp != 0 {
		t.CRC ^= blockMix(vcrc, extent*uint64(extentBlocks)+uint64(block))
	}
	off := imageHeaderBytes + block*tagBytes
	binary.LittleEndian.PutUint32(img[off:], t.CRC)
	binary.LittleEndian.PutUint32(img[off+4:], t.Stamp)
}

// Stamp returns the stamp that a write of mark m leaves in its tags: the low
// half of its wseq, and never 0, which means absent.
func Stamp(m repl.Mark) uint32 {
	if s := uint32(m.Wseq); s != 0 {
		return s
	}
	return 1 << 31
}

// CheckCRC reports whether the crc32c (Castagnoli) of every block of data is
// the one given.
func CheckCRC(data []byte, crc []uint32) bool {
	if len(data) != len(crc)*BlockBytes {
		return false
	}
	for i, c := range crc {
		if crc32.Checksum(data[i*BlockBytes:(i+1)*BlockBytes], castagnoli) != c {
			return false
		}
	}
	return true
}
