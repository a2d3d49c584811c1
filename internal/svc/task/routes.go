package task

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
)

// Routes adds the operations on tasks.
func (r *Runner) Routes(rt *api.Router) {
	huma.Register(rt, api.Op("list-tasks", http.MethodGet, "/v1/tasks", "List tasks, newest first"),
		func(ctx context.Context, _ *struct{}) (*api.Body[[]*model.Task], error) {
			ts, err := store.List[model.Task](ctx, r.s.Relaxed())
			slices.SortFunc(ts, func(a, b *model.Task) int { return b.Created.Compare(a.Created) })
			return api.OK(ts, err)
		})
	huma.Register(rt, api.Op("show-task", http.MethodGet, "/v1/tasks/{ref}", "Show a task"),
		func(ctx context.Context, in *api.Ref) (*api.Body[*model.Task], error) {
			return api.OK(store.Get[model.Task](ctx, r.s.Relaxed(), in.Ref))
		})
	cancel := api.Op("cancel-task", http.MethodPost, "/v1/tasks/{ref}/cancel", "Call a task off: it undoes what it made half, and ends")
	cancel.Middlewares = huma.Middlewares{rt.OnNode(r.nodeOf)}
	huma.Register(rt, cancel, func(ctx context.Context, in *api.Ref) (*api.Body[*model.Task], error) {
		return api.OK(r.CancelRef(ctx, in.Ref))
	})
	op := api.Op("watch-task", http.MethodGet, "/v1/tasks/{ref}/watch", "Follow a task to its end, one JSON value a line")
	huma.Register(rt, op, func(ctx context.Context, in *api.Ref) (*huma.StreamResponse, error) {
		t, err := store.Get[model.Task](ctx, r.s, in.Ref)
		if err != nil {
			return nil, err
		}
		return api.Stream(func(ctx context.Context, write func(any) error) error { return r.watch(ctx, t, write) }), nil
	})
}

// nodeOf is the node whose daemon carries a task out; zero: none does.
func (r *Runner) nodeOf(ctx context.Context, path, _ func(string) string) (ids.ID, error) {
	t, err := store.Get[model.Task](ctx, r.s, path("ref"))
	if err != nil || t.Node == "" || t.State != model.TaskRunning {
		return ids.ID{}, err
	}
	n, err := store.Get[model.Node](ctx, r.s, t.Node)
	if err != nil {
		return ids.ID{}, fmt.Errorf("cancel task %s: %w", t.Name, err)
	}
	return n.ID, nil
}

// CancelRef tells a task of this node to end and returns it; it ends a moment
// later. What the leader conducts is called off by a command of its own.
func (r *Runner) CancelRef(ctx context.Context, ref string) (*model.Task, error) {
	t, err := store.Get[model.Task](ctx, r.s, ref)
	switch {
	case err != nil:
		return nil, err
	case t.State != model.TaskRunning:
		return nil, errs.New(errs.Conflict, "cancel task %s: it is %s", t.Name, t.State)
	case t.Node == "":
		return nil, errs.New(errs.Conflict, "cancel task %s: %q is conducted by the cluster, not by a task", t.Name, t.Action).
			WithHint("`roseau node undrain NODE`, `roseau cluster restart --cancel` or `roseau cluster shutdown --cancel`")
	case !r.Cancel(t.ID):
		return nil, errs.New(errs.Unavailable, "cancel task %s: node %s does not carry it out any more", t.Name, t.Node).WithHint("`roseau task show %s`", t.Name)
	}
	return t, nil
}

// watch writes each state of a task until it ended or ctx ends.
func (r *Runner) watch(ctx context.Context, t *model.Task, write func(any) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := func(t *model.Task) {
		if err := write(t); err != nil {
			cancel(err)
		} else if t.State != model.TaskRunning {
			cancel(errEnded)
		}
	}
	err := store.FollowOne(ctx, r.s, t.ID, done, func() {
		cancel(errs.New(errs.NotFound, "watch task %s: it was dropped", t.Name))
	})
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}
