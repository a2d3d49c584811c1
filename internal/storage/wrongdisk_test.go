package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/driver/blockdev"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
)

// status waits until the only disk has left its opening, and returns it.
func (r *rig) onlyDisk() storagectl.DiskStatus {
	r.t.Helper()
	s, err := r.ctl.Status(r.ctx())
	r.must(err)
	if len(s.Disks) != 1 {
		r.t.Fatalf("%d disks", len(s.Disks))
	}
	return s.Disks[0]
}

// TestWrongDisk: at the path of a claimed disk stands another one. It is refused
// with a reason and a remedy, and not a byte of it changes.
func TestWrongDisk(t *testing.T) {
	r := newRig(t)
	r.run(nil)
	d := r.claim("a")
	g := r.connect(-1)
	if o := g.open(d.ID, 1); o.Status != 0 {
		t.Fatalf("open: %+v", o)
	}
	r.stop()
	older, err := os.ReadFile(d.Path) // a clone of now; the disk itself goes on
	r.must(err)
	r.run(nil)
	if s := r.onlyDisk(); s.State != model.DiskActive {
		t.Fatalf("state %s: %s", s.State, s.Reason)
	}
	r.stop()
	current, err := os.ReadFile(d.Path)
	r.must(err)

	foreign := func(id disk.Identity) []byte {
		path := filepath.Join(r.dir, "foreign")
		defer os.Remove(path)
		r.must(os.WriteFile(path, make([]byte, len(current)), 0o600))
		f, err := blockdev.Open(path)
		r.must(err)
		list, err := disk.Format(id, disk.Geometry{DeviceBytes: int64(len(current))})
		r.must(err)
		for _, io := range list {
			r.must(perform(f, io))
		}
		r.must(f.Close())
		b, err := os.ReadFile(path)
		r.must(err)
		return b
	}
	rotten := bytes.Clone(current)
	for _, off := range []int{0, 64 << 10, len(rotten) - 1<<20, len(rotten) - 1<<20 + 64<<10} {
		rotten[off+100] ^= 1
	}
	for _, c := range []struct {
		name, reason string
		img          []byte
	}{
		{"an older copy", "a clone or an older copy", older},
		{"a disk of another cluster", "belongs to cluster", foreign(disk.Identity{Cluster: ids.New(), Disk: d.ID, Pool: ids.New()})},
		{"another disk of this cluster", "it is disk", foreign(disk.Identity{Cluster: r.cluster, Disk: ids.New(), Pool: ids.New()})},
		{"something else", "no magic number", bytes.Repeat([]byte("ext4"), len(current)/4)},
		{"all superblocks rotten", "bad checksum", rotten},
		{"a smaller device", "the device has", current[:len(current)-8<<20]},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			r.must(os.WriteFile(d.Path, c.img, 0o600))
			r.run(nil)
			s := r.onlyDisk()
			r.stop()
			if s.State != model.DiskFailed || !strings.Contains(s.Reason, c.reason) {
				t.Errorf("state %s, reason %q, want %q", s.State, s.Reason, c.reason)
			}
			after, err := os.ReadFile(d.Path)
			r.must(err)
			if !bytes.Equal(after, c.img) {
				t.Error("it was written to")
			}
		})
	}
	r.t = t
	r.must(os.WriteFile(d.Path, current, 0o600))
	r.run(nil)
	if s := r.onlyDisk(); s.State != model.DiskActive {
		t.Fatalf("the disk itself: %s: %s", s.State, s.Reason)
	}
	r.stop()
}
