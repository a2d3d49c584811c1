// Package explore searches the states of a small model breadth first: every
// order of its steps is tried, each state is judged once, and a state that
// breaks a property is returned with a shortest way to it. It is for models of
// protocols that call the production's own decision functions (repl, vmguard);
// it knows nothing of them.
//
// A state is kept whole only until it was expanded; what remains of it is a
// 128-bit hash of its key, its predecessor and the step between them, about 60
// bytes. Two keys with one hash would hide a state: with 10^8 states the chance
// is below 10^-22.
package explore

import (
	"fmt"
	"hash/maphash"
	"strings"
)

// Step names one transition. A and B are numbers of its subjects (a writer, a
// disk); negative: none.
type Step struct {
	Name string
	A, B int8
}

func (s Step) String() string {
	switch {
	case s.A < 0:
		return s.Name
	case s.B < 0:
		return fmt.Sprintf("%s %d", s.Name, s.A)
	}
	return fmt.Sprintf("%s %d %d", s.Name, s.A, s.B)
}

// Model is a transition system. S is a state, K its key: states with equal keys
// are one (a canonical form, if the model is symmetric).
type Model[S any, K comparable] interface {
	// Next yields every state that one step leads to. It must not keep or change s.
	Next(s S, yield func(Step, S))
	Key(s S) K
	// Broken returns the property that s breaks, in words, or "".
	Broken(s S) string
}

// Result is what Search found.
type Result struct {
	States   int
	Depth    int    // of the last state expanded: number of steps
	Complete bool   // no state was left unexpanded
	Broken   string // "" = no state breaks a property
	Trace    []Step // a shortest way to the broken state
	Deadends int    // states without any step
	// Taken counts the steps by name: one that is missing shows what the search
	// says nothing about.
	Taken map[string]int
}

// String is one line, with the trace, if any, below it.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d states, depth %d", r.States, r.Depth)
	if !r.Complete && r.Broken == "" {
		b.WriteString(", not all")
	}
	if r.Broken != "" {
		fmt.Fprintf(&b, ", broken: %s", r.Broken)
		for i, s := range r.Trace {
			fmt.Fprintf(&b, "\n%4d  %s", i+1, s)
		}
	}
	return b.String()
}

type origin struct {
	from  int32
	depth int32
	step  Step
}

// Search explores m from the first states. It ends at the first broken state, or
// when limit states are known (0 = no limit).
func Search[S any, K comparable](m Model[S, K], first []S, limit int) Result {
	seen := make(map[[2]uint64]struct{})
	s1, s2 := maphash.MakeSeed(), maphash.MakeSeed()
	var origins []origin
	type open struct {
		s  S
		at int32
	}
	var queue, next []open
	res := Result{Complete: true, Taken: map[string]int{}}
	add := func(from, depth int32, step Step, s S) {
		k := m.Key(s)
		h := [2]uint64{maphash.Comparable(s1, k), maphash.Comparable(s2, k)}
		if _, ok := seen[h]; ok {
			return
		}
		seen[h] = struct{}{}
		origins = append(origins, origin{from, depth, step})
		next = append(next, open{s, int32(len(origins) - 1)})
	}
	for _, s := range first {
		add(-1, 0, Step{}, s)
	}
	for len(next) > 0 {
		queue, next = next, queue[:0]
		for i := range queue {
			o := queue[i]
			queue[i] = open{}
			res.Depth = int(origins[o.at].depth)
			if res.Broken = m.Broken(o.s); res.Broken != "" {
				res.States = len(seen)
				res.Trace = trace(origins, o.at)
				return res
			}
			if limit > 0 && len(seen) >= limit {
				res.Complete = false
				continue // judge what is known, expand nothing more
			}
			steps := 0
			m.Next(o.s, func(step Step, s S) {
				steps++
				res.Taken[step.Name]++
				add(o.at, origins[o.at].depth+1, step, s)
			})
			if steps == 0 {
				res.Deadends++
			}
		}
	}
	res.States = len(seen)
	return res
}

func trace(origins []origin, at int32) []Step {
	var t []Step
	for origins[at].from >= 0 {
		t = append(t, origins[at].step)
		at = origins[at].from
	}
	for i, j := 0, len(t)-1; i < j; i, j = i+1, j-1 {
		t[i], t[j] = t[j], t[i]
	}
	return t
}
