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
	sum := RunBatch(t.Context(), Batch{First: 1, Count: count, Progress: os.Stderr})
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

// Every mutant that the simulator is known to see is caught within its seeds;
// those that it does not see yet are named in the log.
func TestMutantsAreCaught(t *testing.T) {
	if os.Getenv("ROSEAU_SIM_SEEDS") == "" {
		t.Skip("mutants run with the long seeds: make test, make mutants")
	}
	for _, m := range Mutants {
		if m.Survives {
			t.Logf("%-24s NOT CAUGHT by any seed yet (%s)", m.Name, m.Rule)
			continue
		}
		c := RunMutant(t.Context(), m, 1, 150, 300)
		if c.Err == nil {
			t.Errorf("mutant %s survives %d seeds (%s)", m.Name, c.Seeds, m.Rule)
			continue
		}
		t.Logf("%-24s caught by seed %d after %d seeds, %s", m.Name, c.Seed, c.Seeds, c.Took)
	}
}
