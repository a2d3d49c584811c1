package nbd

import (
	"sync"
	"sync/atomic"
)

// memBackend is a device in memory that answers from its own goroutine, each
// batch in reverse, so that replies really are out of order.
type memBackend struct {
	mu      sync.Mutex
	data    []byte
	have    []bool // per block: written since the last trim or zero
	ro      bool
	flushes atomic.Int64
	q       chan []*Request
	stall   sync.RWMutex // held for writing: nothing is answered
}

func newMem(size int) *memBackend {
	m := &memBackend{data: make([]byte, size), have: make([]bool, size/BlockBytes), q: make(chan []*Request, 1024)}
	go func() {
		for rs := range m.q {
			for i := len(rs) - 1; i >= 0; i-- {
				m.do(rs[i])
			}
		}
	}()
	return m
}

func (m *memBackend) SizeBytes() int64 { return int64(len(m.data)) }
func (m *memBackend) ReadOnly() bool   { return m.ro }
func (m *memBackend) Submit(rs []*Request) {
	m.q <- append([]*Request(nil), rs...)
}

func (m *memBackend) do(r *Request) {
	m.stall.RLock()
	defer m.stall.RUnlock()
	m.mu.Lock()
	switch r.Op {
	case OpRead:
		r.Zero = true
		for b := r.Offset / BlockBytes; b < (r.Offset+r.Length)/BlockBytes; b++ {
			r.Zero = r.Zero && !m.have[b]
		}
		if !r.Zero {
			copy(r.Alloc(), m.data[r.Offset:])
		}
	case OpWrite:
		copy(m.data[r.Offset:], r.Data)
		m.mark(r, true)
	case OpZero, OpTrim:
		clear(m.data[r.Offset : r.Offset+r.Length])
		m.mark(r, r.Flags&FlagNoHole != 0)
	case OpFlush:
		m.flushes.Add(1)
	case OpStatus:
		for b := r.Offset / BlockBytes; b < (r.Offset+r.Length)/BlockBytes; b++ {
			r.Spans = append(r.Spans, Span{Length: BlockBytes, Hole: !m.have[b]})
		}
	}
	m.mu.Unlock()
	r.Done(nil)
}

func (m *memBackend) mark(r *Request, v bool) {
	for b := r.Offset / BlockBytes; b < (r.Offset+r.Length)/BlockBytes; b++ {
		m.have[b] = v
	}
}

func (m *memBackend) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.data)
}
