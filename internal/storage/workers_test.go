package storage

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"roseau/internal/block/disk"
)

// A worker blocks in a thread that runs nothing else: what other goroutines have put
// into a ring is completed all the same.
func TestWorkersHaveThreadsOfTheirOwn(t *testing.T) {
	var w workers
	tids := make(chan int)
	w.init(1, func(disk.IO) { tids <- unix.Gettid() })
	w.add(disk.IO{})
	worker := <-tids // the thread is taken now; before, it ran anything
	for range 200 {
		w.add(disk.IO{})
		var others [8]int
		var wg sync.WaitGroup
		for i := range others {
			wg.Go(func() { others[i] = unix.Gettid() })
		}
		tid := <-tids
		wg.Wait()
		if tid != worker {
			t.Fatalf("the worker has moved from thread %d to %d", worker, tid)
		}
		for _, o := range append(others[:], unix.Gettid()) {
			if o == worker {
				t.Fatalf("another goroutine runs on the worker's thread %d", worker)
			}
		}
	}
	w.close()
	w.wg.Wait()
}

// A reader does the I/O of a lone message itself only if its thread can have nothing
// in the ring of another disk.
func TestOthersIdle(t *testing.T) {
	a, b := &device{}, &device{}
	p := &process{disks: []*device{a, b}}
	a.inflight = 3
	if !p.othersIdle(a) {
		t.Error("the disk itself counts")
	}
	if p.othersIdle(b) {
		t.Error("another disk that is busy does not count")
	}
	a.later = make([]disk.IO, 3)
	if !p.othersIdle(b) {
		t.Error("what is put off counts")
	}
}
