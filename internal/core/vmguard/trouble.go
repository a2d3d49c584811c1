package vmguard

// spaceWaits pauses the guest while the pool has no room for what it writes: a
// stalled disk with a running guest behind it would look like a hang. Nothing was
// answered with an error, so it goes on by itself when there is space [S21].
func (c *Core) spaceWaits(e SpaceWaits) {
	switch {
	case e.On && !c.pauses[PauseSpace]:
		c.report("error", "paused: the pool has no space for what it writes; it goes on by itself when there is some")
	case !e.On && c.pauses[PauseSpace]:
		c.report("info", "there is space in the pool again")
	}
	c.setPause(PauseSpace, e.On)
}

func (c *Core) ioError(e IOError) {
	r := PauseError
	if e.NoSpace {
		r = PauseSpace
	}
	if !c.pauses[r] {
		c.report("error", "paused: I/O error (%s)", r)
	}
	c.pauses[r] = true
}
