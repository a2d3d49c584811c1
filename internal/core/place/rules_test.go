package place

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

func ruleNodes() []Node {
	var out []Node
	for i, name := range []string{"a", "b", "c"} {
		out = append(out, Node{ID: ids.ID{15: byte(i + 1)}, Name: name, CPUs: 8, MemoryFree: 8 * size.GiB, Storage: true})
	}
	out[0].Labels = []string{"ssd", "rack=r1"}
	return out
}

func rule(name string, kind model.RuleKind, vms, nodes string) VMRule {
	r := VMRule{Name: name, Kind: kind, VMs: strings.Split(vms, ",")}
	for n := range strings.SplitSeq(nodes, ",") {
		switch {
		case n == "":
		case len(n) == 1:
			r.Nodes = append(r.Nodes, n)
		default:
			r.Labels = append(r.Labels, n)
		}
	}
	return r
}

// TestContradictions: what can never hold is refused, with the rules named; what
// can is accepted, however tight.
func TestContradictions(t *testing.T) {
	soft := rule("wish", model.RuleApart, "x,y", "")
	soft.Soft = true
	for _, c := range []struct {
		name  string
		rules []VMRule
		want  []string // parts of the error; nil: accepted
	}{
		{"together and apart", []VMRule{rule("pair", model.RuleTogether, "x,y", ""), rule("spread", model.RuleApart, "x,y,z", "")}, []string{"rule spread", "rule pair", "x and y"}},
		{"through a third", []VMRule{rule("p", model.RuleTogether, "x,y", ""), rule("q", model.RuleTogether, "y,z", ""), rule("s", model.RuleApart, "z,x", "")}, []string{"rule s", "p, q"}},
		{"soft is no contradiction", []VMRule{rule("pair", model.RuleTogether, "x,y", ""), soft}, nil},
		{"on and not-on", []VMRule{rule("here", model.RuleOn, "x", "a"), rule("away", model.RuleNotOn, "x", "a")}, []string{"here", "away", "no node is left for x"}},
		{"on and not-on leave one", []VMRule{rule("here", model.RuleOn, "x", "a,b"), rule("away", model.RuleNotOn, "x", "a")}, nil},
		{"by a label", []VMRule{rule("here", model.RuleOn, "x", "ssd"), rule("away", model.RuleNotOn, "x", "rack=r1")}, []string{"here", "away"}},
		{"together on different nodes", []VMRule{rule("pair", model.RuleTogether, "x,y", ""), rule("l", model.RuleOn, "x", "a"), rule("r", model.RuleOn, "y", "b")}, []string{"pair", "l, r", "x and y"}},
		{"four apart on three nodes", []VMRule{rule("s", model.RuleApart, "w,x,y,z", "")}, []string{"rule s", "4 machines", "3 nodes"}},
		{"three apart on three nodes", []VMRule{rule("s", model.RuleApart, "x,y,z", "")}, nil},
		{"apart, two bound to one node", []VMRule{rule("s", model.RuleApart, "x,y,z", ""), rule("o", model.RuleOn, "x,y", "a")}, []string{"rule s", "rule o", "none is left for y"}},
		// a greedy choice would give x node a and then find none for y
		{"apart needs a swap", []VMRule{rule("s", model.RuleApart, "x,y", ""), rule("o", model.RuleOn, "y", "a")}, nil},
		{"unknown label", []VMRule{rule("o", model.RuleOn, "x", "gpu")}, []string{"rule o", "cannot hold"}},
	} {
		err := CheckRules(c.rules, ruleNodes())
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil && !errors.Is(err, errs.Conflict) {
			t.Errorf("%s: kind of %v", c.name, err)
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q lacks %q", c.name, err, w)
			}
		}
	}
}

// TestRulesChoose: hard rules filter, soft ones score, and both say their name.
func TestRulesChoose(t *testing.T) {
	nodes := ruleNodes()
	req := Request{VM: "x", CPUs: 1, Memory: size.GiB, Rules: []VMRule{rule("spread", model.RuleApart, "x,y", "")}, Where: map[string]Placed{"y": {Node: nodes[0].ID}}}
	choose := func() Decision {
		t.Helper()
		d, err := ChooseNode(req, nodes)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := choose(); d.Name != "b" || !strings.Contains(d.Refusals[0].Why, "rule spread keeps x apart from y") {
		t.Errorf("%+v", d)
	}
	// A migration takes room on both nodes.
	req.Where["y"] = Placed{Node: nodes[0].ID, Target: nodes[1].ID}
	if d := choose(); d.Name != "c" {
		t.Errorf("%+v", d)
	}
	req.Rules[0].Kind = model.RuleTogether // with where it will be
	if d := choose(); d.Name != "b" {
		t.Errorf("%+v", d)
	}
	nodes[1].NotReady = "drained" // a partner there binds nobody
	if d := choose(); d.Name != "a" {
		t.Errorf("%+v", d)
	}
	nodes[1].NotReady = ""
	nodes[1].Busy = "4 machines are starting there" // but this one does
	if d, err := ChooseNode(req, nodes); err == nil {
		t.Errorf("%+v", d)
	}
	nodes[1].Busy = ""
	req.Rules = []VMRule{rule("wish", model.RuleNotOn, "x", "a,b")}
	req.Rules[0].Soft = true
	if d := choose(); d.Name != "c" || !strings.Contains(d.Refusals[0].Why, "though rule wish") {
		t.Errorf("%+v", d)
	}
	nodes[2].NotReady = "lost" // a wish gives way
	if d := choose(); d.Name != "a" {
		t.Errorf("%+v", d)
	}
	// Room for those that follow counts before what is local.
	req.Rules, req.Followers = nil, 4*size.GiB
	nodes[0].MemoryFree = 4 * size.GiB
	if d := choose(); d.Name != "b" {
		t.Errorf("%+v", d)
	}
}

// TestBaseline: the newest model that all nodes with KVM have, and who keeps it
// from the next one.
func TestBaseline(t *testing.T) {
	all, _ := flagsOf("Broadwell-noTSX")
	slices.Sort(all)
	without := func(flag string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(f string) bool { return f == flag })
	}
	node := func(name string, kvm bool, flags []string) Node {
		return Node{Name: name, KVM: kvm, CPUFlags: flags}
	}
	for _, c := range []struct {
		nodes []Node
		model string
		why   string
	}{
		{[]Node{node("a", true, all), node("b", true, all)}, "Broadwell-noTSX", "every node"},
		{[]Node{node("a", true, all), node("b", true, without("avx2"))}, "IvyBridge", "b: its CPU lacks avx2"},
		{[]Node{node("b", true, all), node("a", true, without("aes"))}, "Nehalem", "lacks aes"},
		{[]Node{node("a", true, all), node("b", false, nil)}, "Broadwell-noTSX", "(1)"},
		{[]Node{node("a", false, all)}, "", "no node has KVM"},
		{[]Node{node("a", true, without("sse4_2"))}, "", "lacks sse4_2"},
	} {
		if m, why := Baseline(c.nodes); m != c.model || !strings.Contains(why, c.why) {
			t.Errorf("%+v: %q, %q", c.nodes, m, why)
		}
	}
	// A machine that runs with a model moves only where it is.
	nodes := ruleNodes()
	for i := range nodes {
		nodes[i].KVM, nodes[i].CPUFlags = true, all
	}
	nodes[0].CPUFlags = without("avx2")
	d, err := ChooseNode(Request{VM: "x", CPUs: 1, Memory: size.GiB, CPUModel: "Haswell-noTSX", Accel: "kvm"}, nodes)
	if err != nil || d.Name != "b" || !strings.Contains(d.Refusals[0].Why, "lacks avx2") {
		t.Errorf("%+v %v", d, err)
	}
	nodes[1].KVM, nodes[2].KVM = false, false
	if _, err := ChooseNode(Request{VM: "x", CPUs: 1, Memory: size.GiB, CPUModel: "Haswell-noTSX", Accel: "kvm"}, nodes); err == nil {
		t.Error("a machine under KVM moved to an emulator")
	}
}
