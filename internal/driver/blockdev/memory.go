package blockdev

import "unsafe"

// alignedBytes returns n zero bytes at an aligned address, from the Go heap: for
// the rare reads and writes outside the engine's pool.
func alignedBytes(n int) []byte {
	b := make([]byte, n+Align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Align - 1))
	return b[skip:][:n:n]
}
