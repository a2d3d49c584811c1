package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
	"roseau/internal/svc/volume"
)

// SnapshotInfo is a snapshot of a VM: one of each of its volumes, of the same
// moment.
type SnapshotInfo struct {
	Name    string    `json:"name"`
	ID      ids.ID    `json:"id"` // the group of the volumes' snapshots
	Created time.Time `json:"created"`
	Volumes []string  `json:"volumes"`
	// Missing lists volumes of the VM that have no part in it: they were added
	// later, or their part was deleted. Such a snapshot cannot be rolled back to.
	Missing []string `json:"missing,omitempty"`

	parts []part
}

// part is the snapshot of one volume.
type part struct {
	vol    *model.Volume
	number uint32
}

// SnapshotRequest is the body of POST /v1/vms/{ref}/snapshots.
type SnapshotRequest struct {
	Name string `json:"name" doc:"unique in the VM and in its volumes" maxLength:"63"`
}

// SnapshotRef is the input of operations on a VM's snapshot.
type SnapshotRef struct {
	Ref      string `path:"ref" doc:"VM: name or id" maxLength:"63"`
	Snapshot string `path:"snapshot" doc:"name of the snapshot" maxLength:"63"`
}

func (s *Service) snapshotRoutes(r *api.Router) {
	huma.Register(r, api.Op("list-vm-snapshots", "GET", "/v1/vms/{ref}/snapshots", "List the snapshots of a VM"), func(ctx context.Context, in *api.Ref) (*api.Body[[]SnapshotInfo], error) {
		return api.OK(s.Snapshots(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-vm-snapshot", "POST", "/v1/vms/{ref}/snapshots", "Take a snapshot of all volumes of a VM at one moment"), func(ctx context.Context, in *struct {
		api.Ref
		Body SnapshotRequest
	}) (*api.Body[*SnapshotInfo], error) {
		return api.OK(s.TakeSnapshot(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("delete-vm-snapshot", "DELETE", "/v1/vms/{ref}/snapshots/{snapshot}", "Delete a snapshot of a VM"), func(ctx context.Context, in *SnapshotRef) (*struct{}, error) {
		return nil, s.DeleteSnapshot(ctx, in.Ref, in.Snapshot)
	})
	huma.Register(r, api.Op("rollback-vm-snapshot", "POST", "/v1/vms/{ref}/snapshots/{snapshot}/rollback", "Take the volumes of a stopped VM back to a snapshot; what was written since is lost"), func(ctx context.Context, in *SnapshotRef) (*api.AcceptTask, error) {
		return api.Accepted(s.StartRollback(ctx, in.Ref, in.Snapshot))
	})
}

// Snapshots lists the snapshots of a VM, oldest first.
func (s *Service) Snapshots(ctx context.Context, ref string) ([]SnapshotInfo, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.snapshotsOf(ctx, vm)
}

func (s *Service) snapshotsOf(ctx context.Context, vm *model.VM) ([]SnapshotInfo, error) {
	out := []SnapshotInfo{}
	var vols []*model.Volume
	for _, id := range volumeIDs(vm) {
		v, err := store.GetID[model.Volume](ctx, s.env.Store, id)
		if err != nil {
			return nil, err
		}
		rec, err := records.Volume(ctx, s.env.Store, id)
		if err != nil {
			return nil, err
		}
		vols = append(vols, v)
		for _, n := range rec.Cfg.Snap.List {
			if n.Group.IsZero() {
				continue // of this volume alone
			}
			i := slices.IndexFunc(out, func(x SnapshotInfo) bool { return x.ID == n.Group })
			if i < 0 {
				i = len(out)
				out = append(out, SnapshotInfo{Name: n.Name, ID: n.Group, Created: time.Unix(n.CreatedUnix, 0).UTC()})
			}
			out[i].parts = append(out[i].parts, part{v, n.Number})
			out[i].Volumes = append(out[i].Volumes, v.Name)
		}
	}
	for i := range out {
		for _, v := range vols {
			if !slices.Contains(out[i].Volumes, v.Name) {
				out[i].Missing = append(out[i].Missing, v.Name)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b SnapshotInfo) int { return a.Created.Compare(b.Created) })
	return out, nil
}

func (s *Service) findSnapshot(ctx context.Context, vm *model.VM, name string) (*SnapshotInfo, error) {
	list, err := s.snapshotsOf(ctx, vm)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Name == name {
			return &list[i], nil
		}
	}
	return nil, errs.New(errs.NotFound, "read snapshot %q of vm %s: not found", name, vm.Name).WithHint("`roseau vm snapshot list %s`", vm.Name)
}

// TakeSnapshot takes a snapshot of all volumes of a VM at one moment, and returns
// when it exists. It is what a disk is after a power failure at that moment. A
// running VM's guard takes it; the volumes of a stopped one do not change between
// the first and the last.
func (s *Service) TakeSnapshot(ctx context.Context, ref string, req SnapshotRequest) (*SnapshotInfo, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	if err := volume.CheckSnapshotName("vm "+vm.Name, req.Name); err != nil {
		return nil, err
	}
	if _, err := s.findSnapshot(ctx, vm, req.Name); err == nil {
		return nil, errs.New(errs.Conflict, "snapshot vm %s: it has a snapshot %q", vm.Name, req.Name).WithHint("`roseau vm snapshot list %s`", vm.Name)
	} else if !errors.Is(err, errs.NotFound) {
		return nil, err
	}
	group := ids.New()
	snap := repl.Snapshot{ID: group, Name: req.Name, CreatedUnix: s.env.Clock.Wall().Unix(), Group: group}
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return nil, err
	}
	if p.Value.Node.IsZero() {
		err = s.snapshotStopped(ctx, vm, p.Revision, snap)
	} else {
		err = s.onNode(ctx, vm, "/snapshot", repl.SnapshotOrder{Snapshot: snap})
	}
	if err != nil {
		return nil, errors.Join(err, s.dropParts(context.WithoutCancel(ctx), vm, group))
	}
	info, err := s.findSnapshot(ctx, vm, req.Name)
	if err != nil {
		return nil, err
	}
	s.env.Events.Emit("info", "vm "+vm.Name, fmt.Sprintf("snapshot %s taken", req.Name))
	return info, nil
}

// snapshotStopped takes one volume's snapshot after the other, and demands that
// the VM was not started meanwhile.
func (s *Service) snapshotStopped(ctx context.Context, vm *model.VM, placed int64, snap repl.Snapshot) error {
	var list []volume.Restore
	for _, id := range volumeIDs(vm) {
		v, err := store.GetID[model.Volume](ctx, s.env.Store, id)
		if err != nil {
			return err
		}
		list = append(list, volume.Restore{Volume: v})
	}
	if err := s.volumes.CheckUnused(ctx, "snapshot", list); err != nil {
		return err
	}
	for _, r := range list {
		if err := s.volumes.OrderSnapshot(ctx, r.Volume, repl.SnapshotOrder{Volume: r.Volume.ID, Snapshot: snap}); err != nil {
			return err
		}
	}
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err == nil && p.Revision != placed {
		err = errs.New(errs.Conflict, "snapshot vm %s: it was started meanwhile", vm.Name).WithHint("take the snapshot again")
	}
	return err
}

// dropParts deletes what an attempt that failed has left.
func (s *Service) dropParts(ctx context.Context, vm *model.VM, group ids.ID) error {
	list, err := s.snapshotsOf(ctx, vm)
	if err != nil {
		return err
	}
	var all error
	for _, n := range list {
		if n.ID == group {
			all = errors.Join(all, s.deleteParts(ctx, &n))
		}
	}
	return all
}

func (s *Service) deleteParts(ctx context.Context, n *SnapshotInfo) error {
	var all error
	for _, p := range n.parts {
		err := s.volumes.OrderSnapshot(ctx, p.vol, repl.SnapshotOrder{Volume: p.vol.ID, Delete: p.number})
		if err != nil && !errors.Is(err, errs.NotFound) {
			all = errors.Join(all, fmt.Errorf("delete snapshot %s of volume %s: %w", n.Name, p.vol.Name, err))
		}
	}
	return all
}

// DeleteSnapshot deletes a snapshot of a VM on all of its volumes. What a failure
// leaves of it is shown by Snapshots, and can be deleted again.
func (s *Service) DeleteSnapshot(ctx context.Context, ref, name string) error {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return err
	}
	n, err := s.findSnapshot(ctx, vm, name)
	if err != nil {
		return err
	}
	for _, p := range n.parts {
		if err := s.volumes.CheckUncloned(ctx, "delete snapshot of", p.vol, p.number); err != nil {
			return fmt.Errorf("delete snapshot %s of vm %s: %w", name, vm.Name, err)
		}
	}
	if err := s.deleteParts(ctx, n); err != nil {
		return err
	}
	s.env.Events.Emit("info", "vm "+vm.Name, fmt.Sprintf("snapshot %s deleted", name))
	return nil
}

// StartRollback starts the task that takes a stopped VM back to a snapshot.
func (s *Service) StartRollback(ctx context.Context, ref, name string) (*model.Task, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	n, err := s.findSnapshot(ctx, vm, name)
	if err != nil {
		return nil, err
	}
	if len(n.Missing) > 0 {
		return nil, errs.New(errs.Conflict, "roll back vm %s: volume %s has no part in snapshot %s", vm.Name, n.Missing[0], name).
			WithHint("a volume alone can go back: `roseau volume snapshot rollback`")
	}
	var list []volume.Restore
	for _, p := range n.parts {
		list = append(list, volume.Restore{Volume: p.vol, Number: p.number})
	}
	if err := s.volumes.CheckUnused(ctx, "roll back", list); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "vm snapshot rollback "+vm.Name+" "+name, func(ctx context.Context, h *task.Handle) (string, error) {
		if err := s.volumes.Rollback(ctx, h, vm.ID, list); err != nil {
			return "", err
		}
		s.env.Events.Emit("warn", "vm "+vm.Name, fmt.Sprintf("taken back to snapshot %s", name))
		return fmt.Sprintf("vm %s is as in snapshot %s", vm.Name, name), nil
	})
}
