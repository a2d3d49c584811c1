package vmguard

// ---- Destination.

func (c *Core) receive(e Receive) {
	c.run, c.qemu = e.Run, qemuPending
	c.mig = &migration{stage: Waiting, peer: Peer{Node: e.Source}}
	c.pauses[PauseMigration] = true
	c.enter(Incoming, "")
	c.do(OpenVolumes{Run: e.Run})
}

// Ready reports whether a source may connect.
func (c *Core) Ready() bool {
	return c.mig != nil && c.mig.stage == Waiting && c.volumes && c.qemu == qemuUp
}

func (c *Core) destination(e Event) {
	m := c.mig
	switch e := e.(type) {
	case SourceHello:
		c.sourceHello(e)
	case SourceSwitch:
		m.userWait = e.Paused
		if m.stage == Receiving || m.stage == Committing || m.stage == Committed {
			c.linkUp = true
			c.do(LinkUp{}, Announce{})
		}
	case SourceCancel:
		c.sourceCancel()
	case SourceReleased:
		if m.stage == Committed {
			c.activate()
		}
	case SourceLost:
		m.sourceUp = false
		if m.stage == Committed {
			c.activate()
		} else {
			m.decideBy = c.now.Add(linkWait)
		}
	case StreamStatus:
		c.incomingStatus(e)
	case ClaimDone:
		c.claimed(e)
	case OwnerRead:
		c.incomingOwner(e)
	}
}

func (c *Core) sourceHello(e SourceHello) {
	m := c.mig
	switch {
	case m.stage != Waiting && m.stage != Never:
		c.do(TellRefuse{Text: "a migration of this VM is under way already"})
	case m.stage == Never:
		c.do(TellRefuse{Text: "this destination has given up: " + c.reason})
	case !c.Ready():
		c.do(TellRefuse{Text: "the destination is not ready"})
	case e.Run != c.run:
		c.do(TellRefuse{Text: "the destination was prepared for another run of this VM"})
	default:
		m.epoch, m.hello, m.sourceUp = e.Epoch, true, true
		c.do(Prepare{})
	}
}

func (c *Core) incomingPrepared(e Prepared) {
	m := c.mig
	if m.stage != Waiting || !m.hello {
		return
	}
	m.hello = false
	if !e.Reachable {
		c.do(TellRefuse{Text: "its disks cannot be reached from the destination: " + e.Text})
		return
	}
	m.stage = Receiving
	c.do(MigrateIncoming{}, TellAccept{})
}

func (c *Core) sourceCancel() {
	switch c.mig.stage {
	case Waiting:
		c.mig.hello = false
		c.never("the source cancelled the migration")
	case Receiving:
		c.never("the source cancelled the migration")
	case Never:
		c.do(TellNever{})
	case Committed:
		c.do(TellCommitted{})
	}
}

func (c *Core) incomingStatus(e StreamStatus) {
	m := c.mig
	if m.stage != Receiving {
		return
	}
	switch e.Status {
	case "completed":
		m.stage = Committing
		c.do(Claim{Run: c.run, Epoch: m.epoch})
	case "failed", "cancelled":
		c.never("the stream broke")
	}
}

func (c *Core) claimed(e ClaimDone) {
	m := c.mig
	if m.stage != Committing {
		return
	}
	switch e.Outcome {
	case Made:
		c.committed(e.Epoch)
	case NotMade:
		text := "its claim lost"
		if e.Err != nil {
			text = e.Err.Error()
		}
		c.never(text)
	default:
		if c.broken.UnknownIsMade {
			c.committed(m.epoch + 1)
			return
		}
		c.report("warn", "it is not known whether the hand-over was committed: etcd is asked")
		c.do(ReadOwner{After: ownerRetry / 2})
	}
}

// incomingOwner is phase (c) at the destination.
func (c *Core) incomingOwner(e OwnerRead) {
	m := c.mig
	if m.stage != Committing {
		return
	}
	switch {
	case e.Err != nil:
		c.do(ReadOwner{After: ownerRetry})
	case e.Owner.Mine:
		c.committed(e.Owner.Epoch)
	case e.Owner.Run == c.run && e.Owner.Node == c.node && m.successor:
		// The predecessor's CAS: it was made. This guard takes up after it.
		m.stage, m.active = Committed, true
		c.do(TellCommitted{}, Reopen{})
	case e.Owner.Run == c.run && e.Owner.Epoch == m.epoch:
		c.do(Claim{Run: c.run, Epoch: m.epoch})
	default:
		c.never("its volumes went elsewhere")
	}
}

func (c *Core) committed(epoch uint64) {
	m := c.mig
	m.stage, m.decideBy = Committed, c.now.Add(releaseWait)
	c.epoch = epoch
	c.do(TellCommitted{})
	if m.gone {
		c.mig = nil
		delete(c.pauses, PauseMigration)
		c.report("error", "QEMU ended after the hand-over: the VM is restarted from power-on")
		c.endedBy(dyingRestart)
		return
	}
	if !m.sourceUp || m.successor {
		c.activate()
	}
}

func (c *Core) activate() {
	if m := c.mig; !m.active {
		m.active = true
		c.do(Activate{})
	}
}

// never binds this guard: the migration is dropped first, then the answer goes.
func (c *Core) never(why string) {
	c.mig.stage = Never
	c.enter(Lost, why)
	c.report("warn", "the migration was given up: %s", why)
	c.do(TellNever{})
	c.dying = dyingNot
	c.killFor(dyingFinal)
}
