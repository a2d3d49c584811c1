package sim

import (
	"os"
	"strconv"
	"testing"
)

// The correct engine keeps the contract in every scenario, whatever the delays
// (more of them: ROSEAU_SCENARIO_SEEDS).
func TestScenarios(t *testing.T) {
	list, err := Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	seeds := 3
	if n, err := strconv.Atoi(os.Getenv("ROSEAU_SCENARIO_SEEDS")); err == nil {
		seeds = n
	}
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(seeds) {
				if r := RunScenario(s, seed+1, Mutations{}, nil); r.Err != nil {
					t.Fatalf("seed %d: %v\n  repeat it with: roseau sim scenario %s --seed %d --trace", seed+1, r.Err, s.Name, seed+1)
				}
			}
		})
	}
}
