package sim

import (
	"os"
	"strconv"
	"testing"
)

// seedsWanted is how many seeds TestSeeds runs: few in `go test ./...`, 500 in
// `make test` (ROSEAU_SIM_SEEDS).
func seedsWanted(t *testing.T) int {
	s := os.Getenv("ROSEAU_SIM_SEEDS")
	if s == "" {
		return 30
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("ROSEAU_SIM_SEEDS=%q: want a number from 1", s)
	}
	return n
}

func TestSeeds(t *testing.T) {
	count := seedsWanted(t)
	sum, err := RunBatch(t.Context(), Batch{First: 1, Count: count, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range sum.Failed {
		if i == 5 {
			t.Errorf("and %d more seeds", len(sum.Failed)-i)
			break
		}
		t.Errorf("seed %d: %v\n  repeat it with: %s", r.Seed, r.Err, r.Command())
	}
	t.Logf("%d seeds, %d operations in %s", sum.Seeds, sum.Ops, sum.Took)
	if count >= 500 {
		sum.WriteCounts(os.Stderr)
		if m := sum.Missing(); len(m) > 0 {
			t.Errorf("never happened in %d seeds: %v: the simulator is blind there", count, m)
		}
	}
}

// The same seed gives the same run.
func TestDeterminism(t *testing.T) {
	run := func() (out []string) {
		r := Run(Options{Seed: 7, Trace: func(line string) { out = append(out, line) }})
		if r.Err != nil {
			t.Log(r.Err)
		}
		return out
	}
	a, b := run(), run()
	if len(a) != len(b) {
		t.Fatalf("%d lines, then %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("line %d:\n  %s\n  %s", i, a[i], b[i])
		}
	}
}

// Every mutant is caught within its seeds, by a seed that the correct engine
// passes.
func TestMutantsAreCaught(t *testing.T) {
	for _, m := range Mutants {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c, err := RunMutant(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if c.Err == nil {
				t.Fatalf("survives %d seeds: %s", c.Seeds, m.Rule)
			}
			t.Logf("seed %d, %s: %v", c.Seed, c.Took.Round(1e6), c.Err)
		})
	}
}
