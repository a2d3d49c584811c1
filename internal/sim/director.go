package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
	"roseau/internal/model"
)

const directorStep = 100 * time.Millisecond

// tick lets the daemons of all hosts look, and the manager decide.
func (m *machines) tick() {
	m.after(directorStep, m.tick)
	for _, h := range m.hosts {
		h.supervise()
	}
	if m.managed {
		m.manage()
	}
}

// manage shows the production's HA manager what there is, and obeys it.
func (m *machines) manage() {
	v := &m.ha.View
	v.Leader = m.etcd.up
	v.Nodes, v.VMs = nil, nil
	r := m.records()
	vm := ha.VM{ID: m.vm, Name: "vm", Want: true, HA: model.HAOn, CPUs: 1, Memory: size.GiB, Networks: []string{"lan"},
		Placement: r.Placement, PlacementRev: r.PlacementRev}
	if own := r.Volumes[0].Own; own.Epoch > 0 {
		vm.Owner = own.Node
	}
	copiesAt := []ids.ID{}
	for _, h := range m.hosts {
		seen := h.powered && !h.clusterCut
		if seen {
			h.cutAt = m.now
		}
		n := ha.Node{ID: h.id, Name: h.name(), Known: true, CPUs: 4, Memory: 8 * size.GiB, MemoryFree: 8 * size.GiB, Storage: seen && !h.storageCut, Networks: []string{"lan"}}
		n.LastBeat, n.Session = h.cutAt, m.now.Sub(h.cutAt) < 2*time.Second
		if !n.Session {
			n.SessionLost = h.cutAt.Add(2 * time.Second)
		}
		v.Nodes = append(v.Nodes, n)
		copiesAt = append(copiesAt, h.id)
		if rep, ok := h.report(r.Placement); ok && seen {
			vm.Reports = append(vm.Reports, rep)
		}
	}
	vm.Volumes = []place.Volume{{Name: "vm-0", Groups: [][]ids.ID{copiesAt}}}
	v.VMs = []ha.VM{vm}
	var actions []ha.Action
	m.ha, actions = ha.Step(m.ha, m.now)
	for _, a := range actions {
		m.tracef("manager: %s", a)
		if p, ok := a.(ha.SetPlacement); ok && p.Expect == r.PlacementRev {
			m.place(p.Placement)
			r.PlacementRev = -1
		}
	}
}

// report is what a host's daemon says of its guard.
func (h *host) report(p repl.Placement) (ha.Report, bool) {
	k := h.keeper
	if k == nil || !k.alive || k.frozen {
		since := h.m.now
		if k != nil {
			since = k.since
		}
		return ha.Report{Node: h.id, Phase: "absent", Since: since}, k != nil && p.Node == h.id
	}
	phase, why := k.core.Phase()
	r := ha.Report{Node: h.id, Attempt: k.attempt, Phase: string(phase), Since: k.since, Reason: why, Seen: h.m.now, State: model.VMRunning, Live: k.live && phase == vmguard.Preparing, MigrationOver: k.over}
	switch pauses := k.core.Pauses(); {
	case slices.Contains(pauses, vmguard.PauseLease):
		r.State = model.VMPausedLease
		if k.lapsed != 0 {
			r.Stalled = h.m.now.Sub(k.lapsed) + 1
		}
	case len(pauses) > 0:
		r.State = model.VMPaused
	}
	return r, true
}

// supervise is the daemon: it starts the guard that the placement wants here, and
// one for a QEMU whose guard is gone. The lock keeps a second one out.
func (h *host) supervise() {
	m, k := h.m, h.keeper
	if !h.powered || !h.supervises || h.starting {
		return
	}
	if k != nil && !k.alive && h.qemu != nil && h.qemu.alive {
		h.adopt()
		return
	}
	if !m.etcdReach(h) {
		return
	}
	p := m.records().Placement
	free := k == nil || !k.alive || k.phase.Final() && (h.qemu == nil || !h.qemu.alive)
	switch {
	case p.State == ha.PlaceStarting && p.Node == h.id && p.Attempt > h.attempt && free:
		h.attempt = p.Attempt
		h.retire()
		m.newKeeper(h, p.Attempt).give(vmguard.Start{Run: m.newID()})
	case p.State == ha.PlaceMigrating && p.Target == h.id && p.Attempt > h.attempt && free:
		h.attempt = p.Attempt
		h.retire()
		m.newKeeper(h, p.Attempt).give(vmguard.Receive{Run: p.Run, Source: p.Node})
	case p.State == ha.PlaceMigrating && p.Node == h.id && k != nil && k.moved < p.Attempt:
		if t := m.hostByID(p.Target); t.keeper != nil && t.keeper.core.Ready() {
			k.moved = p.Attempt
			k.give(vmguard.UserMigrate{Target: vmguard.Peer{Node: p.Target, Name: t.name()}})
		}
	case p.State == ha.PlaceRunning && p.Node == h.id && k != nil && p.Attempt > k.attempt && p.Run == k.core.Run():
		k.attempt = p.Attempt
	}
}

// retire ends a guard in a final phase: its process makes room for the next.
func (h *host) retire() {
	if h.keeper != nil {
		h.keeper.alive = false
	}
}

// adopt starts a successor for the guard that is gone.
func (h *host) adopt() {
	m, old := h.m, h.keeper
	h.starting = true
	m.after(m.between(20*time.Millisecond, 300*time.Millisecond), func() {
		h.starting = false
		if !h.powered || h.qemu == nil || !h.qemu.alive || h.keeper != old {
			return
		}
		m.note("adopted")
		m.tracef("%s: a guard adopts the QEMU", h.name())
		m.newKeeper(h, old.attempt).give(vmguard.Adopt{Saved: h.saved})
	})
}

// second: the daemon takes a slow guard for dead. The successor waits for the lock.
func (h *host) second() error {
	switch k := h.keeper; {
	case k == nil || h.qemu == nil:
		return errors.New("nothing runs there")
	case k.alive && !h.m.mut.NoLock:
		h.m.note("lock_held")
	default:
		h.m.newKeeper(h, k.attempt).give(vmguard.Adopt{Saved: h.saved})
	}
	return nil
}

func (h *host) powerOff() {
	h.powered = false
	if h.keeper != nil {
		h.keeper.alive = false
	}
	if h.qemu != nil {
		h.qemu.alive = false
	}
	h.saved, h.attempt = vmguard.Saved{}, 0
}

// machineWords are the words of a script of machines.
func machineWords(m *machines) map[string]func(a []string) error {
	at := func(f func(h *host, a []string) error) func(a []string) error {
		return func(a []string) error {
			if len(a) == 0 || len(a[0]) != 2 || a[0][0] != 'n' || int(a[0][1]-'1') >= len(m.hosts) {
				return fmt.Errorf("%v: want a node first", a)
			}
			return f(m.hosts[a[0][1]-'1'], a[1:])
		}
	}
	return map[string]func(a []string) error{
		"machines": func([]string) error { return nil },
		"end":      func([]string) error { m.over = true; return nil },
		"heal":     func([]string) error { m.heal(); return nil },
		"mark":     func([]string) error { m.marked = m.sender().qemu.memory; return nil },
		"link":     func([]string) error { m.cutLink(); return nil },
		"place": at(func(h *host, _ []string) error {
			p := m.records().Placement
			m.place(repl.Placement{Node: h.id, Attempt: p.Attempt + 1, State: ha.PlaceStarting, Run: p.Run})
			return nil
		}),
		"migrate": at(func(h *host, _ []string) error {
			p := m.records().Placement
			p.Target, p.State, p.Attempt = h.id, ha.PlaceMigrating, p.Attempt+1
			m.place(p)
			return nil
		}),
		"cut": at(func(h *host, a []string) error {
			for _, what := range a {
				h.storageCut, h.clusterCut = h.storageCut || what == "storage", h.clusterCut || what == "cluster"
			}
			return nil
		}),
		"power": at(func(h *host, a []string) error {
			if h.powered = a[0] == "on"; !h.powered {
				h.powerOff()
			}
			return nil
		}),
		"supervisor": at(func(h *host, a []string) error { h.supervises = a[0] == "on"; return nil }),
		"second":     at(func(h *host, _ []string) error { return h.second() }),
		"qmp":        at(func(h *host, a []string) error { h.qemu.hung = a[0] == "hang"; return nil }),
		"user": at(func(h *host, a []string) error {
			if a[0] == "pause" {
				h.keeper.give(vmguard.UserPause{})
			} else {
				h.keeper.give(vmguard.UserResume{})
			}
			return nil
		}),
		"guard": at(func(h *host, a []string) error {
			switch k := h.keeper; a[0] {
			case "kill":
				k.alive, k.since = false, m.now
			case "freeze":
				k.frozen, k.since = true, m.now
			case "thaw":
				for _, k := range h.keepers {
					if k.frozen {
						k.thaw()
					}
				}
			}
			return nil
		}),
		"crash": at(func(h *host, _ []string) error {
			h.qemu.alive = false
			h.keeper.give(vmguard.QEMUExited{})
			return nil
		}),
		"manager": func(a []string) error { m.managed = a[0] == "on"; return nil },
		"etcd": func(a []string) error {
			switch a[0] {
			case "next":
				m.etcd.next = a[1]
			default:
				m.etcd.up = a[0] == "up"
				m.ha.View.LeaderSince = m.now
			}
			return nil
		},
		"wait": func(a []string) error {
			d, err := m.duration(a[0])
			m.go_(d, func() bool { return false })
			return err
		},
		"until":   func(a []string) error { return m.waitFor(a, time.Minute, false) },
		"promise": m.promise,
	}
}

// promise CONDITION within D: the contract, or availability, is broken without it.
func (m *machines) promise(a []string) error {
	if len(a) < 3 || a[len(a)-2] != "within" {
		return errors.New("want CONDITION within DURATION")
	}
	d, err := m.duration(a[len(a)-1])
	if err != nil {
		return err
	}
	return m.waitFor(a[:len(a)-2], d, true)
}

func (m *machines) waitFor(a []string, d time.Duration, must bool) error {
	cond, err := m.condition(a)
	if err != nil {
		return err
	}
	if m.go_(d, cond) || m.err != nil {
		return nil
	}
	if must {
		m.failf("%v does not hold within %s: %s", a, d, m.describe())
		return nil
	}
	return fmt.Errorf("it did not come within %s: %s", d, m.describe())
}

// condition: runs nX | runs elsewhere nX | still nX | same | seen COUNTER | phase nX PHASE | paused nX REASON.
func (m *machines) condition(a []string) (func() bool, error) {
	switch a[0] {
	case "same": // the guest with the memory that was marked goes on
		return func() bool { h := m.sender(); return h != nil && h.qemu.memory == m.marked }, nil
	case "seen":
		was := m.counts[a[1]]
		return func() bool { return m.counts[a[1]] > was }, nil
	case "elsewhere":
		return func() bool { h := m.sender(); return h != nil && h.name() != a[1] }, nil
	}
	i := slices.IndexFunc(m.hosts, func(h *host) bool { return h.name() == a[1] })
	if i < 0 {
		return nil, fmt.Errorf("%q is no node", a[1])
	}
	h := m.hosts[i]
	switch a[0] {
	case "runs":
		return func() bool { return m.sender() == h }, nil
	case "still": // no frame of it in a while
		since := m.now
		return func() bool {
			if h.sends() {
				since = m.now
			}
			return m.now.Sub(since) >= 2*time.Second
		}, nil
	case "phase":
		return func() bool { return h.keeper != nil && h.keeper.alive && string(h.keeper.phase) == a[2] }, nil
	case "paused":
		return func() bool {
			return h.keeper != nil && slices.Contains(h.keeper.core.Pauses(), vmguard.Reason(a[2]))
		}, nil
	}
	return nil, fmt.Errorf("%q is no condition", a[0])
}
