package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
)

// Streams are the standard streams of a command in a node.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs argv in all namespaces of a node and returns its exit code. roseau
// is found as the node runs it.
func Exec(ctx context.Context, n labclient.Node, argv []string, s Streams) (code int, err error) {
	if n.InitPID == 0 {
		return 0, errs.New(errs.Conflict, "run a command on node %s: it has no power", n.Name)
	}
	done := make(chan struct{})
	go onSpareThread(func() {
		defer close(done)
		code, err = execHere(ctx, n, argv, s)
	})
	<-done
	return code, err
}

// onSpareThread runs f on a thread that it may change for good: the thread ends
// with the goroutine. The main thread cannot end; while this holds it, another
// goroutine gets another one.
func onSpareThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onSpareThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// namespaces in the order of entering: the mounts last, for /proc is needed before.
var namespaces = []struct {
	name string
	flag int
}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}

func execHere(ctx context.Context, n labclient.Node, argv []string, s Streams) (int, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, ns := range namespaces {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", n.InitPID, ns.name))
		if err != nil {
			return 0, err
		}
		files = append(files, f)
	}
	// A thread that shares its root directory with others cannot change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("enter node %s: %w", n.Name, err)
	}
	for i, ns := range namespaces {
		if err := unix.Setns(int(files[i].Fd()), ns.flag); err != nil {
			return 0, fmt.Errorf("enter node %s: namespace %s: %w", n.Name, ns.name, err)
		}
	}
	if argv[0] == "roseau" {
		argv = append([]string{initd.Binary}, argv[1:]...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = s.In, s.Out, s.Err, "/"
	cmd.Env = append(os.Environ(), "ROSEAU_LAB_NODE="+n.Name)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}
