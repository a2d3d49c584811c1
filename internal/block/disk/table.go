package disk

import (
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// The volume table: two images, written in turn; an image is a header page and
// entries of volumeEntryBytes, up to the highest index in use.
const (
	tableMagic       = 0x314c42545345 // "ESTBL1"
	tableHeaderBytes = BlockBytes
	tableCRCOffset   = 60
	volumeEntryBytes = 1024
	maxToldOut       = 40 // ids in Told.Out that an entry holds
	maxToldSnaps     = 47 // what is left of the entry; more than repl.MaxSnapshots and those under way
)

// volumeEntry is what a disk remembers of a volume. The log carries whole
// entries, so that replay is an assignment.
type volumeEntry struct {
	Volume     ids.ID
	Version    uint64 // +1 at each change that is logged; replay never goes back
	Promise    repl.Promise
	Boot       ids.ID
	Released   bool
	Damaged    bool
	Told       wire.Told
	Durable    repl.Mark
	Flush      repl.Mark
	TombForget repl.Mark // tombstones up to here are forgotten
}

func (v *volumeEntry) encode(b []byte) {
	clear(b[:volumeEntryBytes])
	e := enc{b: b}
	e.flag(true)
	e.id(v.Volume)
	e.u64(v.Version)
	p := v.Promise
	e.u32(p.Generation.Cluster)
	e.u32(p.Generation.Volume)
	e.u64(p.Epoch)
	e.id(p.Nonce)
	e.u32(p.Inc)
	e.id(p.Node)
	e.id(p.Run)
	e.id(v.Boot)
	e.flag(v.Released)
	e.flag(v.Damaged)
	e.mark(v.Durable)
	e.mark(v.Flush)
	e.mark(v.TombForget)
	e.u64(v.Told.Epoch)
	e.u32(v.Told.CfgVersion)
	e.id(v.Told.Pending)
	e.flag(v.Told.Complete)
	e.u16(uint16(len(v.Told.Out)))
	for _, id := range v.Told.Out {
		e.id(id)
	}
	e.u32(v.Told.SnapSeq)
	e.u16(uint16(len(v.Told.Snaps)))
	for _, n := range v.Told.Snaps {
		e.u32(n)
	}
}

// decodeVolumeEntry reads an entry; ok is false for an empty or broken one.
func decodeVolumeEntry(b []byte) (v volumeEntry, ok bool) {
	d := dec{b: b}
	if !d.flag() {
		return v, false
	}
	v.Volume = d.id()
	v.Version = d.u64()
	p := &v.Promise
	p.Generation = repl.Generation{Cluster: d.u32(), Volume: d.u32()}
	p.Epoch, p.Nonce, p.Inc = d.u64(), d.id(), d.u32()
	p.Node, p.Run = d.id(), d.id()
	v.Boot = d.id()
	v.Released, v.Damaged = d.flag(), d.flag()
	v.Durable, v.Flush, v.TombForget = d.mark(), d.mark(), d.mark()
	v.Told.Epoch, v.Told.CfgVersion, v.Told.Pending, v.Told.Complete = d.u64(), d.u32(), d.id(), d.flag()
	n := int(d.u16())
	if n > maxToldOut {
		return v, false
	}
	for range n {
		v.Told.Out = append(v.Told.Out, d.id())
	}
	v.Told.SnapSeq = d.u32()
	if n = int(d.u16()); n > maxToldSnaps {
		return v, false
	}
	for range n {
		v.Told.Snaps = append(v.Told.Snaps, d.u32())
	}
	return v, !d.short && !v.Volume.IsZero()
}

// tableImage is a volume table in memory; entries by index, nil = free.
type tableImage struct {
	Seq     uint64
	Entries []*volumeEntry
}

func tableUsedBytes(entries int) int64 {
	return roundUp(tableHeaderBytes+int64(entries)*volumeEntryBytes, BlockBytes)
}

func (t *tableImage) encode(disk ids.ID, b []byte) {
	clear(b)
	for i, v := range t.Entries {
		if v != nil {
			v.encode(b[tableHeaderBytes+i*volumeEntryBytes:][:volumeEntryBytes])
		}
	}
	e := enc{b: b}
	e.u64(tableMagic)
	e.id(disk)
	e.u64(t.Seq)
	e.u32(uint32(len(t.Entries)))
	putCRC(b, tableCRCOffset)
}

// decodeTable reads an image from the whole area of one.
func decodeTable(disk ids.ID, b []byte) (tableImage, error) {
	var t tableImage
	d := dec{b: b}
	if d.u64() != tableMagic || d.id() != disk {
		return t, errs.New(errs.NotFound, "read volume table: none here")
	}
	t.Seq = d.u64()
	n := int64(d.u32())
	if d.short || tableUsedBytes(int(n)) > int64(len(b)) || !goodCRC(b[:tableUsedBytes(int(n))], tableCRCOffset) {
		return t, errs.New(errs.Corrupt, "read volume table: bad checksum")
	}
	t.Entries = make([]*volumeEntry, n)
	for i := range t.Entries {
		if v, ok := decodeVolumeEntry(b[tableHeaderBytes+i*volumeEntryBytes:][:volumeEntryBytes]); ok {
			t.Entries[i] = &v
		}
	}
	return t, nil
}
