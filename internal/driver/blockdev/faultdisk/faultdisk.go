// Package faultdisk is the disk of a lab node: a file with a volatile write
// cache in front, which loses what was not flushed when its node loses power,
// and which can be pulled, slowed, hung and corrupted from outside.
//
// A write goes into the overlay, a file in the node's tmpfs: it survives a
// kill -9 of the process, as a drive's cache does, and is gone with the node.
// Datasync moves the overlay to the backing file. A power cut (Tear, called by
// the lab once the node's processes are gone) moves a random subset of the
// overlay's 512-byte sectors and forgets the rest: what a drive may do to writes
// that it acknowledged and was not asked to flush, in any order, torn anywhere.
//
// The backing file is never fsynced: its page cache is the medium here. Figures
// of a benchmark are therefore not taken through this layer.
//
// Invariants:
//   - After Datasync returned nil every byte written before is in the backing file.
//   - A sector that is not in the overlay reads as in the backing file.
//   - The overlay holds at most OverlayBytes; a write beyond moves it all to the
//     backing file first, as a full cache would.
//
// One process at a time has the disk open; the control page alone is shared.
package faultdisk

import "path/filepath"

// Geometry.
const (
	SectorBytes  = 512  // what a drive writes as a whole
	BlockBytes   = 4096 // unit of the overlay's index
	OverlayBytes = 64 << 20
)

// Dir is where a lab node keeps the control page and the overlay of its disks.
const Dir = "/run/roseau-lab/disks"

// Files returns the control page and the overlay of the disk at path, under dir
// (Dir in a node). A disk whose control page exists is a fault disk: the storage
// process opens it with Open, any other with the ordinary driver.
func Files(dir, path string) (control, overlay string) {
	base := filepath.Join(dir, filepath.Base(path))
	return base + ".control", base + ".overlay"
}
