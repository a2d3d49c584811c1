package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Signature is something found on a disk that a new owner would destroy.
type Signature struct {
	Kind   string `json:"kind"`             // "gpt", "ext4", "lvm2", ..., "data" for bytes that nobody here knows
	Detail string `json:"detail,omitempty"` // label or UUID if it has one
	Offset int64  `json:"offset"`           // bytes from the start of the disk
}

// String returns "ext4 (label root) at 1080".
func (s Signature) String() string {
	if s.Detail != "" {
		return fmt.Sprintf("%s (%s) at byte %d", s.Kind, s.Detail, s.Offset)
	}
	return fmt.Sprintf("%s at byte %d", s.Kind, s.Offset)
}

// edgeBytes at either end of a disk are looked at. Everything known keeps its
// signature there.
const edgeBytes = 1 << 20

// edges is the part of a disk that is looked at. Small disks are all head.
type edges struct {
	head, tail []byte
	size       int64
}

// at returns n bytes from off, negative offsets counted from the end; nil if
// they are not within one edge.
func (e *edges) at(off int64, n int) []byte {
	if off < 0 {
		off += e.size
	}
	if off < 0 || off+int64(n) > e.size {
		return nil
	}
	if off+int64(n) <= int64(len(e.head)) {
		return e.head[off:][:n]
	}
	if from := e.size - int64(len(e.tail)); off >= from {
		return e.tail[off-from:][:n]
	}
	return nil
}

func (e *edges) has(off int64, magic string) bool {
	b := e.at(off, len(magic))
	return b != nil && string(b) == magic
}

func (e *edges) u16(off int64) uint16 {
	if b := e.at(off, 2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (e *edges) u32(off int64) uint32 {
	if b := e.at(off, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// text returns the characters of a label of at most n bytes.
func (e *edges) text(off int64, n int) string {
	b := bytes.TrimRight(e.at(off, n), "\x00 ")
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return string(b)
}

// Identify lists what is on a disk of size bytes, in the order of their kinds'
// table; empty means blank. A disk whose ends hold anything but zeros, and
// nothing known, has the signature "data".
func Identify(r io.ReaderAt, size int64) ([]Signature, error) {
	e := &edges{size: size}
	n := min(size, edgeBytes)
	e.head = alignedBytes(int(n))
	if err := readEdge(r, e.head, 0); err != nil {
		return nil, err
	}
	if size > n {
		k := min(size-n, edgeBytes)
		e.tail = alignedBytes(int(k))
		if err := readEdge(r, e.tail, size-k); err != nil {
			return nil, err
		}
	}
	var found []Signature
	for _, probe := range probes {
		if s, ok := probe(e); ok {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		if off, any := e.firstNonZero(); any {
			found = append(found, Signature{Kind: "data", Detail: "not recognised", Offset: off})
		}
	}
	return found, nil
}

func readEdge(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

func (e *edges) firstNonZero() (int64, bool) {
	for i, b := range e.head {
		if b != 0 {
			return int64(i), true
		}
	}
	for i, b := range e.tail {
		if b != 0 {
			return e.size - int64(len(e.tail)) + int64(i), true
		}
	}
	return 0, false
}

// magicAt recognises a fixed string at one of several offsets.
func magicAt(kind, magic string, offsets ...int64) func(*edges) (Signature, bool) {
	return func(e *edges) (Signature, bool) {
		for _, off := range offsets {
			if e.has(off, magic) {
				if off < 0 {
					off += e.size
				}
				return Signature{Kind: kind, Offset: off}, true
			}
		}
		return Signature{}, false
	}
}

// probes recognise one kind each. Sources: the on-disk formats as their kernel
// drivers and tools define them (linux/magic.h, UEFI 2.10 section 5, md(4)).
var probes = []func(*edges) (Signature, bool){
	probeRoseau,
	magicAt("gpt", "EFI PART", 512, 4096, -512, -4096),
	probeMBR,
	probeLVM,
	magicAt("luks", "LUKS\xba\xbe", 0),
	magicAt("luks", "SKUL\xba\xbe", 16384, 32768, 65536, 131072, 262144, 524288),
	probeMD,
	probeZFS,
	probeExt,
	probeXFS,
	probeBtrfs,
	magicAt("bcachefs", "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", 4096+24),
	magicAt("f2fs", "\x10\x20\xf5\xf2", 1024),
	magicAt("reiserfs", "ReIsEr", 65536+52),
	probeSwap,
	magicAt("ntfs", "NTFS    ", 3),
	magicAt("exfat", "EXFAT   ", 3),
	magicAt("vfat", "FAT32   ", 82),
	magicAt("vfat", "FAT16   ", 54),
	magicAt("vfat", "FAT12   ", 54),
	magicAt("iso9660", "CD001", 32769),
	magicAt("squashfs", "hsqs", 0),
	magicAt("ceph", "bluestore block device", 0),
	magicAt("drbd", "\x83\x74\x02\x6d", -4096+60, -4096+64),
	magicAt("qcow2", "QFI\xfb", 0),
	magicAt("vmfs", "\x0d\xd0\x01\xc0", 1<<20-4),
}

// RoseauMagic is the first 8 bytes of the engine's superblock, which stands in
// four copies at the ends of a disk. Package block/disk writes it.
const RoseauMagic = "RSEAUSB1"

func probeRoseau(e *edges) (Signature, bool) {
	return magicAt("roseau", RoseauMagic, 0, 64<<10, -(1 << 20), -(1<<20 - 64<<10))(e)
}

// probeMBR wants a partition in the table: the boot sectors of FAT and NTFS
// end in the same two bytes.
func probeMBR(e *edges) (Signature, bool) {
	if e.u16(510) != 0xaa55 {
		return Signature{}, false
	}
	n := 0
	for i := range int64(4) {
		entry := e.at(446+16*i, 16)
		status, kind := entry[0], entry[4]
		if status != 0 && status != 0x80 {
			return Signature{}, false // code or text, not a table
		}
		if kind != 0 && binary.LittleEndian.Uint32(entry[12:]) != 0 {
			n++
		}
	}
	if n == 0 {
		return Signature{}, false
	}
	return Signature{Kind: "mbr", Detail: fmt.Sprintf("%d partitions", n), Offset: 510}, true
}

func probeLVM(e *edges) (Signature, bool) {
	for sector := range int64(4) {
		if off := sector * 512; e.has(off, "LABELONE") && e.has(off+24, "LVM2 001") {
			return Signature{Kind: "lvm2", Detail: "uuid " + e.text(off+32, 32), Offset: off}, true
		}
	}
	return Signature{}, false
}

// probeMD finds metadata 1.1 (at 0), 1.2 (at 4 KiB), 1.0 (8 KiB from the end,
// 4 KiB aligned) and 0.90 (the last aligned 64 KiB).
func probeMD(e *edges) (Signature, bool) {
	v10 := (e.size - 8<<10) &^ 4095
	v090 := e.size&^(64<<10-1) - 64<<10
	for _, off := range []int64{0, 4096, v10, v090} {
		if off >= 0 && e.u32(off) == 0xa92b4efc {
			s := Signature{Kind: "mdraid", Offset: off}
			if off != v090 {
				s.Detail = "name " + e.text(off+32, 32)
			}
			return s, true
		}
	}
	return Signature{}, false
}

// probeZFS looks for an uberblock in either byte order in the labels: two of
// 256 KiB at the start, two at the end; the ring is their second half.
func probeZFS(e *edges) (Signature, bool) {
	end := e.size &^ (256<<10 - 1)
	for _, label := range []int64{0, 256 << 10, end - 512<<10, end - 256<<10} {
		for off := label + 128<<10; off < label+256<<10; off += 1024 {
			if off >= 0 && (e.has(off, "\x0c\xb1\xba\x00\x00\x00\x00\x00") || e.has(off, "\x00\x00\x00\x00\x00\xba\xb1\x0c")) {
				return Signature{Kind: "zfs", Offset: off}, true
			}
		}
	}
	return Signature{}, false
}

func probeExt(e *edges) (Signature, bool) {
	if e.u16(1080) != 0xef53 {
		return Signature{}, false
	}
	kind := "ext2"
	const journal, extents = 0x4, 0x40
	if e.u32(1024+92)&journal != 0 {
		kind = "ext3"
	}
	if e.u32(1024+96)&extents != 0 {
		kind = "ext4"
	}
	return Signature{Kind: kind, Detail: label(e.text(1024+120, 16)), Offset: 1080}, true
}

func probeXFS(e *edges) (Signature, bool) {
	if !e.has(0, "XFSB") {
		return Signature{}, false
	}
	return Signature{Kind: "xfs", Detail: label(e.text(108, 12)), Offset: 0}, true
}

func probeBtrfs(e *edges) (Signature, bool) {
	const super = 64 << 10
	if !e.has(super+64, "_BHRfS_M") {
		return Signature{}, false
	}
	return Signature{Kind: "btrfs", Detail: label(e.text(super+299, 256)), Offset: super + 64}, true
}

func probeSwap(e *edges) (Signature, bool) {
	for page := int64(4 << 10); page <= 64<<10; page *= 2 {
		if e.has(page-10, "SWAPSPACE2") || e.has(page-10, "SWAP-SPACE") {
			return Signature{Kind: "swap", Detail: label(e.text(1052, 16)), Offset: page - 10}, true
		}
	}
	return Signature{}, false
}

func label(s string) string {
	if s == "" {
		return ""
	}
	return "label " + s
}

// Erase overwrites both ends of the disk, where all known signatures stand, and
// makes that durable. It is not a secure erasure.
func Erase(f File) error {
	zeros := alignedBytes(int(min(f.Size(), edgeBytes)))
	for _, off := range []int64{0, f.Size() - int64(len(zeros))} {
		if err := f.WritevAt([][]byte{zeros}, off); err != nil {
			return err
		}
	}
	return f.Datasync()
}
