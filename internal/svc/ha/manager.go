package ha

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	core "roseau/internal/core/ha"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
	"roseau/internal/svc/records"
)

// stepInterval is how often the manager steps when nothing changes: a seventh of
// the beats' limit, so that a loss is seen within 0.1 s of its time.
const stepInterval = 100 * time.Millisecond

// Manager runs the steps on the node where etcd's leader is.
type Manager struct {
	env     *svc.Env
	viewer  *Viewer
	leading func() bool
	since   func() clock.Instant

	state    core.State // of Run's goroutine
	managing bool       // of Run's goroutine: the last step was made here

	mu      sync.Mutex // protects the fields below
	pending map[ids.ID]model.VMStatus
	losses  map[ids.ID]core.SetLosses // by node, to be written
	wake    chan struct{}             // capacity 1
}

// NewManager returns the manager of a node. leading tells whether the etcd
// member of this node leads, since since when etcd has had its leader (zero: it
// has none).
func NewManager(env *svc.Env, v *Viewer, leading func() bool, since func() clock.Instant) *Manager {
	return &Manager{env: env, viewer: v, leading: leading, since: since, pending: map[ids.ID]model.VMStatus{}, losses: map[ids.ID]core.SetLosses{}, wake: make(chan struct{}, 1)}
}

// Run steps until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	wctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { m.writeStatuses(wctx) })
	defer wg.Wait()
	defer stop()
	return m.env.Loop(ctx, "ha", stepInterval, m.viewer.World.Changed, m.once)
}

// once is one step. A node that does not lead forgets what it remembered: the
// next time it leads, the world is another.
func (m *Manager) once(ctx context.Context) error {
	since := m.since()
	if !m.leading() || since == 0 || !m.viewer.World.Synced() {
		m.state, m.managing = core.State{}, false
		return nil
	}
	now := m.env.Clock.Now()
	if !m.managing {
		m.managing = true
		led := m.env.Clock.Wall().Add(-now.Sub(since)).UTC()
		m.env.Events.Emit(event.Info, "cluster", m.env.NodeName+" manages the machines: etcd's leader is there", "leader_since", led.Format(time.RFC3339Nano))
	}
	m.state.View = m.viewer.View(now)
	m.state.View.Leader, m.state.View.LeaderSince = true, since
	m.remember()
	var actions []core.Action
	m.state, actions = core.Step(m.state, now)
	err := m.carryOut(ctx, actions)
	m.queueStatuses()
	return err
}

// remember takes over what the last manager reported of the restarts.
func (m *Manager) remember() {
	if m.state.VMs == nil {
		m.state.VMs = map[ids.ID]core.VMMemory{}
	}
	for _, vm := range m.viewer.World.VMs.List() {
		if _, ok := m.state.VMs[vm.ID]; !ok {
			m.state.VMs[vm.ID] = core.VMMemory{Restarts: vm.Status.Restarts}
		}
	}
}

// txnTimeout bounds one placement: if etcd is slower, the next step sees what
// came of it.
const txnTimeout = 2 * time.Second

// carryOut writes placements first, all at once: time runs.
func (m *Manager) carryOut(ctx context.Context, actions []core.Action) error {
	var wg sync.WaitGroup
	errc := make([]error, len(actions))
	for i, a := range actions {
		switch a := a.(type) {
		case core.SetPlacement:
			wg.Go(func() { errc[i] = m.setPlacement(ctx, a) })
		case core.SetWant:
			wg.Go(func() { errc[i] = m.setWant(ctx, a) })
		case core.SetHome:
			wg.Go(func() { errc[i] = m.setHome(ctx, a) })
		case core.SetLosses:
			m.mu.Lock()
			m.losses[a.Node] = a
			m.mu.Unlock()
			m.wakeWriter()
		case core.Event:
			m.env.Events.Emit(a.Level, a.Subject, a.Text)
		}
	}
	wg.Wait()
	return errors.Join(errc...)
}

func (m *Manager) setPlacement(ctx context.Context, a core.SetPlacement) error {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	key := records.PlacementKey(a.VM)
	rev, err := m.env.Store.Commit(ctx, store.NewTx().If(key, a.Expect).Put(key, a.Placement))
	m.env.Log.Info("placement", "vm", a.Name, "node", a.NodeName, "attempt", a.Placement.Attempt, "state", a.Placement.State, "why", a.Why, "err", err)
	if err == nil {
		m.viewer.World.NoteOwnPlacement(a.VM, records.Placed{Placement: a.Placement, Revision: rev})
		return nil
	}
	if errors.Is(err, errs.Conflict) {
		return nil // somebody was faster: the next step sees what they wrote
	}
	return err
}

// setHome notes on a node's object that a VM left it for maintenance, or that this
// is over.
func (m *Manager) setHome(ctx context.Context, a core.SetHome) error {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	_, err := store.Update(ctx, m.env.Store, a.Node, func(n *model.Node) error {
		n.Spec.Guests = slices.DeleteFunc(slices.Clone(n.Spec.Guests), func(id ids.ID) bool { return id == a.VM })
		if a.Add {
			n.Spec.Guests = append(n.Spec.Guests, a.VM)
		}
		return nil
	})
	return err
}

// setLosses notes on a node's object, by the time of day, when it was lost: the next
// manager begins with it.
func (m *Manager) setLosses(ctx context.Context, a core.SetLosses) {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	wall := func(t clock.Instant) time.Time { return m.env.Clock.Wall().Add(t.Sub(m.env.Clock.Now())).UTC() }
	_, err := store.Update(ctx, m.env.Store, a.Node, func(n *model.Node) error {
		n.Spec.Losses, n.Spec.AvoidUntil = nil, time.Time{}
		for _, t := range a.Losses {
			n.Spec.Losses = append(n.Spec.Losses, wall(t))
		}
		if a.Until != 0 {
			n.Spec.AvoidUntil = wall(a.Until)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errs.NotFound) {
		m.env.Log.Warn("note the losses of a node", "node", a.NodeName, "err", err)
	}
}

func (m *Manager) setWant(ctx context.Context, a core.SetWant) error {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	_, err := store.Update(ctx, m.env.Store, a.VM, func(vm *model.VM) error { vm.Spec.Running = a.Running; return nil })
	return err
}

// queueStatuses compares what each VM's object says with what is, and queues the
// difference.
func (m *Manager) queueStatuses() {
	for _, vm := range m.viewer.World.VMs.List() {
		mem, ok := m.state.VMs[vm.ID]
		if !ok || mem.State == "" {
			continue
		}
		st := m.status(vm, mem)
		shown := st
		shown.Migration = st.Migration.Newer(vm.Status.Migration)
		if same(shown, vm.Status) {
			continue
		}
		m.mu.Lock()
		m.pending[vm.ID] = st
		m.mu.Unlock()
		m.wakeWriter()
	}
}

func (m *Manager) wakeWriter() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// status composes what the manager and the guard know of a VM.
func (m *Manager) status(vm *model.VM, mem core.VMMemory) model.VMStatus {
	p := m.viewer.World.Placement(vm.ID)
	st := model.VMStatus{State: mem.State, Reason: mem.Reason, Restarts: mem.Restarts}
	if n := m.viewer.World.Nodes.Get(p.Node); n != nil {
		st.Node = n.Name
	}
	r, ok := m.viewer.World.Reports(vm.ID)[p.Node]
	if !ok || r.Absent || p.Node.IsZero() {
		return st
	}
	g := r.Status
	st.Pauses, st.Run, st.Started, st.Accel, st.CPUModel = g.Pauses, g.Run, g.Started, g.Accel, g.CPUModel
	st.Steps = g.Steps
	if g.Migration != nil {
		mig := g.Migration.MigrationStatus
		st.Migration = &mig
	}
	if mem.State == model.VMRunning && (g.Phase == guardctl.PhaseOpening || g.Phase == guardctl.PhaseTaking) {
		st.Reason = "its guard takes its volumes"
	}
	return st
}

func same(a, b model.VMStatus) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// inTurn puts the machines that move last: one takes the turn of another whose
// migration has ended, and who reads the statuses meanwhile must not see both move.
func inTurn(todo map[ids.ID]model.VMStatus) []ids.ID {
	moves := func(id ids.ID) int {
		if todo[id].State == model.VMMigrating {
			return 1
		}
		return 0
	}
	return slices.SortedFunc(maps.Keys(todo), func(a, b ids.ID) int { return cmp.Compare(moves(a), moves(b)) })
}

// writeStatuses writes queued statuses and losses beside the steps: they must not
// hold up a placement.
func (m *Manager) writeStatuses(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		}
		m.mu.Lock()
		todo, losses := m.pending, m.losses
		m.pending, m.losses = map[ids.ID]model.VMStatus{}, map[ids.ID]core.SetLosses{}
		m.mu.Unlock()
		for _, a := range losses {
			m.setLosses(ctx, a)
		}
		for _, id := range inTurn(todo) {
			st := todo[id]
			uctx, cancel := context.WithTimeout(ctx, txnTimeout)
			_, err := store.Update(uctx, m.env.Store, id, func(vm *model.VM) error {
				st.Migration = st.Migration.Newer(vm.Status.Migration)
				vm.Status = st
				return nil
			})
			cancel()
			if err != nil && !errors.Is(err, errs.NotFound) {
				m.env.Log.Debug("write vm status", "vm", id, "err", err)
			}
		}
	}
}
