package quorum

import (
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// Voters returns how many of n living nodes vote: all up to 3, then 3, and 5
// from five nodes on. More would make every change slower and save nothing that
// 5 do not.
func Voters(nodes int) int {
	switch {
	case nodes < 3:
		return max(nodes, 0)
	case nodes < 5:
		return 3
	}
	return 5
}

// WitnessVotes returns the votes that a witness adds to so many voters: it makes
// the count odd, and with 3 voters gives 2, so that any two nodes may fail.
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

// Timers are the delays of the rules; the zero value of a field means the
// default.
type Timers struct {
	WitnessGone   time.Duration // silence after which its votes go; 10 s
	WitnessSteady time.Duration // steadiness before its votes return; 60 s
	WitnessFirst  time.Duration // the same before its first votes; 3 s
	PairUndone    time.Duration // half a pair that cannot be completed; 30 s
	VoterDead     time.Duration // silence after which a voter is replaced; 5 min
	LearnerGone   time.Duration // silence of a learner's node; 10 s
	LearnerSlow   time.Duration // a learner that is not ready; 60 s
}

// Defaults are the timers that ship, in the lab as well.
var Defaults = Timers{WitnessGone: 10 * time.Second, WitnessSteady: 60 * time.Second, WitnessFirst: 3 * time.Second,
	PairUndone: 30 * time.Second, VoterDead: 5 * time.Minute, LearnerGone: 10 * time.Second, LearnerSlow: 60 * time.Second}

func (t Timers) filled() Timers {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&t.WitnessGone, Defaults.WitnessGone)
	set(&t.WitnessSteady, Defaults.WitnessSteady)
	set(&t.WitnessFirst, Defaults.WitnessFirst)
	set(&t.PairUndone, Defaults.PairUndone)
	set(&t.VoterDead, Defaults.VoterDead)
	set(&t.LearnerGone, Defaults.LearnerGone)
	set(&t.LearnerSlow, Defaults.LearnerSlow)
	return t
}

// Node is a node of the cluster.
type Node struct {
	ID    ids.ID
	Name  string
	Order int64 // of joining: lower votes first
	// Alive: it has a session, or a beat came from it just now.
	Alive bool
	// Leaving: a person removes it. Leaving and not alive: dead by order.
	Leaving bool
}

// Witness is the cluster's witness.
type Witness struct {
	ID      ids.ID
	Name    string
	Present bool // it has a session
	Leaving bool // it stops in order, is being removed, or its log has forgotten
	Voted   bool // it had votes before: their return takes longer than the first
}

// Member is one etcd member, as etcd's list has it.
type Member struct {
	ID uint64
	// Owner is the node or the witness that it belongs to; zero: nobody of this
	// cluster.
	Owner    ids.ID
	Slot     int // 1 or 2: which of the witness's; 0 for nodes
	Learner  bool
	Started  bool // it made itself known
	Answers  bool // it answered within the last second or two
	CaughtUp bool // a learner: it has what the leader has, almost
	// Peers are the URLs by which the list says that others reach it; Reach those by
	// which they could: its owner has the address, and it says that it listens there.
	// Reach nil: not known.
	Peers, Reach []string
}

// View is what one step sees.
type View struct {
	Leader  bool // there is one, and it is on this node
	Nodes   []Node
	Witness *Witness // nil: none
	Members []Member
	Timers  Timers
	// Broken names rules that tests and the simulator break on purpose, to see
	// that the checks notice; nil in production.
	Broken []string
}

func (v *View) broken(rule string) bool { return slices.Contains(v.Broken, rule) }

// Memory is what steps hand on; the zero value is a new observer's, which has
// seen nothing yet.
type Memory struct {
	// Silent tells since when a machine gave no sign of life.
	Silent map[ids.ID]clock.Instant
	// Steady is since when every voter answers and the witness is there; zero:
	// it is not so now.
	Steady clock.Instant
	// Learner tells since when a learner has stood in the list.
	Learner map[uint64]clock.Instant
	// Half is since when the witness has had half a pair of votes; zero: no.
	Half clock.Instant
}

// Do is a kind of action.
type Do int

// The actions.
const (
	Nothing    Do = iota
	AddLearner    // of Owner, at Slot
	Promote       // Member
	Remove        // Member
	SetPeers      // of Member, to Peers
)

// String returns the action's name.
func (d Do) String() string {
	return [...]string{"nothing", "add learner", "promote", "remove", "set peer URLs"}[d]
}

// Action is one change of etcd's members.
type Action struct {
	Do     Do
	Member uint64 // of all but AddLearner
	Owner  ids.ID
	Slot   int
	Peers  []string // of SetPeers
	Why    string   // one line for the event log
}
