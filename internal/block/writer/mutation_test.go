package writer

import (
	"testing"
)

// Each rule that a mutation switch takes away must be missed by some schedule:
// otherwise the schedules would not see its loss.
func TestMutantsDie(t *testing.T) {
	seeds := uint64(250)
	if testing.Short() {
		t.Skip("random schedules")
	}
	for _, c := range []struct {
		name string
		mut  Mutations
	}{
		{"ack before the shrink is known", Mutations{AckBeforeShrinkKnown: true}},
		{"own watermark", Mutations{OwnWatermark: true}},
		{"grow without count", Mutations{GrowWithoutCount: true}},
		{"read before out", Mutations{ReadBeforeOut: true}},
		{"adopt without run", Mutations{AdoptWithoutRun: true}},
		{"no sync lock", Mutations{NoSyncLock: true}},
		{"ignore cold", Mutations{IgnoreCold: true}},
		{"release before config", Mutations{ReleaseBeforeConfig: true}},
		{"keep winner on holder", Mutations{KeepWinnerOnHolder: true}},
		{"shrink to one for a lost link", Mutations{ShrinkToOneForLostLink: true}},
		{"claim without prepare", Mutations{ClaimWithoutPrepare: true}},
	} {
		died := uint64(0)
		for seed := uint64(1); seed <= seeds && died == 0; seed++ {
			if runSeed(t, seed, c.mut, false).failed {
				died = seed
			}
		}
		if died == 0 {
			t.Logf("%-32s SURVIVES %d schedules", c.name, seeds)
		} else {
			t.Logf("%-32s dies in schedule %d", c.name, died)
		}
	}
}
