package guard

import (
	"sync"

	"roseau/internal/core/vmguard"
)

// item is an event for the core, or something for the loop itself to do.
type item struct {
	event vmguard.Event
	do    func()
}

// queue is unbounded: no goroutine waits for the loop.
type queue struct {
	mu    sync.Mutex
	items []item
	wake  chan struct{} // buffered 1
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) put(i item) {
	q.mu.Lock()
	q.items = append(q.items, i)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) take() []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items
	q.items = nil
	return i
}
