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
	return Target{Name: "raw file", FioArgs: []string{"--ioengine=libaio", "--direct=1", "--filename=" + path}, Bare: true}, file(path, sizeBytes)
}

// qemuNBD serves a file.
func qemuNBD(ctx context.Context, s *servers, dir, name string, sizeBytes int64) (sock string, err error) {
	path := filepath.Join(dir, name)
	if err := file(path, sizeBytes); err != nil {
		return "", err
	}
	sock = filepath.Join(dir, name+".sock")
	return sock, spawn(ctx, s, sock, "qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", sock, "--cache=none", "--aio=io_uring", path)
}

// quorum is QEMU's mirror of three qemu-nbd over unix sockets. Over TCP it is
// slow for a reason of its own (no TCP_NODELAY in the server).
func quorum(ctx context.Context, s *servers, dir string, sizeBytes int64) (Target, error) {
	opts := []string{"driver=quorum", "vote-threshold=2", "read-pattern=fifo"}
	for i := range 3 {
		sock, err := qemuNBD(ctx, s, dir, fmt.Sprintf("quorum%d", i), sizeBytes)
		if err != nil {
			return Target{}, err
		}
		opts = append(opts, fmt.Sprintf("children.%d.driver=nbd,children.%d.server.type=unix,children.%d.server.path=%s", i, i, i, sock))
	}
	sock := filepath.Join(dir, "quorum.sock")
	err := spawn(ctx, s, sock, "qemu-nbd", "-t", "-e", "4", "-k", sock, "--cache=none", "--image-opts", strings.Join(opts, ","))
	return uriTarget("quorum", sock, ""), err
}

// spawn starts a server and waits until its socket answers.
func spawn(ctx context.Context, s *servers, sock, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return errs.New(errs.NotFound, "start %s: %w", name, err).WithHint("apt install qemu-utils")
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
	return waitSocket(ctx, sock, done, func() string { return name + ": " + out.String() })
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
