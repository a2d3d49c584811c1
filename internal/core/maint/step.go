package maint

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/model"
)

// Step is one iteration. It does not change s.
func Step(s State, now clock.Instant) (State, []Action) {
	m := &step{p: s.Params, now: now, view: s.View, mem: cloned(s.Memory)}
	if m.p == (Params{}) {
		m.p = Defaults
	}
	out := State{Params: s.Params, View: s.View}
	if !s.View.Leader {
		return out, nil
	}
	m.view.Nodes = slices.Clone(s.View.Nodes)
	slices.SortFunc(m.view.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	m.notePhases()
	for _, n := range m.view.Nodes {
		m.order(n)
		m.drain(n)
	}
	m.plan()
	out.Memory = m.mem
	return out, m.actions
}

func cloned(m Memory) Memory {
	m.Told, m.Since, m.Phase, m.Missing = maps.Clone(m.Told), maps.Clone(m.Since), maps.Clone(m.Phase), maps.Clone(m.Missing)
	if m.Told == nil {
		m.Told, m.Since = map[ids.ID]clock.Instant{}, map[ids.ID]clock.Instant{}
		m.Phase, m.Missing = map[ids.ID]model.OrderPhase{}, map[ids.ID]bool{}
	}
	return m
}

// step is the scratch of one iteration.
type step struct {
	p       Params
	now     clock.Instant
	view    View
	mem     Memory
	actions []Action
	changed bool // one change an iteration: the next one sees what it made
}

func (m *step) event(level, subject, format string, args ...any) {
	m.actions = append(m.actions, Event{Level: level, Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// notePhases remembers since when each order is in its phase.
func (m *step) notePhases() {
	for _, n := range m.view.Nodes {
		var phase model.OrderPhase
		if n.Order != nil {
			phase = n.Order.Phase
		}
		if m.mem.Phase[n.ID] != phase || m.mem.Since[n.ID] == 0 {
			m.mem.Phase[n.ID], m.mem.Since[n.ID] = phase, m.now
			delete(m.mem.Missing, n.ID)
		}
	}
	if m.view.Plan == nil || m.view.Plan.Phase != Off {
		m.mem.Off = 0
	} else if m.mem.Off == 0 {
		m.mem.Off = m.now
	}
}

// change writes the order of a node; the plan stays as it is. false: another
// change was decided in this step, the next one sees to it.
func (m *step) change(n Node, to *model.NodeOrder, why string) bool {
	if m.changed {
		return false
	}
	m.changed = true
	c := Change{Node: n.ID, Name: n.Name, Was: n.Order, Order: to, Why: why}
	if to == nil && n.Order.NoFailback {
		c.Forget = Placed(n.Guests, m.view.VMs)
	}
	m.actions = append(m.actions, c)
	return true
}

// Placed returns those of a node's guests that are placed somewhere: what is not to
// go back. One that is not waits for the node, for its HA is off or nothing else can
// take it, and would else be started anywhere.
func Placed(guests []ids.ID, vms []VM) (out []ids.ID) {
	for _, id := range guests {
		if slices.ContainsFunc(vms, func(v VM) bool { return v.ID == id }) {
			out = append(out, id)
		}
	}
	return out
}

func inPhase(o *model.NodeOrder, p model.OrderPhase) *model.NodeOrder {
	c := *o
	c.Phase = p
	return &c
}

// order moves the order of a node on.
func (m *step) order(n Node) {
	o := n.Order
	if o == nil {
		return
	}
	booted := n.Up && n.Boot != "" && n.Boot != o.Boot
	switch {
	case booted && n.Stale: // without its order it would be taken for lost
		m.progress(o.Task, n.Name+" is back, waits for its beats", 0, 0)
	case booted && !n.Storage:
		m.progress(o.Task, n.Name+" is back, waits for its storage", 0, 0)
	case booted:
		m.back(n)
	case o.Phase == model.OrderDraining:
		m.draining(n)
	case n.Up:
		m.leaving(n)
	case o.Phase == model.OrderLeaving:
		if !m.change(n, inPhase(o, model.OrderAway), "it is off") {
			return
		}
		m.event("info", "node "+n.Name, "is off, as asked")
		if o.Verb == model.OrderShutdown {
			m.end(o.Task, "node "+n.Name+" is off; it takes part again when it has power", "", "")
		}
	default:
		m.away(n)
	}
}

// back: the node runs under another boot than the one that was to end.
func (m *step) back(n Node) {
	if !m.change(n, nil, "it is back") {
		return
	}
	m.event("info", "node "+n.Name, "is back after the %s that was asked for", n.Order.Verb)
	m.end(n.Order.Task, fmt.Sprintf("node %s is back", n.Name), "", "")
}

// draining waits until the node may go down.
func (m *step) draining(n Node) {
	done, total := m.guestsOf(n)
	if why := m.blocks(n); why != "" {
		m.progress(n.Order.Task, "waits: "+why, done, total)
		return
	}
	if !m.change(n, inPhase(n.Order, model.OrderLeaving), "nothing is left there") {
		return
	}
	m.event("info", "node "+n.Name, "goes down, as asked (%s)", n.Order.Verb)
	m.progress(n.Order.Task, n.Name+" goes down", done, total)
}

// guestsOf counts the VMs that left n, and all that are to leave.
func (m *step) guestsOf(n Node) (done, total int64) {
	left := int64(len(m.placed(n.ID)))
	for _, id := range n.Guests {
		if !slices.ContainsFunc(m.view.VMs, func(v VM) bool { return v.ID == id && (v.Node == n.ID || v.Target == n.ID) }) {
			done++
		}
	}
	return done, done + left
}

// placed lists the VMs that are placed on a node or on their way to it.
func (m *step) placed(node ids.ID) []VM {
	var out []VM
	for _, v := range m.view.VMs {
		if v.Node == node || v.Target == node {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b VM) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// blocks returns why n may not go down now, or "".
func (m *step) blocks(n Node) string {
	if here := m.placed(n.ID); len(here) > 0 {
		return stay(n, here)
	}
	for _, o := range m.view.Nodes {
		if o.ID != n.ID && o.Order != nil && o.Order.Phase != model.OrderDraining {
			return fmt.Sprintf("%s is down or going down", o.Name)
		}
	}
	if n.Needed != "" {
		return n.Needed
	}
	why, _ := Unsafe(m.view.Volumes, m.view.Nodes, n.ID)
	return why
}

// stay names the VMs that are still on n.
func stay(n Node, here []VM) string {
	var names []string
	for _, v := range here {
		text := v.Name
		if v.Stay != "" {
			text += " (" + v.Stay + ")"
		}
		names = append(names, text)
	}
	return fmt.Sprintf("on %s: %s", n.Name, strings.Join(names, ", "))
}

// leaving tells the node to go down until it does.
func (m *step) leaving(n Node) {
	o := n.Order
	if m.now.Sub(m.mem.Since[n.ID]) > m.p.Stuck && o.Phase == model.OrderLeaving {
		text := fmt.Sprintf("node %s did not go down within %s", n.Name, m.p.Stuck)
		if !m.change(n, nil, text) {
			return
		}
		m.event("error", "node "+n.Name, "did not go down within %s: the order is dropped", m.p.Stuck)
		m.end(o.Task, "", text, "look at its log and at its supervisor, then ask again")
		return
	}
	m.tell(n, o.Verb, o.Boot)
}

func (m *step) tell(n Node, verb model.OrderVerb, boot string) {
	if at := m.mem.Told[n.ID]; at != 0 && m.now.Sub(at) < m.p.Tell {
		return
	}
	m.mem.Told[n.ID] = m.now
	m.actions = append(m.actions, Power{Node: n.ID, Name: n.Name, Verb: verb, Boot: boot})
}

// away waits for a node that is down.
func (m *step) away(n Node) {
	if n.Order.Verb != model.OrderReboot {
		return
	}
	m.progress(n.Order.Task, n.Name+" is off, comes back", 0, 0)
	if m.now.Sub(m.mem.Since[n.ID]) > m.p.Missing && !m.mem.Missing[n.ID] {
		m.mem.Missing[n.ID] = true
		m.event("error", "node "+n.Name, "was to reboot and has not come back for %s", m.p.Missing)
	}
}

// drain shows the progress of a drain, and ends its task when the node could go
// down.
func (m *step) drain(n Node) {
	if !n.Drain || n.Task.IsZero() {
		return
	}
	done, total := m.guestsOf(n)
	here := m.placed(n.ID)
	why, never := Unsafe(m.view.Volumes, m.view.Nodes, n.ID)
	down := "and its copies are in sync elsewhere"
	if never {
		down = "but it may not go down: " + why
	}
	switch {
	case len(here) > 0:
		m.progress(n.Task, "moving machines away; "+stay(n, here), done, total)
	case why != "" && !never:
		m.progress(n.Task, "no machine is left there; waits: "+why, done, total)
	default:
		m.event("info", "node "+n.Name, "is drained")
		m.actions = append(m.actions, End{Task: n.Task, Drained: n.ID,
			Result: fmt.Sprintf("node %s is drained: no machine is left there, %s; `roseau node undrain %s` ends it", n.Name, down, n.Name)})
	}
}

func (m *step) progress(task ids.ID, phase string, done, total int64) {
	if !task.IsZero() {
		m.actions = append(m.actions, Progress{Task: task, Phase: phase, Done: done, Total: total})
	}
}

func (m *step) end(task ids.ID, result, failed, hint string) {
	if !task.IsZero() {
		m.actions = append(m.actions, End{Task: task, Result: result, Failed: failed, Hint: hint})
	}
}

// Unsafe returns why the copies do not allow that node goes down now, or "": a
// segment would be left with fewer than min(2, copies-1) in-sync copies on other
// nodes whose storage answers. never: no resync will change that.
func Unsafe(volumes []Volume, nodes []Node, node ids.ID) (why string, never bool) {
	up := map[ids.ID]bool{}
	name := "it"
	for _, n := range nodes {
		up[n.ID] = n.Up && n.Storage && n.ID != node && (n.Order == nil || n.Order.Phase == model.OrderDraining)
		if n.ID == node {
			name = n.Name
		}
	}
	vols := slices.Clone(volumes)
	slices.SortFunc(vols, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	for _, v := range vols {
		need := max(1, min(2, v.Copies-1))
		for _, g := range v.Groups {
			if !slices.Contains(g.All, node) {
				continue // nothing of it is there
			}
			have, others := 0, 0
			for _, id := range g.In {
				if up[id] {
					have++
				}
			}
			for _, id := range g.All {
				if id != node {
					others++
				}
			}
			if others < need {
				return fmt.Sprintf("volume %s has %d of its copies outside %s, and needs %d", v.Name, others, name, need), true
			}
			if have < need && why == "" {
				why = fmt.Sprintf("volume %s has %d in-sync copies without %s, and needs %d", v.Name, have, name, need)
			}
		}
	}
	return why, false
}

// LeavesOne reports whether some volume with a copy on node is left with one
// in-sync copy when it goes down: a pool of two copies.
func LeavesOne(volumes []Volume, node ids.ID) bool {
	return slices.ContainsFunc(volumes, func(v Volume) bool {
		return v.Copies == 2 && slices.ContainsFunc(v.Groups, func(g Group) bool { return slices.Contains(g.All, node) })
	})
}

// newOrder is an order for a node of a plan, which has the task.
func newOrder(verb model.OrderVerb, n Node, asked time.Time) *model.NodeOrder {
	return &model.NodeOrder{Verb: verb, Phase: model.OrderDraining, Boot: n.Boot, Asked: asked}
}
