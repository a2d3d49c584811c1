// Package clock is the only place that reads time. Cores get an Instant as an
// argument; shells read it from a Clock.
package clock

import (
	"context"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Instant is a point of CLOCK_BOOTTIME in nanoseconds. It goes on during
// suspend (Go's monotonic clock does not), is never set back, and means nothing
// outside the machine that read it. The zero Instant means "never".
type Instant int64

// Add returns i later by d.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the duration from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// Before reports whether i is earlier than j.
func (i Instant) Before(j Instant) bool { return i < j }

// Clock tells the time.
type Clock interface {
	Now() Instant    // boot time, for leases and timeouts
	Wall() time.Time // wall clock, for people and certificates only
}

// System is the machine's clock.
type System struct{}

// Now returns CLOCK_BOOTTIME. It does not tell Go's scheduler of the system call:
// it never blocks, and there are several for each request.
func (System) Now() Instant {
	var ts unix.Timespec
	if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic("clock: CLOCK_BOOTTIME: " + e.Error()) // cannot fail on Linux >= 2.6.39
	}
	return Instant(ts.Nano())
}

// Wall returns the wall clock.
func (System) Wall() time.Time { return time.Now() }

// Sleep waits for d, which may be 0 or less, or until ctx ends; then the error is
// its cause.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
