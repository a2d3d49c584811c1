package nbd

import (
	"testing"
	"unsafe"
)

func TestPool(t *testing.T) {
	var p Pool
	for _, n := range []int{BlockBytes, 3 * BlockBytes, 1 << 20, MaxPayloadBytes} {
		b := p.Alloc(n)
		if len(b) != n || uintptr(unsafe.Pointer(&b[0]))%BlockBytes != 0 {
			t.Errorf("%d bytes: got %d at %p", n, len(b), &b[0])
		}
		p.Free(b)
	}
	// What is not aligned, or of no class, must not come back.
	odd := make([]byte, 1<<20+BlockBytes)
	p.Free(odd[1 : 1<<13+1 : 1<<13+1])
	p.Free(odd[: 3*BlockBytes : 3*BlockBytes])
	for range 100 {
		if b := p.Alloc(2 * BlockBytes); uintptr(unsafe.Pointer(&b[0]))%BlockBytes != 0 {
			t.Fatal("an unaligned buffer")
		}
	}
}
