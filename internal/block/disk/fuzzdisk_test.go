package disk_test

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
)

// FuzzDisk changes bytes of a frozen disk, with right checksums if it can, and
// checks, opens and reads it: any outcome but a panic or a hang.
func FuzzDisk(f *testing.F) {
	if _, err := os.Stat(frozenDir + "/v1.img.gz"); err != nil {
		f.Fatal(err)
	}
	for _, at := range []uint32{12, 100, 124, 148, 1<<20 + 24, 1<<20 + 4100, 2 << 20, 2<<20 + 70, 2<<20 + 200, 2<<20 + 512<<10 + 40, 2<<20 + 512<<10 + 4100} {
		f.Add(at, []byte{0xff, 0xff}, true)
		f.Add(at, []byte{0}, false)
	}
	var base *disktest.Disk
	f.Fuzz(func(t *testing.T, at uint32, data []byte, seal bool) {
		if base == nil {
			base = frozenImage(t, "v1")
		}
		d := base.Clone()
		if int64(at)+int64(len(data)) > d.Size || len(data) > 4096 {
			return
		}
		d.Overwrite(int64(at), data)
		if seal {
			sealAround(d, int64(at))
		}
		_, _ = disk.Check(d, d.Size, disk.FsckOptions{Data: true})
		v, _, err := disktest.Open(d, disk.Options{}, nil)
		if err != nil {
			return
		}
		x := &fixture{Driver: v, t: t}
		for no := range uint64(10) {
			x.read(vol1, no, 0, min(extentBlocks, v.Core.ExtentBlocks()))
		}
		v.Quiesce()
	})
}

// sealAround makes the checksum of whatever structure holds the byte right.
func sealAround(d *disktest.Disk, at int64) {
	page := at / 4096 * 4096
	b := make([]byte, 4096)
	d.ReadAt(b, page)
	crcAt := 4092
	switch binary.LittleEndian.Uint64(b) {
	case 0x314c415755455352: // a batch of one header page
		crcAt = 124
	case 0x314c42545345:
		return
	case 0x3142535541455352:
		binary.LittleEndian.PutUint32(b[4092:], 0)
		binary.LittleEndian.PutUint32(b[4092:], crc32.Checksum(b, castagnoli))
		for _, off := range []int64{0, 64 << 10, d.Size - 1<<20, d.Size - 1<<20 + 64<<10} {
			d.Overwrite(off, b)
		}
		return
	}
	binary.LittleEndian.PutUint32(b[crcAt:], 0)
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b, castagnoli))
	d.Overwrite(page, b)
}
