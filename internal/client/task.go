package client

import (
	"context"
	"errors"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/model"
)

const (
	pollTask     = 200 * time.Millisecond
	taskAbsences = 150 // polls without an answer before giving up: 30 s, a node's restart
)

// WaitTask polls a task until it has ended, calling each (if not nil) with every
// state seen. A task that failed is no error of WaitTask: see TaskError. A node
// that does not answer for a while is asked again.
func (c *Client) WaitTask(ctx context.Context, ref string, each func(*model.Task)) (*model.Task, error) {
	absent := 0
	for {
		t := new(model.Task)
		err := c.Get(ctx, "/v1/tasks/"+ref, t)
		switch {
		case err == nil:
			absent = 0
			if each != nil {
				each(t)
			}
			if t.State != model.TaskRunning {
				return t, nil
			}
		case errors.Is(err, errs.Unavailable) && absent < taskAbsences:
			absent++
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pollTask):
		}
	}
}

// TaskError returns the error of a task that did not end well, nil otherwise.
func TaskError(t *model.Task) error {
	if t.State == model.TaskDone || t.State == model.TaskRunning {
		return nil
	}
	if t.Error == nil {
		return errs.New(errs.Conflict, "task %s: %s", t.Name, t.State)
	}
	return ErrorOf(t.Error)
}
