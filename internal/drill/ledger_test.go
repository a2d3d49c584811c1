package drill

import (
	"fmt"
	"strings"
	"testing"

	"roseau/internal/drill/probe"
)

// A disk as two guests leave it: each writes number after number, the second one
// begins above all that it finds. What a checker must see is done to it.
func TestLedgerSeesTwoWriters(t *testing.T) {
	const first, second = "00000000000000aa", "00000000000000bb"
	type disk map[uint32]logEntry
	write := func(d disk, boot string, from, to uint64) {
		for seq := from; seq <= to; seq++ {
			d[probe.Slot(seq)] = logEntry{seq, boot}
		}
	}
	for _, c := range []struct {
		name          string
		do            func(d disk)
		st            probe.Status
		foreign, lost bool
	}{
		{"a restart", func(disk) {}, probe.Status{Boot: second, First: 102}, false, false},
		// The same numbers again: only the guest's name tells them apart.
		{"the old epoch writes on", func(d disk) { write(d, first, 102, 103) }, probe.Status{Boot: second, First: 102}, true, false},
		{"the old epoch writes beyond the new one", func(d disk) { write(d, first, 300, 300) }, probe.Status{Boot: second, First: 102}, true, false},
		{"the old memory goes on with the newer disk", func(disk) {}, probe.Status{Boot: first, First: 1}, true, false},
		{"a copy from before the restart", func(d disk) { clear(d); write(d, first, 1, 101) }, probe.Status{Boot: second, First: 102}, false, true},
		{"a write that nobody heard of", func(d disk) { write(d, second, 201, 205) }, probe.Status{Boot: second, First: 102}, false, false},
	} {
		d := disk{}
		write(d, first, 1, 101)
		write(d, second, 102, 200)
		newest := map[uint32]uint64{}
		for seq := uint64(1); seq <= 200; seq++ {
			newest[probe.Slot(seq)] = seq
		}
		delete(newest, probe.Slot(101)) // in flight when the first guest died
		c.do(d)
		if got := foreignWrites(d, c.st); (len(got) > 0) != c.foreign {
			t.Errorf("%s: foreign writes in %d slots", c.name, len(got))
		}
		if got := lostWrites(d, newest); (len(got) > 0) != c.lost {
			t.Errorf("%s: %d lost", c.name, len(got))
		}
	}
}

func TestReadLog(t *testing.T) {
	e, bad, err := readLog("3 17 00000000000000aa\n4 error log slot 4: not a probe block (first bytes 00)\nend\n")
	if err != nil || len(e) != 1 || e[3] != (logEntry{17, "00000000000000aa"}) || len(bad) != 1 || !strings.HasPrefix(bad[0], "4 error") {
		t.Fatal(e, bad, err)
	}
	if _, _, err := readLog(fmt.Sprintf("3 17 %016x\n", 1)); err == nil {
		t.Fatal("half an answer was taken for a whole one")
	}
}
