package disk

import (
	"errors"
	"fmt"
	"io"

	"roseau/internal/base/errs"
)

// otherDisk marks the refusal of what is not the disk that was expected.
type otherDisk struct{ error }

// Unwrap makes its kind and hint seen.
func (e otherDisk) Unwrap() error { return e.error }

// Other marks err as the refusal of a device that is not the disk expected there.
func Other(err error) error { return otherDisk{err} }

// IsOther reports whether err says that a device, sound or not, is not the disk that
// was expected there: the disk may be at another path. A clone or an older copy of it
// is not other in this sense.
func IsOther(err error) bool {
	var o otherDisk
	return errors.As(err, &o)
}

// Recognize reads the superblocks of a device of deviceBytes and returns nil if it is
// the disk that want names; else what Open would answer with. It writes nothing.
func Recognize(r io.ReaderAt, deviceBytes int64, want Identity) error {
	id, err := Identify(r, deviceBytes)
	return recognize(want, Superblock{Identity: id}, err)
}

// Identify reads whose disk a device of deviceBytes is. NotFound: it is none of
// Roseau's; Corrupt: no copy of its superblock is sound. It writes nothing.
func Identify(r io.ReaderAt, deviceBytes int64) (Identity, error) {
	if deviceBytes < 4<<20 {
		return Identity{}, errs.New(errs.NotFound, "identify disk: a device of %d bytes is too small to be one", deviceBytes)
	}
	var copies [4][]byte
	for i, off := range copyOffsets(deviceBytes) {
		copies[i] = make([]byte, superblockBytes)
		if _, err := r.ReadAt(copies[i], off); err != nil {
			for k := range copies[i] {
				copies[i][k] = 0xff // as recovery does: unreadable is not blank
			}
		}
	}
	sb, _, err := chooseSuperblock(copies)
	return sb.Identity, err
}

// recognize judges the superblock that was found, or why none was.
func recognize(want Identity, sb Superblock, err error) error {
	id := sb.Identity
	switch {
	case errs.Kind(err) == errs.NotFound && !want.Disk.IsZero():
		return Other(errs.New(errs.Conflict, "open disk %s: what is here is not a disk of Roseau (no magic number)", want.Disk).
			WithHint("the path leads to another device, or the disk was written over: connect the claimed one again, at any path, or release it and let its copies be rebuilt"))
	case err != nil:
		return fmt.Errorf("open disk: %w", err)
	case want.Disk.IsZero():
	case id.Cluster != want.Cluster:
		return Other(errs.New(errs.Conflict, "open disk %s: it belongs to cluster %s, not to %s", id.Disk, id.Cluster, want.Cluster).
			WithHint("connect the claimed disk %s again, at any path; to use this one, release it in its cluster, wipe it and claim it", want.Disk))
	case id.Disk != want.Disk:
		return Other(errs.New(errs.Conflict, "open disk: it is disk %s, not %s", id.Disk, want.Disk).
			WithHint("the path leads to another disk now; connect the claimed one again, at any path of this node"))
	}
	return nil
}
