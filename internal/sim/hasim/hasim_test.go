package hasim

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestSeeds runs random worlds; ROSEAU_SIM_SEEDS sets how many.
func TestSeeds(t *testing.T) {
	count := uint64(40)
	if n, err := strconv.ParseUint(os.Getenv("ROSEAU_SIM_SEEDS"), 10, 32); err == nil {
		count = n
	}
	var starts, cuts, moves int
	if r := Batch(t.Context(), 1, count, func(r *Result) { starts, cuts, moves = starts+r.Starts, cuts+r.Cuts, moves+r.Moves }); r != nil {
		t.Fatalf("seed %d (%d nodes, %d VMs): %v\nrepeat it with: roseau sim ha --seed %d --trace", r.Seed, r.Nodes, r.VMs, r.Err, r.Seed)
	}
	if starts == 0 || cuts == 0 || moves == 0 {
		t.Errorf("the worlds are too quiet: %d starts, %d nodes cut, %d migrations", starts, cuts, moves)
	}
}

// TestLoss: in a quiet world every machine of a lost node is back within the bound.
func TestLoss(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		if r := Loss(Options{Seed: seed}); r.Err != nil {
			t.Errorf("seed %d (%d nodes, %d VMs): %v", seed, r.Nodes, r.VMs, r.Err)
		}
	}
}

// TestLarge: a step in a world of 64 nodes and 2,000 machines takes less than the
// manager's interval.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("a large world takes seconds")
	}
	r := Loss(Options{Seed: 1, Nodes: 64, VMs: 2000})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	best := time.Hour
	for _, d := range r.steps {
		best = min(best, d)
	}
	if best > tick {
		t.Errorf("the quickest step took %s", best)
	}
}
