package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	core "roseau/internal/core/ha"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/ha"
	"roseau/internal/svc/records"
	"roseau/internal/unit"
)

// Guards is what a node does with the guards of its VMs.
type Guards interface {
	// Write puts the configuration in place.
	Write(c *guardctl.Config) error
	// Start starts the guard's unit if it does not run.
	Start(ctx context.Context, vm ids.ID) error
	// Unit tells the state of the guard's unit.
	Unit(ctx context.Context, vm ids.ID) (unit.State, error)
	// End stops the unit of a guard in a final phase and removes its directory.
	End(ctx context.Context, vm ids.ID) error
	// Here lists the VMs whose guards have a unit on this node that is not
	// stopped.
	Here(ctx context.Context) ([]ids.ID, error)
	// Control returns the client of a guard.
	Control(vm ids.ID) Control
}

// Control is the part of guardctl.Client that is used here.
type Control interface {
	Status(ctx context.Context) (guardctl.Status, error)
	Stop(ctx context.Context, r guardctl.StopRequest) error
	Reset(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Migrate(ctx context.Context, r guardctl.MigrateRequest) error
	CancelMigration(ctx context.Context) error
	Stay(ctx context.Context) error
	Screenshot(ctx context.Context) (guardctl.Screenshot, error)
	ReplaceDisk(ctx context.Context, r guardctl.ReplaceDiskRequest) error
	Snapshot(ctx context.Context, o repl.SnapshotOrder) error
	Scrub(ctx context.Context, r volumectl.ScrubRequest) (volumectl.ScrubStatus, error)
	Tail(ctx context.Context, r volumectl.TailRequest) (volumectl.Tail, error)
}

// unitGuards runs guards as units.
type unitGuards struct{ units unit.Controller }

// NewGuards returns the guards of a node whose units are run by c.
func NewGuards(c unit.Controller) Guards { return unitGuards{c} }

func (g unitGuards) Write(c *guardctl.Config) error { return guardctl.WriteConfig(c) }
func (g unitGuards) Start(ctx context.Context, vm ids.ID) error {
	return g.units.Start(ctx, unit.VM(vm))
}
func (g unitGuards) Control(vm ids.ID) Control { return guardctl.Dial(vm) }

func (g unitGuards) Unit(ctx context.Context, vm ids.ID) (unit.State, error) {
	st, err := g.units.Status(ctx, unit.VM(vm))
	if errors.Is(err, errs.NotFound) {
		return unit.Stopped, nil
	}
	return st.State, err
}

func (g unitGuards) End(ctx context.Context, vm ids.ID) error {
	if err := g.units.Stop(ctx, unit.VM(vm)); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return guardctl.Remove(vm)
}

func (g unitGuards) Here(ctx context.Context) ([]ids.ID, error) {
	all, err := g.units.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []ids.ID
	for _, u := range all {
		if id, ok := u.Name.VMID(); ok && u.State != unit.Stopped {
			out = append(out, id)
		}
	}
	return out, nil
}

// Reconciler brings the guards of one node to what the placements say:
//
//   - a VM placed here gets its configuration and its unit;
//   - a VM that is not placed here but whose guard runs is left to its guard,
//     which its epoch fences; a guard that has ended is cleaned up;
//   - what the guards say goes to /r/vm.
type Reconciler struct {
	env    *svc.Env
	world  *records.World
	guards Guards
	yield  func(ctx context.Context, vol ids.ID) error // lets a maintenance writer go
	peers  func(ctx context.Context) ([]guardctl.Peer, uint32, error)

	started time.Time

	mu      sync.Mutex // protects workers
	workers map[ids.ID]chan struct{}
	wg      sync.WaitGroup
}

// NewReconciler returns the reconciler of a node. yield asks a maintenance writer
// of a volume to release it; peers lists the nodes and the cluster's generation.
func NewReconciler(env *svc.Env, w *records.World, g Guards, yield func(context.Context, ids.ID) error, peers func(context.Context) ([]guardctl.Peer, uint32, error)) *Reconciler {
	return &Reconciler{env: env, world: w, guards: g, yield: yield, peers: peers, started: env.Clock.Wall(), workers: map[ids.ID]chan struct{}{}}
}

// tick is how often a guard's status is asked for when nothing changes: the hint
// "stalled for 2 s" needs it fresh.
const tick = 500 * time.Millisecond

// Run works until ctx ends: one worker a VM that concerns this node, so that a
// slow one holds up no other.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.wg.Wait()
	return r.env.Loop(ctx, "vms", tick, r.world.Changed, func(ctx context.Context) error {
		if !r.world.Synced() {
			return nil
		}
		concerned := map[ids.ID]bool{}
		for vm, p := range r.world.Placements() {
			if p.Node == r.env.Node || p.Target == r.env.Node {
				concerned[vm] = true
			}
		}
		here, err := r.guards.Here(ctx)
		if err != nil {
			return err
		}
		for _, vm := range here {
			concerned[vm] = true
		}
		for _, v := range r.world.VMs.List() {
			if _, ok := r.world.Reports(v.ID)[r.env.Node]; ok {
				concerned[v.ID] = true
			}
		}
		for vm := range concerned {
			r.poke(ctx, vm)
		}
		return nil
	})
}

// poke wakes the worker of a VM, and starts it if there is none.
func (r *Reconciler) poke(ctx context.Context, vm ids.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if wake, ok := r.workers[vm]; ok {
		select {
		case wake <- struct{}{}:
		default:
		}
		return
	}
	wake := make(chan struct{}, 1)
	r.workers[vm] = wake
	r.wg.Go(func() {
		w := &worker{r: r, vm: vm, log: r.env.Log.With("vm", vm)}
		for idle := 0; idle < 20; {
			more, err := w.round(ctx)
			if err != nil && ctx.Err() == nil && err.Error() != w.lastErr {
				w.lastErr = err.Error()
				w.log.Warn("reconcile vm", "err", err)
			}
			if more || err != nil {
				idle = 0
			} else {
				idle++
			}
			t := time.NewTimer(tick)
			select {
			case <-ctx.Done():
				t.Stop()
				idle = 20
			case <-wake:
				t.Stop()
			case <-t.C:
			}
		}
		r.mu.Lock()
		delete(r.workers, vm)
		r.mu.Unlock()
	})
}

// worker reconciles one VM on this node.
type worker struct {
	r       *Reconciler
	vm      ids.ID
	log     interface{ Warn(string, ...any) }
	lastErr string

	sent      []byte // the report last written, without what changes all the time
	sentAt    clock.Instant
	written   []byte // the configuration last written
	migrated  uint64 // attempt for which the guard was told to migrate
	over      uint64
	overError string
	stopping  uint64 // attempt for which the guard was told to stop
	instance  ids.ID // of the guard whose events were forwarded
	eventSeq  uint64
}

// round is one look at the VM. more is false when this node has nothing to do
// with it any longer.
func (w *worker) round(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	p := w.r.world.Placement(w.vm)
	st, err := w.r.guards.Control(w.vm).Status(ctx)
	present := err == nil
	here := p.Node == w.r.env.Node && p.State != core.PlaceStopped
	incoming := p.State == core.PlaceMigrating && p.Target == w.r.env.Node
	if present {
		w.forwardEvents(st)
	}
	switch {
	case here || incoming:
		err = w.ensure(ctx, p.Placement.Attempt, p, st, present, incoming)
	case !present:
		return false, w.gone(ctx)
	case st.Phase.Final():
		return true, w.cleanUp(ctx, st)
	case st.Phase == guardctl.PhaseIncoming || st.Phase == guardctl.PhasePreparing:
		// An attempt that was taken back, before it took anything. A guard that
		// is only starting may be about to adopt a living QEMU: leave it.
		err = w.r.guards.Control(w.vm).Stop(ctx, guardctl.StopRequest{Force: true})
	case w.r.world.VMs.Get(w.vm) == nil:
		return true, w.bury(ctx)
	}
	return true, errors.Join(err, w.report(ctx, p, st, present, err))
}

// bury ends the guard of a VM that was deleted while this node was cut off. What
// would tell the guard that another took its VM is gone as well.
func (w *worker) bury(ctx context.Context) error {
	tomb, err := store.GetRecord[records.VMTomb](ctx, w.r.env.Store, records.VMTombKey(w.vm))
	if err != nil || tomb.Revision == 0 {
		return err // nothing is concluded from a missing object
	}
	if err := w.r.guards.Control(w.vm).Stop(ctx, guardctl.StopRequest{Force: true}); err != nil {
		return fmt.Errorf("end the guard of vm %s, which was deleted: %w", tomb.Value.Name, err)
	}
	return nil
}

// ensure brings the guard of a VM that is placed here to what its placement says.
func (w *worker) ensure(ctx context.Context, attempt uint64, p records.Placed, st guardctl.Status, present, incoming bool) error {
	vm := w.r.world.VMs.Get(w.vm)
	if vm == nil {
		return nil
	}
	switch {
	case !present:
		return w.start(ctx, vm, p, incoming)
	case st.Phase.Final() && st.Attempt < attempt && p.State != core.PlaceStopping:
		// It ended under an earlier attempt: the new one gets a new guard.
		if err := w.r.guards.End(ctx, w.vm); err != nil {
			return err
		}
		w.written = nil
		return w.start(ctx, vm, p, incoming)
	case st.Phase.Final():
		return nil // reported; the manager decides
	case p.State == core.PlaceStopping:
		return w.stop(ctx, attempt, st)
	}
	// A guard that is restarted by its supervisor reads the newest attempt.
	if !incoming {
		if err := w.writeConfig(ctx, vm, p, false); err != nil {
			return err
		}
	}
	if p.State == core.PlaceMigrating && !incoming {
		return w.migrate(ctx, vm, p, st)
	}
	if p.Stay && st.WantsMove != "" {
		return w.r.guards.Control(w.vm).Stay(ctx)
	}
	if st.Migration != nil && st.Migration.Active && p.State == core.PlaceRunning && p.Node == w.r.env.Node {
		return w.r.guards.Control(w.vm).CancelMigration(ctx)
	}
	return nil
}

// start writes the configuration and starts the unit, unless its supervisor is
// at it already.
func (w *worker) start(ctx context.Context, vm *model.VM, p records.Placed, incoming bool) error {
	if p.State == core.PlaceStopping {
		return nil // nothing to stop
	}
	state, err := w.r.guards.Unit(ctx, w.vm)
	if err != nil {
		return err
	}
	if err := w.writeConfig(ctx, vm, p, incoming); err != nil {
		return err
	}
	if state == unit.Running || state == unit.Restarting || state == unit.Stopping {
		return nil
	}
	if p.State == core.PlaceStarting {
		w.yieldAll(ctx, vm)
	}
	return w.r.guards.Start(ctx, w.vm)
}

// yieldAll asks maintenance writers to let go. One that cannot be asked is waited
// out by the guard's PREPARE.
func (w *worker) yieldAll(ctx context.Context, vm *model.VM) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range volumeIDs(vm) {
		wg.Go(func() {
			if err := w.r.yield(ctx, id); err != nil {
				w.log.Warn("ask maintenance writer to yield", "vol", id, "err", err)
			}
		})
	}
	wg.Wait()
}

func volumeIDs(vm *model.VM) []ids.ID {
	var out []ids.ID
	if !vm.Spec.State.IsZero() {
		out = append(out, vm.Spec.State)
	}
	for _, d := range vm.Spec.Disks {
		out = append(out, d.ID)
	}
	return out
}

// writeConfig writes the guard's configuration if it changed.
func (w *worker) writeConfig(ctx context.Context, vm *model.VM, p records.Placed, incoming bool) error {
	c, err := w.config(ctx, vm, p, incoming)
	if err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil || string(data) == string(w.written) {
		return err
	}
	if err := w.r.guards.Write(c); err != nil {
		return err
	}
	w.written = data
	return nil
}

func (w *worker) config(ctx context.Context, vm *model.VM, p records.Placed, incoming bool) (*guardctl.Config, error) {
	e := w.r.env
	peers, gen, err := w.r.peers(ctx)
	if err != nil {
		return nil, err
	}
	c := &guardctl.Config{VM: vm.ID, Name: vm.Name, Cluster: e.Cluster, Generation: gen, Node: e.Node, NodeName: e.NodeName,
		Attempt: p.Attempt, Intent: guardctl.IntentStart, CPUs: vm.Spec.CPUs, Memory: vm.Spec.Memory, Accel: vm.Spec.Accel, CPUModel: vm.Spec.CPUModel,
		State: vm.Spec.State, Nodes: peers, Etcd: e.Endpoints()}
	if c.CPUModel == "" && c.Accel != "tcg" {
		c.CommonCPU, _ = ha.Baseline(w.r.world.Nodes.List())
	}
	if incoming {
		c.Intent, c.Source, c.Run = guardctl.IntentIncoming, p.Node, p.Run
		// A running guest keeps its accelerator, whatever this node would choose.
		if src, ok := w.r.world.Reports(vm.ID)[p.Node]; ok && src.Status.Accel != "" {
			c.Accel = src.Status.Accel
			if src.Status.CPUModel != "" {
				c.CPUModel, c.CommonCPU = src.Status.CPUModel, ""
			}
		}
	}
	for _, d := range vm.Spec.Disks {
		c.Disks = append(c.Disks, guardctl.Disk{Volume: d.ID, Name: d.Volume, Size: d.Size})
	}
	self := w.r.world.Nodes.Get(e.Node)
	for _, n := range vm.Spec.NICs {
		nic := guardctl.NIC{Name: n.Network, MAC: n.MAC, AllowMACSpoofing: n.AllowMACSpoofing}
		if net := w.r.world.Nets.ByName(n.Network); net != nil {
			nic.Network = net.ID
		} else {
			return nil, errs.New(errs.NotFound, "start vm %s: network %s does not exist", vm.Name, n.Network)
		}
		if self != nil {
			nic.Uplink = self.Spec.Uplinks[n.Network]
		}
		c.NICs = append(c.NICs, nic)
	}
	return c, nil
}

// stop asks the guard once an attempt; it gives the guest its time by itself.
func (w *worker) stop(ctx context.Context, attempt uint64, st guardctl.Status) error {
	if st.Phase == guardctl.PhaseStopping || w.stopping == attempt {
		return nil
	}
	force := st.Phase != guardctl.PhaseRunning // nothing that a guest could save
	if err := w.r.guards.Control(w.vm).Stop(ctx, guardctl.StopRequest{Force: force}); err != nil {
		return err
	}
	w.stopping = attempt
	return nil
}

// migrate tells the guard to move the VM, as soon as the destination's guard is
// ready.
func (w *worker) migrate(ctx context.Context, vm *model.VM, p records.Placed, st guardctl.Status) error {
	if w.migrated == p.Attempt {
		if st.Phase == guardctl.PhaseRunning && st.Migration != nil && !st.Migration.Active && w.over != p.Attempt {
			w.over, w.overError = p.Attempt, st.Migration.Error
		}
		return nil
	}
	dst, ok := w.r.world.Reports(w.vm)[p.Target]
	if !ok || dst.Status.Attempt < p.Attempt || dst.Status.Incoming == nil || !dst.Status.Incoming.Ready {
		return nil
	}
	target := w.r.world.Nodes.Get(p.Target)
	if target == nil {
		return nil
	}
	addrs := slices.Clone(target.Spec.Addresses[model.RoleStorage])
	switch model.NetworkRole(p.MoveNetwork) {
	case "":
		addrs = append(addrs, target.Spec.Addresses[model.RoleCluster]...)
	case model.RoleCluster:
		addrs = target.Spec.Addresses[model.RoleCluster]
	}
	w.migrated = p.Attempt
	err := w.r.guards.Control(w.vm).Migrate(ctx, guardctl.MigrateRequest{Target: p.Target, TargetName: target.Name, Addresses: addrs,
		Port: dst.Status.Incoming.Port, Why: "placed on " + target.Name, MaxBandwidth: size.Bytes(p.MoveRate),
		Patience: time.Duration(p.MovePatienceMS) * time.Millisecond})
	if err != nil {
		w.over, w.overError = p.Attempt, err.Error()
	}
	return err
}

// cleanUp ends a guard that is through. What it said of a migration is kept with
// the VM first: its own report goes.
func (w *worker) cleanUp(ctx context.Context, st guardctl.Status) error {
	if st.Phase == guardctl.PhaseMoved && st.Migration != nil {
		m := st.Migration.MigrationStatus
		if _, err := store.Update(ctx, w.r.env.Store, w.vm, func(vm *model.VM) error { vm.Status.Migration = &m; return nil }); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	if err := w.r.guards.End(ctx, w.vm); err != nil {
		return err
	}
	w.written = nil
	return w.gone(ctx)
}

// gone removes the report of a guard that is not here and not wanted here.
func (w *worker) gone(ctx context.Context) error {
	if _, ok := w.r.world.Reports(w.vm)[w.r.env.Node]; !ok {
		return nil
	}
	w.sent = nil
	_, err := w.r.env.Store.Commit(ctx, store.NewTx().Delete(records.ReportKey(w.vm, w.r.env.Node)))
	return err
}

// progressInterval bounds how often progress alone is written: each write is a
// round of consensus.
const progressInterval = 500 * time.Millisecond

// report writes what the guard says if it changed in a way that matters.
func (w *worker) report(ctx context.Context, p records.Placed, st guardctl.Status, present bool, cause error) error {
	rep := records.Report{Status: st, MigrationOver: w.over, MigrationError: w.overError}
	if !present {
		rep = records.Report{Absent: true, Status: guardctl.Status{VM: w.vm, Node: w.r.env.Node, Attempt: p.Attempt}}
		if state, err := w.r.guards.Unit(ctx, w.vm); err == nil {
			rep.Why = fmt.Sprintf("its unit is %s", state)
		}
		if cause != nil {
			rep.Why = cause.Error()
		}
	}
	rep.Status.Events = nil
	full, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	key, err := json.Marshal(essence(rep))
	if err != nil {
		return err
	}
	now := w.r.env.Clock.Now()
	busy := st.Migration != nil && st.Migration.Active || syncing(st)
	if string(key) == string(w.sent) && !(busy && now.Sub(w.sentAt) >= progressInterval) {
		return nil
	}
	var raw json.RawMessage = full
	if _, err := w.r.env.Store.Commit(ctx, store.NewTx().Put(records.ReportKey(w.vm, w.r.env.Node), raw)); err != nil {
		return fmt.Errorf("report guard of vm %s: %w", w.vm, err)
	}
	w.sent, w.sentAt = key, now
	return nil
}

func syncing(st guardctl.Status) bool {
	for _, v := range st.Volumes {
		if v.Status.SyncTotal > 0 {
			return true
		}
	}
	return false
}

// essence drops what changes at every look.
func essence(r records.Report) records.Report {
	s := &r.Status
	s.Revision, s.LeaseLeft, s.Events = 0, 0, nil
	if s.PausedFor > 0 {
		s.PausedFor = 1
	}
	if s.Migration != nil {
		m := *s.Migration
		m.Done, m.Total, m.Elapsed, m.Round = 0, 0, 0, 0
		s.Migration = &m
	}
	vols := make([]guardctl.Volume, len(s.Volumes))
	copy(vols, s.Volumes)
	for i := range vols {
		vols[i].IO = guardctl.IOStats{}
		vols[i].Status.SyncDone, vols[i].Status.SyncLeft = 0, 0
	}
	s.Volumes = vols
	return r
}

// forwardEvents puts a guard's events on the cluster's timeline, each once.
func (w *worker) forwardEvents(st guardctl.Status) {
	if st.Instance != w.instance {
		w.instance, w.eventSeq = st.Instance, 0
	}
	name := w.vm.Short()
	if vm := w.r.world.VMs.Get(w.vm); vm != nil {
		name = vm.Name
	}
	for _, e := range st.Events {
		if e.Seq <= w.eventSeq {
			continue
		}
		w.eventSeq = e.Seq
		if e.Time.Before(w.r.started) {
			continue // an earlier run of this daemon forwarded it
		}
		text := e.Text
		if !e.Disk.IsZero() {
			text = "copy on " + w.r.world.Names().DiskName(e.Disk) + ": " + text
		}
		w.r.env.Events.Emit(e.Level, "vm "+name, text)
	}
}
