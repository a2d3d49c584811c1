package drill

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// split returns the cuts of nodes that did not lead, and of those that did.
func split(done []FailoverRun) (plain, leader []FailoverRun) {
	for _, r := range done {
		if r.Leader {
			leader = append(leader, r)
		} else {
			plain = append(plain, r)
		}
	}
	return plain, leader
}

// elected is when the next manager's node had a leader: at the cut, if it never saw
// that there was none.
func (r FailoverRun) elected() float64 { return max(0, r.Elected) }

func (a failoverAim) judge(e *Env, what string, runs []FailoverRun) {
	if len(runs) == 0 {
		e.report.require(false, "%s: no cut was made", what)
		return
	}
	med, worst := overRuns(runs, func(r FailoverRun) float64 { return r.Shown })
	f := e.report.Figures
	f[what+"_cuts"], f[what+"_median_ms"], f[what+"_worst_ms"] = len(runs), med, worst
	e.report.require(med <= ms(a.median), "%s: median %.0f ms, at most %s allowed", what, med, a.median)
	e.report.require(worst <= ms(a.worst), "%s: worst %.0f ms, at most %s allowed", what, worst, a.worst)
}

func judgeFailovers(e *Env, done []FailoverRun) {
	plain, leader := split(done)
	plainAim.judge(e, "plain", plain)
	leaderAim.judge(e, "leader", leader)
	acked, lost, twice := 0, 0, 0
	for i, r := range done {
		acked, lost = acked+r.Acked, lost+r.Lost
		if r.Twice {
			twice++
		}
		e.report.require(r.Acked > 0, "cut %d: no write was acknowledged before it", i+1)
		e.report.require(r.Lost == 0, "cut %d: %d of %d acknowledged writes lost", i+1, r.Lost, r.Acked)
		e.report.require(!r.Twice, "cut %d: the guest of before it still answers", i+1)
	}
	f := e.report.Figures
	f["writes_acked"], f["writes_lost"], f["vms_run_twice"] = acked, lost, twice
}

func overRuns(runs []FailoverRun, of func(FailoverRun) float64) (med, worst float64) {
	var v []float64
	for _, r := range runs {
		v = append(v, of(r))
	}
	if len(v) == 0 {
		return 0, 0
	}
	return median(v), slices.Max(v)
}

// term is a stretch of a failover: what it is, and how long it took in a run.
type term struct {
	what   string
	path   string // on the path, or inside what
	of     func(FailoverRun) float64
	leader bool // of leaders' cuts only
}

// terms add up to the whole: those on the path end one after the other.
var terms = []term{
	{"etcd elects a leader", "inside the lease", FailoverRun.elected, true},
	{"the next manager goes to work", "inside the lease", func(r FailoverRun) float64 { return r.Manages - r.elected() }, true},
	{"no beat for 1.5 s, one step of the manager", "inside the lease", func(r FailoverRun) float64 { return r.Detected }, false},
	{"placement, its node sees it and starts the guard", "inside the lease", func(r FailoverRun) float64 { return r.Guard - r.Detected }, false},
	{"QEMU starts, stopped", "inside the lease", func(r FailoverRun) float64 { return r.QEMU - r.Guard }, false},
	{"the lease ends: copies grant (from the cut)", "yes", func(r FailoverRun) float64 { return r.Granted }, false},
	{"claim, OPEN, missing copies out, reconcile", "yes", func(r FailoverRun) float64 { return r.Taken - r.Granted }, false},
	{"lease, port, the guest runs", "yes", func(r FailoverRun) float64 { return r.Resumed - r.Taken }, false},
	{"report, status, the question from outside", "yes", func(r FailoverRun) float64 { return r.Shown - r.Resumed }, false},
	{"sum: the API shows it running elsewhere", "", func(r FailoverRun) float64 { return r.Shown }, false},
}

// failoversPage is the page that goes into the documents.
func failoversPage(done []FailoverRun, commit string) string {
	var b strings.Builder
	plain, leader := split(done)
	fmt.Fprintf(&b, "# Failovers\n\n%s, commit %s. Command: `make failovers RUNS=%d`\n(`roseau drill run failovers --runs %d` on a lab of three nodes, two processors shared by all of them, guests under TCG, "+
		"the timers that ship; the load\naverage is the machine's, with whatever else ran on it). Power and cables of the node are cut, unflushed writes of its disks dropped. A time counts from\n"+
		"the cut until the API, asked from outside every 20 ms, shows the VM running on another node.\n\n",
		time.Now().UTC().Format("2 January 2006"), commit, len(plain), len(plain))
	b.WriteString("| | cuts | median ms | aim | worst ms | aim |\n|---|---:|---:|---:|---:|---:|\n")
	for _, c := range []struct {
		what string
		runs []FailoverRun
		aim  failoverAim
	}{{"the VM's node", plain, plainAim}, {"the VM's node, with the HA manager and etcd's leader", leader, leaderAim}} {
		if len(c.runs) == 0 {
			fmt.Fprintf(&b, "| %s | none yet | | %.0f | | %.0f |\n", c.what, ms(c.aim.median), ms(c.aim.worst))
			continue
		}
		med, worst := overRuns(c.runs, func(r FailoverRun) float64 { return r.Shown })
		fmt.Fprintf(&b, "| %s | %d | %.0f | %.0f | %.0f | %.0f |\n", c.what, len(c.runs), med, ms(c.aim.median), worst, ms(c.aim.worst))
	}
	acked, lost, twice := 0, 0, 0
	for _, r := range done {
		acked, lost = acked+r.Acked, lost+r.Lost
		if r.Twice {
			twice++
		}
	}
	fmt.Fprintf(&b, "\nAcknowledged writes lost: %d of %d. Guests of before a cut that answered after it: %d.\n", lost, acked, twice)
	b.WriteString("\n## Term by term\n\nFrom the times that the manager and the guards note. Inside the lease: over before the copies of the dead node's writer may\nbe taken.\n\n" +
		"| term | on the path | median ms | worst ms | leader: median ms | worst ms |\n|---|---|---:|---:|---:|---:|\n")
	for _, t := range terms {
		fmt.Fprintf(&b, "| %s | %s |", t.what, t.path)
		for i, runs := range [][]FailoverRun{plain, leader} {
			if med, worst := overRuns(runs, t.of); t.leader && i == 0 || len(runs) == 0 {
				b.WriteString(" | |")
			} else {
				fmt.Fprintf(&b, " %.0f | %.0f |", med, worst)
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n## Every cut\n\nMilliseconds since the cut; page: the guest has booted and answers.\n\n" +
		"| # | from | to | led | elected | manages | detected | guard | qemu | granted | taken | resumed | shown | page | acked | lost | load |\n" +
		"|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n")
	for i, r := range done {
		led, elected, manages := "", "", ""
		if r.Leader {
			led = "yes"
		}
		if r.Manages > 0 {
			elected, manages = fmt.Sprintf("%.0f", r.elected()), fmt.Sprintf("%.0f", r.Manages)
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %d | %d | %s |\n", i+1, r.From, r.To, led,
			elected, manages, r.Detected, r.Guard, r.QEMU, r.Granted, r.Taken, r.Resumed, r.Shown, r.Page, r.Acked, r.Lost, r.Load)
	}
	return b.String()
}
