package initd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/unit"
)

// hookTimeout bounds an OnUnexpectedExit hook: it stands between the death of a
// guard and the next one.
const hookTimeout = 5 * time.Second

// service is one unit and, while it is started, the goroutine that runs it.
type service struct {
	sup  *Supervisor
	unit unit.Unit

	mu     sync.Mutex // protects below
	st     unit.Status
	alive  bool          // the goroutine runs
	orders chan order    // to the goroutine; cap 4, more are dropped as they say nothing new
	ended  chan struct{} // closed when the goroutine ends
}

type order int

const (
	orderStop order = iota // SIGTERM, then SIGKILL
	orderDie               // SIGKILL
)

func newService(s *Supervisor, u unit.Unit) *service {
	ended := make(chan struct{})
	close(ended)
	return &service{sup: s, unit: u, ended: ended, st: unit.Status{Name: u.Name, State: unit.Stopped, Since: s.cfg.Clock.Wall()}}
}

func (v *service) status() unit.Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.st
}

func (v *service) set(f func(*unit.Status)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.st.State
	f(&v.st)
	if v.st.State != before {
		v.st.Since = v.sup.cfg.Clock.Wall()
	}
}

// start begins the unit's goroutine. The first fork happens here, so that a
// missing binary is the caller's error.
func (v *service) start() error {
	v.mu.Lock()
	if v.alive && v.st.State != unit.Stopping {
		v.mu.Unlock()
		return nil
	}
	ended := v.ended
	v.mu.Unlock()
	<-ended // a stop in progress ends first

	v.mu.Lock()
	defer v.mu.Unlock()
	if v.alive {
		return nil
	}
	run, err := v.launch()
	if err != nil {
		return fmt.Errorf("start unit %s: %w", v.unit.Name, err)
	}
	v.alive = true
	v.orders = make(chan order, 4)
	v.ended = make(chan struct{})
	v.st = unit.Status{Name: v.unit.Name, State: unit.Running, PID: run.proc.pid, Since: v.sup.cfg.Clock.Wall()}
	v.sup.tasks.Add(1)
	go func() {
		defer v.sup.tasks.Done()
		v.loop(run)
	}()
	return nil
}

// order hands o to the goroutine and returns what is closed when it has ended.
func (v *service) order(o order) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.alive {
		select {
		case v.orders <- o:
		default:
		}
	}
	return v.ended
}

// run is one life of the main process.
type run struct {
	proc    *process
	notify  *notifySocket
	began   time.Time
	expired atomic.Bool // the watchdog killed it
}

func (v *service) launch() (*run, error) {
	out, err := v.sup.openLog(v.unit.Name)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r := &run{began: v.sup.cfg.Clock.Wall()}
	path := filepath.Join(v.sup.cfg.NotifyDir, string(v.unit.Name)+".sock")
	if r.notify, err = listenNotify(path, v.unit.Watchdog); err != nil {
		return nil, err
	}
	env := append(append(append([]string{}, v.sup.cfg.Env...), v.unit.Env...), "NOTIFY_SOCKET="+path)
	if v.unit.Watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(v.unit.Watchdog.Microseconds(), 10))
	}
	group, err := v.group()
	if err == nil {
		r.proc, err = v.sup.procs.start(v.unit.Argv, env, out, group, v.unit.KillMode == unit.KillGroup)
	}
	if group != nil {
		group.Close()
	}
	if err != nil {
		r.notify.close()
		return nil, err
	}
	if v.unit.OOMScoreAdjust != 0 {
		// Best effort: in a container root may not lower it.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.proc.pid), []byte(strconv.Itoa(v.unit.OOMScoreAdjust)), 0)
	}
	v.sup.log.Info("unit started", "unit", v.unit.Name, "pid", r.proc.pid)
	r.notify.serve(func() { v.set(func(st *unit.Status) { st.Ready = true }) }, func() {
		r.expired.Store(true)
		v.sup.log.Warn("watchdog expired", "unit", v.unit.Name, "pid", r.proc.pid)
		v.sup.procs.signal(r.proc.pid, syscall.SIGKILL)
	})
	return r, nil
}

// group makes the cgroup of a unit that makes some below its own; nil: the
// process stays where the init is.
func (v *service) group() (*os.File, error) {
	if !v.unit.Delegate || v.sup.cfg.UnitGroups == "" {
		return nil, nil
	}
	dir := filepath.Join(v.sup.cfg.UnitGroups, string(v.unit.Name)+".service")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.Open(dir)
}

// loop lives until the unit is stopped or not restarted any more.
func (v *service) loop(r *run) {
	inRow := 0
	final := unit.Stopped
	for r != nil {
		ws, stopped := v.wait(r)
		r.notify.close()
		text := describe(ws, r.expired.Load())
		clean := ws.Exited() && ws.ExitStatus() == 0
		v.set(func(st *unit.Status) { st.PID, st.Ready, st.LastExit = 0, false, text })
		v.sup.log.Info("unit ended", "unit", v.unit.Name, "pid", r.proc.pid, "exit", text, "asked", stopped)
		if !clean && !v.sup.goingDown() {
			v.hook(ws, r.expired.Load())
		}
		if stopped || !v.unit.Restarts(clean) {
			if !stopped && !clean {
				final = unit.Failed
			}
			break
		}
		if v.sup.cfg.Clock.Wall().Sub(r.began) >= v.unit.BackoffReset {
			inRow = 0
		}
		r = v.again(&inRow)
	}
	v.mu.Lock()
	v.alive = false
	v.st.State, v.st.PID, v.st.Since = final, 0, v.sup.cfg.Clock.Wall()
	close(v.ended)
	v.mu.Unlock()
}

// again waits for the back-off and launches, until it works; nil if an order to
// stop came first.
func (v *service) again(inRow *int) *run {
	v.set(func(st *unit.Status) { st.State = unit.Restarting })
	for {
		timer := time.NewTimer(v.unit.Delay(*inRow))
		*inRow++
		select {
		case <-v.orders:
			timer.Stop()
			return nil
		case <-timer.C:
		}
		r, err := v.launch()
		if err != nil {
			v.sup.log.Error("restart unit", "unit", v.unit.Name, "err", err)
			continue
		}
		v.set(func(st *unit.Status) { st.State, st.PID, st.Restarts = unit.Running, r.proc.pid, st.Restarts+1 })
		return r
	}
}

// wait returns the end of the main process and whether it was asked for.
func (v *service) wait(r *run) (ws syscall.WaitStatus, stopped bool) {
	var kill <-chan time.Time
	for {
		select {
		case ws := <-r.proc.done:
			return ws, stopped
		case o := <-v.orders:
			stopped = true
			if o == orderDie {
				v.sup.procs.signal(r.proc.pid, syscall.SIGKILL)
				continue
			}
			if kill == nil {
				v.set(func(st *unit.Status) { st.State = unit.Stopping })
				v.sup.procs.signal(r.proc.pid, syscall.SIGTERM)
				timer := time.NewTimer(v.unit.StopTimeout)
				defer timer.Stop()
				kill = timer.C
			}
		case <-kill:
			v.sup.procs.signal(r.proc.pid, syscall.SIGKILL)
		}
	}
}

// hook runs OnUnexpectedExit to its end.
func (v *service) hook(ws syscall.WaitStatus, watchdog bool) {
	argv := v.unit.OnUnexpectedExit
	if len(argv) == 0 {
		return
	}
	out, err := v.sup.openLog(v.unit.Name)
	if err != nil {
		v.sup.log.Error("run hook", "unit", v.unit.Name, "err", err)
		return
	}
	defer out.Close()
	env := append(append(append([]string{}, v.sup.cfg.Env...), v.unit.Env...), exitEnv(ws, watchdog)...)
	proc, err := v.sup.procs.start(argv, env, out, nil, true)
	if err != nil {
		v.sup.log.Error("run hook", "unit", v.unit.Name, "err", err)
		return
	}
	timer := time.NewTimer(hookTimeout)
	defer timer.Stop()
	select {
	case ws := <-proc.done:
		v.sup.log.Info("hook ended", "unit", v.unit.Name, "exit", describe(ws, false))
	case <-timer.C:
		v.sup.log.Error("hook took too long", "unit", v.unit.Name, "limit", hookTimeout)
		v.sup.procs.signal(proc.pid, syscall.SIGKILL)
		<-proc.done
	}
}

// exitEnv describes an end to a hook as systemd does to ExecStopPost=.
func exitEnv(ws syscall.WaitStatus, watchdog bool) []string {
	result, code, status := "exit-code", "exited", strconv.Itoa(ws.ExitStatus())
	if ws.Signaled() {
		result, code = "signal", "killed"
		status = trimSIG(unix.SignalName(ws.Signal()))
	}
	if watchdog {
		result = "watchdog"
	}
	return []string{"SERVICE_RESULT=" + result, "EXIT_CODE=" + code, "EXIT_STATUS=" + status}
}

func trimSIG(s string) string {
	if len(s) > 3 && s[:3] == "SIG" {
		return s[3:]
	}
	return s
}

// describe is an end in words for status tables.
func describe(ws syscall.WaitStatus, watchdog bool) string {
	switch {
	case watchdog:
		return "watchdog"
	case ws.Signaled():
		return "signal " + trimSIG(unix.SignalName(ws.Signal()))
	default:
		return "exit code " + strconv.Itoa(ws.ExitStatus())
	}
}
