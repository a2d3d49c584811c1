package vmguard

import (
	"encoding/binary"
	"fmt"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

func (m mmodel) streamSteps(s *mstate, step mstep) {
	switch s.stream {
	case streamPrecopy:
		step("QEMU: pre-switchover", 0, func(n *mstate) {
			n.stream, n.g[0].running = streamSwitch, false
			m.give(n, 0, VCPUsStopped{})
			m.give(n, 0, StreamStatus{Status: "pre-switchover"})
		})
	case streamGo:
		step("QEMU: the stream is complete", 1, func(n *mstate) {
			n.stream, n.g[1].loaded = streamWhole, true
			n.g[0].asks |= askStream
			n.g[1].asks |= askStream
		})
	}
	if s.stream == streamBroken && s.g[1].asks&askStream == 0 && s.g[1].up && s.g[1].core.Migration() == Receiving {
		step("QEMU: the stream broke", 1, func(n *mstate) { m.give(n, 1, StreamStatus{Status: "failed"}) })
	}
}

func (m mmodel) guardSteps(s *mstate, i int, step mstep) {
	g := &s.g[i]
	m.txnSteps(s, i, step)
	if s.budget.qemus > 0 && g.alive {
		step("QEMU: dies", i, func(n *mstate) {
			n.budget.qemus--
			m.qemuEnds(n, i)
			n.g[i].asks |= askExit
		})
	}
	if g.asks&askResumed != 0 && g.alive && !g.frozen {
		step("QEMU: resumes by itself", i, func(n *mstate) {
			n.g[i].asks &^= askResumed
			n.g[i].running = true
			m.give(n, i, VCPUsResumed{})
		})
	}
	if !g.up {
		if g.alive && g.core != nil && !g.core.phase.Final() && g.core.dying != dyingFinal {
			step("guard: a successor starts", i, func(n *mstate) { m.successor(n, i) })
		}
		return
	}
	if s.budget.guards > 0 && !g.core.phase.Final() {
		step("guard: crashes", i, func(n *mstate) {
			n.budget.guards--
			n.g[i].up = false
			n.g[i].asks &= askResumed
			n.g[i].late, n.g[i].claim = n.g[i].claim, mclaim{}
			if i == 0 {
				n.toSrc = ""
				if n.stream != streamNone && n.stream < streamWhole {
					m.breakLink(n)
				}
			}
			m.breakLink(n)
		})
	}
	step("guard: tick", i, func(n *mstate) { m.give(n, i, Tick{}) })
	if i == 0 && s.budget.cancels > 0 && g.core.Migration() != "" {
		step("user: cancels", i, func(n *mstate) {
			n.budget.cancels--
			m.give(n, i, UserCancel{})
		})
	}
	for _, a := range []struct {
		bit  uint32
		name string
		e    Event
	}{
		{askOpen, "guard: its volumes are open", VolumesOpened{}},
		{askQMP, "QEMU: its monitor answers", nil},
		{askExit, "QEMU: its end is known", QEMUExited{}},
		{askStopped, "QEMU: STOP", VCPUsStopped{}},
		{askPrepare, "PREPARE: everything is reachable", Prepared{Reachable: true}},
	} {
		if g.asks&a.bit == 0 {
			continue
		}
		e := a.e
		if a.bit == askQMP {
			if g.frozen {
				continue
			}
			status := "paused"
			if g.running {
				status = "running"
			}
			e = QMPUp{Status: status}
		}
		step(a.name, i, func(n *mstate) {
			n.g[i].asks &^= a.bit
			m.give(n, i, e)
		})
	}
	if g.asks&askStream != 0 {
		status := "completed"
		if i == 0 && s.stream == streamBroken {
			status = "cancelled"
		} else if s.stream == streamBroken && !g.loaded {
			status = "failed"
		}
		step("QEMU: the stream is "+status, i, func(n *mstate) {
			n.g[i].asks &^= askStream
			m.give(n, i, StreamStatus{Status: status})
		})
	}
	m.volumeSteps(s, i, step)
	m.askSteps(s, i, step)
}

func (m mmodel) successor(n *mstate, i int) {
	g := &n.g[i]
	node := g.core.node
	saved := g.saved
	g.core = New(node)
	g.core.now = n.now
	g.up, g.lease, g.stalled = true, 0, false
	g.nonce++
	m.give(n, i, Adopt{Saved: saved})
}

// txnSteps: transactions are committed, or refused, at any time.
func (m mmodel) txnSteps(s *mstate, i int, step mstep) {
	if s.g[i].claim.live {
		step("etcd: the claim arrives", i, func(n *mstate) { m.commit(n, &n.g[i].claim) })
	}
	if s.g[i].late.live {
		step("etcd: the claim of the dead guard arrives", i, func(n *mstate) { m.commit(n, &n.g[i].late) })
	}
}

// mine reports whether the promise in force was made to a guard of node i.
func (s *mstate) mine(i int) bool { return int(s.holder)/10-1 == i }

// serve makes a guard the holder at the replicas: its promise, its first lease.
func (m mmodel) serve(n *mstate, i int, epoch uint8) {
	g := &n.g[i]
	for x := range n.g {
		if x != i && n.holder == n.g[x].nonce {
			n.g[x].asks |= askFenced
		}
	}
	n.promised, n.holder, n.wanted, n.released = epoch, g.nonce, max(n.wanted, epoch), false
	m.renew(n, i)
	m.give(n, i, Taken{Epoch: uint64(epoch)})
}

func (m mmodel) volumeSteps(s *mstate, i int, step mstep) {
	g := &s.g[i]
	o := s.own[0]
	if g.asks&askReopen != 0 {
		switch {
		case !(o.run == 1 && int(o.node) == i) && !m.rules.adoptAnyRun:
			step("volumes: reopening finds another owner", i, func(n *mstate) {
				n.g[i].asks &^= askReopen
				m.give(n, i, Taken{Fenced: true})
			})
		case s.promised == o.epoch && s.mine(i) && s.released:
			// The predecessor released it: nobody may open it again. It stays.
		case s.promised == o.epoch && s.mine(i) || m.rules.adoptAnyRun:
			step("volumes: the same epoch is reopened, by etcd", i, func(n *mstate) {
				n.g[i].asks &^= askReopen
				for v := range n.own {
					n.own[v].rev++
				}
				n.g[i].nonce = n.own[0].nonce
				m.serve(n, i, n.own[0].epoch)
			})
			if s.budget.etcd > 0 {
				step("volumes: the same epoch is reopened, without etcd", i, func(n *mstate) {
					n.budget.etcd--
					n.g[i].asks &^= askReopen
					n.g[i].nonce = n.own[0].nonce
					m.serve(n, i, n.own[0].epoch)
				})
			}
		default:
			step("volumes: the epoch was never opened: a take", i, func(n *mstate) {
				n.g[i].asks = n.g[i].asks&^askReopen | askTake
				n.g[i].claim, n.g[i].expect = mclaim{}, n.own[0].epoch
			})
		}
	}
	if g.asks&askTake != 0 {
		m.takeSteps(s, i, step)
	}
	if g.asks&askActivate != 0 && g.claim.made || g.asks&askActivate != 0 && m.rules.unknownIsMade {
		m.openSteps(s, i, g.claim.put[0].epoch, askActivate, step)
	}
	if g.asks&askStall != 0 {
		step("volumes: drained and flushed", i, func(n *mstate) {
			n.g[i].asks &^= askStall
			m.give(n, i, StallDone{})
		})
		if s.budget.etcd > 0 {
			step("volumes: not drained in time", i, func(n *mstate) {
				n.budget.etcd--
				n.g[i].asks &^= askStall
				m.give(n, i, StallDone{Err: errModel})
			})
		}
	}
	if g.asks&askRelease != 0 {
		step("volumes: released", i, func(n *mstate) {
			n.g[i].asks &^= askRelease
			if n.holder == n.g[i].nonce && n.promised == uint8(n.g[i].core.epoch) {
				n.released = true
			}
			m.give(n, i, ReleaseDone{})
		})
	}
	if g.asks&askFenced != 0 {
		step("volumes: refused, the promise is another's", i, func(n *mstate) {
			n.g[i].asks &^= askFenced
			m.give(n, i, Fenced{Node: nodeID(n.own[0].node), Run: runID(n.own[0].run)})
		})
	}
}

func (m mmodel) takeSteps(s *mstate, i int, step mstep) {
	g := &s.g[i]
	switch {
	case g.claim.made:
		m.openSteps(s, i, g.claim.put[0].epoch, askTake, step)
	case g.claim.live:
	default:
		expect := uint64(g.expect)
		if m.rules.takeComparesNoEpoch {
			expect = 0
		}
		c, ok := s.take(uint8(i), 1, g.nonce, run1, expect)
		if m.rules.adoptAnyRun && !ok {
			c, ok = s.take(uint8(i), 1, g.nonce, ids.ID{}, 0)
		}
		if !ok {
			step("volumes: the take finds another run", i, func(n *mstate) {
				n.g[i].asks &^= askTake
				m.give(n, i, Taken{Fenced: true})
			})
			return
		}
		if s.leaseOver() || s.mine(i) { // PREPARE
			step("volumes: the take sends its CAS", i, func(n *mstate) { n.g[i].claim = c })
		}
	}
}

// openSteps: OPEN ends renewals at once; the promise waits for the lease.
func (m mmodel) openSteps(s *mstate, i int, epoch uint8, ask uint32, step mstep) {
	if s.promised > epoch {
		step("volumes: a later epoch is promised", i, func(n *mstate) {
			n.g[i].asks = n.g[i].asks&^ask | askFenced
		})
		return
	}
	if s.wanted < epoch {
		step("volumes: OPEN", i, func(n *mstate) { n.wanted = epoch })
	}
	if s.leaseOver() || s.mine(i) {
		step("volumes: promised, served", i, func(n *mstate) {
			n.g[i].asks &^= ask
			m.serve(n, i, epoch)
		})
	}
}

// askSteps answer what the migration asks etcd and the peer.
func (m mmodel) askSteps(s *mstate, i int, step mstep) {
	g := &s.g[i]
	for _, ask := range []uint32{askClaim, askReclaim} {
		if g.asks&ask == 0 {
			continue
		}
		done := func(name string, o Outcome) {
			step(name, i, func(n *mstate) {
				n.g[i].asks &^= ask
				epoch := uint64(n.g[i].claim.put[0].epoch)
				if o == Made && ask == askReclaim && n.promised > uint8(epoch) {
					n.g[i].asks |= askFenced
				} else if o == Made && ask == askReclaim {
					n.promised, n.wanted, n.released, n.g[i].stalled = uint8(epoch), max(n.wanted, uint8(epoch)), false, false
					m.renew(n, i)
				}
				if o == NotMade {
					n.g[i].claim = mclaim{}
				}
				m.give(n, i, ClaimDone{Outcome: o, Epoch: epoch})
			})
		}
		switch {
		case g.claim.made:
			done("etcd: the claim was made", Made)
		case g.claim.failed:
			done("etcd: the claim lost", NotMade)
		}
		if s.budget.unknown > 0 && !g.claim.failed {
			o := OutcomeUnknown
			if m.rules.unknownIsMade {
				o = Made
			}
			step("etcd: no answer to the claim", i, func(n *mstate) {
				n.budget.unknown--
				n.g[i].asks &^= ask
				m.give(n, i, ClaimDone{Outcome: o, Epoch: uint64(n.g[i].claim.put[0].epoch)})
			})
		}
	}
	if g.asks&askOwner != 0 {
		step("etcd: own is read", i, func(n *mstate) {
			n.g[i].asks &^= askOwner
			o := n.own[0]
			m.give(n, i, OwnerRead{Owner: Owner{Epoch: uint64(o.epoch), Node: nodeID(o.node), Run: runID(o.run), Mine: o.nonce == n.g[i].nonce}})
		})
		if s.budget.etcd > 0 {
			step("etcd: own is not read", i, func(n *mstate) {
				n.budget.etcd--
				n.g[i].asks &^= askOwner
				m.give(n, i, OwnerRead{Err: errModel})
			})
		}
	}
	if g.asks&askPeer != 0 {
		m.peerSteps(s, step)
	}
}

// peerSteps: the source asks on a new connection; receiver.go answers so.
func (m mmodel) peerSteps(s *mstate, step mstep) {
	d := &s.g[1]
	if !d.up {
		if m.rules.silentIsNever {
			step("the destination is silent: taken for never", 0, func(n *mstate) {
				n.g[0].asks &^= askPeer
				m.give(n, 0, PeerNever{})
			})
		}
		return // asked again and again
	}
	step("the destination is asked", 0, func(n *mstate) {
		n.g[0].asks &^= askPeer
		m.give(n, 1, SourceCancel{})
		c := n.g[1].core
		stage, phase := c.Migration(), c.phase
		switch {
		case stage == Never, m.rules.neverWhileCommitting && stage == Committing:
			m.give(n, 0, PeerNever{})
		case stage == Committed, stage == "" && phase != Lost && phase != Failed:
			m.give(n, 0, PeerCommitted{})
		default:
			n.g[0].asks |= askPeer
		}
	})
}

// Broken judges a state.
func (m mmodel) Broken(s mstate) string { return s.bad }

// Key is the state with times as distances from now; what is past is past.
func (m mmodel) Key(s mstate) string {
	b := make([]byte, 0, 400)
	num := func(ns ...uint64) {
		for _, n := range ns {
			b = binary.AppendUvarint(b, n)
		}
	}
	flag := func(fs ...bool) {
		for _, f := range fs {
			if f {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		}
	}
	at := func(t clock.Instant) {
		if t == 0 || t.Sub(s.now) < -11e9 {
			b = append(b, 0)
			return
		}
		b = binary.AppendVarint(b, int64(t.Sub(s.now)/1e6)+1<<20)
	}
	claim := func(c *mclaim) {
		flag(c.live, c.made, c.failed)
		for i := range c.put {
			num(uint64(c.rev[i]), uint64(c.put[i].epoch), uint64(c.put[i].node), uint64(c.put[i].nonce))
		}
	}
	b = fmt.Appendf(b, "%v%v%s|%s|%v", s.own, s.budget, s.toDst, s.toSrc, s.bad)
	num(uint64(s.promised), uint64(s.holder), uint64(s.wanted), uint64(s.stream))
	flag(s.released, s.link, s.ran[0], s.ran[1], s.restart)
	at(s.lease)
	for i := range s.g {
		g := &s.g[i]
		flag(g.up, g.stalled, g.alive, g.running, g.frozen, g.loaded)
		num(uint64(g.nonce), uint64(g.asks), uint64(g.expect))
		at(g.lease)
		at(g.port)
		claim(&g.claim)
		claim(&g.late)
		if v := g.saved; true {
			flag(v.User, v.Ending, v.Incoming, v.Move != nil)
			if v.Move != nil {
				b = append(b, v.Move.Stage...)
				num(v.Move.Epoch)
			}
		}
		c := g.core
		if c == nil {
			continue
		}
		b = append(b, c.phase...)
		num(c.epoch, uint64(c.qemu), uint64(c.vcpu), uint64(c.dying), uint64(c.restarts))
		flag(c.volumes, c.owned, c.held, c.adopted, c.frozen, c.linkUp, c.settled, c.ending != nil)
		for _, r := range []Reason{PauseUser, PauseLease, PauseSpace, PauseError, PauseMigration} {
			flag(c.pauses[r])
		}
		at(c.deadline)
		at(c.port)
		if c.vcpu == vcpuStopping || c.vcpu == vcpuHalted {
			at(c.since)
		}
		if x := c.mig; x != nil {
			b = append(b, x.stage...)
			b = append(b, x.over...)
			num(x.epoch)
			flag(x.successor, x.asked, x.stalled, x.ownerOK, x.claiming, x.gone, x.released, x.hello, x.userWait, x.sourceUp, x.active)
			at(x.decideBy)
		}
	}
	return string(b)
}
