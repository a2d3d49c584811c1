package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
)

// diskStatus returns what the process says of a disk.
func (r *rig) diskStatus(id ids.ID) storagectl.DiskStatus {
	r.t.Helper()
	s, err := r.ctl.Status(r.ctx())
	r.must(err)
	for _, d := range s.Disks {
		if d.ID == id {
			return d
		}
	}
	r.t.Fatalf("disk %s is not listed", id)
	return storagectl.DiskStatus{}
}

// serves waits until a disk serves from a path.
func (r *rig) serves(id ids.ID, path string) {
	r.t.Helper()
	var d storagectl.DiskStatus
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if d = r.diskStatus(id); d.State == model.DiskActive && d.Path == path {
			return
		}
	}
	r.t.Fatalf("disk %s: %s at %s (%s), want it active at %s\n%s", id, d.State, d.Path, d.Reason, path, r.logs)
}

// TestDisksAreFoundWhereverTheyAre: names of devices change with a reboot, and disks
// change their bays. What counts is the superblock.
func TestDisksAreFoundWhereverTheyAre(t *testing.T) {
	r := newRig(t)
	r.run(nil)
	a, b := r.claim("a"), r.claim("b")
	pa, pb, pc, out := a.Path, b.Path, r.path("disks/c"), r.path("outside")
	move := func(from, to string) {
		t.Helper()
		r.must(os.Rename(from, to))
	}
	g := r.connect(-1)
	if o := g.open(a.ID, 1); o.Status != 0 {
		t.Fatalf("open: %+v", o)
	}

	r.stop() // two change places
	move(pa, out)
	move(pb, pa)
	move(out, pb)
	r.run(nil)
	r.serves(a.ID, pb)
	r.serves(b.ID, pa)
	g = r.connect(-1)
	if o := g.open(a.ID, 2); o.Status != 0 || o.Promised.Epoch != 2 {
		t.Fatalf("open after the move: %+v", o)
	}

	r.stop() // one has a new name, and a blank disk its old one
	move(pb, out)
	r.must(os.WriteFile(pb, make([]byte, minDiskBytes), 0o600))
	r.run(nil)
	if d := r.diskStatus(a.ID); d.State != model.DiskFailed || !strings.Contains(d.Reason, "no magic number") {
		t.Fatalf("%s: %s", d.State, d.Reason)
	}
	list, err := r.ctl.Devices(r.ctx())
	r.must(err)
	free := 0
	for _, d := range list {
		if d.Path == pb && d.State == model.DiskFree {
			free++
		}
	}
	if free != 1 {
		t.Fatalf("the blank disk is not listed as free: %+v", list)
	}
	n := r.claim(filepath.Base(pb)) // the place of a dead disk is for a new one
	if n.ID == a.ID || n.State != model.DiskActive {
		t.Fatalf("claimed: %+v", n)
	}
	move(out, pc) // and the old one comes back
	r.serves(a.ID, pc)
	r.stop()
	r.run(nil)
	r.serves(a.ID, pc)
	r.serves(b.ID, pa)
	r.serves(n.ID, pb)
	r.stop()
}
