// Package unit names the long-running processes of a node and how they are
// supervised: as Go values here, run by systemd on hosts and by the lab's init
// in lab nodes. The service files in packaging/ are generated from the same
// values (a golden test compares them), so that both supervisors obey one text.
//
// The package decides nothing about which unit should run; the node daemon does,
// through a Controller.
package unit

import (
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Name names a unit: "roseau-node", or "roseau-vm@<id>" for an instance of a
// template.
type Name string

// The units without an instance.
const (
	Node    Name = "roseau-node"
	Storage Name = "roseau-storage"
	Witness Name = "roseau-witness" // on a machine that is no node
)

const (
	vmPrefix     = "roseau-vm@"
	volumePrefix = "roseau-volume@"
)

// VM returns the unit of a VM's guard.
func VM(vm ids.ID) Name { return Name(vmPrefix + vm.String()) }

// Volume returns the unit that serves a volume without a VM.
func Volume(vol ids.ID) Name { return Name(volumePrefix + vol.String()) }

// Instance returns the part after '@', or "" for a unit without instance.
func (n Name) Instance() string {
	_, inst, _ := strings.Cut(string(n), "@")
	return inst
}

// VMID returns the VM whose guard the unit is; ok is false for other units.
func (n Name) VMID() (id ids.ID, ok bool) { return n.idAfter(vmPrefix) }

// VolumeID returns the volume that the unit serves; ok is false for other units.
func (n Name) VolumeID() (id ids.ID, ok bool) { return n.idAfter(volumePrefix) }

func (n Name) idAfter(prefix string) (ids.ID, bool) {
	s, found := strings.CutPrefix(string(n), prefix)
	if !found {
		return ids.ID{}, false
	}
	id, err := ids.Parse(s)
	return id, err == nil
}

// Restart says when a supervisor starts a unit again that ended without a Stop.
type Restart string

// The restart policies; their texts are systemd's.
const (
	RestartNo        Restart = "no"
	RestartOnFailure Restart = "on-failure" // exit code other than 0, a signal, or the watchdog
	RestartAlways    Restart = "always"
)

// KillMode says which processes a Stop, or the death of the main process, ends.
type KillMode string

// The kill modes; their texts are systemd's.
const (
	KillGroup   KillMode = "mixed"   // SIGTERM to the main process, SIGKILL to what it leaves
	KillProcess KillMode = "process" // the main process only: its children (QEMU) live on
)

// Unit is how one process is run.
type Unit struct {
	Name        Name     // of a template: with '@' and no instance
	Description string   // one line for people
	Argv        []string // Argv[0] is an absolute path; "%i" stands for the instance
	Env         []string // additions to the environment, "KEY=value"

	Boot     bool // started with the node
	Restart  Restart
	KillMode KillMode

	// The n-th restart in a row waits min(BackoffMin << n, BackoffMax). A run of
	// BackoffReset or longer starts the count anew. systemd before version 254
	// cannot grow the delay and always waits BackoffMin.
	BackoffMin   time.Duration
	BackoffMax   time.Duration
	BackoffReset time.Duration

	// StopTimeout is the time between SIGTERM and SIGKILL of a Stop.
	StopTimeout time.Duration

	// Watchdog is the longest silence (no WATCHDOG=1 on NOTIFY_SOCKET) before the
	// main process gets SIGKILL; 0 = none. It counts from the first READY=1.
	// SIGKILL at once, not SIGABRT: a process that is stopped handles nothing.
	Watchdog time.Duration

	// OOMContinue: the supervisor leaves the unit alone when the kernel kills one
	// of its processes for memory.
	OOMContinue bool
	// OOMScoreAdjust is -1000 (never) to 1000 (first).
	OOMScoreAdjust int

	// Delegate: the unit makes cgroups below its own.
	Delegate bool

	// OnUnexpectedExit is run, and waited for, when the main process ended
	// otherwise than by exit code 0, in a Stop as well, before any restart. Its
	// environment has SERVICE_RESULT, EXIT_CODE and EXIT_STATUS as systemd sets
	// them. nil = nothing.
	OnUnexpectedExit []string
}

// DefaultBinary is where packages install Roseau.
const DefaultBinary = "/usr/bin/roseau"

// Templates returns every unit of a node, templates with an empty instance, in
// the order in which they start. binary is the path of roseau.
func Templates(binary string) []Unit {
	return []Unit{
		{
			Name: Storage, Description: "Roseau storage: the replicas on this node's disks",
			Argv: []string{binary, "storage"}, Boot: true,
			Restart: RestartAlways, KillMode: KillGroup,
			BackoffMin: 100 * time.Millisecond, BackoffMax: 5 * time.Second, BackoffReset: 10 * time.Second,
			StopTimeout: 20 * time.Second, OOMContinue: true, OOMScoreAdjust: -900,
		},
		{
			Name: Node, Description: "Roseau node daemon: cluster state, API and failover",
			Argv: []string{binary, "node"}, Boot: true,
			// The guards it asked for are units of their own; nothing of them is in its group.
			Restart: RestartAlways, KillMode: KillGroup,
			BackoffMin: 100 * time.Millisecond, BackoffMax: 5 * time.Second, BackoffReset: 10 * time.Second,
			StopTimeout: 20 * time.Second, OOMContinue: true, OOMScoreAdjust: -500,
		},
		{
			// Exit code 0 of a guard says that there is nothing left to guard; anything
			// else leaves a QEMU alone, which the hook stops and the next guard adopts.
			Name: vmPrefix, Description: "Roseau guard of VM %i",
			Argv:    []string{binary, "vmguard", "%i"},
			Restart: RestartOnFailure, KillMode: KillProcess,
			BackoffMin: 100 * time.Millisecond, BackoffMax: 5 * time.Second, BackoffReset: 10 * time.Second,
			StopTimeout: 30 * time.Second, OOMContinue: true, OOMScoreAdjust: -900,
			Watchdog:         1500 * time.Millisecond,
			Delegate:         true, // QEMU's limits are not the guard's
			OnUnexpectedExit: []string{binary, "vmguard", "--stopped", "%i"},
		},
		{
			Name: volumePrefix, Description: "Roseau writer of volume %i",
			Argv:    []string{binary, "volumeguard", "%i"},
			Restart: RestartOnFailure, KillMode: KillProcess,
			BackoffMin: 100 * time.Millisecond, BackoffMax: 5 * time.Second, BackoffReset: 10 * time.Second,
			StopTimeout: 30 * time.Second, OOMContinue: true, OOMScoreAdjust: -500,
			Watchdog: 1500 * time.Millisecond,
		},
	}
}

// WitnessTemplate returns the one unit of a witness's machine.
func WitnessTemplate(binary string) Unit {
	return Unit{
		Name: Witness, Description: "Roseau witness: votes for a cluster, holds no data",
		Argv: []string{binary, "witness", "run"}, Boot: true,
		// It ends by itself when the cluster has removed it.
		Restart: RestartOnFailure, KillMode: KillGroup,
		BackoffMin: 100 * time.Millisecond, BackoffMax: 5 * time.Second, BackoffReset: 10 * time.Second,
		StopTimeout: 20 * time.Second, OOMContinue: true, OOMScoreAdjust: -500,
	}
}

// Find returns the unit called name out of templates, with "%i" replaced by the
// instance. It is NotFound if there is none, Invalid for a template without an
// instance.
func Find(templates []Unit, name Name) (Unit, error) {
	base, inst, isInstance := strings.Cut(string(name), "@")
	if isInstance && (inst == "" || strings.ContainsAny(inst, "/ \n\x00") || inst == "." || inst == "..") {
		return Unit{}, errs.New(errs.Invalid, "find unit %q: the instance is empty or has a forbidden character", name)
	}
	for _, u := range templates {
		if u.Name == name {
			return u, nil
		}
		if isInstance && string(u.Name) == base+"@" {
			return u.instantiate(name, inst), nil
		}
	}
	return Unit{}, errs.New(errs.NotFound, "find unit %q: no such unit", name)
}

func (u Unit) instantiate(name Name, inst string) Unit {
	expand := func(in []string) []string {
		if in == nil {
			return nil
		}
		out := make([]string, len(in))
		for i, s := range in {
			out[i] = strings.ReplaceAll(s, "%i", inst)
		}
		return out
	}
	u.Name = name
	u.Description = strings.ReplaceAll(u.Description, "%i", inst)
	u.Argv, u.Env, u.OnUnexpectedExit = expand(u.Argv), expand(u.Env), expand(u.OnUnexpectedExit)
	return u
}

// Delay returns how long to wait before the n-th restart in a row (n from 0).
func (u Unit) Delay(n int) time.Duration {
	d := u.BackoffMin
	for ; n > 0 && d < u.BackoffMax; n-- {
		d *= 2
	}
	return min(d, max(u.BackoffMax, u.BackoffMin))
}

// Restarts reports whether the unit is started again after an end that nobody
// asked for; clean is an exit with code 0.
func (u Unit) Restarts(clean bool) bool {
	return u.Restart == RestartAlways || u.Restart == RestartOnFailure && !clean
}
