package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// freezeTimeout bounds how long a freeze may take to be complete.
const freezeTimeout = 5 * time.Second

// freezer stops and continues all processes of a node: by a freezer cgroup of
// version 1 or 2, else by SIGSTOP and SIGCONT to each.
type freezer struct {
	dir     string // of the cgroup; "" = none
	v2      bool
	initPID int
	stopped []int // without cgroup: the processes that freeze stopped
}

// cgroupRoots are where freezer cgroups may be, in the order of trial.
var cgroupRoots = []struct {
	path string
	v2   bool
}{{"/sys/fs/cgroup/freezer", false}, {"/sys/fs/cgroup", true}, {"/sys/fs/cgroup/unified", true}}

// newFreezer puts the process initPID, and with it all that it will start, into
// a cgroup called name, if the host has one that can.
func newFreezer(name string, initPID int) *freezer {
	f := &freezer{initPID: initPID}
	for _, root := range cgroupRoots {
		if root.v2 {
			if _, err := os.Stat(filepath.Join(root.path, "cgroup.controllers")); err != nil {
				continue // not a version 2 mount
			}
		}
		dir := filepath.Join(root.path, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			continue
		}
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(initPID)), 0)
		if _, serr := os.Stat(filepath.Join(dir, stateFile(root.v2))); err == nil && serr == nil {
			f.dir, f.v2 = dir, root.v2
			return f
		}
		_ = os.Remove(dir)
	}
	return f
}

func stateFile(v2 bool) string {
	if v2 {
		return "cgroup.freeze"
	}
	return "freezer.state"
}

// freeze returns when no process of the node runs.
func (f *freezer) freeze() error {
	if f.dir == "" {
		return f.stopAll()
	}
	word, file, want := "FROZEN", "freezer.state", "FROZEN"
	if f.v2 {
		word, file, want = "1", "cgroup.events", "frozen 1"
	}
	if err := os.WriteFile(filepath.Join(f.dir, stateFile(f.v2)), []byte(word), 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	deadline := time.Now().Add(freezeTimeout)
	for {
		b, err := os.ReadFile(filepath.Join(f.dir, file))
		if err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		if strings.Contains(string(b), want) {
			return nil
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Unavailable, "freeze: some process does not stop within %v", freezeTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// thaw lets the processes that freeze stopped go on. One that was stopped
// before (a QEMU without guard) stays so.
func (f *freezer) thaw() error {
	if f.dir == "" {
		for _, pid := range f.stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have been killed meanwhile
		}
		f.stopped = nil
		return nil
	}
	word := "THAWED"
	if f.v2 {
		word = "0"
	}
	return os.WriteFile(filepath.Join(f.dir, stateFile(f.v2)), []byte(word), 0)
}

// kill sends SIGKILL to the first process, which ends all others. A frozen node
// is thawed after the signal: it dies without running another instruction.
func (f *freezer) kill(frozen bool) error {
	err := syscall.Kill(f.initPID, syscall.SIGKILL)
	if !frozen || f.dir == "" {
		return err // SIGKILL ends a stopped process as well
	}
	if b, rerr := os.ReadFile(filepath.Join(f.dir, "cgroup.procs")); rerr == nil {
		for _, line := range strings.Fields(string(b)) {
			if pid, perr := strconv.Atoi(line); perr == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	return errors.Join(err, f.thaw())
}

// remove removes the cgroup; all processes are gone.
func (f *freezer) remove() error {
	if f.dir == "" {
		return nil
	}
	return removeCgroup(f.dir)
}

// removeCgroup removes a cgroup and those that were made in it.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		// A process that was just reaped is counted for a moment longer.
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &os.PathError{Op: "remove", Path: dir, Err: err}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// stopAll stops every process of the node that is not stopped, until a pass
// finds none: a process may fork while the pass goes on, but not for ever, for
// each pass stops all parents that it saw.
func (f *freezer) stopAll() error {
	const passes = 50
	for range passes {
		members, err := members(f.initPID)
		if err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		found := false
		for _, p := range members {
			if p.state == 'T' || p.state == 'Z' {
				continue
			}
			found = true
			if syscall.Kill(p.pid, syscall.SIGSTOP) == nil {
				f.stopped = append(f.stopped, p.pid)
			}
		}
		if !found {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return errs.New(errs.Unavailable, "freeze: new processes appear faster than they can be stopped")
}

type nsProcess struct {
	pid   int
	state byte // as in /proc/PID/stat
}

// members lists the processes in the process namespace whose first process is
// initPID.
func members(initPID int) ([]nsProcess, error) {
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", initPID))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []nsProcess
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != home {
			continue
		}
		if st, err := readStat(pid); err == nil {
			list = append(list, nsProcess{pid: pid, state: st.state})
		}
	}
	return list, nil
}
