package ha

import (
	"sort"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/balance"
	"roseau/internal/core/place"
)

// Balance shows the view to the balancer. Machines that do not simply run, and
// those whose node is in doubt, stay where they are.
func Balance(v View, now clock.Instant) balance.Input {
	m := newStep(State{View: v}, now)
	m.deaf = m.deafNow()
	in := balance.Input{Rules: v.Rules, Where: m.spots}
	moving := map[ids.ID]bool{}
	for _, vm := range v.VMs {
		if vm.Placement.State == PlaceMigrating {
			moving[vm.Placement.Node], moving[vm.Placement.Target] = true, true
		}
	}
	for _, c := range m.candidates(VM{}) {
		n := m.node[c.ID]
		in.Nodes = append(in.Nodes, balance.Node{Node: c, Memory: n.Memory, Promised: m.promised[c.ID], Pressure: n.Pressure, Moving: moving[c.ID]})
	}
	for _, vm := range v.VMs {
		if vm.Placement.State != PlaceRunning && vm.Placement.State != PlaceMigrating {
			continue
		}
		x := balance.Machine{Request: m.request(vm, nil, true), ID: vm.ID, Node: vm.Placement.Node}
		r, ok := report(vm, vm.Placement.Node, 0)
		switch {
		case vm.Placement.State == PlaceMigrating:
			x.Fixed = "it is moving"
		case !vm.Want:
			x.Fixed = "it is being stopped"
		case !ok || r.Phase != "running" || r.Stalled > 0:
			x.Fixed = "its guard does not say that it runs"
		}
		in.Machines = append(in.Machines, x)
	}
	sort.Slice(in.Machines, func(i, j int) bool { return in.Machines[i].Request.VM < in.Machines[j].Request.VM })
	return in
}

// Violations lists the given rules that do not hold where the machines of the view
// are now.
func Violations(v View, rules []place.VMRule, now clock.Instant) []place.Violation {
	m := newStep(State{View: v}, now)
	m.deaf = m.deafNow()
	return place.Violations(rules, m.candidates(VM{}), m.spots)
}
