package unit

import (
	"context"

	"roseau/internal/base/errs"
)

// Absent is the controller of a machine without a supervisor: every start fails
// with the cause.
func Absent(cause error) Controller { return absent{cause} }

type absent struct{ cause error }

func (a absent) err(verb string, name Name) error {
	return errs.New(errs.Unavailable, "%s unit %s: no supervisor: %w", verb, name, a.cause).
		WithHint("Roseau needs systemd, or the lab's init")
}

func (a absent) Start(_ context.Context, name Name) error { return a.err("start", name) }

func (a absent) Stop(context.Context, Name) error { return nil }

func (a absent) Kill(_ context.Context, name Name, _ int) error { return a.err("kill", name) }

func (a absent) Status(_ context.Context, name Name) (Status, error) {
	return Status{Name: name, State: Stopped}, nil
}

func (a absent) List(context.Context) ([]Status, error) { return nil, nil }

func (a absent) Close() error { return nil }
