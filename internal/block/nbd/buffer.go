package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

// A buffer is memory for a payload, aligned to BlockBytes so that it can go to a
// disk opened with O_DIRECT without a copy. It is ordinary garbage-collected
// memory: whoever keeps a slice of it keeps it alive, and returning it to the
// pool is an optimisation that Request.Keep forbids.
type buffer struct {
	data  []byte // whole capacity, a power of two
	class int
}

const (
	minClass = 12 // 4 KiB
	maxClass = 25 // 32 MiB
)

var pools [maxClass + 1]sync.Pool

// slab is memory that small buffers are cut from when the pool is empty: a
// backend that keeps its payloads takes a new one for each, and page alignment
// would double the cost of each allocation. The whole slab lives as long as any
// piece. The zero slab is empty.
type slab struct{ left []byte }

const slabBytes = 512 << 10

func (s *slab) cut(n int) []byte {
	if len(s.left) < n {
		s.left = aligned(slabBytes)
	}
	b := s.left[:n:n]
	s.left = s.left[n:]
	return b
}

// getBuffer returns a buffer of at least n bytes, 0 < n <= MaxPayloadBytes. The
// contents are arbitrary. s may be nil.
func getBuffer(n int, s *slab) *buffer {
	class := max(bits.Len(uint(n-1)), minClass)
	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	if s != nil && 1<<class <= slabBytes/8 {
		return &buffer{data: s.cut(1 << class), class: class}
	}
	return &buffer{data: aligned(1 << class), class: class}
}

// Pool is the memory of payloads, for what reads data that ends in a reply: see
// Request.Pooled. The zero value is ready; all are one.
type Pool struct{}

// Alloc returns byteCount bytes of any content, 0 < byteCount <= MaxPayloadBytes
// from the pool, aligned to BlockBytes; more are ordinary memory.
func (Pool) Alloc(byteCount int) []byte {
	if byteCount > MaxPayloadBytes {
		return make([]byte, byteCount)
	}
	b := getBuffer(byteCount, nil)
	p := b.data[:byteCount]
	b.data = nil
	shells.Put(b)
	return p
}

// shells are buffers whose memory Alloc has given away, so that taking it back
// makes no garbage.
var shells = sync.Pool{New: func() any { return new(buffer) }}

// Free takes memory back that nobody uses any more. What is not from a pool is
// left to the collector.
func (Pool) Free(p []byte) {
	n := cap(p)
	class := bits.Len(uint(n)) - 1
	if class < minClass || class > maxClass || n != 1<<class || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%BlockBytes != 0 {
		return
	}
	b := shells.Get().(*buffer)
	b.data, b.class = p[:n:n], class
	putBuffer(b)
}

func putBuffer(b *buffer) { pools[b.class].Put(b) }

// aligned returns n bytes that start at a multiple of BlockBytes.
func aligned(n int) []byte {
	raw := make([]byte, n+BlockBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (BlockBytes - 1)
	return raw[skip : skip+n : skip+n]
}

// zeros is the source of the bytes of a range that reads as zeros.
var zeros = make([]byte, 1<<20)
