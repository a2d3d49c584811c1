// Package model has the objects that people and programs handle through the
// API: what they want (spec) and what is (status). It does no I/O; validation
// stands beside each kind.
//
// Objects live in etcd, one key an object, JSON values, optimistic concurrency
// by revision. The records that decide who may write a volume or run a VM are
// not here but in package core/repl.
package model

import (
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

// Kind is the plural noun of a kind in the API: /v1/<kind>/<name>.
type Kind string

// The kinds.
const (
	KindNode    Kind = "nodes"
	KindDisk    Kind = "disks"
	KindPool    Kind = "pools"
	KindVolume  Kind = "volumes"
	KindImage   Kind = "images"
	KindVM      Kind = "vms"
	KindNetwork Kind = "networks"
	KindTask    Kind = "tasks"
	KindEvent   Kind = "events"
	KindToken   Kind = "tokens"
	KindWitness Kind = "witnesses"
)

// Meta is part of every object.
type Meta struct {
	ID       ids.ID    `json:"id"`
	Name     string    `json:"name"` // unique within the kind: 1 to 63 of [a-z0-9-], no dash at either end
	Created  time.Time `json:"created"`
	Revision int64     `json:"revision,omitempty"` // etcd mod revision at reading; 0 in what is stored
	Deleting bool      `json:"deleting,omitempty"` // a reconciler is taking it down
}

// Cluster is the one object of its kind.
type Cluster struct {
	ID         ids.ID    `json:"id"`
	Name       string    `json:"name"`
	Generation uint32    `json:"generation"`
	Format     int       `json:"format"`
	Created    time.Time `json:"created"`
}

// NetworkRole is what a node's address is used for.
type NetworkRole string

// The roles. One address may serve several.
const (
	RoleCluster NetworkRole = "cluster" // etcd, API, beats
	RoleStorage NetworkRole = "storage" // replication, migration; etcd and API as well when the cluster's is cut
	RoleVM      NetworkRole = "vm"      // the uplink of bridged networks
)

// Node is a machine of the cluster.
type Node struct {
	Meta
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"`
}

// NodeSpec is what the node was told when it joined.
type NodeSpec struct {
	// Addresses lists IP addresses a role, best first.
	Addresses map[NetworkRole][]string `json:"addresses"`
	// Uplinks names the physical interface of each bridged network.
	Uplinks map[string]string `json:"uplinks,omitempty"`
	Voter   bool              `json:"voter"`
	// ReplacedBy names the node that takes over its copies: the machine is gone for
	// good, nobody waits for it.
	ReplacedBy ids.ID `json:"replaced_by,omitzero"`
	// Where it stands: failure domains that contain it. Empty: not said.
	Chassis string `json:"chassis,omitempty"`
	Rack    string `json:"rack,omitempty"`
	Site    string `json:"site,omitempty"`
	// Watchdog is the timeout of the machine's hardware watchdog, which the daemon
	// feeds; 0: it is left alone. Whole seconds, 10 s to 10 min.
	Watchdog time.Duration `json:"watchdog_ns,omitempty"`
	// Labels are for rules: docs/design/placement.md.
	Labels []string `json:"labels,omitempty"`
	// Drain: no VM is placed there and those that run there move away, until a
	// person takes it back.
	Drain bool `json:"drain,omitempty"`
	// DrainTask is the task that shows the progress of Drain; zero: it has ended.
	DrainTask ids.ID `json:"drain_task,omitzero"`
	// Order is a shutdown or reboot that was asked for; nil: none.
	Order *NodeOrder `json:"order,omitempty"`
	// Guests are the VMs that left because of Drain or Order and go back when it
	// is over.
	Guests []ids.ID `json:"guests,omitempty"`
	// Losses are the times at which the HA manager lost it lately, oldest first;
	// AvoidUntil ends the quarantine that came of them. Zero: none.
	Losses     []time.Time `json:"losses,omitempty"`
	AvoidUntil time.Time   `json:"avoid_until,omitzero"`
}

// NodeOrder is a shutdown or a reboot of a node.
type NodeOrder struct {
	Verb  OrderVerb  `json:"verb"`
	Phase OrderPhase `json:"phase"`
	// NoDrain: guests are powered off and started elsewhere, not moved.
	NoDrain bool `json:"no_drain,omitempty"`
	// NoFailback: what left does not come back by itself.
	NoFailback bool `json:"no_failback,omitempty"`
	// Boot is the boot of the node that the order was given to; it binds no other.
	Boot  string    `json:"boot"`
	Asked time.Time `json:"asked"`
	Task  ids.ID    `json:"task,omitzero"` // that shows its progress; zero: a plan's
}

// OrderVerb is what a node is ordered to do.
type OrderVerb string

// The verbs.
const (
	OrderShutdown OrderVerb = "shutdown"
	OrderReboot   OrderVerb = "reboot"
)

// Words is the verb as it stands in a sentence: "shut down".
func (v OrderVerb) Words() string {
	if v == OrderShutdown {
		return "shut down"
	}
	return string(v)
}

// OrderPhase is how far an order has come.
type OrderPhase string

// The phases.
const (
	OrderDraining OrderPhase = "draining" // VMs leave, copies and votes are waited for
	OrderLeaving  OrderPhase = "leaving"  // it may go down and is told to
	OrderAway     OrderPhase = "away"     // it is down, as asked
)

// Draining says why no VM is placed on the node and those there leave; "": no
// reason.
func (s *NodeSpec) Draining() string {
	switch {
	case s.Order != nil && s.Order.Verb == OrderReboot:
		return "is to reboot"
	case s.Order != nil:
		return "is to shut down"
	case s.Drain:
		return "is drained"
	}
	return ""
}

// Witness is a machine that adds votes and holds no data of VMs. A cluster has
// one at most.
type Witness struct {
	Meta
	Spec WitnessSpec `json:"spec"`
}

// WitnessSpec is what the witness was told when it joined.
type WitnessSpec struct {
	Address string `json:"address"` // IP address that the nodes reach
	// Port is the first of 13: its two etcd members listen on it and on the ports
	// up to 12 above it.
	Port    int    `json:"port"`
	Version string `json:"version"`
}

// NodeStatus is reported by the node.
type NodeStatus struct {
	Ready       bool       `json:"ready"` // the node's session is alive (computed at reading)
	Version     string     `json:"version"`
	CPUs        int        `json:"cpus"`
	Memory      size.Bytes `json:"memory"`
	MemoryFree  size.Bytes `json:"memory_free"`
	Accelerator string     `json:"accelerator"` // kvm | tcg
	AccelReason string     `json:"accelerator_reason,omitempty"`
	QEMU        string     `json:"qemu"`
	// CPUFlags are the features of its CPU as the kernel names them, sorted.
	CPUFlags []string `json:"cpu_flags,omitempty"`
	// CPUPressure is the share of the last minute in which something waited for a
	// CPU, in percent, to 5; -1: the kernel does not say.
	CPUPressure int       `json:"cpu_pressure"`
	Reported    time.Time `json:"reported"`
}

// DiskState is the life of a disk.
type DiskState string

// The disk states.
const (
	DiskFree    DiskState = "free"    // listed, not claimed, blank
	DiskInUse   DiskState = "in-use"  // somebody else's: see Content
	DiskActive  DiskState = "active"  // claimed and serving
	DiskFailed  DiskState = "failed"  // claimed; I/O or checksum errors ended it
	DiskMissing DiskState = "missing" // claimed; not found at its node
	DiskRetired DiskState = "retired" // serving, but being emptied, or empty: see Reason
)

// Disk is a claimed disk. Disks not claimed are not objects: `disk list` asks
// the nodes.
type Disk struct {
	Meta
	Spec   DiskSpec   `json:"spec"`
	Status DiskStatus `json:"status"`
}

// DiskSpec is fixed at claim.
type DiskSpec struct {
	Node ids.ID     `json:"node"`
	Pool ids.ID     `json:"pool,omitzero"` // zero: not in a pool yet
	Path string     `json:"path"`          // where it was last; its superblock says which disk it is
	Size size.Bytes `json:"size"`
	// Retire: nothing new is put on it, and what it holds moves to other disks.
	Retire bool `json:"retire,omitempty"`
	// ReplacedBy is the disk that takes its place; zero: whichever has room.
	ReplacedBy ids.ID `json:"replaced_by,omitzero"`
}

// DiskStatus is reported by the storage process of the disk's node.
type DiskStatus struct {
	State   DiskState  `json:"state"`
	Model   string     `json:"model,omitempty"`
	Serial  string     `json:"serial,omitempty"`
	Content string     `json:"content,omitempty"` // what was found on it, when not ours
	Data    size.Bytes `json:"data"`              // bytes of extents that can be allocated
	Used    size.Bytes `json:"used"`
	Errors  int64      `json:"errors"`
	Reason  string     `json:"reason,omitempty"`
	Care    *DiskCare  `json:"care,omitempty"` // nil: not known yet
}

// DiskCare is what stands for and against a disk. It is written when something
// changed that a person would look at.
type DiskCare struct {
	BadBlocks      int    `json:"bad_blocks"`                // distinct ones in the last 24 h
	Damaged        int    `json:"damaged,omitempty"`         // of these and earlier ones, not repaired yet
	Repaired       uint64 `json:"repaired"`                  // blocks rewritten from other copies, ever
	Metadata       uint64 `json:"metadata,omitempty"`        // bad metadata written again, ever
	RetireProposed bool   `json:"retire_proposed,omitempty"` // too many bad blocks

	Slow        bool          `json:"slow,omitempty"` // against the disks of its class
	SlowScore   float64       `json:"slow_score,omitempty"`
	WriteMedian time.Duration `json:"write_median_ns,omitempty"` // while it is slow
	Cohort      time.Duration `json:"cohort_median_ns,omitempty"`

	Health       string   `json:"health,omitempty"`  // unknown, ok, warning, critical
	Summary      string   `json:"summary,omitempty"` // one line: "ok 38C wear 3%"
	Alarms       []string `json:"alarms,omitempty"`  // the worst first
	Unknown      string   `json:"unknown,omitempty"` // why nothing is known of its health
	TemperatureC *int     `json:"temperature_c,omitempty"`
	WearPercent  *int     `json:"wear_percent,omitempty"`
	SparePercent *int     `json:"spare_percent,omitempty"`
	MediaErrors  *uint64  `json:"media_errors,omitempty"`

	Scrubbing    bool      `json:"scrubbing,omitempty"`
	ScrubDone    int       `json:"scrub_done,omitempty"` // extents
	ScrubTotal   int       `json:"scrub_total,omitempty"`
	ScrubEnded   time.Time `json:"scrub_ended,omitzero"` // of the last whole pass
	ScrubFound   int       `json:"scrub_found"`          // bad blocks of the pass that runs, or of the last one
	ScrubBadMeta int       `json:"scrub_bad_metadata,omitempty"`
}

// Serving reports whether a disk in this state answers: a retired one does until
// it is taken away.
func (s DiskState) Serving() bool { return s == DiskActive || s == DiskRetired }

// Pool is a set of disks that holds volumes.
type Pool struct {
	Meta
	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status"`
}

// PoolSpec says how a pool keeps data.
type PoolSpec struct {
	Copies int `json:"copies"`  // 1 to 3; 0 = 3
	MinISR int `json:"min_isr"` // 1 or 2; 0 = 1
	// Domain is what may hold one copy of a segment; empty = node.
	Domain Domain `json:"domain,omitempty"`
	// RebuildAfter is how long a node must be down before its copies are rebuilt
	// on others; 0 = 15 min.
	RebuildAfter time.Duration `json:"rebuild_after_ns,omitempty"`
}

// Domain is a level of failure domains: what stands together fails together.
type Domain string

// The levels, from the smallest.
const (
	DomainDisk    Domain = "disk"
	DomainNode    Domain = "node"
	DomainChassis Domain = "chassis"
	DomainRack    Domain = "rack"
	DomainSite    Domain = "site"
)

// DefaultRebuildAfter is PoolSpec.RebuildAfter if that is 0.
const DefaultRebuildAfter = 15 * time.Minute

// In returns the key of a disk's failure domain on a node: disks with equal
// keys are in one. Names are scoped by the larger place: rack 1 of two sites is
// two racks. ok is false if the node does not say where it stands.
func (d Domain) In(n *Node, disk ids.ID) (key string, ok bool) {
	s := &n.Spec
	switch d {
	case DomainDisk:
		return disk.String(), true
	case DomainChassis:
		return s.Site + "/" + s.Rack + "/" + s.Chassis, s.Chassis != ""
	case DomainRack:
		return s.Site + "/" + s.Rack, s.Rack != ""
	case DomainSite:
		return s.Site, s.Site != ""
	}
	return n.ID.String(), true
}

// PoolStatus is computed from the disks.
type PoolStatus struct {
	Disks    int        `json:"disks"`
	Size     size.Bytes `json:"size"`     // usable: after copies and reserve
	Used     size.Bytes `json:"used"`     // allocated, after copies
	Promised size.Bytes `json:"promised"` // sum of volume sizes (thin)
}

// Volume is a thin block device of a pool.
type Volume struct {
	Meta
	Spec   VolumeSpec   `json:"spec"`
	Status VolumeStatus `json:"status"`
}

// VolumeSpec is what the volume should be.
type VolumeSpec struct {
	Pool  string     `json:"pool"`
	Size  size.Bytes `json:"size"`
	VM    string     `json:"vm,omitempty"`    // owner; such volumes go with their VM
	Image string     `json:"image,omitempty"` // it is the body of this image
}

// Health says how many copies of the worst segment are in sync.
type Health string

// The healths.
const (
	Healthy   Health = "healthy"
	Degraded  Health = "degraded"
	Syncing   Health = "syncing" // degraded, and a copy is being brought back
	HealthOne Health = "last-copy"
	Waiting   Health = "waiting-for-copy"
)

// VolumeStatus is reported by the volume's writer, and by the reconciler when
// nobody writes.
type VolumeStatus struct {
	Health    Health     `json:"health"`
	Copies    int        `json:"copies"`           // in sync, worst segment
	Out       []string   `json:"out,omitempty"`    // disks outside, with reason
	Writer    string     `json:"writer,omitempty"` // node, purpose
	Epoch     uint64     `json:"epoch"`
	SyncDone  size.Bytes `json:"sync_done,omitempty"`
	SyncTotal size.Bytes `json:"sync_total,omitempty"`
	// SyncLeft is about how long the copying takes yet; 0: not known.
	SyncLeft time.Duration `json:"sync_left_ns,omitempty"`
	// RollingBack names the snapshot that the volume is being taken back to; it
	// serves nobody until that is over.
	RollingBack     string `json:"rolling_back,omitempty"`
	RollbackPercent int    `json:"rollback_percent,omitempty"` // of that
	// Parent is what the volume was cloned from, VOLUME@SNAPSHOT, as long as it reads
	// there; its writer copies it in the background.
	Parent         string `json:"parent,omitempty"`
	FlattenPercent int    `json:"flatten_percent,omitempty"` // of that
	// LostBlocks of 4 KiB were found readable on no copy since the volume was opened,
	// and not written since: reads of them fail.
	LostBlocks int `json:"lost_blocks,omitempty"`
}

// Image is a read-only disk from which VMs are created.
type Image struct {
	Meta
	Spec   ImageSpec   `json:"spec"`
	Status ImageStatus `json:"status"`
}

// ImageSpec describes an imported file.
type ImageSpec struct {
	Pool   string     `json:"pool"`
	Format string     `json:"format"` // of the file that was imported: raw | qcow2
	Size   size.Bytes `json:"size"`   // virtual size
	SHA256 string     `json:"sha256"` // of the file that was imported
}

// ImageStatus names the volume that holds it.
type ImageStatus struct {
	Ready  bool   `json:"ready"`
	Volume ids.ID `json:"volume"`
}

// VMState is what a VM does.
type VMState string

// The VM states, as in docs/design/ha.md.
const (
	VMStopped        VMState = "stopped"
	VMStarting       VMState = "starting"
	VMRunning        VMState = "running"
	VMStopping       VMState = "stopping"
	VMPaused         VMState = "paused"
	VMPausedLease    VMState = "paused-lease"
	VMMigrating      VMState = "migrating"
	VMRecovering     VMState = "recovering"
	VMWaitingForCopy VMState = "waiting-for-copy"
	VMFailed         VMState = "failed"
)

// VM is a virtual machine.
type VM struct {
	Meta
	Spec   VMSpec   `json:"spec"`
	Status VMStatus `json:"status"`
}

// VMSpec is what a person wants.
type VMSpec struct {
	CPUs   int        `json:"cpus"`   // 1 to 64
	Memory size.Bytes `json:"memory"` // 32MiB and up
	Disks  []VMDisk   `json:"disks,omitempty"`
	NICs   []VMNIC    `json:"nics,omitempty"`
	// State is the volume that gives a VM without disks its lease; zero: its
	// disks do.
	State    ids.ID `json:"state_volume,omitzero"`
	HA       HAMode `json:"ha"`
	Priority int    `json:"priority,omitempty"`  // -100 to 100; higher starts first after a loss
	Accel    string `json:"accel"`               // auto | kvm | tcg
	CPUModel string `json:"cpu_model,omitempty"` // empty: the cluster's common model
	Running  bool   `json:"running"`
	// After names the VMs that must run before this one is started.
	After []string `json:"after,omitempty"`
	// StartDelay is how long those must have run.
	StartDelay time.Duration `json:"start_delay_ns,omitempty"`
	// MaxRestarts is how many failures within ten minutes make it failed; 0 = 5.
	MaxRestarts int `json:"max_restarts,omitempty"`
	// ResetGeneration +1 asks for a hardware reset.
	ResetGeneration int64 `json:"reset_generation,omitempty"`
}

// HAMode says whether a VM is restarted when its node is lost.
type HAMode string

// The HA modes.
const (
	HAOn         HAMode = "on"
	HABestEffort HAMode = "best-effort" // if room is left after all others
	HAOff        HAMode = "off"
)

// VMDisk is a disk of a VM, in boot order.
type VMDisk struct {
	Volume string     `json:"volume"` // name of the volume
	ID     ids.ID     `json:"id"`     // its identity
	Size   size.Bytes `json:"size"`
}

// VMNIC is a network interface of a VM.
type VMNIC struct {
	Network          string `json:"network"`
	MAC              string `json:"mac"` // drawn at creation if empty
	AllowMACSpoofing bool   `json:"allow_mac_spoofing,omitempty"`
}

// VMStatus is what is.
type VMStatus struct {
	State    VMState   `json:"state"`
	Node     string    `json:"node,omitempty"`
	Reason   string    `json:"reason,omitempty"` // one line: why this state, and what to do
	Pauses   []string  `json:"pauses,omitempty"` // user, lease, space, error, migration, backup
	Run      ids.ID    `json:"run,omitzero"`
	Started  time.Time `json:"started,omitzero"`
	Restarts int       `json:"restarts"`
	// PauseCount and PausedFor count the pauses of this run that a guest could
	// notice (lease, space, error), not those that a person asked for.
	PauseCount int              `json:"pause_count"`
	PausedFor  time.Duration    `json:"paused_for_ns"`
	Accel      string           `json:"accel,omitempty"`
	CPUModel   string           `json:"cpu_model,omitempty"` // of this run
	Migration  *MigrationStatus `json:"migration,omitempty"`
	Steps      *StartSteps      `json:"start_steps,omitempty"` // of the last start on this node; nil: it came by migration, or was adopted
}

// StartSteps is when each step of a start from power-on was over, by the clock of
// the node; zero: not yet. QEMU starts while the volumes are asked for, so the
// order of QEMU and Granted is open.
type StartSteps struct {
	Guard   time.Time `json:"guard,omitzero"`   // its guard began
	QEMU    time.Time `json:"qemu,omitzero"`    // QEMU is up, its processors stopped
	Granted time.Time `json:"granted,omitzero"` // the copies answered that no other writer lives
	Taken   time.Time `json:"taken,omitzero"`   // the volumes are its own, open and reconciled
	Resumed time.Time `json:"resumed,omitzero"` // the guest runs
}

// MigrationStatus is the progress or the outcome of the last live migration.
type MigrationStatus struct {
	From     string        `json:"from"`
	To       string        `json:"to"`
	Why      string        `json:"why"` // the scheduler's one line
	Phase    string        `json:"phase"`
	Done     size.Bytes    `json:"done"`
	Total    size.Bytes    `json:"total"`
	Downtime time.Duration `json:"downtime_ns"` // as QEMU reports it
	Error    string        `json:"error,omitempty"`
	// Started is when it was asked for.
	Started time.Time `json:"started,omitzero"`
	// Remaining is the time that the memory still to be sent takes at the present
	// rates; 0: not known, or it does not get less.
	Remaining time.Duration `json:"remaining_ns,omitempty"`
	// Rate is what is sent a second, DirtyRate what the guest dirties a second.
	Rate      size.Bytes `json:"rate,omitempty"`
	DirtyRate size.Bytes `json:"dirty_rate,omitempty"`
	// Throttle is how much of its time the guest is kept from running so that it
	// dirties less, in percent.
	Throttle int `json:"throttle_percent,omitempty"`
	// Via is the network that carries it: an address of the destination.
	Via string `json:"via,omitempty"`
}

// Over reports whether these are the figures of a migration that has ended.
func (m *MigrationStatus) Over() bool { return m.Downtime > 0 || m.Error != "" }

// Newer returns the later word on a VM's migrations: that of the later migration,
// of one the figures after its end. Either may be nil.
func (m *MigrationStatus) Newer(than *MigrationStatus) *MigrationStatus {
	switch {
	case m == nil:
		return than
	case than == nil:
		return m
	case than.Started.After(m.Started) || than.Started.Equal(m.Started) && than.Over() && !m.Over():
		return than
	}
	return m
}

// NetworkKind is how a network reaches the outside.
type NetworkKind string

// NetworkBridged joins the uplink that each node names for the network.
const NetworkBridged NetworkKind = "bridged"

// Network is an Ethernet segment that VMs are plugged into.
type Network struct {
	Meta
	Spec NetworkSpec `json:"spec"`
}

// NetworkSpec is what the network should be.
type NetworkSpec struct {
	Kind NetworkKind `json:"kind"`
}

// TaskState is the life of a task.
type TaskState string

// The task states.
const (
	TaskRunning   TaskState = "running"
	TaskDone      TaskState = "done"
	TaskFailed    TaskState = "failed"
	TaskCancelled TaskState = "cancelled"
)

// Task is a long action.
type Task struct {
	Meta
	Action   string    `json:"action"` // "vm migrate web"
	Node     string    `json:"node"`   // that carries it out
	State    TaskState `json:"state"`
	Phase    string    `json:"phase,omitempty"`
	Done     int64     `json:"done"`
	Total    int64     `json:"total"`          // 0: unknown
	Unit     string    `json:"unit,omitempty"` // bytes | items
	Log      []string  `json:"log,omitempty"`  // the last 100 lines
	Error    *Problem  `json:"error,omitempty"`
	Result   string    `json:"result,omitempty"` // one line
	Finished time.Time `json:"finished,omitzero"`
}

// Problem is an error as the API shows it.
type Problem struct {
	Kind string `json:"kind"` // text of an errs kind, or "internal"
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// Event is something that an operator would want on a timeline.
type Event struct {
	Time    time.Time         `json:"time"`
	Node    string            `json:"node"`
	Level   string            `json:"level"`   // info | warn | error
	Subject string            `json:"subject"` // "vm web", "disk n1/d2"
	Text    string            `json:"text"`
	Data    map[string]string `json:"data,omitempty"`
}
