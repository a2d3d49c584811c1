package storage

import (
	"io"

	"roseau/internal/block/disk"
	"roseau/internal/driver/blockdev"
)

// Fsck checks the disk at path, which no process may have open.
func Fsck(path string) (*disk.Report, error) {
	f, err := OpenDisk(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return disk.Fsck(&bounce{f: f, p: new(pool)}, f.Size())
}

// Dump writes what is on the disk at path, which no process may have open.
func Dump(w io.Writer, path string) error {
	f, err := OpenDisk(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return disk.Dump(w, &bounce{f: f, p: new(pool)}, f.Size())
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
