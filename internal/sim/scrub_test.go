package sim

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Rot and lies under many snapshots: after the scrubs every copy is readable as the
// head and as each snapshot shows it, and the copies are equal.
func TestSnapshotsAreScrubbed(t *testing.T) {
	seeds := []uint64{7037, 7047, 7054, 7143} // which see a pass that reads the head alone, the last one of a copy that joins again
	if n, err := strconv.Atoi(os.Getenv("ROSEAU_SIM_SEEDS")); err == nil {
		for i := range n / 10 {
			seeds = append(seeds, 7100+uint64(i))
		}
	}
	rotten := 0
	for _, seed := range seeds {
		r := runRecovered(Options{Seed: seed, Ops: 300, Bias: &Bias{
			Faults: []string{"bit_rot", "lost_write", "stale_read", "storage_kill"}, Every: 300 * time.Millisecond, Snapshots: 150 * time.Millisecond,
		}})
		if r.Err != nil {
			t.Errorf("seed %d: %v", seed, r.Err)
		}
		rotten += r.Counts["bit_rot"]
	}
	if rotten == 0 {
		t.Error("nothing rotted")
	}
}
