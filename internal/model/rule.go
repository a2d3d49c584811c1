package model

import (
	"fmt"
	"slices"
	"strings"
)

// KindRule is the kind of Rule.
const KindRule Kind = "rules"

// Kind returns KindRule.
func (*Rule) Kind() Kind { return KindRule }

// RuleKind is what a rule demands.
type RuleKind string

// The kinds of rules.
const (
	RuleTogether RuleKind = "together" // its machines on one node
	RuleApart    RuleKind = "apart"    // no two of its machines on one node
	RuleOn       RuleKind = "on"       // its machines on its nodes alone
	RuleNotOn    RuleKind = "not-on"   // its machines on other nodes than its own
)

// Rule says where machines may run: docs/design/placement.md.
type Rule struct {
	Meta
	Spec RuleSpec `json:"spec"`
}

// RuleSpec is what a person wants. Machines and nodes are named; a name that
// nobody has any more binds nothing.
type RuleSpec struct {
	Kind RuleKind `json:"kind"`
	// Soft: a wish, given up when no node fulfils it.
	Soft   bool     `json:"soft,omitempty"`
	VMs    []string `json:"vms"`
	Nodes  []string `json:"nodes,omitempty"`  // of on and not-on
	Labels []string `json:"labels,omitempty"` // of on and not-on: nodes with any of them
}

// Limits of rules and labels.
const (
	MaxRuleMembers = 256
	MaxLabels      = 32
)

// Validate reports the first thing wrong with the rule alone; whether machines and
// nodes exist, and whether it contradicts others, is checked elsewhere.
func (r *Rule) Validate() error {
	if err := CheckName(KindRule, r.Name); err != nil {
		return err
	}
	o, s := "rule "+r.Name, &r.Spec
	least, places := 1, true
	switch s.Kind {
	case RuleTogether, RuleApart:
		least, places = 2, false
	case RuleOn, RuleNotOn:
	default:
		return field(o, "kind", s.Kind, "together, apart, on or not-on", "together and apart are between VMs, on and not-on between VMs and nodes")
	}
	switch {
	case len(s.VMs) < least || len(s.VMs) > MaxRuleMembers:
		return field(o, "vms", strings.Join(s.VMs, ","), fmt.Sprintf("%d to %d VMs", least, MaxRuleMembers), "name them with --vm, once for each")
	case places && len(s.Nodes)+len(s.Labels) == 0:
		return field(o, "nodes", "", "a node or a label at least", "say --node NODE or --label LABEL")
	case !places && len(s.Nodes)+len(s.Labels) > 0:
		return field(o, "nodes", strings.Join(append(slices.Clone(s.Nodes), s.Labels...), ","), "none: "+string(s.Kind)+" is between VMs", "use on or not-on for nodes")
	case len(s.Nodes) > MaxRuleMembers || len(s.Labels) > MaxLabels:
		return field(o, "nodes", len(s.Nodes), fmt.Sprintf("at most %d nodes and %d labels", MaxRuleMembers, MaxLabels), "")
	}
	for name, list := range map[string][]string{"vms": s.VMs, "nodes": s.Nodes, "labels": s.Labels} {
		for i, x := range list {
			if slices.Contains(list[:i], x) {
				return field(o, name, x, "each name once", "leave the second one out")
			}
		}
	}
	return nil
}

// CheckLabel refuses a label that is not 1 to 63 of a-z, A-Z, 0-9 and -_.=, with
// at most one =. site=, rack= and chassis= are reserved for a node's place.
func CheckLabel(object, label string) error {
	ok := len(label) >= 1 && len(label) <= 63 && strings.Count(label, "=") <= 1
	for _, c := range label {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.=", c))
	}
	if !ok {
		return field(object, "label", label, "1 to 63 of letters, digits and -_. with at most one =", "for example ssd or gpu=a100")
	}
	for _, p := range []string{"site=", "rack=", "chassis="} {
		if strings.HasPrefix(label, p) {
			return field(object, "label", label, "another name than site, rack or chassis", "those are set by `roseau node set --rack` and the like")
		}
	}
	return nil
}

// AllLabels lists the labels of a node, those of its place included.
func (n *Node) AllLabels() []string {
	out := slices.Clone(n.Spec.Labels)
	for _, p := range [][2]string{{"site=", n.Spec.Site}, {"rack=", n.Spec.Rack}, {"chassis=", n.Spec.Chassis}} {
		if p[1] != "" {
			out = append(out, p[0]+p[1])
		}
	}
	return out
}
