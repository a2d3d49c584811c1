package member

import (
	"context"
	"fmt"
	"strings"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/core/repl"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
)

// RemoveNode takes a node out of the cluster. It is refused while VMs are placed
// on it or disks of it hold data, and for the last voter; force skips the first
// two for a node without a session: a machine that is gone for good.
func (m *Server) RemoveNode(ctx context.Context, ref string, force, dryRun bool) (*model.Task, error) {
	n, err := store.Get[model.Node](ctx, m.Store, ref)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*model.Task, error) { return nil, fmt.Errorf("remove node %s: %w", n.Name, err) }
	alive := m.Sessions.Alive(n.ID)
	if force && alive {
		return fail(errs.New(errs.Conflict, "it is alive; --force is for machines that are gone for good").WithHint("remove it without --force, or switch it off first"))
	}
	if !force {
		if err := m.inUse(ctx, n); err != nil {
			return fail(err)
		}
	}
	if n.ID == m.Config.Node {
		return fail(errs.New(errs.Conflict, "it is the node that answers").WithHint("ask another node"))
	}
	if dryRun {
		return api.DryRun("node remove "+n.Name, fmt.Sprintf("would remove node %s (alive: %v, voter: %v)", n.Name, alive, n.Spec.Voter)), nil
	}
	return m.Tasks.Start(ctx, "node remove "+n.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return m.remove(ctx, h, n)
	})
}

func (m *Server) remove(ctx context.Context, h *task.Handle, n *model.Node) (string, error) {
	h.Phase("leaving etcd")
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return "", err
	}
	for _, mem := range members {
		if ownsMember(n, mem) {
			if err := etcd.Remove(ctx, m.Store.Client(), mem.ID); err != nil {
				return "", err
			}
		}
	}
	h.Phase("forgetting the node")
	if err := m.forget(ctx, n); err != nil {
		return "", err
	}
	m.Events.Emit(event.Warn, "node "+n.Name, "removed from the cluster")
	return "node " + n.Name + " removed", nil
}

// inUse says what stands in the way of removing a node.
func (m *Server) inUse(ctx context.Context, n *model.Node) error {
	var vms, disks []string
	places, err := store.ListRecords[repl.Placement](ctx, m.Store, "/s/vm/")
	if err != nil {
		return err
	}
	all, err := store.List[model.VM](ctx, m.Store)
	if err != nil {
		return err
	}
	for _, vm := range all {
		p := places["/s/vm/"+vm.ID.String()+"/placement"].Value
		if p.Node == n.ID && p.State != "stopped" {
			vms = append(vms, vm.Name)
		}
	}
	ds, err := store.List[model.Disk](ctx, m.Store)
	if err != nil {
		return err
	}
	for _, d := range ds {
		if d.Spec.Node == n.ID && d.Status.State != model.DiskRetired {
			disks = append(disks, d.Name)
		}
	}
	if len(vms) > 0 {
		return errs.New(errs.Conflict, "VMs run on it: %s", strings.Join(vms, ", ")).WithHint("move them first: `roseau vm migrate VM`")
	}
	if len(disks) > 0 {
		return errs.New(errs.Conflict, "its disks are in use: %s", strings.Join(disks, ", ")).
			WithHint("retire them first: `roseau disk retire DISK`; if the machine is gone for good: --force")
	}
	return nil
}
