package repl_test

import (
	"flag"
	"maps"
	"slices"
	"testing"
	"time"

	"roseau/internal/base/explore"
	"roseau/internal/core/repl"
)

var limit = flag.Int("model.limit", 30_000, "states of a world that TestModel visits; 0 = all; above 1000000 also the slow mutants run")

// worlds are what TestModel searches. Between them every step must occur.
var worlds = []world{
	// Two copies, and one fault: searched to the end by `make model`.
	{name: "small: takeover", place: 3, faults: 1, writes: 1, epochs: 2},
	{name: "small: shrink, flush, power cut", served: true, place: 3, faults: 1, cuts: 1, writes: 1, epochs: 1, flush: true},
	{name: "small: grow", served: true, place: 3, out: 2, faults: 1, writes: 1, epochs: 2},
	{name: "small: grow over a diverged copy", served: true, place: 3, out: 2, ahead: true, faults: 1, writes: 2, epochs: 1, flush: true},
	{name: "small: replacement", served: true, place: 3, out: 2, faults: 1, writes: 1, epochs: 1, replacing: true},
	{name: "small: a successor", served: true, place: 3, faults: 2, writes: 1, epochs: 1, successor: true, noEtcd: true},
	{name: "small: a successor over power cuts", served: true, place: 3, faults: 1, cuts: 2, writes: 1, epochs: 1, successor: true},
	{name: "small: restore", served: true, place: 3, faults: 1, writes: 1, epochs: 2, restore: true},
	{name: "small: release", served: true, place: 3, faults: 1, writes: 1, epochs: 2, leases: true, release: true},
	{name: "small: min_isr, restarts", served: true, place: 3, min: 2, faults: 2, writes: 1, epochs: 1, flush: true},
	{name: "small: min_isr, power cuts", served: true, place: 3, min: 2, faults: 1, cuts: 1, writes: 1, epochs: 2, flush: true},
	{name: "small: rollback", served: true, place: 3, faults: 1, cuts: 1, writes: 1, epochs: 3, rolls: 1},
	{name: "small: rollback of what was written, a power cut", place: 3, written: true, cuts: 1, writes: 1, epochs: 2, rolls: 1},
	{name: "small: rollback of what was written, a fault", place: 3, written: true, faults: 1, writes: 1, epochs: 2, rolls: 1},
	{name: "small: rollback, takeovers", place: 3, written: true, faults: 2, writes: 2, epochs: 3, rolls: 1},
	{name: "small: rollback under a successor", served: true, place: 3, faults: 2, writes: 1, epochs: 3, rolls: 1, successor: true, noEtcd: true},
	// Three copies: as far as the bound goes.
	{name: "rollback, three copies", served: true, faults: 1, cuts: 1, writes: 1, epochs: 4, rolls: 1, flush: true},
	{name: "min_isr, a third copy", served: true, out: 4, min: 2, faults: 2, cuts: 1, writes: 1, epochs: 2, flush: true},
	{name: "takeover, three in sync", faults: 1, writes: 1, epochs: 2},
	{name: "shrink and takeover", served: true, faults: 2, writes: 1, epochs: 2},
	{name: "flush and power cuts", served: true, faults: 1, cuts: 1, writes: 1, epochs: 2, flush: true},
	{name: "grow", served: true, out: 4, faults: 1, writes: 2, epochs: 2},
	{name: "shrink, grow, takeover", served: true, place: 3, faults: 2, writes: 1, epochs: 2, flush: true},
	{name: "replacement", served: true, out: 4, faults: 1, writes: 1, epochs: 2, replacing: true},
	{name: "two takeovers of two copies", served: true, place: 3, faults: 3, writes: 1, epochs: 3},
	{name: "leases and PREPARE", served: true, place: 3, faults: 1, writes: 1, epochs: 2, leases: true},
	{name: "PREPARE while another takes over", place: 3, writes: 1, epochs: 2, leases: true},
	{name: "a successor, with etcd", served: true, place: 3, faults: 2, cuts: 2, writes: 1, epochs: 2, successor: true},
	{name: "a successor, without etcd", served: true, faults: 2, writes: 1, epochs: 2, successor: true, noEtcd: true},
	{name: "a successor without etcd, in a grow", served: true, place: 3, out: 2, faults: 2, writes: 1, epochs: 2, successor: true, noEtcd: true},
	{name: "etcd restored from a backup", served: true, faults: 1, writes: 1, epochs: 3, restore: true},
	{name: "release", served: true, place: 3, faults: 1, writes: 1, epochs: 2, leases: true, release: true, flush: true, successor: true},
}

func (m model) search(limit int) explore.Result {
	return explore.Search(m, []state{m.first()}, limit)
}

func newModel(w world) model {
	return model{world: w, memo: &memo{map[transition]outcome{}, map[[2]owner]repl.Verdict{}, map[owner]bool{}}}
}

// mutants: a rule taken away, and the world in which that is seen.
var mutants = []struct {
	name string
	w    world
	r    rules
	slow bool
}{
	{"acks by the smaller set before the shrink is known", world{served: true, faults: 1, writes: 1, epochs: 1}, rules{ackBeforeCAS: true}, false},
	{"acks before the others hold the shrink's CONFIG", world{served: true, place: 3, faults: 2, writes: 1, epochs: 2, restore: true}, rules{ackBeforeConfig: true}, true},
	{"grow: the joining disk does not count before the CAS", world{served: true, place: 3, out: 2, faults: 1, writes: 1, epochs: 1}, rules{growWithoutCount: true}, false},
	{"grow: an unknown CAS is taken for a failed one", world{served: true, place: 3, out: 2, faults: 1, writes: 2, epochs: 1}, rules{growFailsEarly: true}, false},
	{"grow: `pending` is not told", world{served: true, place: 3, out: 2, faults: 2, writes: 1, epochs: 1, successor: true, noEtcd: true}, rules{pendingUntold: true}, false},
	{"a takeover reads before the missing are out", world{served: true, place: 3, faults: 2, writes: 1, epochs: 2}, rules{serveBeforeOut: true}, false},
	{"a promise does not wait for the grant of the old epoch", world{served: true, place: 3, faults: 1, writes: 1, epochs: 2, leases: true}, rules{noLeaseWait: true}, false},
	{"a restarted replica takes no grant for granted", world{served: true, place: 3, faults: 2, writes: 1, epochs: 2, leases: true}, rules{restartForgetsGrants: true}, false},
	{"PREPARE reserves nothing", world{served: true, place: 3, writes: 0, epochs: 2, leases: true}, rules{noReservation: true}, false},
	{"a promise of a lower epoch ends a reservation", world{place: 3, writes: 0, epochs: 2, leases: true}, rules{promiseEndsReservation: true}, false},
	{"an equal epoch passes, whatever its nonce", world{place: 3, writes: 1, epochs: 1, restore: true}, rules{equalEpochPasses: true, toldIgnored: true}, false},
	{"what a replica was told vetoes nothing", world{served: true, place: 3, faults: 2, writes: 1, epochs: 2, restore: true}, rules{toldIgnored: true}, true},
	{"the same epoch is reopened with a member missing", world{served: true, place: 3, faults: 2, writes: 1, epochs: 1, successor: true, noEtcd: true}, rules{reopenWithoutAll: true}, false},
	{"cold is forgotten", world{served: true, place: 3, faults: 1, cuts: 2, writes: 1, epochs: 1, successor: true}, rules{coldForgotten: true}, false},
	{"resync believes the joining disk's own durable mark", world{served: true, place: 3, out: 2, ahead: true, epochs: 1}, rules{baseOfJoiner: true}, false},
	{"a replacement is in sync at once", world{served: true, place: 3, out: 2, writes: 1, epochs: 2, replacing: true}, rules{replaceInSync: true}, false},
	{"a transaction does not compare own's revision", world{served: true, place: 3, faults: 2, writes: 1, epochs: 2}, rules{noCompare: true}, false},
	{"a restarted replica is taken back without a resync", world{served: true, place: 3, cuts: 1, writes: 1, epochs: 1, flush: true}, rules{sessionIgnored: true}, false},
	{"min_isr: a write is answered with one copy", world{served: true, place: 3, min: 2, faults: 1, cuts: 1, writes: 1, epochs: 1}, rules{answerBelowMin: true}, false},
	{"min_isr: a cold copy is kept as it is", world{served: true, place: 3, min: 2, cuts: 1, writes: 1, epochs: 1, flush: true}, rules{keepColdForMin: true}, false},
	{"rollback: the guest is served before it is over", world{served: true, place: 3, writes: 1, epochs: 3, rolls: 1}, rules{rollbackServesEarly: true}, false},
	{"rollback: it is over before it is durable", world{place: 3, written: true, writes: 1, epochs: 2, rolls: 1}, rules{rollbackWithoutFlush: true}, false},
	{"rollback: its resolution keeps the epoch", world{served: true, place: 3, faults: 1, writes: 1, epochs: 3, rolls: 1}, rules{rollbackKeepsEpoch: true}, false},
	{"rollback: its resolution does not compare own", world{served: true, place: 3, faults: 1, writes: 1, epochs: 3, rolls: 1}, rules{rollbackUncompared: true}, false},
	{"a released epoch is opened again", world{served: true, place: 3, faults: 1, writes: 1, epochs: 2, leases: true, release: true, successor: true}, rules{releaseReopens: true}, false},
}

func TestModelSeesMissingRules(t *testing.T) {
	for _, x := range mutants {
		t.Run(x.name, func(t *testing.T) {
			if x.slow && *limit < 1_000_000 {
				t.Skip("slow: make model")
			}
			x.w.rules = x.r
			begin := time.Now()
			r := newModel(x.w).search(3_000_000)
			if r.Broken == "" {
				t.Errorf("not seen: %s", r)
				return
			}
			t.Logf("%s\n(%v)", r, time.Since(begin).Round(time.Millisecond))
		})
	}
}

func TestModel(t *testing.T) {
	taken := map[string]int{}
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			begin := time.Now()
			r := newModel(w).search(*limit)
			for name, n := range r.Taken {
				taken[name] += n
			}
			if r.Broken != "" {
				t.Error(r)
				return
			}
			t.Logf("%s in %v", r, time.Since(begin).Round(time.Millisecond))
		})
	}
	if *limit != 0 && *limit < 1_000_000 {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(taken)) {
		t.Logf("%12d  %s", taken[name], name)
	}
	for _, name := range []string{
		"writer: sends a replacement", "writer: grow 3, sends the CAS", "writer: reconciles, serves", "writer: released",
		"writer: reopens its epoch, without etcd", "writer: writes its inc", "writer: reopens its epoch, by CAS",
		"writer: every copy lost power: its guest is killed", "writer: stops, a disk knows more than etcd",
		"writer: keeps a restarted disk for min_isr", "writer: sends a shrink below min_isr",
		"writer: sends the end of the rollback", "etcd: transaction of the operator",
		"etcd: late transaction of the predecessor of writer", "disk: its reservation ends", "writer: fenced",
	} {
		if taken[name] == 0 {
			t.Errorf("never happened: %s", name)
		}
	}
}
