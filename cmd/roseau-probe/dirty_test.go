package main

import (
	"testing"
	"time"
)

// A machine that fills a page in 3 µs ends near the rate that was asked for, and one
// that is slowed down to a fifth afterwards dirties a fifth.
func TestPace(t *testing.T) {
	const rate = 32 << 20
	p := pace{rate: rate, times: 1}
	now := time.Duration(0)
	run := func(fill, until time.Duration) (got int) {
		for now < until {
			now += time.Duration(p.times) * fill
			if r := p.page(now); r > 0 {
				got = r
			}
		}
		return got
	}
	if got := run(3*time.Microsecond, settleTime); got != 0 {
		t.Errorf("a rate of %d is told before it is settled", got)
	}
	full := run(3*time.Microsecond, 5*time.Second)
	if full < rate*9/10 || full > rate*11/10 {
		t.Errorf("%d bytes a second, asked for %d", full, rate)
	}
	if slow := run(15*time.Microsecond, 10*time.Second); slow < full/6 || slow > full/4 {
		t.Errorf("a guest that gets a fifth of the time dirties %d bytes a second, %d before", slow, full)
	}
}
