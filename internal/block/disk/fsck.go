package disk

import (
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
	Problems   []string
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
	dump    io.Writer // nil: silent
}

// Fsck checks the structure of a disk that no process uses, and compares all
// data that the log does not change with its checksums. It writes nothing. The
// error is for a disk that cannot be read at all; findings are in the report.
func Fsck(r io.ReaderAt, deviceBytes int64) (*Report, error) { return check(r, deviceBytes, nil) }

// Dump writes what is on a disk as text, one item a line: superblock, volumes,
// log records, extents.
func Dump(w io.Writer, r io.ReaderAt, deviceBytes int64) error {
	_, err := check(r, deviceBytes, w)
	return err
}

func check(r io.ReaderAt, deviceBytes int64, dump io.Writer) (*Report, error) {
	k := &checker{r: r, rep: &Report{}, dump: dump, touched: map[extKey]bool{}, index: map[uint32]ids.ID{},
		names: map[ids.ID]*FsckVolume{}, owner: map[extKey]uint64{}}
	if err := k.superblock(deviceBytes); err != nil {
		return nil, err
	}
	for _, step := range []func() error{k.table, k.log, k.extents} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for _, v := range k.names {
		k.rep.Volumes = append(k.rep.Volumes, *v)
	}
	slices.SortFunc(k.rep.Volumes, func(a, b FsckVolume) int { return a.Volume.Compare(b.Volume) })
	for _, v := range k.rep.Volumes { // table and log together: a young volume is in the log alone
		k.print("found volume %+v", v)
	}
	return k.rep, nil
}

func (k *checker) problem(format string, args ...any) {
	k.rep.Problems = append(k.rep.Problems, fmt.Sprintf(format, args...))
}

func (k *checker) print(format string, args ...any) {
	if k.dump != nil {
		fmt.Fprintf(k.dump, format+"\n", args...)
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
		k.problem("superblock: %d of 4 copies are whole, %d agree", valid, n)
	}
	k.print("superblock %+v copies %d", sb, n)
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
		k.problem("volume table: image %d is lost, the newest valid one is %d", k.sb.TableSeq, best.Seq)
	}
	for i, v := range best.Entries {
		if v == nil {
			continue
		}
		k.index[uint32(i)] = v.Volume
		k.names[v.Volume] = &FsckVolume{Volume: v.Volume, Promise: v.Promise, Damaged: v.Damaged}
		k.print("volume %d %+v", i, *v)
		if v.Damaged {
			k.problem("volume %s is marked damaged", v.Volume)
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
	for _, l := range lost {
		k.problem("log: [%d, %d) was durable and is lost", l.From, l.To)
	}
	for i := range log {
		b := &log[i]
		if !b.good {
			k.problem("log: batch %d: the payload does not match", b.h.LSN)
		}
		k.print("batch lsn %d bytes %d session %d durable %d tail %d flags %d", b.h.LSN, b.h.Bytes, b.h.Session, b.h.DurableLSN, b.h.TailLSN, b.h.Flags)
		for j := range b.recs {
			k.record(&b.recs[j])
		}
	}
	k.rep.Batches, k.rep.LogEnd = len(log), end.lsn
	for i := range tail {
		k.rep.TailBytes += int64(tail[i].h.Bytes)
	}
	return nil
}

var recordNames = map[uint8]string{
	recWrite: "write", recZero: "zero", recTombstone: "tombstone", recSync: "sync", recRepair: "repair",
	recVolume: "volume", recMarks: "marks", recDrop: "drop", recFree: "free",
}

func (k *checker) record(d *descriptor) {
	k.rep.Records++
	k.print("  %s flags %d volume %d extent %d object %d block %d count %d mark %d/%d payload %d image %d orig %d",
		recordNames[d.Type], d.Flags, d.Index, d.Extent, d.Object, d.Block, max(int(d.Count), len(d.Blocks)), d.Mark.Epoch, d.Mark.Wseq, d.Payload, d.ImageSeq, d.OrigLSN)
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
	case recWrite, recZero, recTombstone, recSync, recRepair, recFree:
		k.touched[extKey{k.index[d.Index], d.Extent, d.Object}] = true
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
	for i := range int64(2) {
		one := b[i*size : (i+1)*size]
		h, blank, _, err := decodeImage(one)
		switch {
		case blank:
		case err != nil:
			broken++
		case h.Disk != k.sb.Identity.Disk || h.Slot != slot || int64(h.Seq%2) != i:
			k.problem("slot %d: an image of slot %d of disk %s stands here", slot, h.Slot, h.Disk)
		case h.Seq > best.Seq:
			best, img = h, one
		}
	}
	key := extKey{best.Volume, best.Extent, best.Object}
	if broken > 0 && img != nil && !k.touched[key] {
		k.problem("slot %d: a broken image, and the log has nothing of the extent", slot)
	}
	if broken == 2 {
		k.problem("slot %d: both images are broken: an extent is lost", slot)
	}
	if img == nil {
		return nil
	}
	k.print("slot %d %+v", slot, best)
	if best.State == imageStateFree {
		k.rep.FreeImages++
		return nil
	}
	k.rep.Extents++
	if o, twice := k.owner[key]; twice {
		k.problem("slot %d: extent %s/%d, object %d, is in slot %d too", slot, best.Volume, best.Extent, best.Object, o)
	}
	k.owner[key] = slot
	v := k.names[best.Volume]
	if v == nil {
		k.problem("slot %d: volume %s is not known", slot, best.Volume)
	} else {
		v.Extents++
	}
	if k.touched[key] {
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
	vcrc := volumeCRC(h.Volume)
	for i := range n {
		t := tagAt(img, vcrc, n, h.Extent, i)
		if t == unknownTag {
			k.problem("slot %d: extent %s/%d block %d: its tag was lost", slot, h.Volume, h.Extent, i)
		}
		if t.Stamp == 0 {
			continue
		}
		k.rep.Blocks++
		if !CheckCRC(b[i*BlockBytes:(i+1)*BlockBytes], []uint32{t.CRC}) {
			k.problem("slot %d: extent %s/%d block %d does not match its checksum", slot, h.Volume, h.Extent, i)
		}
	}
	return nil
}
