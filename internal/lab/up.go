package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/lab/labclient"
)

// Limits of a lab.
const (
	maxNodes        = 16
	maxDisks        = 16
	minDiskBytes    = 64 << 20
	upTimeout       = 60 * time.Second
	maxSocketLength = 100 // of a unix socket's path; the kernel takes 107
)

// UpOptions are what `lab up` can be told.
type UpOptions struct {
	Spec  labclient.Spec
	Fresh bool // throw away what an earlier lab of that name kept
}

// Up makes or starts the lab opts.Spec.Name and returns once all nodes have
// power. The daemon that holds it lives on. A lab that is up is left as it is.
// What a killed daemon left is cleaned first.
func Up(ctx context.Context, opts UpOptions, log *slog.Logger) (*labclient.Client, error) {
	if os.Geteuid() != 0 {
		return nil, errs.New(errs.Denied, "start lab %s: namespaces need root", opts.Spec.Name).WithHint("run it with sudo")
	}
	if err := checkSpec(&opts.Spec); err != nil {
		return nil, fmt.Errorf("start lab %s: %w", opts.Spec.Name, err)
	}
	dir, err := labclient.Dir(opts.Spec.Name)
	if err != nil {
		return nil, err
	}
	if n := len(filepath.Join(dir, labclient.SocketFile)); n > maxSocketLength {
		return nil, errs.New(errs.Invalid, "start lab in %s: the path of its socket has %d characters, more than %d", dir, n, maxSocketLength).
			WithHint("set ROSEAU_LAB_DIR to a shorter directory")
	}
	c := labclient.New(dir)
	if st, err := c.Status(ctx); err == nil && !opts.Fresh {
		if !st.Ready {
			return c, waitReady(ctx, c, nil)
		}
		return c, nil
	}
	if opts.Fresh {
		if err := Down(ctx, dir, false, log); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := saveSpec(dir, opts.Spec); err != nil {
		return nil, err
	}
	ended, err := startDaemon(dir, opts.Spec.Binary)
	if err != nil {
		return nil, err
	}
	return c, waitReady(ctx, c, ended)
}

func checkSpec(s *labclient.Spec) error {
	switch {
	case !labclient.ValidName(s.Name):
		return errs.New(errs.Invalid, "a name has 1 to 20 letters a-z, digits and hyphens")
	case s.Nodes < 1 || s.Nodes > maxNodes:
		return errs.New(errs.Invalid, "%d nodes: want 1 to %d", s.Nodes, maxNodes)
	case s.DisksPerNode < 0 || s.DisksPerNode > maxDisks:
		return errs.New(errs.Invalid, "%d disks: want 0 to %d", s.DisksPerNode, maxDisks)
	case s.DiskSizeBytes < minDiskBytes:
		return errs.New(errs.Invalid, "disks of %d bytes: want 64MiB or more", s.DiskSizeBytes)
	}
	if s.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		s.Binary = exe
	}
	return nil
}

// saveSpec writes the spec of a new lab. A lab that was kept goes on as it was
// made, but for the binary.
func saveSpec(dir string, s labclient.Spec) error {
	path := filepath.Join(dir, labclient.SpecFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return writeJSON(path, s)
	}
	if err != nil {
		return err
	}
	var old labclient.Spec
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if old.Nodes != s.Nodes || old.DisksPerNode != s.DisksPerNode || old.DiskSizeBytes != s.DiskSizeBytes {
		return errs.New(errs.Conflict, "start lab %s: it was kept with %d nodes of %d disks of %d bytes",
			s.Name, old.Nodes, old.DisksPerNode, old.DiskSizeBytes).WithHint("start it with these figures, or add --fresh to throw it away")
	}
	return writeJSON(path, s)
}

// startDaemon starts the lab's daemon apart from this process. The channel is
// closed when the daemon ends.
func startDaemon(dir, binary string) (<-chan struct{}, error) {
	out, err := os.OpenFile(filepath.Join(dir, labclient.DaemonLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(binary, "lab-daemon", dir)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What this process inherited, a lock or a pipe of its caller's, must not live
	// as long as the lab.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("start the lab's daemon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the lab's daemon: %w", err)
	}
	ended := make(chan struct{})
	go func() { // outlives Up on purpose: it reaps the daemon if this process stays
		_ = cmd.Wait()
		close(ended)
	}()
	return ended, nil
}

// waitReady waits until all nodes have power. ended, if not nil, tells that the
// daemon is gone.
func waitReady(ctx context.Context, c *labclient.Client, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upTimeout,
		errs.New(errs.Unavailable, "start lab: not every node is up after %v", upTimeout).
			WithHint("read %s", filepath.Join(c.Dir(), labclient.DaemonLog)))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err := c.Status(ctx); err == nil && st.Ready {
			return nil
		}
		select {
		case <-ended:
			return errs.New(errs.Unavailable, "start lab: its daemon ended: %s", lastLine(filepath.Join(c.Dir(), labclient.DaemonLog))).
				WithHint("read %s", filepath.Join(c.Dir(), labclient.DaemonLog))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Down ends the lab in dir and removes what it made: processes, namespaces,
// cgroups, and dir itself unless keep. A lab that is down, or was never made, is
// no error.
func Down(ctx context.Context, dir string, keep bool, log *slog.Logger) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c := labclient.New(dir)
	defer c.Close()
	r, err := loadRecords(dir)
	if err != nil {
		return err
	}
	if err := c.Down(ctx); err == nil {
		if err := waitGone(ctx, r.Daemon); err != nil {
			log.Warn("the lab's daemon does not end", "err", err)
		}
	} else if !errors.Is(err, errs.Unavailable) {
		return err
	}
	if err := cleanLeftovers(dir, log); err != nil {
		return err
	}
	if keep {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove lab: %w", err)
	}
	return nil
}

// waitGone waits until a process has ended.
func waitGone(ctx context.Context, p proc) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.alive() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
