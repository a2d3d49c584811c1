package vmguard

import (
	"flag"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/explore"
)

var modelLimit = flag.Int("model.limit", 5_000, "states of a world that TestModel visits; 0 = all")

// first is a guest that runs at the source under epoch 5, a destination that is
// ready, and a migration that was just asked for.
func (m mmodel) first() mstate {
	s := mstate{now: clock.Instant(time.Hour), link: true, promised: 5, holder: 10, wanted: 5, budget: m.budget}
	for i := range s.own {
		s.own[i] = mown{epoch: 5, node: 0, run: 1, nonce: 10, rev: uint8(3 + i)}
	}
	s.lease = s.now.Add(leaseTime)
	a := &s.g[0]
	*a = mguard{up: true, core: New(here), nonce: 10, alive: true, running: true, loaded: true}
	for _, e := range []Event{Start{Run: run1}, VolumesOpened{}, QEMUStarted{}, Prepared{Ready: true},
		LeaseChanged{Held: true, Deadline: s.lease}, Taken{Epoch: 5}, VCPUsResumed{}} {
		m.give(&s, 0, e)
	}
	b := &s.g[1]
	*b = mguard{up: true, core: New(there), nonce: 20, alive: true}
	for _, e := range []Event{Receive{Run: run1, Source: here}, VolumesOpened{}, QEMUStarted{}} {
		m.give(&s, 1, e)
	}
	a.asks, b.asks, a.lease = 0, 0, s.lease
	m.give(&s, 0, UserMigrate{Target: peer})
	m.observe(&s)
	return s
}

var migrations = []struct {
	name string
	b    mbudget
}{
	{"nothing fails", mbudget{longs: 1}},
	{"the link breaks", mbudget{links: 1, longs: 1}},
	{"a guard crashes", mbudget{guards: 1, longs: 1}},
	{"two guards crash", mbudget{guards: 2}},
	{"a QEMU dies", mbudget{qemus: 1, longs: 1}},
	{"etcd answers late, or not", mbudget{unknown: 1, etcd: 1, longs: 1}},
	{"the lease lapses, the VM is restarted elsewhere", mbudget{longs: 2, restarts: 1}},
	{"a guard crashes, the VM is restarted elsewhere", mbudget{guards: 1, longs: 1, restarts: 1}},
	{"a guard, the link and etcd at once", mbudget{guards: 1, links: 1, unknown: 1, longs: 1}},
	{"a guard and a QEMU", mbudget{guards: 1, qemus: 1, etcd: 1, longs: 1}},
	{"cancelled, with an unknown outcome", mbudget{cancels: 1, unknown: 1, shorts: 1, longs: 1}},
}

func TestModel(t *testing.T) {
	for _, w := range migrations {
		t.Run(w.name, func(t *testing.T) {
			m := mmodel{budget: w.b}
			begin := time.Now()
			r := explore.Search(m, []mstate{m.first()}, *modelLimit)
			if r.Broken != "" {
				t.Error(r)
				return
			}
			t.Logf("%s in %v", r, time.Since(begin).Round(time.Millisecond))
		})
	}
}

// TestModelReaches shows that the model is not empty: each of these ends is found.
func TestModelReaches(t *testing.T) {
	for name, end := range map[string]struct {
		b    mbudget
		when func(s *mstate) bool
	}{
		"the destination runs":                         {mbudget{longs: 1}, func(s *mstate) bool { return s.sends(1) && s.g[0].core.phase == Moved && !s.g[0].alive }},
		"the source runs again, by never":              {mbudget{links: 1}, func(s *mstate) bool { return s.sends(0) && s.stream >= streamGo && s.own[0].epoch == 5 }},
		"the source runs again, by its own CAS":        {mbudget{links: 1, guards: 1}, func(s *mstate) bool { return s.sends(0) && s.own[0].epoch == 6 }},
		"a successor of the source goes on":            {mbudget{guards: 1}, func(s *mstate) bool { return s.sends(0) && s.g[0].nonce > 10 || s.sends(0) && s.g[0].core.adopted }},
		"a successor of the destination goes on":       {mbudget{guards: 1}, func(s *mstate) bool { return s.sends(1) && s.g[1].core.adopted }},
		"the old QEMU is killed after a restart by HA": {mbudget{longs: 2, restarts: 1}, func(s *mstate) bool { return s.restart && !s.g[0].alive && s.g[0].core.phase == Lost }},
		"a committed destination lost its QEMU":        {mbudget{qemus: 1}, func(s *mstate) bool { return s.own[0].epoch == 6 && s.own[0].node == 1 && !s.g[1].alive }},
		"a claim of unknown outcome commits after all": {mbudget{unknown: 1}, func(s *mstate) bool { return s.sends(1) && s.budget.unknown == 0 }},
		"a lapsed lease comes back to the paused guest": {mbudget{longs: 2, shorts: 1}, func(s *mstate) bool {
			return s.sends(0) && s.budget.longs == 0 && s.budget.shorts == 0 && s.g[0].core.settled
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := reach{mmodel{budget: end.b}, end.when}
			r := explore.Search(m, []mstate{m.first()}, 400_000)
			if r.Broken != "reached" {
				t.Errorf("not reached: %s", r)
			}
		})
	}
}

type reach struct {
	mmodel
	when func(s *mstate) bool
}

func (r reach) Broken(s mstate) string {
	if s.bad == "" && r.when(&s) {
		return "reached"
	}
	return s.bad
}

func TestModelSeesMissingRules(t *testing.T) {
	for _, x := range []struct {
		name string
		b    mbudget
		r    mrules
	}{
		{"adoption compares no run", mbudget{guards: 1, longs: 1, restarts: 1}, mrules{adoptAnyRun: true}},
		{"a port opens beyond the lease", mbudget{}, mrules{portTooLong: true}},
		{"a claim of unknown outcome is taken for made", mbudget{unknown: 1, links: 1}, mrules{unknownIsMade: true}},
		{"a silent destination is taken for never", mbudget{guards: 1, longs: 1}, mrules{silentIsNever: true}},
		{"never is answered while the claim is under way", mbudget{links: 1, longs: 1}, mrules{neverWhileCommitting: true}},
		{"the volumes are taken one by one", mbudget{}, mrules{takeOneByOne: true}},
		{"the third node waits for no lease", mbudget{restarts: 1}, mrules{restartNoWait: true}},
		{"the take of a source's successor compares no epoch", mbudget{guards: 1, qemus: 1, longs: 1}, mrules{takeComparesNoEpoch: true}},
		{"the destination's claim compares no epoch", mbudget{links: 1, longs: 1}, mrules{claimIgnoresEpoch: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			if x.r.takeComparesNoEpoch && *modelLimit > 0 && *modelLimit < 1_000_000 {
				t.Skip("160000 states: make model")
			}
			m := mmodel{budget: x.b, rules: x.r}
			r := explore.Search(m, []mstate{m.first()}, 1_000_000)
			if r.Broken == "" {
				t.Errorf("not seen: %s", r)
				return
			}
			t.Log(r)
		})
	}
}
