// Package initd is the first process of a lab node. It plays systemd: it starts
// the node's units, restarts them by their policy, watches their watchdogs, runs
// their hooks, adopts and reaps orphans, and takes orders on a unix socket.
//
// Supervisor is usable without namespaces (its tests do); Main makes the node's
// mounts and network first. Memory and CPU limits are not its business: it hands
// out groups, and guards set limits in theirs.
package initd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"syscall"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/unit"
)

// Config is what a supervisor is made of.
type Config struct {
	Units     []unit.Unit // templates and plain units
	LogDir    string      // NAME.log of every unit is appended there
	NotifyDir string      // for the sockets that units notify; made if absent
	Env       []string    // of every unit, before its own
	Clock     clock.Clock // nil = the system's
	// Exit ends the first process with a code, and with it the node; nil: Power is
	// refused.
	Exit func(code int)
	// UnitGroups is the version 2 cgroup in which units with Delegate get one of
	// their own; empty: they get none, and where version 1 is mounted need none.
	UnitGroups string
}

// Supervisor runs units. It must be the only one in its process to wait for
// children.
type Supervisor struct {
	cfg Config
	log *slog.Logger

	procs *processes
	tasks sync.WaitGroup // one for each service that runs

	mu       sync.Mutex // protects below; taken before a service's mu
	services map[unit.Name]*service
	closing  bool
}

// New returns a supervisor that runs nothing yet.
func New(cfg Config, log *slog.Logger) (*Supervisor, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	for _, dir := range []string{cfg.NotifyDir, cfg.LogDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return &Supervisor{
		cfg: cfg, log: log, procs: newProcesses(),
		services: map[unit.Name]*service{},
	}, nil
}

// Run reaps children until ctx ends, then kills the units' main processes and
// waits for them. Boot units are started first.
func (s *Supervisor) Run(ctx context.Context) error {
	reaping, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		s.procs.reap(reaping)
	}()
	var err error
	for _, u := range s.cfg.Units {
		if u.Boot {
			err = errors.Join(err, s.Start(ctx, u.Name))
		}
	}
	if err != nil {
		s.log.Error("start boot units", "err", err)
	}
	<-ctx.Done()
	s.mu.Lock()
	s.closing = true
	for _, svc := range s.services {
		svc.order(orderDie)
	}
	s.mu.Unlock()
	s.tasks.Wait()
	stopReaping()
	<-reaped
	return nil
}

// goingDown reports whether Run's context has ended.
func (s *Supervisor) goingDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// service returns the service called name and makes it if there is a template.
func (s *Supervisor) service(name unit.Name) (*service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if svc, ok := s.services[name]; ok {
		return svc, nil
	}
	u, err := unit.Find(s.cfg.Units, name)
	if err != nil {
		return nil, err
	}
	if s.closing {
		return nil, errs.New(errs.Unavailable, "start unit %s: the node is going down", name)
	}
	svc := newService(s, u)
	s.services[name] = svc
	return svc, nil
}

// Start implements unit.Controller.
func (s *Supervisor) Start(_ context.Context, name unit.Name) error {
	svc, err := s.service(name)
	if err != nil {
		return err
	}
	return svc.start()
}

// Stop implements unit.Controller.
func (s *Supervisor) Stop(ctx context.Context, name unit.Name) error {
	svc, err := s.service(name)
	if err != nil {
		return err
	}
	done := svc.order(orderStop)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop unit %s: %w", name, ctx.Err())
	}
}

// Kill implements unit.Controller.
func (s *Supervisor) Kill(_ context.Context, name unit.Name, signal int) error {
	svc, err := s.service(name)
	if err != nil {
		return err
	}
	if pid := svc.status().PID; pid != 0 && s.procs.signal(pid, syscall.Signal(signal)) {
		s.log.Info("unit signalled", "unit", name, "signal", signal)
		return nil
	}
	return errs.New(errs.Conflict, "kill unit %s: it does not run", name)
}

// Status implements unit.Controller.
func (s *Supervisor) Status(_ context.Context, name unit.Name) (unit.Status, error) {
	svc, err := s.service(name)
	if err != nil {
		return unit.Status{}, err
	}
	return svc.status(), nil
}

// List implements unit.Controller.
func (s *Supervisor) List(context.Context) ([]unit.Status, error) {
	s.mu.Lock()
	list := make([]unit.Status, 0, len(s.services))
	for _, svc := range s.services {
		list = append(list, svc.status())
	}
	s.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// Exit codes of the first process by which a node tells the lab what becomes of
// its power; any other end is an accident.
const (
	ExitOff    = 10
	ExitReboot = 11
)

// Power implements unit.Machine: units without VMs end by their own stop, the
// daemon first, the storage last; then Exit ends the node with all that is left.
func (s *Supervisor) Power(_ context.Context, reboot bool) error {
	if s.cfg.Exit == nil {
		return errs.New(errs.Unavailable, "power: this supervisor has no power over the machine")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil // it goes down already
	}
	s.closing = true
	code := ExitOff
	if reboot {
		code = ExitReboot
	}
	s.log.Info("node goes down", "reboot", reboot)
	go func() { // ends with the process
		for _, last := range []bool{false, true} {
			var ended []<-chan struct{}
			s.mu.Lock()
			for name, svc := range s.services {
				if _, vm := name.VMID(); !vm && last == (name == unit.Storage) {
					ended = append(ended, svc.order(orderStop))
				}
			}
			s.mu.Unlock()
			for _, done := range ended {
				<-done
			}
		}
		s.cfg.Exit(code)
	}()
	return nil
}

// Close implements unit.Controller; the units go on.
func (s *Supervisor) Close() error { return nil }

var (
	_ unit.Controller = (*Supervisor)(nil)
	_ unit.Machine    = (*Supervisor)(nil)
)

// logLimitBytes bounds the log of one unit: at a start beyond it the log becomes
// NAME.log.1 in place of the one before.
const logLimitBytes = 32 << 20

// openLog opens the log file of a unit for its stdout and stderr.
func (s *Supervisor) openLog(name unit.Name) (*os.File, error) {
	path := filepath.Join(s.cfg.LogDir, string(name)+".log")
	if fi, err := os.Stat(path); err == nil && fi.Size() > logLimitBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
