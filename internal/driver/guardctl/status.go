package guardctl

import (
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

// Phase is what a guard does.
type Phase string

// The phases. Stopped, Moved, Lost and Failed are final: the guard keeps
// answering on its control socket, holds no volume and no QEMU, and waits for
// its unit to be stopped.
const (
	PhaseStarting  Phase = "starting"  // reading its files, connecting
	PhasePreparing Phase = "preparing" // QEMU waits with its ports shut, PREPARE is repeated
	PhaseTaking    Phase = "taking"    // the CAS is under way or its outcome unknown
	PhaseOpening   Phase = "opening"   // OPEN, reconcile
	PhaseRunning   Phase = "running"   // holds the volumes; see Pauses
	PhaseIncoming  Phase = "incoming"  // destination of a migration, before the commit point
	PhaseStopping  Phase = "stopping"  // asked to power off; then drain and release

	PhaseStopped Phase = "stopped" // powered off, volumes released
	PhaseMoved   Phase = "moved"   // runs on another node
	PhaseLost    Phase = "lost"    // another run took the volumes: QEMU was killed
	PhaseFailed  Phase = "failed"  // see Reason
)

// Final reports whether the guard will do nothing more under this attempt.
func (p Phase) Final() bool {
	return p == PhaseStopped || p == PhaseMoved || p == PhaseLost || p == PhaseFailed
}

// Status is what a guard reports on GET /status.
type Status struct {
	Revision uint64        `json:"revision"` // +1 at every change worth waking a watcher
	VM       ids.ID        `json:"vm"`
	Node     ids.ID        `json:"node"`
	Attempt  uint64        `json:"attempt"`
	Phase    Phase         `json:"phase"`
	State    model.VMState `json:"state"`            // Phase and Pauses in the words of the API
	Reason   string        `json:"reason,omitempty"` // one line: why, and what to do
	Pauses   []string      `json:"pauses,omitempty"` // sorted: backup error lease migration space user
	Run      ids.ID        `json:"run,omitzero"`
	PortOpen bool          `json:"port_open"` // frames from the guest pass

	// LeaseLeft is the time until the shortest lease ends; negative: lapsed.
	LeaseLeft time.Duration `json:"lease_left_ns"`
	// PausedFor is how long the lease has been lapsed or acks frozen: more than
	// 2 s is a hint for the HA manager.
	PausedFor time.Duration `json:"paused_for_ns"`
	// WantsMove is why the guard asks to be restarted on another node (sick
	// storage link); empty: it does not.
	WantsMove string `json:"wants_move,omitempty"`

	QEMUPID     int    `json:"qemu_pid,omitempty"`
	QEMUState   string `json:"qemu_state,omitempty"` // as QMP says: running, paused, ...
	Accel       string `json:"accel,omitempty"`      // kvm | tcg
	AccelReason string `json:"accel_reason,omitempty"`
	CPUModel    string `json:"cpu_model,omitempty"` // that the guest has
	// Confinement is the control group that QEMU runs in ("cgroup v2: cpu freezer
	// memory pids"), or "none:" and why.
	Confinement string            `json:"confinement,omitempty"`
	Started     time.Time         `json:"started,omitzero"`      // of the guest's power-on on this node
	Restarts    int               `json:"restarts"`              // from power-on, by this guard
	Adoptions   int               `json:"adoptions"`             // of this QEMU by successor guards
	Instance    ids.ID            `json:"instance"`              // one run of one guard process
	Volumes     []Volume          `json:"volumes,omitempty"`     // state volume first
	Steps       *model.StartSteps `json:"start_steps,omitempty"` // nil: it was not started from power-on by this guard
	Migration   *Progress         `json:"migration,omitempty"`
	Incoming    *Incoming         `json:"incoming,omitempty"`
	Events      []Event           `json:"events,omitempty"` // the last 64, oldest first
}

// Volume is the state of one volume of the VM.
type Volume struct {
	ID     ids.ID             `json:"id"`
	Name   string             `json:"name,omitempty"` // empty: the state volume
	Status model.VolumeStatus `json:"status"`
	// Waiting names what a start waits for: "disk …, node …"; empty: nothing.
	Waiting string  `json:"waiting,omitempty"`
	IO      IOStats `json:"io"`
}

// IOStats counts since the guard started. Latencies are the worst of the last
// ten seconds.
type IOStats struct {
	Reads        uint64        `json:"reads"`
	Writes       uint64        `json:"writes"`
	Flushes      uint64        `json:"flushes"`
	ReadBytes    uint64        `json:"read_bytes"`
	WrittenBytes uint64        `json:"written_bytes"`
	Hedged       uint64        `json:"hedged"`     // reads that were asked of a second copy, for the first took long
	HedgesWon    uint64        `json:"hedges_won"` // of these, those that it answered first
	WriteMax     time.Duration `json:"write_max_ns"`
}

// Progress is a migration as its source sees it; it stays after the end.
type Progress struct {
	model.MigrationStatus
	// Total time from the request to the end, or so far.
	Elapsed time.Duration `json:"elapsed_ns"`
	// Round of the pre-copy, from 1.
	Round  int  `json:"round"`
	Active bool `json:"active"`
}

// Incoming is a migration as its destination sees it.
type Incoming struct {
	Ready bool   `json:"ready"` // the source may connect
	Port  int    `json:"port"`  // on every address of the node
	Phase string `json:"phase"` // waiting | stream | complete | committing | committed | never
	Error string `json:"error,omitempty"`
}

// Event is something for the cluster's timeline. The daemon forwards those with
// a Seq above the last one that it has seen of this Instance.
type Event struct {
	Seq   uint64    `json:"seq"`
	Time  time.Time `json:"time"`
	Level string    `json:"level"` // info | warn | error
	Text  string    `json:"text"`
	Disk  ids.ID    `json:"disk,omitzero"` // the copy that it is about; zero: none
}

// StopRequest asks for a power-off. Without Force the guest gets an ACPI
// power button and Timeout (0: 60 s) before QEMU is quit.
type StopRequest struct {
	Force   bool          `json:"force"`
	Timeout time.Duration `json:"timeout_ns"`
}

// MigrateRequest moves the VM to a node whose guard is Incoming.Ready.
type MigrateRequest struct {
	Target     ids.ID   `json:"target"`
	TargetName string   `json:"target_name"`
	Addresses  []string `json:"addresses"` // IPs of the target, best first
	Port       int      `json:"port"`
	Why        string   `json:"why"` // the scheduler's one line
	// DowntimeLimit bounds the switch-over as QEMU estimates it; 0: 50 ms, raised
	// step by step to 300 ms if it does not converge.
	DowntimeLimit time.Duration `json:"downtime_limit_ns"`
	// MaxBandwidth in bytes per second; 0: 10 GiB.
	MaxBandwidth size.Bytes `json:"max_bandwidth"`
	// Patience is how long it is tried; 0: until it is hopeless.
	Patience time.Duration `json:"patience_ns,omitempty"`
}

// ReplaceDiskRequest moves copies of the VM's volumes that lie on Old to New.
type ReplaceDiskRequest struct {
	// Volume whose copies are moved; zero: every volume of the VM with some on Old.
	Volume ids.ID `json:"volume,omitzero"`
	Old    ids.ID `json:"old"`
	New    ids.ID `json:"new,omitzero"` // zero: Old leaves, its move is cancelled
	// Node of New; zero: the node of Old.
	Node ids.ID `json:"node,omitzero"`
	// Segments to be moved; empty: all of Old's.
	Segments []uint32 `json:"segments,omitempty"`
	// Live: Old may be in sync; it stays until New is.
	Live bool `json:"live,omitempty"`
}

// Screenshot is the guest's screen.
type Screenshot struct {
	PNG    []byte `json:"png"` // base64 in JSON
	Width  int    `json:"width"`
	Height int    `json:"height"`
}
