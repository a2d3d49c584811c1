package storage

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// latencyBytes is the largest write whose time tells of the disk and not of the
// amount.
const latencyBytes = 64 << 10

// latencies counts the times of finished writes in buckets of an eighth of an
// octave, in two windows that take turns: one fills, the last whole one is read.
type latencies struct {
	counts [2][latencyBuckets]atomic.Uint32
	turn   atomic.Uint32 // lowest bit: the one that fills
}

const latencyBuckets = 40 * 8

// bucketOf returns the bucket of a time: 8 a power of two nanoseconds.
func bucketOf(d time.Duration) int {
	n := uint64(max(d, 1))
	top := bits.Len64(n) - 1
	sub := n << (63 - top) >> 60 & 7
	return min(top*8+int(sub), latencyBuckets-1)
}

// timeOf is the middle of a bucket.
func timeOf(b int) time.Duration {
	base := uint64(1) << (b / 8)
	return time.Duration(base + base*uint64(b%8)/8 + base/16)
}

func (l *latencies) add(d time.Duration) { l.counts[l.turn.Load()&1][bucketOf(d)].Add(1) }

// swap ends the window that fills. One goroutine calls it.
func (l *latencies) swap() {
	next := (l.turn.Load() + 1) & 1
	for i := range l.counts[next] {
		l.counts[next][i].Store(0)
	}
	l.turn.Store(next)
}

// median of the last whole window, and how many writes it had.
func (l *latencies) median() (time.Duration, int) {
	c := &l.counts[(l.turn.Load()+1)&1]
	n := uint32(0)
	for i := range c {
		n += c[i].Load()
	}
	seen := uint32(0)
	for i := range c {
		if seen += c[i].Load(); n > 0 && seen >= (n+1)/2 {
			return timeOf(i), int(n)
		}
	}
	return 0, 0
}
