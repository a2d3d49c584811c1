package vmguard

import (
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// vcpus is what the core knows of the guest's processors.
type vcpus uint8

const (
	vcpuStopped  vcpus = iota // proved, or never started
	vcpuRunning               // cont was sent, or QEMU resumed by itself
	vcpuStopping              // stop was sent, STOP has not come
	vcpuHalted                // QEMU stopped them by itself: an event will say why
)

type qemuState uint8

const (
	qemuAbsent  qemuState = iota
	qemuPending           // being started, or adopted without a monitor yet
	qemuUp
)

const (
	// haltGrace is how long the core waits for the cause of a STOP that nobody
	// asked for before it lets the guest go on.
	haltGrace = 2 * time.Second
	// pressAgain is the time between two presses of the power button.
	pressAgain  = 5 * time.Second
	stopDefault = 60 * time.Second
	// prepareRetry is the pause between two rounds of PREPARE, which have a pace
	// of their own.
	prepareRetry = 100 * time.Millisecond
	// startTries bounds the starts of a QEMU that never came up.
	startTries = 3
	backoffMax = 30 * time.Second
)

// Core is the state of one guard. Make it with New.
type Core struct {
	node ids.ID
	now  clock.Instant
	out  []Action

	phase  Phase
	reason string
	run    ids.ID
	epoch  uint64

	volumes  bool // opened, NBD served
	owned    bool // taken and serving under our epoch
	held     bool
	deadline clock.Instant // of the lease; meaningless if !held

	qemu     qemuState
	adopted  bool
	vcpu     vcpus
	since    clock.Instant // of vcpuStopping, vcpuHalted
	frozen   bool
	pauses   map[Reason]bool
	port     clock.Instant // last asked for; 0 = shut
	linkUp   bool
	settled  bool // announced under this ownership
	mig      *migration
	ending   *ending
	restarts int
	failures int // starts of QEMU that failed, in a row
	dying    dying
	saved    Saved
	saveSet  bool
	broken   Mutations
}

// ending is a power-off under way.
type ending struct {
	force    bool
	deadline clock.Instant
	press    clock.Instant
}

// dying says why QEMU was killed, that is what follows its exit.
type dying uint8

const (
	dyingNot     dying = iota
	dyingStop          // release, then Stopped
	dyingRestart       // release, then power-on with a new run
	dyingFinal         // the phase is set already
)

// New returns the core of the guard on node.
func New(node ids.ID) *Core {
	return &Core{node: node, phase: Starting, pauses: map[Reason]bool{}}
}

// Break makes the core break rules, for the simulator.
func (c *Core) Break(m Mutations) { c.broken = m }

// Phase says where the guard stands, and why, in one line.
func (c *Core) Phase() (Phase, string) { return c.phase, c.reason }

// Run is the guest's memory lineage; Epoch that of its first volume.
func (c *Core) Run() ids.ID { return c.run }

// Epoch is what the volumes are held under; 0: not held.
func (c *Core) Epoch() uint64 { return c.epoch }

// Restarts counts the power-ons after the first.
func (c *Core) Restarts() int { return c.restarts }

// PortOpen reports whether the guest's frames pass at now.
func (c *Core) PortOpen(now clock.Instant) bool { return now.Before(c.port) }

// GuestRuns reports whether the guest was told to run.
func (c *Core) GuestRuns() bool { return c.qemu == qemuUp && c.vcpu == vcpuRunning && c.mayRun() }

// Migration is the stage of the migration under way, or "".
func (c *Core) Migration() Stage {
	if c.mig == nil {
		return ""
	}
	return c.mig.stage
}

// Pauses lists the reasons, sorted.
func (c *Core) Pauses() []Reason {
	var r []Reason
	for p, on := range c.pauses {
		if on {
			r = append(r, p)
		}
	}
	slices.Sort(r)
	return r
}

// Next is when Tick must be given at the latest; zero: any time.
func (c *Core) Next() clock.Instant {
	var next clock.Instant
	at := func(t clock.Instant) {
		if t > c.now && (next == 0 || t < next) {
			next = t
		}
	}
	if c.owned && c.held {
		at(c.deadline)
	}
	if c.vcpu == vcpuStopping && !c.frozen {
		at(c.since.Add(StopProof))
	}
	return next
}

// Step takes in one event at now, which never goes back, and returns what is to
// be done, in this order.
func (c *Core) Step(now clock.Instant, e Event) []Action {
	c.now, c.out = now, nil
	if !c.phase.Final() || c.afterEnd(e) {
		c.dispatch(e)
		c.settle()
	}
	return c.out
}

// afterEnd lets through what still matters in a final phase: the release that
// was begun, and the answer "never".
func (c *Core) afterEnd(e Event) bool {
	switch e.(type) {
	case QEMUExited, SourceHello, SourceCancel:
		return true
	}
	return false
}

func (c *Core) do(a ...Action) { c.out = append(c.out, a...) }

func (c *Core) report(level, format string, args ...any) {
	c.do(Report{Level: level, Text: fmt.Sprintf(format, args...)})
}

func (c *Core) enter(p Phase, reason string) { c.phase, c.reason = p, reason }

func (c *Core) dispatch(e Event) {
	switch e := e.(type) {
	case Start:
		c.start(e.Run)
	case Adopt:
		c.adopt(e.Saved)
	case Receive:
		c.receive(e)
	case Ended:
		c.enter(e.Phase, e.Reason)
	case VolumesOpened:
		c.volumesOpened(e)
	case QEMUStarted:
		c.qemuStarted(e)
	case QMPUp:
		c.qmpUp(e)
	case QEMUExited:
		c.qemuExited()
	case Prepared:
		c.prepared(e)
	case Taken:
		c.taken(e)
	case LeaseChanged:
		c.held, c.deadline = e.Held, e.Deadline
	case Fenced:
		c.fenced(e)
	case GuestInvalid:
		c.report("error", "every copy of a part of its disks lost power under the guest: it is restarted from power-on")
		c.killFor(dyingRestart)
	case VCPUsStopped:
		if c.vcpu == vcpuRunning {
			c.vcpu, c.since = vcpuHalted, c.now
		} else if c.vcpu == vcpuStopping {
			c.vcpu = vcpuStopped
		}
	case VCPUsResumed:
		c.vcpu = vcpuRunning // settle stops it again if that was not ours
	case GuestOff:
		c.guestOff()
	case SpaceWaits:
		c.spaceWaits(e)
	case IOError:
		c.ioError(e)
	case UserPause:
		c.pauses[PauseUser] = true
	case UserResume:
		for _, r := range []Reason{PauseUser, PauseSpace, PauseError} {
			delete(c.pauses, r)
		}
		if c.vcpu == vcpuHalted {
			c.vcpu = vcpuStopped
		}
	case UserReset:
		if c.owned && c.qemu == qemuUp {
			c.do(Reset{})
		}
	case UserStop:
		c.userStop(e)
	case ReleaseDone:
		c.released(e)
	case Tick:
		c.tick()
	default:
		c.migrationEvent(e)
	}
}

// mayRun is G1.
func (c *Core) mayRun() bool {
	return c.owned && c.held && c.now.Before(c.deadline) && (len(c.Pauses()) == 0 || c.broken.ResumeIgnoresReasons) && c.dying == dyingNot &&
		(c.phase == Running || c.phase == Stopping) && (c.mig == nil || !c.mig.holds())
}

// settle brings ports and processors to what the state allows: ports first.
func (c *Core) settle() {
	if c.owned {
		c.setPause(PauseLease, !(c.held && c.now.Before(c.deadline)))
	}
	if c.mig != nil && c.mig.source() && c.pauses[PauseLease] {
		c.cancelEarly("the lease of its volumes lapsed")
	}
	c.save()
	// A QEMU that is being started has no taps yet.
	if c.qemu == qemuAbsent || c.qemu == qemuPending && !c.adopted {
		if c.port != 0 {
			c.port = 0
			c.do(Port{})
		}
		return
	}
	may := c.mayRun()
	if !may {
		c.silence()
		return
	}
	until := c.deadline.Add(-PortMargin)
	if c.broken.PortWithoutTimer {
		until = c.now.Add(24 * time.Hour)
	}
	if until > c.now && until != c.port {
		if !c.linkUp {
			c.linkUp = true
			c.do(LinkUp{})
		}
		c.port = until
		c.do(Port{Until: until})
		if !c.settled {
			c.settled = true
			c.do(Announce{})
		}
	}
	if c.frozen {
		c.frozen = false
		c.do(Thaw{})
	}
	if c.qemu == qemuUp && (c.vcpu == vcpuStopped || c.vcpu == vcpuStopping) {
		c.vcpu = vcpuRunning
		c.do(Cont{})
	}
}

// silence is G2: the port first, then the processors; without a monitor, or
// without proof, the process.
func (c *Core) silence() {
	if c.port != 0 && (!c.broken.StopBeforePort || c.vcpu == vcpuStopped || c.vcpu == vcpuHalted) {
		c.port = 0
		c.do(Port{})
	}
	if c.dying != dyingNot {
		return
	}
	switch {
	case c.frozen:
	case c.qemu == qemuPending && c.adopted:
		// What an adopted QEMU does is not known before its monitor answers.
		c.frozen = true
		c.do(Freeze{})
	case c.vcpu == vcpuRunning:
		c.vcpu, c.since = vcpuStopping, c.now
		c.do(Stop{})
	case c.vcpu == vcpuStopping && c.now >= c.since.Add(StopProof) && !c.broken.StopBeforePort:
		c.frozen = true
		c.do(Freeze{})
	}
}

func (c *Core) setPause(r Reason, on bool) {
	if on && !c.pauses[r] && r == PauseLease {
		c.report("warn", "paused: the lease of its volumes lapsed")
	}
	if !on && c.pauses[r] && r == PauseLease {
		c.report("info", "the lease of its volumes is back")
	}
	if on {
		c.pauses[r] = true
	} else {
		delete(c.pauses, r)
	}
}

// save has the state written whenever a successor would need to know better.
func (c *Core) save() {
	if c.run.IsZero() || c.phase.Final() {
		return
	}
	s := Saved{Run: c.run, User: c.pauses[PauseUser], Ending: c.ending != nil}
	if c.mig != nil {
		s.Move = c.mig.saved()
		s.Incoming = c.mig.stage == Waiting || c.mig.stage == Receiving
	}
	if c.saveSet && equalSaved(s, c.saved) {
		return
	}
	c.saved, c.saveSet = s, true
	// First, so that nothing is done that a successor would not know of.
	c.out = append([]Action{Save{Saved: s}}, c.out...)
}

func equalSaved(a, b Saved) bool {
	am, bm := a.Move, b.Move
	a.Move, b.Move = nil, nil
	if a != b || (am == nil) != (bm == nil) {
		return false
	}
	return am == nil || am.Stage == bm.Stage && am.Epoch == bm.Epoch && am.Peer.Node == bm.Peer.Node
}

func (c *Core) start(run ids.ID) {
	user := c.pauses[PauseUser]
	*c = Core{node: c.node, now: c.now, out: c.out, phase: Starting, run: run, qemu: qemuPending,
		pauses: map[Reason]bool{}, restarts: c.restarts, failures: c.failures, broken: c.broken}
	if user {
		c.pauses[PauseUser] = true
	}
	c.do(OpenVolumes{Run: run})
}

func (c *Core) adopt(s Saved) {
	c.run, c.qemu, c.adopted, c.saved, c.saveSet = s.Run, qemuPending, true, s, true
	c.frozen = true // by its supervisor; if not, a Freeze more does no harm
	c.linkUp, c.settled = true, true
	c.vcpu = vcpuRunning
	c.do(Freeze{})
	if s.User {
		c.pauses[PauseUser] = true
	}
	if s.Ending {
		c.ending = &ending{deadline: c.now.Add(stopDefault)}
	}
	switch {
	case s.Incoming:
		c.mig = &migration{stage: Receiving}
		c.never("the guard restarted while it received the VM")
		return
	case s.Move != nil:
		c.mig = &migration{peer: s.Move.Peer, epoch: s.Move.Epoch, stage: s.Move.Stage, successor: true}
		c.pauses[PauseMigration] = true
		c.enter(Preparing, "a migration was under way: what became of it is asked")
		if s.Move.Stage == Streaming {
			c.mig.stage = Unknown
		}
	default:
		c.enter(Taking, "adopting the running QEMU")
	}
	c.do(OpenVolumes{Run: s.Run})
}

func (c *Core) volumesOpened(e VolumesOpened) {
	if e.Err != nil {
		c.reason = "waiting for its volumes: " + e.Err.Error()
		return // the shell repeats
	}
	c.volumes = true
	switch {
	case c.adopted && c.mig != nil:
		c.do(ReadOwner{})
		if c.mig.stage == Unknown {
			c.do(AskPeer{})
		}
	case c.adopted:
		c.do(Reopen{})
	case c.mig != nil:
		c.do(StartQEMU{Incoming: true})
	default:
		c.enter(Preparing, "")
		c.do(StartQEMU{}, Prepare{})
	}
}

func (c *Core) qemuStarted(e QEMUStarted) {
	if e.Err == nil {
		c.qemu, c.vcpu, c.failures = qemuUp, vcpuStopped, 0
		return
	}
	c.qemu = qemuAbsent
	c.failures++
	c.report("error", "QEMU did not start: %v", e.Err)
	switch {
	case c.mig != nil && !c.mig.source():
		c.never("QEMU did not start: " + e.Err.Error())
	case c.failures >= startTries:
		c.enter(Failed, "QEMU did not start: "+e.Err.Error())
		c.do(CloseVolumes{})
	default:
		c.endedBy(dyingRestart)
	}
}

func (c *Core) qmpUp(e QMPUp) {
	c.qemu = qemuUp
	switch e.Status {
	case "running":
		c.vcpu = vcpuRunning
	case "shutdown":
		c.vcpu = vcpuStopped
		c.guestOff()
		return
	case "io-error", "internal-error", "guest-panicked":
		c.vcpu = vcpuStopped
		c.pauses[PauseError] = true
	default:
		c.vcpu = vcpuStopped
	}
	if c.mig == nil || c.mig.stage == Returning {
		c.do(MigrateStop{}) // of a predecessor's pre-copy, if any
	}
}

func (c *Core) prepared(e Prepared) {
	if c.mig != nil {
		c.incomingPrepared(e)
		return
	}
	if c.phase != Preparing {
		return
	}
	if !e.Ready {
		c.reason = e.Text
		// Early rather than late: this wait is on the path of a failover.
		after := prepareRetry
		if e.Retry > 0 && e.Retry < after {
			after = e.Retry
		}
		c.do(Prepare{After: after})
		return
	}
	c.enter(Taking, "")
	c.do(Take{})
}

func (c *Core) taken(e Taken) {
	switch {
	case e.Fenced:
		c.lose("its volumes were taken over")
	case e.Err != nil:
		// The set repeats what can be repeated; this attempt is over, not the VM.
		c.reason = e.Err.Error()
		if c.adopted || c.mig != nil {
			c.do(Reopen{})
			return
		}
		c.enter(Preparing, e.Err.Error())
		c.do(Prepare{After: time.Second})
	default:
		c.owned, c.epoch = true, e.Epoch
		if c.phase != Stopping {
			c.enter(Running, "")
		}
		c.takenInMigration()
		if c.adopted && c.qemu == qemuPending {
			c.frozen = false
			c.do(Thaw{}, ConnectQMP{})
		}
		if c.ending != nil {
			c.enter(Stopping, "asked to power off")
		}
	}
}

// fenced is the table of STALE_EPOCH.
func (c *Core) fenced(e Fenced) {
	c.owned, c.held = false, false
	switch {
	case e.Run != c.run:
		c.lose("another run of this VM took its volumes over")
	case e.Node == c.node && c.broken.OwnRunKills:
		c.lose("its volumes were taken over")
	case e.Node == c.node:
		// The successor renews the ports and speaks to QEMU: neither is touched.
		c.port, c.dying = 0, dyingFinal
		c.do(Exit{})
	case c.mig != nil && c.mig.source():
		if c.mig.stage != GivenUp {
			c.giveUp()
		}
	default:
		// A migration that this guard knows nothing of: own decides.
		c.mig = &migration{stage: Unknown, peer: Peer{Node: e.Node}}
		c.pauses[PauseMigration] = true
		c.do(ReadOwner{})
	}
}

// lose is G5.
func (c *Core) lose(why string) {
	c.owned = false
	c.report("error", "QEMU is killed: %s", why)
	c.enter(Lost, why)
	c.killFor(dyingFinal)
}

// killFor ends QEMU, ports first, and says what follows its exit.
func (c *Core) killFor(d dying) {
	if c.port != 0 {
		c.port = 0
		c.do(Port{})
	}
	if c.dying == dyingFinal {
		return
	}
	c.dying = d
	if c.qemu == qemuAbsent {
		c.endedBy(d)
		return
	}
	c.do(Kill{})
}

func (c *Core) qemuExited() {
	c.qemu, c.vcpu, c.frozen = qemuAbsent, vcpuStopped, false
	if c.port != 0 {
		c.port = 0
		c.do(Port{})
	}
	if c.dying == dyingNot {
		if c.phase.Final() || c.exitInMigration() {
			return
		}
		c.report("error", "QEMU ended by itself: the VM is restarted from power-on")
		c.dying = dyingRestart
		if c.ending != nil {
			c.dying = dyingStop
		}
	}
	c.endedBy(c.dying)
}

// endedBy goes on when QEMU is gone.
func (c *Core) endedBy(d dying) {
	c.dying = d
	switch {
	case d == dyingFinal:
		c.do(CloseVolumes{})
	case c.owned:
		c.owned = false // nothing may run any more under this epoch
		c.do(Release{})
	default:
		c.released(ReleaseDone{})
	}
}

func (c *Core) released(e ReleaseDone) {
	if c.mig != nil && c.mig.stage == GivenUp {
		c.mig.released = true
		c.do(TellReleased{})
		c.leave()
		return
	}
	if e.Err != nil {
		c.report("warn", "its volumes were not released everywhere, so the next start waits out the lease: %v", e.Err)
	}
	c.do(CloseVolumes{})
	switch c.dying {
	case dyingStop:
		c.enter(Stopped, "")
		c.report("info", "powered off")
	case dyingRestart:
		c.restarts++
		c.enter(Starting, "restarting from power-on")
		after := time.Duration(0)
		if n := c.restarts + c.failures; n > 1 {
			after = min(time.Second<<min(n-2, 5), backoffMax)
		}
		c.do(Restart{After: after})
	}
}

func (c *Core) guestOff() {
	c.report("info", "the guest powered itself off")
	c.enter(Stopping, "the guest powered itself off")
	c.killFor(dyingStop)
}

func (c *Core) userStop(e UserStop) {
	if c.mig != nil && c.mig.source() {
		c.cancelEarly("a power-off was asked for")
		if c.mig != nil && c.mig.stage != Returning {
			return // the shell has refused; see CanStop
		}
	}
	if e.Timeout <= 0 {
		e.Timeout = stopDefault
	}
	if !c.owned && c.phase != Stopping {
		c.enter(Stopping, "asked to power off")
		c.killFor(dyingStop)
		return
	}
	c.ending = &ending{force: e.Force || c.pauses[PauseUser], deadline: c.now.Add(e.Timeout), press: c.now.Add(pressAgain)}
	c.enter(Stopping, "asked to power off")
	if c.ending.force {
		c.killFor(dyingStop)
		return
	}
	c.do(PowerDown{})
}

// CanStop says whether a power-off may be asked for: not while a migration is
// past the point where this side alone decides.
func (c *Core) CanStop() bool {
	if c.mig == nil {
		return true
	}
	switch c.mig.stage {
	case Streaming, Unknown, GivenUp, Committing, Committed:
		return false
	}
	return true
}

func (c *Core) tick() {
	if c.vcpu == vcpuHalted && c.mig == nil && c.now >= c.since.Add(haltGrace) {
		c.vcpu = vcpuStopped
	}
	if en := c.ending; en != nil && c.dying == dyingNot && c.owned {
		switch {
		case en.force || c.now >= en.deadline:
			c.report("warn", "the guest did not power off in time")
			c.killFor(dyingStop)
		case c.now >= en.press && c.qemu == qemuUp:
			en.press = c.now.Add(pressAgain)
			c.do(PowerDown{})
		}
	}
	c.migrationTick()
}
