package sim

import (
	"errors"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/ha"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
)

// keeper is the shell of one guard of machines: what internal/guard is in
// production.
type keeper struct {
	m       *machines
	host    *host
	core    *vmguard.Core
	attempt uint64
	nonce   ids.ID
	inc     uint32
	alive   bool
	frozen  bool
	held    []func()
	timer   clock.Instant
	serving bool
	stalled bool
	live    bool // PREPARE met a living writer
	claim   *repl.Txn
	claimed uint64 // epoch of claim
	phase   vmguard.Phase
	since   clock.Instant // of phase
	lapsed  clock.Instant // since when the lease is not held; 0: it is
	moved   uint64        // the migration that it was told of
	over    uint64        // the migration that ended without moving it
}

func (m *machines) newKeeper(h *host, attempt uint64) *keeper {
	k := &keeper{m: m, host: h, core: vmguard.New(h.id), attempt: attempt, nonce: m.newID(), alive: true, phase: vmguard.Starting, since: m.now}
	k.core.Break(m.mut.Guard)
	h.keeper, h.keepers = k, append(h.keepers, k)
	k.beat()
	return k
}

// on runs f in the guard's process: never if it is dead, later if it is frozen.
func (k *keeper) on(f func()) {
	switch {
	case !k.alive:
	case k.frozen:
		k.held = append(k.held, func() { k.on(f) })
	default:
		f()
	}
}

func (k *keeper) after(d time.Duration, f func()) { k.m.after(d, func() { k.on(f) }) }

// soon is the time of a local action.
func (k *keeper) soon() time.Duration { return k.m.between(time.Millisecond, 20*time.Millisecond) }

func (k *keeper) give(e vmguard.Event) {
	k.on(func() {
		acts := k.core.Step(k.m.now, e)
		if phase, why := k.core.Phase(); phase != k.phase {
			k.m.tracef("%s guard: %s -> %s %s", k.host.name(), k.phase, phase, why)
			k.phase, k.since = phase, k.m.now
		}
		for _, a := range acts {
			if !k.alive {
				return
			}
			k.act(a)
		}
		k.arm()
	})
}

func (k *keeper) arm() {
	at := k.core.Next()
	if at == 0 || k.timer != 0 && k.timer <= at && k.timer >= k.m.now {
		return
	}
	k.timer = at
	k.m.after(at.Sub(k.m.now), func() {
		if k.timer == at {
			k.timer = 0
			k.give(vmguard.Tick{})
		}
	})
}

func (k *keeper) thaw() {
	k.frozen = false
	held := k.held
	k.held = nil
	for _, f := range held {
		f()
	}
}

// beat renews the lease, every beatTime, as long as the process runs.
func (k *keeper) beat() {
	if !k.alive {
		return
	}
	k.m.after(beatTime, k.beat)
	if k.frozen {
		return
	}
	k.renew()
	k.give(vmguard.Tick{})
	if !k.core.GuestRuns() && k.phase == vmguard.Running {
		if k.lapsed == 0 {
			k.lapsed = k.m.now
		}
	} else {
		k.lapsed = 0
	}
}

func (k *keeper) holds() bool {
	r := &k.m.rep
	return r.nonce == k.nonce && r.inc == k.inc && r.epoch > 0
}

func (k *keeper) renew() {
	r := &k.m.rep
	if !k.serving || !k.host.powered || k.host.storageCut {
		return
	}
	switch {
	case !k.holds():
		k.serving = false
		k.give(vmguard.Fenced{Node: r.node, Run: r.run})
	case !r.released && r.wanted <= r.epoch:
		sent := k.m.now
		r.lease = sent.Add(leaseTime + leaseTime/10)
		k.after(k.m.between(50*time.Microsecond, time.Millisecond), func() {
			if k.serving {
				k.give(vmguard.LeaseChanged{Held: true, Deadline: sent.Add(leaseTime)})
			}
		})
	}
}

// act carries out what does not concern a migration's messages; see move.go.
func (k *keeper) act(a vmguard.Action) {
	m := k.m
	switch a := a.(type) {
	case vmguard.Save:
		k.host.saved = a.Saved
	case vmguard.OpenVolumes:
		k.after(k.soon(), func() { k.give(vmguard.VolumesOpened{}) })
	case vmguard.CloseVolumes:
		k.serving = false
	case vmguard.StartQEMU:
		k.after(m.between(200*time.Millisecond, time.Second), func() { k.startQEMU(a.Incoming) })
	case vmguard.Prepare:
		k.after(a.After+k.soon(), k.prepare)
	case vmguard.Take:
		k.take(a, 0)
	case vmguard.Reopen:
		k.after(k.soon(), k.reopen)
	case vmguard.Activate:
		k.open(k.claimed)
	case vmguard.Stall:
		k.stalled = true
		k.after(k.soon(), func() { k.give(vmguard.StallDone{}) })
	case vmguard.Unstall:
		if m.rep.released && k.holds() {
			m.failf("I24: I/O on %s goes on under a released epoch", k.host.name())
		}
		k.stalled = false
	case vmguard.ReadOwner:
		k.after(a.After+k.soon(), k.readOwner)
	case vmguard.Release:
		k.after(k.soon(), k.release)
	case vmguard.Restart:
		k.after(a.After, func() { k.give(vmguard.Start{Run: m.newID()}) })
	case vmguard.Exit:
		m.tracef("%s guard exits", k.host.name())
		k.alive = false
	case vmguard.Report:
		m.tracef("%s guard says %s: %s", k.host.name(), a.Level, a.Text)
	default:
		if !k.actOnQEMU(a) {
			k.actMove(a)
		}
	}
}

// actOnQEMU carries out what is about the process and its port.
func (k *keeper) actOnQEMU(a vmguard.Action) bool {
	q := k.host.qemu
	if q == nil {
		q = &qemu{} // nothing there to be changed
	}
	switch a := a.(type) {
	case vmguard.Port:
		q.port = a.Until
	case vmguard.LinkUp, vmguard.Announce, vmguard.Reset:
	case vmguard.Stop:
		k.qmp(q, func() {
			if q.running {
				q.running = false
				k.give(vmguard.VCPUsStopped{})
			}
		})
	case vmguard.Cont:
		k.qmp(q, func() {
			q.running = true
			k.give(vmguard.VCPUsResumed{})
		})
	case vmguard.ConnectQMP:
		k.qmp(q, func() {
			status := "paused"
			if q.running {
				status = "running"
			}
			k.give(vmguard.QMPUp{Status: status})
		})
	case vmguard.Freeze:
		q.frozen = true
	case vmguard.Thaw:
		q.frozen = false
	case vmguard.Kill:
		k.m.tracef("%s guard kills QEMU", k.host.name())
		q.alive = false
		k.after(k.soon(), func() { k.give(vmguard.QEMUExited{}) })
	case vmguard.PowerDown:
	default:
		return false
	}
	return true
}

// qmp lets a command take effect, in order, unless the monitor is dead.
func (k *keeper) qmp(q *qemu, f func()) {
	at := max(k.m.now.Add(k.m.between(time.Millisecond, 4*time.Millisecond)), q.last+1)
	q.last = at
	k.m.after(at.Sub(k.m.now), func() {
		if q.alive && !q.hung {
			f()
		}
	})
}

func (k *keeper) startQEMU(incoming bool) {
	q := &qemu{run: k.core.Run(), alive: true}
	if !incoming {
		q.memory = k.m.newID()
	}
	k.host.qemu = q
	k.give(vmguard.QEMUStarted{})
}

func (k *keeper) prepare() {
	r := &k.m.rep
	p := vmguard.Prepared{Reachable: k.host.powered && !k.host.storageCut, Retry: 100 * time.Millisecond}
	k.live = p.Reachable && r.epoch > 0 && !r.released && k.m.now < r.lease && !k.holds()
	switch {
	case !p.Reachable:
		p.Text = "no copy answers"
	case k.live:
		p.Text = "its writer lives"
	default:
		p.Ready = true
	}
	k.give(p)
}

// take claims until it is certain, then opens.
func (k *keeper) take(a vmguard.Take, tries int) {
	again := func() { k.after(etcdRetry, func() { k.take(a, tries+1) }) }
	if phase, _ := k.core.Phase(); phase.Final() {
		return
	}
	if !k.m.etcdReach(k.host) {
		again()
		return
	}
	r := k.m.records()
	if r.Volumes[0].Own.Nonce == k.nonce && tries > 0 {
		k.open(r.Volumes[0].Own.Epoch)
		return
	}
	run := k.core.Run()
	txn, next, err := repl.Takeover(r, repl.Take{Node: k.host.id, Run: run, Purpose: repl.PurposeVM, Nonce: k.nonce, Attempt: k.attempt,
		ExpectRun: a.ExpectRun, ExpectEpoch: a.ExpectEpoch, Placement: &repl.Placement{Node: k.host.id, Attempt: k.attempt, State: ha.PlaceRunning, Run: run}})
	if err != nil {
		k.give(vmguard.Taken{Fenced: errs.Kind(err) == errs.Fenced, Err: err})
		return
	}
	k.m.commit(k.host, txn, func(o repl.Outcome) {
		switch o {
		case repl.OutcomeCommitted:
			k.on(func() { k.open(next.Volumes[0].Own.Epoch) })
		case repl.OutcomeConflict:
			k.on(func() { k.take(a, tries+1) })
		default:
			k.on(again)
		}
	})
}

// open asks the copies for a promise until they give it, or another has it.
func (k *keeper) open(epoch uint64) {
	m, r := k.m, &k.m.rep
	if phase, _ := k.core.Phase(); phase.Final() {
		return
	}
	again := func() { k.after(100*time.Millisecond, func() { k.open(epoch) }) }
	if k.host.storageCut {
		again()
		return
	}
	if r.epoch > epoch || r.epoch == epoch && r.nonce != k.nonce {
		k.give(vmguard.Fenced{Node: r.node, Run: r.run})
		return
	}
	r.wanted = max(r.wanted, epoch)
	if r.epoch > 0 && !r.released && m.now < r.lease && r.node != k.host.id {
		again()
		return
	}
	k.serve(epoch)
}

// serve: the copies promise.
func (k *keeper) serve(epoch uint64) {
	m := k.m
	if own := m.records().Volumes[0].Own; own.Epoch == epoch && own.Nonce != k.nonce || own.Epoch < epoch {
		m.failf("I4: %s serves under epoch %d, and no record gives it that", k.host.name(), epoch)
	}
	if r := m.records(); r.Volumes[0].Own.Promise() != r.Volumes[1].Own.Promise() {
		m.failf("I23: %s serves, and the volumes have two owners: %s under epoch %d, %s under epoch %d", k.host.name(),
			m.nameOf(r.Volumes[0].Own.Node), r.Volumes[0].Own.Epoch, m.nameOf(r.Volumes[1].Own.Node), r.Volumes[1].Own.Epoch)
	}
	m.rep = copies{nonce: k.nonce, inc: k.inc, epoch: epoch, wanted: max(epoch, m.rep.wanted), node: k.host.id, run: k.core.Run(), lease: m.now.Add(leaseTime + leaseTime/10)}
	m.tracef("copies: promised epoch %d to %s", epoch, k.host.name())
	m.note("served")
	k.serving, k.stalled = true, false
	k.give(vmguard.Taken{Epoch: epoch})
	k.renew()
}

// reopen takes up the epoch of a predecessor on this host, proved dead by the
// lock.
func (k *keeper) reopen() {
	m, r := k.m, &k.m.rep
	if k.host.storageCut {
		k.after(100*time.Millisecond, k.reopen)
		return
	}
	if r.node != k.host.id || r.run != k.core.Run() || r.released {
		k.give(vmguard.Taken{Fenced: true})
		return
	}
	r.inc++
	k.nonce, k.inc = r.nonce, r.inc
	m.note("reopened")
	k.serving, k.stalled = true, false
	k.give(vmguard.Taken{Epoch: r.epoch})
	k.renew()
}

func (k *keeper) release() {
	if !k.holds() || k.host.storageCut {
		k.give(vmguard.ReleaseDone{Err: errors.New("not reached")})
		return
	}
	k.m.rep.released, k.serving = true, false
	k.give(vmguard.ReleaseDone{})
}

func (k *keeper) readOwner() {
	if !k.m.etcdReach(k.host) {
		k.after(etcdTimeout, func() { k.give(vmguard.OwnerRead{Err: errors.New("no answer")}) })
		return
	}
	o := k.m.records().Volumes[0].Own
	k.give(vmguard.OwnerRead{Owner: vmguard.Owner{Epoch: o.Epoch, Node: o.Node, Run: o.Run, Mine: o.Nonce == k.nonce}})
}
