package balance

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/model"
)

// TestRandom: carried out again and again, plans end; none breaks a hard rule that
// held, puts a machine where there is no room, moves one that is fixed or uses a
// node twice; and one that mends nothing gains what it says.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{}
		nodes := rapid.IntRange(2, 6).Draw(t, "nodes")
		for i := range nodes {
			mem := size.Bytes(rapid.IntRange(16, 64).Draw(t, "memory")) * size.GiB
			w.in.Nodes = append(w.in.Nodes, Node{Memory: mem, Pressure: rapid.IntRange(-1, 90).Draw(t, "pressure"), Node: place.Node{ID: ids.ID{15: byte(i + 1)},
				Name: fmt.Sprintf("n%d", i), CPUs: 8, MemoryFree: mem, Storage: true}})
		}
		vms := rapid.IntRange(1, 20).Draw(t, "vms")
		name := func(i int) string { return fmt.Sprintf("m%d", i) }
		for i := range vms {
			n := w.in.Nodes[rapid.IntRange(0, nodes-1).Draw(t, "node")].ID
			m := Machine{ID: ids.ID{14: 1, 15: byte(i + 1)}, Node: n, Request: place.Request{VM: name(i), CPUs: 1, Memory: size.Bytes(rapid.IntRange(1, 8).Draw(t, "size")) * size.GiB}}
			if rapid.IntRange(0, 9).Draw(t, "fixed") == 0 {
				m.Fixed = "it is moving"
			}
			w.in.Machines = append(w.in.Machines, m)
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
			r := place.VMRule{Name: fmt.Sprintf("r%d", i), Soft: rapid.Bool().Draw(t, "soft"),
				Kind: rapid.SampledFrom([]model.RuleKind{model.RuleTogether, model.RuleApart, model.RuleOn, model.RuleNotOn}).Draw(t, "kind"),
				VMs:  []string{name(rapid.IntRange(0, vms-1).Draw(t, "a")), name(rapid.IntRange(0, vms-1).Draw(t, "b"))}}
			if r.Kind == model.RuleOn || r.Kind == model.RuleNotOn {
				r.Nodes = []string{w.in.Nodes[rapid.IntRange(0, nodes-1).Draw(t, "on")].Name}
			}
			w.in.Rules = append(w.in.Rules, r)
		}
		for round := 0; ; round++ {
			if round > 4*vms {
				t.Fatalf("still moving after %d plans", round)
			}
			before := w.view()
			moves := Plan(before, Params{}, nil)
			if len(moves) == 0 {
				return
			}
			busy := map[string]bool{}
			for _, mv := range moves {
				m := w.find(mv.Name)
				if m.Fixed != "" || busy[mv.From] || busy[mv.To] {
					t.Fatalf("%+v: fixed %q, busy %v", mv, m.Fixed, busy)
				}
				busy[mv.From], busy[mv.To] = true, true
				_, old := Loads(w.view())
				hard := hardBroken(w.view())
				m.Node = mv.ToID
				after := w.view()
				for _, n := range after.Nodes {
					if n.ID == mv.ToID && n.MemoryFree < 0 {
						t.Fatalf("%s has no room for %s", n.Name, mv.Name)
					}
				}
				if now := hardBroken(after); now > hard {
					t.Fatalf("%+v breaks a rule: %d before, %d after", mv, hard, now)
				}
				// A machine's part in the pressure is not known after the move: only loads by
				// memory can be compared.
				if _, imbalance := Loads(after); mv.Mends == "" && noPressure(after) && old-imbalance < Defaults.MinGain {
					t.Fatalf("%+v: imbalance %.1f before, %.1f after", mv, old, imbalance)
				}
			}
			for i := range w.in.Nodes {
				w.in.Nodes[i].Pressure = 0 // what a plan was made on is not what the next one sees
			}
		}
	})
}

func (w *world) find(name string) *Machine {
	for i := range w.in.Machines {
		if w.in.Machines[i].Request.VM == name {
			return &w.in.Machines[i]
		}
	}
	return nil
}

func noPressure(in Input) bool {
	for _, n := range in.Nodes {
		if n.Pressure > 0 {
			return false
		}
	}
	return true
}

// hardBroken counts pairs of a hard rule and a machine that breaks it.
func hardBroken(in Input) (count int) {
	var all []place.Node
	where := map[string]place.Placed{}
	for _, n := range in.Nodes {
		all = append(all, n.Node)
	}
	for _, m := range in.Machines {
		where[m.Request.VM] = place.Placed{Node: m.Node}
	}
	for _, m := range in.Machines {
		for _, n := range all {
			for _, r := range in.Rules {
				if n.ID == m.Node && !r.Soft && slices.Contains(r.VMs, m.Request.VM) && r.Broken(m.Request.VM, n, all, where) != "" {
					count++
				}
			}
		}
	}
	return count
}
