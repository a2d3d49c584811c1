package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// Report is what Fsck found. Problems is empty for a sound disk.
type Report struct {
	Superblock Superblock
	Copies     int // valid superblock copies that agree
	TableSeq   uint64
	Volumes    []FsckVolume
	Extents    int
	FreeImages int
	Blocks     int // blocks whose data was compared with its tag
	Batches    int // of the log, from the checkpoint on
	Records    int
	LogEnd     uint64
	TailBytes  int64 // torn tail; legal after a crash
	Pending    int   // extents that the log changes: their data is not compared
	Findings   []Finding
	Problems   []string // warnings and damage, in short
}

// FsckOptions of Check. The zero value checks the structure alone.
type FsckOptions struct {
	Data bool       // compare all data that the log does not change with its tags
	Dump func(Item) // told what is on the disk, in its order; nil: nobody
}

// FsckVolume is a volume as the table (not the log) has it.
type FsckVolume struct {
	Volume  ids.ID
	Promise repl.Promise
	Extents int
	Damaged bool
}

// checker is the state of one Fsck.
type checker struct {
	r       io.ReaderAt
	rep     *Report
	sb      Superblock
	touched map[extKey]bool // extents with records in the log
	index   map[uint32]ids.ID
	names   map[ids.ID]*FsckVolume
	owner   map[extKey]uint64
	o       FsckOptions
}

// Fsck is Check with the data.
func Fsck(r io.ReaderAt, deviceBytes int64) (*Report, error) {
	return Check(r, deviceBytes, FsckOptions{Data: true})
}

// Dump writes what is on a disk as text, one item a line: superblock, volumes,
// log records, extents.
func Dump(w io.Writer, r io.ReaderAt, deviceBytes int64) error {
	var failed error
	_, err := Check(r, deviceBytes, FsckOptions{Dump: func(i Item) {
		if failed == nil {
			failed = i.WriteText(w)
		}
	}})
	return errors.Join(err, failed)
}

// Check checks the structure of a disk that no process uses. It writes nothing.
// The error is for a disk that cannot be read at all; findings are in the
// report.
func Check(r io.ReaderAt, deviceBytes int64, o FsckOptions) (*Report, error) {
	k := &checker{r: r, rep: &Report{}, o: o, touched: map[extKey]bool{}, index: map[uint32]ids.ID{},
		names: map[ids.ID]*FsckVolume{}, owner: map[extKey]uint64{}}
	if err := k.superblock(deviceBytes); err != nil {
		return nil, err
	}
	for _, step := range []func() error{k.table, k.log, k.extents} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for _, v := range k.names { // table and log together: a young volume is in the log alone
		k.rep.Volumes = append(k.rep.Volumes, *v)
	}
	slices.SortFunc(k.rep.Volumes, func(a, b FsckVolume) int { return a.Volume.Compare(b.Volume) })
	return k.rep, nil
}

// The remedies.
const (
	remedyCopies  = "fsck --repair writes the copies anew from those that agree; the next start of the storage process does it too"
	remedyNone    = "nothing to do"
	remedyMeta    = "nothing is lost; the next checkpoint of the extent writes both images"
	remedyRebuild = "the copies on other nodes are good: release this disk and let it be rebuilt"
	remedyBlock   = "a scrub, or the next read, repairs the block from another copy"
	remedyForeign = "the device writes to wrong places: release this disk and replace it"
	remedyDamaged = "a resync from another copy clears the mark: start the volume, or wait for its maintenance writer"
)

func (k *checker) find(sev Severity, where, remedy, format string, args ...any) {
	f := Finding{Severity: sev, Where: where, What: fmt.Sprintf(format, args...), Remedy: remedy}
	k.rep.Findings = append(k.rep.Findings, f)
	if sev != Note {
		k.rep.Problems = append(k.rep.Problems, where+": "+f.What)
	}
	k.item(Item{Finding: &f})
}

func (k *checker) item(i Item) {
	if k.o.Dump != nil {
		k.o.Dump(i)
	}
}

func (k *checker) read(off, n int64) ([]byte, error) {
	b := alignedBuf(int(n))
	if _, err := k.r.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("read disk at %d: %w", off, err)
	}
	return b, nil
}

func (k *checker) superblock(deviceBytes int64) error {
	if deviceBytes < 4<<20 {
		return errs.New(errs.Invalid, "check disk: %d bytes are too few", deviceBytes)
	}
	var copies [4][]byte
	for i, off := range copyOffsets(deviceBytes) {
		b, err := k.read(off, superblockBytes)
		if err != nil {
			return err
		}
		copies[i] = b
	}
	sb, n, err := chooseSuperblock(copies)
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	k.sb, k.rep.Superblock, k.rep.Copies = sb, sb, n
	// Copies are written one after another: a process that ended in between left
	// whole ones of two ages, which is sound.
	valid := 0
	for _, b := range copies {
		if _, err := decodeSuperblock(b); err == nil {
			valid++
		}
	}
	if valid < 4 || n < 2 {
		k.find(Warning, "superblock", remedyCopies, "%d of 4 copies are whole, %d agree", valid, n)
	} else if n < 4 {
		k.find(Note, "superblock", remedyNone, "%d of 4 copies are the newest: its update was cut off", n)
	}
	switch sb.State {
	case DiskRetiring:
		k.find(Note, "superblock", remedyNone, "the disk is being retired")
	case DiskFailed:
		k.find(Damage, "superblock", remedyRebuild, "the disk is marked failed: a write or an fdatasync of it failed")
	}
	k.item(Item{Superblock: itemSuperblock(&sb, n)})
	return nil
}

func (k *checker) table() error {
	var best tableImage
	for i := range int64(2) {
		b, err := k.read(k.sb.TableOffset+i*k.sb.TableBytes, k.sb.TableBytes)
		if err != nil {
			return err
		}
		t, err := decodeTable(k.sb.Identity.Disk, b)
		if err == nil && t.Seq > best.Seq {
			best = t
		}
	}
	k.rep.TableSeq = best.Seq
	if best.Seq < k.sb.TableSeq {
		k.find(Damage, "volume table", remedyRebuild, "image %d is lost, the newest valid one is %d", k.sb.TableSeq, best.Seq)
	}
	k.item(Item{Table: &ItemTable{Seq: best.Seq, Entries: len(best.Entries)}})
	for i, v := range best.Entries {
		if v == nil {
			continue
		}
		k.index[uint32(i)] = v.Volume
		k.names[v.Volume] = &FsckVolume{Volume: v.Volume, Promise: v.Promise, Damaged: v.Damaged}
		k.item(Item{Volume: itemVolume(uint32(i), v)})
		if v.Damaged {
			k.find(Damage, "volume "+v.Volume.String(), remedyDamaged, "is marked damaged")
		}
	}
	return nil
}

// log reads the ring as recovery does.
func (k *checker) log() error {
	c := &Core{sb: k.sb, scan: &recovery{}}
	s := c.scan
	s.ringLSN, s.pos = k.sb.CheckpointLSN, k.sb.CheckpointLSN
	for at := int64(0); at < k.sb.WALBytes; {
		lsn := k.sb.CheckpointLSN + uint64(at)
		n := min(recoveryChunkBytes, k.sb.WALBytes-at, k.sb.WALBytes-int64(lsn%uint64(k.sb.WALBytes)))
		b, err := k.read(c.ringOffset(lsn), n)
		if err != nil {
			return err
		}
		s.ring = append(s.ring, b...)
		c.parseLog(false)
		at += n
	}
	c.parseLog(true)
	from := position{lsn: k.sb.CheckpointLSN, chain: k.sb.CheckpointChain, session: k.sb.CheckpointSess}
	log, lost, tail, end := judgeLog(from, s.found, false)
	for i := range log {
		b := &log[i]
		for ; len(lost) > 0 && lost[0].From <= b.h.LSN; lost = lost[1:] {
			k.item(Item{Lost: &lost[0]})
			k.find(Damage, "log", remedyRebuild, "[%d, %d) was durable and is lost", lost[0].From, lost[0].To)
		}
		k.item(Item{Batch: &ItemBatch{LSN: b.h.LSN, Bytes: b.h.Bytes, Session: b.h.Session, DurableLSN: b.h.DurableLSN,
			TailLSN: b.h.TailLSN, Flags: b.h.Flags, Records: b.h.Records, Good: b.good}})
		if !b.good {
			k.find(Damage, "log", remedyBlock, "batch %d: the payload does not match", b.h.LSN)
		}
		for j := range b.recs {
			k.record(&b.recs[j])
		}
	}
	k.rep.Batches, k.rep.LogEnd = len(log), end.lsn
	for i := range tail {
		k.rep.TailBytes += int64(tail[i].h.Bytes)
	}
	if len(tail) > 0 {
		k.item(Item{Tail: &ItemTail{From: end.lsn, Batches: len(tail), Bytes: k.rep.TailBytes}})
		k.find(Note, "log", remedyNone, "%d bytes of torn tail behind %d: they were not flushed", k.rep.TailBytes, end.lsn)
	}
	return nil
}

var recordNames = map[uint8]string{
	recWrite: "write", recZero: "zero", recTombstone: "tombstone", recSync: "sync", recRepair: "repair",
	recVolume: "volume", recMarks: "marks", recDrop: "drop",
}

func (k *checker) record(d *descriptor) {
	k.rep.Records++
	k.item(Item{Record: itemRecord(d)})
	switch d.Type {
	case recVolume:
		if v, ok := decodeVolumeEntry(d.Body); ok {
			k.index[d.Index] = v.Volume
			if k.names[v.Volume] == nil {
				k.names[v.Volume] = &FsckVolume{Volume: v.Volume}
			}
			k.names[v.Volume].Promise, k.names[v.Volume].Damaged = v.Promise, v.Damaged
		}
	case recDrop:
		delete(k.names, k.index[d.Index])
	case recWrite, recZero, recTombstone, recSync, recRepair:
		if d.Flags&flagNote != 0 && d.Type != recTombstone {
			break // it was applied before it became a note
		}
		k.touched[extKey{k.index[d.Index], d.Extent}] = true
	}
}

func (k *checker) extents() error {
	per := 2 * k.sb.imageBytes()
	for slot := range k.sb.SlotLimit {
		b, err := k.read(k.sb.MetaOffset+int64(slot)*per, per)
		if err != nil {
			return err
		}
		if err := k.slot(slot, b); err != nil {
			return err
		}
	}
	k.rep.Pending = len(k.touched)
	return nil
}

func (k *checker) slot(slot uint64, b []byte) error {
	size := k.sb.imageBytes()
	var best imageHeader
	var img []byte
	broken := 0
	where := fmt.Sprintf("slot %d", slot)
	for i := range int64(2) {
		one := b[i*size : (i+1)*size]
		h, blank, _, err := decodeImage(one)
		switch {
		case blank:
		case err != nil:
			broken++
		case h.Disk != k.sb.Identity.Disk || h.Slot != slot || int64(h.Seq%2) != i:
			k.find(Damage, where, remedyForeign, "an image of slot %d of disk %s stands here", h.Slot, h.Disk)
		case h.Seq > best.Seq:
			best, img = h, one
		}
	}
	key := extKey{best.Volume, best.Extent}
	if broken > 0 && img != nil && !k.touched[key] {
		k.find(Warning, where, remedyMeta, "a broken image, and the log has nothing of the extent")
	}
	if broken == 2 {
		k.find(Damage, where, remedyRebuild, "both images are broken: an extent is lost")
	}
	if img == nil {
		return nil
	}
	k.item(Item{Slot: itemSlot(&best, img, int(k.sb.ExtentBlocks))})
	if best.State == imageStateFree {
		k.rep.FreeImages++
		return nil
	}
	k.rep.Extents++
	if o, twice := k.owner[key]; twice {
		k.find(Damage, where, remedyRebuild, "extent %s/%d is in slot %d too", best.Volume, best.Extent, o)
	}
	k.owner[key] = slot
	v := k.names[best.Volume]
	if v == nil {
		k.find(Damage, where, remedyRebuild, "volume %s is not known", best.Volume)
	} else {
		v.Extents++
	}
	if k.touched[key] || !k.o.Data {
		return nil
	}
	return k.data(slot, best, img)
}

// data compares the blocks of a slot with their tags.
func (k *checker) data(slot uint64, h imageHeader, img []byte) error {
	n := int(k.sb.ExtentBlocks)
	b, err := k.read(k.sb.DataOffset+int64(slot)*k.sb.slotBytes(), k.sb.slotBytes())
	if err != nil {
		return err
	}
	vcrc, where := volumeCRC(h.Volume), fmt.Sprintf("slot %d", slot)
	for i := range n {
		t := tagAt(img, vcrc, n, h.Extent, i)
		if t == unknownTag {
			k.find(Damage, where, remedyBlock, "extent %s/%d block %d: its tag was lost", h.Volume, h.Extent, i)
		}
		if t.Stamp == 0 {
			continue
		}
		k.rep.Blocks++
		if !CheckCRC(b[i*BlockBytes:(i+1)*BlockBytes], []uint32{t.CRC}) {
			k.find(Damage, where, remedyBlock, "extent %s/%d block %d does not match its checksum", h.Volume, h.Extent, i)
		}
	}
	return nil
}

// RepairSuperblocks returns the actions, in order, that make all four copies
// say what those in force say; nothing if they do. Only what is provably right is
// repaired: two whole copies must agree, else errs.Corrupt.
func RepairSuperblocks(r io.ReaderAt, deviceBytes int64) ([]IO, Superblock, error) {
	k := &checker{r: r, rep: &Report{}}
	if err := k.superblock(deviceBytes); err != nil {
		return nil, Superblock{}, err
	}
	if k.rep.Copies == 4 {
		return nil, k.sb, nil
	}
	if k.rep.Copies < 2 {
		return nil, k.sb, errs.New(errs.Corrupt, "repair disk %s: only one superblock copy is whole, nothing proves that it is the newest", k.sb.Identity.Disk).
			WithHint(remedyRebuild)
	}
	var list []IO
	good := alignedBuf(superblockBytes)
	k.sb.encode(good)
	for _, off := range copyOffsets(deviceBytes) {
		b, err := k.read(off, superblockBytes)
		if err != nil {
			return nil, k.sb, err
		}
		if !bytes.Equal(b, good) {
			list = append(list, IO{ID: uint64(len(list) + 1), Op: OpWrite, Offset: off, Bufs: [][]byte{good}, Length: superblockBytes})
			list = append(list, IO{ID: uint64(len(list) + 1), Op: OpSync})
		}
	}
	return list, k.sb, nil
}
