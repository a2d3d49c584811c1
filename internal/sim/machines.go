package sim

import (
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/ha"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
)

// MachineMutations break rules of what stands above the block engine.
type MachineMutations struct {
	Guard vmguard.Mutations
	// TakeOneByOne: the records of a VM's volumes are taken one after the other [S10].
	TakeOneByOne bool
	// OnlySession: a lost node is the only hint; stalls and absent guards are none [S11].
	OnlySession bool
	// NoLock: a supervisor starts a guard beside one that lives [S18].
	NoLock bool
}

// machines is the world above the block engine: guards (vmguard.Core), the HA
// manager (ha.Step) and the records (repl.Takeover) are production's; QEMU and its
// stream, ports with the kernel's timer, the link between guards, and the copies'
// promise and lease are a few lines each. One VM with two volumes, three hosts.
type machines struct {
	timeline
	over    bool // the script ends here
	mut     MachineMutations
	etcd    *etcdModel
	vm      ids.ID
	volumes []ids.ID
	hosts   []*host
	rep     copies
	ha      ha.State
	managed bool // the manager decides
	linkCut bool // between guards
	marked  ids.ID
	whole   bool // a stream is complete: which of its two ends goes on?
	ran     map[*qemu]bool
}

// copies is what the copies of all volumes promise and grant, as one.
type copies struct {
	nonce     ids.ID
	inc       uint32
	epoch     uint64
	wanted    uint64 // highest epoch that was asked for: renewals of others end
	node, run ids.ID
	lease     clock.Instant // of the holder, with the drift of the clocks
	released  bool
}

// host is a node with its daemon, at most one QEMU and one guard of the VM.
type host struct {
	m          *machines
	index      int
	id         ids.ID
	powered    bool
	storageCut bool
	clusterCut bool
	cutAt      clock.Instant
	supervises bool
	qemu       *qemu
	keeper     *keeper
	keepers    []*keeper // all that ever were
	saved      vmguard.Saved
	attempt    uint64 // newest that was obeyed
	starting   bool
}

// qemu is a process with the guest's memory.
type qemu struct {
	run     ids.ID
	memory  ids.ID // lineage; zero: not loaded yet
	alive   bool
	running bool
	frozen  bool
	hung    bool // its monitor answers nothing
	port    clock.Instant
	last    clock.Instant // when the last QMP command is done
	stream  streamState
}

type streamState int

const (
	streamNone streamState = iota
	streamPrecopy
	streamSwitch
	streamGo
	streamWhole
	streamBroken
)

const (
	leaseTime = 3 * time.Second
	beatTime  = 200 * time.Millisecond
)

func (h *host) name() string { return fmt.Sprintf("n%d", h.index+1) }

// sends reports whether a frame of the guest can leave.
func (h *host) sends() bool {
	q := h.qemu
	return h.powered && q != nil && q.alive && q.running && !q.frozen && h.m.now < q.port
}

func (m *machines) hostByID(id ids.ID) *host {
	for _, h := range m.hosts {
		if h.id == id {
			return h
		}
	}
	return nil
}

func newMachines(opt Options) *machines {
	m := &machines{timeline: newTimeline(opt), mut: opt.Mutations.Machines, etcd: newEtcd(), managed: true, ran: map[*qemu]bool{}}
	m.vm, m.volumes = m.newID(), []ids.ID{m.newID(), m.newID()}
	for i := range storageNodes {
		m.hosts = append(m.hosts, &host{m: m, index: i, id: m.newID(), powered: true, supervises: true})
	}
	m.etcd.rev++
	for _, v := range m.volumes {
		m.etcd.put(repl.Key{Kind: repl.KeyCfg, ID: v}.Path(), repl.Cfg{SizeBytes: volumeBytes, Copies: 3, MinISR: 1, State: repl.VolumeLive, VM: m.vm})
		m.etcd.put(repl.Key{Kind: repl.KeyOwn, ID: v}.Path(), repl.Own{})
	}
	m.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: m.vm}.Path(), repl.Placement{State: ha.PlaceStopped})
	m.ha.Params = ha.Defaults
	if m.mut.OnlySession {
		m.ha.Params.Stall, m.ha.Params.GuardAbsent = 24*time.Hour, 24*time.Hour
	}
	m.ha.View.Listening, m.ha.View.LeaderSince = m.now, m.now.Add(-time.Minute)
	m.tick()
	return m
}

// playMachines runs a script of machines.
func playMachines(opt Options) Result {
	m := newMachines(opt)
	m.timeline.follow(opt.Scenario, machineWords(m), func() bool { return m.over })
	if m.err == nil && !m.over {
		m.settle()
	}
	return Result{Seed: opt.Seed, Err: m.err, Counts: m.counts, Took: time.Duration(m.now)}
}

// settle ends all faults: the VM runs, somewhere.
func (m *machines) settle() {
	m.heal()
	m.etcd.up, m.managed = true, true
	for _, h := range m.hosts {
		h.powered, h.supervises = true, true
		if h.keeper != nil && h.keeper.frozen {
			h.keeper.thaw()
		}
	}
	if !m.go_(2*time.Minute, func() bool { return m.sender() != nil }) {
		m.failf("the VM does not run two minutes after the last fault: %s", m.describe())
	}
	m.go_(10*time.Second, func() bool { return false }) // nothing comes after it
}

func (m *machines) heal() {
	m.linkCut = false
	for _, h := range m.hosts {
		h.storageCut, h.clusterCut = false, false
	}
}

func (m *machines) sender() *host {
	for _, h := range m.hosts {
		if h.sends() && h.keeper != nil && h.keeper.alive {
			return h
		}
	}
	return nil
}

// go_ lets the world go on, and judges it before each event.
func (m *machines) go_(d time.Duration, cond func() bool) bool {
	end := m.now.Add(d)
	m.after(d, func() {})
	return m.run(end, func() bool { m.judge(); return m.err == nil && cond() })
}

// judge is the oracle.
func (m *machines) judge() {
	var who *host
	for _, h := range m.hosts {
		if !h.sends() {
			continue
		}
		q := h.qemu
		switch {
		case who != nil:
			m.failf("H1: the VM sends from %s and from %s", who.name(), h.name())
		case q.memory.IsZero():
			m.failf("I19: the guest on %s runs without its memory", h.name())
		case m.rep.epoch > 0 && q.run != m.rep.run:
			m.failf("H1: a guest of a past run sends from %s", h.name())
		case m.rep.epoch > 0 && h.id != m.rep.node:
			m.failf("I20: the guest sends from %s, and the copies have promised another node", h.name())
		}
		who = h
		if m.whole && !m.ran[q] {
			m.ran[q] = true
			for o := range m.ran {
				if o != q && o.memory == q.memory {
					m.failf("I19: the memory of one guest goes on twice, last on %s", h.name())
				}
			}
		}
	}
}

// etcdReach reports whether a host can use etcd.
func (m *machines) etcdReach(h *host) bool { return m.etcd.up && h.powered && !h.clusterCut }

func (m *machines) records() repl.Records { return m.etcd.records(m.vm, m.volumes, nil) }

func (m *machines) place(p repl.Placement) {
	m.etcd.rev++
	m.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: m.vm}.Path(), p)
	m.tracef("placement: %s on %v, target %v, attempt %d", p.State, m.nameOf(p.Node), m.nameOf(p.Target), p.Attempt)
}

func (m *machines) nameOf(id ids.ID) string {
	if h := m.hostByID(id); h != nil {
		return h.name()
	}
	return "-"
}

// commit sends a transaction; done gets its outcome.
func (m *machines) commit(h *host, t repl.Txn, done func(repl.Outcome)) {
	d := m.between(m.etcdLo(), m.etcdHi())
	unknown := func() { m.after(etcdTimeout, func() { done(repl.OutcomeUnknown) }) }
	if !m.etcdReach(h) {
		unknown()
		return
	}
	fate := m.etcd.next
	m.etcd.next = ""
	switch fate {
	case "lost":
		unknown()
	case "unanswered":
		m.after(d, func() { m.apply(t) })
		unknown()
	case "late":
		m.after(m.between(0, 2*etcdTimeout), func() { m.apply(t) })
		unknown()
	default:
		m.after(d, func() {
			if !m.etcd.up {
				unknown()
				return
			}
			if m.mut.TakeOneByOne {
				m.applyOneByOne(t, done)
				return
			}
			out := m.apply(t)
			m.after(d/2, func() { done(out) })
		})
	}
	if fate != "" {
		m.note("txn_" + fate)
	}
}

func (m *machines) etcdLo() time.Duration { return time.Millisecond }
func (m *machines) etcdHi() time.Duration { return 5 * time.Millisecond }

// apply commits.
func (m *machines) apply(t repl.Txn) repl.Outcome {
	out, _ := m.etcd.commit(t)
	m.tracef("etcd: %v; own epoch %d", out, m.records().Volumes[0].Own.Epoch)
	return out
}

// applyOneByOne is the mutant: each record is a transaction of its own.
func (m *machines) applyOneByOne(t repl.Txn, done func(repl.Outcome)) {
	own := repl.Txn{Compares: t.Compares[:1], Puts: t.Puts[:1]}
	out := m.apply(own)
	if rest := (repl.Txn{Compares: t.Compares[1:], Puts: t.Puts[1:]}); out == repl.OutcomeCommitted && len(rest.Puts) > 0 {
		m.after(m.between(5*time.Millisecond, 40*time.Millisecond), func() { m.applyOneByOne(rest, done) })
		return
	}
	done(out)
}

func (m *machines) describe() string {
	s := fmt.Sprintf("placement %+v; copies: epoch %d of %s, released=%v", m.records().Placement, m.rep.epoch, m.nameOf(m.rep.node), m.rep.released)
	for _, h := range m.hosts {
		s += fmt.Sprintf("; %s powered=%v", h.name(), h.powered)
		if q := h.qemu; q != nil {
			s += fmt.Sprintf(" qemu alive=%v running=%v frozen=%v", q.alive, q.running, q.frozen)
		}
		if k := h.keeper; k != nil {
			phase, why := k.core.Phase()
			s += fmt.Sprintf(" guard alive=%v %s %s %v mig=%s", k.alive, phase, why, k.core.Pauses(), k.core.Migration())
		}
	}
	return s
}
