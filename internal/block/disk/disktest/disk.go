// Package disktest has a disk in memory that loses power like a real one, and a
// driver that runs a disk.Core on it step by step. Tests and the simulator use
// it; nothing here is part of the product.
//
// The model: writes go to a volatile cache in units of 512-byte sectors. An
// fdatasync makes durable what was finished when it began. A crash keeps any
// subset of the other sectors, those of unfinished writes too.
package disktest

import (
	"errors"
	"math/rand/v2"
	"slices"

	"roseau/internal/block/disk"
)

// SectorBytes is what a device writes atomically.
const SectorBytes = 512

const pageBytes = 4096

// Errors that a Fault may return.
var (
	ErrIO   = errors.New("input/output error")
	ErrFull = errors.New("no space left on device")
)

// Effect is what a Fault does to an action. The zero value does nothing.
type Effect struct {
	Err  error // reported; a failed write may leave any part of itself
	Lost bool  // a write or fdatasync that reports success and does nothing
	Move int64 // a write or read that happens so many bytes further
}

// Disk is a disk in memory. Pages are never changed, only replaced, so that a
// Clone costs little.
type Disk struct {
	Size  int64
	Fault func(io disk.IO) Effect // nil: no faults; asked once per action, when it finishes

	durable map[int64][]byte // page number -> content; absent = zeros
	current map[int64][]byte
	pending []write // finished, not durable, in order
	begun   []write // handed out, not finished
	serial  uint64
}

type write struct {
	id   uint64 // of the action
	seq  uint64
	off  int64
	data []byte
}

// New returns an empty disk.
func New(sizeBytes int64) *Disk {
	return &Disk{Size: sizeBytes, durable: map[int64][]byte{}, current: map[int64][]byte{}}
}

// Clone returns an independent copy, without Fault.
func (d *Disk) Clone() *Disk {
	c := &Disk{Size: d.Size, serial: d.serial, durable: map[int64][]byte{}, current: map[int64][]byte{}}
	for k, v := range d.durable {
		c.durable[k] = v
	}
	for k, v := range d.current {
		c.current[k] = v
	}
	c.pending, c.begun = slices.Clone(d.pending), slices.Clone(d.begun)
	return c
}

func put(m map[int64][]byte, off int64, data []byte) {
	for len(data) > 0 {
		page, at := off/pageBytes, off%pageBytes
		n := min(int64(len(data)), pageBytes-at)
		fresh := make([]byte, pageBytes)
		copy(fresh, m[page])
		copy(fresh[at:], data[:n])
		m[page] = fresh
		off, data = off+n, data[n:]
	}
}

func get(m map[int64][]byte, off int64, buf []byte) {
	for len(buf) > 0 {
		page, at := off/pageBytes, off%pageBytes
		n := min(int64(len(buf)), pageBytes-at)
		if p := m[page]; p != nil {
			copy(buf[:n], p[at:])
		} else {
			clear(buf[:n])
		}
		off, buf = off+n, buf[n:]
	}
}

func (d *Disk) zero(off, n int64) {
	for page := off / pageBytes; page < (off+n+pageBytes-1)/pageBytes; page++ {
		delete(d.durable, page)
		delete(d.current, page)
	}
}

// Begin tells the disk that an action was handed out: an fdatasync covers what
// was finished at this moment, and a crash may keep parts of a begun write.
func (d *Disk) Begin(io disk.IO) {
	d.serial++
	switch io.Op {
	case disk.OpWrite:
		d.begun = append(d.begun, write{id: io.ID, seq: d.serial, off: io.Offset, data: slices.Concat(io.Bufs...)})
	case disk.OpSync:
		d.begun = append(d.begun, write{id: io.ID, seq: d.serial})
	}
}

func (d *Disk) take(id uint64) write {
	i := slices.IndexFunc(d.begun, func(w write) bool { return w.id == id })
	w := d.begun[i]
	d.begun = slices.Delete(d.begun, i, i+1)
	return w
}

// Finish performs an action that was begun and returns its error.
func (d *Disk) Finish(io disk.IO) error {
	var e Effect
	if d.Fault != nil {
		e = d.Fault(io)
	}
	d.serial++
	switch io.Op {
	case disk.OpRead:
		off := io.Offset + e.Move
		for _, b := range io.Bufs {
			get(d.current, off, b)
			off += int64(len(b))
		}
	case disk.OpWrite:
		w := d.take(io.ID)
		if e.Lost {
			break
		}
		w.off += e.Move
		w.seq = d.serial
		d.pending = append(d.pending, w)
		if e.Err == nil {
			put(d.current, w.off, w.data)
		}
	case disk.OpSync:
		w := d.take(io.ID)
		if e.Err == nil && !e.Lost {
			d.flush(w.seq)
		}
	case disk.OpZero:
		d.zero(io.Offset, io.Length)
	}
	return e.Err
}

// Do begins and finishes an action.
func (d *Disk) Do(io disk.IO) error {
	d.Begin(io)
	return d.Finish(io)
}

func (d *Disk) flush(until uint64) {
	kept := d.pending[:0:0]
	for _, w := range d.pending {
		if w.seq < until {
			put(d.durable, w.off, w.data)
		} else {
			kept = append(kept, w)
		}
	}
	d.pending = kept
}

// Sector is a part of a write that a crash may keep or lose.
type Sector struct {
	Offset int64
	Write  int // which write it is a part of, from 0 in order
	data   []byte
}

// Volatile lists the sectors that a crash may keep or lose now: of finished and
// of begun writes, in order, without those that would change nothing.
func (d *Disk) Volatile() []Sector {
	var list []Sector
	old := make([]byte, SectorBytes)
	seen := map[int64]bool{}
	for i, w := range append(slices.Clone(d.pending), d.begun...) {
		for at := 0; at < len(w.data); at += SectorBytes {
			s := Sector{w.off + int64(at), i, w.data[at : at+SectorBytes]}
			get(d.durable, s.Offset, old)
			if seen[s.Offset] || !slices.Equal(old, s.data) {
				seen[s.Offset] = true
				list = append(list, s)
			}
		}
	}
	return list
}

// Crash ends all actions under way and keeps of list (from Volatile) what keep
// says. The disk is then as after power came back.
func (d *Disk) Crash(list []Sector, keep func(i int) bool) {
	for i, s := range list {
		if keep(i) {
			put(d.durable, s.Offset, s.data)
		}
	}
	d.pending, d.begun = nil, nil
	d.current = map[int64][]byte{}
	for k, v := range d.durable {
		d.current[k] = v
	}
}

// CrashRandom is Crash with a random subset; now and then with all or nothing
// kept, and the order of two writes of one sector is random too.
func (d *Disk) CrashRandom(r *rand.Rand) {
	list := d.Volatile()
	if r.IntN(4) == 0 {
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	p := []float64{0, 1, 0.5, r.Float64(), 0.97}[r.IntN(5)]
	d.Crash(list, func(int) bool { return r.Float64() < p })
}

// Kill ends the process, not the power: what was finished stays in the cache;
// of begun writes any sector may have landed.
func (d *Disk) Kill(r *rand.Rand) {
	for _, w := range d.begun {
		for at := 0; at < len(w.data); at += SectorBytes {
			if r.IntN(2) == 0 {
				s := write{seq: w.seq, off: w.off + int64(at), data: w.data[at : at+SectorBytes]}
				d.pending = append(d.pending, s)
				put(d.current, s.off, s.data)
			}
		}
	}
	d.begun = nil
}

// Flip changes one bit of what is stored, durably.
func (d *Disk) Flip(off int64, bit uint) {
	for _, m := range []map[int64][]byte{d.durable, d.current} {
		var b [1]byte
		get(m, off, b[:])
		b[0] ^= 1 << (bit % 8)
		put(m, off, b[:])
	}
}

// Overwrite stores bytes durably, past the cache.
func (d *Disk) Overwrite(off int64, data []byte) {
	put(d.durable, off, data)
	put(d.current, off, data)
}

// ReadAt implements io.ReaderAt on what a read would return now.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	get(d.current, off, p)
	return len(p), nil
}
