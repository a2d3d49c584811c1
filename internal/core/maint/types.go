// Package maint decides when nodes go down on purpose: the orders to single
// nodes, the rolling restart and the shutdown of a whole cluster.
//
//	Step(state, now) -> (state, actions)
//
// The shell (svc/maint) runs it where etcd's leader is. Moving machines is not
// its business: core/ha moves them away from a node whose object says that it
// drains. Here is decided when a node may go (no machine is placed on it, no
// other node is going, its vote is not needed, enough copies are in sync
// elsewhere), when it is back, and which one is next.
//
// What must outlive the leader is in the nodes' objects and in the plan; Memory
// is what a new leader may do without. docs/design/maintenance.md has the rules.
//
// Pure: no I/O, no clock, no goroutine. Test: testdata/scenarios and random
// worlds, `go test ./internal/core/maint`.
package maint

import (
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/model"
)

// Params are the times. Zero means the default.
type Params struct {
	Tell     time.Duration // a node that is to go down is told again after. 2 s
	Stuck    time.Duration // a node that was told and is still there: its order is dropped after. 5 min
	Missing  time.Duration // a node that is to reboot is called missing after. 10 min
	OffGrace time.Duration // between "all guests are off" and the first power order, so that who asked hears it. 3 s
	OffLimit time.Duration // in a shutdown the leader's node waits for the others for so long. 60 s
}

// Defaults are the times that ship.
var Defaults = Params{Tell: 2 * time.Second, Stuck: 5 * time.Minute, Missing: 10 * time.Minute, OffGrace: 3 * time.Second, OffLimit: time.Minute}

// State is everything that Step looks at.
type State struct {
	Params Params
	View   View
	Memory Memory
}

// View is what the shell knows now. Slices need no order.
type View struct {
	// Leader says that this process conducts; while false nothing is decided.
	Leader  bool
	Self    ids.ID // the node of this process
	Nodes   []Node
	VMs     []VM // that are placed on a node
	Volumes []Volume
	Plan    *Plan // nil: none
}

// Node is a node as it is seen here.
type Node struct {
	ID      ids.ID
	Name    string
	Up      bool   // it has a session, and its beats are heard
	Heard   bool   // its beats are heard, whatever its session says
	Stale   bool   // its last beat may be from before its session: its boot has not been heard
	Boot    string // of its session; "": it has none
	Storage bool   // its storage answers
	Drain   bool
	Task    ids.ID // of its drain; zero: none is to be shown
	Order   *model.NodeOrder
	Guests  []ids.ID // that are to go back to it
	// Needed says why etcd would have no majority without it; "": it would.
	Needed string
}

// VM is a machine that is placed somewhere.
type VM struct {
	ID     ids.ID
	Name   string
	Node   ids.ID
	Target ids.ID // of its migration
	Stay   string // why it does not leave, or what it does: its status's reason
}

// Volume says where the copies of a volume are.
type Volume struct {
	Name   string
	Copies int // that its pool keeps
	Groups []Group
}

// Group is a distinct set of copies of some segments, each copy by its node.
type Group struct {
	In  []ids.ID // in sync
	All []ids.ID // in sync or not
}

// PlanKind is what a plan does to the whole cluster.
type PlanKind string

// The kinds.
const (
	Restart  PlanKind = "restart"
	Shutdown PlanKind = "shutdown"
)

// PlanPhase is how far a shutdown has come.
type PlanPhase string

// The phases of a shutdown.
const (
	Guests PlanPhase = "guests" // machines are powered off
	Off    PlanPhase = "off"    // nodes go off
)

// Plan is /s/maint/plan.
type Plan struct {
	Kind   PlanKind  `json:"kind"`
	Asked  time.Time `json:"asked"`
	Task   ids.ID    `json:"task"`
	Nodes  []Member  `json:"nodes"`
	Phase  PlanPhase `json:"phase,omitempty"` // of a shutdown
	VMs    int       `json:"vms,omitempty"`   // that ran when a shutdown began
	Cancel bool      `json:"cancel,omitempty"`
}

// MemberState is how far a node of a plan has come.
type MemberState string

// The states of a node in a plan.
const (
	Waits MemberState = "waits"
	Going MemberState = "going"
	Done  MemberState = "done"
)

// Member is a node of a plan.
type Member struct {
	ID    ids.ID      `json:"id"`
	Name  string      `json:"name"`
	Boot  string      `json:"boot"` // before it goes down
	State MemberState `json:"state"`
}

// Memory is what Step hands on.
type Memory struct {
	Told    map[ids.ID]clock.Instant // when a node was last told to go down
	Since   map[ids.ID]clock.Instant // since when its order is in its phase, as seen here
	Phase   map[ids.ID]model.OrderPhase
	Missing map[ids.ID]bool // it was said that the node does not come back
	Off     clock.Instant   // since when the plan is in phase Off, as seen here
}

// Action is one of the types below.
type Action interface{ fmt.Stringer }

// Change writes the order of a node, the plan, or both in one transaction, on
// condition that both are as they were seen.
type Change struct {
	Node  ids.ID // zero: the plan alone
	Name  string
	Was   *model.NodeOrder
	Order *model.NodeOrder // nil: none any more
	// Forget lists those of the node's Guests that do not go back to it any more.
	Forget []ids.ID
	// Plan is written if WritePlan; nil: there is none any more.
	WritePlan bool
	Plan      *Plan
	Why       string
}

// Power tells a node to go down. It is repeated.
type Power struct {
	Node ids.ID
	Name string
	Verb model.OrderVerb
	Boot string
}

// Progress is what a task shows.
type Progress struct {
	Task        ids.ID
	Phase       string
	Done, Total int64
}

// End ends a task. Failed "" means well. In a step that changes something, what
// ends without Drained ends by that change: in one transaction with it, for the
// next step may not see any more that it was to end.
type End struct {
	Task   ids.ID
	Result string
	Failed string
	Hint   string
	// Drained is the node whose drain the task showed, which ends with it; zero:
	// another task.
	Drained ids.ID
}

// Event is for the cluster's timeline.
type Event struct {
	Level   string // info | warn | error
	Subject string
	Text    string
}

func (a Change) String() string {
	s := "change"
	if !a.Node.IsZero() {
		s += " " + a.Name + " order="
		if a.Order == nil {
			s += "none"
		} else {
			s += fmt.Sprintf("%s/%s", a.Order.Verb, a.Order.Phase)
		}
	}
	if a.WritePlan {
		s += " plan=" + a.Plan.text()
	}
	return s + ": " + a.Why
}

func (p *Plan) text() string {
	if p == nil {
		return "none"
	}
	s := string(p.Kind)
	if p.Phase != "" {
		s += "/" + string(p.Phase)
	}
	for _, m := range p.Nodes {
		s += fmt.Sprintf(" %s:%s", m.Name, m.State)
	}
	return s
}

func (a Power) String() string    { return fmt.Sprintf("power %s %s", a.Verb, a.Name) }
func (a Progress) String() string { return fmt.Sprintf("progress %d/%d %s", a.Done, a.Total, a.Phase) }

func (a End) String() string {
	if a.Failed != "" {
		return "end failed: " + a.Failed
	}
	return "end: " + a.Result
}

func (a Event) String() string { return fmt.Sprintf("event %s %s: %s", a.Level, a.Subject, a.Text) }
