// Package ha is the shell of the HA manager: it shows the world to core/ha, runs
// its step where the etcd leader is, and carries the actions out. It decides
// nothing itself.
//
// Two managers may work for a moment when the leader changes. That is safe:
// every placement is written on condition of the revision that the decision was
// made on.
package ha

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	core "roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
)

// Beats tells when nodes were last heard; svc/beat has it.
type Beats interface {
	// Seen returns when the last beat of a node came; zero: none yet.
	Seen(node ids.ID) clock.Instant
}

// Viewer makes the manager's view of the world.
type Viewer struct {
	Self     ids.ID
	World    *records.World
	Sessions *store.Sessions
	Beats    Beats
	// Listening is since when this process hears beats.
	Listening clock.Instant
	// Holds says that the cluster shuts down; nil: never.
	Holds func() bool
	// Wall is the time of day, against which sessions tell their age; nil: no node
	// counts as just booted.
	Wall func() time.Time
}

// freshFor is how long a node counts as just booted.
const freshFor = 2 * time.Minute

// View returns the view at now; Leader and LeaderSince are the caller's.
func (v *Viewer) View(now clock.Instant) core.View {
	out := core.View{Listening: v.Listening, Hold: v.Holds != nil && v.Holds()}
	nodes, disks := v.World.Nodes.List(), v.World.Disks.List()
	names := records.NewNames(disks, nodes)
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, v.node(n, now))
	}
	for _, vm := range v.World.VMs.List() {
		out.VMs = append(out.VMs, v.vm(vm, names))
	}
	for _, r := range v.World.Rules.List() {
		out.Rules = append(out.Rules, RuleOf(r))
	}
	return out
}

// RuleOf is a rule as core/place wants it.
func RuleOf(r *model.Rule) place.VMRule {
	return place.VMRule{Name: r.Name, Kind: r.Spec.Kind, Soft: r.Spec.Soft, VMs: r.Spec.VMs, Nodes: r.Spec.Nodes, Labels: r.Spec.Labels}
}

// Baseline is the common CPU model of the cluster, and why it is no newer one; see
// place.Baseline.
func Baseline(nodes []*model.Node) (name, why string) {
	var list []place.Node
	for _, n := range nodes {
		list = append(list, place.Node{Name: n.Name, KVM: n.Status.Accelerator == "kvm", CPUFlags: n.Status.CPUFlags})
	}
	return place.Baseline(list)
}

func (v *Viewer) node(n *model.Node, now clock.Instant) core.Node {
	c := core.Node{ID: n.ID, Name: n.Name, Session: v.Sessions.Alive(n.ID), SessionLost: v.Sessions.LostAt(n.ID),
		LastBeat: v.Beats.Seen(n.ID), Known: n.Status.CPUs > 0, CPUs: n.Status.CPUs, Memory: n.Status.Memory, MemoryFree: n.Status.MemoryFree,
		KVM: n.Status.Accelerator == "kvm", Storage: v.World.NodeReport(n.ID).Storage,
		Labels: n.AllLabels(), CPUFlags: n.Status.CPUFlags, Pressure: n.Status.CPUPressure}
	c.Drain, c.Guests = n.Spec.Draining(), n.Spec.Guests
	if o := n.Spec.Order; o != nil {
		c.PowerOff, c.Away = o.NoDrain, o.Phase != model.OrderDraining
	}
	c.Away = c.Away || v.World.GoesOff()
	if v.Wall != nil {
		wall := v.Wall()
		for _, t := range n.Spec.Losses {
			c.Losses = append(c.Losses, now.Add(min(0, t.Sub(wall))))
		}
		if n.Spec.AvoidUntil.After(wall) {
			c.Until = now.Add(n.Spec.AvoidUntil.Sub(wall))
		}
	}
	if s, ok := v.Sessions.Session(n.ID); ok && v.Wall != nil {
		c.Fresh = s.First && v.Wall().Sub(s.Started) < freshFor
	}
	if n.ID == v.Self {
		c.LastBeat = now // this process runs there
	}
	if !c.Session && c.SessionLost == 0 {
		c.SessionLost = v.Listening // it had none when this process began to look
	}
	for name := range n.Spec.Uplinks {
		c.Networks = append(c.Networks, name)
	}
	return c
}

func (v *Viewer) vm(vm *model.VM, names records.Names) core.VM {
	p := v.World.Placement(vm.ID)
	c := core.VM{ID: vm.ID, Name: vm.Name, Want: vm.Spec.Running && !vm.Deleting, HA: vm.Spec.HA, Priority: vm.Spec.Priority,
		CPUs: vm.Spec.CPUs, Memory: vm.Spec.Memory, NeedKVM: vm.Spec.Accel == "kvm", Placement: p.Placement, PlacementRev: p.Revision,
		After: vm.Spec.After, StartDelay: vm.Spec.StartDelay, MaxRestarts: vm.Spec.MaxRestarts}
	for _, n := range vm.Spec.NICs {
		c.Networks = append(c.Networks, n.Network)
	}
	for i, vol := range Volumes(vm) {
		rec := v.World.Volume(vol.ID)
		pv := place.Volume{Name: vol.Volume}
		if rec != nil {
			pv.Groups = records.Groups(rec, names)
			if i == 0 && rec.Own.Purpose == repl.PurposeVM {
				c.Owner = rec.Own.Node
			}
		}
		c.Volumes = append(c.Volumes, pv)
	}
	for node, r := range v.World.Reports(vm.ID) {
		c.Reports = append(c.Reports, reportOf(node, r))
		if node == p.Node && !r.Absent {
			c.CPUModel, c.Accel = r.Status.CPUModel, r.Status.Accel
		}
	}
	return c
}

// Volumes lists the volumes of a VM, the state volume first.
func Volumes(vm *model.VM) []model.VMDisk {
	var out []model.VMDisk
	if !vm.Spec.State.IsZero() {
		out = append(out, model.VMDisk{Volume: vm.Name + "-state", ID: vm.Spec.State})
	}
	return append(out, vm.Spec.Disks...)
}

func reportOf(node ids.ID, r records.SeenReport) core.Report {
	s := r.Status
	c := core.Report{Node: node, Attempt: s.Attempt, Phase: string(s.Phase), State: s.State, Since: r.Since, Seen: r.Seen,
		Stalled: s.PausedFor, WantsMove: s.WantsMove, Reason: s.Reason, MigrationOver: r.MigrationOver, MigrationError: r.MigrationError}
	if r.Absent {
		c.Phase, c.Reason = "absent", r.Why
		return c
	}
	if s.Phase == guardctl.PhasePreparing {
		for _, v := range s.Volumes {
			if v.Waiting != "" {
				c.Waiting = v.Waiting
			}
		}
		c.Live = c.Waiting == ""
	}
	return c
}
