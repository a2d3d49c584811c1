// Package quorum decides which nodes vote in etcd and says in plain words what
// the cluster can still lose. It is pure: no I/O, no clock.
package quorum

import (
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/ids"
)

// Voters returns how many of n nodes vote: all up to 3, then 3, and 5 from five
// nodes on. More voters would make every change slower and save nothing that 5
// do not.
func Voters(nodes int) int {
	switch {
	case nodes < 3:
		return max(nodes, 0)
	case nodes < 5:
		return 3
	}
	return 5
}

// WitnessVotes returns the votes that a witness adds to so many voting nodes: it
// makes the count odd, and with 3 voters gives 2 so that any two nodes may fail.
func WitnessVotes(voters int) int {
	switch voters {
	case 2:
		return 1
	case 3:
		return 2
	}
	return 0
}

// Majority is how many of so many votes decide.
func Majority(votes int) int { return votes/2 + 1 }

// Member is a node as a possible voter.
type Member struct {
	ID    ids.ID
	Name  string
	Voter bool
	Alive bool
	// Order is the order of joining: lower votes first.
	Order int64
}

// Change is a step towards the right set of voters: at most one is made at a
// time, and the next only when the cluster is whole again.
type Change struct {
	Promote ids.ID // zero: none
	Demote  ids.ID // zero: none
	Why     string
}

// Plan returns the next change, or the zero Change if the voters are right or a
// change would be unsafe now. A dead voter is replaced by a living node if there
// is one; the new one is promoted before the old one goes.
func Plan(members []Member) Change {
	ms := slices.Clone(members)
	slices.SortFunc(ms, func(a, b Member) int {
		if a.Order != b.Order {
			return int(min(max(a.Order-b.Order, -1), 1))
		}
		return a.ID.Compare(b.ID)
	})
	voters, alive := 0, 0
	var dead, spare *Member
	for i := range ms {
		m := &ms[i]
		switch {
		case m.Voter && m.Alive:
			voters, alive = voters+1, alive+1
		case m.Voter:
			voters++
			dead = m
		case m.Alive && spare == nil:
			spare = m
		}
	}
	want := Voters(len(ms))
	switch {
	case alive < Majority(voters):
		return Change{}
	case voters > want && dead != nil:
		return Change{Demote: dead.ID, Why: fmt.Sprintf("%s is gone and %d voters are enough", dead.Name, want)}
	case voters < want && spare != nil:
		return Change{Promote: spare.ID, Why: fmt.Sprintf("%d nodes should have %d voters", len(ms), want)}
	case dead != nil && spare != nil:
		return Change{Promote: spare.ID, Why: fmt.Sprintf("%s votes in place of %s, which is gone", spare.Name, dead.Name)}
	}
	return Change{}
}

// Outlook says in one line what can fail next: "any 1 of srv1, srv2, srv3 may
// fail". Members that do not vote are left out.
func Outlook(members []Member) string {
	var alive, dead []string
	for _, m := range members {
		if !m.Voter {
			continue
		}
		if m.Alive {
			alive = append(alive, m.Name)
		} else {
			dead = append(dead, m.Name)
		}
	}
	slices.Sort(alive)
	slices.Sort(dead)
	votes := len(alive) + len(dead)
	spare := len(alive) - Majority(votes)
	state := ""
	if len(dead) > 0 {
		state = strings.Join(dead, " and ") + " gone; "
	}
	switch {
	case votes == 0:
		return "no voters"
	case votes == 1 && spare == 0:
		return state + "one voter: its loss stops changes (running machines go on)"
	case spare < 0:
		return fmt.Sprintf("%sno majority (%d of %d votes): changes are stopped, running machines go on", state, len(alive), votes)
	case spare == 0:
		return fmt.Sprintf("%sno more voter may fail: %s must stay up for changes and restarts", state, strings.Join(alive, " and "))
	}
	return fmt.Sprintf("%sany %d of %s may fail", state, spare, strings.Join(alive, ", "))
}
