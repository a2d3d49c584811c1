package writer

import (
	"roseau/internal/base/clock"
)

// Core is the writer of one group of volumes.
type Core struct {
	cfg Config
	now clock.Instant
	out Ready
}

type requestState struct{}

// New returns a core that owns nothing. The first effects are ReadRecords.
func New(cfg Config) *Core { return &Core{cfg: cfg} }

// Step takes one event at time now, which never goes back.
func (c *Core) Step(now clock.Instant, ev Event) { c.now = now }

// Tick lets time pass; call it at NextDeadline at the latest.
func (c *Core) Tick(now clock.Instant) { c.now = now }

// NextDeadline returns when Tick must be called, or zero for never.
func (c *Core) NextDeadline() clock.Instant { return 0 }

// Ready returns what has to be done since the last call.
func (c *Core) Ready() Ready { return c.out }

// Lease returns until when the group may serve, or zero.
func (c *Core) Lease() clock.Instant { return 0 }

// State returns where the group stands.
func (c *Core) State() State { return Idle }

// Health returns a snapshot for people.
func (c *Core) Health() Health { return Health{} }
