package repl

import (
	"testing"

	"roseau/internal/base/ids"
)

// A VM's volumes have one epoch after a takeover, whatever they had before, so
// that the hand-over of a migration can compare it with all of them.
func TestTakeoverEvensEpochs(t *testing.T) {
	run := ids.New()
	vol := func(epoch uint64) VolumeRecord {
		return VolumeRecord{ID: ids.New(), Own: Own{Epoch: epoch}, Cfg: Cfg{State: VolumeLive}}
	}
	_, next, err := Takeover(Records{Volumes: []VolumeRecord{vol(0), vol(7), vol(3)}}, Take{Run: run, Nonce: ids.New()})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range next.Volumes {
		if v.Own.Epoch != 8 {
			t.Errorf("epoch %d, want 8", v.Own.Epoch)
		}
	}
	if _, _, err := Takeover(next, Take{Run: run, Nonce: ids.New(), ExpectRun: run, ExpectEpoch: 8}); err != nil {
		t.Error(err)
	}
}
