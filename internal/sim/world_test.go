package sim

import (
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// A copy that is out counts whichever extent it is a copy of: the last segment
// is not full, and is a segment all the same.
func TestCopiesLooksAtEverySegment(t *testing.T) {
	for e := range extentCount {
		w := newWorld(Options{Seed: 1})
		if got := w.copies(); got != storageNodes {
			t.Fatalf("%d copies of a new volume, want %d", got, storageNodes)
		}
		r := w.etcd.records(w.vm, idsOf(w.volume), w.diskIdx)
		d := r.Volumes[0].Seg.Row(e * repl.ExtentBytes / segmentBytes)[0]
		w.etcd.rev++
		w.etcd.put(repl.Key{Kind: repl.KeyOwn, ID: w.volume}.Path(), repl.Own{Out: map[ids.ID]repl.Out{d: {}}})
		if got := w.copies(); got != storageNodes-1 {
			t.Errorf("a disk of extent %d is out: %d copies, want %d", e, got, storageNodes-1)
		}
	}
}
