package vmguard

import (
	"errors"
	"maps"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/explore"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// The model of a hand-over: the guards of both nodes are the production's cores,
// `own` of two volumes moves by the production's transitions, and what stands
// around them (QEMU, the stream, the link, etcd, the replicas' promise and lease,
// the kernel's port timers, a third node that restarts the VM) is a few lines
// each. Every outcome of what a guard asks for may come at any time, in any order.
// See docs/design/model.md.

var third = ids.MustParse("00000000-0000-4000-8000-00000000000c")

// What a guard has asked for and not been answered: bits of mguard.asks.
const (
	askOpen = 1 << iota
	askQMP
	askTake
	askReopen
	askClaim
	askReclaim
	askActivate
	askOwner
	askStall
	askRelease
	askPeer
	askExit // QEMU was killed
	askStopped
	askResumed
	askStream  // the stream's end is to be told
	askPrepare // of a destination
	askFenced
)

type mown struct {
	epoch, node, run, nonce, rev uint8 // node 0: source, 1: destination, 2: third
}

type mclaim struct {
	live, made, failed bool
	rev                [2]uint8
	put                [2]mown
}

type mguard struct {
	up      bool
	core    *Core
	saved   Saved
	nonce   uint8
	asks    uint32
	claim   mclaim
	late    mclaim // of a dead predecessor
	expect  uint8  // the epoch that its take compares; 0: none
	stalled bool   // its volumes
	lease   clock.Instant

	alive, running, frozen bool // QEMU, its processors, its process
	loaded                 bool // it has the guest's memory
	port                   clock.Instant
}

type mstate struct {
	now      clock.Instant
	own      [2]mown
	g        [2]mguard
	promised uint8 // epoch in force at the replicas
	holder   uint8 // nonce
	wanted   uint8 // the highest epoch that OPEN asked for
	released bool
	lease    clock.Instant // of the holder, as the replicas know it
	link     bool
	toDst    string // messages under way
	toSrc    string
	stream   mstream
	ran      [2]bool // a frame left after migrate-continue: which lineage goes on
	restart  bool    // the third node runs the VM under a new run
	budget   mbudget
	bad      string
}

type mstream uint8

const (
	streamNone mstream = iota
	streamPrecopy
	streamSwitch // pre-switchover
	streamGo
	streamWhole // the destination has it all
	streamEnded // and the source knows that it ended
	streamBroken
)

// mbudget says what may still go wrong.
type mbudget struct {
	guards, qemus, links, unknown, etcd, longs, shorts, restarts, cancels uint8
}

// mrules are switched off one by one.
type mrules struct {
	adoptAnyRun, portTooLong, unknownIsMade, silentIsNever, neverWhileCommitting, takeOneByOne,
	restartNoWait, takeComparesNoEpoch, claimIgnoresEpoch bool
}

type mmodel struct {
	budget mbudget
	rules  mrules
}

func nodeID(n uint8) ids.ID { return []ids.ID{here, there, third}[n] }
func runID(n uint8) ids.ID  { return []ids.ID{{}, run1, run2}[n] }
func nonceID(n uint8) ids.ID {
	if n == 0 {
		return ids.ID{}
	}
	return ids.ID{0: 9, 15: n}
}

func (s *mstate) records() repl.Records {
	var r repl.Records
	for i, o := range s.own {
		r.Volumes = append(r.Volumes, repl.VolumeRecord{
			ID: ids.ID{0: 8, 15: byte(i + 1)}, OwnRev: int64(o.rev), Cfg: repl.Cfg{State: repl.VolumeLive},
			Own: repl.Own{Epoch: uint64(o.epoch), Node: nodeID(o.node), Run: runID(o.run), Nonce: nonceID(o.nonce)},
		})
	}
	return r
}

// claimed is the transaction by which node takes the volumes; false: refused at once.
func (s *mstate) take(node, run, nonce uint8, expectRun ids.ID, expectEpoch uint64) (mclaim, bool) {
	txn, next, err := repl.Takeover(s.records(), repl.Take{
		Node: nodeID(node), Run: runID(run), Nonce: nonceID(nonce), ExpectRun: expectRun, ExpectEpoch: expectEpoch,
	})
	if err != nil {
		return mclaim{}, false
	}
	c := mclaim{live: true}
	for i, v := range next.Volumes {
		c.put[i] = mown{epoch: uint8(v.Own.Epoch), node: node, run: run, nonce: nonce}
		c.rev[i] = uint8(txn.Compares[i].Rev)
	}
	return c, true
}

// commit applies a transaction if its revisions still are the records'.
func (m mmodel) commit(s *mstate, c *mclaim) {
	c.live = false
	if m.rules.takeOneByOne {
		for i := range s.own {
			if c.rev[i] == s.own[i].rev {
				c.made = true
				rev := s.own[i].rev + 1
				s.own[i] = c.put[i]
				s.own[i].rev = rev
				c.live = i == 0 && c.rev[1] == s.own[1].rev
				return
			}
		}
		c.failed = true
		return
	}
	for i := range s.own {
		if c.rev[i] != s.own[i].rev {
			c.failed = true
			return
		}
	}
	c.made = true
	for i := range s.own {
		rev := s.own[i].rev + 1
		s.own[i] = c.put[i]
		s.own[i].rev = rev
	}
}

func (c *Core) clone() *Core {
	n := *c
	n.out = nil
	n.pauses = maps.Clone(c.pauses)
	if c.mig != nil {
		m := *c.mig
		n.mig = &m
	}
	if c.ending != nil {
		e := *c.ending
		n.ending = &e
	}
	return &n
}

// give lets guard i take in an event, and carries out what it wants.
func (m mmodel) give(s *mstate, i int, e Event) {
	g := &s.g[i]
	if !g.up {
		return
	}
	g.core = g.core.clone()
	acts := g.core.Step(s.now, e)
	g.core.out = nil
	for _, a := range acts {
		if !g.up {
			return // Exit
		}
		m.act(s, i, a)
	}
}

func (m mmodel) act(s *mstate, i int, a Action) {
	g := &s.g[i]
	switch a := a.(type) {
	case Save:
		g.saved = a.Saved
	case OpenVolumes:
		g.asks |= askOpen
	case CloseVolumes:
		g.lease, g.asks = 0, g.asks&^(askTake|askReopen|askActivate)
	case ConnectQMP:
		g.asks |= askQMP
	case Take:
		g.asks |= askTake
		g.claim, g.expect = mclaim{}, uint8(a.ExpectEpoch)
	case Reopen:
		g.asks |= askReopen
	case Claim:
		m.claim(s, i, a.Run, a.Epoch, askClaim)
	case Reclaim:
		m.claim(s, i, a.Run, 0, askReclaim)
	case Activate:
		g.asks |= askActivate
	case ReadOwner:
		g.asks |= askOwner
	case Stall:
		g.stalled = true
		g.asks |= askStall
	case Unstall:
		if s.released && s.holder == g.nonce {
			s.bad = "I24: I/O goes on under a released epoch"
		}
		g.stalled = false
	case Release:
		g.asks |= askRelease
	case AskPeer:
		g.asks |= askPeer
	case Port:
		g.port = a.Until
		if m.rules.portTooLong && a.Until != 0 {
			g.port = a.Until.Add(5 * time.Second)
		}
	case Stop:
		if g.running {
			g.running = false
			g.asks |= askStopped
		}
	case Cont:
		g.running = g.alive
	case Freeze:
		g.frozen = true
	case Thaw:
		g.frozen = false
	case Kill:
		if g.alive {
			g.asks |= askExit
		}
		m.qemuEnds(s, i)
	case MigrateStart:
		if s.stream == streamNone {
			s.stream = streamPrecopy
		}
	case MigrateGo:
		if s.stream == streamSwitch {
			s.stream = streamGo
		}
	case MigrateStop:
		if i == 0 && s.stream != streamNone && s.stream < streamWhole {
			s.stream = streamBroken
			g.asks |= askStream
			if g.alive && !g.running {
				g.asks |= askResumed // QEMU's own idea of what a failed stream means
			}
		} else if i == 0 && s.stream >= streamWhole {
			g.asks |= askStream
		}
	case ConnectPeer:
		s.toDst += "h"
	case TellSwitch:
		s.toDst += "s"
	case TellCancel:
		s.toDst += "c"
	case TellReleased:
		s.toDst += "r"
	case Prepare:
		g.asks |= askPrepare
	case TellAccept:
		s.toSrc += "a"
	case TellRefuse:
		s.toSrc += "f"
	case TellNever:
		s.toSrc += "n"
	case TellCommitted:
		s.toSrc += "k"
	case Exit:
		g.up = false
	}
	if !s.link {
		s.toDst, s.toSrc = "", ""
	}
}

func (m mmodel) claim(s *mstate, i int, run ids.ID, epoch uint64, ask uint32) {
	g := &s.g[i]
	if g.claim.live { // sent again: the same values under the same revisions
		g.asks |= ask
		return
	}
	if m.rules.claimIgnoresEpoch {
		epoch = 0
	}
	c, ok := s.take(uint8(i), 1, g.nonce, run, epoch)
	if !ok {
		c = mclaim{failed: true}
	}
	g.claim = c
	g.asks |= ask
}

func (m mmodel) qemuEnds(s *mstate, i int) {
	g := &s.g[i]
	g.alive, g.running, g.loaded, g.port = false, false, false, 0
	if s.stream != streamNone && (i == 0 && s.stream < streamWhole || i == 1 && s.stream < streamEnded) {
		if i == 1 && s.stream > streamNone && s.g[0].alive {
			s.g[0].asks |= askStream
		}
		s.stream = streamBroken
	}
}

// sends reports whether a frame of the guest on node i can leave.
func (s *mstate) sends(i int) bool {
	g := &s.g[i]
	return g.alive && g.running && !g.frozen && s.now < g.port
}

// observe notes whose memory goes on, and judges what can be seen.
func (m mmodel) observe(s *mstate) {
	for i := range s.g {
		g := &s.g[i]
		if !s.sends(i) {
			continue
		}
		switch {
		case !g.loaded:
			s.bad = "I19: a guest runs without its memory"
		case s.restart:
			s.bad = "H1: a frame of an old run leaves while another run has the volumes"
		case s.promised != uint8(g.core.epoch) || s.holder != g.nonce:
			s.bad = "I20: a frame leaves under an epoch that is not in force"
		}
		if s.stream >= streamWhole || i == 1 {
			s.ran[i] = true
		}
	}
	switch {
	case s.sends(0) && s.sends(1):
		s.bad = "H1: two QEMUs send frames"
	case s.ran[0] && s.ran[1]:
		s.bad = "I19: a memory lineage forked"
	case s.own[0].node != s.own[1].node || s.own[0].run != s.own[1].run:
		s.bad = "I23: the volumes have two owners"
	}
	for i := range s.g {
		if g := &s.g[i]; g.port != 0 && g.port > s.now && g.port > s.lease.Add(-PortMargin) {
			s.bad = "I20: a port is open beyond the lease"
		}
	}
}

// Next yields what may happen.
func (m mmodel) Next(s mstate, emit func(explore.Step, mstate)) {
	step := func(name string, i int, f func(n *mstate)) {
		n := s
		f(&n)
		if n.bad == "" {
			m.observe(&n)
		}
		if len(n.toDst) > 4 || len(n.toSrc) > 4 {
			return
		}
		emit(explore.Step{Name: name, A: int8(i), B: -1}, n)
	}
	m.timeSteps(&s, step)
	m.linkSteps(&s, step)
	m.streamSteps(&s, step)
	for i := range s.g {
		m.guardSteps(&s, i, step)
	}
	if !s.restart && s.budget.restarts > 0 && (s.leaseOver() || m.rules.restartNoWait) {
		step("the third node takes the volumes and starts the VM under a new run", -1, func(n *mstate) {
			n.budget.restarts--
			c, ok := n.take(2, 2, 50, ids.ID{}, 0)
			if !ok {
				return
			}
			m.commit(n, &c)
			n.restart, n.promised, n.holder, n.wanted, n.released, n.lease = true, c.put[0].epoch, 50, c.put[0].epoch, false, 0
			for i := range n.g {
				n.g[i].asks |= askFenced
			}
		})
	}
}

type mstep func(name string, i int, f func(n *mstate))

// leaseOver: the clocks agree to 10 percent of 3 s.
func (s *mstate) leaseOver() bool {
	return s.released || s.now >= s.lease.Add(300*time.Millisecond)
}

func (m mmodel) timeSteps(s *mstate, step mstep) {
	if s.budget.shorts > 0 {
		step("time: 0.4 s", -1, func(n *mstate) {
			n.budget.shorts--
			n.now = n.now.Add(400 * time.Millisecond)
		})
	}
	if s.budget.longs == 0 {
		return
	}
	step("time: 4 s without a heartbeat", -1, func(n *mstate) {
		n.budget.longs--
		n.now = n.now.Add(4 * time.Second)
	})
	if i := s.holding(); i >= 0 {
		step("time: 4 s, the holder's lease renewed", i, func(n *mstate) {
			n.budget.longs--
			n.now = n.now.Add(4 * time.Second)
			m.renew(n, i)
		})
	}
}

// holding is the guard whose grants the replicas renew, or -1.
func (s *mstate) holding() int {
	for i := range s.g {
		if g := &s.g[i]; g.up && g.nonce == s.holder && !s.released && s.wanted <= s.promised && g.asks&askRelease == 0 {
			return i
		}
	}
	return -1
}

func (m mmodel) renew(n *mstate, i int) {
	n.lease = n.now.Add(leaseTime)
	n.g[i].lease = n.lease
	m.give(n, i, LeaseChanged{Held: true, Deadline: n.lease})
}

func (m mmodel) linkSteps(s *mstate, step mstep) {
	if !s.link {
		return
	}
	if s.toDst != "" && s.g[1].up {
		step("message to the destination: "+s.toDst[:1], -1, func(n *mstate) {
			op := n.toDst[0]
			n.toDst = n.toDst[1:]
			switch op {
			case 'h':
				m.give(n, 1, SourceHello{Epoch: n.g[0].core.epoch, Run: run1})
			case 's':
				m.give(n, 1, SourceSwitch{})
			case 'c':
				m.give(n, 1, SourceCancel{})
			case 'r':
				m.give(n, 1, SourceReleased{})
			}
		})
	}
	if s.toSrc != "" && s.g[0].up {
		step("message to the source: "+s.toSrc[:1], -1, func(n *mstate) {
			op := n.toSrc[0]
			n.toSrc = n.toSrc[1:]
			switch op {
			case 'a':
				m.give(n, 0, PeerAccepted{})
			case 'f':
				m.give(n, 0, PeerRefused{Text: "no"})
			case 'n':
				m.give(n, 0, PeerNever{})
			case 'k':
				m.give(n, 0, PeerCommitted{})
			}
		})
	}
	if s.budget.links > 0 {
		step("the link between the guards breaks", -1, func(n *mstate) {
			n.budget.links--
			m.breakLink(n)
		})
	}
}

// breakLink ends the connections; both ends notice, the source possibly much later.
func (m mmodel) breakLink(n *mstate) {
	n.link, n.toDst, n.toSrc = false, "", ""
	if n.stream != streamNone && n.stream < streamWhole {
		n.stream = streamBroken
		n.g[0].asks |= askStream
		if n.g[0].alive && !n.g[0].running {
			n.g[0].asks |= askResumed
		}
	}
	m.give(n, 1, SourceLost{})
	m.give(n, 0, PeerLost{})
}

var errModel = errors.New("no answer")
