package vmguard

import (
	"time"

	"roseau/internal/base/clock"
)

// Times of a migration.
const (
	// streamLimit is how long the switch-over may take before the destination is
	// asked to decide.
	streamLimit = 10 * time.Second
	// answerLimit is how long its answer may take before own is read instead.
	answerLimit = 2 * time.Second
	// releaseWait is how long the destination lets the source release first; a
	// member that is asked before waits for the lease's end.
	releaseWait = time.Second
	// linkWait is how long a destination keeps a half-received guest without its
	// source.
	linkWait = 10 * time.Second
	// killLimit is how long a source waits for its stream's end before it kills
	// a QEMU that the destination has taken over.
	killLimit   = 5 * time.Second
	ownerRetry  = 500 * time.Millisecond
	downtime    = 50 * time.Millisecond
	downtimeTop = 2 * time.Second
)

// migration is either side's state.
type migration struct {
	stage     Stage
	peer      Peer
	epoch     uint64 // of the source
	successor bool   // taken over from a dead guard
	downtime  time.Duration
	started   clock.Instant
	decideBy  clock.Instant
	asked     bool // TellCancel was sent after decideBy

	// Source.
	stalled  bool   // Stall is done
	ownerOK  bool   // etcd answers and own is ours
	over     string // the stream's final status
	claiming bool   // Reclaim's outcome is not known
	gone     bool   // QEMU is gone
	released bool
	relaxed  time.Duration

	// Destination.
	hello    bool // waits for PREPARE
	userWait bool // the guest was paused by its user
	sourceUp bool
	active   bool // Activate was asked for
}

func (m *migration) source() bool {
	switch m.stage {
	case Connecting, Precopy, Switching, Streaming, Unknown, GivenUp, Returning:
		return true
	}
	return false
}

// holds reports whether the guest must not run because of the migration.
func (m *migration) holds() bool { return m.stage != Connecting && m.stage != Precopy }

func (m *migration) saved() *SavedMigration {
	s := &SavedMigration{Peer: m.peer, Epoch: m.epoch}
	switch m.stage {
	case Streaming, Unknown:
		s.Stage = Streaming
	case Committing:
		s.Stage = Committing
	default:
		return nil
	}
	return s
}

func (c *Core) migrationEvent(e Event) {
	if r, ok := e.(UserMigrate); ok {
		c.userMigrate(r)
		return
	}
	if c.mig == nil {
		c.lateEvent(e)
		return
	}
	switch c.mig.stage {
	case Waiting, Receiving, Committing, Committed, Never:
		c.destination(e)
	default:
		c.sourceEvent(e)
	}
}

// lateEvent answers what comes after a migration has ended.
func (c *Core) lateEvent(e Event) {
	switch e.(type) {
	case SourceHello:
		c.do(TellRefuse{Text: "this guard is no destination"})
	case OwnerRead:
	}
}

// ---- Source.

func (c *Core) userMigrate(r UserMigrate) {
	if c.phase != Running || !c.owned || c.mig != nil || c.ending != nil || c.qemu != qemuUp {
		return // the shell has refused; see CanMigrate
	}
	c.mig = &migration{stage: Connecting, peer: r.Target, epoch: c.epoch, downtime: r.DowntimeLimit, started: c.now}
	if c.mig.downtime <= 0 {
		c.mig.downtime = downtime
	}
	c.do(ConnectPeer{Peer: r.Target})
}

// CanMigrate says why no migration may begin, or "".
func (c *Core) CanMigrate() string {
	switch {
	case c.mig != nil:
		return "a migration is under way"
	case c.phase != Running || !c.owned || c.qemu != qemuUp:
		return "the VM does not run here"
	case !c.held:
		return "the lease of its volumes has lapsed"
	case c.ending != nil:
		return "it is being powered off"
	case c.pauses[PauseSpace] || c.pauses[PauseError]:
		return "it is paused by an I/O error"
	}
	return ""
}

func (c *Core) sourceEvent(e Event) {
	m := c.mig
	switch e := e.(type) {
	case PeerAccepted:
		if m.stage == Connecting {
			m.stage, m.started = Precopy, c.now
			c.do(MigrateStart{Downtime: m.downtime})
		}
	case PeerRefused:
		c.cancelEarly(e.Text)
	case UserCancel:
		c.userCancel()
	case GaveUp:
		if m.stage == Precopy {
			c.cancelEarly(e.Text)
		}
	case StreamStatus:
		c.streamStatus(e)
	case StallDone:
		c.stallDone(e)
	case OwnerRead:
		c.sourceOwner(e)
	case ClaimDone:
		c.reclaimed(e)
	case PeerNever:
		c.peerNever()
	case PeerCommitted:
		if m.stage == Streaming || m.stage == Unknown {
			c.giveUp()
		}
	case PeerLost:
		c.peerLost()
	}
}

func (c *Core) streamStatus(e StreamStatus) {
	m := c.mig
	switch e.Status {
	case "pre-switchover":
		if m.stage == Precopy {
			m.stage = Switching
			c.pauses[PauseMigration] = true
			c.silence()
			c.do(TellSwitch{}, Stall{}, ReadOwner{})
		}
		return
	case "completed", "failed", "cancelled":
		m.over = e.Status
	default:
		return
	}
	switch m.stage {
	case Precopy, Switching:
		text := "the stream ended: " + e.Status
		if e.Error != "" {
			text = "the stream ended: " + e.Error
		}
		c.cancelEarly(text)
	case Streaming:
		if e.Status != "completed" { // it may have been complete at the other end
			c.askToDecide()
		}
	case GivenUp:
		c.leave()
	case Returning:
		c.returned()
	}
}

// stallDone and sourceOwner together open the way past pre-switchover: all
// writes are flushed, and etcd answers.
func (c *Core) stallDone(e StallDone) {
	m := c.mig
	switch {
	case m.stage == Returning && e.Err == nil:
		c.do(Unstall{})
	case m.stage != Switching:
	case e.Err != nil:
		c.cancelEarly("its disks were not flushed: " + e.Err.Error())
	default:
		m.stalled = true
		c.goOn()
	}
}

func (c *Core) sourceOwner(e OwnerRead) {
	m := c.mig
	switch m.stage {
	case Switching:
		switch {
		case e.Err != nil:
			c.cancelEarly("the hand-over needs etcd: " + e.Err.Error())
		case e.Owner.Run != c.run || e.Owner.Node != c.node:
			c.cancelEarly("its volumes are not ours any more")
		default:
			m.epoch, m.ownerOK = e.Owner.Epoch, true
			c.goOn()
		}
	case Unknown:
		c.decideByOwner(e)
	}
}

func (c *Core) goOn() {
	m := c.mig
	if !m.stalled || !m.ownerOK {
		return
	}
	m.stage, m.decideBy = Streaming, c.now.Add(streamLimit)
	if c.broken.ReleaseBeforeCommit {
		c.do(Release{})
	}
	c.do(MigrateGo{})
}

// decideByOwner is phase (c) at the source: the record says whose it is.
func (c *Core) decideByOwner(e OwnerRead) {
	m := c.mig
	switch {
	case e.Err != nil:
		c.do(ReadOwner{After: ownerRetry})
	case e.Owner.Run != c.run:
		c.lose("another run of this VM took its volumes over")
	case e.Owner.Node != c.node:
		c.giveUp()
	case m.successor:
		// This set owns nothing yet: a take decides, which loses to a claim of the
		// destination that is made meanwhile.
		m.claiming = true
		m.stage = Returning
		c.do(Take{ExpectRun: c.run, ExpectEpoch: e.Owner.Epoch})
	default:
		m.claiming = true
		c.do(Reclaim{Run: c.run})
	}
}

func (c *Core) reclaimed(e ClaimDone) {
	m := c.mig
	if m.stage != Unknown {
		return
	}
	switch e.Outcome {
	case Made:
		m.claiming, c.epoch = false, e.Epoch
		c.owned = true
		c.report("info", "the migration was decided by the source's own claim: the VM goes on here")
		c.comeBack()
	case NotMade:
		m.claiming = false
		c.do(ReadOwner{After: ownerRetry / 5})
	default:
		c.do(ReadOwner{After: ownerRetry})
	}
}

// peerNever: the destination did not send its CAS and never will.
func (c *Core) peerNever() {
	m := c.mig
	if m.claiming || m.stage != Streaming && m.stage != Unknown {
		return // its outcome decides, and is wanted: the epoch may be the new one
	}
	if m.successor {
		m.stage = Returning
		c.do(Reopen{})
		return
	}
	c.do(Unstall{})
	c.report("info", "the destination gave the migration up: the VM goes on here")
	c.comeBack()
}

// comeBack gets QEMU out of its migration; I/O goes on already.
func (c *Core) comeBack() {
	m := c.mig
	m.stage = Returning
	if m.gone {
		c.mig = nil
		delete(c.pauses, PauseMigration)
		c.report("error", "QEMU ended during the migration: the VM is restarted from power-on")
		c.endedBy(dyingRestart)
		return
	}
	if m.over == "" {
		c.do(MigrateStop{}) // a StreamStatus follows
		return
	}
	c.returned()
}

// returned ends a migration that did not happen.
func (c *Core) returned() {
	c.mig = nil
	delete(c.pauses, PauseMigration)
	c.settled = false // the networks believe that it moved: announce again
	if c.vcpu == vcpuHalted {
		c.vcpu = vcpuStopped
	}
	c.do(DisconnectPeer{})
}

// takenInMigration is Taken while a migration stands.
func (c *Core) takenInMigration() {
	m := c.mig
	switch {
	case m == nil:
	case m.stage == Returning && m.gone:
		c.mig = nil
		delete(c.pauses, PauseMigration)
		c.endedBy(dyingRestart)
	case m.stage == Returning: // a successor that stays
		c.mig = nil
		delete(c.pauses, PauseMigration)
		c.vcpu = vcpuRunning // QEMU may have resumed by itself; its monitor will say
		c.settled = false
		c.do(DisconnectPeer{})
	case m.stage == Committed:
		c.report("info", "received by live migration")
		if m.userWait {
			c.pauses[PauseUser] = true
		}
		c.mig = nil
		delete(c.pauses, PauseMigration)
		c.vcpu = vcpuStopped
		c.settled = false
	}
}

// cancelEarly ends a migration before migrate-continue: the destination cannot
// have the complete stream, so the source needs no word from it.
func (c *Core) cancelEarly(why string) {
	m := c.mig
	switch m.stage {
	case Connecting:
		c.report("warn", "the migration did not begin: %s", why)
		c.mig = nil
		c.do(DisconnectPeer{})
	case Precopy, Switching:
		c.report("warn", "the migration was cancelled: %s", why)
		stalling := m.stage == Switching
		m.stage = Returning
		c.do(TellCancel{})
		if stalling && m.stalled {
			c.do(Unstall{}) // else when StallDone comes
		}
		if m.over == "" {
			c.do(MigrateStop{})
			return
		}
		c.returned()
	}
}

func (c *Core) userCancel() {
	switch c.mig.stage {
	case Streaming:
		c.askToDecide()
	default:
		c.cancelEarly("asked for")
	}
}

// askToDecide has the destination answer "never" or "committed".
func (c *Core) askToDecide() {
	m := c.mig
	if !m.asked {
		m.asked, m.decideBy = true, c.now.Add(answerLimit)
		c.do(TellCancel{})
	}
}

func (c *Core) peerLost() {
	m := c.mig
	switch m.stage {
	case Connecting, Precopy, Switching:
		c.cancelEarly("the connection to the destination broke")
	case Streaming:
		c.becomeUnknown()
	case Unknown:
		c.do(AskPeer{After: ownerRetry})
	}
}

func (c *Core) becomeUnknown() {
	c.report("warn", "the migration's outcome is not known: the VM is paused until it is")
	c.mig.stage = Unknown
	if c.broken.ResumeOnUnknown {
		c.do(Unstall{})
		c.comeBack()
		return
	}
	c.do(ReadOwner{}, AskPeer{})
}

// giveUp: the destination's CAS is known. Release is final.
func (c *Core) giveUp() {
	m := c.mig
	m.stage, m.decideBy = GivenUp, c.now.Add(killLimit)
	if c.owned {
		c.owned = false
		c.do(Release{})
		return
	}
	m.released = true // nothing of ours is left to release
	c.leave()
}

// leave kills the QEMU of a VM that runs elsewhere, once nothing that it sends
// is needed.
func (c *Core) leave() {
	m := c.mig
	if !m.released || m.over == "" && !m.gone && !m.successor && c.now < m.decideBy {
		return
	}
	c.mig = nil
	delete(c.pauses, PauseMigration)
	c.report("info", "moved to %s", m.peer.Name)
	c.enter(Moved, "")
	c.killFor(dyingFinal)
}

// exitInMigration handles QEMU's end; true: nothing else is to be done.
func (c *Core) exitInMigration() bool {
	m := c.mig
	if m == nil {
		return false
	}
	switch m.stage {
	case Connecting, Precopy, Switching:
		c.do(TellCancel{}, DisconnectPeer{})
		if m.stage == Switching && m.stalled {
			c.do(Unstall{})
		}
	case Streaming, Unknown:
		m.gone, m.over = true, "failed"
		c.askToDecide()
		return true
	case GivenUp:
		m.gone = true
		c.leave()
		return true
	case Waiting, Receiving:
		c.never("its QEMU ended")
		return true
	case Committing:
		m.gone = true
		return true // the outcome of the CAS says who restarts it
	}
	c.mig = nil
	delete(c.pauses, PauseMigration)
	return false
}

func (c *Core) migrationTick() {
	m := c.mig
	if m == nil {
		return
	}
	due := m.decideBy != 0 && c.now >= m.decideBy
	switch m.stage {
	case Precopy:
		c.relax()
	case Streaming:
		if due && m.asked {
			c.becomeUnknown()
		} else if due {
			c.askToDecide()
		}
	case GivenUp:
		c.leave()
	case Receiving:
		if due && !m.sourceUp {
			c.never("the connection to the source broke")
		}
	case Committed:
		if due && !m.active {
			c.activate()
		}
	}
}

// relax raises the downtime limit of a pre-copy that does not converge: 300 ms
// after 5 s, doubled every 15 s up to 2 s.
func (c *Core) relax() {
	m := c.mig
	want := m.downtime
	if age := c.now.Sub(m.started); age > 5*time.Second {
		want = min(300*time.Millisecond<<min(int(age/(15*time.Second)), 4), downtimeTop)
	}
	if want > max(m.downtime, m.relaxed) {
		m.relaxed = want
		c.do(MigrateRelax{Downtime: want})
	}
}
