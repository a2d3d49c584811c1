package writer

import (
	"flag"
	"testing"
)

var flagMutants = flag.Int("mutants", 0, "schedules to try on the mutants that need many")

// Each rule that a mutation switch takes away must be missed by some schedule:
// otherwise the schedules would not see its loss. The scenarios kill ReadBeforeOut,
// IgnoreCold, ShrinkToOneForLostLink and ClaimWithoutPrepare.
func TestMutantsDie(t *testing.T) {
	for _, c := range []struct {
		name string
		mut  Mutations
		many bool // rare: tried only with -mutants, and reported
		// moves: copies are moved meanwhile
		moves bool
	}{
		{"ack before the shrink is known", Mutations{AckBeforeShrinkKnown: true}, false, false},
		{"own watermark", Mutations{OwnWatermark: true}, false, false},
		{"keep winner on holder", Mutations{KeepWinnerOnHolder: true}, false, false},
		{"fill counts", Mutations{FillCounts: true}, false, true},
		{"grow without count", Mutations{GrowWithoutCount: true}, true, false},
		{"adopt without run", Mutations{AdoptWithoutRun: true}, true, false},
		{"release before config", Mutations{ReleaseBeforeConfig: true}, true, false},
		{"no sync lock", Mutations{NoSyncLock: true}, true, false},
	} {
		seeds := 400
		if c.many {
			seeds = *flagMutants
		}
		died := 0
		for seed := 1; seed <= seeds && died == 0; seed++ {
			w := newWorld(t, uint64(seed), c.mut)
			w.moves = c.moves
			if w.play(false).failed {
				died = seed
			}
		}
		switch {
		case died != 0:
			t.Logf("%-32s dies in schedule %d", c.name, died)
		case c.many:
			t.Logf("%-32s survives %d schedules", c.name, seeds)
		default:
			t.Errorf("%-32s survives %d schedules", c.name, seeds)
		}
	}
}
