package disk_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
)

// testCells are disk.Cells in ordinary memory.
type testCells struct {
	session  uint64
	versions map[uint64]uint64
}

func (c *testCells) Session() uint64            { return c.session }
func (c *testCells) Version(slot uint64) uint64 { return c.versions[slot] }
func (c *testCells) Freed(slot uint64)          { c.versions[slot]++ }

// outsider reads a volume past the engine, as a writer does that has asked for
// maps and knows its own writes.
type outsider struct {
	*fixture
	r       *rand.Rand
	cells   *testCells
	want    map[uint64][][]byte // what the head shows; nil: zeros
	maps    map[uint64]*place.Map
	touched map[uint64][]bool
	read    int
	moved   int // reads of a slot that was freed
	stale   string
}

const outsiderExtents = 6

func (o *outsider) ask(extent uint64) {
	tok := o.next()
	o.touched[extent], o.maps[extent] = make([]bool, extentBlocks), nil
	o.Core.Places(tok, vol1, extent)
	if c := o.wait(tok); c.Status == wire.OK {
		o.maps[extent] = c.Places
	} else if c.Status != wire.Busy {
		o.t.Fatalf("places of extent %d: status %d", extent, c.Status)
	}
}

// look reads a block past the engine.
func (o *outsider) look(extent uint64, block int) {
	m := o.maps[extent]
	if m == nil || o.touched[extent][block] {
		return
	}
	r, ok := m.Find(block, 1)
	if !ok {
		return
	}
	got := make([]byte, disk.BlockBytes)
	o.Disk.ReadAt(got, r.Offset)
	if !r.Valid(o.cells) {
		o.moved++
		return
	}
	o.read++
	if want := o.want[extent][block]; !bytes.Equal(got, want) {
		o.stale = fmt.Sprintf("extent %d block %d: read %x, the volume has %x; slot %d", extent, block, got[:4], want, r.Slot)
	} else if crcs(got)[0] != r.CRC[0] {
		o.stale = fmt.Sprintf("extent %d block %d: checksum of the map", extent, block)
	}
}

// change writes something; false: the disk is full.
func (o *outsider) change(wseq uint64, object uint32) bool {
	extent := uint64(o.r.IntN(outsiderExtents))
	block := o.r.IntN(extentBlocks)
	n := 1 + o.r.IntN(min(8, extentBlocks-block))
	kind := disk.KindWrite
	var data []byte
	switch o.r.IntN(12) {
	case 0:
		kind, block, n = disk.KindTombstone, 0, extentBlocks
	case 1:
		kind = disk.KindZero
	default:
		data = make([]byte, n*disk.BlockBytes)
		for i := 0; i < len(data); i += disk.BlockBytes {
			copy(data[i:], fmt.Sprintf("%d/%d", wseq, i))
		}
	}
	for b := block; b < block+n; b++ {
		if t := o.touched[extent]; t != nil {
			t[b] = true
		}
		if o.want[extent][b] = nil; data != nil {
			o.want[extent][b] = bytes.Clone(data[(b-block)*disk.BlockBytes:][:disk.BlockBytes])
		}
	}
	rec := o.record(kind, vol1, 1, wseq, extent, block, n, data)
	rec.Object = object
	s := o.append(rec)
	if s != wire.OK && s != wire.NoSpace {
		o.t.Fatalf("change %d: status %d", wseq, s)
	}
	return s == wire.OK
}

// runOutsider returns what an outsider read that the volume does not have, or "".
func runOutsider(t *testing.T, seed uint64, set func(*disk.Mutations)) (o *outsider) {
	t.Helper()
	cells := &testCells{session: 1, versions: map[uint64]uint64{}}
	opt := disk.Options{FreshBlocks: 2, TagCacheBytes: 1 << 14, Cells: cells}
	set(&opt.Mutations)
	r := rand.New(rand.NewPCG(seed, 7))
	v, _, err := disktest.Open(format(t), opt, r)
	if err != nil {
		t.Fatal(err)
	}
	o = &outsider{fixture: &fixture{Driver: v, t: t}, r: r, cells: cells, want: map[uint64][][]byte{},
		maps: map[uint64]*place.Map{}, touched: map[uint64][]bool{}}
	for e := range uint64(outsiderExtents) {
		o.want[e] = make([][]byte, extentBlocks)
	}
	o.promise(vol1, 1)
	object, told := uint32(0), []uint32(nil)
	for wseq := uint64(1); wseq <= 250 && o.stale == ""; wseq++ {
		switch r.IntN(12) {
		case 0:
			o.ask(uint64(r.IntN(outsiderExtents)))
		case 1:
			o.Core.Idle()
		case 2:
			o.flushAll(wseq - 1)
			o.Core.Merge()
		case 3:
			if len(told) < 2 {
				object++
				told = append(told, object)
			} else {
				told = told[1:]
			}
			o.tell(wire.Told{CfgVersion: uint32(wseq), Whole: true, Complete: true, SnapSeq: object, Snaps: told})
		}
		if !o.change(wseq, object) {
			break
		}
		for range r.IntN(6) {
			o.Step()
			o.look(uint64(r.IntN(outsiderExtents)), r.IntN(extentBlocks))
		}
		for e := range uint64(outsiderExtents) {
			for b := range extentBlocks {
				o.look(e, b)
			}
		}
	}
	return o
}

func TestPlacesStayTrue(t *testing.T) {
	read, moved := 0, 0
	for seed := range uint64(12) {
		o := runOutsider(t, seed, func(*disk.Mutations) {})
		if o.stale != "" {
			t.Fatalf("seed %d: %s", seed, o.stale)
		}
		read, moved = read+o.read, moved+o.moved
	}
	if read < 1000 || moved < 50 {
		t.Fatalf("%d blocks read in place, %d of slots that were freed: the test looks at nothing", read, moved)
	}
}

func TestPlaceMutantsAreCaught(t *testing.T) {
	for name, set := range map[string]func(*disk.Mutations){
		"FreedUnseen":  func(m *disk.Mutations) { m.FreedUnseen = true },
		"PlacePending": func(m *disk.Mutations) { m.PlacePending = true },
	} {
		caught := false
		for seed := uint64(0); seed < 30 && !caught; seed++ {
			caught = runOutsider(t, seed, set).stale != ""
		}
		if !caught {
			t.Errorf("%s: not caught", name)
		}
	}
}

func TestPlacesAreRefused(t *testing.T) {
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 1)
	tok := f.next()
	f.Core.Places(tok, vol1, 0)
	if c := f.wait(tok); c.Status != wire.BadRequest || c.Places != nil {
		t.Fatalf("without cells: %+v", c)
	}
}
