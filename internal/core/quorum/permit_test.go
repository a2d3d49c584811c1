package quorum

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestPermitsAll tries every single change of every configuration of up to five
// voters, a node that learns and a witness with up to two votes and two learners,
// with every set of machines away, and judges what is permitted by the oracle.
func TestPermitsAll(t *testing.T) {
	permitted, tried := 0, 0
	for voters := 1; voters <= 5; voters++ {
		for extra := range 2 {
			for shape := range 6 { // votes and learners of the witness
				for away := range 1 << (voters + extra + 1) {
					for _, leaving := range []bool{false, true} {
						w := configured(voters, extra, shape, away, leaving)
						for _, m := range w.members {
							a := Action{Do: Remove, Member: m.ID, Owner: m.Owner, Slot: m.Slot}
							if m.Learner {
								a.Do = Promote
							}
							tried++
							v := w.view()
							if !Permits(v, a) {
								continue
							}
							permitted++
							if bad := w.after(v, a); bad != "" {
								t.Fatalf("%s: %s of member %d: %s", w.shape(), a.Do, m.ID, bad)
							}
						}
					}
				}
			}
		}
	}
	if permitted == 0 || permitted == tried {
		t.Errorf("%d of %d permitted", permitted, tried)
	}
	t.Logf("%d of %d changes are permitted", permitted, tried)
}

// configured makes a world by numbers. shape: 0 to 2 votes of the witness; 3: two
// learners; 4: a vote and a learner; 5: no witness.
func configured(voters, extra, shape, away int, leaving bool) *world {
	w := newWorld(0, func(string) {})
	for i := range voters + extra {
		w.join(i)
		w.alive[nodeID(i)] = away&(1<<i) == 0
		w.members = append(w.members, Member{ID: w.next(), Owner: nodeID(i), Started: true, CaughtUp: true, Learner: i >= voters})
	}
	if shape == 5 {
		return w
	}
	w.addWitness()
	w.witness.Leaving = leaving
	w.alive[witnessID] = away&(1<<(voters+extra)) == 0
	kinds := [][]bool{{}, {false}, {false, false}, {true, true}, {false, true}} // learner?
	for i, learner := range kinds[shape] {
		w.members = append(w.members, Member{ID: w.next(), Owner: witnessID, Slot: i + 1, Started: true, CaughtUp: true, Learner: learner})
	}
	return w
}

// after makes a change in a copy of the world and says what is wrong with it.
func (w *world) after(v View, a Action) string {
	c := *w
	c.members = slices.Clone(w.members)
	c.log = []string{fmt.Sprint(a.Do)}
	check := c.oracle(v, a)
	i := slices.IndexFunc(c.members, func(m Member) bool { return m.ID == a.Member })
	if a.Do == Remove {
		c.members = slices.Delete(c.members, i, i+1)
	} else {
		c.members[i].Learner = false
	}
	bad := check()
	if strings.HasPrefix(bad, "one vote of a pair") {
		return "" // whether a pair comes together is Step's to say
	}
	return bad
}
