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

	"roseau/internal/base/errs"
	"roseau/internal/driver/cgroup"
	"roseau/internal/lab/initd"
)

// freezeTimeout bounds how long a freeze may take to be complete.
const freezeTimeout = 5 * time.Second

// freezer stops and continues all processes of a node: by a freezer cgroup of
// version 1 or 2, else by SIGSTOP and SIGCONT to each. It also holds the node's
// groups in the other hierarchies, below which its guards make those of VMs.
type freezer struct {
	dir     string // of the cgroup; "" = none
	v2      bool
	others  []string // the node's groups in other hierarchies
	initPID int
	stopped []int // without cgroup: the processes that freeze stopped
}

const cgroupMount = "/sys/fs/cgroup"

// newFreezer puts the process initPID, and with it all that it will start, into
// cgroups called name, where the host has some that can.
func newFreezer(name string, initPID int) *freezer {
	f := &freezer{initPID: initPID}
	if dir := filepath.Join(cgroupMount, "freezer", name); join(dir, dir, initPID) {
		f.dir = dir
		for _, c := range []string{"memory", "cpu", "pids"} {
			if dir := filepath.Join(cgroupMount, c, name); join(dir, dir, initPID) {
				f.others = append(f.others, dir)
			}
		}
		return f
	}
	for _, root := range []string{cgroupMount, filepath.Join(cgroupMount, "unified")} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue // not a version 2 mount
		}
		// The processes are in a group below: one that has processes cannot share out
		// controllers, which the groups of its guards need.
		dir := filepath.Join(root, name)
		if join(dir, filepath.Join(dir, initd.InitGroup), initPID) {
			f.dir, f.v2 = dir, true
			for _, c := range []string{"memory", "cpu", "pids"} {
				// Best effort: without them the node's VMs have no limits.
				_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
			return f
		}
	}
	return f
}

// join makes dir, and leaf in it if that is another, and moves the process into
// leaf. False: this cannot be done here, and nothing stays.
func join(dir, leaf string, pid int) bool {
	for _, d := range []string{dir, leaf} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return false
		}
	}
	if os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) == nil {
		return true
	}
	_ = cgroup.RemoveAll(dir)
	return false
}

// groups lists all that the node has of them.
func (f *freezer) groups() []string {
	if f.dir == "" {
		return f.others
	}
	return append([]string{f.dir}, f.others...)
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

// kill sends SIGKILL to the first process, which ends all others. What is frozen,
// the node or a VM in it, is thawed after the signal: it dies without running
// another instruction.
func (f *freezer) kill() error {
	err := syscall.Kill(f.initPID, syscall.SIGKILL)
	if f.dir == "" {
		return err // SIGKILL ends a stopped process as well
	}
	for _, p := range cgroup.Processes(f.dir) {
		if pid, perr := strconv.Atoi(p); perr == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return errors.Join(err, cgroup.ThawAll(f.dir))
}

// remove removes the cgroups; all processes are gone.
func (f *freezer) remove() error {
	var all error
	for _, dir := range f.groups() {
		all = errors.Join(all, cgroup.RemoveAll(dir))
	}
	return all
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
