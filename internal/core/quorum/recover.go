package quorum

import (
	"fmt"
	"slices"

	"roseau/internal/base/ids"
)

// GivenUp says, line by line, what a recovery from one node gives up. v is the
// view of that node, generation the one that the cluster has.
func GivenUp(v View, from ids.ID, generation uint32) []string {
	var others, answer []string
	me := nameOf(v, from)
	for _, m := range v.Members {
		if m.Learner || m.Owner == from || m.Slot > 1 {
			continue
		}
		others = append(others, nameOf(v, m.Owner))
		if m.Answers {
			answer = append(answer, nameOf(v, m.Owner))
		}
	}
	var nodes []string
	for _, n := range v.Nodes {
		if n.ID != from {
			nodes = append(nodes, n.Name)
		}
	}
	slices.Sort(others)
	slices.Sort(nodes)
	var out []string
	if len(others) > 0 {
		out = append(out, fmt.Sprintf("every change is lost that %s had and %s has not: the records go on as they are on %s", list(others, "or"), me, me),
			fmt.Sprintf("%s will not vote any more; %s votes alone", list(others, "and"), me))
	}
	if len(answer) > 0 {
		out = append(out, fmt.Sprintf("%s still answers: if a majority can come back, wait for it instead", list(answer, "and")))
	}
	out = append(out, fmt.Sprintf("the cluster's generation rises from %d to %d", generation, generation+1))
	if len(nodes) > 0 {
		out = append(out, fmt.Sprintf("the disks of %s are not read until each of these nodes is brought in: `roseau cluster recover --import` there", list(nodes, "and")),
			fmt.Sprintf("VMs that still run on %s would run twice: make sure that these nodes are off", list(nodes, "or")))
	}
	return append(out, fmt.Sprintf("VMs that run on %s pause for a moment and go on", me))
}
