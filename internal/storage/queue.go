package storage

import (
	"sync"

	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
)

// event is something for the loop. Exactly one of the kinds is set.
type event struct {
	conn   replica.Conn
	msg    wire.Message // from conn
	closed bool         // conn is gone

	disk *device // an action ended
	io   uint64
	err  error

	call func() // runs in the loop
}

// queue is the way into the loop: many writers, one reader that takes
// everything at once, one wake-up for all that came meanwhile.
type queue struct {
	mu     sync.Mutex
	events []event
	wake   chan struct{} // capacity 1
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) push(es ...event) {
	q.mu.Lock()
	first := len(q.events) == 0
	q.events = append(q.events, es...)
	q.mu.Unlock()
	if first {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// take swaps the gathered events for the memory of an emptied slice.
func (q *queue) take(reuse []event) []event {
	clear(reuse)
	q.mu.Lock()
	defer q.mu.Unlock()
	es := q.events
	q.events = reuse[:0]
	return es
}
