package sim

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// A set that was interrupted twice counts as one that was not.
func TestProgressGoesOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	b := Batch{First: 1, Count: 6, Ops: 50}
	whole, err := RunBatch(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	b.State, b.Version = file, "v"
	for _, n := range []int{2, 5} {
		part := b
		part.Count = n
		if s, err := RunBatch(t.Context(), part); err != nil || s.Seeds != n {
			t.Fatalf("%d seeds, %v", s.Seeds, err)
		}
	}
	rest, err := RunBatch(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if rest.Seeds != whole.Seeds || rest.Ops != whole.Ops || !maps.Equal(rest.Counts, whole.Counts) {
		t.Errorf("in three sittings %d seeds, %d operations, %v;\nin one %d, %d, %v", rest.Seeds, rest.Ops, rest.Counts, whole.Seeds, whole.Ops, whole.Counts)
	}
	b.Version = "w"
	if _, err := RunBatch(t.Context(), b); err == nil {
		t.Error("the state of another version was taken")
	}
}

// Only seeds without a gap before them count as done: a seed under way at a kill
// runs again.
func TestProgressLeavesNoGap(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	p, err := LoadProgress(file, "v", 1, 10)
	if err != nil {
		t.Fatal(err)
	}
	k := newKeeper(file, p)
	for _, seed := range []uint64{2, 3, 1, 5} {
		k.add(Result{Seed: seed, Ops: 10})
	}
	k.flush()
	if p, err = LoadProgress(file, "v", 1, 10); err != nil || p.Next != 4 || p.Ops != 30 {
		t.Errorf("next %d, %d operations, %v; want 4, 30", p.Next, p.Ops, err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := RunBatch(context.Background(), Batch{First: 1, Count: 1, Ops: 10, State: file, Version: "v"}); err == nil {
		t.Error("a broken file was taken")
	}
}
