package sim

import (
	"errors"
	"math/rand/v2"
	"slices"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
)

const (
	sectorBytes = 512
	superBytes  = 1 << 20 // the beginning of a disk, with two copies of the superblock
)

// simDisk is a disk with a volatile write cache: what no completed fdatasync
// covers may be kept or lost sector by sector when power fails.
type simDisk struct {
	id       ids.ID
	durable  map[int64]*[4096]byte // pages by page number
	cache    []cached              // in the order of the writes
	flying   []*inFlight           // writes handed over, not finished
	dead     bool                  // every I/O fails from now on
	foreign  bool                  // in its place is a disk of another node
	hungTill clock.Instant
	// syncHungTill is hungTill for fdatasync alone.
	syncHungTill clock.Instant
	stuck        []func() // actions that wait for the end of a hang
	rotten       int
	syncLies     bool
	rottenSupers int // bits flipped where superblocks are
	lies         lies
	cells        cells
	room         room
	everHung     bool
}

type cached struct {
	offset int64
	data   []byte
}

// inFlight is a write that has not finished.
type inFlight struct{ io disk.IO }

// landed: a write has finished.
func (d *simDisk) landed(f *inFlight) {
	if i := slices.Index(d.flying, f); i >= 0 {
		d.flying = slices.Delete(d.flying, i, i+1)
	}
}

var errDead = errors.New("input/output error")

func newSimDisk(id ids.ID) *simDisk {
	return &simDisk{id: id, durable: map[int64]*[4096]byte{}, cells: cells{versions: map[uint64]uint64{}}}
}

func (d *simDisk) die() { d.dead = true }

func (d *simDisk) hang(until clock.Instant) { d.hungTill, d.everHung = until, true }

// hangSync is hang for fdatasync alone.
func (d *simDisk) hangSync(until clock.Instant) { d.syncHungTill, d.everHung = until, true }

// wake ends a hang.
func (d *simDisk) wake(w *world) {
	d.hungTill, d.syncHungTill = 0, 0
	stuck := d.stuck
	d.stuck = nil
	for _, f := range stuck {
		w.after(w.between(w.profile.diskLo, w.profile.diskHi), f)
	}
}

// schedule lets f happen when an action that is handed over now has ended.
func (d *simDisk) schedule(w *world, op disk.Op, f func()) {
	t := w.between(w.profile.diskLo, w.profile.diskHi)
	hung := d.hungTill
	if op == disk.OpSync {
		hung = max(hung, d.syncHungTill)
	}
	if hung > w.now {
		t += hung.Sub(w.now)
		act, done := f, false
		f = func() {
			if !done {
				done = true
				act()
			}
		}
		d.stuck = append(d.stuck, f)
	}
	w.after(t, f)
}

// do performs an action at its completion.
func (d *simDisk) do(w *world, io disk.IO) error {
	if d.dead {
		return errDead
	}
	if io.Op == disk.OpWrite && d.lieWrite(w, io) || io.Op == disk.OpRead && d.lieRead(w, io) {
		return nil
	}
	switch io.Op {
	case disk.OpWrite:
		at := io.Offset
		for _, b := range io.Bufs {
			d.cache = append(d.cache, cached{at, slices.Clone(b)})
			at += int64(len(b))
		}
	case disk.OpZero:
		for p := io.Offset / 4096; p < (io.Offset+io.Length)/4096; p++ {
			delete(d.durable, p)
		}
	case disk.OpSync:
		if d.syncLies { // the device answers, and has nothing
			w.note("lying_sync")
			break
		}
		d.settle(len(d.cache))
	case disk.OpRead:
		at := io.Offset
		for _, b := range io.Bufs {
			d.read(b, at)
			at += int64(len(b))
		}
	}
	return nil
}

// settle makes the first n cached writes durable.
func (d *simDisk) settle(n int) {
	for _, c := range d.cache[:n] {
		for s := 0; s < len(c.data); s += sectorBytes {
			d.store(c.offset+int64(s), c.data[s:s+sectorBytes])
		}
	}
	d.cache = d.cache[n:]
}

func (d *simDisk) store(offset int64, sector []byte) {
	d.overwritten(offset)
	p := d.durable[offset/4096]
	if p == nil {
		p = new([4096]byte)
		d.durable[offset/4096] = p
	}
	copy(p[offset%4096:], sector)
}

func (d *simDisk) read(b []byte, offset int64) {
	clear(b)
	for i := 0; i < len(b); {
		at := offset + int64(i)
		n := min(4096-int(at%4096), len(b)-i)
		if p := d.durable[at/4096]; p != nil {
			copy(b[i:i+n], p[at%4096:])
		}
		i += n
	}
	for _, c := range d.cache {
		lo, hi := max(offset, c.offset), min(offset+int64(len(b)), c.offset+int64(len(c.data)))
		if lo < hi {
			copy(b[lo-offset:hi-offset], c.data[lo-c.offset:])
		}
	}
}

// flip turns over a bit of the durable page at offset.
func (d *simDisk) flip(rng *rand.Rand, offset int64) (at int64, ok bool) {
	page := d.durable[offset/4096]
	if page == nil {
		return 0, false
	}
	in := rng.IntN(4096)
	page[in] ^= 1 << rng.IntN(8)
	d.rotten++
	return offset/4096*4096 + int64(in), true
}

// rotBlock flips a bit of every durable page that holds a version of a block of
// the volume, and returns how many there were.
func (d *simDisk) rotBlock(block int) (pages int) {
	for page, data := range d.durable { // order does not show
		v, err := decodeValues(data[:], block, 1)
		if err == nil && v[0] != 0 {
			d.durable[page][17] ^= 1
			d.rotten++
			pages++
		}
	}
	return pages
}

// losePower keeps a random subset of the sectors that no fdatasync covered.
// Writes in flight are among them.
func (d *simDisk) losePower(w *world, keep float64) {
	rng := w.rng
	for _, f := range d.flying {
		d.do(w, f.io)
	}
	d.flying, d.stuck = nil, nil
	d.hungTill, d.syncHungTill = 0, 0
	for _, c := range d.cache {
		for s := 0; s < len(c.data); s += sectorBytes {
			if rng.Float64() < keep {
				d.store(c.offset+int64(s), c.data[s:s+sectorBytes])
			}
		}
	}
	d.cache = nil
}

// rot flips a bit of a page at rest and returns where.
func (d *simDisk) rot(rng *rand.Rand) (offset int64, ok bool) {
	if len(d.durable) == 0 || d.dead || d.rotten > 20 {
		return 0, false
	}
	pages := make([]int64, 0, len(d.durable))
	for p := range d.durable {
		pages = append(pages, p)
	}
	slices.Sort(pages)
	at := pages[rng.IntN(len(pages))] * 4096
	if at < superBytes || at >= diskBytes-tailBytes {
		if d.rottenSupers == 2 {
			return 0, false // of four copies of the superblock: a disk without any does not open
		}
		d.rottenSupers++
	}
	return d.flip(rng, at)
}
