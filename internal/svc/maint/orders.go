package maint

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	haCore "roseau/internal/core/ha"
	core "roseau/internal/core/maint"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
)

// LeaveRequest is the body of POST /v1/nodes/{ref}/shutdown and /reboot.
type LeaveRequest struct {
	NoDrain    bool `json:"no_drain,omitempty" doc:"power the guests off and start them elsewhere, instead of moving them"`
	NoFailback bool `json:"no_failback,omitempty" doc:"what leaves the node does not go back by itself"`
}

// UndrainRequest is the body of POST /v1/nodes/{ref}/undrain.
type UndrainRequest struct {
	NoFailback bool `json:"no_failback,omitempty" doc:"what left the node does not go back by itself"`
}

// ShutdownRequest is the body of POST /v1/cluster/shutdown.
type ShutdownRequest struct {
	Confirm string `json:"confirm" doc:"name of the cluster: what this switches off is named twice"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("drain-node", "POST", "/v1/nodes/{ref}/drain", "Move every VM away from a node and place none there"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run"`
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Drain(ctx, in.Ref.Ref, in.DryRun))
	})
	huma.Register(r, api.Op("undrain-node", "POST", "/v1/nodes/{ref}/undrain", "End a drain, or call a shutdown or reboot off that has not begun"), func(ctx context.Context, in *struct {
		api.Ref
		Body UndrainRequest
	}) (*api.Body[*model.Node], error) {
		return api.OK(s.Undrain(ctx, in.Ref.Ref, in.Body))
	})
	for _, verb := range []model.OrderVerb{model.OrderShutdown, model.OrderReboot} {
		huma.Register(r, api.Op(string(verb)+"-node", "POST", "/v1/nodes/{ref}/"+string(verb), "Drain a node, stop its services and "+done(verb)), func(ctx context.Context, in *struct {
			api.Ref
			DryRun bool `query:"dry_run"`
			Body   LeaveRequest
		}) (*api.AcceptTask, error) {
			return api.Accepted(s.Leave(ctx, in.Ref.Ref, verb, in.Body, in.DryRun))
		})
	}
	leave := api.Op("leave-node", "POST", "/v1/nodes/{node}/leave", "Take the node down that is asked; for the conductor")
	leave.Middlewares = huma.Middlewares{r.OnNode(s.env.OnNode("node"))}
	huma.Register(r, leave, func(ctx context.Context, in *struct {
		Node string `path:"node"`
		Body LeaveOrder
	}) (*struct{}, error) {
		return nil, s.GoDown(ctx, in.Body)
	})
	huma.Register(r, api.Op("restart-cluster", "POST", "/v1/cluster/restart", "Restart every node, one at a time"), func(ctx context.Context, in *struct {
		DryRun bool `query:"dry_run"`
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Restart(ctx, in.DryRun))
	})
	huma.Register(r, api.Op("shutdown-cluster", "POST", "/v1/cluster/shutdown", "Power every VM and every node off, in order"), func(ctx context.Context, in *struct {
		DryRun bool `query:"dry_run"`
		Body   ShutdownRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Shutdown(ctx, in.Body, in.DryRun))
	})
	for _, kind := range []core.PlanKind{core.Restart, core.Shutdown} {
		huma.Register(r, api.Op("cancel-cluster-"+string(kind), "DELETE", "/v1/cluster/"+string(kind), "Call the "+string(kind)+" of the cluster off"), func(ctx context.Context, _ *struct{}) (*struct{}, error) {
			return nil, s.Cancel(ctx, kind)
		})
	}
}

func done(verb model.OrderVerb) string {
	if verb == model.OrderReboot {
		return "boot it anew"
	}
	return "switch it off"
}

// free refuses while the whole cluster is on its way.
func (s *Service) free(ctx context.Context, what string) error {
	p, err := store.GetRecord[core.Plan](ctx, s.env.Store, records.PlanKey)
	if err != nil {
		return err
	}
	if p.Revision != 0 {
		return errs.New(errs.Conflict, "%s: a %s of the cluster is under way", what, p.Value.Kind).WithHint("wait for it, or call it off: `roseau cluster %s --cancel`", p.Value.Kind)
	}
	return nil
}

// others refuses to take the last node away that can run VMs.
func others(what string, v core.View, node ids.ID) error {
	var why []string
	for _, n := range v.Nodes {
		switch {
		case n.ID == node:
		case !n.Up:
			why = append(why, n.Name+" does not answer")
		case n.Drain:
			why = append(why, n.Name+" is drained")
		case n.Order != nil:
			why = append(why, fmt.Sprintf("%s is to %s", n.Name, n.Order.Verb.Words()))
		case !n.Storage:
			why = append(why, "the storage of "+n.Name+" does not answer")
		default:
			return nil
		}
	}
	if len(why) == 0 {
		return errs.New(errs.Conflict, "%s: it is the only node", what).WithHint("`roseau cluster shutdown --confirm NAME` powers the VMs off, then the node")
	}
	return errs.New(errs.Conflict, "%s: it is the last node that takes VMs: %s", what, strings.Join(why, ", ")).
		WithHint("bring another node back first (`roseau node undrain`), or switch the whole cluster off: `roseau cluster shutdown --confirm NAME`")
}

// moves says where the VMs of a node would go, or refuses with the reason of each
// that cannot.
func (s *Service) moves(what string, node ids.ID) ([]string, error) {
	now := s.env.Clock.Now()
	var lines, stuck []string
	for _, m := range haCore.Drain(s.Viewer.View(now), node, now) {
		if m.To == "" {
			stuck = append(stuck, m.VM+" ("+m.Why+")")
			continue
		}
		lines = append(lines, "vm "+m.VM+" -> "+m.Why)
	}
	if len(stuck) > 0 {
		return nil, errs.New(errs.Exhausted, "%s: no other node can take vm %s", what, strings.Join(stuck, "; vm ")).
			WithHint("free what is missing, or stop these VMs (`roseau vm stop`), and ask again; `node shutdown --no-drain` powers guests off and starts elsewhere what fits")
	}
	return lines, nil
}

// look reads a node and the world.
func (s *Service) look(ctx context.Context, ref string) (*model.Node, core.View, error) {
	n, err := store.Get[model.Node](ctx, s.env.Store, ref)
	if err != nil {
		return nil, core.View{}, err
	}
	v, _, err := s.view(ctx)
	return n, v, err
}

// Drain moves every VM away from a node. It stays drained until Undrain.
func (s *Service) Drain(ctx context.Context, ref string, dry bool) (*model.Task, error) {
	n, v, err := s.look(ctx, ref)
	if err != nil {
		return nil, err
	}
	what := "drain node " + n.Name
	if n.Spec.Drain && n.Spec.Order == nil {
		if !n.Spec.DrainTask.IsZero() && !dry {
			return store.GetID[model.Task](ctx, s.env.Store, n.Spec.DrainTask)
		}
		return api.DryRun("node drain "+n.Name, "node "+n.Name+" is drained already"), nil
	}
	if n.Spec.Order != nil {
		return nil, errs.New(errs.Conflict, "%s: it is to %s already", what, n.Spec.Order.Verb.Words()).WithHint("`roseau node undrain %s` calls that off while it has not begun", n.Name)
	}
	if err := errors.Join(s.free(ctx, what), others(what, v, n.ID)); err != nil {
		return nil, err
	}
	lines, err := s.moves(what, n.ID)
	if err != nil {
		return nil, err
	}
	if dry {
		return api.DryRun("node drain "+n.Name, fmt.Sprintf("would move %d VMs away from %s and place none there", len(lines), n.Name), lines...), nil
	}
	t, err := s.env.Tasks.CreateShared(ctx, "node drain "+n.Name)
	if err != nil {
		return nil, err
	}
	n.Spec.Drain, n.Spec.DrainTask = true, t.ID
	return s.begun(ctx, t, "node "+n.Name, "is drained: its machines move away", func() error {
		_, err := store.Put(ctx, s.env.Store, n)
		return err
	})
}

// begun writes what a task stands for, and ends the task if that fails.
func (s *Service) begun(ctx context.Context, t *model.Task, subject, text string, write func() error) (*model.Task, error) {
	if err := write(); err != nil {
		if errors.Is(err, errs.Conflict) {
			err = errs.New(errs.Conflict, "%s: it was changed at the same time", t.Action).WithHint("ask again")
		}
		ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txnTimeout)
		defer cancel()
		return nil, errors.Join(err, s.endTask(ectx, t.ID, "", err, model.TaskFailed))
	}
	s.env.Events.Emit("info", subject, text)
	return t, nil
}

// Undrain ends a drain, and calls an order off that the node was not told yet.
func (s *Service) Undrain(ctx context.Context, ref string, req UndrainRequest) (*model.Node, error) {
	n, err := store.Get[model.Node](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	o := n.Spec.Order
	switch {
	case o != nil && o.Phase != model.OrderDraining:
		return nil, errs.New(errs.Conflict, "undrain node %s: it is %s by now (%s)", n.Name, o.Phase, o.Verb).WithHint("it takes VMs again by itself when it is back")
	case o == nil && !n.Spec.Drain:
		return nil, errs.New(errs.Conflict, "undrain node %s: it is not drained", n.Name).WithHint("`roseau node list` shows which nodes are")
	}
	task := n.Spec.DrainTask
	n, err = store.Update(ctx, s.env.Store, n.ID, func(n *model.Node) error {
		if n.Spec.Order != nil && n.Spec.Order.Phase != model.OrderDraining {
			return errs.New(errs.Conflict, "undrain node %s: it goes down", n.Name)
		}
		n.Spec.Drain, n.Spec.DrainTask, n.Spec.Order = false, ids.ID{}, nil
		if req.NoFailback {
			n.Spec.Guests = without(n.Spec.Guests, core.Placed(n.Spec.Guests, s.vms()))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.env.Events.Emit("info", "node "+n.Name, "takes machines again")
	cause := errs.New(errs.Conflict, "cancelled: node %s was undrained", n.Name)
	err = s.endTask(ctx, task, "", cause, model.TaskCancelled)
	if o != nil {
		err = errors.Join(err, s.endTask(ctx, o.Task, "", cause, model.TaskCancelled))
	}
	return n, err
}

// Leave orders a node to shut down or to reboot.
func (s *Service) Leave(ctx context.Context, ref string, verb model.OrderVerb, req LeaveRequest, dry bool) (*model.Task, error) {
	n, v, err := s.look(ctx, ref)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%s node %s", verb.Words(), n.Name)
	action := fmt.Sprintf("node %s %s", verb, n.Name)
	if n.Spec.Order != nil {
		return nil, errs.New(errs.Conflict, "%s: it is to %s already", what, n.Spec.Order.Verb.Words()).WithHint("`roseau node undrain %s` calls that off while it has not begun", n.Name)
	}
	if err := errors.Join(s.free(ctx, what), others(what, v, n.ID)); err != nil {
		return nil, err
	}
	boot, err := mayLeave(what, v, n.ID)
	if err != nil {
		return nil, err
	}
	var lines []string
	if !req.NoDrain {
		if lines, err = s.moves(what, n.ID); err != nil {
			return nil, err
		}
	}
	if core.LeavesOne(v.Volumes, n.ID) {
		lines = append(lines, "volumes of pools with two copies have one until it is back")
	}
	if dry {
		return api.DryRun(action, fmt.Sprintf("would drain %s, stop its services and %s", n.Name, done(verb)), lines...), nil
	}
	t, err := s.env.Tasks.CreateShared(ctx, action)
	if err != nil {
		return nil, err
	}
	n.Spec.Order = &model.NodeOrder{Verb: verb, Phase: model.OrderDraining, NoDrain: req.NoDrain, NoFailback: req.NoFailback,
		Boot: boot, Asked: s.env.Clock.Wall().UTC(), Task: t.ID}
	return s.begun(ctx, t, "node "+n.Name, "is to "+verb.Words(), func() error {
		_, err := store.Put(ctx, s.env.Store, n)
		return err
	})
}

// mayLeave refuses what can never be: a node that does not answer, one whose vote
// decides, one that has a copy for itself. It returns the node's boot.
func mayLeave(what string, v core.View, node ids.ID) (boot string, err error) {
	for _, n := range v.Nodes {
		switch {
		case n.ID != node:
		case !n.Up:
			return "", errs.New(errs.Conflict, "%s: it does not answer", what).WithHint("it is down already, or cannot be reached: `roseau cluster status`")
		case n.Needed != "":
			return "", errs.New(errs.Conflict, "%s: %s", what, n.Needed).WithHint("bring the other voters back; with two nodes, add a witness: `roseau witness add`")
		default:
			boot = n.Boot
		}
	}
	if why, never := core.Unsafe(v.Volumes, v.Nodes, node); never {
		return "", errs.New(errs.Conflict, "%s: %s", what, why).
			WithHint("delete the volume, give it copies on other nodes, or switch the whole cluster off: `roseau cluster shutdown --confirm NAME`")
	}
	return boot, nil
}

// Restart orders the rolling restart of all nodes.
func (s *Service) Restart(ctx context.Context, dry bool) (*model.Task, error) {
	const what = "restart cluster"
	rec, err := store.GetRecord[core.Plan](ctx, s.env.Store, records.PlanKey)
	if err != nil {
		return nil, err
	}
	if rec.Revision != 0 && rec.Value.Kind == core.Restart && !dry {
		return store.GetID[model.Task](ctx, s.env.Store, rec.Value.Task) // it goes on; who asks again watches it
	}
	if err := s.free(ctx, what); err != nil {
		return nil, err
	}
	v, _, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	plan := core.Plan{Kind: core.Restart, Asked: s.env.Clock.Wall().UTC()}
	var lines []string
	for _, n := range s.World.Nodes.List() {
		if err := others(what+": node "+n.Name, v, n.ID); err != nil {
			return nil, err
		}
		if _, err := mayLeave(what+": node "+n.Name, v, n.ID); err != nil {
			return nil, err
		}
		moves, err := s.moves(what+": node "+n.Name, n.ID)
		if err != nil {
			return nil, err
		}
		plan.Nodes = append(plan.Nodes, core.Member{ID: n.ID, Name: n.Name, State: core.Waits})
		lines = append(lines, fmt.Sprintf("%s: %d VMs move away and back", n.Name, len(moves)))
	}
	if dry {
		return api.DryRun("cluster restart", fmt.Sprintf("would restart %d nodes, one at a time", len(plan.Nodes)), lines...), nil
	}
	return s.startPlan(ctx, plan, "cluster restart", "is restarted, one node at a time", nil)
}

// startPlan writes a plan; add adds to its transaction.
func (s *Service) startPlan(ctx context.Context, plan core.Plan, action, text string, add func(*store.Tx) error) (*model.Task, error) {
	t, err := s.env.Tasks.CreateShared(ctx, action)
	if err != nil {
		return nil, err
	}
	plan.Task = t.ID
	return s.begun(ctx, t, "cluster", text, func() error {
		tx := store.NewTx().If(records.PlanKey, 0).Put(records.PlanKey, plan)
		if add != nil {
			if err := add(tx); err != nil {
				return err
			}
		}
		_, err := s.env.Store.Commit(ctx, tx)
		return err
	})
}

// Shutdown orders every VM and every node off.
func (s *Service) Shutdown(ctx context.Context, req ShutdownRequest, dry bool) (*model.Task, error) {
	const what = "shut down cluster"
	if err := s.free(ctx, what); err != nil {
		return nil, err
	}
	v, _, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	plan := core.Plan{Kind: core.Shutdown, Phase: core.Guests, Asked: s.env.Clock.Wall().UTC(), VMs: len(v.VMs)}
	for _, n := range v.Nodes {
		if n.Order != nil && n.Order.Phase != model.OrderAway {
			return nil, errs.New(errs.Conflict, "%s: node %s is to %s", what, n.Name, n.Order.Verb.Words()).WithHint("wait for it, or `roseau node undrain %s`", n.Name)
		}
		if n.Heard && n.Boot == "" {
			return nil, errs.New(errs.Unavailable, "%s: node %s lives, but its session is lost", what, n.Name).WithHint("ask again when `roseau cluster status` shows it alive")
		}
		plan.Nodes = append(plan.Nodes, core.Member{ID: n.ID, Name: n.Name, Boot: n.Boot, State: core.Waits})
	}
	if dry {
		return api.DryRun("cluster shutdown", fmt.Sprintf("would power %d VMs off, then %d nodes", plan.VMs, len(plan.Nodes))), nil
	}
	if req.Confirm != s.ClusterName {
		return nil, errs.New(errs.Invalid, "%s: confirm is %q, want the cluster's name, %q", what, req.Confirm, s.ClusterName).WithHint("say --confirm %s: every VM and every node goes off", s.ClusterName)
	}
	return s.startPlan(ctx, plan, "cluster shutdown", "shuts down: its machines are powered off", func(tx *store.Tx) error { return s.noteGuests(ctx, tx, v) })
}

// noteGuests remembers where each VM ran, so that it starts there again.
func (s *Service) noteGuests(ctx context.Context, tx *store.Tx, v core.View) error {
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return err
	}
	have := map[ids.ID]bool{}
	for _, n := range nodes {
		for _, g := range n.Spec.Guests {
			have[g] = true
		}
	}
	for _, n := range nodes {
		before := len(n.Spec.Guests)
		for _, vm := range v.VMs {
			if vm.Node == n.ID && !have[vm.ID] {
				n.Spec.Guests = append(n.Spec.Guests, vm.ID)
			}
		}
		if len(n.Spec.Guests) > before {
			if err := store.TxPut(tx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// Cancel calls a plan off. A node that was told to go down still does, and comes
// back; a shutdown whose nodes go off already is past that.
func (s *Service) Cancel(ctx context.Context, kind core.PlanKind) error {
	what := fmt.Sprintf("cancel %s of cluster", kind)
	for range 5 {
		rec, err := store.GetRecord[core.Plan](ctx, s.env.Store, records.PlanKey)
		if err != nil {
			return err
		}
		switch {
		case rec.Revision == 0 || rec.Value.Kind != kind:
			return errs.New(errs.Conflict, "%s: there is none", what).WithHint("`roseau task list` shows what goes on")
		case rec.Value.Phase == core.Off:
			return errs.New(errs.Conflict, "%s: the nodes go off already", what).WithHint("switch them on again; the VMs that ran start by themselves")
		case rec.Value.Cancel:
			return nil
		}
		rec.Value.Cancel = true
		_, err = s.env.Store.Commit(ctx, store.NewTx().If(records.PlanKey, rec.Revision).Put(records.PlanKey, rec.Value))
		if err == nil || !errors.Is(err, errs.Conflict) {
			return err
		}
	}
	return errs.New(errs.Conflict, "%s: it changes all the time", what).WithHint("ask again")
}
