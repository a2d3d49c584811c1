package volume

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
)

// What would be given up is said with names, once for all segments of one fate.
func TestLossLines(t *testing.T) {
	view, _, _ := testWorld()
	now := time.Unix(1_000_000, 0)
	lost := repl.Loss{Gone: []ids.ID{tid(11), tid(21)}, From: tid(31), Out: repl.Out{Base: repl.Mark{Epoch: 3, Wseq: 77}, Since: 999_400, Reason: repl.OutLost}}
	other := lost
	other.Segment, other.Out = 2, repl.Out{Reason: repl.OutRestarted}
	second := lost
	second.Segment = 1
	got := lossLines([]repl.Loss{lost, second, other}, view.Names, now)
	want := []string{
		"2 segments of 1 GiB: n1-d1 on n1, n2-d1 on n2 cannot be reached; n3-d1 on n3 takes over, which is complete up to write 77 of epoch 3, " +
			"outside since " + time.Unix(999_400, 0).UTC().Format(time.RFC3339) + ", 10m0s ago (connection lost)",
		"1 segment of 1 GiB: n1-d1 on n1, n2-d1 on n2 cannot be reached; n3-d1 on n3 takes over, which is complete up to an unknown write, outside since an unknown time (restarted)",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A copy that was given up never joins: its segments get another one, although its
// disk serves.
func TestGivenUpCopyIsRebuiltElsewhere(t *testing.T) {
	view, disks, alive := testWorld()
	v := volumeOn(201, 1, 11, 21, 31)
	v.Own.Out[tid(31)] = repl.Out{Reason: repl.OutGivenUp}
	view.Volumes[v.ID] = v
	got := plan(&world{view: view, disks: disks, alive: alive})
	if len(got) != 1 || fmt.Sprint(got[0].replace) != fmt.Sprint([]volumectl.Replace{{Old: tid(31), New: tid(32), Node: tid(3), Segments: []uint32{0}}}) {
		t.Errorf("%+v", got)
	}
	for i := range view.Disks[tid(100)] {
		view.Disks[tid(100)][i].Unusable = "full"
	}
	if got := plan(&world{view: view, disks: disks, alive: alive}); len(got) != 1 || got[0].stuck == "" {
		t.Errorf("no place for it: %+v", got)
	}
}

// What going on with a torn or a damaged copy may cost is said with names.
func TestDoubtLines(t *testing.T) {
	view, _, _ := testWorld()
	got := doubtLines([]volumectl.Doubt{
		{Disk: tid(11), Unverified: 3, Segments: 2, Missing: []ids.ID{tid(21), tid(31)}},
		{Disk: tid(21), Damaged: true, Segments: 1},
	}, view.Names)
	want := []string{
		"2 segments of 1 GiB: n1-d1 on n1: up to 3 of its last records are torn: those of them that were acknowledged are lost; the copies that could tell: n2-d1 on n2, n3-d1 on n3",
		"1 segment of 1 GiB: n2-d1 on n2: a durable part of its log is lost: writes may be missing that were acknowledged and flushed, and nobody can name them",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
