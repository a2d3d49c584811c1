package disk

import (
	"hash/crc32"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Log batches: docs/formats/disk.md, "Log". A batch is header pages (batch header
// and descriptors), then payload, all in multiples of BlockBytes.
const (
	batchMagic       = 0x314c415755455352 // "RSEUWAL1"
	batchHeaderBytes = 128
	batchCRCOffset   = 124
	descriptorBytes  = 64
	syncBlockBytes   = 12
	maxBatchBytes    = 16 << 20
)

// The record types of the log.
const (
	recWrite uint8 = iota + 1
	recZero
	recTombstone
	recSync
	recRepair
	recVolume // body: a volume entry
	recMarks  // mark: durable mark; body: flush mark, tombstone mark
	recDrop
	recFree  // the object is gone: what it had is in the next newer one
	recFlush // in memory only: a Flush that waits for the records before it
)

// The flags of a descriptor.
const (
	flagNote       = 1 << iota // no payload: the record was applied, it stays for Window
	flagUnverified             // it was in a dropped tail: its data is not here
	flagFresh                  // the data stands in place, in Slot
)

const batchFlagPad = 1 // nothing here: the rest of the ring is skipped

// batchHeader is the head of a batch.
type batchHeader struct {
	Disk        ids.ID
	LSN         uint64 // position in the endless log = ring position modulo its length
	Session     uint64 // of the open that wrote it; never decreases along the log
	DurableLSN  uint64 // everything below was covered by an fdatasync
	TailLSN     uint64 // checkpoint in force
	Bytes       uint32 // of the batch
	HeaderBytes uint32 // of the header pages
	Records     uint32
	Prev        uint32 // CRC of the batch before
	Flags       uint32
	CRC         uint32 // of the header pages
}

func (h *batchHeader) end() uint64 { return h.LSN + uint64(h.Bytes) }

// descriptor is one record as it stands in the header pages.
type descriptor struct {
	Type     uint8
	Flags    uint8
	Index    uint32 // of the volume in the table
	Extent   uint64
	Block    uint16
	Count    uint16
	Object   uint32
	Mark     repl.Mark
	ImageSeq uint64 // the extent's durable image when it was appended
	Payload  uint32 // offset in the batch; 0 = none
	OrigLSN  uint64 // of a re-appended record
	Slot     uint32 // flagFresh: of the object
	CRC      []uint32
	Blocks   []wire.SyncBlock
	Body     []byte
}

func (d *descriptor) bodyBytes() int {
	switch d.Type {
	case recWrite:
		return 4 * len(d.CRC)
	case recSync, recRepair:
		return syncBlockBytes * len(d.Blocks)
	}
	return len(d.Body)
}

// payloadBlocks returns how many blocks of payload the record has.
func (d *descriptor) payloadBlocks() int {
	if d.Flags&(flagNote|flagUnverified|flagFresh) != 0 {
		return 0
	}
	switch d.Type {
	case recWrite:
		return len(d.CRC)
	case recSync, recRepair:
		n := 0
		for _, b := range d.Blocks {
			if b.Tag.HasData() {
				n++
			}
		}
		return n
	}
	return 0
}

// needsSlot reports whether the record leaves something in its object's image:
// data, or holes.
func (d *descriptor) needsSlot() bool {
	if d.Flags&(flagNote|flagUnverified) != 0 {
		return false
	}
	if d.Type == recSync || d.Type == recRepair {
		return slices.ContainsFunc(d.Blocks, func(b wire.SyncBlock) bool { return b.Tag != (wire.Tag{}) })
	}
	return d.Type == recWrite || d.Type == recZero && d.Object > 0
}

func (d *descriptor) encode(e *enc) {
	start := e.off
	e.u8(d.Type)
	e.u8(d.Flags)
	e.u16(uint16(d.bodyBytes()))
	e.u32(d.Index)
	e.u64(d.Extent)
	e.u16(d.Block)
	e.u16(d.Count)
	e.u32(d.Object)
	e.mark(d.Mark)
	e.u64(d.ImageSeq)
	e.u32(d.Payload)
	e.u64(d.OrigLSN)
	e.u32(d.Slot)
	e.off = start + descriptorBytes
	switch d.Type {
	case recWrite:
		for _, c := range d.CRC {
			e.u32(c)
		}
	case recSync, recRepair:
		for _, b := range d.Blocks {
			e.u16(b.Block)
			e.u16(0)
			e.u32(b.Tag.CRC)
			e.u32(b.Tag.Stamp)
		}
	default:
		e.off += copy(e.b[e.off:], d.Body)
	}
}

func (d *descriptor) decode(r *dec) bool {
	start := r.off
	d.Type, d.Flags = r.u8(), r.u8()
	bodyLen := int(r.u16())
	d.Index, d.Extent = r.u32(), r.u64()
	d.Block, d.Count, d.Object = r.u16(), r.u16(), r.u32()
	d.Mark = r.mark()
	d.ImageSeq, d.Payload, d.OrigLSN, d.Slot = r.u64(), r.u32(), r.u64(), r.u32()
	if r.short || start+descriptorBytes > len(r.b) {
		return false
	}
	r.off = start + descriptorBytes
	body := dec{b: r.take(bodyLen)}
	if r.short || int(d.Block)+int(d.Count) > repl.ExtentBlocks {
		return false
	}
	switch d.Type {
	case recWrite:
		if bodyLen != 4*int(d.Count) || d.Count == 0 {
			return false
		}
		d.CRC = make([]uint32, d.Count)
		for i := range d.CRC {
			d.CRC[i] = body.u32()
		}
	case recSync, recRepair:
		if bodyLen%syncBlockBytes != 0 || bodyLen == 0 || bodyLen/syncBlockBytes > repl.ExtentBlocks {
			return false
		}
		d.Blocks = make([]wire.SyncBlock, bodyLen/syncBlockBytes)
		for i := range d.Blocks {
			b := &d.Blocks[i]
			b.Block = body.u16()
			body.u16()
			b.Tag.CRC, b.Tag.Stamp = body.u32(), body.u32()
			if b.Block >= repl.ExtentBlocks {
				return false
			}
		}
	case recZero, recTombstone, recVolume, recMarks, recDrop, recFree:
		d.Body = append([]byte(nil), body.b...)
	default:
		return false
	}
	return true
}

func (h *batchHeader) encode(b []byte) {
	e := enc{b: b}
	e.u64(batchMagic)
	e.id(h.Disk)
	e.u64(h.LSN)
	e.u64(h.Session)
	e.u64(h.DurableLSN)
	e.u64(h.TailLSN)
	e.u32(h.Bytes)
	e.u32(h.HeaderBytes)
	e.u32(h.Records)
	e.u32(h.Prev)
	e.u32(h.Flags)
	h.CRC = putCRC(b[:h.HeaderBytes], batchCRCOffset)
}

// decodeBatchHeader reads the first page of a batch; the checksum needs all
// header pages and is checked by decodeDescriptors.
func decodeBatchHeader(page []byte) (batchHeader, bool) {
	var h batchHeader
	d := dec{b: page}
	if len(page) < BlockBytes || d.u64() != batchMagic {
		return h, false
	}
	h.Disk = d.id()
	h.LSN, h.Session, h.DurableLSN, h.TailLSN = d.u64(), d.u64(), d.u64(), d.u64()
	h.Bytes, h.HeaderBytes, h.Records, h.Prev, h.Flags = d.u32(), d.u32(), d.u32(), d.u32(), d.u32()
	d.off = batchCRCOffset
	h.CRC = d.u32()
	ok := h.HeaderBytes >= BlockBytes && h.HeaderBytes%BlockBytes == 0 && h.Bytes%BlockBytes == 0 &&
		h.HeaderBytes <= h.Bytes && h.LSN%BlockBytes == 0 && h.LSN < 1<<62 &&
		(h.Bytes <= maxBatchBytes || h.Flags&batchFlagPad != 0) &&
		uint64(h.Records)*descriptorBytes <= uint64(h.HeaderBytes)
	return h, ok
}

// decodeDescriptors reads the records of a batch from its header pages.
func decodeDescriptors(h batchHeader, pages []byte) ([]descriptor, error) {
	if len(pages) < int(h.HeaderBytes) || !goodCRC(pages[:h.HeaderBytes], batchCRCOffset) {
		return nil, errs.New(errs.Corrupt, "read log batch %d: bad header checksum", h.LSN)
	}
	list := make([]descriptor, h.Records)
	r := dec{b: pages[:h.HeaderBytes], off: batchHeaderBytes}
	for i := range list {
		d := &list[i]
		if !d.decode(&r) {
			return nil, errs.New(errs.Corrupt, "read log batch %d: bad descriptor %d", h.LSN, i)
		}
		if n := d.payloadBlocks(); n > 0 &&
			(d.Payload < h.HeaderBytes || d.Payload%BlockBytes != 0 || uint64(d.Payload)+uint64(n)*BlockBytes > uint64(h.Bytes)) {
			return nil, errs.New(errs.Corrupt, "read log batch %d: payload of descriptor %d lies outside", h.LSN, i)
		}
	}
	return list, nil
}

// payloadGood compares the payload of a whole batch with its descriptors.
func payloadGood(list []descriptor, batch []byte) bool {
	for i := range list {
		d := &list[i]
		off := int(d.Payload)
		n := d.payloadBlocks()
		for j := 0; n > 0 && j < max(len(d.CRC), len(d.Blocks)); j++ {
			var crc uint32
			if d.Type == recWrite {
				crc = d.CRC[j]
			} else if crc = d.Blocks[j].Tag.CRC; !d.Blocks[j].Tag.HasData() {
				continue
			}
			if crc32.Checksum(batch[off:off+BlockBytes], castagnoli) != crc {
				return false
			}
			off += BlockBytes
		}
	}
	return true
}
