// Package watchdog decides whether a node's daemon feeds the machine's hardware
// watchdog. Not fed for its timeout, the machine resets itself. The rules stand
// in docs/design/bmc.md: a lost control plane alone resets nothing.
package watchdog

import (
	"fmt"
	"time"

	"roseau/internal/base/clock"
)

// Patience is how long all guards of a node must have been without their leases,
// with the node's session lost, before the watchdog is left to do its work: ten
// leases.
const Patience = 30 * time.Second

// Limits of the timeout.
const (
	DefaultTimeout = 60 * time.Second
	MinTimeout     = 10 * time.Second
	MaxTimeout     = 10 * time.Minute
)

// Interval is how often a watchdog with a timeout is fed: four times in it.
func Interval(timeout time.Duration) time.Duration { return timeout / 4 }

// View is what the daemon sees at one moment.
type View struct {
	Session bool // this node's session in etcd is held
	Guards  int  // guards of machines on this node
	// Holding is how many of them hold their leases. One that did not answer
	// counts: it may hold them.
	Holding int
}

// State is what is remembered between two moments. Zero: nothing is wrong.
type State struct {
	// Lost is since when the session has been lost with guards here of which none
	// holds its leases; zero: that is not so.
	Lost clock.Instant
}

// Step decides at now. why says in words why it is not fed.
func Step(s State, v View, now clock.Instant) (next State, feed bool, why string) {
	if v.Session || v.Guards == 0 || v.Holding > 0 {
		return State{}, true, ""
	}
	if s.Lost == 0 {
		return State{Lost: now}, true, ""
	}
	if d := now.Sub(s.Lost); d >= Patience {
		return s, false, fmt.Sprintf("its session is lost, and none of the %d guards here has held its leases for %s", v.Guards, d.Round(time.Second))
	}
	return s, true, ""
}
