package gc

import (
	"runtime/debug"
	"testing"
)

func TestSet(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "")
	Set(Storage)
	if got := debug.SetGCPercent(100); got != Storage {
		t.Errorf("%d percent, want %d", got, Storage)
	}
	t.Setenv("GOGC", "50")
	Set(Storage)
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("%d percent although the operator has set GOGC", got)
	}
}
