package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/clock"
)

// Every node has a clock of its own, which goes on while the node is suspended
// (BOOTTIME). It runs as fast as the world's, or faster or slower by up to driftMost;
// a lease is made for that, its copy keeps it a tenth longer than it granted it.
// Everything that a core is told of the time is its node's; the world's own times, and
// the oracle's, are true.

// driftMost is how much a clock's rate may be wrong, in millionths.
const driftMost = 10_000

// clockFace is a node's clock and its sleep.
type clockFace struct {
	ppm    int64 // how much it is too fast
	behind time.Duration
	asleep bool
	since  clock.Instant // when it fell asleep
	held   []func()      // what waits for its processes
	slept  []*guard      // guards that were frozen with it
	missed time.Duration // of all its sleep, which timers do not count
}

// origin is where all clocks agree: the beginning of the world.
const origin = clock.Instant(time.Hour)

// clock is what the node's clock says now.
func (n *node) clock() clock.Instant { return n.local(n.w.now) }

func (n *node) local(t clock.Instant) clock.Instant {
	d := int64(t.Sub(origin))
	return t.Add(time.Duration(d/1e6*n.ppm+d%1e6*n.ppm/1e6) - n.behind)
}

// world is the first moment at which the node's clock shows at, or more.
func (n *node) world(at clock.Instant) clock.Instant {
	d, rate := int64(at.Sub(origin))+int64(n.behind), 1e6+n.ppm
	t := origin.Add(time.Duration(d/rate*1e6 + d%rate*1e6/rate))
	for n.local(t) < at {
		t++
	}
	for n.local(t-1) >= at {
		t--
	}
	return t
}

// drawClocks lets the clocks run apart in half of the seeds, some as far as they may.
func (w *world) drawClocks() {
	rng := rand.New(rand.NewPCG(w.opt.Seed, 0x6472696674))
	on := rng.IntN(2) == 0 && w.opt.Scenario == nil
	if b := w.opt.Bias; b != nil {
		on = b.Drift
	}
	for _, n := range w.nodes {
		ppm := rng.Int64N(2*driftMost+1) - driftMost
		if rng.IntN(2) == 0 {
			ppm = driftMost * (rng.Int64N(2)*2 - 1)
		}
		if on {
			n.ppm = ppm
		}
	}
	if on {
		w.note("drift")
		w.sleeper(rng)
	}
}

// sleeper suspends a node now and then: its clock goes on, and nothing else.
func (w *world) sleeper(rng *rand.Rand) {
	s := &stream{w: w, rng: rng, on: true, every: time.Second + time.Duration(rng.Int64N(int64(6*time.Second)))}
	s.run(func() {
		n := w.nodes[rng.IntN(len(w.nodes))]
		if rng.IntN(2) == 0 && w.tenants[0].manager.active != nil {
			n = w.tenants[0].manager.active.node
		}
		d := 100*time.Millisecond + time.Duration(rng.Int64N(int64(8*time.Second)))
		if n.powered && !n.asleep && w.poweredNodes() > 1 {
			w.note("suspend")
			n.suspend()
			w.after(d, n.resume)
		}
	})
}

// suspend stops everything that runs on the node. Others notice that it is silent.
func (n *node) suspend() {
	w := n.w
	w.tracef("%s is suspended", n.name())
	n.asleep, n.since = true, w.now
	for _, d := range n.disks {
		d.everHung = true // its last probe is old when the node runs again, as a hung disk's is
	}
	for _, g := range n.guards {
		if !g.ended() && !g.frozen {
			n.sleeps(g)
		}
	}
	since := n.since
	still := func() bool { return n.asleep && n.since == since }
	w.after(time.Second, func() {
		if still() {
			n.silent()
		}
	})
	w.after(w.between(1500*time.Millisecond, 2500*time.Millisecond), func() {
		if still() {
			n.setSeen(false)
		}
	})
}

// sleeps: a guard of the node is frozen until the node runs again, if it does not run.
func (n *node) sleeps(g *guard) {
	if n.asleep && !slices.Contains(n.slept, g) {
		g.freeze()
		n.slept = append(n.slept, g)
	}
}

// silent: connections to the node, and from it, are given up at their other ends.
func (n *node) silent() {
	for _, g := range n.w.guards {
		for _, l := range g.links {
			if l != nil && l.open && l.node != g.node && (l.node == n || g.node == n) {
				l.stall()
			}
		}
	}
}

// resume lets the node run on, with a clock that went on.
func (n *node) resume() {
	if !n.asleep {
		return
	}
	w := n.w
	slept := w.now.Sub(n.since)
	w.tracef("%s runs again after %s", n.name(), slept)
	n.asleep, n.missed = false, n.missed+slept
	if w.opt.Mutations.StoppedClock {
		n.behind += slept
		for _, g := range n.guards {
			if g.deadline != 0 {
				g.deadline = g.deadline.Add(slept)
			}
		}
	}
	held, guards := n.held, n.slept
	n.held, n.slept = nil, nil
	for _, f := range held {
		f()
	}
	for _, g := range guards {
		if !g.ended() {
			g.t.onlyOneRuns(g)
			g.unfreeze()
		}
	}
	if slices.ContainsFunc(w.nodes, func(o *node) bool { return o != n && w.net.both(n.index, o.index) }) {
		n.setSeen(true)
	}
}

// awake runs f now, or when the node runs again.
func (n *node) awake(f func()) {
	if n.asleep {
		n.held = append(n.held, f)
		return
	}
	f()
}

// timerAt runs f when the node's clock shows at. A timer counts CLOCK_MONOTONIC, as
// the runtime's do: it is late by as long as the node slept.
func (n *node) timerAt(at clock.Instant, f func()) { n.timerIn(n.world(at).Sub(n.w.now), f) }

func (n *node) timerIn(d time.Duration, f func()) {
	missed := n.missed
	n.w.after(d, func() {
		n.awake(func() {
			if late := n.missed - missed; late > 0 {
				n.timerIn(late, f)
				return
			}
			f()
		})
	})
}

// clock nX PPM: the node's clock is so many millionths too fast.
func (p *player) clockWord(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	if p.w.now != origin {
		return fmt.Errorf("clocks are set before anything happens")
	}
	n.ppm, err = strconv.ParseInt(a[1], 10, 64)
	return err
}

// suspend and resume nX...
func (p *player) suspend(a []string) error {
	list, err := p.nodes(a)
	for _, n := range list {
		n.suspend()
	}
	return err
}

func (p *player) resume(a []string) error {
	list, err := p.nodes(a)
	for _, n := range list {
		n.resume()
	}
	return err
}
