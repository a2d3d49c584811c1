package maint

import (
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/ids"
	"roseau/internal/model"
)

// plan moves the plan on.
func (m *step) plan() {
	switch p := m.view.Plan; {
	case p == nil:
	case p.Kind == Restart:
		m.restart(*p)
	case p.Kind == Shutdown:
		m.shutdown(*p)
	}
}

func (m *step) node(id ids.ID) (Node, bool) {
	for _, n := range m.view.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}

// write changes the plan, and with it the order of n unless that is the zero
// Node.
func (m *step) write(p *Plan, n Node, order *model.NodeOrder, why string) bool {
	if m.changed {
		return false
	}
	m.changed = true
	m.actions = append(m.actions, Change{Node: n.ID, Name: n.Name, Was: n.Order, Order: order, WritePlan: true, Plan: p, Why: why})
	return true
}

// restart: one node at a time, each only when the cluster can do without it.
func (m *step) restart(p Plan) {
	p.Nodes = slices.Clone(p.Nodes)
	done, total := int64(0), int64(len(p.Nodes))
	for _, x := range p.Nodes {
		if x.State == Done {
			done++
		}
	}
	for i, x := range p.Nodes {
		if x.State == Going {
			m.restarting(p, i, done, total)
			return
		}
	}
	if p.Cancel {
		m.endPlan("", fmt.Sprintf("cancelled after %d of %d nodes", done, total), "ask again to restart all nodes")
		return
	}
	i := m.next(p)
	if i < 0 {
		for _, n := range m.view.Nodes { // not before everything is as it was
			if why := m.notNext(n); why != "" {
				m.progress(p.Task, "every node was restarted; waits: "+why, done, total)
				return
			}
		}
		m.endPlan(fmt.Sprintf("all %d nodes were restarted, one at a time", total), "", "")
		return
	}
	n, ok := m.node(p.Nodes[i].ID)
	if !ok {
		p.Nodes[i].State = Done
		m.write(&p, Node{}, nil, p.Nodes[i].Name+" is no part of the cluster any more")
		return
	}
	if why := m.notNext(n); why != "" {
		m.progress(p.Task, fmt.Sprintf("%s is next; waits: %s", n.Name, why), done, total)
		return
	}
	p.Nodes[i].State, p.Nodes[i].Boot = Going, n.Boot
	if m.write(&p, n, newOrder(model.OrderReboot, n, p.Asked), "rolling restart") {
		m.event("info", "node "+n.Name, "is restarted, %d of %d of the rolling restart", done+1, total)
		m.progress(p.Task, n.Name+" drains", done, total)
	}
}

// next chooses among the nodes that wait: by name, this node last.
func (m *step) next(p Plan) int {
	best := -1
	for i, x := range p.Nodes {
		if x.State != Waits {
			continue
		}
		if best < 0 || p.Nodes[best].ID == m.view.Self || x.ID != m.view.Self && x.Name < p.Nodes[best].Name {
			best = i
		}
	}
	return best
}

// notNext returns why the restart of n does not begin yet: what it will need must
// be there already, or its guests would leave it for nothing.
func (m *step) notNext(n Node) string {
	for _, o := range m.view.Nodes {
		switch {
		case !o.Up:
			return o.Name + " does not answer"
		case !o.Storage:
			return "the storage of " + o.Name + " does not answer"
		case o.Order != nil:
			return fmt.Sprintf("%s is to %s", o.Name, o.Order.Verb.Words())
		case len(o.Guests) > 0 && !o.Drain:
			return fmt.Sprintf("%s that left %s to go back", count(len(o.Guests), "machine"), o.Name)
		}
	}
	if n.Needed != "" {
		return n.Needed
	}
	why, _ := Unsafe(m.view.Volumes, m.view.Nodes, n.ID)
	return why
}

// restarting follows the node that is on its way.
func (m *step) restarting(p Plan, i int, done, total int64) {
	x := &p.Nodes[i]
	n, ok := m.node(x.ID)
	switch {
	case !ok:
		x.State = Done
		m.write(&p, Node{}, nil, x.Name+" is no part of the cluster any more")
	case n.Order == nil && n.Up && n.Boot != x.Boot:
		x.State = Done
		m.write(&p, Node{}, nil, x.Name+" is back")
	case n.Order == nil && n.Up:
		m.endPlan("", fmt.Sprintf("the order to %s was taken back; %d of %d nodes were restarted", x.Name, done, total), "ask again to restart all nodes")
	case p.Cancel && n.Order != nil && n.Order.Phase == model.OrderDraining:
		x.State = Waits
		m.write(&p, n, nil, "cancelled")
	case n.Order != nil && n.Order.Phase == model.OrderDraining:
		text := x.Name + " drains"
		if why := m.blocks(n); why != "" {
			text += "; " + why
		}
		m.progress(p.Task, text, done, total)
	case n.Order == nil || n.Order.Phase == model.OrderAway:
		m.progress(p.Task, x.Name+" is off, comes back", done, total)
	default:
		m.progress(p.Task, x.Name+" goes down", done, total)
	}
}

// endPlan drops the plan and ends its task.
func (m *step) endPlan(result, failed, hint string) {
	task, kind := m.view.Plan.Task, m.view.Plan.Kind
	if !m.write(nil, Node{}, nil, orElse(result, failed)) {
		return
	}
	m.event("info", "cluster", "%s: %s", name(kind), orElse(result, failed))
	m.end(task, result, failed, hint)
}

func name(k PlanKind) string {
	if k == Restart {
		return "rolling restart"
	}
	return string(k)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// shutdown: guests, then nodes; seen under another boot it is over.
func (m *step) shutdown(p Plan) {
	if self := member(p, m.view.Self); p.Phase == Off && self != nil {
		if n, ok := m.node(m.view.Self); ok && n.Boot != "" && n.Boot != self.Boot {
			if m.write(nil, Node{}, nil, "the cluster has started again") {
				m.event("info", "cluster", "started again after its shutdown; the machines that ran start now")
			}
			return
		}
	}
	switch {
	case p.Phase == Off:
		m.off(p)
	case p.Cancel:
		m.endPlan("", "cancelled; the machines that ran start again", "`roseau cluster shutdown` begins anew")
	default:
		m.guestsOff(p)
	}
}

func member(p Plan, id ids.ID) *Member {
	for i := range p.Nodes {
		if p.Nodes[i].ID == id {
			return &p.Nodes[i]
		}
	}
	return nil
}

// guestsOff waits until nothing is placed on a node that is there.
func (m *step) guestsOff(p Plan) {
	var names []string
	for _, v := range m.view.VMs {
		if n, ok := m.node(v.Node); ok && n.Up {
			names = append(names, v.Name)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		m.progress(p.Task, "machines are powered off; still on: "+strings.Join(names, ", "), int64(max(0, p.VMs-len(names))), int64(p.VMs))
		return
	}
	p.Phase = Off
	if m.write(&p, Node{}, nil, "every machine is off") {
		m.event("info", "cluster", "every machine is off: the nodes go off")
		m.end(p.Task, fmt.Sprintf("%s off; the nodes go off now and start everything again when they have power", count(p.VMs, "machine")), "", "")
	}
}

// off tells the nodes to go, this one last.
func (m *step) off(p Plan) {
	waited := m.now.Sub(m.mem.Off)
	if waited < m.p.OffGrace {
		return
	}
	others := 0
	for _, x := range p.Nodes {
		n, ok := m.node(x.ID)
		// One whose session is lost goes too, as long as it is heard.
		if !ok || !n.Up && !n.Heard || n.ID == m.view.Self || n.Boot != "" && n.Boot != x.Boot {
			continue
		}
		others++
		m.tell(n, model.OrderShutdown, x.Boot)
	}
	if self := member(p, m.view.Self); self != nil && (others == 0 || waited > m.p.OffLimit) {
		n, _ := m.node(m.view.Self)
		m.tell(n, model.OrderShutdown, self.Boot)
	}
}

// LastToGo reports whether node self goes off without being told, in a shutdown of
// the cluster whose nodes go off: it is under the boot that the plan is for, and of
// the others that were there hears none any more. Who conducted may be among
// those, or be this node, which has no majority left to conduct with. heard is about
// the node's own ears, not about sessions. A plan for this node alone is its
// conductor's.
func LastToGo(p *Plan, self ids.ID, boot string, heard func(ids.ID) bool) bool {
	if p == nil || p.Kind != Shutdown || p.Phase != Off {
		return false
	}
	m := member(*p, self)
	if m == nil || boot == "" || m.Boot != boot {
		return false
	}
	others := 0
	for _, x := range p.Nodes {
		if x.ID == self || x.Boot == "" {
			continue
		}
		if heard(x.ID) {
			return false
		}
		others++
	}
	return others > 0
}
