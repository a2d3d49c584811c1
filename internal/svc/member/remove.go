package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/core/quorum"
	"roseau/internal/core/repl"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
	"roseau/internal/svc/voters"
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
	if err := m.mayLeave(ctx, n); err != nil {
		return fail(err)
	}
	if dryRun {
		return api.DryRun("node remove "+n.Name, fmt.Sprintf("would remove node %s (alive: %v, voter: %v)", n.Name, alive, n.Spec.Voter)), nil
	}
	return m.Tasks.Start(ctx, "node remove "+n.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return m.remove(ctx, h, n)
	})
}

// mayLeave refuses what would cost the majority.
func (m *Server) mayLeave(ctx context.Context, n *model.Node) error {
	v, _, err := m.look(ctx, m.Store)
	if err != nil {
		return err
	}
	for i := range v.Nodes {
		v.Nodes[i].Leaving = v.Nodes[i].Leaving || v.Nodes[i].ID == n.ID
	}
	for _, mem := range v.Members {
		if mem.Owner == n.ID && !quorum.Permits(v, quorum.Action{Do: quorum.Remove, Member: mem.ID}) {
			return errs.New(errs.Conflict, "its vote is needed: without it there is no majority").WithHint("bring the other voters back first: `roseau cluster status` names them")
		}
	}
	return nil
}

const (
	leaveTimeout = 2 * time.Minute
	leavePoll    = 200 * time.Millisecond
)

// remove marks the node, waits until the manager of the voters has replaced or
// removed its vote, and forgets it.
func (m *Server) remove(ctx context.Context, h *task.Handle, n *model.Node) (string, error) {
	h.Phase("giving its vote away")
	mark := func(ctx context.Context, leaving bool) error {
		_, err := store.Update(ctx, m.Store, n.ID, func(o *model.Node) error {
			o.Deleting = leaving
			return nil
		})
		return err
	}
	if err := mark(ctx, true); err != nil {
		return "", err
	}
	if err := m.waitVoteless(ctx, n); err != nil {
		bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return "", errors.Join(err, mark(bctx, false))
	}
	h.Phase("forgetting the node")
	if err := m.forget(ctx, n); err != nil {
		return "", err
	}
	m.Events.Emit(event.Warn, "node "+n.Name, "removed from the cluster")
	return "node " + n.Name + " removed", nil
}

// waitVoteless waits until no member of etcd is the node's.
func (m *Server) waitVoteless(ctx context.Context, n *model.Node) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for {
		members, err := etcd.Members(ctx, m.Store.Client())
		if err == nil && !slices.ContainsFunc(members, func(mem etcd.Member) bool { return ownsMember(n, mem) }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "remove node %s: its vote was not given away within %s: %w", n.Name, leaveTimeout, errors.Join(err, context.Cause(ctx))).
				WithHint("`roseau cluster status` says which voters are up; try again when they are")
		case <-tick.C:
		}
	}
}

func ownsMember(n *model.Node, mem etcd.Member) bool {
	return mem.Node == n.ID || mem.Name == "" && slices.Contains(mem.PeerURLs, voters.NodePeer(n))
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
