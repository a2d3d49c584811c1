package volume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// ReplaceNodeRequest is the body of POST /v1/nodes/{ref}/replace.
type ReplaceNodeRequest struct {
	With string `json:"with" doc:"name or id of the new node; it has joined and its disks are claimed"`
}

// replacePoll is how often the task looks how far the rebuild is.
const replacePoll = time.Second

// replacement is what a node's replacement is about.
type replacement struct {
	old, with *model.Node
	disks     []ids.ID      // of old
	join      []*model.Disk // free disks of the new node, and the pool that they join
	pool      *model.Pool
}

// StartReplaceNode rebuilds what a node that is gone for good held, on the new
// node first and wherever a failure domain is free, and then removes the old one;
// its vote goes to another node by itself. Repeated, it goes on where it was.
func (s *Service) StartReplaceNode(ctx context.Context, ref string, req ReplaceNodeRequest, dryRun bool) (*model.Task, error) {
	r, err := s.checkReplace(ctx, ref, req)
	if err != nil {
		return nil, err
	}
	action := fmt.Sprintf("node replace %s %s", r.old.Name, r.with.Name)
	if dryRun {
		left, err := s.segmentsOn(ctx, r.disks)
		if err != nil {
			return nil, err
		}
		return api.DryRun(action, fmt.Sprintf("would add %d disks of %s, rebuild %d segments that %s held, and remove %s", len(r.join), r.with.Name, left, r.old.Name, r.old.Name)), nil
	}
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		return s.replaceNode(ctx, h, r)
	})
}

func (s *Service) checkReplace(ctx context.Context, ref string, req ReplaceNodeRequest) (*replacement, error) {
	old, err := store.Get[model.Node](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	fail := func(kind error, hint, format string, args ...any) (*replacement, error) {
		return nil, errs.New(kind, "replace node %s: %w", old.Name, fmt.Errorf(format, args...)).WithHint("%s", hint)
	}
	with, err := store.Get[model.Node](ctx, s.env.Store, req.With)
	if err != nil {
		return nil, err
	}
	alive, err := store.AliveNodes(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	_, oldUp := alive[old.ID]
	_, newUp := alive[with.ID]
	switch {
	case old.ID == with.ID:
		return fail(errs.Invalid, "name the new machine", "it cannot replace itself")
	case oldUp:
		return fail(errs.Conflict, "switch it off if it is to go; a node that lives is emptied with `roseau disk retire`", "it is alive")
	case !newUp:
		return fail(errs.Conflict, "`roseau node list`", "node %s is not alive", with.Name)
	case !old.Spec.ReplacedBy.IsZero() && old.Spec.ReplacedBy != with.ID:
		return fail(errs.Conflict, "name that one, or remove it first", "another node takes its place already")
	}
	r := &replacement{old: old, with: with}
	disks, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	var pools []ids.ID
	has := false
	for _, d := range disks {
		switch {
		case d.Spec.Node == old.ID:
			r.disks = append(r.disks, d.ID)
			if !d.Spec.Pool.IsZero() && !slices.Contains(pools, d.Spec.Pool) {
				pools = append(pools, d.Spec.Pool)
			}
		case d.Spec.Node == with.ID && d.Status.State == model.DiskActive && d.Spec.Pool.IsZero():
			r.join = append(r.join, d)
		case d.Spec.Node == with.ID && d.Status.State == model.DiskActive:
			has = true
		}
	}
	if len(pools) > 0 && len(r.join) == 0 && !has {
		return fail(errs.Conflict, fmt.Sprintf("`roseau disk list`, `roseau disk claim %s/PATH`", with.Name), "node %s has no claimed disk to rebuild on", with.Name)
	}
	if len(r.join) > 0 && len(pools) > 1 {
		return fail(errs.Conflict, "`roseau pool add POOL DISK...` says it", "its disks are in %d pools: say which disks of %s join which", len(pools), with.Name)
	}
	if len(r.join) > 0 && len(pools) == 1 {
		if r.pool, err = store.GetID[model.Pool](ctx, s.env.Store, pools[0]); err != nil {
			return nil, err
		}
	} else {
		r.join = nil
	}
	return r, nil
}

func (s *Service) replaceNode(ctx context.Context, h *task.Handle, r *replacement) (string, error) {
	if err := s.beginReplace(ctx, r); err != nil {
		return "", err
	}
	s.env.Events.Emit("warn", "node "+r.old.Name, "is gone for good; "+r.with.Name+" takes its place")
	total, err := s.segmentsOn(ctx, r.disks)
	if err != nil {
		return "", err
	}
	h.Logf("%d segments to be rebuilt", total)
	for left := total; left > 0; {
		h.Phase("rebuilds what %s held: %d of %d segments left", r.old.Name, left, total)
		h.Progress(int64(total-left), int64(total), "items")
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(replacePoll):
		}
		n, err := s.segmentsOn(ctx, r.disks)
		if err != nil {
			if errors.Is(err, errs.Unavailable) {
				continue
			}
			return "", err
		}
		left = n
	}
	h.Progress(int64(total), int64(total), "items")
	h.Phase("removes %s", r.old.Name)
	if err := s.endReplace(ctx, r); err != nil {
		return "", err
	}
	return fmt.Sprintf("node %s took the place of %s: %d segments rebuilt, %s removed", r.with.Name, r.old.Name, total, r.old.Name), nil
}

// beginReplace makes the new node ready and tells the planner of repairs not to
// wait for the old one.
func (s *Service) beginReplace(ctx context.Context, r *replacement) error {
	tx := store.NewTx()
	for _, d := range r.join {
		d.Spec.Pool = r.pool.ID
		if err := store.TxPut(tx, d); err != nil {
			return err
		}
	}
	if len(r.join) > 0 {
		if _, err := s.env.Store.Commit(ctx, tx); err != nil {
			return fmt.Errorf("add the disks of node %s to pool %s: %w", r.with.Name, r.pool.Name, err)
		}
	}
	_, err := store.Update(ctx, s.env.Store, r.with.ID, func(n *model.Node) error {
		if n.Spec.Site == "" && n.Spec.Rack == "" && n.Spec.Chassis == "" {
			n.Spec.Site, n.Spec.Rack, n.Spec.Chassis = r.old.Spec.Site, r.old.Spec.Rack, r.old.Spec.Chassis
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = store.Update(ctx, s.env.Store, r.old.ID, func(n *model.Node) error { n.Spec.ReplacedBy = r.with.ID; return nil })
	return err
}

// segmentsOn counts the copies that lie on disks, in sync or not.
func (s *Service) segmentsOn(ctx context.Context, disks []ids.ID) (int, error) {
	vols, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, v := range vols {
		if v.Cfg.State != repl.VolumeLive {
			continue
		}
		for k := range v.Seg.Map {
			for _, d := range v.Seg.Row(k) {
				if slices.Contains(disks, d) {
					n++
				}
			}
		}
		for d := range v.Own.Out {
			if slices.Contains(disks, d) && !slices.Contains(v.Seg.Disks, d) {
				n++
			}
		}
	}
	// Copies on the new disks must be in sync before the old machine is forgotten.
	if n == 0 {
		for _, v := range vols {
			for _, o := range v.Own.Out {
				if o.Reason == repl.OutRebuild {
					n += max(1, len(o.Fill))
				}
			}
		}
	}
	return n, nil
}

// endReplace forgets the disks of the old node, which hold nothing any more, and
// the node.
func (s *Service) endReplace(ctx context.Context, r *replacement) error {
	for _, id := range r.disks {
		d, err := store.GetID[model.Disk](ctx, s.env.Store, id)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		tx := store.NewTx()
		store.TxDelete(tx, d)
		tx.Delete(records.DiskKey(id))
		if _, err := s.env.Store.Commit(ctx, tx); err != nil {
			return fmt.Errorf("forget disk %s: %w", d.Name, err)
		}
	}
	var t model.Task
	if err := s.env.Ask(ctx, s.env.Node, http.MethodDelete, "/v1/nodes/"+r.old.ID.String()+"?force=true", nil, &t); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("remove node %s: %w", r.old.Name, err)
	}
	for {
		_, err := store.GetID[model.Node](ctx, s.env.Store, r.old.ID)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		now, terr := store.GetID[model.Task](ctx, s.env.Store, t.ID)
		if terr == nil && now.State == model.TaskFailed && now.Error != nil {
			return errs.New(errs.Conflict, "remove node %s: %s", r.old.Name, strings.TrimSpace(now.Error.Text)).WithHint("%s", now.Error.Hint)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(replacePoll):
		}
	}
}
