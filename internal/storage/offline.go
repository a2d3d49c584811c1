package storage

import (
	"errors"
	"fmt"
	"io"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/driver/blockdev"
)

// Fsck checks the disk at path, which no process may have open, and writes
// nothing.
func Fsck(path string, o disk.FsckOptions) (*disk.Report, error) {
	f, err := OpenDisk(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return disk.Check(&bounce{f: f, p: new(pool)}, f.Size(), o)
}

// Repair writes the superblock copies of the disk at path anew where they do not
// say what those in force say, and returns how many. The caller names the disk:
// errs.Conflict if another one is there.
func Repair(path string, id ids.ID) (copies int, err error) {
	f, err := OpenDisk(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	list, sb, err := disk.RepairSuperblocks(&bounce{f: f, p: new(pool)}, f.Size())
	if err != nil {
		return 0, err
	}
	if sb.Identity.Disk != id {
		return 0, errs.New(errs.Conflict, "repair disk %s: it is disk %s, not %s", path, sb.Identity.Disk, id).
			WithHint("fsck says which disk it is; nothing was written")
	}
	for _, io := range list {
		if err := perform(f, io); err != nil {
			return copies, fmt.Errorf("repair disk %s: %w", path, err)
		}
		if io.Op == disk.OpWrite {
			copies++
		}
	}
	return copies, nil
}

// bounce reads any range of a disk that wants aligned ones.
type bounce struct {
	f blockdev.File
	p *pool
}

// ReadAt implements io.ReaderAt.
func (b *bounce) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		from := at / blockdev.Align * blockdev.Align
		to := min((off+int64(len(p))+blockdev.Align-1)/blockdev.Align*blockdev.Align, from+arenaBytes, b.f.Size())
		if to <= at {
			return done, io.EOF
		}
		buf := b.p.Alloc(int(to - from))
		_, err := b.f.ReadAt(buf, from)
		if err == nil {
			done += copy(p[done:], buf[at-from:])
		}
		b.p.Free(buf)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
