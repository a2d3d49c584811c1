package drill

import (
	"strings"
	"testing"
)

func TestNextFailoverSpreadsLeaders(t *testing.T) {
	for plain := 1; plain <= 20; plain++ {
		var done []FailoverRun
		plains, leaders := 0, 0
		for {
			leader, more := nextFailover(done, plain)
			if !more {
				break
			}
			if done = append(done, FailoverRun{Leader: leader}); leader {
				leaders++
			} else {
				plains++
			}
			if leaders > plains {
				t.Fatalf("%d runs: leaders come first", plain)
			}
			if len(done) > 2*plain+2 {
				t.Fatalf("%d runs: no end", plain)
			}
		}
		if plains != plain || leaders != plain/2 {
			t.Errorf("%d runs: %d plain, %d of leaders", plain, plains, leaders)
		}
	}
	if leader, more := nextFailover([]FailoverRun{{}, {}, {}, {}}, 2); !leader || !more {
		t.Error("cuts of leaders are left out when there are more plain ones than asked for")
	}
}

func TestFailoversAreJudged(t *testing.T) {
	run := func(leader bool, shown float64) FailoverRun {
		return FailoverRun{Leader: leader, From: "n1", To: "n2", Elected: 600, Manages: 650, Detected: 1500, Guard: 1600, QEMU: 1900, Granted: 3300, Taken: 3400,
			Resumed: shown - 50, Shown: shown, Acked: 10}
	}
	good := []FailoverRun{run(false, 3600), run(false, 5900), run(false, 3700), run(true, 4900)}
	judge := func(runs []FailoverRun) *TestReport {
		e := Env{report: &TestReport{Figures: Figures{}}}
		judgeFailovers(&e, runs)
		return e.report
	}
	if r := judge(good); len(r.Failed) != 0 || r.Figures["plain_median_ms"] != 3700.0 || r.Figures["plain_worst_ms"] != 5900.0 || r.Figures["leader_cuts"] != 1 {
		t.Errorf("%v, %v", r.Failed, r.Figures)
	}
	bad := map[string]FailoverRun{"plain: worst 6100 ms": run(false, 6100), "leader: worst 8100 ms": run(true, 8100), "leader: median": run(true, 5500)}
	lost, twice := run(false, 3600), run(false, 3600)
	lost.Lost, twice.Twice = 1, true
	bad["cut 5: 1 of 10"], bad["cut 5: the guest of before"] = lost, twice
	for want, r := range bad {
		if got := strings.Join(judge(append(good[:4:4], r)).Failed, "; "); !strings.Contains(got, want) {
			t.Errorf("%q is not among what was missed: %q", want, got)
		}
	}
	if r := judge(nil); len(r.Failed) != 2 {
		t.Errorf("nothing measured: %v", r.Failed)
	}
	if page := failoversPage(good[:3], "abc"); !strings.Contains(page, "etcd's leader | none yet | | 5000 | | 8000 |") {
		t.Errorf("cuts that were not made are shown as measured:\n%s", page)
	}
	page := failoversPage(good, "abc")
	for _, w := range []string{"commit abc", "| the VM's node | 3 | 3700 | 4000 | 5900 | 6000 |", "| etcd elects a leader | inside the lease | | | 600 | 600 |",
		"| 4 | n1 | n2 | yes | 600 | 650 | 1500 |"} {
		if !strings.Contains(page, w) {
			t.Errorf("the page lacks %q:\n%s", w, page)
		}
	}
}
