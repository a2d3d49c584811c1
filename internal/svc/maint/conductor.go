// Package maint is the shell of core/maint: it shows it the world where etcd's
// leader is, carries its actions out, takes the orders of people and switches
// this node off when it is told to. It decides nothing itself.
//
// Its tasks have no daemon: whoever leads writes their progress and their end, so
// they outlive the node that was asked.
package maint

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	haCore "roseau/internal/core/ha"
	core "roseau/internal/core/maint"
	"roseau/internal/core/quorum"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/beat"
	"roseau/internal/svc/ha"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
	"roseau/internal/unit"
)

const (
	stepEvery  = 500 * time.Millisecond
	txnTimeout = 2 * time.Second
	askTimeout = 3 * time.Second
	upBeat     = 2 * time.Second // a node whose beats are older does not count as up
	sweepEvery = 30 * time.Second
	// staleBeat is the age from which a beat may be that of a boot before: no machine
	// is back that soon, and beats that come are younger.
	staleBeat = 3 * beat.Interval
)

// Needs is what the service takes from its node.
type Needs struct {
	World   *records.World
	Viewer  *ha.Viewer
	Leading func() bool
	Votes   func(ctx context.Context) (quorum.View, error)
	Boot    func() string // this node's boot identity
	// ClusterName is what a shutdown of the cluster is confirmed with.
	ClusterName string
}

// Service is maintenance on one node.
type Service struct {
	Needs
	env *svc.Env

	// of Run's goroutine
	memory core.Memory
	shown  map[ids.ID]core.Progress
	names  map[ids.ID]string // of volumes
	swept  clock.Instant

	orders chan LeaveOrder // capacity 1: this node is to go down
}

// New returns the service of a node.
func New(env *svc.Env, n Needs) *Service {
	return &Service{Needs: n, env: env, shown: map[ids.ID]core.Progress{}, orders: make(chan LeaveOrder, 1)}
}

// Run conducts until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	octx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { s.obey(octx) })
	return s.env.Loop(ctx, "maintenance", stepEvery, s.World.Changed, s.once)
}

// once is one step, where the leader is.
func (s *Service) once(ctx context.Context) error {
	s.goUntold()
	if !s.Leading() || !s.World.Synced() {
		s.memory, s.shown = core.Memory{}, map[ids.ID]core.Progress{}
		return nil
	}
	now := s.env.Clock.Now()
	sweep := s.swept == 0 || now.Sub(s.swept) >= sweepEvery
	if !s.busy() && !sweep {
		return nil
	}
	v, planRev, err := s.view(ctx)
	if err != nil {
		return err
	}
	var actions []core.Action
	st, actions := core.Step(core.State{View: v, Memory: s.memory}, now)
	s.memory = st.Memory
	if err := s.carryOut(ctx, actions, planRev); err != nil {
		return err
	}
	if sweep {
		s.swept = now
		return s.sweepTasks(ctx)
	}
	return nil
}

// goUntold takes this node down if it is the last one of a shutdown: nobody is left
// who could tell it, and there may be no majority to conduct with.
func (s *Service) goUntold() {
	now := s.env.Clock.Now()
	p, _ := s.World.Plan()
	heard := func(n ids.ID) bool { return s.heard(n, now) }
	if _, ok := s.env.Units.(unit.Machine); ok && core.LastToGo(p, s.env.Node, s.Boot(), heard) {
		s.accept(LeaveOrder{Verb: model.OrderShutdown, Boot: s.Boot()})
	}
}

// heard reports whether a node's beats come.
func (s *Service) heard(n ids.ID, now clock.Instant) bool {
	return n == s.env.Node || now.Sub(s.Viewer.Beats.Seen(n)) < upBeat
}

// busy reports whether anything is ordered.
func (s *Service) busy() bool {
	if p, _ := s.World.Plan(); p != nil {
		return true
	}
	return slices.ContainsFunc(s.World.Nodes.List(), func(n *model.Node) bool {
		return n.Spec.Order != nil || n.Spec.Drain && !n.Spec.DrainTask.IsZero()
	})
}

// view is the world as core/maint needs it.
func (s *Service) view(ctx context.Context) (v core.View, planRev int64, err error) {
	v = core.View{Leader: true, Self: s.env.Node}
	v.Plan, planRev = s.World.Plan()
	votes, err := s.Votes(ctx)
	if err != nil {
		return v, 0, err
	}
	now := s.env.Clock.Now()
	for _, n := range s.World.Nodes.List() {
		sess, alive := s.Viewer.Sessions.Session(n.ID)
		heard := s.heard(n.ID, now)
		stale := n.ID != s.env.Node && now.Sub(s.Viewer.Beats.Seen(n.ID)) > staleBeat
		v.Nodes = append(v.Nodes, core.Node{ID: n.ID, Name: n.Name, Up: alive && heard, Heard: heard, Stale: stale, Boot: sess.Boot, Storage: alive && s.World.NodeReport(n.ID).Storage,
			Drain: n.Spec.Drain, Task: n.Spec.DrainTask, Order: n.Spec.Order, Guests: n.Spec.Guests, Needed: quorum.Needed(votes, n.ID)})
	}
	v.VMs = s.vms()
	v.Volumes, err = s.volumes(ctx)
	return v, planRev, err
}

// vms lists the machines that are placed on a node.
func (s *Service) vms() (out []core.VM) {
	for _, vm := range s.World.VMs.List() {
		p := s.World.Placement(vm.ID)
		if p.Node.IsZero() || p.State == haCore.PlaceStopped {
			continue
		}
		x := core.VM{ID: vm.ID, Name: vm.Name, Node: p.Node, Target: p.Target, Stay: vm.Status.Reason}
		if r, ok := s.World.Reports(vm.ID)[p.Node]; ok && p.State == haCore.PlaceMigrating && r.Status.Migration != nil {
			x.Stay = migrationText(r.Status.Migration.MigrationStatus, x.Stay)
		}
		out = append(out, x)
	}
	return out
}

func migrationText(m model.MigrationStatus, text string) string {
	if m.Total > 0 && m.Done <= m.Total {
		text += ", " + m.Done.String() + " of " + m.Total.String()
	}
	return text
}

// volumes says where the copies of every volume are.
func (s *Service) volumes(ctx context.Context) ([]core.Volume, error) {
	names := s.World.Names()
	recs := s.World.Volumes()
	if slices.ContainsFunc(recs, func(r *repl.VolumeRecord) bool { _, ok := s.names[r.ID]; return !ok }) {
		all, err := store.List[model.Volume](ctx, s.env.Store)
		if err != nil {
			return nil, err
		}
		s.names = map[ids.ID]string{}
		for _, x := range all {
			s.names[x.ID] = x.Name
		}
	}
	var out []core.Volume
	for _, r := range recs {
		name := s.names[r.ID]
		if name == "" {
			s.names[r.ID] = r.ID.Short()
			name = r.ID.Short()
		}
		out = append(out, core.Volume{Name: name, Copies: r.Cfg.Copies, Groups: groups(r, names)})
	}
	return out, nil
}

// groups lists the distinct rows of a volume's map.
func groups(r *repl.VolumeRecord, names records.Names) []core.Group {
	var out []core.Group
	seen := map[string]bool{}
	for seg, row := range r.Seg.Map {
		var g core.Group
		key := ""
		for _, i := range row {
			if int(i) >= len(r.Seg.Disks) {
				continue
			}
			disk := r.Seg.Disks[i]
			node := names.DiskNode[disk]
			g.All = append(g.All, node)
			key += disk.String()
			if !r.OutOf(disk, seg) {
				g.In = append(g.In, node)
				key += "+"
			}
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, g)
		}
	}
	return out
}

// carryOut does what was decided. A change that meets another one is not made:
// the next step sees what is.
func (s *Service) carryOut(ctx context.Context, actions []core.Action, planRev int64) error {
	var all error
	var wg sync.WaitGroup
	for _, a := range actions {
		switch a := a.(type) {
		case core.Change:
			err := s.change(ctx, a, planRev, endsWith(actions))
			s.env.Log.Info("maintenance", "change", a.String(), "err", err)
			if err != nil {
				return ignoreConflict(err) // what follows would tell of what was not done
			}
		case core.Power:
			wg.Go(func() { s.tell(ctx, a) })
		case core.Progress:
			all = errors.Join(all, s.progress(ctx, a))
		case core.End:
			if !a.Drained.IsZero() {
				all = errors.Join(all, s.endDrain(ctx, a))
			}
		case core.Event:
			s.env.Events.Emit(a.Level, a.Subject, a.Text)
		}
	}
	wg.Wait()
	return all
}

// endsWith lists what ends by the step's change.
func endsWith(actions []core.Action) (ends []core.End) {
	for _, a := range actions {
		if e, ok := a.(core.End); ok && e.Drained.IsZero() {
			ends = append(ends, e)
		}
	}
	return ends
}

func ignoreConflict(err error) error {
	if errors.Is(err, errs.Conflict) {
		return nil
	}
	return err
}

// change makes a change and ends the tasks that end by it, in one transaction.
func (s *Service) change(ctx context.Context, a core.Change, planRev int64, ends []core.End) error {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	tx := store.NewTx()
	if !a.Node.IsZero() {
		n, err := store.GetID[model.Node](ctx, s.env.Store, a.Node)
		if err != nil {
			return err
		}
		if !sameOrder(n.Spec.Order, a.Was) {
			return errs.New(errs.Conflict, "change order of node %s: another one came", a.Name)
		}
		n.Spec.Order = a.Order
		n.Spec.Guests = without(n.Spec.Guests, a.Forget)
		if err := store.TxPut(tx, n); err != nil {
			return err
		}
	}
	if a.WritePlan {
		tx.If(records.PlanKey, planRev)
		if a.Plan == nil {
			tx.Delete(records.PlanKey)
		} else {
			tx.Put(records.PlanKey, a.Plan)
		}
	}
	for _, e := range ends {
		if err := s.addEnd(ctx, tx, e); err != nil {
			return err
		}
	}
	_, err := s.env.Store.Commit(ctx, tx)
	return err
}

func without(list, drop []ids.ID) []ids.ID {
	return slices.DeleteFunc(slices.Clone(list), func(id ids.ID) bool { return slices.Contains(drop, id) })
}

func sameOrder(a, b *model.NodeOrder) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Phase == b.Phase && a.Verb == b.Verb && a.Boot == b.Boot && a.Asked.Equal(b.Asked)
}

// tell sends a power order to a node. One that does not answer is told again.
func (s *Service) tell(ctx context.Context, a core.Power) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := s.env.Ask(ctx, a.Node, http.MethodPost, "/v1/nodes/"+a.Node.String()+"/leave", LeaveOrder{Verb: a.Verb, Boot: a.Boot}, nil)
	s.env.Log.Info("told node to go down", "to", a.Name, "verb", a.Verb, "err", err)
}

// progress writes what a task shows, if it changed.
func (s *Service) progress(ctx context.Context, a core.Progress) error {
	if s.shown[a.Task] == a {
		return nil
	}
	_, err := store.Update(ctx, s.env.Store, a.Task, func(t *model.Task) error {
		if t.State == model.TaskRunning {
			t.Phase, t.Done, t.Total, t.Unit = a.Phase, a.Done, a.Total, "items"
		}
		return nil
	})
	if err == nil || errors.Is(err, errs.NotFound) {
		s.shown[a.Task] = a
		err = nil
	}
	return err
}

// addEnd adds the end of a task that still runs to a transaction.
func (s *Service) addEnd(ctx context.Context, tx *store.Tx, e core.End) error {
	delete(s.shown, e.Task)
	t, err := store.GetID[model.Task](ctx, s.env.Store, e.Task)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil
	case err != nil:
		return err
	case t.State != model.TaskRunning:
		return nil
	}
	s.ended(t, e.Result, causeOf(e), model.TaskFailed)
	return store.TxPut(tx, t)
}

func causeOf(e core.End) error {
	if e.Failed == "" {
		return nil
	}
	return errs.New(errs.Conflict, "%s", e.Failed).WithHint("%s", e.Hint)
}

// endDrain ends the task of a drain, then the node's tie to it: that order can be
// gone through again from the beginning.
func (s *Service) endDrain(ctx context.Context, e core.End) error {
	delete(s.shown, e.Task)
	if err := s.endTask(ctx, e.Task, e.Result, causeOf(e), model.TaskFailed); err != nil {
		return err
	}
	_, err := store.Update(ctx, s.env.Store, e.Drained, func(n *model.Node) error {
		if n.Spec.DrainTask == e.Task {
			n.Spec.DrainTask = ids.ID{}
		}
		return nil
	})
	return err
}

// ended writes the end into a task; bad is its state if cause is not nil.
func (s *Service) ended(t *model.Task, result string, cause error, bad model.TaskState) {
	t.State, t.Result, t.Phase, t.Finished = model.TaskDone, result, "", s.env.Clock.Wall().UTC()
	if cause != nil {
		t.State, t.Error = bad, task.ProblemOf(cause)
	}
}

// endTask ends a task that still runs; bad is its state if cause is not nil.
func (s *Service) endTask(ctx context.Context, id ids.ID, result string, cause error, bad model.TaskState) error {
	if id.IsZero() {
		return nil
	}
	_, err := store.Update(ctx, s.env.Store, id, func(t *model.Task) error {
		if t.State == model.TaskRunning {
			s.ended(t, result, cause, bad)
		}
		return nil
	})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// sweepTasks ends shared tasks that nothing stands behind any more: their intent
// was not written, or went with a leader that died before it could say so.
func (s *Service) sweepTasks(ctx context.Context) error {
	tasks, err := store.List[model.Task](ctx, s.env.Store)
	if err != nil {
		return err
	}
	live := map[ids.ID]bool{}
	if p, _ := s.World.Plan(); p != nil {
		live[p.Task] = true
	}
	for _, n := range s.World.Nodes.List() {
		live[n.Spec.DrainTask] = true
		if n.Spec.Order != nil {
			live[n.Spec.Order.Task] = true
		}
	}
	for _, t := range tasks {
		young := s.env.Clock.Wall().Sub(t.Created) < sweepEvery
		if t.Node != "" || t.State != model.TaskRunning || live[t.ID] || young {
			continue
		}
		cause := errs.New(errs.Unavailable, "nobody conducts it any more: its order is gone").WithHint("see `roseau events` for what came of it")
		if err := s.endTask(ctx, t.ID, "", cause, model.TaskFailed); err != nil {
			return err
		}
	}
	return nil
}
