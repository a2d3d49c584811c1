package writer

import (
	"time"

	"roseau/internal/base/clock"
)

// The pace of a resync beside the guest's I/O. Rates are bytes a second.
const (
	paceFloor = 20e6 // so that it ends
	paceTop   = 2e9  // nothing to be considered
	paceStep  = 100 * time.Millisecond
	// paceQuiet is how long the guest must have written nothing to be idle.
	paceQuiet = 500 * time.Millisecond
	// paceSlow is how many quarters of its usual time a write may take beside a resync:
	// the guest keeps more than half of its writes a second.
	paceSlow = 6
	// paceSlack is allowed above that: below it the machine's scheduler is what is measured.
	paceSlack = 250 * time.Microsecond
)

// pace decides how fast joining disks are filled: as fast as it goes while the
// guest is idle; else slower as soon as the guest's writes of a step take more than
// 3/2 of their time without a resync, on average, and faster again when they do not,
// never below the floor. The zero value knows nothing of the guest yet.
type pace struct {
	rate   float64
	budget float64 // bytes that may be sent; below 0 it waits
	at     clock.Instant
	judged clock.Instant
	synced clock.Instant // when sync data was last sent
	wrote  clock.Instant // when a guest's write was last committed
	usual  time.Duration // its time while nothing is synced, smoothed
	took   time.Duration // by all writes since the last step
	writes int           // how many they are
}

// write notes that a guest's write took so long.
func (p *pace) write(at clock.Instant, took time.Duration) {
	p.wrote = at
	p.took += took
	p.writes++
	if p.synced == 0 || at.Sub(p.synced) > paceQuiet {
		if p.usual == 0 {
			p.usual = took
		}
		p.usual += (took - p.usual) / 32
	}
}

// idle reports whether the guest has written nothing for a while.
func (p *pace) idle(at clock.Instant) bool { return p.wrote == 0 || at.Sub(p.wrote) > paceQuiet }

// may reports whether sync data may be sent now; if not, again is when to ask.
func (p *pace) may(at clock.Instant) (ok bool, again clock.Instant) {
	p.judge(at)
	if p.at != 0 {
		p.budget = min(p.budget+p.rate*at.Sub(p.at).Seconds(), p.rate*paceStep.Seconds())
	}
	p.at = at
	if p.budget >= 0 {
		return true, 0
	}
	return false, at.Add(max(time.Duration(-p.budget/p.rate*1e9), time.Millisecond))
}

// sent notes bytes of sync data.
func (p *pace) sent(at clock.Instant, bytes int64) {
	p.budget -= float64(bytes)
	p.synced = at
}

// judge adapts the rate, a step at a time.
func (p *pace) judge(at clock.Instant) {
	if p.rate != 0 && at.Sub(p.judged) < paceStep {
		return
	}
	p.judged = at
	switch {
	case p.idle(at):
		p.rate = paceTop
	case p.usual == 0: // it has never written without a resync
		p.rate = max(paceFloor, min(p.rate, 5*paceFloor))
	case p.writes == 0: // none has ended since: nothing new is known
		return
	case p.took/time.Duration(p.writes) > p.usual*paceSlow/4+paceSlack:
		p.rate = max(paceFloor, p.rate*0.7)
	default:
		p.rate = min(paceTop, max(p.rate, paceFloor)*1.15)
	}
	p.took, p.writes = 0, 0
}

// mayCopy reports whether a chunk of object i may be copied now; else it waits.
func (j *syncJob) mayCopy(i int) bool {
	c := j.m.v.c
	ok, again := c.pace.may(c.now)
	if !ok {
		j.waiting, j.again = append(j.waiting, i), again
	}
	return ok
}

// resumeWaiting goes on with the objects that waited for the pace.
func (j *syncJob) resumeWaiting() {
	if len(j.waiting) == 0 || j.m.v.c.now < j.again {
		return
	}
	list := j.waiting
	j.waiting = nil
	for _, i := range list {
		j.copyObject(i)
	}
}
