package probe

import (
	"net/netip"
	"testing"

	"roseau/internal/base/errs"
)

func TestConfigRoundTrip(t *testing.T) {
	c := Config{Name: "drill", Address: netip.MustParsePrefix("10.202.6.200/16"), Gateway: netip.MustParseAddr("10.202.255.254"), Seed: 7}
	b, err := EncodeConfig(c)
	if err != nil || len(b) != ConfigBytes {
		t.Fatal(len(b), err)
	}
	got, err := DecodeConfig(b)
	if err != nil || got != c {
		t.Fatal(got, err)
	}
	b[30] ^= 1
	if _, err := DecodeConfig(b); errs.Kind(err) != errs.Corrupt {
		t.Fatal("a flipped bit passes:", err)
	}
}

func TestBlock(t *testing.T) {
	b := make([]byte, BlockBytes)
	if seq, _, err := DecodeBlock(b, 1, 5); seq != 0 || err != nil {
		t.Fatal("zeros:", seq, err)
	}
	EncodeBlock(b, 1, 42, 5, 7)
	if seq, boot, err := DecodeBlock(b, 1, 5); seq != 42 || boot != 7 || PeekSeq(b, 1) != 42 || PeekSeq(b, 2) != 0 || err != nil {
		t.Fatal(seq, err)
	}
	if _, _, err := DecodeBlock(b, 2, 5); err == nil {
		t.Fatal("another run's block passes")
	}
	if _, _, err := DecodeBlock(b, 1, 6); err == nil {
		t.Fatal("a misplaced block passes")
	}
	for _, at := range []int{0, 9, 17, 25, 29, 100, 4095} {
		b[at] ^= 0x10
		if _, _, err := DecodeBlock(b, 1, 5); err == nil {
			t.Fatalf("byte %d flipped passes", at)
		}
		b[at] ^= 0x10
	}
}

func TestSlotVisitsAll(t *testing.T) {
	seen := make([]bool, LogBlocks)
	for seq := range uint64(LogBlocks) {
		if s := Slot(seq); seen[s] {
			t.Fatalf("slot %d twice", s)
		} else {
			seen[s] = true
		}
	}
}

func FuzzDecodeConfig(f *testing.F) {
	b, _ := EncodeConfig(Config{Name: "x"})
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { DecodeConfig(b) })
}
