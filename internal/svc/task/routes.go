package task

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
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
	op := api.Op("watch-task", http.MethodGet, "/v1/tasks/{ref}/watch", "Follow a task to its end, one JSON value a line")
	huma.Register(rt, op, func(ctx context.Context, in *api.Ref) (*huma.StreamResponse, error) {
		t, err := store.Get[model.Task](ctx, r.s, in.Ref)
		if err != nil {
			return nil, err
		}
		return api.Stream(func(ctx context.Context, write func(any) error) error { return r.watch(ctx, t, write) }), nil
	})
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
