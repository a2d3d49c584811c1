package vm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	core "roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
	"roseau/internal/svc/volume"
)

// Timing of the tasks.
const (
	poll         = 100 * time.Millisecond
	startTimeout = 2 * time.Minute
	stopTimeout  = 3 * time.Minute
	migrateLimit = 30 * time.Minute
	// settle is how long a refusal must stand before a start gives up: the
	// manager sees a node that has just come up within it.
	settle = 3 * time.Second
)

// StartCreate checks a request and starts the task that makes the VM. Whatever
// fails, what was made is taken away again.
func (s *Service) StartCreate(ctx context.Context, req CreateRequest) (*model.Task, error) {
	vm, vols, images, err := s.newVM(ctx, req)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm create "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		made, err := s.makeDisks(ctx, h, vm, vols, images)
		if err == nil {
			err = s.storeVM(ctx, vm, vols)
		}
		if err != nil {
			return "", errors.Join(err, s.undo(ctx, made))
		}
		s.env.Events.Emit("info", "vm "+vm.Name, "created")
		if !req.Start {
			return fmt.Sprintf("vm %s created", vm.Name), nil
		}
		return s.waitRunning(ctx, h, vm)
	})
}

// makeDisks creates the volumes and copies images into them.
func (s *Service) makeDisks(ctx context.Context, h *task.Handle, vm *model.VM, vols []*model.Volume, images []*model.Image) (made []ids.ID, err error) {
	for i, v := range vols {
		if v == nil {
			continue
		}
		h.Phase("creates volume %s", v.Name)
		if _, err := s.volumes.Create(ctx, v, volume.Owner{VM: vm.ID}); err != nil {
			return made, err
		}
		made = append(made, v.ID)
		if images[i] == nil {
			continue
		}
		h.Phase("copies image %s", images[i].Name)
		if err := s.images.CopyTo(ctx, images[i], v, func(done, total int64) { h.Progress(done, total, "bytes") }); err != nil {
			return made, fmt.Errorf("copy image %s into volume %s: %w", images[i].Name, v.Name, err)
		}
	}
	return made, nil
}

// undo deletes volumes of a VM that was not made; the task's context may be over.
func (s *Service) undo(ctx context.Context, made []ids.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var all error
	for _, id := range made {
		all = errors.Join(all, s.volumes.Delete(ctx, id))
	}
	return all
}

// storeVM makes the object and, for volumes that existed, takes them, in one
// transaction.
func (s *Service) storeVM(ctx context.Context, vm *model.VM, vols []*model.Volume) error {
	tx := store.NewTx()
	if err := store.TxCreate(tx, s.env.Store, vm); err != nil {
		return err
	}
	for i, v := range vols {
		if v != nil || i >= len(vm.Spec.Disks) {
			continue
		}
		have, err := store.GetID[model.Volume](ctx, s.env.Store, vm.Spec.Disks[i].ID)
		if err != nil {
			return err
		}
		if have.Spec.VM != "" {
			return errs.New(errs.Conflict, "create vm %s: volume %s was taken by vm %s", vm.Name, have.Name, have.Spec.VM)
		}
		have.Spec.VM = vm.Name
		if err := store.TxPut(tx, have); err != nil {
			return err
		}
	}
	if _, err := s.env.Store.Commit(ctx, tx); err != nil {
		return fmt.Errorf("create vm %s: %w", vm.Name, err)
	}
	return nil
}

// StartStart starts the task that starts a VM.
func (s *Service) StartStart(ctx context.Context, ref string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm start "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		if vm, err = store.Update(ctx, s.env.Store, vm.ID, func(vm *model.VM) error { vm.Spec.Running = true; return nil }); err != nil {
			return "", err
		}
		return s.waitRunning(ctx, h, vm)
	})
}

// waitRunning follows a start. A VM that no node can take is refused with the
// reason and told not to run; one that is waited for (a copy, a guard) is left to
// the manager when the task's time is over.
func (s *Service) waitRunning(ctx context.Context, h *task.Handle, vm *model.VM) (string, error) {
	wctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	begin := s.env.Clock.Now()
	var now *model.VM
	err := svc.WaitFor(wctx, poll, func(ctx context.Context) (bool, error) {
		var err error
		if now, err = store.GetID[model.VM](ctx, s.env.Store, vm.ID); err != nil {
			return false, retriable(err)
		}
		st := now.Status
		old := s.env.Clock.Now().Sub(begin) > settle
		switch {
		case st.State == model.VMRunning || st.State == model.VMPaused:
			p, err := records.Placement(ctx, s.env.Store, vm.ID)
			return err == nil && p.Value.State == core.PlaceRunning, nil
		case st.State == model.VMFailed && old:
			return false, errs.New(errs.Conflict, "start vm %s: %s", vm.Name, st.Reason)
		case st.State == model.VMStopped && st.Reason != "" && old:
			if _, err := store.Update(ctx, s.env.Store, vm.ID, func(vm *model.VM) error { vm.Spec.Running = false; return nil }); err != nil {
				return false, err
			}
			return false, errs.New(errs.Exhausted, "start vm %s: %s", vm.Name, st.Reason).WithHint("free what is missing on a node, then start it again")
		case !now.Spec.Running && old:
			return false, errs.New(errs.Conflict, "start vm %s: it was stopped meanwhile", vm.Name)
		}
		h.Phase("%s %s", st.State, st.Reason)
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return "", errs.New(errs.Unavailable, "start vm %s: still %s after %s: %s", vm.Name, now.Status.State, startTimeout, now.Status.Reason).
			WithHint("it goes on being started; `roseau vm show %s`", vm.Name)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("vm %s runs on %s", vm.Name, now.Status.Node), nil
}

// retriable lets a poll go on while etcd is away.
func retriable(err error) error {
	if errors.Is(err, errs.Unavailable) {
		return nil
	}
	return err
}

// StartStop starts the task that stops a VM.
func (s *Service) StartStop(ctx context.Context, ref string, req StopRequest) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm stop "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		if _, err := store.Update(ctx, s.env.Store, vm.ID, func(vm *model.VM) error { vm.Spec.Running = false; return nil }); err != nil {
			return "", err
		}
		if req.Force {
			if err := s.onNode(ctx, vm, "/kill", nil); err != nil && !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Conflict) {
				return "", err
			}
		}
		h.Phase("waits for the guest to power off")
		return "vm " + vm.Name + " stopped", s.waitStopped(ctx, vm)
	})
}

func (s *Service) waitStopped(ctx context.Context, vm *model.VM) error {
	wctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := svc.WaitFor(wctx, poll, func(ctx context.Context) (bool, error) {
		p, err := records.Placement(ctx, s.env.Store, vm.ID)
		if err != nil {
			return false, retriable(err)
		}
		return p.Value.Node.IsZero(), nil
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return errs.New(errs.Unavailable, "stop vm %s: it still runs after %s", vm.Name, stopTimeout).WithHint("`roseau vm stop --force %s` pulls the plug", vm.Name)
	}
	return err
}

// Screenshot asks the node that runs the VM.
func (s *Service) Screenshot(ctx context.Context, ref string) (*guardctl.Screenshot, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return nil, err
	}
	if p.Value.Node.IsZero() {
		return nil, errs.New(errs.Conflict, "screenshot of vm %s: does not run", vm.Name).WithHint("`roseau vm start %s`", vm.Name)
	}
	shot := new(guardctl.Screenshot)
	return shot, s.env.Ask(ctx, p.Value.Node, http.MethodGet, fmt.Sprintf("/v1/nodes/%s/vms/%s/screenshot", p.Value.Node, vm.ID), nil, shot)
}

// onNode sends a request to the node where the VM is placed.
func (s *Service) onNode(ctx context.Context, vm *model.VM, path string, in any) error {
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return err
	}
	if p.Value.Node.IsZero() {
		return errs.New(errs.Conflict, "vm %s: does not run", vm.Name).WithHint("`roseau vm start %s`", vm.Name)
	}
	return s.env.Ask(ctx, p.Value.Node, http.MethodPost, fmt.Sprintf("/v1/nodes/%s/vms/%s%s", p.Value.Node, vm.ID, path), in, nil)
}

// StartReset presses the reset button.
func (s *Service) StartReset(ctx context.Context, ref string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm reset "+vm.Name, func(ctx context.Context, _ *task.Handle) (string, error) {
		return "vm " + vm.Name + " reset", s.onNode(ctx, vm, "/reset", nil)
	})
}

// StartDelete starts the task that deletes a stopped VM and its volumes.
func (s *Service) StartDelete(ctx context.Context, ref string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	if err := s.checkStopped(ctx, vm); err != nil {
		return nil, err
	}
	for _, id := range volumeIDs(vm) {
		v, err := store.GetID[model.Volume](ctx, s.env.Store, id)
		if err == nil {
			err = s.volumes.CheckUncloned(ctx, "delete", v, 0)
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return nil, fmt.Errorf("delete vm %s: %w", vm.Name, err)
		}
	}
	return s.env.Tasks.Start(ctx, "vm delete "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		// From here on it is not started again: a daemon that dies leaves a VM
		// that can only be deleted.
		if _, err := store.Update(ctx, s.env.Store, vm.ID, func(vm *model.VM) error { vm.Deleting, vm.Spec.Running = true, false; return nil }); err != nil {
			return "", err
		}
		for _, id := range volumeIDs(vm) {
			h.Phase("deletes volume %s", id.Short())
			if err := s.volumes.Delete(ctx, id); err != nil {
				return "", err
			}
		}
		return "vm " + vm.Name + " deleted", s.forget(ctx, vm.ID)
	})
}

func (s *Service) checkStopped(ctx context.Context, vm *model.VM) error {
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return err
	}
	if vm.Spec.Running || !p.Value.Node.IsZero() {
		return errs.New(errs.Conflict, "delete vm %s: it is %s", vm.Name, vm.Status.State).WithHint("`roseau vm stop %s` first", vm.Name)
	}
	return nil
}

// forget removes the object and the placement, and leaves a record of that: a node
// that was cut off may come back with a guard of the VM.
func (s *Service) forget(ctx context.Context, id ids.ID) error {
	_, err := s.env.Store.Transact(ctx, "delete vm "+id.String(), func(tx *store.Tx) error {
		vm, err := store.GetID[model.VM](ctx, s.env.Store, id)
		if err != nil {
			return err
		}
		p, err := records.Placement(ctx, s.env.Store, id)
		if err != nil {
			return err
		}
		tx.If(records.PlacementKey(id), p.Revision)
		if p.Revision != 0 {
			tx.Delete(records.PlacementKey(id))
		}
		store.TxDelete(tx, vm)
		tx.Put(records.VMTombKey(id), records.VMTomb{Name: vm.Name, Deleted: s.env.Clock.Wall()})
		return nil
	})
	if errors.Is(err, errs.NotFound) { // it is forgotten
		return nil
	}
	return err
}

// choice is a decision with the placement that it was made on.
type choice struct {
	vm       *model.VM
	from     string
	decision place.Decision
	placed   records.Placed

	bandwidth size.Bytes // as asked for; 0: no bound
	network   string
	patience  time.Duration // 0: until it is hopeless
}

// ChooseTarget decides where a running VM should move: to the named node or to
// the best one; a refusal names the reason of every node.
func (s *Service) ChooseTarget(ctx context.Context, ref, node string) (*model.VM, *choice, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, nil, err
	}
	rec, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return nil, nil, err
	}
	p := rec.Value
	switch {
	case p.State == core.PlaceMigrating:
		return nil, nil, errs.New(errs.Conflict, "migrate vm %s: it is moving already", vm.Name)
	case p.State != core.PlaceRunning:
		return nil, nil, errs.New(errs.Conflict, "migrate vm %s: it is %s, only a running VM can move", vm.Name, vm.Status.State).WithHint("`roseau vm start %s`", vm.Name)
	}
	view := s.viewer.View(s.env.Clock.Now())
	exclude := map[ids.ID]string{p.Node: "it runs there"}
	if node != "" {
		n, err := store.Get[model.Node](ctx, s.env.Store, node)
		if err != nil {
			return nil, nil, fmt.Errorf("migrate vm %s: %w", vm.Name, err)
		}
		if n.ID == p.Node {
			return nil, nil, errs.New(errs.Conflict, "migrate vm %s: it runs on %s already", vm.Name, n.Name)
		}
		for _, o := range view.Nodes {
			if o.ID != n.ID && o.ID != p.Node {
				exclude[o.ID] = "not asked for"
			}
		}
	}
	d, err := core.Choose(view, vm.ID, exclude, s.env.Clock.Now())
	if err != nil {
		return nil, nil, fmt.Errorf("migrate vm %s: %w", vm.Name, err)
	}
	c := &choice{vm: vm, decision: d, placed: records.Placed{Placement: p, Revision: rec.Revision}}
	if n, err := store.GetID[model.Node](ctx, s.env.Store, p.Node); err == nil {
		c.from = n.Name
	}
	return vm, c, nil
}

// Move starts the migration of a running VM to a node, for the balancer; why is
// told with it.
func (s *Service) Move(ctx context.Context, vm, node, why string) (*model.Task, error) {
	v, c, err := s.ChooseTarget(ctx, vm, node)
	if err != nil {
		return nil, err
	}
	c.decision.Why += "; " + why
	return s.StartMigrate(ctx, v, c)
}

// StartMigrate starts the task of a live migration: it places, the guards do the
// rest, and the task tells.
func (s *Service) StartMigrate(ctx context.Context, vm *model.VM, c *choice) (*model.Task, error) {
	return s.env.Tasks.Start(ctx, "vm migrate "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		h.Logf("%s -> %s", c.from, c.decision.Why)
		p := c.placed.Placement
		next := repl.Placement{Node: p.Node, Attempt: p.Attempt + 1, State: core.PlaceMigrating, Target: c.decision.Node, Run: p.Run,
			MoveRate: int64(c.bandwidth), MoveNetwork: c.network, MovePatienceMS: c.patience.Milliseconds()}
		if err := s.placeInTurn(ctx, h, vm.ID, c.placed.Revision, next); err != nil {
			return "", fmt.Errorf("migrate vm %s: %w", vm.Name, err)
		}
		return s.waitMoved(ctx, h, vm, c, next)
	})
}

// movesPerNode bounds the migrations that a node takes part in: more share one
// wire, and each dirties while the others send. Two daemons that look in the same
// moment may exceed it by one.
const movesPerNode = 2

// placeInTurn places a migration as soon as neither of its nodes has its fill of
// them, on condition that the VM's placement has not changed since revision rev.
func (s *Service) placeInTurn(ctx context.Context, h *task.Handle, vm ids.ID, rev int64, next repl.Placement) error {
	return svc.WaitFor(ctx, poll, func(ctx context.Context) (bool, error) {
		s.turn.Lock() // who looks next sees what is placed here
		defer s.turn.Unlock()
		busy := map[ids.ID]int{}
		for _, p := range s.world.Placements() {
			if p.State == core.PlaceMigrating {
				busy[p.Node]++
				busy[p.Target]++
			}
		}
		if most := max(busy[next.Node], busy[next.Target]); most >= movesPerNode {
			h.Phase("waits: its nodes have %d migrations already", most)
			return false, nil
		}
		key := records.PlacementKey(vm)
		made, err := s.env.Store.Commit(ctx, store.NewTx().If(key, rev).Put(key, next))
		if err == nil {
			s.world.NoteOwnPlacement(vm, records.Placed{Placement: next, Revision: made})
		}
		return true, err
	})
}

// progressText is a migration's progress in one line.
func progressText(m model.MigrationStatus) string {
	text := m.Phase
	if m.Rate > 0 {
		text += fmt.Sprintf(", %s/s", m.Rate)
	}
	if m.DirtyRate > 0 {
		text += fmt.Sprintf(", the guest dirties %s/s", m.DirtyRate)
	}
	if m.Throttle > 0 {
		text += fmt.Sprintf(", slowed down by %d %%", m.Throttle)
	}
	if m.Remaining > 0 {
		text += fmt.Sprintf(", %s left", m.Remaining.Round(time.Second/10))
	}
	return text
}

// StartCancel calls a migration off. What is past the commit point is done.
func (s *Service) StartCancel(ctx context.Context, ref string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	rec, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return nil, err
	}
	if rec.Value.State != core.PlaceMigrating {
		return nil, errs.New(errs.Conflict, "cancel migration of vm %s: it does not move", vm.Name)
	}
	return s.env.Tasks.Start(ctx, "vm migrate --cancel "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		if err := s.cancelMigration(ctx, vm, rec.Value); err != nil {
			return "", err
		}
		h.Phase("waits for the guards")
		text := ""
		err := svc.WaitFor(ctx, poll, func(ctx context.Context) (bool, error) {
			p, err := records.Placement(ctx, s.env.Store, vm.ID)
			if err != nil {
				return false, retriable(err)
			}
			if p.Value.State == core.PlaceMigrating {
				return false, nil
			}
			text = fmt.Sprintf("vm %s stays where it is", vm.Name)
			if p.Value.Node == rec.Value.Target {
				text = fmt.Sprintf("vm %s has moved already", vm.Name)
				return true, nil
			}
			r := s.world.Reports(vm.ID)[p.Value.Node]
			return r.Status.Migration == nil || !r.Status.Migration.Active, nil
		})
		return text, err
	})
}

// StartPress passes pause or resume on to the VM's guard.
func (s *Service) StartPress(ctx context.Context, ref, verb string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm "+verb+" "+vm.Name, func(ctx context.Context, _ *task.Handle) (string, error) {
		return fmt.Sprintf("vm %s %sd", vm.Name, verb), s.onNode(ctx, vm, "/"+verb, nil)
	})
}

// StartReboot powers a VM off, by its button and then the plug, and on again.
func (s *Service) StartReboot(ctx context.Context, ref string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm reboot "+vm.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		run := func(on bool) error {
			var err error
			vm, err = store.Update(ctx, s.env.Store, vm.ID, func(vm *model.VM) error { vm.Spec.Running = on; return nil })
			return err
		}
		if err := run(false); err != nil {
			return "", err
		}
		h.Phase("waits for the guest to power off")
		if err := s.waitStopped(ctx, vm); err != nil {
			return "", err
		}
		if err := run(true); err != nil {
			return "", err
		}
		return s.waitRunning(ctx, h, vm)
	})
}

func (s *Service) waitMoved(ctx context.Context, h *task.Handle, vm *model.VM, c *choice, want repl.Placement) (string, error) {
	wctx, cancel := context.WithTimeout(ctx, migrateLimit)
	defer cancel()
	var m model.MigrationStatus
	moved, told := false, false
	err := svc.WaitFor(wctx, poll, func(ctx context.Context) (bool, error) {
		if r, ok := s.world.Reports(vm.ID)[want.Node]; ok && r.Status.Migration != nil && r.Status.Migration.To == c.decision.Name {
			m = r.Status.Migration.MigrationStatus
			h.Phase("%s", progressText(m))
			if m.Via != "" && !told {
				told = true
				h.Logf("by way of %s", m.Via)
			}
			h.Progress(int64(m.Done), int64(m.Total), "bytes")
		}
		rec, err := records.Placement(ctx, s.env.Store, vm.ID)
		if err != nil {
			return false, retriable(err)
		}
		p := rec.Value
		switch {
		case p.Node == want.Target && p.State == core.PlaceRunning:
			// The guest runs there once its guard says so; then the figures of the
			// source are complete too.
			moved = true
			r := s.world.Reports(vm.ID)[want.Target]
			return r.Status.State == model.VMRunning || r.Status.State == model.VMPaused, nil
		case p.Attempt > want.Attempt || p.State != core.PlaceMigrating:
			text := m.Error
			if text == "" {
				text = s.world.Reports(vm.ID)[want.Node].MigrationError
			}
			if text == "" {
				text = "it was placed otherwise meanwhile, see `roseau events`"
			}
			return false, errs.New(errs.Conflict, "migrate vm %s to %s: %s", vm.Name, c.decision.Name, text).WithHint("it is where it was, or was restarted: `roseau vm show %s`", vm.Name)
		}
		return false, nil
	})
	if err != nil && !moved {
		return "", errors.Join(err, s.cancelMigration(ctx, vm, want))
	}
	if err != nil {
		return "", err
	}
	return s.movedText(ctx, vm, c, m), nil
}

// movedText waits a moment for the source's last figures.
func (s *Service) movedText(ctx context.Context, vm *model.VM, c *choice, m model.MigrationStatus) string {
	wctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = svc.WaitFor(wctx, poll, func(ctx context.Context) (bool, error) {
		now, err := store.GetID[model.VM](ctx, s.env.Store, vm.ID)
		if err == nil && now.Status.Migration != nil && now.Status.Migration.To == c.decision.Name && now.Status.Migration.Downtime > 0 {
			m = *now.Status.Migration
			return true, nil
		}
		return false, nil
	})
	text := fmt.Sprintf("vm %s moved from %s to %s", vm.Name, c.from, c.decision.Name)
	if m.Downtime > 0 {
		text += fmt.Sprintf(", downtime %d ms", m.Downtime.Milliseconds())
	}
	return text
}

// cancelMigration takes the placement back if the task ends first; the guards
// settle it by the placement's revision.
func (s *Service) cancelMigration(ctx context.Context, vm *model.VM, want repl.Placement) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	rec, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil || rec.Value.State != core.PlaceMigrating || rec.Value.Attempt != want.Attempt {
		return nil
	}
	back := repl.Placement{Node: want.Node, Attempt: want.Attempt + 1, State: core.PlaceRunning, Run: rec.Value.Run}
	key := records.PlacementKey(vm.ID)
	if _, err := s.env.Store.Commit(ctx, store.NewTx().If(key, rec.Revision).Put(key, back)); err != nil && !errors.Is(err, errs.Conflict) {
		return err
	}
	return nil
}
