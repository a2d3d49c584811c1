package ha

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/model"
)

// rank is what VMs are ordered by.
type rank struct {
	bestEffort bool
	priority   int
}

func (r rank) before(o rank) bool {
	if r.bestEffort != o.bestEffort {
		return o.bestEffort
	}
	return r.priority > o.priority
}

// startOrder lists indices of vms: higher priority first, best-effort last, then by
// name; but each VM after those that it waits for, which take its rank.
func startOrder(vms []VM) []int {
	order := make([]int, len(vms))
	ranks := make([]rank, len(vms))
	byName := make(map[string]int, len(vms))
	chained := false
	for i := range vms {
		order[i], byName[vms[i].Name] = i, i
		ranks[i] = rank{bestEffort: vms[i].HA == model.HABestEffort, priority: vms[i].Priority}
		chained = chained || len(vms[i].After) > 0
	}
	if chained {
		inherit(vms, byName, ranks)
	}
	sort.Slice(order, func(a, b int) bool {
		x, y := order[a], order[b]
		if ranks[x] != ranks[y] {
			return ranks[x].before(ranks[y])
		}
		return vms[x].Name < vms[y].Name
	})
	if !chained {
		return order
	}
	out := make([]int, 0, len(vms))
	seen := make([]bool, len(vms))
	var visit func(i int)
	visit = func(i int) {
		if seen[i] {
			return
		}
		seen[i] = true // also ends a circle, which entry refuses
		for _, name := range vms[i].After {
			if j, ok := byName[name]; ok {
				visit(j)
			}
		}
		out = append(out, i)
	}
	for _, i := range order {
		visit(i)
	}
	return out
}

// inherit gives every VM the best rank of those that wait for it. Ranks only get
// better, so it ends, in a circle too.
func inherit(vms []VM, byName map[string]int, ranks []rank) {
	for changed := true; changed; {
		changed = false
		for i := range vms {
			for _, name := range vms[i].After {
				if j, ok := byName[name]; ok && ranks[i].before(ranks[j]) {
					ranks[j], changed = ranks[i], true
				}
			}
		}
	}
}

// CheckAfter refuses VMs that wait for one another in a circle, naming it. after
// lists, for each VM that waits, what it waits for.
func CheckAfter(after map[string][]string) error {
	const visiting, done = 1, 2
	mark := map[string]int{}
	var path []string
	var visit func(vm string) []string
	visit = func(vm string) []string {
		switch mark[vm] {
		case done:
			return nil
		case visiting:
			return append(slices.Clone(path[slices.Index(path, vm):]), vm)
		}
		mark[vm], path = visiting, append(path, vm)
		for _, next := range after[vm] {
			if c := visit(next); c != nil {
				return c
			}
		}
		mark[vm], path = done, path[:len(path)-1]
		return nil
	}
	names := make([]string, 0, len(after))
	for vm := range after {
		names = append(names, vm)
	}
	slices.Sort(names)
	for _, vm := range names {
		if c := visit(vm); c != nil {
			return errs.New(errs.Conflict, "check start order: %s would wait for itself: %s", c[0], strings.Join(c, " after ")).
				WithHint("take one of these out: `roseau vm set %s --after ''`", c[0])
		}
	}
	return nil
}

// held returns what the start of vm waits for, or "".
func (m *step) held(vm VM, mem *VMMemory) string {
	why := m.waitsFor(vm)
	if why == "" {
		return ""
	}
	if mem.HeldSince == 0 {
		mem.HeldSince = m.now
	}
	if m.now.Sub(mem.HeldSince) <= m.p.HoldLimit+vm.StartDelay {
		return why
	}
	m.say(vm, mem, "warn", fmt.Sprintf("is started all the same after %s: it %s", short(m.p.HoldLimit+vm.StartDelay), why))
	return ""
}

// waitsFor says which VM of After does not run long enough. One that nobody wants
// to run and one that failed hold nobody.
func (m *step) waitsFor(vm VM) string {
	for _, name := range vm.After {
		d, ok := m.named[name]
		if !ok || !d.Want {
			continue
		}
		state := m.out.VMs[d.ID].State
		switch state {
		case model.VMFailed:
			continue
		case model.VMRunning, model.VMPaused, model.VMMigrating:
			r, ok := report(*d, d.Placement.Node, 0)
			if vm.StartDelay > 0 && ok && r.Phase == "running" && m.now.Sub(r.Since) < vm.StartDelay {
				return fmt.Sprintf("waits until %s has run for %s", name, short(vm.StartDelay))
			}
			continue
		case "":
			state = model.VMStopped
		}
		return fmt.Sprintf("waits for %s, which is %s", name, state)
	}
	return ""
}

// deafNow reports whether it is this node that hears nobody: the beats of more
// than half of the others (four or more) are gone while their sessions live.
func (m *step) deafNow() bool {
	others, unheard := 0, 0
	for _, n := range m.view.Nodes {
		if !n.Session || n.LastBeat == m.now {
			continue // gone anyway, or this process itself
		}
		others++
		if m.now.Sub(max(n.LastBeat, m.view.Listening)) > m.p.BeatLoss {
			unheard++
		}
	}
	return others >= 4 && unheard*2 > others
}

// hear sets m.deaf and tells of its changes.
func (m *step) hear() {
	m.deaf = m.deafNow()
	if m.deaf == m.out.Deaf {
		return
	}
	m.out.Deaf = m.deaf
	if m.deaf {
		m.event("warn", "cluster", "the HA manager hears few beats while the nodes' sessions live: only nodes that lose their session count as lost")
		return
	}
	m.event("info", "cluster", "the HA manager hears the nodes' beats again")
}

// takesSlot reports whether a placement counts as a start under way: one that waits
// for a copy keeps nobody from starting.
func (m *step) takesSlot(vm ids.ID, state string) bool {
	return state == PlaceStarting && m.out.VMs[vm].State != model.VMWaitingForCopy
}

// request describes vm to place. moving: it runs and must find what it has.
func (m *step) request(vm VM, exclude map[ids.ID]string, moving bool) place.Request {
	req := place.Request{VM: vm.Name, CPUs: vm.CPUs, Memory: vm.Memory, NeedKVM: vm.NeedKVM, Networks: vm.Networks, Volumes: vm.Volumes, Exclude: exclude}
	if moving {
		req.CPUModel, req.Accel = vm.CPUModel, vm.Accel
	}
	if len(m.view.Rules) == 0 {
		return req
	}
	if m.rules == nil {
		m.rules = map[string][]place.VMRule{}
		for _, r := range m.view.Rules {
			for _, name := range r.VMs {
				m.rules[name] = append(m.rules[name], r)
			}
		}
	}
	req.Rules, req.Where = m.rules[vm.Name], m.spots
	req.Followers = m.followers(vm, req.Rules)
	return req
}

// followers is the memory of the VMs that hard rules keep with vm and that are to
// run, but are on no usable node.
func (m *step) followers(vm VM, rules []place.VMRule) (sum size.Bytes) {
	for _, r := range rules {
		if r.Soft || r.Kind != model.RuleTogether {
			continue
		}
		for _, name := range r.VMs {
			d, ok := m.named[name]
			if !ok || name == vm.Name || !d.Want {
				continue
			}
			if n, ok := m.node[m.spots[name].Node]; !ok || m.usable(n) != "" {
				sum += d.Memory
			}
		}
	}
	return sum
}
