package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/task"
)

// ReplaceRequest is the body of POST /v1/disks/{ref}/replace.
type ReplaceRequest struct {
	New string `json:"new" doc:"name of the claimed disk that takes its place"`
}

func (s *Service) replaceRoutes(r *api.Router) {
	huma.Register(r, api.Op("replace-disk", "POST", "/v1/disks/{ref}/replace", "Put a disk in the place of another"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run" doc:"say what would be done, change nothing"`
		Body   ReplaceRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Replace(ctx, in.Ref.Ref, in.Body, in.DryRun))
	})
}

// Replace starts the task that empties a disk, or makes up for a dead one, with
// another disk in its pool. Repeated, it goes on where it was.
func (s *Service) Replace(ctx context.Context, ref string, req ReplaceRequest, dryRun bool) (*model.Task, error) {
	old, err := store.Get[model.Disk](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	by, err := store.Get[model.Disk](ctx, s.env.Store, req.New)
	if errors.Is(err, errs.NotFound) {
		return nil, errs.New(errs.NotFound, "replace disk %s by %s: no claimed disk has that name", old.Name, req.New).
			WithHint("`roseau disk list` shows the names; a new disk is claimed first: `roseau disk claim NODE/PATH`")
	}
	if err != nil {
		return nil, err
	}
	w, err := s.readWorld(ctx, old)
	if err != nil {
		return nil, err
	}
	alive, err := store.AliveNodes(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	_, up := alive[by.Spec.Node]
	if err := w.mayReplace(old, by, up); err != nil {
		return nil, err
	}
	action := fmt.Sprintf("disk replace %s %s", old.Name, by.Name)
	if dryRun {
		result, steps := w.replacement(old, by)
		return api.DryRun(action, result, steps...), nil
	}
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		if by.Spec.Pool.IsZero() {
			if _, err := store.Update(ctx, s.env.Store, by.ID, func(d *model.Disk) error { d.Spec.Pool = old.Spec.Pool; return nil }); err != nil {
				return "", err
			}
			h.Logf("disk %s is in the pool now", by.Name)
		}
		return s.empty(ctx, h, old, by.ID)
	})
}

// mayReplace is the decision whether by may take the place of old. up: its node is
// alive.
func (w *world) mayReplace(old, by *model.Disk, up bool) error {
	refuse := func(kind error, hint, format string, args ...any) error {
		return errs.New(kind, "replace disk %s by %s: %s", old.Name, by.Name, fmt.Sprintf(format, args...)).WithHint("%s", hint)
	}
	free := max(0, by.Status.Data-by.Status.Used)
	switch {
	case old.ID == by.ID:
		return refuse(errs.Invalid, "name the new disk: `roseau disk list`", "it is the same disk")
	case old.Spec.Pool.IsZero() || w.pool == nil:
		return refuse(errs.Conflict, fmt.Sprintf("it holds nothing: `roseau disk remove %s` gives it back", old.Name), "%s is in no pool", old.Name)
	case by.Spec.Retire:
		return refuse(errs.Conflict, fmt.Sprintf("`roseau disk retire %s --cancel` uses it again", by.Name), "%s is being retired itself", by.Name)
	case by.Status.State != model.DiskActive:
		return refuse(errs.Conflict, fmt.Sprintf("`roseau disk show %s` says why", by.Name), "%s is %s", by.Name, by.Status.State)
	case !up:
		return refuse(errs.Conflict, "`roseau node list`", "the node of %s is down", by.Name)
	case !by.Spec.Pool.IsZero() && by.Spec.Pool != old.Spec.Pool:
		return refuse(errs.Conflict, "name a disk of its pool, or one of no pool: `roseau disk claim` takes a blank one for the cluster", "%s is in another pool", by.Name)
	}
	if need := w.holds(old); free < need {
		return refuse(errs.Exhausted, fmt.Sprintf("take a larger disk, or `roseau disk retire %s`, which uses all of the pool", old.Name), "%s of data, %s are free there", need, free)
	}
	return w.mayRetire(old, by)
}

// replacement says what replacing would do.
func (w *world) replacement(old, by *model.Disk) (result string, steps []string) {
	if by.Spec.Pool.IsZero() {
		steps = append(steps, fmt.Sprintf("%s joins pool %s", by.Name, w.pool.Name))
	}
	there, elsewhere := 0, 0
	for _, v := range w.volumes {
		for k := range v.Seg.Map {
			row := v.Seg.Row(k)
			if !slices.Contains(row, old.ID) {
				continue
			}
			// Another copy of it is on by, or may fail together with it.
			if slices.ContainsFunc(row, func(d ids.ID) bool { return d != old.ID && w.domain[d] == w.domain[by.ID] }) {
				elsewhere++
			} else {
				there++
			}
		}
	}
	verb := "move"
	if dead(old) {
		verb = "rebuild"
	}
	if elsewhere > 0 {
		steps = append(steps, fmt.Sprintf("%d segments go to other disks: another copy of them is in the failure domain of %s", elsewhere, by.Name))
	}
	return fmt.Sprintf("would %s %d segments of %s to %s, and use %s no more", verb, there, old.Name, by.Name, old.Name), steps
}
