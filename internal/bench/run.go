package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Compare runs the whole comparison in a new directory under dir, which decides
// the disk, and removes it. The last target is Roseau.
func Compare(ctx context.Context, dir string, o Options, log *slog.Logger) (res *Result, err error) {
	dir, err = os.MkdirTemp(dir, "rb") // short: it holds unix sockets
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if o.SizeBytes == 0 {
		o.SizeBytes = defaultBytes
	}
	var s servers
	defer s.stop()
	raw, err := rawTarget(dir, o.SizeBytes)
	if err != nil {
		return nil, err
	}
	sock, err := qemuNBD(ctx, &s, dir, "qemunbd", o.SizeBytes)
	if err != nil {
		return nil, err
	}
	q, err := quorum(ctx, &s, dir, o.SizeBytes)
	if err != nil {
		return nil, err
	}
	ours, err := roseau(ctx, &s, dir, o.SizeBytes, log)
	if err != nil {
		return nil, err
	}
	return Run(ctx, []Target{raw, uriTarget("qemu-nbd", sock, ""), q, ours}, o)
}

// roseau serves a volume of three copies out of this process, with three storage
// processes beside.
func roseau(ctx context.Context, s *servers, dir string, sizeBytes int64, log *slog.Logger) (Target, error) {
	// The log of a disk takes an eighth of a small one; metadata and reserve
	// need room beside the data.
	c, err := NewCluster(ctx, dir, 2*sizeBytes+512<<20, log)
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
	return uriTarget("roseau", sock, vol.String()), nil
}

// Report writes the result as a page of docs/results.
func (r *Result) Report(w io.Writer, commit string, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark\n\n%s, commit %s, %s, %d CPUs. Made by `make bench`.\n\n", now.UTC().Format("2006-01-02 15:04 MST"), commit, runtime.Version(), runtime.NumCPU())
	fmt.Fprintf(&b, "All targets on one disk, %d MiB of written data, jobs of %v, medians of %d interleaved rounds.\n", r.Options.SizeBytes>>20, r.Options.Runtime, r.Options.Rounds)
	b.WriteString("quorum is QEMU's quorum driver over three qemu-nbd on unix sockets: three copies, without leases, checksums, logs or resync.\n")
	b.WriteString("roseau is a volume of three copies on three storage processes: one over a unix socket, two over mutual TLS on loopback.\n")
	b.WriteString("On one disk Roseau writes each block six times (log and place, three copies), quorum three times, the others once.\n\n")
	b.WriteString(r.Table("quorum"))
	_, err := io.WriteString(w, b.String())
	return err
}
