package balance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/scenariotest"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/model"
)

// TestScenarios runs each testdata/scenarios/<name>/script and compares the log
// with expected.
func TestScenarios(t *testing.T) {
	scenariotest.Run(t, runScript)
}

// world is a cluster whose machines move as soon as they are told to.
type world struct {
	t  *testing.T
	in Input
	st State
	b  strings.Builder
}

// runScript: node, vm, rule and change make the world; plan prints what would be
// done, at TIME steps every 10 s from the last one to TIME, printing what is done.
func runScript(t *testing.T, script string) string {
	w := &world{t: t}
	now := clock.Instant(time.Hour)
	start := now
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "#":
		case f[0] == "plan":
			w.show()
			for _, mv := range Plan(w.view(), Params{}, nil) {
				fmt.Fprintf(&w.b, "plan  %s %s -> %s: %s\n", mv.Name, mv.From, mv.To, mv.Why)
			}
		case f[0] == "at":
			d, err := time.ParseDuration(f[1])
			if err != nil {
				t.Fatal(err)
			}
			for ; now.Sub(start) <= d; now = now.Add(10 * time.Second) {
				var moves []Move
				w.st, moves, _ = Step(w.st, w.view(), Params{}, now)
				for _, mv := range moves {
					fmt.Fprintf(&w.b, "%5s %s %s -> %s: %s\n", now.Sub(start), mv.Name, mv.From, mv.To, mv.Why)
					w.machine(mv.Name).Node = mv.ToID
				}
			}
		default:
			w.command(f)
		}
	}
	return w.b.String()
}

func (w *world) command(f []string) {
	kv := map[string]string{}
	for _, x := range f[1:] {
		if k, v, ok := strings.Cut(x, "="); ok {
			kv[k] = v
		}
	}
	bytes := func(k string, def size.Bytes) size.Bytes {
		if kv[k] == "" {
			return def
		}
		b, err := size.Parse(kv[k])
		if err != nil {
			w.t.Fatal(err)
		}
		return b
	}
	num := func(k string, def int) int {
		if n, err := strconv.Atoi(kv[k]); err == nil {
			return n
		}
		return def
	}
	switch f[0] {
	case "node":
		mem := bytes("memory", 32*size.GiB)
		n := Node{Node: place.Node{ID: ids.ID{15: byte(len(w.in.Nodes) + 1)}, Name: f[1], CPUs: num("cpus", 8), Storage: true, NotReady: kv["down"], Avoid: kv["avoid"]},
			Memory: mem, Pressure: num("pressure", 0)}
		n.MemoryFree = bytes("free", mem)
		if kv["labels"] != "" {
			n.Labels = strings.Split(kv["labels"], ",")
		}
		w.in.Nodes = append(w.in.Nodes, n)
	case "vm":
		m := Machine{ID: ids.ID{14: 1, 15: byte(len(w.in.Machines) + 1)}, Node: w.node(f[2]).ID, Fixed: kv["fixed"],
			Request: place.Request{VM: f[1], CPUs: num("cpus", 1), Memory: bytes("memory", 4*size.GiB)}}
		var copies []ids.ID
		for _, n := range w.in.Nodes {
			if kv["copies"] == "" || slices.Contains(strings.Split(kv["copies"], ","), n.Name) {
				copies = append(copies, n.ID)
			}
		}
		m.Request.Volumes = []place.Volume{{Name: f[1] + "-0", Groups: [][]ids.ID{copies}}}
		w.in.Machines = append(w.in.Machines, m)
	case "rule":
		w.in.Rules = append(w.in.Rules, place.VMRule{Name: f[1], Kind: model.RuleKind(f[2]), VMs: strings.Split(f[3], ","),
			Nodes: strings.FieldsFunc(kv["nodes"], func(r rune) bool { return r == ',' }), Soft: slices.Contains(f, "soft")})
	case "change":
		w.node(f[1]).Pressure = num("pressure", 0)
	default:
		w.t.Fatalf("unknown command %q", f)
	}
}

func (w *world) node(name string) *Node {
	for i := range w.in.Nodes {
		if w.in.Nodes[i].Name == name {
			return &w.in.Nodes[i]
		}
	}
	w.t.Fatalf("no node %s", name)
	return nil
}

func (w *world) machine(name string) *Machine {
	for i := range w.in.Machines {
		if w.in.Machines[i].Request.VM == name {
			return &w.in.Machines[i]
		}
	}
	w.t.Fatalf("no machine %s", name)
	return nil
}

// view fills in what follows from where the machines are.
func (w *world) view() Input {
	in := Input{Rules: w.in.Rules, Nodes: slices.Clone(w.in.Nodes), Machines: slices.Clone(w.in.Machines)}
	where := map[string]place.Placed{}
	for _, m := range in.Machines {
		where[m.Request.VM] = place.Placed{Node: m.Node}
		for i := range in.Nodes {
			if n := &in.Nodes[i]; n.ID == m.Node {
				n.Promised += m.Request.Memory
				n.MemoryFree -= m.Request.Memory
				n.VMs++
			}
		}
	}
	for i := range in.Machines {
		in.Machines[i].Request.Where, in.Machines[i].Request.Rules = where, in.Rules
	}
	in.Where = where
	slices.Reverse(in.Machines) // no order may be relied on
	slices.Reverse(in.Nodes)
	return in
}

func (w *world) show() {
	list, imbalance := Loads(w.view())
	for _, n := range list {
		fmt.Fprintf(&w.b, "node  %s load %.0f, %d machines", n.Name, n.Load, n.Machines)
		if n.Out != "" {
			fmt.Fprintf(&w.b, " (takes no part: %s)", n.Out)
		}
		w.b.WriteString("\n")
	}
	fmt.Fprintf(&w.b, "imbalance %.0f\n", imbalance)
}
