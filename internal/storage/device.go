package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/direct"
	"roseau/internal/block/disk"
	"roseau/internal/driver/blockdev"
	"roseau/internal/model"
)

// Workers of a disk. Blocking calls hold a thread each, so few are started
// before they are needed.
const (
	readWorkers  = 16
	writeWorkers = 12
)

// device is a claimed disk and the goroutines that do its I/O.
type device struct {
	id   ids.ID
	log  *slog.Logger
	file blockdev.File
	core *disk.Core // owned by the turn once it is open
	// ended takes the result of an action; any goroutine.
	ended func(d *device, io *disk.IO, err error)
	ring  *blockdev.Ring // nil: the kernel or the disk has none
	cells *direct.Cells  // shown to guards that read the disk by themselves
	share *os.File       // given to them; nil: they cannot

	// Owned by the turn:
	inflight int       // actions under way, put off or not
	queued   bool      // the ring has actions that are not begun
	later    []disk.IO // put off: those of a checkpoint that others may pass
	laterOut int       // begun of these

	reads  workers
	writes workers
	syncs  workers
	lat    latencies // of small writes

	// Guarded by the process's mu:
	cfg    diskConfig
	state  model.DiskState
	reason string
	away   bool // its path leads to something else: it is looked for elsewhere
}

// workers is a FIFO of actions and at most max goroutines that take from it.
type workers struct {
	max  int
	do   func(disk.IO)
	mu   sync.Mutex
	cond *sync.Cond
	list []disk.IO
	idle int
	n    int
	stop bool
	wg   sync.WaitGroup
}

func (w *workers) init(max int, do func(disk.IO)) {
	w.max, w.do = max, do
	w.cond = sync.NewCond(&w.mu)
}

func (w *workers) add(io disk.IO) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop {
		return
	}
	w.list = append(w.list, io)
	switch {
	case w.idle > 0:
		w.cond.Signal()
	case w.n < w.max:
		w.n++
		w.wg.Add(1)
		go w.run()
	}
}

// run has a thread of its own, which ends with it. The kernel completes what a
// thread has put into a ring in that thread, and not while it blocks in the
// kernel: an fdatasync in a thread that had just begun the writes of a turn would
// hold up their ends, and one that hangs those of other disks.
func (w *workers) run() {
	runtime.LockOSThread()
	defer w.wg.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.list) == 0 && !w.stop {
			w.idle++
			w.cond.Wait()
			w.idle--
		}
		if w.stop {
			return
		}
		io := w.list[0]
		w.list[0] = disk.IO{}
		if w.list = w.list[1:]; len(w.list) == 0 {
			w.list = nil
		}
		w.mu.Unlock()
		w.do(io)
		w.mu.Lock()
	}
}

// close drops what has not begun. It does not wait: see done.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop, w.list = true, nil
	w.cond.Broadcast()
}

func newDevice(cfg diskConfig, ended func(*device, *disk.IO, error), log *slog.Logger) *device {
	d := &device{id: cfg.ID, cfg: cfg, ended: ended, log: log.With("disk", cfg.ID, "path", cfg.Path), state: model.DiskMissing, reason: "not opened yet"}
	d.reads.init(readWorkers, d.perform)
	d.writes.init(writeWorkers, d.perform)
	d.syncs.init(1, d.perform)
	return d
}

// openRing lets reads and writes go to the kernel many at a time, if it can.
func (d *device) openRing(p *process) {
	var events []event
	ring, err := blockdev.NewRing(d.file, func(list []blockdev.RingResult) {
		events = events[:0]
		for i := range list {
			if t := &list[i]; t.Again {
				d.toWorker(disk.IO{ID: t.Token, Op: ringKind(t.Write), Offset: t.Offset, Bufs: t.Bufs, Length: int64(t.Bytes), Later: t.Later})
			} else {
				if t.Write && t.Bytes <= latencyBytes {
					d.lat.add(t.Took)
				}
				events = append(events, event{disk: d, io: t.Token, later: t.Later, err: t.Err})
			}
		}
		p.push(nil, events...)
		clear(events)
	})
	if err != nil {
		d.log.Info("disk I/O by threads", "cause", err)
		return
	}
	d.ring = ring
}

func ringKind(write bool) disk.Op {
	if write {
		return disk.OpWrite
	}
	return disk.OpRead
}

// Actions of a checkpoint under way at a time: enough for any disk, and few enough
// that what a client waits for is not behind thousands.
const (
	laterOnRing    = 64
	laterOnWorkers = writeWorkers / 2
)

// start begins an action of the engine at the next submit, or puts it off.
func (d *device) start(io disk.IO) {
	if io.Later {
		d.later = append(d.later, io)
		return
	}
	d.begin(io)
}

func (d *device) begin(io disk.IO) {
	if d.ring != nil && (io.Op == disk.OpRead || io.Op == disk.OpWrite) &&
		d.ring.Add(blockdev.RingOp{Token: io.ID, Later: io.Later, Write: io.Op == disk.OpWrite, Offset: io.Offset, Bufs: io.Bufs}) {
		d.queued = true
		return
	}
	d.toWorker(io)
}

// submit begins what start has gathered. What was put off goes in runs of half of
// what may be under way: a system call each would be dear.
func (d *device) submit() {
	limit := laterOnWorkers
	if d.ring != nil {
		limit = laterOnRing
	}
	if d.laterOut <= limit/2 {
		n := min(limit-d.laterOut, len(d.later))
		for _, io := range d.later[:n] {
			d.begin(io)
		}
		d.laterOut += n
		clear(d.later[:n])
		if d.later = d.later[n:]; len(d.later) == 0 {
			d.later = nil
		}
	}
	if d.queued {
		d.queued = false
		d.ring.Submit()
	}
}

// toWorker hands an action of the engine to a worker.
func (d *device) toWorker(io disk.IO) {
	switch io.Op {
	case disk.OpRead:
		d.reads.add(io)
	case disk.OpSync:
		d.syncs.add(io)
	default:
		d.writes.add(io)
	}
}

func (d *device) perform(io disk.IO) {
	if io.Op != disk.OpWrite || io.Length > latencyBytes {
		d.ended(d, &io, perform(d.file, io))
		return
	}
	began := time.Now()
	err := perform(d.file, io)
	d.lat.add(time.Since(began))
	d.ended(d, &io, err)
}

// perform does one action and waits for it.
func perform(f blockdev.File, io disk.IO) error {
	switch io.Op {
	case disk.OpRead:
		off := io.Offset
		for _, b := range io.Bufs {
			if _, err := f.ReadAt(b, off); err != nil {
				return err
			}
			off += int64(len(b))
		}
		return nil
	case disk.OpWrite:
		return f.WritevAt(io.Bufs, io.Offset)
	case disk.OpSync:
		return f.Datasync()
	case disk.OpZero:
		return zero(f, io.Offset, io.Length)
	}
	return fmt.Errorf("disk action of kind %d", io.Op)
}

// zero makes a range read as zeros.
func zero(f blockdev.File, off, length int64) error {
	zeros := zeroBytes()
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if err := f.WritevAt([][]byte{zeros[:n]}, off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// zeroBytes is shared, read-only memory.
var zeroBytes = sync.OnceValue(func() []byte { return mapMemory(4 << 20) })

// stop closes the disk. Workers that hang in the kernel are left behind:
// they hold the file, and with it its lock, until they return.
func (d *device) stop() {
	d.unshare()
	d.closeWorkers()
	if d.ring != nil {
		d.ring.Close()
	}
	if d.file != nil {
		if err := d.file.Close(); err != nil {
			d.log.Warn("close disk", "err", err)
		}
	}
}

func (d *device) closeWorkers() {
	d.reads.close()
	d.writes.close()
	d.syncs.close()
}

// wait waits until the workers are gone, or ctx ends.
func (d *device) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.reads.wg.Wait()
		d.writes.wg.Wait()
		d.syncs.wg.Wait()
		if d.ring != nil {
			<-d.ring.Ended()
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// gone reports whether an error says that the device was taken away, rather
// than that it is sick.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, errs.NotFound)
}

// openRetry is how often an opening that may succeed later is tried.
const openRetry = 200 * time.Millisecond

// openFile opens the file of d, waiting for a predecessor that still holds it: its
// last write may be under way [S20]. One that another disk of this process has is not
// waited for.
func (p *process) openFile(ctx context.Context, d *device) (blockdev.File, error) {
	for waited := false; ; waited = true {
		path, err := p.pathOf(d)
		if err != nil {
			return nil, err
		}
		f, err := p.o.Open(path)
		if err == nil || !errors.Is(err, errs.Conflict) {
			return f, err
		}
		if !waited {
			d.log.Info("disk is held by another process; waiting for it", "err", err)
		}
		if err := clock.Sleep(ctx, openRetry); err != nil {
			return nil, err
		}
	}
}

// recoverDisk opens the engine on f and runs its recovery, one action after
// another, in the caller's goroutine.
func recoverDisk(ctx context.Context, f blockdev.File, o disk.Options) (*disk.Core, disk.Recovery, error) {
	o.DeviceBytes = f.Size()
	c := disk.Open(o)
	var r disk.Ready
	for {
		c.Ready(&r)
		ios := append([]disk.IO(nil), r.IO...)
		for _, io := range ios {
			if ctx.Err() != nil {
				return nil, disk.Recovery{}, context.Cause(ctx)
			}
			c.Done(io.ID, perform(f, io))
		}
		rec, ended, err := c.Opened()
		if err != nil {
			return nil, rec, err
		}
		if ended {
			return c, rec, nil
		}
		if len(ios) == 0 && len(r.Done) == 0 {
			return nil, rec, errs.New(errs.Corrupt, "recover disk: the engine waits for nothing")
		}
	}
}

// formatDisk makes an empty disk of f.
func formatDisk(f blockdev.File, id disk.Identity, wal int64, now time.Time) error {
	if wal == 0 {
		wal = walBytes(f.Size())
	}
	ios, err := disk.Format(id, disk.Geometry{DeviceBytes: f.Size(), WALBytes: wal, UnixTime: now.Unix()})
	if err != nil {
		return err
	}
	for _, io := range ios {
		if err := perform(f, io); err != nil {
			return err
		}
	}
	return nil
}
