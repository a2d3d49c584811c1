package unit

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"roseau/internal/base/errs"
)

// Systemd is the Controller of a host: it starts the units that the package
// installed, over D-Bus. It makes no transient units.
type Systemd struct {
	conn *dbus.Conn
}

var (
	_ Controller = (*Systemd)(nil)
	_ Machine    = (*Systemd)(nil)
)

// NewSystemd connects to the system's service manager.
func NewSystemd(ctx context.Context) (*Systemd, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "connect to systemd: %w", err).
			WithHint("roseau needs systemd, or `roseau lab up` for nodes in namespaces")
	}
	return &Systemd{conn: conn}, nil
}

func service(name Name) string { return string(name) + ".service" }

// Start implements Controller.
func (s *Systemd) Start(ctx context.Context, name Name) error {
	// A unit that ran into a limit earlier must not refuse the order of today.
	_ = s.conn.ResetFailedUnitContext(ctx, service(name)) // fails when the unit is not loaded, which is usual
	if _, err := s.conn.StartUnitContext(ctx, service(name), "replace", nil); err != nil {
		return fmt.Errorf("start unit %s: %w", name, kindOf(err))
	}
	return nil
}

// Stop implements Controller.
func (s *Systemd) Stop(ctx context.Context, name Name) error {
	done := make(chan string, 1)
	if _, err := s.conn.StopUnitContext(ctx, service(name), "replace", done); err != nil {
		if errors.Is(kindOf(err), errs.NotFound) {
			return nil // not loaded: does not run
		}
		return fmt.Errorf("stop unit %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" && result != "skipped" {
			return errs.New(errs.Unavailable, "stop unit %s: job ended as %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop unit %s: %w", name, ctx.Err())
	}
}

// Kill implements Controller.
func (s *Systemd) Kill(ctx context.Context, name Name, signal int) error {
	if err := s.conn.KillUnitWithTarget(ctx, service(name), dbus.Main, int32(signal)); err != nil {
		return fmt.Errorf("kill unit %s: %w", name, kindOf(err))
	}
	return nil
}

// Status implements Controller.
func (s *Systemd) Status(ctx context.Context, name Name) (Status, error) {
	props, err := s.conn.GetAllPropertiesContext(ctx, service(name))
	if err != nil {
		return Status{}, fmt.Errorf("show unit %s: %w", name, kindOf(err))
	}
	if text(props, "LoadState") == "not-found" {
		return Status{}, errs.New(errs.NotFound, "show unit %s: no such unit", name).
			WithHint("install the units of packaging/ under /lib/systemd/system")
	}
	return systemdStatus(name, props), nil
}

// List implements Controller.
func (s *Systemd) List(ctx context.Context) ([]Status, error) {
	units, err := s.conn.ListUnitsByPatternsContext(ctx, nil, []string{"roseau-*.service"})
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	list := make([]Status, 0, len(units))
	for _, u := range units {
		st, err := s.Status(ctx, Name(strings.TrimSuffix(u.Name, ".service")))
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, st)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// Power implements Machine: systemd ends its units in their order.
func (s *Systemd) Power(ctx context.Context, reboot bool) error {
	target := "poweroff.target"
	if reboot {
		target = "reboot.target"
	}
	if _, err := s.conn.StartUnitContext(ctx, target, "replace-irreversibly", nil); err != nil {
		return fmt.Errorf("start %s: %w", target, err)
	}
	return nil
}

// Close implements Controller.
func (s *Systemd) Close() error {
	s.conn.Close()
	return nil
}

// kindOf adds a kind to the D-Bus errors that callers tell apart.
func kindOf(err error) error {
	if strings.Contains(err.Error(), "not loaded") || strings.Contains(err.Error(), "not found") {
		return errs.New(errs.NotFound, "%w", err)
	}
	return err
}

// systemdStatus translates the properties of a service.
func systemdStatus(name Name, props map[string]any) Status {
	st := Status{Name: name, State: Stopped}
	switch text(props, "ActiveState") {
	case "active", "reloading":
		st.State = Running
		st.Ready = text(props, "SubState") == "running"
	case "activating":
		st.State = Running
		if text(props, "SubState") == "auto-restart" {
			st.State = Restarting
		}
	case "deactivating":
		st.State = Stopping
	case "failed":
		st.State = Failed
	}
	if pid, ok := props["MainPID"].(uint32); ok {
		st.PID = int(pid)
	}
	if n, ok := props["NRestarts"].(uint32); ok {
		st.Restarts = int(n)
	}
	if us, ok := props["StateChangeTimestamp"].(uint64); ok && us > 0 {
		st.Since = time.UnixMicro(int64(us))
	}
	if r := text(props, "Result"); r != "" && r != "success" {
		st.LastExit = r
	}
	return st
}

func text(props map[string]any, key string) string {
	s, _ := props[key].(string)
	return s
}
