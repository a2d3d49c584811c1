package volume

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/direct"
	"roseau/internal/block/nbd"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/driver/blockdev"
)

// disks reads copies on this node past the storage process: the hands of the
// core's DirectRead and WantPlaces. docs/design/direct-reads.md.
type disks struct {
	s    *Set
	open map[ids.ID]*localDisk // the turn's

	// Of a turn.
	patient bool // whoever has the turn may wait for one read
	lone    *directRead
	begun   []*localDisk // with reads to be submitted

	mu     sync.Mutex // one question at a time
	client *direct.Client
	free   sync.Pool // of *directRead
}

// localDisk is a disk of this node under one session of its owner.
type localDisk struct {
	id      ids.ID
	session uint64
	file    blockdev.File
	cells   *direct.Cells
	ring    *blockdev.Ring // nil: the kernel has none
	solo    *blockdev.Solo
	alone   atomic.Bool  // solo is in use
	refs    atomic.Int64 // reads under way, +1 while it is the open one
	queued  bool         // the turn's: in disks.begun

	mu    sync.Mutex
	slots []*directRead // by token of the ring
	free  []uint64

	doneMu sync.Mutex     // the ring's goroutine, or a turn that gives the ring up
	ended  []writer.Event // of one call of the ring
}

// directRead is a read under way. It is an event when it has ended: the embedded
// one is nil, as in callEvent.
type directRead struct {
	writer.Event
	done writer.DirectDone
	vol  int
	read place.Read
	disk *localDisk
	bufs [1][]byte
}

func newDisks(s *Set) *disks {
	return &disks{s: s, open: map[ids.ID]*localDisk{}, free: sync.Pool{New: func() any { return new(directRead) }}}
}

// want answers WantPlaces.
func (d *disks) want(e writer.WantPlaces) {
	d.s.wg.Go(func() {
		answer := writer.PlacesKnown{Serial: e.Serial, Extent: e.Extent}
		l, m, err := d.ask(e)
		switch {
		case err == nil:
			answer.Map = m
		case errors.Is(err, errs.NotFound) || direct.Refused(err) && l == nil && m == nil && errors.Is(err, errNoDisk):
			d.s.log.Info("reads of a local disk go by message", "disk", e.Disk, "cause", err)
			answer.Off = true
		default:
			d.s.log.Debug("ask where blocks stand", "disk", e.Disk, "cause", err)
		}
		var taken atomic.Bool // by the turn, or by nobody because there are none any more
		told := make(chan struct{})
		d.s.call(func() {
			defer close(told)
			if l != nil && !taken.Swap(true) {
				d.put(l)
			}
			d.s.step(answer)
		})
		select {
		case <-told:
		case <-d.s.ctx.Done():
			if l != nil && !taken.Swap(true) {
				l.close()
			}
		}
	})
}

// errNoDisk: the storage process does not give the disk away.
var errNoDisk = errors.New("it is not given to others")

// ask gets the map of an extent, and the disk if there is none of its session.
func (d *disks) ask(e writer.WantPlaces) (l *localDisk, m *place.Map, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		if err != nil && !direct.Refused(err) && d.client != nil {
			d.client.Close()
			d.client = nil
		}
	}()
	if d.client == nil {
		if d.client, err = direct.Dial(d.s.cfg.StorageSocket); err != nil {
			d.client = nil
			return nil, nil, err
		}
	}
	client := d.client
	defer context.AfterFunc(d.s.ctx, func() { client.Close() })()
	if m, err = client.Places(e.Disk, e.Volume, uint64(e.Extent)); err != nil {
		return nil, nil, err
	}
	known := make(chan bool, 1)
	d.s.call(func() { o := d.open[e.Disk]; known <- o != nil && o.session == m.Session })
	select {
	case ok := <-known:
		if ok {
			return nil, m, nil
		}
	case <-d.s.ctx.Done():
		return nil, nil, errs.New(errs.Unavailable, "the set is closed")
	}
	f, cells, session, err := client.Disk(e.Disk)
	if err != nil {
		if direct.Refused(err) {
			err = errors.Join(err, errNoDisk)
		}
		return nil, nil, err
	}
	file, err := blockdev.Shared(f)
	if err != nil {
		return nil, nil, errors.Join(err, cells.Close())
	}
	l = &localDisk{id: e.Disk, session: session, file: file, cells: cells}
	l.refs.Store(1)
	l.rings(d)
	if l.ring == nil {
		l.release()
		return nil, nil, errs.New(errs.NotFound, "read disk %s: the kernel has no io_uring", e.Disk.Short())
	}
	return l, m, nil
}

func (l *localDisk) rings(d *disks) {
	var err error
	if l.ring, err = blockdev.NewRing(l.file, func(list []blockdev.RingResult) { d.ringDone(l, list) }); err != nil {
		return
	}
	if l.solo, err = blockdev.NewSolo(l.file); err != nil {
		d.s.log.Info("lone reads share the ring", slog.Any("cause", err))
	}
}

// put makes l the open one of its disk. In the turn.
func (d *disks) put(l *localDisk) {
	if o := d.open[l.id]; o != nil {
		o.close()
	}
	d.open[l.id] = l
}

// forgetOld closes disks that their owner has given up or opened anew, so that one
// that was pulled is not held by a reader. In the turn.
func (d *disks) forgetOld() {
	for id, l := range d.open {
		if l.cells.Session() != l.session {
			l.close()
			delete(d.open, id)
		}
	}
}

// closeAll gives the disks up; reads under way end later. There are no turns any more.
func (d *disks) closeAll() {
	for _, l := range d.open {
		l.close()
	}
	clear(d.open)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		d.client.Close()
	}
}

// close lets nothing begin any more.
func (l *localDisk) close() {
	l.ring.Close()
	l.release()
}

// release gives back a use of l; the last one closes it.
func (l *localDisk) release() {
	if l.refs.Add(-1) > 0 {
		return
	}
	if l.ring != nil {
		l.ring.Close()
	}
	if l.solo != nil {
		l.solo.Close()
	}
	l.cells.Close()
	l.file.Close()
}

// begin takes a read of the core. In the turn.
func (d *disks) begin(r *writer.DirectRead, only bool) {
	x := d.free.Get().(*directRead)
	x.done, x.vol, x.read, x.disk = writer.DirectDone{ID: r.ID}, r.Volume, r.Read, d.open[r.Disk]
	l := x.disk
	if l == nil || l.session != r.Read.Session {
		d.s.post(x) // the next turn tells the core that it failed
		return
	}
	x.bufs[0] = nbd.Pool{}.Alloc(len(r.Read.CRC) * nbd.BlockBytes)
	l.refs.Add(1)
	if only && d.patient && d.lone == nil && l.solo != nil && l.refs.Load() == 2 && !l.alone.Swap(true) {
		d.lone = x
		return
	}
	d.toRing(x)
}

func (d *disks) toRing(x *directRead) {
	l := x.disk
	l.mu.Lock()
	var token uint64
	if n := len(l.free); n > 0 {
		token, l.free = l.free[n-1], l.free[:n-1]
		l.slots[token] = x
	} else {
		token = uint64(len(l.slots))
		l.slots = append(l.slots, x)
	}
	l.mu.Unlock()
	if !l.ring.Add(blockdev.RingOp{Token: token, Offset: x.read.Offset, Bufs: x.bufs[:]}) {
		l.mu.Lock()
		l.take(token)
		l.mu.Unlock()
		nbd.Pool{}.Free(x.bufs[0])
		x.bufs[0], x.done.Busy = nil, true
		l.release()
		d.s.post(x)
		return
	}
	if !l.queued {
		l.queued = true
		d.begun = append(d.begun, l)
	}
}

func (l *localDisk) take(token uint64) *directRead {
	x := l.slots[token]
	l.slots[token] = nil
	l.free = append(l.free, token)
	return x
}

// submit begins what the turn has gathered.
func (d *disks) submit() {
	for i, l := range d.begun {
		l.queued = false
		l.ring.Submit()
		d.begun[i] = nil
	}
	d.begun = d.begun[:0]
}

// ringDone is called by the ring of l.
func (d *disks) ringDone(l *localDisk, list []blockdev.RingResult) {
	l.doneMu.Lock()
	defer l.doneMu.Unlock()
	for i := range list {
		l.mu.Lock()
		x := l.take(list[i].Token)
		l.mu.Unlock()
		err := list[i].Err
		if list[i].Again {
			err = errs.New(errs.Unavailable, "read in part")
		}
		x.end(err)
		l.ended = append(l.ended, x)
	}
	d.s.postAll(l.ended)
	clear(l.ended)
	l.ended = l.ended[:0]
}

// end judges what was read, after it was read and before anybody is told: the
// bytes are what the writer wrote, and the place was the extent's all the time.
func (x *directRead) end(err error) {
	x.done.OK = err == nil && wire.Verify(x.bufs[0], x.read.CRC) && x.read.Valid(x.disk.cells)
	if x.done.OK {
		x.done.Data = x.bufs[0]
	} else {
		nbd.Pool{}.Free(x.bufs[0])
	}
	x.bufs[0] = nil
	x.disk.release()
}

// patience is how long a reader of a connection waits for a disk: what comes
// behind the read must not wait for one that hangs.
const patience = 4 * time.Millisecond

// alone does the read that a turn has left to whoever ran it. nil: it has not
// ended, and is told of later.
func (d *disks) alone(x *directRead) *directRead {
	l := x.disk
	ended, err := l.solo.Read(x.bufs[:], x.read.Offset, patience)
	if ended {
		l.alone.Store(false)
		x.end(err)
		return x
	}
	go func() { // a disk that hangs is waited for by nobody, not even by Close
		err := l.solo.Wait()
		l.alone.Store(false)
		x.end(err)
		d.s.post(x)
	}()
	return nil
}

// stepDirect tells the core of a read's end. In the turn.
func (s *Set) stepDirect(x *directRead) {
	if x.done.OK {
		s.vols[x.vol].readsDirect.Add(1)
	}
	s.step(&x.done)
	x.done, x.read, x.disk = writer.DirectDone{}, place.Read{}, nil
	s.disks.free.Put(x)
}
