package sim

import (
	"testing"
	"time"
)

// A clone reads what the snapshot had, whatever becomes of its parent's writer and
// of the copies of both, while it is flattened and afterwards.
func TestClones(t *testing.T) {
	for _, pause := range []time.Duration{0, 200 * time.Millisecond, 5 * time.Second} {
		b := Bias{Clones: true, Flatten: pause, Snapshots: 300 * time.Millisecond, Faults: cloneFaults, Every: time.Second}
		sum, err := RunBatch(t.Context(), Batch{First: 1, Count: max(2, seedsWanted(t)/100), Bias: &b})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range sum.Failed {
			if i == 3 {
				break
			}
			t.Errorf("pause %s, seed %d: %v", pause, r.Seed, r.Err)
		}
		if sum.Counts["flattened"] != sum.Seeds || sum.Counts["snapshot_read"] == 0 {
			t.Errorf("of %d clones %d were flattened, %d reads of their snapshots", sum.Seeds, sum.Counts["flattened"], sum.Counts["snapshot_read"])
		}
	}
}
