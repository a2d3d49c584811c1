package disk

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// The mix is part of the disk format: the crc32c of the volume and the block.
func TestBlockMix(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		v, block := ids.New(), rnd.Uint64()
		want := crc32.Checksum(binary.LittleEndian.AppendUint64(v[:], block), castagnoli)
		if got := blockMix(volumeCRC(v), block); got != want {
			t.Fatalf("volume %s, block %d: %#08x, want %#08x", v, block, got, want)
		}
	}
}

// Tags are looked at for each block that is read or applied.
func TestTagsAllocateNothing(t *testing.T) {
	img := make([]byte, imageHeaderBytes+repl.ExtentBlocks*tagBytes)
	want := wire.Tag{CRC: 7, Stamp: 9}
	n := testing.AllocsPerRun(100, func() {
		setTag(img, 1, repl.ExtentBlocks, 2, 3, want)
		if got := tagAt(img, 1, repl.ExtentBlocks, 2, 3); got != want {
			t.Fatal(got)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a tag", n)
	}
}
