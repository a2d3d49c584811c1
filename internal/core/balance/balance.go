// Package balance decides which running machines should move so that the nodes
// are loaded alike and no rule is broken. A node's load, in points of 100, is the
// larger of the share of its memory that is promised and its CPU pressure; the
// imbalance is the standard deviation of the loads. Every move passes the filters
// of core/place and states its gain.
//
// Plan is what would be done now; Step adds the hysteresis. Both are pure and give
// the same answer for the same input. Test: `go test ./internal/core/balance`.
package balance

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
)

// Mode is what the balancer may do.
type Mode string

// The modes.
const (
	Off    Mode = "off"    // nothing; `balance show` still tells
	Advise Mode = "advise" // tell what would be gained
	On     Mode = "on"     // move
)

// Params are the limits. The zero value means Defaults.
type Params struct {
	MinGain  float64       // points that a move must gain after its cost. 5
	Stand    time.Duration // how long a move must be the right one. 1 min
	Rest     time.Duration // how long a machine that moved stays. 30 min
	MaxMoves int           // of one plan. 8
}

// Defaults are the limits that ship.
var Defaults = Params{MinGain: 5, Stand: time.Minute, Rest: 30 * time.Minute, MaxMoves: 8}

// What a move costs, in points.
const (
	bytesAPoint = 8 * size.GiB // of memory that is sent
	noCopyCost  = 2            // the destination reads over the network from then on
)

// Node is a node with its load. Nodes that may not be given machines (NotReady,
// Avoid) neither give nor take: a node that is drained is not the balancer's affair.
type Node struct {
	place.Node
	Memory   size.Bytes // total; 0: not known, then it takes no part
	Promised size.Bytes // to the machines placed there
	Pressure int        // percent of the last minute in which something waited for a CPU; < 0: not known
	Moving   bool       // a migration from or to it is under way
}

// Machine is a machine that runs.
type Machine struct {
	Request place.Request // as for a migration: with its rules and where the others are
	ID      ids.ID
	Node    ids.ID
	Fixed   string // why it cannot move now; empty: it can
}

// Input is the cluster as the balancer sees it. Slices need no order.
type Input struct {
	Nodes    []Node
	Machines []Machine
	Rules    []place.VMRule
	Where    map[string]place.Placed // of every machine that is somewhere, by name
}

// Move is one proposal.
type Move struct {
	VM       ids.ID  `json:"vm"`
	Name     string  `json:"name"`
	From     string  `json:"from"`
	To       string  `json:"to"`
	ToID     ids.ID  `json:"to_id"`
	Before   float64 `json:"imbalance_before"` // points
	After    float64 `json:"imbalance_after"`
	Cost     float64 `json:"cost"`
	Gain     float64 `json:"gain"`            // Before - After - Cost
	Mends    string  `json:"mends,omitempty"` // the rule that it mends; then it needs no gain
	Why      string  `json:"why"`
	fromNode ids.ID
}

// NodeLoad is a node's load for people.
type NodeLoad struct {
	Name     string     `json:"name"`
	Load     float64    `json:"load"` // points
	Memory   size.Bytes `json:"memory"`
	Promised size.Bytes `json:"promised"`
	Pressure int        `json:"cpu_pressure"` // percent; -1: not known
	Machines int        `json:"machines"`
	Out      string     `json:"out,omitempty"` // why it takes no part
}

// state is the working copy of one plan.
type state struct {
	p        Params
	nodes    []Node // those that take part, by name
	all      []place.Node
	machines []Machine
	where    map[string]place.Placed
	cpus     map[ids.ID]int // virtual CPUs on a node
	sum, sq  float64
}

func newState(in Input, p Params) *state {
	if p == (Params{}) {
		p = Defaults
	}
	s := &state{p: p, machines: slices.Clone(in.Machines), where: maps.Clone(in.Where), cpus: map[ids.ID]int{}}
	sort.Slice(s.machines, func(i, j int) bool { return s.machines[i].Request.VM < s.machines[j].Request.VM })
	for _, n := range in.Nodes {
		s.all = append(s.all, n.Node)
		if out(n) == "" {
			s.nodes = append(s.nodes, n)
		}
	}
	sort.Slice(s.all, func(i, j int) bool { return s.all[i].Name < s.all[j].Name })
	sort.Slice(s.nodes, func(i, j int) bool { return s.nodes[i].Name < s.nodes[j].Name })
	if s.where == nil {
		s.where = map[string]place.Placed{}
	}
	for _, m := range in.Machines {
		s.cpus[m.Node] += m.Request.CPUs
		s.where[m.Request.VM] = place.Placed{Node: m.Node}
	}
	s.total()
	return s
}

// out says why a node takes no part, or "".
func out(n Node) string {
	switch {
	case n.NotReady != "":
		return n.NotReady
	case n.Avoid != "":
		return n.Avoid
	case n.Memory <= 0:
		return "its memory is not known"
	}
	return ""
}

// load is a node's load with more memory promised and more pressure than it has.
func load(n Node, memory size.Bytes, pressure float64) float64 {
	return max(100*float64(n.Promised+memory)/float64(n.Memory), max(float64(n.Pressure), 0)+pressure)
}

func (s *state) total() {
	s.sum, s.sq = 0, 0
	for _, n := range s.nodes {
		l := load(n, 0, 0)
		s.sum, s.sq = s.sum+l, s.sq+l*l
	}
}

// spread is the standard deviation of n values.
func spread(sum, sq float64, n int) float64 {
	if n == 0 {
		return 0
	}
	mean := sum / float64(n)
	return math.Sqrt(max(0, sq/float64(n)-mean*mean))
}

// judge fills the figures of moving m from one node to another.
func (s *state) judge(m Machine, from, to Node) Move {
	mem := m.Request.Memory
	// A machine's part in the pressure is its part of the virtual CPUs; it weighs
	// more on a smaller node.
	part := 0.0
	if c := s.cpus[from.ID]; c > 0 && from.Pressure > 0 {
		part = float64(from.Pressure) * float64(m.Request.CPUs) / float64(c)
	}
	scale := 1.0
	if to.CPUs > 0 && from.CPUs > 0 {
		scale = float64(from.CPUs) / float64(to.CPUs)
	}
	a, b := load(from, 0, 0), load(to, 0, 0)
	a2, b2 := load(from, -mem, -part), load(to, mem, part*scale)
	mv := Move{VM: m.ID, Name: m.Request.VM, From: from.Name, To: to.Name, ToID: to.ID, fromNode: from.ID,
		Before: spread(s.sum, s.sq, len(s.nodes)), After: spread(s.sum-a-b+a2+b2, s.sq-a*a-b*b+a2*a2+b2*b2, len(s.nodes)),
		Cost: float64(mem) / float64(bytesAPoint)}
	if !localCopy(m.Request, to.ID) {
		mv.Cost += noCopyCost
	}
	mv.Gain = mv.Before - mv.After - mv.Cost
	return mv
}

func localCopy(req place.Request, n ids.ID) bool {
	for _, v := range req.Volumes {
		for _, g := range v.Groups {
			if slices.Contains(g, n) {
				return true
			}
		}
	}
	return len(req.Volumes) == 0
}

// index returns where a node that takes part stands, or -1.
func (s *state) index(id ids.ID) int {
	return slices.IndexFunc(s.nodes, func(n Node) bool { return n.ID == id })
}

// request is m's with the plan's moves in Where.
func (s *state) request(m Machine) place.Request {
	r := m.Request
	r.Where = s.where
	r.Exclude = map[ids.ID]string{m.Node: "it runs there"}
	return r
}

// mend returns the first move that mends a broken rule, hard ones first.
func (s *state) mend(in Input, skip map[string]bool) (Move, bool) {
	broken := place.Violations(in.Rules, s.all, s.where)
	sort.SliceStable(broken, func(i, j int) bool { return !broken[i].Soft && broken[j].Soft })
	for _, v := range broken {
		i := slices.IndexFunc(in.Rules, func(r place.VMRule) bool { return r.Name == v.Rule })
		for _, name := range in.Rules[i].VMs {
			k := slices.IndexFunc(s.machines, func(m Machine) bool { return m.Request.VM == name })
			if k < 0 || skip[name] {
				continue
			}
			m := s.machines[k]
			from := s.index(m.Node)
			if m.Fixed != "" || from < 0 || s.nodes[from].Moving || !s.breaks(in.Rules[i], name, m.Node) {
				continue
			}
			d, err := place.ChooseNode(s.request(m), s.all)
			to := s.index(d.Node)
			if err != nil || to < 0 || s.nodes[to].Moving || s.breaks(in.Rules[i], name, d.Node) || v.Soft && s.softBroken(m, d.Node) >= s.softBroken(m, m.Node) {
				continue
			}
			mv := s.judge(m, s.nodes[from], s.nodes[to])
			mv.Mends = v.Rule
			mv.Why = fmt.Sprintf("mends rule %s: %s", v.Rule, v.Why)
			return mv, true
		}
	}
	return Move{}, false
}

// breaks reports whether vm breaks r on a node.
func (s *state) breaks(r place.VMRule, vm string, node ids.ID) bool {
	i := slices.IndexFunc(s.all, func(n place.Node) bool { return n.ID == node })
	return i >= 0 && r.Broken(vm, s.all[i], s.all, s.where) != ""
}

func (s *state) softBroken(m Machine, node ids.ID) int {
	for _, n := range s.all {
		if n.ID == node {
			return place.SoftBroken(s.request(m), n, s.all)
		}
	}
	return 0
}

// level returns the move with the most gain, if any gains enough.
func (s *state) level(skip map[string]bool) (Move, bool) {
	var list []Move
	of := map[string]Machine{}
	for _, m := range s.machines {
		from := s.index(m.Node)
		if m.Fixed != "" || skip[m.Request.VM] || from < 0 || s.nodes[from].Moving {
			continue
		}
		for _, to := range s.nodes {
			if to.ID == m.Node || to.Moving {
				continue
			}
			if mv := s.judge(m, s.nodes[from], to); mv.Gain >= s.p.MinGain {
				list = append(list, mv)
				of[mv.Name] = m
			}
		}
	}
	sort.SliceStable(list, func(i, j int) bool {
		if list[i].Gain != list[j].Gain {
			return list[i].Gain > list[j].Gain
		}
		return list[i].Name+" "+list[i].To < list[j].Name+" "+list[j].To
	})
	for _, mv := range list {
		m := of[mv.Name]
		to := s.nodes[s.index(mv.ToID)].Node
		if place.Refuses(s.request(m), to, s.all) != "" || s.softBroken(m, mv.ToID) > s.softBroken(m, m.Node) {
			continue
		}
		mv.Why = fmt.Sprintf("imbalance %.0f -> %.0f, gain %.0f after a cost of %.0f", mv.Before, mv.After, mv.Gain, mv.Cost)
		return mv, true
	}
	return Move{}, false
}

// apply makes a move in the working copy.
func (s *state) apply(mv Move) {
	k := slices.IndexFunc(s.machines, func(m Machine) bool { return m.ID == mv.VM })
	m := &s.machines[k]
	from, to := s.index(mv.fromNode), s.index(mv.ToID)
	for _, x := range []struct {
		i    int
		sign size.Bytes
	}{{from, -1}, {to, 1}} {
		n := &s.nodes[x.i]
		n.Promised += x.sign * m.Request.Memory
		n.MemoryFree -= x.sign * m.Request.Memory
		n.VMs += int(x.sign)
		n.Moving = true // one move a node and plan
		s.cpus[n.ID] += int(x.sign) * m.Request.CPUs
		a := slices.IndexFunc(s.all, func(o place.Node) bool { return o.ID == n.ID })
		s.all[a] = n.Node
	}
	m.Node = mv.ToID
	s.where[mv.Name] = place.Placed{Node: mv.ToID}
	s.total()
}

// Plan lists the moves that should be made now, the most urgent first. rest names
// machines that stay where they are for now.
func Plan(in Input, p Params, rest map[ids.ID]bool) []Move {
	s := newState(in, p)
	skip := map[string]bool{}
	for _, m := range in.Machines {
		skip[m.Request.VM] = rest[m.ID]
	}
	var out []Move
	for len(out) < s.p.MaxMoves {
		mv, ok := s.mend(in, skip)
		if !ok {
			if mv, ok = s.level(skip); !ok {
				break
			}
		}
		s.apply(mv)
		skip[mv.Name] = true
		out = append(out, mv)
	}
	return out
}

// Loads lists all nodes with their loads, by name, and the imbalance of those that
// take part.
func Loads(in Input) (list []NodeLoad, imbalance float64) {
	s := newState(in, Params{})
	for _, n := range in.Nodes {
		l := NodeLoad{Name: n.Name, Memory: n.Memory, Promised: n.Promised, Pressure: n.Pressure, Machines: n.VMs, Out: out(n)}
		if n.Memory > 0 {
			l.Load = load(n, 0, 0)
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b NodeLoad) int { return strings.Compare(a.Name, b.Name) })
	return list, spread(s.sum, s.sq, len(s.nodes))
}

// State is what the balancer remembers; a new one may do without.
type State struct {
	Since map[string]clock.Instant // of proposals, by machine and the node that it would leave
	Moved map[ids.ID]clock.Instant
}

// Step returns the moves that may be made now: those of the plan that have stood
// long enough. It counts them as made. proposals is the whole plan, for advice.
func Step(st State, in Input, p Params, now clock.Instant) (next State, moves, proposals []Move) {
	if p == (Params{}) {
		p = Defaults
	}
	next = State{Since: map[string]clock.Instant{}, Moved: map[ids.ID]clock.Instant{}}
	rest := map[ids.ID]bool{}
	for vm, t := range st.Moved {
		if now.Sub(t) < p.Rest {
			next.Moved[vm], rest[vm] = t, true
		}
	}
	proposals = Plan(in, p, rest)
	for _, mv := range proposals {
		key := mv.Name + " " + mv.From
		since, known := st.Since[key]
		if !known {
			since = now
		}
		if now.Sub(since) < p.Stand {
			next.Since[key] = since
			continue
		}
		next.Moved[mv.VM] = now
		moves = append(moves, mv)
	}
	return next, moves, proposals
}
