package initd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processes starts and reaps children. All waiting is done here: a process that
// reaps orphans by wait(-1) would steal the children of os/exec.
type processes struct {
	mu      sync.Mutex // held over fork and over reaping, so that no child is reaped before it is known
	running map[int]*process
}

// process is a child that was started here. done gets its end once.
type process struct {
	pid       int
	killGroup bool // SIGKILL the process group when the leader is gone
	done      chan syscall.WaitStatus
}

func newProcesses() *processes { return &processes{running: map[int]*process{}} }

// start runs argv as the leader of a new session with out as stdout and stderr,
// in a version 2 cgroup if group is not nil.
func (p *processes) start(argv, env []string, out, group *os.File, killGroup bool) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Setsid: true}
	if group != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(group.Fd())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: env,
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   sys,
	})
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	proc := &process{pid: pid, killGroup: killGroup, done: make(chan syscall.WaitStatus, 1)}
	p.running[pid] = proc
	return proc, nil
}

// signal reports whether pid was a child started here that has not been reaped;
// only then is it signalled.
func (p *processes) signal(pid int, sig syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running[pid] != nil && syscall.Kill(pid, sig) == nil
}

// reap collects children and orphans until ctx ends.
func (p *processes) reap(ctx context.Context) {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	defer signal.Stop(child)
	for {
		for p.reapOne() {
		}
		select {
		case <-child:
		case <-ctx.Done():
			return
		}
	}
}

// reapOne collects one child that ended; false if there is none.
func (p *processes) reapOne() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Look without reaping: while the leader is a zombie its group's number cannot
	// be given to anybody else.
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return false // ECHILD
		}
	}
	pid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), siginfoPIDOffset)))
	if pid == 0 {
		return false
	}
	proc := p.running[pid]
	if proc != nil && proc.killGroup {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		return false
	}
	if proc != nil {
		delete(p.running, pid)
		proc.done <- ws
	}
	return true
}

// siginfoPIDOffset is where si_pid stands in siginfo_t on 64-bit Linux: after
// three ints and the padding of the union.
const siginfoPIDOffset = 16
