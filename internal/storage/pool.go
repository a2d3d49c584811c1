package storage

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"roseau/internal/driver/blockdev"
)

// pool is page-aligned memory off the heap in classes of powers of two. It is
// mapped in arenas and kept for reuse. A slice's capacity is its class.
type pool struct {
	classes [poolClasses]poolClass
	used    atomic.Int64 // bytes handed out, by class
}

const (
	poolClasses = 11 // 4 KiB to 4 MiB
	arenaBytes  = 4 << 20
)

type poolClass struct {
	mu   sync.Mutex
	free [][]byte
}

func classOf(n int) int {
	return max(bits.Len(uint(n-1))-bits.Len(uint(blockdev.Align-1)), 0)
}

// Alloc returns n bytes of any content at an aligned address.
func (p *pool) Alloc(n int) []byte {
	if n <= 0 {
		return nil
	}
	c := classOf(n)
	if c >= poolClasses { // rare and large: a mapping of its own
		size := (n + blockdev.Align - 1) / blockdev.Align * blockdev.Align
		p.used.Add(int64(size))
		return mapMemory(size)[:n]
	}
	size := blockdev.Align << c
	p.used.Add(int64(size))
	k := &p.classes[c]
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.free) == 0 {
		arena := mapMemory(arenaBytes)
		for off := 0; off < arenaBytes; off += size {
			k.free = append(k.free, arena[off:off+size:off+size])
		}
	}
	b := k.free[len(k.free)-1]
	k.free = k.free[:len(k.free)-1]
	return b[:n]
}

// Free takes back a slice from Alloc.
func (p *pool) Free(b []byte) {
	size := cap(b)
	if size == 0 {
		return
	}
	p.used.Add(-int64(size))
	b = b[:size]
	c := classOf(size)
	if c >= poolClasses {
		if err := unix.Munmap(b); err != nil {
			panic(fmt.Sprintf("storage: free %d bytes that are not of the pool: %v", size, err))
		}
		return
	}
	if size != blockdev.Align<<c {
		panic(fmt.Sprintf("storage: free a slice of capacity %d, which is not of the pool", size))
	}
	k := &p.classes[c]
	k.mu.Lock()
	k.free = append(k.free, b)
	k.mu.Unlock()
}

func mapMemory(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(fmt.Sprintf("storage: map %d bytes: %v", n, err)) // out of memory, as an allocation would be
	}
	return b
}
