package ha

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// coldStart returns why nothing is started yet: every living node has just
// booted, and some are not there or not ready. A node that reboots beside older
// ones is no cold start: recoveries must not wait. Nor is one awaited that was
// heard since this process listens, and fell silent: that is a loss.
func (m *step) coldStart() string {
	if m.now.Sub(m.view.Listening) >= m.p.ColdWait {
		return ""
	}
	var absent []string
	for _, n := range m.view.Nodes {
		switch {
		case n.Session && !n.Fresh:
			return ""
		case n.Away && m.silent(n) != "":
			// it is off because it was asked to be
		case n.LastBeat > m.view.Listening && m.silent(n) != "":
			// it was back, and is lost again
		case !n.Session || !n.Known || m.silent(n) != "":
			absent = append(absent, n.Name)
		case !n.Storage:
			absent = append(absent, "the storage of "+n.Name)
		}
	}
	if len(absent) == 0 {
		return ""
	}
	return "the cluster starts: waits for " + strings.Join(absent, " and ")
}

// stopWhy returns why a placed VM is to be powered off, or "": it is not wanted,
// the cluster shuts down and its turn has come, or its node goes down without a
// drain.
func (m *step) stopWhy(vm VM) string {
	n := m.node[vm.Placement.Node]
	switch {
	case !vm.Want:
		return "stop asked for"
	case m.view.Hold && m.mayStop(vm):
		return "the cluster shuts down"
	case !m.view.Hold && n.PowerOff && m.silent(n) == "":
		if m.goHome(vm, n, true) { // else it would not be known where it belongs
			return n.Name + " " + n.Drain + " without a drain"
		}
	}
	return ""
}

// mayStop: in a shutdown a VM stops when every VM that starts after it is off.
func (m *step) mayStop(vm VM) bool {
	if m.ranks == nil {
		m.ranks = ranksOf(m.view.VMs)
	}
	return !slices.ContainsFunc(m.view.VMs, func(o VM) bool {
		lost := m.gone(m.node[o.Placement.Node]) != ""
		return o.ID != vm.ID && !o.Placement.Node.IsZero() && o.Placement.State != PlaceStopped && !lost &&
			(slices.Contains(o.After, vm.Name) || m.ranks[vm.ID].before(m.ranks[o.ID]))
	})
}

// ranksOf returns the rank of each VM in the order of starting; one that is waited
// for has that of those that wait.
func ranksOf(vms []VM) map[ids.ID]rank {
	out := make(map[ids.ID]rank, len(vms))
	ranks := make([]rank, len(vms))
	byName := make(map[string]int, len(vms))
	for i := range vms {
		byName[vms[i].Name] = i
		ranks[i] = rank{bestEffort: vms[i].HA == model.HABestEffort, priority: vms[i].Priority}
	}
	inherit(vms, byName, ranks)
	for i := range vms {
		out[vms[i].ID] = ranks[i]
	}
	return out
}

// startAtHome starts a VM on the node that it left for maintenance, or elsewhere
// if that cannot be; one with HA off waits for it.
func (m *step) startAtHome(vm VM, mem *VMMemory, from repl.Placement, home Node, exclude map[ids.ID]string) (model.VMState, string) {
	not := m.usable(home)
	switch {
	case not == "" && m.starting[home.ID] >= m.p.StartsANode:
		return model.VMStarting, "waits for its turn on " + home.Name
	case not == "":
		d, err := m.choose(vm, m.allBut(home.ID))
		if err == nil {
			return m.start(vm, mem, from, "start where it ran", m.allBut(d.Node))
		}
		not = err.Error()
	}
	if vm.HA == model.HAOff {
		return model.VMStarting, fmt.Sprintf("waits for %s, its HA is off: %s", home.Name, not)
	}
	return m.start(vm, mem, from, "start", exclude)
}

// startAgain: a VM with HA off is started again on its own node alone, once that
// is back without its guard.
func (m *step) startAgain(vm VM, mem *VMMemory, why string) (model.VMState, string) {
	n := m.node[vm.Placement.Node]
	r, ok := report(vm, vm.Placement.Node, 0)
	if m.usable(n) != "" || !ok || r.Phase != "absent" {
		m.say(vm, mem, "warn", why+"; not restarted: its HA is off")
		return model.VMFailed, why + "; not restarted: its HA is off"
	}
	run := vm.Placement.Run
	if run.IsZero() {
		run = ids.ID{15: 1}
	}
	return m.start(vm, mem, repl.Placement{Run: run}, why+"; on its own node, its HA is off", m.allBut(n.ID))
}

// bootedAnew: the VM's guard is absent because its node has just booted and is
// well: then it starts there, if there is room.
func (m *step) bootedAnew(vm VM, r Report, reported bool) bool {
	n := m.node[vm.Placement.Node]
	if !n.Fresh || !n.Storage || !reported || r.Phase != "absent" || m.usable(n) != "" {
		return false
	}
	_, err := m.choose(vm, m.allBut(n.ID))
	return err == nil
}

// allBut excludes every node but one.
func (m *step) allBut(node ids.ID) map[ids.ID]string {
	out := map[ids.ID]string{}
	for _, n := range m.view.Nodes {
		if n.ID != node {
			out[n.ID] = "not its node"
		}
	}
	return out
}

// maintain is for a VM that runs well: it leaves a node that is drained, and
// goes back to the one that it left for such a reason.
func (m *step) maintain(vm VM, mem *VMMemory, r Report) (model.VMState, string) {
	state, reason := m.runningState(r)
	n := m.node[vm.Placement.Node]
	home, away := m.home[vm.ID]
	away = away && home.ID != n.ID
	m.noteMove(vm, mem)
	switch {
	case n.Drain == "" && (!away || home.Drain != ""), m.view.Hold, n.PowerOff:
		mem.Stay, mem.HomeTry = "", 0
		return state, reason
	case r.State != model.VMRunning && r.State != model.VMPaused:
		return state, reason // stalled: it is not the time to move
	case n.Drain != "":
		m.goHome(vm, n, true)
		return m.move(vm, mem, map[ids.ID]string{n.ID: "it leaves"}, n.Name+" "+n.Drain, state, reason)
	case m.usable(home) != "":
		return state, reason // it is not back yet
	}
	if mem.HomeTry == 0 {
		mem.HomeTry = m.now
	}
	if m.now.Sub(mem.HomeTry) > m.p.FailbackFor {
		m.event("warn", "vm "+vm.Name, "stays on %s: it could not go back to %s for %s: %s", n.Name, home.Name, short(m.p.FailbackFor), orElse(mem.Stay, "its turn did not come"))
		m.goHome(vm, home, false)
		return state, reason
	}
	return m.move(vm, mem, m.allBut(home.ID), "goes back to "+home.Name, state, reason)
}

// noteMove counts a migration that has ended with the VM where it was.
func (m *step) noteMove(vm VM, mem *VMMemory) {
	if mem.Moving == 0 || vm.Placement.Attempt < mem.Moving {
		return
	}
	if vm.Placement.Attempt > mem.Moving { // a success keeps the attempt
		mem.NoMove = m.now.Add(min(m.p.MoveAgain<<min(mem.Moves, 4), 2*time.Minute))
		mem.Moves++
	} else {
		mem.Moves, mem.NoMove = 0, 0
	}
	mem.Moving = 0
}

// move begins a live migration if it can; else the VM stays as it is and says
// why.
func (m *step) move(vm VM, mem *VMMemory, exclude map[ids.ID]string, why string, state model.VMState, reason string) (model.VMState, string) {
	p := vm.Placement
	if m.now.Before(mem.NoMove) || m.moving[p.Node] >= m.p.MovesANode {
		return state, orElse(reason, mem.Stay)
	}
	d, err := place.ChooseNode(m.request(vm, exclude, true), m.candidates(vm))
	if err == nil && m.moving[d.Node] >= m.p.MovesANode {
		return state, orElse(reason, mem.Stay)
	}
	if err != nil {
		text := fmt.Sprintf("%s, but it cannot move: %s", why, place.Explain(d.Refusals))
		if mem.Stay == "" { // once; the reason's figures change
			m.event("warn", "vm "+vm.Name, "%s", text)
		}
		mem.Stay = text
		return state, text
	}
	mem.Stay, mem.Moving = "", p.Attempt+1
	m.setPlacement(vm, repl.Placement{Node: p.Node, Attempt: p.Attempt + 1, State: PlaceMigrating, Target: d.Node, Run: p.Run}, why+"; "+d.Why)
	return model.VMMigrating, "to " + d.Name
}

// homeAgain is how long an entry in a node's Guests that was asked for is waited
// for before it is asked for again.
const homeAgain = 2 * time.Second

// goHome asks for the VM's entry in the Guests of n to come or go; done: it has.
func (m *step) goHome(vm VM, n Node, add bool) (done bool) {
	has, known := m.home[vm.ID]
	if add && known || !add && (!known || has.ID != n.ID) {
		return true // one that left an earlier node goes back to that one
	}
	mem := m.out.VMs[vm.ID]
	if mem.HomeAt != 0 && m.now.Sub(mem.HomeAt) < homeAgain {
		return false
	}
	m.homeAt(vm.ID)
	m.actions = append(m.actions, SetHome{Node: n.ID, NodeName: n.Name, VM: vm.ID, Name: vm.Name, Add: add})
	return false
}

// homeAt notes when an entry was asked for; m.vm writes its own copy of the
// memory back, so it is kept beside it.
func (m *step) homeAt(vm ids.ID) {
	if m.asked == nil {
		m.asked = map[ids.ID]clock.Instant{}
	}
	m.asked[vm] = m.now
}

// guests takes VMs out of the Guests of nodes that are not drained any more: those
// that are back, are not wanted, or are gone.
func (m *step) guests() {
	byID := map[ids.ID]VM{}
	for _, vm := range m.view.VMs {
		byID[vm.ID] = vm
	}
	for _, n := range m.view.Nodes {
		if n.Drain != "" || m.view.Hold {
			continue
		}
		for _, id := range n.Guests {
			vm, ok := byID[id]
			if !ok {
				vm = VM{ID: id, Name: "vm " + id.Short()}
			}
			back := vm.Placement.Node == n.ID && vm.Placement.State == PlaceRunning
			if !ok || !vm.Want || back {
				m.goHome(vm, n, false)
			}
		}
	}
	for id, at := range m.asked {
		mem := m.out.VMs[id]
		mem.HomeAt = at
		m.out.VMs[id] = mem
	}
}

// Move is what a drain would do with a VM.
type Move struct {
	VM   string
	To   string // name of the node; "": it cannot move
	Why  string // of the choice, or of the refusal
	Hint string // of a refusal
}

// Drain says, without doing anything, where the VMs of a node would go if it
// were drained now, one after another in the order of their names.
func Drain(v View, node ids.ID, now clock.Instant) []Move {
	v.Nodes = slices.Clone(v.Nodes)
	for i := range v.Nodes {
		if v.Nodes[i].ID == node {
			v.Nodes[i].Drain = "is drained"
		}
	}
	m := newStep(State{View: v}, now)
	vms := slices.Clone(v.VMs)
	sort.Slice(vms, func(i, j int) bool { return vms[i].Name < vms[j].Name })
	var out []Move
	for _, vm := range vms {
		p := vm.Placement
		if p.State == PlaceStopped || p.Node != node || p.State == PlaceMigrating {
			continue
		}
		d, err := place.ChooseNode(m.request(vm, map[ids.ID]string{node: "it leaves"}, true), m.candidates(vm))
		if err != nil {
			out = append(out, Move{VM: vm.Name, Why: place.Explain(d.Refusals), Hint: errs.Hint(err)})
			continue
		}
		out = append(out, Move{VM: vm.Name, To: d.Name, Why: d.Why})
		m.setPlacement(vm, repl.Placement{Node: d.Node, Attempt: p.Attempt + 1, State: PlaceRunning, Run: p.Run}, "")
	}
	return out
}
