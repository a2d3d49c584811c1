package drill

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// FaultKind is one thing that a soak does to a cluster.
type FaultKind struct {
	Name string
	// Control faults touch the control plane alone: no VM may restart, move or
	// pause under one.
	Control bool
	// Solo faults stand alone in their round: with a second one they could take
	// the last good copy of a block, and then waiting for ever would be right.
	Solo bool
	// Shortest and Longest bound how long it lasts. A kill lasts no time: its
	// victim's supervisor heals it.
	Shortest, Longest time.Duration
}

// FaultKinds lists every kind, by name.
var FaultKinds = []FaultKind{
	{Name: "control-link-cut", Control: true, Shortest: 2 * time.Second, Longest: 20 * time.Second},
	{Name: "disk-corrupt", Solo: true},
	{Name: "disk-pull", Solo: true, Shortest: 3 * time.Second, Longest: 20 * time.Second},
	{Name: "disk-slow", Shortest: 5 * time.Second, Longest: 20 * time.Second},
	{Name: "etcd-quorum-lost", Control: true, Solo: true, Shortest: 10 * time.Second, Longest: 40 * time.Second},
	{Name: "etcd-stop", Control: true, Shortest: 5 * time.Second, Longest: 20 * time.Second},
	{Name: "guard-kill"},
	{Name: "guard-kill-isolated", Shortest: 6 * time.Second, Longest: 20 * time.Second},
	{Name: "isolate", Shortest: 2 * time.Second, Longest: 20 * time.Second},
	{Name: "migrate"},
	{Name: "node-cut", Shortest: 500 * time.Millisecond, Longest: 20 * time.Second},
	{Name: "node-daemon-kill", Control: true},
	{Name: "node-freeze", Shortest: time.Second, Longest: 15 * time.Second},
	{Name: "packet-loss", Shortest: 5 * time.Second, Longest: 20 * time.Second},
	{Name: "power-cut-all", Solo: true, Shortest: time.Second, Longest: 6 * time.Second},
	{Name: "storage-kill"},
	{Name: "storage-link-cut", Shortest: time.Second, Longest: 15 * time.Second},
}

// PlannedFault is one fault of a round.
type PlannedFault struct {
	Kind  FaultKind
	Node  int           // index into the cluster's nodes
	VM    int           // index into the soak's VMs; kinds that aim at a VM hit its node
	Begin time.Duration // since the round's first fault
	End   time.Duration // when it is healed; Begin for a kill
}

// Round is what a soak does between two audits.
type Round struct {
	Number uint64
	Faults []PlannedFault // by Begin
}

// Control reports whether the round touches the control plane alone.
func (r Round) Control() bool {
	return !slices.ContainsFunc(r.Faults, func(f PlannedFault) bool { return !f.Kind.Control })
}

// String is "node-cut n1 8.2s, storage-kill n3".
func (r Round) String() string {
	var parts []string
	for _, f := range r.Faults {
		text := fmt.Sprintf("%s n%d", f.Kind.Name, f.Node+1)
		if f.aimsAtVM() {
			text = fmt.Sprintf("%s vm%d", f.Kind.Name, f.VM+1)
		}
		if f.End > f.Begin {
			text += fmt.Sprintf(" %s", (f.End - f.Begin).Round(100*time.Millisecond))
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// aimsAtVM reports whether the fault finds its node by its VM.
func (f PlannedFault) aimsAtVM() bool {
	switch f.Kind.Name {
	case "guard-kill", "guard-kill-isolated", "migrate", "disk-corrupt", "disk-pull":
		return true
	}
	return false
}

// secondLikely is how often a round of a soak has a second fault while the
// first one lasts.
const secondLikely = 0.4

// PlanRound draws a round. The same arguments give the same round: a failed one
// can be repeated by its number. kinds must not be empty.
func PlanRound(seed, number uint64, nodes, vms int, kinds []FaultKind) Round {
	rng := rand.New(rand.NewPCG(seed, number))
	first := drawFault(rng, kinds, nodes, vms)
	r := Round{Number: number, Faults: []PlannedFault{first}}
	if first.Kind.Solo || rng.Float64() >= secondLikely {
		return r
	}
	var rest []FaultKind
	for _, k := range kinds {
		if !k.Solo {
			rest = append(rest, k)
		}
	}
	second := drawFault(rng, rest, nodes, vms)
	second.shift(time.Duration(rng.Float64() * float64(max(first.End, 2*time.Second))))
	if second.Kind.Name == first.Kind.Name && second.Node == first.Node {
		second.Node = (second.Node + 1) % nodes
	}
	r.Faults = append(r.Faults, second)
	slices.SortStableFunc(r.Faults, func(a, b PlannedFault) int { return cmp.Compare(a.Begin, b.Begin) })
	return r
}

func drawFault(rng *rand.Rand, kinds []FaultKind, nodes, vms int) PlannedFault {
	k := kinds[rng.IntN(len(kinds))]
	f := PlannedFault{Kind: k, Node: rng.IntN(nodes), VM: rng.IntN(vms)}
	if k.Longest > 0 {
		f.End = k.Shortest + time.Duration(rng.Float64()*float64(k.Longest-k.Shortest))
	}
	return f
}

func (f *PlannedFault) shift(d time.Duration) { f.Begin, f.End = f.Begin+d, f.End+d }

// sighting is a stretch of time in which a VM's frames came from one node.
type sighting struct {
	node        string
	first, last time.Time
}

// sightings is what the VM network heard of one VM, in order.
type sightings struct{ list []sighting }

// note adds a frame.
func (s *sightings) note(node string, at time.Time) {
	if n := len(s.list); n > 0 && s.list[n-1].node == node {
		s.list[n-1].last = at
		return
	}
	s.list = append(s.list, sighting{node, at, at})
}

// backAndForth is the shortest time in which a machine can leave a node and
// rightly be back: a restart waits out the lease, a migration copies memory.
const backAndForth = 2 * time.Second

// twice returns a description of the first time that two nodes sent for the VM
// by turns; "" if they never did.
func (s *sightings) twice() string {
	for i := 2; i < len(s.list); i++ {
		a, b, again := s.list[i-2], s.list[i-1], s.list[i]
		if again.node == a.node && again.first.Sub(a.last) < backAndForth {
			return fmt.Sprintf("%s sent at %s, %s at %s, and %s again %s later", a.node, a.last.Format("15:04:05.000"),
				b.node, b.first.Format("15:04:05.000"), a.node, again.first.Sub(b.first).Round(time.Millisecond))
		}
	}
	return ""
}
