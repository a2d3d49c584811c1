package initd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/unit"
)

func TestMain(m *testing.M) {
	if os.Getenv("INITD_TEST_GUARD") != "" {
		guard()
		return
	}
	goleak.VerifyTestMain(m)
}

// guard is a unit that is ready, beats three times and then hangs.
func guard() {
	n, err := unit.NewNotifier()
	if err != nil {
		panic(err)
	}
	n.Ready()
	for range 3 {
		time.Sleep(n.WatchdogInterval())
		n.Watchdog()
	}
	time.Sleep(time.Hour)
}

type rig struct {
	*testing.T
	dir string
	sup *Supervisor
	ctl *unit.LabClient
}

// newRig runs a supervisor behind its socket until the test ends.
func newRig(t *testing.T, units ...unit.Unit) *rig {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip("no subreaper:", err)
	}
	dir := t.TempDir()
	for i := range units {
		u := &units[i]
		u.BackoffMin, u.BackoffMax, u.BackoffReset = 10*time.Millisecond, 40*time.Millisecond, time.Minute
		if u.StopTimeout == 0 {
			u.StopTimeout = 5 * time.Second
		}
		u.Env = append(u.Env, "DIR="+dir)
	}
	sup, err := New(Config{Units: units, LogDir: filepath.Join(dir, "log"), NotifyDir: filepath.Join(dir, "n"),
		Env: []string{"PATH=/usr/bin:/bin"}}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ctlsock.Listen(filepath.Join(dir, "init.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- sup.Run(ctx) }()
	go func() { done <- ctlsock.Serve(ctx, l, Handler(sup)) }()
	r := &rig{T: t, dir: dir, sup: sup, ctl: unit.NewLabClient(l.Addr().String())}
	t.Cleanup(func() {
		r.ctl.Close()
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
	return r
}

func sh(name unit.Name, script string) unit.Unit {
	return unit.Unit{Name: name, Argv: []string{"/bin/sh", "-c", script}, KillMode: unit.KillGroup}
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// until waits for a status that satisfies cond.
func (r *rig) until(name unit.Name, what string, cond func(unit.Status) bool) unit.Status {
	r.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		st, err := r.ctl.Status(r.Context(), name)
		r.must(err)
		if cond(st) {
			return st
		}
		if time.Now().After(deadline) {
			r.Fatalf("unit %s never %s: %+v", name, what, st)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *rig) file(name string) string {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(r.dir, name))
		if strings.HasSuffix(string(b), "\n") {
			return strings.TrimSpace(string(b))
		}
		if time.Now().After(deadline) {
			r.Fatalf("file %s never appeared", name)
		}
	}
}

func running(st unit.Status) bool { return st.State == unit.Running }

func TestRestartPolicies(t *testing.T) {
	always, failing, clean := sh("always", "exec sleep 100"), sh("failing", "exit 7"), sh("clean", "exit 0")
	always.Restart, always.Boot = unit.RestartAlways, true
	clean.Restart = unit.RestartOnFailure
	r := newRig(t, always, failing, clean)
	ctx := t.Context()

	first := r.until("always", "started at boot", running)
	r.must(r.ctl.Kill(ctx, "always", int(syscall.SIGKILL)))
	second := r.until("always", "restarted", func(st unit.Status) bool { return running(st) && st.Restarts == 1 })
	if second.PID == first.PID || second.LastExit != "signal KILL" {
		t.Fatalf("after a kill: %+v", second)
	}
	r.must(r.ctl.Stop(ctx, "always"))
	if st := r.until("always", "stopped", func(st unit.Status) bool { return st.State == unit.Stopped }); st.PID != 0 {
		t.Fatalf("after a stop: %+v", st)
	}
	r.must(r.ctl.Start(ctx, "always"))
	r.until("always", "started again", running)

	r.must(r.ctl.Start(ctx, "failing"))
	if st := r.until("failing", "failed", func(st unit.Status) bool { return st.State == unit.Failed }); st.LastExit != "exit code 7" {
		t.Fatalf("failing: %+v", st)
	}
	r.must(r.ctl.Start(ctx, "clean"))
	if st := r.until("clean", "ended", func(st unit.Status) bool { return st.State == unit.Stopped }); st.Restarts != 0 {
		t.Fatalf("clean: %+v", st)
	}
	if _, err := r.ctl.Status(ctx, "nothing"); !errors.Is(err, errs.NotFound) {
		t.Fatalf("unknown unit: %v", err)
	}
	if err := r.ctl.Kill(ctx, "failing", 9); !errors.Is(err, errs.Conflict) {
		t.Fatalf("kill of an ended unit: %v", err)
	}
}

// TestChildOutlivesKilledGuard is the life of a QEMU: the guard dies, the hook
// sees the child alive and why the guard died, the next guard finds the child.
func TestChildOutlivesKilledGuard(t *testing.T) {
	g := sh("roseau-vm@", `[ -e $DIR/child ] || { sleep 300 & echo $! >$DIR/child; }; exec sleep 300`)
	g.KillMode, g.Restart = unit.KillProcess, unit.RestartOnFailure
	g.OnUnexpectedExit = []string{"/bin/sh", "-c",
		`kill -STOP $(cat $DIR/child); echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS %i >$DIR/hook`}
	r := newRig(t, g)
	name := unit.Name("roseau-vm@x1")
	r.must(r.ctl.Start(t.Context(), name))
	child, err := strconv.Atoi(r.file("child"))
	r.must(err)
	t.Cleanup(func() { syscall.Kill(child, syscall.SIGKILL) })
	r.until(name, "runs", running)
	r.must(r.ctl.Kill(t.Context(), name, int(syscall.SIGKILL)))
	r.until(name, "restarted", func(st unit.Status) bool { return running(st) && st.Restarts == 1 })
	if got := r.file("hook"); got != "signal killed KILL x1" {
		t.Fatalf("hook saw %q", got)
	}
	if state := procState(t, child); state != "T" {
		t.Fatalf("child is in state %s, want stopped by the hook", state)
	}
	r.must(r.ctl.Stop(t.Context(), name))
	if state := procState(t, child); state != "T" {
		t.Fatalf("child is in state %s after a stop", state)
	}
}

func procState(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

func TestWatchdogKillsAHangingProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	u := unit.Unit{Name: "g", Argv: []string{exe}, Env: []string{"INITD_TEST_GUARD=1"},
		KillMode: unit.KillProcess, Restart: unit.RestartOnFailure, Watchdog: 300 * time.Millisecond}
	r := newRig(t, u)
	begin := time.Now()
	r.must(r.ctl.Start(t.Context(), "g"))
	r.until("g", "ready", func(st unit.Status) bool { return st.Ready })
	st := r.until("g", "restarted", func(st unit.Status) bool { return st.Restarts > 0 })
	if st.LastExit != "watchdog" {
		t.Fatalf("ended by %q", st.LastExit)
	}
	if d := time.Since(begin); d < 500*time.Millisecond {
		t.Fatalf("killed after %v: three beats of 100 ms and 300 ms of silence are 600 ms", d)
	}
	r.must(r.ctl.Stop(t.Context(), "g"))
}

// TestGroupDiesWithItsLeader: KillGroup leaves nothing of the unit behind.
func TestGroupDiesWithItsLeader(t *testing.T) {
	u := sh("g", `sleep 300 & echo $! >$DIR/child; exec sleep 300`)
	r := newRig(t, u)
	r.must(r.ctl.Start(t.Context(), "g"))
	child, err := strconv.Atoi(r.file("child"))
	r.must(err)
	r.must(r.ctl.Stop(t.Context(), "g"))
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(child, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("child of a stopped unit lives")
		}
	}
}

func FuzzParseNotify(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x\nWATCHDOG=1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ready, beat := parseNotify(b)
		if (ready || beat) && len(b) < len("READY=1") {
			t.Fatal("too short to say anything")
		}
	})
}
