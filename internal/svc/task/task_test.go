package task_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/driver/etcd/etcdtest"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
)

func open(t *testing.T) (*store.Store, *slog.Logger) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd")
	}
	return store.New(etcdtest.New(t, 1).Client, clock.System{}), slog.New(slog.DiscardHandler)
}

func wait(t *testing.T, s *store.Store, task *model.Task, cond func(*model.Task) bool) *model.Task {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		got, err := store.GetID[model.Task](t.Context(), s, task.ID)
		if err == nil && cond(got) {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("task stays %+v, %v", got, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func ended(t *model.Task) bool { return t.State != model.TaskRunning }

func TestTasks(t *testing.T) {
	s, log := open(t)
	r := task.NewRunner(t.Context(), s, "n1", clock.System{}, log)
	start := func(fn task.Func) *model.Task {
		t.Helper()
		tk, err := r.Start(t.Context(), "test", fn)
		if err != nil {
			t.Fatal(err)
		}
		return tk
	}
	good := start(func(_ context.Context, h *task.Handle) (string, error) {
		for i := range 150 {
			h.Logf("line %d", i)
		}
		h.Progress(1, 2, "items")
		return "all well", nil
	})
	got := wait(t, s, good, ended)
	if got.State != model.TaskDone || got.Result != "all well" || len(got.Log) != 100 || got.Log[99] != "line 149" || got.Done != 1 || got.Finished.IsZero() {
		t.Errorf("good task: %+v", got)
	}
	bad := start(func(context.Context, *task.Handle) (string, error) {
		return "", fmt.Errorf("copy: %w", errs.New(errs.Exhausted, "pool is full").WithHint("add a disk"))
	})
	if got := wait(t, s, bad, ended); got.State != model.TaskFailed || got.Error.Kind != "exhausted" || got.Error.Hint != "add a disk" || got.Error.Text != "copy: pool is full" {
		t.Errorf("bad task: %+v %+v", got, got.Error)
	}
	panics := start(func(context.Context, *task.Handle) (string, error) { panic("bug") })
	if got := wait(t, s, panics, ended); got.State != model.TaskFailed || got.Error.Kind != "internal" {
		t.Errorf("task with a bug: %+v", got)
	}
	forever := func(ctx context.Context, h *task.Handle) (string, error) {
		h.Phase("waiting")
		<-ctx.Done()
		return "", ctx.Err()
	}
	cancelled := start(forever)
	wait(t, s, cancelled, func(t *model.Task) bool { return t.Phase == "waiting" })
	if _, err := r.CancelRef(t.Context(), cancelled.Name); err != nil {
		t.Error(err)
	}
	shared, err := r.CreateShared(t.Context(), "node drain n2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.CancelRef(t.Context(), shared.Name); !errors.Is(err, errs.Conflict) || errs.Hint(err) == "" {
		t.Errorf("cancel what the leader conducts: %v", err)
	}
	if _, err := r.CancelRef(t.Context(), good.Name); !errors.Is(err, errs.Conflict) {
		t.Errorf("cancel what has ended: %v", err)
	}
	if got := wait(t, s, cancelled, ended); got.State != model.TaskCancelled {
		t.Errorf("cancelled task: %+v", got)
	}
	left := start(forever)
	r.Close()
	if _, err := r.Start(t.Context(), "late", forever); !errors.Is(err, errs.Unavailable) {
		t.Errorf("start after close: %v", err)
	}
	// The next daemon of the node ends what this one left; other nodes' tasks
	// are theirs.
	foreign, err := store.Create(t.Context(), s, &model.Task{Meta: model.Meta{Name: "foreign"}, Node: "n2", State: model.TaskRunning})
	if err != nil {
		t.Fatal(err)
	}
	next := task.NewRunner(t.Context(), s, "n1", clock.System{}, log)
	defer next.Close()
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, s, left, ended); got.State != model.TaskFailed || got.Error.Hint == "" {
		t.Errorf("task of a dead daemon: %+v", got)
	}
	if got, _ := store.GetID[model.Task](t.Context(), s, foreign.ID); got.State != model.TaskRunning {
		t.Errorf("task of another node: %+v", got)
	}
}

func TestEvents(t *testing.T) {
	s, log := open(t)
	l := event.NewLog(s, "n1", clock.System{}, log)
	l.Emit(event.Info, "vm web", "before the log runs")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	var es []model.Event
	var rev int64
	for end := time.Now().Add(10 * time.Second); len(es) == 0; {
		var err error
		if es, rev, err = l.List(ctx, 10); err != nil || time.Now().After(end) {
			t.Fatalf("%d events, %v", len(es), err)
		}
	}
	l.Emit(event.Warn, "vm web", "degraded", "disk", "d1")
	stop := errors.New("stop")
	err := l.Watch(ctx, rev, func(e model.Event) error {
		if e.Level != event.Warn || e.Data["disk"] != "d1" || e.Node != "n1" {
			t.Errorf("event %+v", e)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Errorf("watch: %v", err)
	}
	if es, _, err = l.List(ctx, 1); err != nil || len(es) != 1 || es[0].Text != "degraded" {
		t.Errorf("newest: %+v, %v", es, err)
	}
}
