package drill

import (
	"slices"
	"testing"
	"time"
)

func TestPlanRound(t *testing.T) {
	seen := map[string]int{}
	pairs := 0
	for n := range uint64(2000) {
		r := PlanRound(7, n, 3, 2, FaultKinds)
		if again := PlanRound(7, n, 3, 2, FaultKinds); again.String() != r.String() {
			t.Fatalf("round %d is %q, and drawn again %q", n, r, again)
		}
		if len(r.Faults) == 2 {
			pairs++
		}
		for i, f := range r.Faults {
			seen[f.Kind.Name]++
			if f.Kind.Solo && len(r.Faults) > 1 {
				t.Errorf("round %d: %s is not alone: %s", n, f.Kind.Name, r)
			}
			if f.Node < 0 || f.Node > 2 || f.VM < 0 || f.VM > 1 {
				t.Errorf("round %d: aims at node %d, VM %d", n, f.Node, f.VM)
			}
			if last := f.End - f.Begin; last < f.Kind.Shortest || last > f.Kind.Longest {
				t.Errorf("round %d: %s lasts %s", n, f.Kind.Name, last)
			}
			if i > 0 && f.Begin < r.Faults[i-1].Begin {
				t.Errorf("round %d is not in order", n)
			}
		}
	}
	for _, k := range FaultKinds {
		if seen[k.Name] == 0 {
			t.Errorf("%s was never drawn", k.Name)
		}
	}
	if pairs == 0 {
		t.Error("no round has two faults")
	}
}

func TestControlRounds(t *testing.T) {
	var control []FaultKind
	for _, k := range FaultKinds {
		if k.Control {
			control = append(control, k)
		}
	}
	for n := range uint64(200) {
		if r := PlanRound(1, n, 3, 1, control); !r.Control() {
			t.Fatalf("round %d of control faults is %s", n, r)
		}
	}
	if !slices.ContainsFunc(FaultKinds, func(k FaultKind) bool { return !k.Control }) {
		t.Error("every kind says that it touches the control plane alone")
	}
}

func TestSightings(t *testing.T) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type frame struct {
		node string
		ms   int
	}
	for _, c := range []struct {
		name   string
		frames []frame
		twice  bool
	}{
		{"one node", []frame{{"n1", 0}, {"n1", 10}}, false},
		{"moved", []frame{{"n1", 0}, {"n2", 10}, {"n2", 5000}}, false},
		{"moved and back later", []frame{{"n1", 0}, {"n2", 10}, {"n2", 4000}, {"n1", 4010}}, false},
		{"a late frame of the old one", []frame{{"n1", 0}, {"n2", 10}, {"n1", 20}, {"n2", 30}}, true},
		{"both at once", []frame{{"n1", 0}, {"n2", 1000}, {"n1", 1900}}, true},
	} {
		var s sightings
		for _, f := range c.frames {
			s.note(f.node, base.Add(time.Duration(f.ms)*time.Millisecond))
		}
		if got := s.twice(); (got != "") != c.twice {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestParseRows(t *testing.T) {
	runs, bad, err := parseRows("1 5\n8 8\nbad 2\n")
	if err != nil || bad != 2 {
		t.Fatalf("%v, %d bad", err, bad)
	}
	for seq, want := range map[uint64]bool{1: true, 5: true, 6: false, 8: true, 9: false} {
		if runs.has(seq) != want {
			t.Errorf("row %d present: %v", seq, !want)
		}
	}
	for _, text := range []string{"", "1 5\n", "1 x\nbad 0\n"} {
		if _, _, err := parseRows(text); err == nil {
			t.Errorf("%q was taken for a whole answer", text)
		}
	}
}
