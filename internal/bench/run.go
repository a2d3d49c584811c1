package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/gc"
	"roseau/internal/base/sysmon"
)

// The targets, in the order of the table.
const (
	Raw     = "raw file"
	QemuNBD = "qemu-nbd"
	Quorum  = "quorum"
	Ceph    = "ceph"
	Roseau  = "roseau"
)

var targetIDs = map[string]string{"raw": Raw, "qemu-nbd": QemuNBD, "quorum": Quorum, "ceph": Ceph, "roseau": Roseau}

// TargetNames turns names on the command line into targets; unknown ones are an
// error that lists the known ones.
func TargetNames(ids []string) ([]string, error) {
	var list []string
	for _, id := range ids {
		name, ok := targetIDs[id]
		if !ok {
			return nil, errs.New(errs.Invalid, "benchmark target %q: want one of raw, qemu-nbd, quorum, ceph, roseau", id)
		}
		list = append(list, name)
	}
	return list, nil
}

// defaultTargets are all; Ceph only where it is installed.
func defaultTargets() []string {
	list := []string{Raw, QemuNBD, Quorum}
	if _, err := exec.LookPath("ceph-osd"); err == nil {
		list = append(list, Ceph)
	}
	return append(list, Roseau)
}

// Compare runs the whole comparison in a new directory under dir, which decides
// the disk, and removes it.
func Compare(ctx context.Context, dir string, o Options, log *slog.Logger) (res *Result, err error) {
	o.defaults()
	if len(o.Targets) == 0 {
		o.Targets = defaultTargets()
	}
	dir, err = os.MkdirTemp(dir, "rb") // short: it holds unix sockets
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	var s servers
	defer s.stop()
	var targets []Target
	for _, name := range o.Targets {
		fmt.Fprintf(o.Progress, "start %s\n", name)
		t, err := start(ctx, &s, name, dir, o.SizeBytes, log)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return Run(ctx, targets, o)
}

func start(ctx context.Context, s *servers, name, dir string, sizeBytes int64, log *slog.Logger) (Target, error) {
	switch name {
	case Raw:
		return rawTarget(dir, sizeBytes)
	case QemuNBD:
		return qemuTarget(ctx, s, dir, sizeBytes)
	case Quorum:
		return quorum(ctx, s, dir, sizeBytes)
	case Ceph:
		return ceph(ctx, s, dir, sizeBytes)
	}
	return roseau(ctx, s, dir, sizeBytes, log)
}

// roseau serves a volume of three copies out of this process, with three storage
// processes beside.
func roseau(ctx context.Context, s *servers, dir string, sizeBytes int64, log *slog.Logger) (Target, error) {
	// As in a guard.
	gc.Set(gc.Writer)
	sysmon.Calm(log)
	// Metadata and reserve need room beside the data. The log is that of a small
	// disk, of 64 GiB.
	c, err := NewCluster(ctx, dir, DiskShape{Bytes: 2*sizeBytes + 512<<20 + benchLogBytes, LogBytes: benchLogBytes}, log)
	if err != nil {
		return Target{}, err
	}
	s.add(func() { c.Close() })
	vol, err := c.CreateVolume(ctx, sizeBytes)
	if err != nil {
		return Target{}, err
	}
	set, err := Take(ctx, c.Writer(0, vol))
	if err != nil {
		return Target{}, err
	}
	s.add(func() { set.Close() })
	sock := filepath.Join(dir, "nbd")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return Target{}, err
	}
	done := make(chan struct{})
	sctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		if err := set.Serve(sctx, vol, l); err != nil {
			log.Error("nbd server ended", "cause", err)
		}
	}()
	s.add(func() { cancel(); <-done })
	t := uriTarget(Roseau, sock, vol.String())
	t.Pids = func() []int { return append(c.Pids(), os.Getpid()) }
	t.Empty = func(ctx context.Context) error { return discard(ctx, sock, vol.String(), sizeBytes) }
	return t, nil
}

// discard empties a volume through NBD, and waits until the engine has forgotten
// the discards: until its log ends behind them it does not write in place.
func discard(ctx context.Context, sock, export string, sizeBytes int64) error {
	cmd := exec.CommandContext(ctx, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("discard 0 %d", sizeBytes), "-c", "flush",
		"nbd+unix:///"+export+"?socket="+sock)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
		return errs.New(errs.Unavailable, "discard: %v: %s", err, out)
	}
	return clock.Sleep(ctx, freshSettle)
}

// has reports whether the result has a target.
func (r *Result) has(target string) bool { return slices.Contains(r.Targets, target) }
