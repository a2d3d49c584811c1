package drill

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every ordered pair comes before one comes twice, wherever it begins.
func TestNextNodeCoversAllPairs(t *testing.T) {
	for count := 2; count <= 6; count++ {
		nodes := strings.Split("a b c d e f", " ")[:count]
		for _, at := range nodes {
			var done []MigrationRun
			seen := map[[2]string]int{}
			for range count * (count - 1) {
				to := nextNode(nodes, at, done)
				done = append(done, MigrationRun{From: at, To: to})
				seen[[2]string{at, to}]++
				at = to
			}
			if len(seen) != count*(count-1) || seen[[2]string{"a", "a"}] != 0 {
				t.Errorf("%d nodes: %d of %d pairs: %v", count, len(seen), count*(count-1), seen)
			}
		}
	}
}

func TestRunsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs")
	if list, err := readKept[MigrationRun](path); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	want := []MigrationRun{{From: "n1", To: "n2", PingsSent: 100, LongestGap: 90, Blackout: 20},
		{From: "n2", To: "n1", PingsSent: 100, PingsLost: 1, LongestGap: 110, Blackout: 40}}
	for _, r := range want {
		if err := keepOne(path, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readKept[MigrationRun](path)
	if err != nil || len(got) != 2 || got[1] != want[1] {
		t.Fatalf("%+v, %v", got, err)
	}
	page := runsTable(got, "abc")
	for _, w := range []string{"| migrations without a lost ping | 1 of 2 |", "| QEMU's downtime, median (worst) | 30 ms (40) |", "commit abc", "| 2 | n2 | n1 | 100 | 1 | 110 | 40 |"} {
		if !strings.Contains(page, w) {
			t.Errorf("the page lacks %q:\n%s", w, page)
		}
	}
	e := Env{report: &TestReport{Figures: Figures{}}}
	summarize(&e, got)
	if f := e.report.Figures; f["without_loss"] != 1 || f["longest_gap_median_ms"] != 100.0 || len(e.report.Failed) != 1 {
		t.Errorf("%+v, %v", f, e.report.Failed)
	}
	if err := os.WriteFile(path, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readKept[MigrationRun](path); err == nil {
		t.Error("a broken file is read")
	}
}
