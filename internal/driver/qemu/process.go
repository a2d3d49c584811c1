// Package qemu starts, finds, freezes and ends QEMU processes, and finds out
// which accelerator works. It does not speak QMP (package qmp) and knows nothing
// about VMs but their UUID.
//
// A QEMU outlives the guard that started it: it has a session of its own and is
// named by (pid, start time), which the kernel never gives to two processes of
// one boot. All signals go by pidfd.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/driver/cgroup"
)

// Program is QEMU's name in $PATH.
const Program = "qemu-system-x86_64"

// User is whom QEMU runs as: roseau-qemu if it exists, else nobody.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary: the owner of /dev/kvm
}

// LookupUser finds the user. kvm adds the group of /dev/kvm.
func LookupUser(kvm bool) (User, error) {
	u, err := user.Lookup("roseau-qemu")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return User{}, errs.New(errs.NotFound, "find a user for qemu: neither roseau-qemu nor nobody exists")
		}
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return User{}, fmt.Errorf("find a user for qemu: %w", err)
	}
	w := User{UID: uint32(uid), GID: uint32(gid)}
	var st unix.Stat_t
	if kvm && unix.Stat("/dev/kvm", &st) == nil && st.Mode&0o060 == 0o060 {
		w.Groups = []uint32{st.Gid}
	}
	return w, nil
}

// Command is what to start.
type Command struct {
	Argv  []string   // without the program
	Files []*os.File // inherited as 3, 4, ...
	Log   string     // file for stdout and stderr, appended
	User  User       // ignored when not root
}

// Process is a QEMU. It is safe for concurrent use.
type Process struct {
	PID   int
	Start uint64 // start time in clock ticks since boot
	done  chan struct{}

	mu    sync.Mutex // protects pidfd
	pidfd int        // -1 once closed
}

// Start runs the command in a session of its own.
func Start(c Command) (*Process, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return nil, errs.New(errs.NotFound, "start qemu: %w", err).WithHint("install the package qemu-system-x86")
	}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	defer log.Close()
	pidfd := -1
	cmd := exec.Command(path, c.Argv...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = log, log, c.Files, "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	p := &Process{PID: cmd.Process.Pid, pidfd: pidfd, done: make(chan struct{})}
	p.Start, err = startTime(p.PID)
	// A guard is spared by the OOM killer, its QEMU is not.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.PID), []byte("0"), 0o644)
	go func() { // ends with the process
		_ = cmd.Wait() // how it ended stands in its log
		p.close()
	}()
	if err != nil {
		p.Signal(unix.SIGKILL)
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	return p, nil
}

// Attach finds the process again that had this pid and start time.
// errs.NotFound: it is gone.
func Attach(pid int, start uint64) (*Process, error) {
	gone := errs.New(errs.NotFound, "attach to qemu %d: it is gone", pid)
	if pid <= 0 {
		return nil, gone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, gone
	}
	// After the open the pid cannot pass to another process unseen.
	if now, err := startTime(pid); err != nil || now != start || state(pid) == 'Z' {
		unix.Close(fd)
		return nil, gone
	}
	p := &Process{PID: pid, Start: start, pidfd: fd, done: make(chan struct{})}
	go p.watch(fd)
	return p, nil
}

// watch waits for the end of a process that is not our child.
func (p *Process) watch(fd int) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			p.close()
			return
		}
	}
}

func (p *Process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
		close(p.done)
	}
}

// Done is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; a process that is gone takes none, without error.
func (p *Process) Signal(s unix.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		_ = unix.PidfdSendSignal(p.pidfd, s, nil, 0) // ESRCH: it is gone
	}
}

// File duplicates a file descriptor of the process, as it is numbered there.
func (p *Process) File(fd int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return -1, errs.New(errs.NotFound, "duplicate file %d of qemu %d: it is gone", fd, p.PID)
	}
	n, err := unix.PidfdGetfd(p.pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate file %d of qemu %d: %w", fd, p.PID, err)
	}
	return n, nil
}

// Frozen reports whether SIGSTOP holds it.
func (p *Process) Frozen() bool { return state(p.PID) == 'T' }

// Find lists the QEMU processes whose arguments contain all of the words: the
// VM's UUID and its run directory.
func Find(words ...string) []int {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var pids []int
	for _, d := range dirs {
		b, err := os.ReadFile(d)
		if err != nil || len(b) == 0 {
			continue
		}
		argv := strings.Split(string(b), "\x00")
		if !strings.Contains(filepath.Base(argv[0]), "qemu-system") {
			continue
		}
		all := strings.Join(argv, " ")
		if slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(all, w) }) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(d))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// KillAll ends the processes and waits until they are gone.
func KillAll(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		start, err := startTime(pid)
		if err != nil {
			continue
		}
		p, err := Attach(pid, start)
		if err != nil {
			continue
		}
		p.Signal(unix.SIGKILL)
		if err := cgroup.ThawProcess(pid); err != nil { // a frozen one ends when it is thawed
			return fmt.Errorf("kill qemu %d: %w", pid, err)
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			return fmt.Errorf("kill qemu %d: %w", pid, context.Cause(ctx))
		}
	}
	return nil
}

// stat returns the fields of /proc/pid/stat after the name.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return nil, errs.New(errs.Corrupt, "read /proc/%d/stat: %d fields", pid, len(f))
	}
	return f, nil
}

func startTime(pid int) (uint64, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// StartTime is the start time of a process, for those that are not QEMU.
func StartTime(pid int) (uint64, error) { return startTime(pid) }

func state(pid int) byte {
	f, err := stat(pid)
	if err != nil {
		return 'X'
	}
	return f[0][0]
}

// Poll is how often waits without an event look again.
const Poll = 10 * time.Millisecond
