package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/volume"
	"roseau/internal/driver/storagectl"
)

// RecoveryFigure is one measurement of a failure or of what follows it.
type RecoveryFigure struct {
	Name   string
	Value  float64
	Unit   string
	Aim    float64
	AtMost bool // the aim is an upper bound
	Note   string
}

// Reached reports whether the aim is.
func (f *RecoveryFigure) Reached() bool {
	return f.AtMost && f.Value <= f.Aim || !f.AtMost && f.Value >= f.Aim
}

const (
	recoveryBytes = 1280 << 20 // of the volume: 1 GiB is dirtied in it
	dirtyBytes    = 1 << 30
	scattered     = 7500 // writes of 4 KiB, about 30 MiB
	syncPatience  = 3 * time.Minute

	settlePatience = time.Minute
	pollEvery      = 20 * time.Millisecond
	probeRate      = "300" // writes a second of the load whose stalls are measured
)

// recovery is a volume with its client and what was measured.
type recovery struct {
	c    *Cluster
	cfg  volume.Config // of the writer
	set  volume.Handle
	vol  ids.ID
	t    Target
	o    Options
	figs []RecoveryFigure

	exports int
	unserve func()
}

func (r *recovery) note(f RecoveryFigure) {
	r.figs = append(r.figs, f)
	verdict := "missed"
	if f.Reached() {
		verdict = "reached"
	}
	fmt.Fprintf(r.o.Progress, "%s: %.2f %s (%.2f: %s)\n", f.Name, f.Value, f.Unit, f.Aim, verdict)
}

// MeasureRecovery measures stalls, resync, rebuild and idle cost of one volume of
// three copies, in a new directory under dir.
func MeasureRecovery(ctx context.Context, dir string, progress io.Writer, log *slog.Logger) (figs []RecoveryFigure, err error) {
	if dir, err = os.MkdirTemp(dir, "rb"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var s servers
	defer s.stop()
	r := &recovery{o: Options{SizeBytes: recoveryBytes, Runtime: 3 * time.Second, Progress: progress}}
	if err := r.start(ctx, &s, dir, log); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{r.fill, r.idle, r.killed, r.hung, r.hungDisk, r.scattered, r.dirtied, r.empty, r.writerKilled} {
		if err := step(ctx); err != nil {
			return r.figs, err
		}
	}
	s.stop()
	err = r.large(ctx, filepath.Join(dir, "l"), log)
	return r.figs, err
}

func (r *recovery) start(ctx context.Context, s *servers, dir string, log *slog.Logger) (err error) {
	if r.c, err = NewCluster(ctx, dir, DiskShape{Bytes: 2*recoveryBytes + 512<<20}, log); err != nil {
		return err
	}
	s.add(func() { r.c.Close() })
	if r.vol, err = r.c.CreateVolume(ctx, r.o.SizeBytes); err != nil {
		return err
	}
	s.add(func() { r.leave() })
	return r.take(ctx, r.writer(0))
}

// writer is a new writer on node i.
func (r *recovery) writer(i int) volume.Config {
	cfg := r.c.Writer(i, r.vol)
	// A copy that was put out several times is left out for a while. Not here: its
	// resync is to be measured.
	cfg.Timing.RejoinBackoff = time.Millisecond
	return cfg
}

// take opens the volume with a new writer, and serves it.
func (r *recovery) take(ctx context.Context, cfg volume.Config) error {
	set, err := Take(ctx, cfg)
	if err != nil {
		return err
	}
	r.cfg = cfg
	return r.serve(ctx, set)
}

// serve exports the volume at a socket of its own.
func (r *recovery) serve(ctx context.Context, set volume.Handle) error {
	r.set = set
	r.exports++
	sock := filepath.Join(r.c.dir, fmt.Sprint("nbd", r.exports))
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	sctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		if err := set.Serve(sctx, r.vol, l); err != nil {
			r.c.log.Error("nbd server ended", "cause", err)
		}
	}()
	r.unserve = func() { cancel(); <-done }
	r.t = uriTarget(Roseau, sock, r.vol.String())
	return nil
}

// leave ends the writer as its death would: nothing is released.
func (r *recovery) leave() {
	if r.set != nil {
		r.set.Close()
	}
	if r.unserve != nil {
		r.unserve()
	}
	r.set, r.unserve = nil, nil
}

// copies waits until n copies are in sync, and returns how long that took.
func (r *recovery) copies(ctx context.Context, n int) (time.Duration, error) {
	start := time.Now()
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		if st := r.set.Status(); len(st.Volumes) == 1 && st.Volumes[0].CopiesInSync == n {
			return time.Since(start), nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if time.Since(start) > syncPatience {
			return 0, errs.New(errs.Unavailable, "wait for %d copies in sync: not after %v", n, syncPatience)
		}
	}
}

func (r *recovery) fio(ctx context.Context, runtime time.Duration, args ...string) (outcome, error) {
	o := r.o
	o.Runtime = runtime
	return fio(ctx, r.t, o, Job{Name: "recovery", Args: args, Fresh: runtime == 0})
}

func (r *recovery) fill(ctx context.Context) error {
	_, err := r.fio(ctx, 0, "--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1")
	return err
}

// idle looks at what a volume costs that nobody uses.
func (r *recovery) idle(ctx context.Context) error {
	const span = 10 * time.Second
	pids := r.c.Pids()
	if err := r.settled(ctx, pids); err != nil {
		return err
	}
	before := cpuTime(pids)
	t := time.NewTimer(span)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.note(RecoveryFigure{Name: "idle volume, CPU of a storage process", Value: 100 * (cpuTime(pids) - before).Seconds() / span.Seconds() / 3, Unit: "% of a core", Aim: 1, AtMost: true})
	worst, err := residentMiB(pids)
	r.note(RecoveryFigure{Name: "memory of a storage process after a fill", Value: worst, Unit: "MiB", Aim: 400, AtMost: true, Note: fmt.Sprintf("%d MiB of volumes", recoveryBytes>>20)})
	return err
}

// residentMiB is the memory of the largest of the processes.
func residentMiB(pids []int) (worst float64, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		if _, v, ok := strings.Cut(string(b), "VmRSS:"); ok {
			var kib float64
			fmt.Sscan(v, &kib)
			worst = math.Max(worst, kib/1024)
		}
	}
	return worst, nil
}

// settled waits until the storage processes have put away what was written: all
// of them together write next to nothing for a second.
func (r *recovery) settled(ctx context.Context, pids []int) error {
	const nothing = 256 << 10
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last := int64(math.MinInt64)
	for start := time.Now(); ; {
		var now int64
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
			if err != nil {
				return err
			}
			var n int64
			if _, v, ok := strings.Cut(string(b), "\nwrite_bytes: "); ok {
				fmt.Sscan(v, &n)
			}
			now += n
		}
		if last != math.MinInt64 && now-last < nothing {
			return nil
		}
		if time.Since(start) > settlePatience {
			return errs.New(errs.Unavailable, "wait for the disks to settle: the storage processes still write after %v", settlePatience)
		}
		last = now
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// probe runs a steady load, does harm in the midst of it, and returns the
// longest write.
func (r *recovery) probe(ctx context.Context, runtime time.Duration, harm func() error) (time.Duration, error) {
	type result struct {
		o   outcome
		err error
	}
	ch := make(chan result, 1)
	go func() {
		o, err := r.fio(ctx, runtime, "--rw=randwrite", "--bs=4k", "--iodepth=4", "--rate_iops="+probeRate)
		ch <- result{o, err}
	}()
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	<-t.C
	herr := harm()
	res := <-ch
	return res.o.Longest, errors.Join(herr, res.err)
}

func (r *recovery) killed(ctx context.Context) error {
	d, err := r.probe(ctx, 6*time.Second, func() error { return r.c.KillStorage(2) })
	if err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "longest write when a replica is killed", Value: d.Seconds(), Unit: "s", Aim: 1, AtMost: true})
	if err := r.c.StartStorage(ctx, 2); err != nil {
		return err
	}
	_, err = r.copies(ctx, 3)
	return err
}

func (r *recovery) hung(ctx context.Context) error {
	p := r.c.procs[2].Process
	d, err := r.probe(ctx, 12*time.Second, func() error { return p.Signal(unix.SIGSTOP) })
	if err = errors.Join(err, p.Signal(unix.SIGCONT)); err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "longest write when a replica hangs", Value: d.Seconds(), Unit: "s", Aim: 5, AtMost: true})
	_, err = r.copies(ctx, 3)
	return err
}

// away ends a replica and waits until the volume goes on without it.
func (r *recovery) away(ctx context.Context) error {
	if err := r.c.KillStorage(2); err != nil {
		return err
	}
	// The loss is noticed with the next write.
	if _, err := r.fio(ctx, time.Second, "--rw=randwrite", "--bs=4k", "--iodepth=1"); err != nil {
		return err
	}
	_, err := r.copies(ctx, 2)
	return err
}

func (r *recovery) scattered(ctx context.Context) error {
	if err := r.away(ctx); err != nil {
		return err
	}
	if _, err := r.fio(ctx, 0, "--rw=randwrite", "--bs=4k", "--iodepth=16", fmt.Sprint("--number_ios=", scattered)); err != nil {
		return err
	}
	d, note, err := r.back(ctx)
	if err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "resync of 30 MiB scattered", Value: d.Seconds(), Unit: "s", Aim: 5, AtMost: true, Note: note})
	return nil
}

// back starts the replica's process, and waits until it is in sync again. The note
// tells when it was connected, compared and copied.
func (r *recovery) back(ctx context.Context) (took time.Duration, note string, err error) {
	start := time.Now()
	if err := r.c.StartStorage(ctx, 2); err != nil {
		return 0, "", err
	}
	served := time.Since(start)
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	var joined, copied time.Duration
	for {
		st := r.set.Status()
		if len(st.Volumes) == 1 && st.Volumes[0].CopiesInSync == 3 {
			took = time.Since(start)
			return took, fmt.Sprintf("process up after %.1f s, joining after %.1f, copied after %.1f", served.Seconds(), joined.Seconds(), copied.Seconds()), nil
		}
		for i := range st.Volumes {
			for _, d := range st.Volumes[i].Disks {
				if joined == 0 && d.Syncing {
					joined = time.Since(start)
				}
				if d.SyncTotal > 0 && d.SyncDone < d.SyncTotal {
					copied = time.Since(start)
				}
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0, "", ctx.Err()
		}
		if time.Since(start) > syncPatience {
			return 0, "", errs.New(errs.Unavailable, "wait for 3 copies in sync: not after %v", syncPatience)
		}
	}
}

func (r *recovery) dirtied(ctx context.Context) error {
	load := []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}
	healthy, err := r.fio(ctx, 4*time.Second, load...)
	if err != nil {
		return err
	}
	if err := r.away(ctx); err != nil {
		return err
	}
	degraded, err := r.fio(ctx, 4*time.Second, load...)
	if err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "random writes with 2 of 3 copies, of healthy", Value: degraded.Value / healthy.Value, Unit: "x", Aim: 0.9})
	if _, err := r.fio(ctx, 0, "--rw=write", "--bs=1M", "--iodepth=4", fmt.Sprint("--io_size=", dirtyBytes)); err != nil {
		return err
	}
	type result struct {
		o   outcome
		err error
	}
	ch := make(chan result, 1)
	go func() {
		o, err := r.fio(ctx, 8*time.Second, load...)
		ch <- result{o, err}
	}()
	d, note, err := r.back(ctx)
	res := <-ch
	if err = errors.Join(err, res.err); err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "resync of 1 GiB under load", Value: d.Seconds(), Unit: "s", Aim: 15, AtMost: true, Note: note})
	r.note(RecoveryFigure{Name: "random writes during the resync, of healthy", Value: res.o.Value / healthy.Value, Unit: "x", Aim: 0.6})
	return nil
}

// empty loses a disk and puts a new one in its place.
func (r *recovery) empty(ctx context.Context) error {
	if err := r.away(ctx); err != nil {
		return err
	}
	if err := os.Remove(r.c.node(2).path("disks/d")); err != nil {
		return err
	}
	if err := r.c.StartStorage(ctx, 2); err != nil {
		return err
	}
	ctl := storagectl.New(r.c.node(2).path("c"))
	d, err := ctl.Claim(ctx, storagectl.ClaimRequest{Path: r.c.node(2).path("disks/new"), SizeBytes: 2*recoveryBytes + 512<<20})
	if err != nil {
		return err
	}
	if err := r.c.put(ctx, "/s/disk/"+d.ID.String(), map[string]any{"node": r.c.Nodes[2]}); err != nil {
		return err
	}
	start := time.Now()
	if err := r.set.ReplaceDisk(ctx, volume.Replace{Volume: r.vol, Old: r.c.Disks[2], New: d.ID, Node: r.c.Nodes[2]}); err != nil {
		return err
	}
	if _, err := r.copies(ctx, 3); err != nil {
		return err
	}
	gib := float64(recoveryBytes) / (1 << 30)
	r.note(RecoveryFigure{Name: "rebuild of an empty replica, per GiB", Value: time.Since(start).Seconds() / gib, Unit: "s", Aim: 25, AtMost: true})
	return nil
}

// RecoveryTable renders the figures beside their aims.
func RecoveryTable(figs []RecoveryFigure) string {
	var b strings.Builder
	b.WriteString("| what | value | aim | |\n|---|---:|---:|---|\n")
	for i := range figs {
		f := &figs[i]
		sign, verdict := ">=", "**missed**"
		if f.AtMost {
			sign = "<="
		}
		if f.Reached() {
			verdict = "reached"
		}
		if f.Note != "" {
			verdict += "; " + f.Note
		}
		fmt.Fprintf(&b, "| %s | %.2f %s | %s %g | %s |\n", f.Name, f.Value, f.Unit, sign, f.Aim, verdict)
	}
	return b.String()
}
