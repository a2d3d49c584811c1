// Package ha decides where machines run: the HA manager as a pure function.
//
//	Step(state, now) -> (state, actions)
//
// The shell (svc/ha) fills State.View with what is known, calls Step on every
// change and every 100 ms, and carries the actions out. Nothing here is a fence:
// a hint only starts a recovery, and the guard that is started elsewhere asks
// the replicas (PREPARE) whether the old writer is really gone. So a wrong
// decision costs a QEMU that is thrown away, never data.
//
// One function a state of a VM (states.go): stopped, starting, running,
// migrating, paused-lease, recovering, waiting-for-copy, failed, and stopping.
// What must outlive the manager is in the placement record; State.VMs and
// State.Nodes are memory that a new manager may do without (it counts restarts
// anew). The losses of a node, from which its quarantine follows, are on the
// node's object.
//
// Pure: no I/O, no clock, no goroutine; slices are visited in the order of names.
// Test: testdata/scenarios, `go test ./internal/core/ha`.
package ha

import (
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// Params are the manager's times and limits. Zero means the default.
type Params struct {
	BeatLoss     time.Duration // direct beats silent for so long: hint. 1.5 s = 7 beats of 0.2 s
	SessionGrace time.Duration // session lost while beats go on: hint after so long. 4 s: longer than a leader change
	Stall        time.Duration // guard stalled for so long: hint. 2 s
	LeaderSettle time.Duration // stalls are no hint until etcd had a leader for so long. 2 s
	GuardAbsent  time.Duration // guard absent while its node lives: hint. 5 s
	PrepareLimit time.Duration // PREPARE that meets a live writer is given up after. 6 s > L*1.1 + QEMU's start
	StartLimit   time.Duration // a start without any sign of its guard is given up after. 30 s
	MigrateStart time.Duration // a migration whose destination has no guard is taken back after. 15 s
	ProbeAgain   time.Duration // after a PREPARE that met a live writer, doubled up to 60 s. 10 s
	MaxRestarts  int           // failed attempts within RestartWindow before failed. 5
	Window       time.Duration // 10 min
	HealAfter    time.Duration // failed is tried again after. 10 min
	StartsANode  int           // VMs that start on one node at a time. 4
	MovesANode   int           // live migrations of a drain or a failback that a node takes part in. 2
	MoveAgain    time.Duration // after a failed one, doubled up to 120 s. 10 s
	FailbackFor  time.Duration // a VM that cannot go back to its node is let stay after. 10 min
	ColdWait     time.Duration // a cold start waits so long for absent nodes. 20 s
	StartsAll    int           // VMs that start in the cluster at a time. 64
	HoldLimit    time.Duration // a start waits for others no longer than this and its delay. 2 min
	Quarantine   time.Duration // of a node lost twice within FlapWindow, doubled at each further loss. 30 s
	FlapWindow   time.Duration // 30 min
}

// Defaults are the parameters that ship.
var Defaults = Params{
	BeatLoss: 1500 * time.Millisecond, SessionGrace: 4 * time.Second, Stall: 2 * time.Second,
	LeaderSettle: 2 * time.Second, GuardAbsent: 5 * time.Second, PrepareLimit: 6 * time.Second,
	StartLimit: 30 * time.Second, MigrateStart: 15 * time.Second, ProbeAgain: 10 * time.Second, MaxRestarts: 5, Window: 10 * time.Minute,
	HealAfter: 10 * time.Minute, StartsANode: 4, StartsAll: 64, HoldLimit: 2 * time.Minute,
	MovesANode: 2, MoveAgain: 10 * time.Second, FailbackFor: 10 * time.Minute, ColdWait: 20 * time.Second, Quarantine: 30 * time.Second, FlapWindow: 30 * time.Minute,
}

// Placement states, the values of repl.Placement.State.
const (
	PlaceStarting  = "starting"
	PlaceRunning   = "running"
	PlaceMigrating = "migrating"
	PlaceStopping  = "stopping"
	PlaceStopped   = "stopped"
)

// State is everything that Step looks at.
type State struct {
	Params Params
	View   View
	VMs    map[ids.ID]VMMemory
	Nodes  map[ids.ID]NodeMemory
	// Deaf says that this manager's node hears too few beats to judge by them.
	Deaf bool
}

// View is what the shell knows now. Slices need no order.
type View struct {
	// Leader says that etcd has a leader and this manager is the elected one.
	// While false nothing is decided.
	Leader bool
	// LeaderSince is when etcd got its present leader, as seen here.
	LeaderSince clock.Instant
	// Listening is since when this process hears beats.
	Listening clock.Instant
	// Hold: the cluster shuts down: machines stop in reverse order, none starts.
	Hold  bool
	Nodes []Node
	VMs   []VM
	Rules []place.VMRule
}

// Node is a node as the manager sees it.
type Node struct {
	ID      ids.ID
	Name    string
	Session bool // its session in etcd lives
	// SessionLost is when Session was first seen false; zero while it lives.
	SessionLost clock.Instant
	LastBeat    clock.Instant // newest direct beat on any network; zero: none yet
	// Known is false until the node reported its CPUs and memory.
	Known      bool
	CPUs       int
	Memory     size.Bytes
	MemoryFree size.Bytes // as the node measures it
	KVM        bool
	Storage    bool
	Networks   []string
	// Drain says why machines leave the node and none comes ("is drained"); "":
	// it takes machines. PowerOff: they are powered off and started elsewhere
	// instead of moved.
	Drain    string
	PowerOff bool
	// Away: it goes down, or is down, because it was asked to: no alarm.
	Away bool
	// Guests are the machines that left it because of Drain and go back.
	Guests []ids.ID
	// Losses and Until are what managers noted of it, NodeMemory's fields by those
	// names: a manager that goes to work begins with them.
	Losses []clock.Instant
	Until  clock.Instant
	// Fresh: its session is the first of a boot that began less than 2 min ago.
	Fresh    bool
	Labels   []string // its own and those of its place
	CPUFlags []string // sorted; nil: not known
	Pressure int      // of the CPU, percent of the last minute; < 0: not known
}

// VM is a machine as the manager sees it.
type VM struct {
	ID           ids.ID
	Name         string
	Want         bool // it should run
	HA           model.HAMode
	Priority     int
	After        []string      // names of VMs that must run before it is started
	StartDelay   time.Duration // how long those must have run
	MaxRestarts  int           // 0: Params.MaxRestarts
	CPUs         int
	Memory       size.Bytes
	NeedKVM      bool
	CPUModel     string // of the guest that runs; empty: none, or not known
	Accel        string // likewise: kvm | tcg
	Networks     []string
	Volumes      []place.Volume
	Placement    repl.Placement
	PlacementRev int64
	// Owner is the node that own of its first volume names as the VM's writer;
	// zero: released, or never opened.
	Owner   ids.ID
	Reports []Report
	// ToldAlive is when a beat last said that the VM's guard holds its lease;
	// zero: never told.
	ToldAlive clock.Instant
}

// Report is what the guard of a VM on one node says, or, with Phase "absent",
// what the node says of a guard that is not there.
type Report struct {
	Node      ids.ID
	Attempt   uint64
	Phase     string        // as guardctl.Phase, or "absent"
	State     model.VMState // of a running guard
	Since     clock.Instant // when Phase was first seen here
	Stalled   time.Duration // lease lapsed or acks frozen, at Seen
	Seen      clock.Instant // when Stalled was reported
	WantsMove string
	Live      bool   // preparing: the present writer lives
	Waiting   string // preparing: the copy that is waited for
	Reason    string
	// MigrationOver is the attempt of a migration that ended without moving the
	// VM; 0: none. MigrationError says why.
	MigrationOver  uint64
	MigrationError string
}

// VMMemory is what the manager remembers of a VM.
type VMMemory struct {
	State    model.VMState
	Since    clock.Instant
	Reason   string
	Restarts int
	Failures []clock.Instant // failed attempts within the window
	Blame    map[ids.ID]string
	Sick     map[ids.ID]string // nodes that it asked to leave, until it runs well
	NotUntil clock.Instant     // no attempt before
	Probes   int               // PREPAREs in a row that met a live writer
	Heard    bool              // the node of that writer was heard when the VM was left alone
	Cause    string            // of failed
	World    string            // what the cluster looked like when it failed
	Said     string            // last refusal told as an event
	// HeldSince is when its start began to wait for other VMs; zero: it does not.
	HeldSince clock.Instant

	// Counted is the attempt that Restarts counted last: one whose placement could
	// not be written is made again, and is still one restart.
	Counted uint64

	Moving  uint64        // attempt of the last migration that a drain or failback began
	Moves   int           // of these that failed in a row
	NoMove  clock.Instant // none begins before
	Stay    string        // why it cannot leave or go back, last told
	HomeTry clock.Instant // since when it cannot go back to its node
	HomeAt  clock.Instant // when its entry in a node's Guests was last asked to change
}

// NodeMemory is what the manager remembers of a node.
type NodeMemory struct {
	Seen   bool // it was up at some step of this manager
	Lost   bool
	Losses []clock.Instant
	Until  clock.Instant // quarantined
	Clean  bool          // Lost, but as asked
}

// Action is one of the types below.
type Action interface{ fmt.Stringer }

// SetPlacement writes the placement of a VM if its revision is still Expect.
type SetPlacement struct {
	VM        ids.ID
	Name      string
	NodeName  string
	Expect    int64
	Placement repl.Placement
	Why       string
}

// SetStatus reports the state of a VM.
type SetStatus struct {
	VM       ids.ID
	Name     string
	State    model.VMState
	Node     string // name; empty: none
	Reason   string
	Restarts int
}

// SetWant changes whether a VM should run: its guest powered itself off.
type SetWant struct {
	VM      ids.ID
	Name    string
	Running bool
}

// SetHome adds a VM to the Guests of a node, or takes it out.
type SetHome struct {
	Node     ids.ID
	NodeName string
	VM       ids.ID
	Name     string
	Add      bool
}

// SetLosses notes when a node was lost, and until when it is avoided.
type SetLosses struct {
	Node     ids.ID
	NodeName string
	Losses   []clock.Instant
	Until    clock.Instant
}

// Event is for the cluster's timeline.
type Event struct {
	Level   string // info | warn | error
	Subject string
	Text    string
}

func (a SetPlacement) String() string {
	n := a.NodeName
	if n == "" {
		n = "-"
	}
	return fmt.Sprintf("place %s node=%s attempt=%d state=%s: %s", a.Name, n, a.Placement.Attempt, a.Placement.State, a.Why)
}

func (a SetStatus) String() string {
	s := fmt.Sprintf("status %s %s", a.Name, a.State)
	if a.Node != "" {
		s += " on " + a.Node
	}
	if a.Reason != "" {
		s += ": " + a.Reason
	}
	return s
}

func (a SetWant) String() string { return fmt.Sprintf("want %s running=%v", a.Name, a.Running) }

func (a SetHome) String() string {
	if a.Add {
		return fmt.Sprintf("home of %s is %s", a.Name, a.NodeName)
	}
	return fmt.Sprintf("home of %s was %s", a.Name, a.NodeName)
}

func (a SetLosses) String() string {
	s := fmt.Sprintf("losses of %s: %d", a.NodeName, len(a.Losses))
	if a.Until != 0 {
		s += ", avoided for a while"
	}
	return s
}

func (a Event) String() string { return fmt.Sprintf("event %s %s: %s", a.Level, a.Subject, a.Text) }
