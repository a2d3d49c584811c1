package place_test

import (
	"bytes"
	"testing"

	"roseau/internal/block/place"
	"roseau/internal/core/repl"
)

type cells struct{ session, version uint64 }

func (c cells) Session() uint64         { return c.session }
func (c cells) Version(s uint64) uint64 { return c.version + s }

func sample() *place.Map {
	m := place.Empty(7, repl.ExtentBlocks)
	m.Slots = []place.Slot{{Number: 3, Version: 13, Offset: 1 << 20}, {Number: 4, Version: 14, Offset: 8 << 20}}
	for i := 10; i < 20; i++ {
		m.Source[i], m.CRC[i] = 1, uint32(1000+i)
	}
	for i := 20; i < 24; i++ {
		m.Source[i], m.CRC[i] = 2, uint32(1000+i)
	}
	return m
}

func TestFind(t *testing.T) {
	m := sample()
	for _, c := range []struct {
		block, count int
		ok           bool
		slot         uint64
		offset       int64
	}{
		{10, 10, true, 3, 1<<20 + 10*repl.BlockBytes},
		{20, 1, true, 4, 8<<20 + 20*repl.BlockBytes},
		{19, 2, false, 0, 0}, // of two slots
		{9, 2, false, 0, 0},  // the first is not in place
		{23, 2, false, 0, 0}, // the last is not
		{-1, 2, false, 0, 0},
		{10, 0, false, 0, 0},
		{repl.ExtentBlocks - 1, 2, false, 0, 0},
	} {
		r, ok := m.Find(c.block, c.count)
		if ok != c.ok || ok && (r.Slot != c.slot || r.Offset != c.offset || len(r.CRC) != c.count || r.CRC[0] != uint32(1000+c.block) || r.Session != 7) {
			t.Errorf("Find(%d, %d) = %+v, %v", c.block, c.count, r, ok)
		}
	}
}

func TestValidWantsSessionAndVersion(t *testing.T) {
	r, _ := sample().Find(10, 1)
	for _, c := range []struct {
		cells cells
		want  bool
	}{
		{cells{7, 10}, true},
		{cells{8, 10}, false}, // another opening of the disk
		{cells{7, 11}, false}, // the slot was given to something else
	} {
		if got := r.Valid(c.cells); got != c.want {
			t.Errorf("Valid with %+v = %v", c.cells, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sample().Append(nil))
	f.Add(place.Empty(1, repl.ExtentBlocks).Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := place.Decode(b)
		if err != nil {
			return
		}
		if again := m.Append(nil); !bytes.Equal(again, b) || len(b) > place.MaxBytes {
			t.Fatalf("%d bytes decode to a map of %d bytes", len(b), len(again))
		}
		for i := range repl.ExtentBlocks {
			m.Find(i, 1)
		}
	})
}
