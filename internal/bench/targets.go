package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"roseau/internal/base/errs"
)

// startTimeout bounds the start of a server.
const startTimeout = 15 * time.Second

// servers ends what was started, last first.
type servers struct{ stops []func() }

func (s *servers) add(f func()) { s.stops = append(s.stops, f) }

func (s *servers) stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
	s.stops = nil
}

// file makes a file of real blocks: an extent that is allocated and never
// written would make each first write a transaction of the file system.
func file(path string, sizeBytes int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 4<<20)
	for off := int64(0); off < sizeBytes && err == nil; off += int64(len(buf)) {
		_, err = f.WriteAt(buf[:min(int64(len(buf)), sizeBytes-off)], off)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func uriTarget(name, sock, export string) Target {
	return Target{Name: name, FioArgs: []string{"--ioengine=nbd", "--uri=nbd+unix:///" + export + "?socket=" + sock}}
}

// rawTarget is the file itself, with direct I/O.
func rawTarget(dir string, sizeBytes int64) (Target, error) {
	path := filepath.Join(dir, "raw")
	return Target{Name: Raw, FioArgs: []string{"--ioengine=libaio", "--direct=1", "--filename=" + path}}, file(path, sizeBytes)
}

// qemuNBD serves a file.
func qemuNBD(ctx context.Context, s *servers, dir, name string, sizeBytes int64) (sock string, pid int, err error) {
	path := filepath.Join(dir, name)
	if err := file(path, sizeBytes); err != nil {
		return "", 0, err
	}
	sock = filepath.Join(dir, name+".sock")
	pid, err = spawn(ctx, s, sock, "qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", sock, "--cache=none", "--aio=io_uring", path)
	return sock, pid, err
}

// qemuTarget is a single copy through qemu-nbd.
func qemuTarget(ctx context.Context, s *servers, dir string, sizeBytes int64) (Target, error) {
	sock, pid, err := qemuNBD(ctx, s, dir, "qemunbd", sizeBytes)
	t := uriTarget(QemuNBD, sock, "")
	t.Pids = func() []int { return []int{pid} }
	return t, err
}

// quorum is QEMU's mirror of three qemu-nbd over unix sockets. Over TCP it is
// slow for a reason of its own (no TCP_NODELAY in the server).
func quorum(ctx context.Context, s *servers, dir string, sizeBytes int64) (Target, error) {
	opts := []string{"driver=quorum", "vote-threshold=2", "read-pattern=fifo"}
	var pids []int
	for i := range 3 {
		sock, pid, err := qemuNBD(ctx, s, dir, fmt.Sprintf("quorum%d", i), sizeBytes)
		if err != nil {
			return Target{}, err
		}
		pids = append(pids, pid)
		opts = append(opts, fmt.Sprintf("children.%d.driver=nbd,children.%d.server.type=unix,children.%d.server.path=%s", i, i, i, sock))
	}
	sock := filepath.Join(dir, "quorum.sock")
	pid, err := spawn(ctx, s, sock, "qemu-nbd", "-t", "-e", "4", "-k", sock, "--cache=none", "--image-opts", strings.Join(opts, ","))
	pids = append(pids, pid)
	t := uriTarget(Quorum, sock, "")
	t.Pids = func() []int { return pids }
	return t, err
}

// ceph is an RBD image of a cluster that bench/ceph.sh brings up under dir.
func ceph(ctx context.Context, s *servers, dir string, sizeBytes int64) (Target, error) {
	const script = "bench/ceph.sh"
	dir = filepath.Join(dir, "ceph")
	out, err := exec.CommandContext(ctx, script, "up", dir, fmt.Sprint(sizeBytes>>20)).CombinedOutput()
	if err != nil {
		return Target{}, errs.New(errs.Unavailable, "start ceph: %w: %s", err, out)
	}
	s.add(func() {
		if out, err := exec.Command(script, "down", dir).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "stop ceph: %v: %s\n", err, out)
		}
	})
	b, err := os.ReadFile(filepath.Join(dir, "pids"))
	if err != nil {
		return Target{}, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		var pid int
		fmt.Sscan(f, &pid)
		pids = append(pids, pid)
	}
	conf := "CEPH_CONF=" + filepath.Join(dir, "ceph.conf")
	image := func(ctx context.Context, args ...string) error {
		cmd := exec.CommandContext(ctx, "rbd", args...)
		cmd.Env = append(os.Environ(), conf)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("rbd %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	return Target{Name: Ceph, FioArgs: []string{"--ioengine=rbd", "--clientname=admin", "--pool=bench", "--rbdname=img"}, Env: []string{conf},
		Pids: func() []int { return pids },
		Empty: func(ctx context.Context) error {
			return errors.Join(image(ctx, "rm", "--no-progress", "bench/img"),
				image(ctx, "create", "--size", fmt.Sprint(sizeBytes>>20)+"M", "--image-feature", "layering", "bench/img"))
		}}, nil
}

// spawn starts a server and waits until its socket answers.
func spawn(ctx context.Context, s *servers, sock, name string, args ...string) (pid int, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return 0, errs.New(errs.NotFound, "start %s: %w", name, err).WithHint("apt install qemu-utils")
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	s.add(func() {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-done
		}
	})
	return cmd.Process.Pid, waitSocket(ctx, sock, done, func() string { return name + ": " + out.String() })
}

func waitSocket(ctx context.Context, sock string, done chan error, what func() string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		if c, err := net.Dial("unix", sock); err == nil {
			return c.Close()
		}
		select {
		case err := <-done:
			done <- err
			return errs.New(errs.Unavailable, "start %s: ended: %v", what(), err)
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "start %s: %w", what(), ctx.Err())
		case <-t.C:
		}
	}
}
