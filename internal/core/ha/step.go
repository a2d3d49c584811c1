package ha

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
)

// Step is one iteration of the manager. It does not change s.
func Step(s State, now clock.Instant) (State, []Action) {
	m := newStep(s, now)
	if !s.View.Leader {
		return m.out, nil
	}
	m.hear()
	m.nodes()
	for _, i := range startOrder(s.View.VMs) {
		m.vm(s.View.VMs[i])
	}
	m.guests()
	m.forget()
	return m.out, m.actions
}

// step is the scratch of one iteration.
type step struct {
	p        Params
	now      clock.Instant
	view     View
	out      State
	actions  []Action
	node     map[ids.ID]Node
	promised map[ids.ID]size.Bytes // memory of the VMs placed on a node
	placed   map[ids.ID]int
	starting map[ids.ID]int
	moving   map[ids.ID]int
	asked    map[ids.ID]clock.Instant // VMs whose entry in Guests was asked to change in this step
	home     map[ids.ID]Node          // of a VM: the node that has it in its Guests
	ranks    map[ids.ID]rank          // made when first needed
	cold     string                   // why nothing starts yet: a cold start; "": it may
	startAll int
	deaf     bool
	named    map[string]*VM
	spots    map[string]place.Placed   // where every VM is, this step's decisions included
	rules    map[string][]place.VMRule // by VM, made when first needed
}

func newStep(s State, now clock.Instant) *step {
	m := &step{p: s.Params, now: now, view: s.View, out: s,
		node: map[ids.ID]Node{}, promised: map[ids.ID]size.Bytes{}, placed: map[ids.ID]int{}, starting: map[ids.ID]int{},
		moving: map[ids.ID]int{}, home: map[ids.ID]Node{},
		named: make(map[string]*VM, len(s.View.VMs)), spots: make(map[string]place.Placed, len(s.View.VMs))}
	if m.p == (Params{}) {
		m.p = Defaults
	}
	m.out.VMs, m.out.Nodes = maps.Clone(s.VMs), maps.Clone(s.Nodes)
	if m.out.VMs == nil {
		m.out.VMs = map[ids.ID]VMMemory{}
	}
	if m.out.Nodes == nil {
		m.out.Nodes = map[ids.ID]NodeMemory{}
	}
	m.view.Nodes = slices.Clone(s.View.Nodes)
	sort.Slice(m.view.Nodes, func(i, j int) bool { return m.view.Nodes[i].Name < m.view.Nodes[j].Name })
	for _, n := range m.view.Nodes {
		m.node[n.ID] = n
		for _, vm := range n.Guests {
			m.home[vm] = n
		}
	}
	m.cold = m.coldStart()
	for i := range s.View.VMs {
		vm := &s.View.VMs[i]
		m.named[vm.Name] = vm
		m.count(vm, vm.Placement, 1, m.takesSlot(vm.ID, vm.Placement.State))
	}
	return m
}

// count adds or takes away what a placement uses; slot: it is a start under way.
func (m *step) count(vm *VM, p repl.Placement, sign int, slot bool) {
	if p.State == PlaceStopped {
		m.spots[vm.Name] = place.Placed{}
		return
	}
	m.spots[vm.Name] = place.Placed{Node: p.Node, Target: p.Target}
	for _, n := range []ids.ID{p.Node, p.Target} {
		if n.IsZero() {
			continue
		}
		m.promised[n] += vm.Memory * size.Bytes(sign)
		m.placed[n] += sign
		if slot {
			m.starting[n] += sign
			m.startAll += sign
		}
		if p.State == PlaceMigrating {
			m.moving[n] += sign
		}
	}
}

func (m *step) event(level, subject, format string, args ...any) {
	m.actions = append(m.actions, Event{Level: level, Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// nodes notices losses and returns, and keeps the quarantine of flapping nodes.
func (m *step) nodes() {
	for _, n := range m.view.Nodes {
		mem, known := m.out.Nodes[n.ID]
		if !known { // what the manager before knew
			mem.Seen, mem.Losses, mem.Until = n.LastBeat != 0, n.Losses, n.Until
		}
		mem.Losses = slices.DeleteFunc(slices.Clone(mem.Losses), func(t clock.Instant) bool { return m.now.Sub(t) > m.p.FlapWindow })
		switch why := m.silent(n); {
		case why != "" && !mem.Lost:
			mem.Lost, mem.Clean = true, n.Away
			told := slices.ContainsFunc(mem.Losses, func(t clock.Instant) bool { return t >= n.LastBeat }) // by the manager before
			if mem.Seen && !n.Away && !told {
				mem.Losses = append(mem.Losses, m.now)
				m.event("warn", "node "+n.Name, "lost: %s", why)
				m.actions = append(m.actions, SetLosses{Node: n.ID, NodeName: n.Name, Losses: slices.Clone(mem.Losses), Until: mem.Until})
			}
		case why == "" && mem.Lost:
			mem.Lost = false
			if (mem.Seen || len(mem.Losses) > 0) && !mem.Clean {
				m.returned(n, &mem)
			}
			mem.Seen = n.LastBeat != 0
		case why == "":
			mem.Seen = n.LastBeat != 0 // one that is just joining cannot be lost
		}
		m.out.Nodes[n.ID] = mem
	}
}

func (m *step) returned(n Node, mem *NodeMemory) {
	if len(mem.Losses) < 2 {
		m.event("info", "node "+n.Name, "is back")
		return
	}
	d := m.p.Quarantine << min(len(mem.Losses)-2, 6)
	mem.Until = m.now.Add(d)
	m.actions = append(m.actions, SetLosses{Node: n.ID, NodeName: n.Name, Losses: slices.Clone(mem.Losses), Until: mem.Until})
	m.event("warn", "node "+n.Name, "is back, lost %d times within %s: avoided for %s", len(mem.Losses), short(m.p.FlapWindow), short(d))
}

// silent returns why the beats say that n is gone, or "".
func (m *step) silent(n Node) string {
	last := max(n.LastBeat, m.view.Listening)
	if m.now.Sub(last) > m.p.BeatLoss && !(m.deaf && n.Session) {
		return "no beat for " + short(m.p.BeatLoss)
	}
	return ""
}

// usable returns why no VM may be started on n, or "".
func (m *step) usable(n Node) string {
	if why := m.silent(n); why != "" {
		return why
	}
	switch {
	case !n.Session:
		return "its session in etcd is lost"
	case !n.Known:
		return "has not reported yet"
	case n.Drain != "":
		return n.Drain
	}
	return ""
}

// candidates are the nodes as place wants them, for vm.
func (m *step) candidates(vm VM) []place.Node {
	blame := m.out.VMs[vm.ID].Blame
	var out []place.Node
	for _, n := range m.view.Nodes {
		c := place.Node{ID: n.ID, Name: n.Name, NotReady: m.usable(n), CPUs: n.CPUs, KVM: n.KVM, Storage: n.Storage, Networks: n.Networks, VMs: m.placed[n.ID],
			Labels: n.Labels, CPUFlags: n.CPUFlags}
		// What the guests were promised counts, and what they took already: a
		// machine that has just been placed uses nothing yet.
		c.MemoryFree = max(0, min(n.MemoryFree, n.Memory-m.promised[n.ID]))
		if m.silent(n) != "" {
			c.Storage = false
		}
		if m.starting[n.ID] >= m.p.StartsANode {
			c.Busy = fmt.Sprintf("%d machines are starting there", m.starting[n.ID])
		}
		if until := m.out.Nodes[n.ID].Until; m.now.Before(until) {
			c.Avoid = "avoided, it was lost often"
		}
		if why, ok := blame[n.ID]; ok {
			c.Avoid = why
		}
		out = append(out, c)
	}
	return out
}

// choose asks place; the error's text is one line.
func (m *step) choose(vm VM, exclude map[ids.ID]string) (place.Decision, error) {
	return place.ChooseNode(m.request(vm, exclude, false), m.candidates(vm))
}

// setPlacement records the decision and counts it at once, so that the next VM
// of this step sees it.
func (m *step) setPlacement(vm VM, p repl.Placement, why string) {
	m.count(&vm, vm.Placement, -1, m.takesSlot(vm.ID, vm.Placement.State))
	m.count(&vm, p, 1, p.State == PlaceStarting)
	m.actions = append(m.actions, SetPlacement{VM: vm.ID, Name: vm.Name, NodeName: m.node[p.Node].Name, Expect: vm.PlacementRev, Placement: p, Why: why})
}

// forget drops the memory of VMs and nodes that are gone.
func (m *step) forget() {
	live := map[ids.ID]bool{}
	for _, vm := range m.view.VMs {
		live[vm.ID] = true
	}
	maps.DeleteFunc(m.out.VMs, func(id ids.ID, _ VMMemory) bool { return !live[id] })
	maps.DeleteFunc(m.out.Nodes, func(id ids.ID, _ NodeMemory) bool { _, ok := m.node[id]; return !ok })
}

// world is what a failed VM compares to find that its cause may have gone.
func (m *step) world() string {
	var b strings.Builder
	for _, n := range m.view.Nodes {
		if m.usable(n) == "" {
			fmt.Fprintf(&b, "%s storage=%v;", n.Name, n.Storage)
		}
	}
	return b.String()
}

func short(d time.Duration) string {
	switch {
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d >= 10*time.Second:
		return fmt.Sprintf("%d s", d.Round(time.Second)/time.Second)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// Choose decides where a VM of the view would go, as the manager would, without
// doing anything: for live migration and for --dry-run.
func Choose(v View, vm ids.ID, exclude map[ids.ID]string, now clock.Instant) (place.Decision, error) {
	m := newStep(State{View: v}, now)
	for _, x := range v.VMs {
		if x.ID == vm {
			m.deaf = m.deafNow()
			return place.ChooseNode(m.request(x, exclude, true), m.candidates(x))
		}
	}
	return place.Decision{}, errs.New(errs.NotFound, "place vm %s: not known yet", vm)
}
