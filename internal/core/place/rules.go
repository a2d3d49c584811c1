package place

import (
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
)

// VMRule is a rule as ChooseNode needs it: machines and nodes by their names, which
// never change.
type VMRule struct {
	Name   string
	Kind   model.RuleKind
	Soft   bool
	VMs    []string
	Nodes  []string // of on and not-on
	Labels []string // of on and not-on: nodes that have any of them
}

// concerns reports whether the rule speaks of vm.
func (r VMRule) concerns(vm string) bool { return slices.Contains(r.VMs, vm) }

// names reports whether the rule names n, itself or by a label.
func (r VMRule) names(n Node) bool {
	return slices.Contains(r.Nodes, n.Name) ||
		slices.ContainsFunc(r.Labels, func(l string) bool { return slices.Contains(n.Labels, l) })
}

// nodesText is what the rule names, for people.
func (r VMRule) nodesText() string {
	return strings.Join(append(slices.Clone(r.Nodes), r.Labels...), ", ")
}

// Placed is where a machine is, or is going.
type Placed struct {
	Node   ids.ID
	Target ids.ID // of a migration under way; zero: none
}

// at reports whether the machine takes room on n.
func (p Placed) at(n ids.ID) bool { return !n.IsZero() && (p.Node == n || p.Target == n) }

// settled is where the machine will be.
func (p Placed) settled() ids.ID {
	if !p.Target.IsZero() {
		return p.Target
	}
	return p.Node
}

// Broken returns why n would break r for the machine, or "". where tells where
// the others are.
func (r VMRule) Broken(vm string, n Node, all []Node, where map[string]Placed) string {
	switch r.Kind {
	case model.RuleOn:
		if !r.names(n) {
			return fmt.Sprintf("rule %s keeps %s on %s", r.Name, vm, r.nodesText())
		}
	case model.RuleNotOn:
		if r.names(n) {
			return fmt.Sprintf("rule %s keeps %s off %s", r.Name, vm, r.nodesText())
		}
	case model.RuleApart:
		for _, o := range r.VMs {
			if o != vm && where[o].at(n.ID) {
				return fmt.Sprintf("rule %s keeps %s apart from %s, which is there", r.Name, vm, o)
			}
		}
	case model.RuleTogether:
		return r.apartFromPartners(vm, n, all, where)
	}
	return ""
}

// apartFromPartners: a partner binds while its node can be used; one of several is
// enough.
func (r VMRule) apartFromPartners(vm string, n Node, all []Node, where map[string]Placed) string {
	var first, at string
	for _, o := range r.VMs {
		if o == vm {
			continue
		}
		home := where[o].settled()
		if home == n.ID {
			return ""
		}
		i := slices.IndexFunc(all, func(x Node) bool { return x.ID == home })
		if i >= 0 && all[i].NotReady == "" && all[i].Storage && first == "" {
			first, at = o, all[i].Name
		}
	}
	if first == "" {
		return ""
	}
	return fmt.Sprintf("rule %s keeps %s together with %s, which is on %s", r.Name, vm, first, at)
}

// brokenRule returns the first rule of the given hardness that n would break.
func (req Request) brokenRule(n Node, all []Node, soft bool) string {
	for _, r := range req.Rules {
		if r.Soft != soft || !r.concerns(req.VM) {
			continue
		}
		if why := r.Broken(req.VM, n, all, req.Where); why != "" {
			return why
		}
	}
	return ""
}

// Refuses returns why n cannot take the machine, or "": the filters of ChooseNode.
func Refuses(req Request, n Node, all []Node) string {
	return refuse(req, n, all, onceFor(req, all))
}

// SoftBroken counts the soft rules that the machine would break on n.
func SoftBroken(req Request, n Node, all []Node) int { return req.softBroken(n, all) }

// softBroken counts the soft rules that n would break.
func (req Request) softBroken(n Node, all []Node) int {
	count := 0
	for _, r := range req.Rules {
		if r.Soft && r.concerns(req.VM) && r.Broken(req.VM, n, all, req.Where) != "" {
			count++
		}
	}
	return count
}

// Violation is a rule that does not hold where its machines are now.
type Violation struct {
	Rule string
	Soft bool
	VM   string // a machine whose move could mend it
	Why  string
}

// Violations lists the rules that do not hold, in the order of rules; of each the
// first machine that breaks it. Machines that are nowhere break nothing.
func Violations(rules []VMRule, nodes []Node, where map[string]Placed) []Violation {
	var out []Violation
	for _, r := range rules {
		for _, vm := range r.VMs {
			i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == where[vm].settled() })
			if i < 0 {
				continue
			}
			if why := r.Broken(vm, nodes[i], nodes, where); why != "" {
				out = append(out, Violation{Rule: r.Name, Soft: r.Soft, VM: vm, Why: why})
				break
			}
		}
	}
	return out
}

// CheckRules refuses hard rules that cannot hold together whatever the load is.
// The error names the rules and what would work. nodes are all nodes of the
// cluster, up or not; soft rules contradict nothing.
func CheckRules(rules []VMRule, nodes []Node) error {
	rules = slices.DeleteFunc(slices.Clone(rules), func(r VMRule) bool { return r.Soft })
	g := newGroups(rules)
	for _, r := range rules {
		if r.Kind != model.RuleApart {
			continue
		}
		for i, a := range r.VMs {
			for _, b := range r.VMs[i+1:] {
				if g.root(a) == g.root(b) {
					return contradiction(r.Name, g.why[g.root(a)], "%s and %s would be kept apart and together", a, b)
				}
			}
		}
	}
	allowed := map[string][]int{} // by root: indices of nodes
	for _, r := range rules {
		for _, vm := range r.VMs {
			root := g.root(vm)
			if _, done := allowed[root]; done {
				continue
			}
			ok, by := g.allowed(root, rules, nodes)
			if len(ok) == 0 {
				return contradiction(r.Name, by, "no node is left for %s", g.members(root))
			}
			allowed[root] = ok
		}
	}
	for _, r := range rules {
		if r.Kind != model.RuleApart {
			continue
		}
		if vm, n := unmatched(r.VMs, g, allowed); vm != "" {
			return contradiction(r.Name, g.limiting(r.VMs, rules), "it keeps %d machines apart, and they may use %d nodes: none is left for %s", len(r.VMs), n, vm)
		}
	}
	return nil
}

// contradiction names rule and the others that it collides with.
func contradiction(rule string, with []string, format string, args ...any) error {
	with = slices.DeleteFunc(slices.Clone(with), func(n string) bool { return n == rule })
	slices.Sort(with)
	with = slices.Compact(with)
	text := fmt.Sprintf(format, args...)
	if len(with) > 0 {
		return errs.New(errs.Conflict, "check rule %s: it contradicts rule %s: %s", rule, strings.Join(with, ", "), text).
			WithHint("remove one of them, make one soft, or name more nodes: `roseau rule list`")
	}
	return errs.New(errs.Conflict, "check rule %s: it cannot hold: %s", rule, text).
		WithHint("make it soft, name fewer machines, or add a node")
}

// groups are the machines that hard rules keep together, through others too.
type groups struct {
	up  map[string]string
	why map[string][]string // by root: the rules that made the group
}

func newGroups(rules []VMRule) *groups {
	g := &groups{up: map[string]string{}, why: map[string][]string{}}
	for _, r := range rules {
		for _, vm := range r.VMs {
			g.root(vm)
		}
		if r.Kind != model.RuleTogether {
			continue
		}
		for _, vm := range r.VMs[1:] {
			a, b := g.root(r.VMs[0]), g.root(vm)
			if a != b {
				g.up[b] = a
				g.why[a] = append(g.why[a], g.why[b]...)
			}
		}
		root := g.root(r.VMs[0])
		g.why[root] = append(g.why[root], r.Name)
	}
	return g
}

func (g *groups) root(vm string) string {
	if _, ok := g.up[vm]; !ok {
		g.up[vm] = vm
	}
	for g.up[vm] != vm {
		vm = g.up[vm]
	}
	return vm
}

// members lists the machines of a group, for people.
func (g *groups) members(root string) string {
	var out []string
	for vm := range g.up {
		if g.root(vm) == root {
			out = append(out, vm)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " and ")
}

// allowed lists the nodes that the on and not-on rules leave to a group, and the
// rules that take part.
func (g *groups) allowed(root string, rules []VMRule, nodes []Node) (ok []int, by []string) {
	by = slices.Clone(g.why[root])
	mine := func(r VMRule) bool {
		return (r.Kind == model.RuleOn || r.Kind == model.RuleNotOn) && slices.ContainsFunc(r.VMs, func(vm string) bool { return g.root(vm) == root })
	}
	for _, r := range rules {
		if mine(r) {
			by = append(by, r.Name)
		}
	}
	for i, n := range nodes {
		if !slices.ContainsFunc(rules, func(r VMRule) bool { return mine(r) && r.names(n) != (r.Kind == model.RuleOn) }) {
			ok = append(ok, i)
		}
	}
	return ok, by
}

// limiting lists the rules that bind machines to nodes.
func (g *groups) limiting(vms []string, rules []VMRule) []string {
	var out []string
	for _, vm := range vms {
		for _, r := range rules {
			if (r.Kind == model.RuleOn || r.Kind == model.RuleNotOn) && slices.ContainsFunc(r.VMs, func(x string) bool { return g.root(x) == g.root(vm) }) {
				out = append(out, r.Name)
			}
		}
	}
	return out
}

// unmatched gives each machine a node of its own, by augmenting paths, and returns
// the first one that gets none with the number of nodes that all may use.
func unmatched(vms []string, g *groups, allowed map[string][]int) (vm string, nodes int) {
	taken := map[int]string{}
	var try func(vm string, seen map[int]bool) bool
	try = func(vm string, seen map[int]bool) bool {
		for _, n := range allowed[g.root(vm)] {
			if seen[n] {
				continue
			}
			seen[n] = true
			if other, ok := taken[n]; !ok || try(other, seen) {
				taken[n] = vm
				return true
			}
		}
		return false
	}
	all := map[int]bool{}
	for _, vm := range vms {
		for _, n := range allowed[g.root(vm)] {
			all[n] = true
		}
	}
	for _, vm := range vms {
		if !try(vm, map[int]bool{}) {
			return vm, len(all)
		}
	}
	return "", len(all)
}
