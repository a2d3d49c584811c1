package writer

import (
	"testing"
	"time"

	"roseau/internal/base/clock"
)

// play runs a resync that always has something to send beside a guest that writes
// every 5 ms; a guest's write takes base and, while the resync sends, a ms more
// for each slow bytes a second. It returns the bytes sent in the last second.
func play(p *pace, from clock.Instant, d time.Duration, guest bool, base time.Duration, slow float64) (last float64, end clock.Instant) {
	const tick = time.Millisecond
	var recent, window float64
	for at := from; at < from.Add(d); at = at.Add(tick) {
		for {
			if ok, _ := p.may(at); !ok {
				break
			}
			p.sent(at, 128<<10)
			window += 128 << 10
		}
		recent += (window*1000 - recent) / 50 // bytes a second, smoothed over 50 ms
		if at.Sub(from.Add(d)) >= -time.Second {
			last += window
		}
		window = 0
		if guest && at.Sub(from)/tick%5 == 0 {
			took := base
			if slow > 0 {
				took += time.Duration(recent / slow * float64(time.Millisecond))
			}
			p.write(at, took)
		}
		end = at
	}
	return last, end
}

func TestPace(t *testing.T) {
	const mb = 1e6
	p := &pace{}
	at := clock.Instant(1e9)
	for range 200 { // the guest as it is alone
		p.write(at, 2*time.Millisecond)
		at = at.Add(5 * time.Millisecond)
	}
	// Each 20 MB/s of resync cost the guest 1 ms: 3/2 of its time and the slack are at 25 MB/s.
	got, at := play(p, at, 20*time.Second, true, 2*time.Millisecond, 20*mb)
	if got < 19*mb || got > 40*mb {
		t.Errorf("beside a guest that suffers: %.0f MB/s", got/mb)
	}
	// However much it suffers, the resync ends.
	if got, at = play(p, at, 10*time.Second, true, 2*time.Millisecond, 0.1*mb); got < 19*mb || got > 22*mb {
		t.Errorf("the floor: %.1f MB/s", got/mb)
	}
	// A guest that does not feel it does not slow it.
	if got, at = play(p, at, 20*time.Second, true, 2*time.Millisecond, 0); got < 500*mb {
		t.Errorf("beside a guest that feels nothing: %.0f MB/s", got/mb)
	}
	// An idle guest is no reason to wait.
	if got, _ = play(p, at, 2*time.Second, false, 0, 0); got < 1500*mb {
		t.Errorf("beside an idle guest: %.0f MB/s", got/mb)
	}
}
