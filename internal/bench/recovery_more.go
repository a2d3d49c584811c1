package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
)

// largeBytes is the size of the volume whose cost in memory is measured.
const largeBytes = 100 << 30

// hungDisk lets the disk of a replica hang under load: its process lives and
// answers heartbeats.
func (r *recovery) hungDisk(ctx context.Context) error {
	n := r.c.node(2)
	if err := errors.Join(r.away(ctx), os.WriteFile(n.path(gatedName), nil, 0o600)); err != nil {
		return err
	}
	if _, _, err := r.back(ctx); err != nil {
		return err
	}
	d, err := r.probe(ctx, 12*time.Second, func() error { return os.WriteFile(n.path(hangName), nil, 0o600) })
	if err = errors.Join(err, os.Remove(n.path(hangName)), os.Remove(n.path(gatedName))); err != nil {
		return err
	}
	if st := r.set.Status(); len(st.Volumes) != 1 || st.Volumes[0].CopiesInSync != 2 {
		return fmt.Errorf("let a disk hang: the volume did not go on without it: %+v", st.Volumes)
	}
	r.note(RecoveryFigure{Name: "longest write when a disk hangs", Value: d.Seconds(), Unit: "s", Aim: 5, AtMost: true})
	if err := r.c.KillStorage(2); err != nil {
		return err
	}
	_, _, err = r.back(ctx)
	return err
}

// writerKilled ends the writer without a word, and lets a successor take up: on the
// same node, as the supervisor of a guard does, then on another one.
func (r *recovery) writerKilled(ctx context.Context) error {
	st := r.set.Status().Volumes[0]
	next := r.cfg
	next.Guard, next.GuestAlive = ids.New(), true
	began := time.Now()
	r.leave()
	set, err := volume.Open(ctx, next)
	if err != nil {
		return err
	}
	if err := set.Reopen(ctx, volume.Predecessor{Epoch: st.Epoch, Nonce: st.Nonce, Inc: st.Inc}); err != nil {
		return errors.Join(err, set.Close())
	}
	if err := r.serve(ctx, set); err != nil {
		return err
	}
	r.cfg = next
	if err := r.firstWrite(ctx, "writer killed: first write through its successor on the node", began); err != nil {
		return err
	}
	other := r.writer(1)
	began = time.Now()
	r.leave()
	if err := r.take(ctx, other); err != nil {
		return err
	}
	return r.firstWrite(ctx, "writer killed: first write through another node", began)
}

// firstWrite writes one block, and notes how long ago the writer died.
func (r *recovery) firstWrite(ctx context.Context, what string, began time.Time) error {
	if _, err := r.fio(ctx, 0, "--rw=randwrite", "--bs=4k", "--number_ios=1"); err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: what, Value: time.Since(began).Seconds(), Unit: "s", Aim: 8, AtMost: true, Note: "with the start of the client"})
	return nil
}

// large measures the memory of the storage processes with a volume of 100 GiB of
// which every extent is written: a block in each, so that every table is there.
// The tables are then read, as after a day of use.
func (r *recovery) large(ctx context.Context, dir string, log *slog.Logger) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l := &recovery{o: r.o}
	l.o.SizeBytes = largeBytes
	if l.c, err = NewCluster(ctx, dir, DiskShape{Bytes: largeBytes + largeBytes/16, Sparse: true}, log); err != nil {
		return err
	}
	defer l.c.Close()
	if l.vol, err = l.c.CreateVolume(ctx, largeBytes); err != nil {
		return err
	}
	defer l.leave()
	if err := l.take(ctx, l.writer(0)); err != nil {
		return err
	}
	each := []string{"--bs=4k", "--iodepth=16", fmt.Sprint("--number_ios=", largeBytes/repl.ExtentBytes)}
	skip := fmt.Sprint(":", repl.ExtentBytes-repl.BlockBytes)
	if _, err := l.fio(ctx, 0, append(each, "--rw=write"+skip, "--end_fsync=1")...); err != nil {
		return err
	}
	pids := l.c.Pids()
	if err := l.settled(ctx, pids); err != nil {
		return err
	}
	written, err := residentMiB(pids)
	if err != nil {
		return err
	}
	if _, err := l.fio(ctx, 0, append(each, "--rw=read"+skip)...); err != nil {
		return err
	}
	read, err := residentMiB(pids)
	if err != nil {
		return err
	}
	r.note(RecoveryFigure{Name: "memory of a storage process, 100 GiB of volumes", Value: max(written, read), Unit: "MiB", Aim: 400, AtMost: true,
		Note: fmt.Sprintf("a block written in each of %d extents (%.0f MiB), then all read (%.0f MiB)", largeBytes/repl.ExtentBytes, written, read)})
	return nil
}
