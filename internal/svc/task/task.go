// Package task runs long actions and shows them: progress, log lines and an end
// state, kept in etcd so that every node can show every task.
//
// A task runs in the daemon of the node that was asked, as a goroutine of its
// Runner. If that daemon dies, its tasks end as failed when it is back; what
// they were doing is taken up by reconcilers or asked for again. So a task
// function only asks for things by spec and waits for status, or cleans up what
// it made half.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
)

const (
	maxLogLines   = 100
	writeInterval = 400 * time.Millisecond // progress reaches etcd this often at most
	keepFinished  = 500
	nameAttempts  = 5
)

// Func is the body of a task. It returns one line about the result.
type Func func(ctx context.Context, h *Handle) (result string, err error)

// Runner runs the tasks of one node.
type Runner struct {
	s     *store.Store
	node  string
	clock clock.Clock
	log   *slog.Logger
	ctx   context.Context // of all tasks; ends at Stop. Kept because tasks outlive the requests that start them.
	stop  context.CancelCauseFunc
	wg    sync.WaitGroup

	mu      sync.Mutex // protects running
	running map[ids.ID]context.CancelCauseFunc
	closed  bool
}

var errStopped = errs.New(errs.Unavailable, "the node's daemon was stopped").WithHint("ask again")
var errEnded = errors.New("task ended") // ends a watch
var errCancelled = errs.New(errs.Conflict, "cancelled")

// NewRunner returns the runner of the node called node.
func NewRunner(ctx context.Context, s *store.Store, node string, clk clock.Clock, log *slog.Logger) *Runner {
	r := &Runner{s: s, node: node, clock: clk, log: log, running: map[ids.ID]context.CancelCauseFunc{}}
	r.ctx, r.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return r
}

// Start makes a task and runs fn in the background. ctx bounds only the making.
// action is the command without the program's name: "vm migrate web".
func (r *Runner) Start(ctx context.Context, action string, fn Func) (*model.Task, error) {
	t, err := r.create(ctx, action)
	if err != nil {
		return nil, fmt.Errorf("start task %q: %w", action, err)
	}
	tctx, cancel := context.WithCancelCause(r.ctx)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		cancel(errStopped)
		return nil, fmt.Errorf("start task %q: %w", action, errStopped)
	}
	r.running[t.ID] = cancel
	r.wg.Add(1)
	r.mu.Unlock()
	h := &Handle{r: r, id: t.ID, task: *t}
	go func() {
		defer r.wg.Done()
		defer cancel(nil)
		h.run(tctx, fn)
		r.mu.Lock()
		delete(r.running, t.ID)
		r.mu.Unlock()
	}()
	return t, nil
}

// CreateShared makes a task that no node carries out: what it shows is conducted
// from wherever the leader is, which writes its progress and its end.
func (r *Runner) CreateShared(ctx context.Context, action string) (*model.Task, error) {
	t, err := r.createOn(ctx, action, "")
	if err != nil {
		return nil, fmt.Errorf("start task %q: %w", action, err)
	}
	return t, nil
}

func (r *Runner) create(ctx context.Context, action string) (*model.Task, error) {
	return r.createOn(ctx, action, r.node)
}

func (r *Runner) createOn(ctx context.Context, action, node string) (*model.Task, error) {
	var err error
	for range nameAttempts {
		id := ids.New()
		t := &model.Task{Meta: model.Meta{ID: id, Name: "t-" + id.Short()}, Action: action, Node: node, State: model.TaskRunning}
		if t, err = store.Create(ctx, r.s, t); err == nil {
			c := *t
			return &c, nil
		}
		if !errors.Is(err, errs.Conflict) {
			return nil, err
		}
	}
	return nil, err
}

// Cancel asks a task of this node to end; false: it does not run here.
func (r *Runner) Cancel(id ids.ID) bool {
	r.mu.Lock()
	cancel := r.running[id]
	r.mu.Unlock()
	if cancel == nil {
		return false
	}
	cancel(errCancelled)
	return true
}

// Close ends all tasks and waits for them.
func (r *Runner) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop(errStopped)
	r.wg.Wait()
}

// Recover ends the tasks that an earlier run of this node's daemon left behind,
// and drops old finished ones. It runs until that was done once.
func (r *Runner) Recover(ctx context.Context) error {
	tasks, err := store.List[model.Task](ctx, r.s)
	if err != nil {
		return err
	}
	slices.SortFunc(tasks, func(a, b *model.Task) int { return b.Created.Compare(a.Created) })
	finished := 0
	for _, t := range tasks {
		r.mu.Lock()
		_, mine := r.running[t.ID]
		r.mu.Unlock()
		if t.State == model.TaskRunning && t.Node == r.node && !mine {
			if _, err := store.Update(ctx, r.s, t.ID, func(t *model.Task) error {
				r.end(t, "", errs.New(errs.Unavailable, "the daemon of node %s was restarted", r.node).WithHint("look at what was done, and ask again"))
				return nil
			}); err != nil {
				return err
			}
		}
		if t.State != model.TaskRunning {
			if finished++; finished > keepFinished {
				if err := store.Delete(ctx, r.s, t); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
					return err
				}
			}
		}
	}
	return nil
}

func (r *Runner) end(t *model.Task, result string, err error) {
	t.Finished = r.clock.Wall().UTC()
	switch {
	case err == nil:
		t.State, t.Result, t.Phase = model.TaskDone, result, ""
	case errors.Is(err, errCancelled):
		t.State, t.Error = model.TaskCancelled, ProblemOf(err)
	default:
		t.State, t.Error = model.TaskFailed, ProblemOf(err)
	}
}

// ProblemOf shows an error as the API does; nil for nil.
func ProblemOf(err error) *model.Problem {
	if err == nil {
		return nil
	}
	p := &model.Problem{Kind: "internal", Text: err.Error(), Hint: errs.Hint(err)}
	if k := errs.Kind(err); k != nil {
		p.Kind = k.Error()
	}
	return p
}

// Handle is what a task's function reports through. It is safe for concurrent
// use.
type Handle struct {
	r  *Runner
	id ids.ID

	mu    sync.Mutex // protects the fields below
	task  model.Task
	dirty bool
}

// ID returns the task's id.
func (h *Handle) ID() ids.ID { return h.id }

func (h *Handle) change(fn func(*model.Task)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn(&h.task)
	h.dirty = true
}

// Phase says what is being done now, in a few words.
func (h *Handle) Phase(format string, args ...any) {
	h.change(func(t *model.Task) { t.Phase = fmt.Sprintf(format, args...) })
}

// Progress says how much of how much is done; unit is "bytes" or "items".
func (h *Handle) Progress(done, total int64, unit string) {
	h.change(func(t *model.Task) { t.Done, t.Total, t.Unit = done, total, unit })
}

// Logf adds a line to the task's log, of which the last 100 are kept.
func (h *Handle) Logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	h.r.log.Info("task log", "task", h.id.Short(), "line", line)
	h.change(func(t *model.Task) {
		log := append(slices.Clone(t.Log), line)
		t.Log = log[max(0, len(log)-maxLogLines):]
	})
}

// run calls fn, writing progress beside it, and stores the end.
func (h *Handle) run(ctx context.Context, fn Func) {
	flushed := make(chan struct{})
	fctx, stopFlush := context.WithCancel(ctx)
	go func() { defer close(flushed); h.flushLoop(fctx) }()
	result, err := h.call(ctx, fn)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
		if errors.Is(err, errCancelled) {
			err = errCancelled
		} else if errors.Is(err, errStopped) {
			err = errStopped
		}
	}
	stopFlush()
	<-flushed
	h.change(func(t *model.Task) { h.r.end(t, result, err) })
	log := h.r.log.With("task", h.id.Short(), "action", h.task.Action)
	if err != nil {
		log.Warn("task ended", "err", err, "hint", errs.Hint(err))
	} else {
		log.Info("task ended", "result", result)
	}
	h.store(ctx, h.r.clock.Now().Add(10*time.Minute))
}

// call turns a panic of one task into its failure: the daemon has other work.
func (h *Handle) call(ctx context.Context, fn Func) (result string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("task panicked: %v", p)
		}
	}()
	return fn(ctx, h)
}

// store writes the end until it is known to be written, the deadline passed or
// the daemon stops (Recover says it then).
func (h *Handle) store(ctx context.Context, deadline clock.Instant) {
	for h.r.clock.Now().Before(deadline) {
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		err := h.flush(wctx)
		cancel()
		if err == nil || errors.Is(err, errs.NotFound) {
			return
		}
		h.mu.Lock()
		h.dirty = true
		h.mu.Unlock()
		select {
		case <-h.r.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (h *Handle) flushLoop(ctx context.Context) {
	tick := time.NewTicker(writeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := h.flush(ctx); err != nil {
				h.r.log.Debug("write task progress", "task", h.id.Short(), "err", err)
			}
		}
	}
}

func (h *Handle) flush(ctx context.Context) error {
	h.mu.Lock()
	if !h.dirty {
		h.mu.Unlock()
		return nil
	}
	h.dirty = false
	now := h.task
	h.mu.Unlock()
	_, err := store.Update(ctx, h.r.s, h.id, func(t *model.Task) error {
		meta := t.Meta
		*t = now
		t.Meta = meta
		return nil
	})
	return err
}
