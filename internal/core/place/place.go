// Package place decides where things go: the node of a virtual machine and the
// disks of a volume's segments. It filters, then scores; every refusal and the
// winning reason are values that the caller can show, so that nobody has to ask
// the logs why a machine did not start.
//
// It is pure: no I/O, no clock, no randomness. The same input gives the same
// answer on every node. Test: `go test ./internal/core/place`.
package place

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

// Node is what the scheduler knows of a node.
type Node struct {
	ID   ids.ID
	Name string
	// NotReady is empty for a node that may be given machines, else the cause
	// in a few words: "session lost 4s ago".
	NotReady string
	// Avoid is a reason not to use the node while another one can do: a
	// quarantine after flapping, a failed attempt. Empty: none.
	Avoid string
	// Busy is why it may not be given a machine just now ("4 machines are starting
	// there"); unlike NotReady it says nothing against the machines that it has.
	Busy       string
	CPUs       int
	MemoryFree size.Bytes // what a new VM may take, after what is promised to others
	KVM        bool       // the accelerator's self-test passed
	Storage    bool       // its own storage process answers
	Networks   []string   // networks whose uplink is there
	VMs        int        // machines placed there
	Labels     []string   // of the node and of its place
	CPUFlags   []string   // sorted; nil: not known
}

// Volume says where the in-sync copies of a volume are.
type Volume struct {
	Name string
	// Groups lists, for each distinct set of disks that holds segments of the
	// volume, the nodes with an in-sync copy. An empty Groups is a volume whose
	// placement is unknown: no node can take it.
	Groups [][]ids.ID
}

// Request describes the machine to place.
type Request struct {
	VM       string
	CPUs     int
	Memory   size.Bytes
	NeedKVM  bool // accel=kvm; auto takes either and prefers KVM
	Networks []string
	Volumes  []Volume
	// Exclude names nodes that may not be chosen, with the reason ("it runs
	// there already").
	Exclude map[ids.ID]string
	// Rules are those that may speak of it; Where tells where every machine is.
	Rules []VMRule
	Where map[string]Placed
	// Followers is the memory of the machines that a hard rule keeps with it and
	// that are nowhere yet: a node with room for all is preferred.
	Followers size.Bytes
	// CPUModel is QEMU's name of the CPU that a running machine has, Accel what
	// runs it: it can move only where both are. Empty: it does not run.
	CPUModel string
	Accel    string
}

// Refusal says why a node was not chosen.
type Refusal struct {
	Node ids.ID
	Name string
	Why  string
	Soft bool // it could have been taken, but another one scored better
}

// Decision is the outcome of ChooseNode.
type Decision struct {
	Node     ids.ID
	Name     string
	Why      string    // one line, for the task and the event
	Refusals []Refusal // the other nodes, by name
}

// ChooseNode returns the node that should run the machine, or an error of kind
// Exhausted whose text lists the refusal of every node.
//
// Filters: excluded, ready, not busy, own storage answers, CPUs, memory,
// accelerator, CPU model, networks, hard rules, an in-sync copy of every segment
// on a node whose storage answers.
// Scores, first difference wins: not to be avoided; fewer soft rules broken; room
// for those that follow; KVM; share of segments with
// a local copy (in quarters: local reads are worth a little imbalance, not all);
// memory left afterwards in GiB; fewer machines; name.
func ChooseNode(req Request, nodes []Node) (Decision, error) {
	nodes = slices.Clone(nodes)
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Name < nodes[j].Name })
	var d Decision
	best := -1
	missing := onceFor(req, nodes)
	for i, n := range nodes {
		if why := refuse(req, n, nodes, missing); why != "" {
			d.Refusals = append(d.Refusals, Refusal{Node: n.ID, Name: n.Name, Why: why})
			continue
		}
		if best < 0 || better(req, n, nodes[best], nodes) {
			best = i
		}
	}
	if best < 0 {
		return d, refusedByAll(req, d.Refusals)
	}
	w := nodes[best]
	d.Node, d.Name = w.ID, w.Name
	d.Why = fmt.Sprintf("%s: %s", w.Name, reasons(req, w, nodes))
	refused := make(map[ids.ID]bool, len(d.Refusals))
	for _, r := range d.Refusals {
		refused[r.Node] = true
	}
	for _, n := range nodes {
		if n.ID != w.ID && !refused[n.ID] {
			d.Refusals = append(d.Refusals, Refusal{Node: n.ID, Name: n.Name, Why: reasons(req, n, nodes), Soft: true})
		}
	}
	sort.Slice(d.Refusals, func(i, j int) bool { return d.Refusals[i].Name < d.Refusals[j].Name })
	return d, nil
}

// Explain joins the refusals of a decision into one line: "srv2: 1.2GiB free,
// needs 2GiB; srv3: not ready".
func Explain(refusals []Refusal) string {
	parts := make([]string, 0, len(refusals))
	for _, r := range refusals {
		parts = append(parts, r.Name+": "+r.Why)
	}
	return strings.Join(parts, "; ")
}

func refusedByAll(req Request, refusals []Refusal) error {
	if len(refusals) == 0 {
		return errs.New(errs.Exhausted, "place vm %s: the cluster has no nodes", req.VM)
	}
	return errs.New(errs.Exhausted, "place vm %s: no node can take it: %s", req.VM, Explain(refusals)).
		WithHint("free what is missing on one of these nodes, or bring a node back; `roseau node list` shows them")
}

// onceFor returns MissingCopy's why, which no candidate changes, made when it is
// first asked for.
func onceFor(req Request, nodes []Node) func() string {
	return sync.OnceValue(func() string {
		_, why := MissingCopy(req.Volumes, nodes)
		return why
	})
}

// refuse returns why n cannot take the machine, or "". missing tells of a volume
// without a copy.
func refuse(req Request, n Node, all []Node, missing func() string) string {
	if why, ok := req.Exclude[n.ID]; ok {
		return why
	}
	switch {
	case n.NotReady != "":
		return n.NotReady
	case n.Busy != "":
		return n.Busy
	case !n.Storage:
		return "its storage process does not answer"
	case n.CPUs < req.CPUs:
		return fmt.Sprintf("%d CPUs, needs %d", n.CPUs, req.CPUs)
	case n.MemoryFree < req.Memory:
		return fmt.Sprintf("%s free, needs %s", n.MemoryFree, req.Memory)
	case req.NeedKVM && !n.KVM:
		return "no working KVM, and the machine asks for kvm"
	case req.Accel == "kvm" && !n.KVM:
		return "no working KVM, and the machine runs with it"
	}
	if req.Accel == "kvm" {
		if why := LacksFor(req.CPUModel, n.CPUFlags); why != "" {
			return why
		}
	}
	for _, w := range req.Networks {
		if !slices.Contains(n.Networks, w) {
			return fmt.Sprintf("has no uplink for network %s", w)
		}
	}
	if why := req.brokenRule(n, all, false); why != "" {
		return why
	}
	return missing()
}

// MissingCopy reports the first volume that has a segment without an in-sync
// copy on a node whose storage answers. why names the volume and the nodes to
// wait for; ok is true and why empty if there is none.
func MissingCopy(volumes []Volume, nodes []Node) (ok bool, why string) {
	name := make(map[ids.ID]string, len(nodes))
	answers := make(map[ids.ID]bool, len(nodes))
	for _, n := range nodes {
		name[n.ID] = n.Name
		answers[n.ID] = n.Storage
	}
	for _, v := range volumes {
		if len(v.Groups) == 0 {
			return false, fmt.Sprintf("the placement of volume %s is not known", v.Name)
		}
		for _, g := range v.Groups {
			if slices.ContainsFunc(g, func(id ids.ID) bool { return answers[id] }) {
				continue
			}
			return false, fmt.Sprintf("the only in-sync copy of volume %s is on %s", v.Name, nodeNames(g, name))
		}
	}
	return true, ""
}

func nodeNames(group []ids.ID, name map[ids.ID]string) string {
	var out []string
	for _, id := range group {
		n := name[id]
		if n == "" {
			n = "node " + id.Short()
		}
		out = append(out, n)
	}
	sort.Strings(out)
	if len(out) == 0 {
		return "no node"
	}
	return strings.Join(out, " and ")
}

// localQuarters returns 0 to 4: how much of the machine's data has a copy on n.
func localQuarters(req Request, n Node) int {
	groups, local := 0, 0
	for _, v := range req.Volumes {
		for _, g := range v.Groups {
			groups++
			if slices.Contains(g, n.ID) {
				local++
			}
		}
	}
	if groups == 0 {
		return 0
	}
	return local * 4 / groups
}

// better reports whether a should be preferred to b; both passed the filters.
func better(req Request, a, b Node, all []Node) bool {
	if x, y := a.Avoid == "", b.Avoid == ""; x != y {
		return x
	}
	if x, y := req.softBroken(a, all), req.softBroken(b, all); x != y {
		return x < y
	}
	if x, y := a.MemoryFree >= req.Memory+req.Followers, b.MemoryFree >= req.Memory+req.Followers; x != y {
		return x
	}
	if a.KVM != b.KVM {
		return a.KVM
	}
	if x, y := localQuarters(req, a), localQuarters(req, b); x != y {
		return x > y
	}
	if x, y := (a.MemoryFree-req.Memory)/size.GiB, (b.MemoryFree-req.Memory)/size.GiB; x != y {
		return x > y
	}
	if a.VMs != b.VMs {
		return a.VMs < b.VMs
	}
	return a.Name < b.Name
}

// reasons describes n as a choice for the machine.
func reasons(req Request, n Node, all []Node) string {
	var r []string
	if n.KVM {
		r = append(r, "kvm")
	} else {
		r = append(r, "tcg")
	}
	switch q := localQuarters(req, n); {
	case len(req.Volumes) == 0:
	case q == 4:
		r = append(r, "has a copy of every volume")
	case q > 0:
		r = append(r, fmt.Sprintf("has a copy of %d%% of its data", q*25))
	default:
		r = append(r, "no local copy")
	}
	r = append(r, fmt.Sprintf("%s free", n.MemoryFree), plural(n.VMs, "machine"))
	if why := req.brokenRule(n, all, true); why != "" {
		r = append(r, "though "+why)
	}
	if n.Avoid != "" {
		r = append(r, n.Avoid)
	}
	return strings.Join(r, ", ")
}

func plural(n int, word string) string {
	if n == 1 || word == "chassis" {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
