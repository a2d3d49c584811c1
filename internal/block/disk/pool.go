package disk

import "unsafe"

// HeapPool is a Pool of aligned buffers on the Go heap, for tests and tools. It
// keeps what comes back by size and is not safe for concurrent use.
type HeapPool struct {
	free map[int][][]byte
	Live int // bytes handed out and not yet back
}

// Alloc returns an aligned buffer.
func (p *HeapPool) Alloc(byteCount int) []byte {
	p.Live += byteCount
	if l := p.free[byteCount]; len(l) > 0 {
		b := l[len(l)-1]
		p.free[byteCount] = l[:len(l)-1]
		return b
	}
	return alignedBuf(byteCount)
}

// Free takes a buffer back.
func (p *HeapPool) Free(buf []byte) {
	if p.free == nil {
		p.free = map[int][][]byte{}
	}
	p.Live -= len(buf)
	p.free[len(buf)] = append(p.free[len(buf)], buf)
}

func alignedBuf(byteCount int) []byte {
	raw := make([]byte, byteCount+BlockBytes)
	off := int(-uintptr(unsafe.Pointer(&raw[0])) & (BlockBytes - 1))
	return raw[off : off+byteCount : off+byteCount]
}
