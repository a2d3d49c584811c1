package sim

import (
	"time"

	"roseau/internal/core/ha"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
)

// peer returns the guard at the other end of a migration, or nil: nobody answers.
func (k *keeper) peer() *keeper {
	p := k.m.records().Placement
	for _, h := range k.m.hosts {
		if h == k.host || h.keeper == nil || !h.powered || !k.host.powered || k.m.linkCut || h.clusterCut || k.host.clusterCut {
			continue
		}
		if h.id == p.Target || h.id == p.Node || h.keeper.core.Migration() != "" {
			return h.keeper
		}
	}
	return nil
}

// tell sends a message to the other guard.
func (k *keeper) tell(e vmguard.Event) {
	p := k.peer()
	if p == nil {
		return
	}
	k.m.after(k.m.between(200*time.Microsecond, 3*time.Millisecond), func() {
		if k.peer() == p {
			p.give(e)
		}
	})
}

// actMove carries out what is about a migration.
func (k *keeper) actMove(a vmguard.Action) {
	switch a := a.(type) {
	case vmguard.ConnectPeer:
		if p := k.peer(); p == nil || !p.alive {
			k.after(k.soon(), func() { k.give(vmguard.PeerRefused{Text: "nobody answers"}) })
			return
		}
		k.tell(vmguard.SourceHello{Epoch: k.core.Epoch(), Run: k.core.Run()})
	case vmguard.MigrateStart:
		k.precopy()
	case vmguard.MigrateGo:
		k.stream()
	case vmguard.MigrateStop:
		k.cancelStream()
	case vmguard.TellSwitch:
		k.tell(vmguard.SourceSwitch{})
	case vmguard.TellCancel:
		k.over = k.attempt
		k.tell(vmguard.SourceCancel{})
	case vmguard.TellReleased:
		k.tell(vmguard.SourceReleased{})
	case vmguard.AskPeer:
		k.after(a.After+k.soon(), k.askPeer)
	case vmguard.TellAccept:
		k.tell(vmguard.PeerAccepted{})
	case vmguard.TellRefuse:
		k.tell(vmguard.PeerRefused(a))
	case vmguard.TellNever:
		k.tell(vmguard.PeerNever{})
	case vmguard.TellCommitted:
		k.tell(vmguard.PeerCommitted{})
	case vmguard.DisconnectPeer:
		k.over = k.m.records().Placement.Attempt
	case vmguard.Claim:
		k.sendClaim(repl.Take{ExpectRun: a.Run, ExpectEpoch: a.Epoch}, nil)
	case vmguard.Reclaim:
		k.sendClaim(repl.Take{ExpectRun: a.Run}, k.goOn)
	}
}

func (k *keeper) precopy() {
	q := k.host.qemu
	q.stream = streamPrecopy
	k.m.after(k.m.between(100*time.Millisecond, time.Second), func() {
		if !q.alive || q.stream != streamPrecopy {
			return
		}
		q.stream, q.running = streamSwitch, false
		k.m.note("switchover")
		k.give(vmguard.VCPUsStopped{})
		k.give(vmguard.StreamStatus{Status: "pre-switchover"})
	})
}

// stream sends the rest; the destination has it all before the source knows.
func (k *keeper) stream() {
	q, p := k.host.qemu, k.peer()
	if q.stream != streamSwitch {
		return
	}
	q.stream = streamGo
	k.m.note("streaming")
	k.m.after(k.m.between(50*time.Millisecond, 200*time.Millisecond), func() {
		if q.stream != streamGo {
			return
		}
		if p == nil || k.peer() != p || !p.alive || p.host.qemu == nil || !p.host.qemu.alive || !q.alive {
			k.breakStream("failed")
			return
		}
		q.stream, p.host.qemu.memory = streamWhole, q.memory
		k.m.whole, k.m.ran = true, map[*qemu]bool{}
		k.m.note("stream_whole")
		p.give(vmguard.StreamStatus{Status: "completed"})
		k.after(k.soon(), func() { k.give(vmguard.StreamStatus{Status: "completed"}) })
	})
}

// breakStream ends the stream, and QEMU resumes by itself: its own idea of what a
// failed migration means.
func (k *keeper) breakStream(status string) {
	q := k.host.qemu
	stopped := q.stream != streamPrecopy
	q.stream = streamBroken
	k.after(k.soon(), func() {
		if stopped && q.alive {
			q.running = true
			k.give(vmguard.VCPUsResumed{})
		}
		k.give(vmguard.StreamStatus{Status: status})
	})
	if p := k.peer(); p != nil {
		p.give(vmguard.StreamStatus{Status: "failed"})
	}
}

func (k *keeper) cancelStream() {
	switch q := k.host.qemu; {
	case q == nil || q.stream == streamNone:
	case q.stream == streamWhole:
		k.after(k.soon(), func() { k.give(vmguard.StreamStatus{Status: "completed"}) })
	case q.stream == streamBroken:
		k.after(k.soon(), func() { k.give(vmguard.StreamStatus{Status: "cancelled"}) })
	default:
		k.breakStream("cancelled")
	}
}

// sendClaim sends a CAS, the same one again as long as its outcome is unknown.
func (k *keeper) sendClaim(t repl.Take, made func(epoch uint64)) {
	m := k.m
	if k.claim == nil {
		r := m.records()
		t.Node, t.Run, t.Purpose, t.Nonce, t.Attempt = k.host.id, k.core.Run(), repl.PurposeVM, k.nonce, k.attempt
		t.Placement = &repl.Placement{Node: k.host.id, Attempt: r.Placement.Attempt, State: ha.PlaceRunning, Run: k.core.Run()}
		if made != nil {
			t.Attempt = r.Placement.Attempt
		}
		txn, next, err := repl.Takeover(r, t)
		if err != nil {
			k.after(k.soon(), func() { k.give(vmguard.ClaimDone{Outcome: vmguard.NotMade, Err: err}) })
			return
		}
		k.claim, k.claimed = &txn, next.Volumes[0].Own.Epoch
	}
	m.note("claim_sent")
	epoch := k.claimed
	m.commit(k.host, *k.claim, func(o repl.Outcome) {
		k.on(func() {
			switch mine := m.records().Volumes[0].Own; {
			case o == repl.OutcomeCommitted || o == repl.OutcomeConflict && mine.Nonce == k.nonce && mine.Epoch == epoch:
				k.claim = nil
				if made != nil {
					made(epoch)
				}
				k.give(vmguard.ClaimDone{Outcome: vmguard.Made, Epoch: epoch})
			case o == repl.OutcomeConflict:
				k.claim = nil
				k.give(vmguard.ClaimDone{Outcome: vmguard.NotMade})
			default:
				m.note("claim_unknown")
				k.give(vmguard.ClaimDone{Outcome: vmguard.OutcomeUnknown, Epoch: epoch})
			}
		})
	})
}

// goOn: the source's own claim was made, its I/O goes on.
func (k *keeper) goOn(epoch uint64) {
	r := &k.m.rep
	r.nonce, r.inc, r.epoch, r.wanted, r.released, r.node = k.nonce, k.inc, epoch, max(r.wanted, epoch), false, k.host.id
	k.serving, k.stalled = true, false
	k.renew()
}

// askPeer asks on a new connection, as the source does when the destination is
// silent.
func (k *keeper) askPeer() {
	p := k.peer()
	if p == nil || !p.alive || p.frozen {
		k.give(vmguard.PeerLost{})
		return
	}
	p.give(vmguard.SourceCancel{})
	phase, _ := p.core.Phase()
	switch stage := p.core.Migration(); {
	case stage == vmguard.Never:
		k.give(vmguard.PeerNever{})
	case stage == vmguard.Committed, stage == "" && phase != vmguard.Lost && phase != vmguard.Failed:
		k.give(vmguard.PeerCommitted{})
	default:
		k.give(vmguard.PeerLost{})
	}
}

// cutLink breaks the link between the guards; each end notices.
func (m *machines) cutLink() {
	m.linkCut = true
	for _, h := range m.hosts {
		k := h.keeper
		if k == nil || k.core.Migration() == "" {
			continue
		}
		if q := h.qemu; q != nil && q.alive && q.stream > streamNone && q.stream < streamWhole {
			k.breakStream("failed")
		}
		k.after(k.soon(), func() {
			switch k.core.Migration() {
			case vmguard.Waiting, vmguard.Receiving, vmguard.Committing, vmguard.Committed:
				k.give(vmguard.SourceLost{})
			default:
				k.give(vmguard.PeerLost{})
			}
		})
	}
}
