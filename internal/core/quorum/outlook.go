package quorum

import (
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/ids"
)

// Outlook is what the cluster can lose next.
type Outlook struct {
	Votes  int // all
	Answer int // that answer
	Needed int
	// Nodes is how many nodes, whichever of those that vote, may fail at once or
	// one after the other without loss of service; -1: there is no majority now.
	Nodes int
	// Witness: it may fail alone. True without one.
	Witness bool
	Text    string // one or two sentences
}

// Look says what the cluster can lose next without loss of service: changes,
// and restarts of machines elsewhere. v.Leader says whether there is a leader
// at all. Running machines never depend on it.
func Look(v View) Outlook {
	c := configOf(v, 0, 0)
	var o Outlook
	o.Answer, o.Votes = answering(v, 0)
	o.Needed = Majority(o.Votes)
	o.Nodes, o.Witness = c.level()
	var up, down []string
	for _, m := range v.Members {
		if m.Learner || m.Slot > 1 {
			continue
		}
		switch n := nameOf(v, m.Owner); {
		case m.Answers && m.Slot == 0:
			up = append(up, n)
		case !m.Answers:
			down = append(down, n)
		}
	}
	slices.Sort(up)
	slices.Sort(down)
	var text []string
	for _, s := range []string{sentence(v, o, up, down), ofWitness(v, o, c, up), ofChange(v)} {
		if s != "" {
			text = append(text, s)
		}
	}
	o.Text = strings.Join(text, " ")
	return o
}

func nameOf(v View, id ids.ID) string {
	for _, n := range v.Nodes {
		if n.ID == id {
			return n.Name
		}
	}
	if v.Witness != nil && v.Witness.ID == id {
		return "witness " + v.Witness.Name
	}
	return "a machine that was removed"
}

// list is "n1, n2 or n3".
func list(names []string, word string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " " + word + " " + names[len(names)-1]
}

// sentence is about the nodes.
func sentence(v View, o Outlook, up, down []string) string {
	gone := ""
	if len(down) > 0 {
		gone = fmt.Sprintf(" (no answer from %s)", list(down, "and"))
	}
	switch {
	case o.Votes == 0:
		return "No voter answers: changes are refused; running VMs are not affected."
	case o.Answer < o.Needed:
		return fmt.Sprintf("No quorum: %d of %d votes answer%s, %d needed: changes are refused; running VMs are not affected.", o.Answer, o.Votes, gone, o.Needed)
	case !v.Leader:
		return fmt.Sprintf("%d of %d votes answer%s; a leader is being elected: changes wait.", o.Answer, o.Votes, gone)
	case o.Nodes == 0 && o.Votes == 1:
		return fmt.Sprintf("%s votes alone: if it fails, no changes are possible until it is back; join more nodes.", list(up, "and"))
	case o.Nodes == 0 && len(up) == 1:
		return fmt.Sprintf("%s is the last node that votes%s: if it fails, changes and restarts wait until a voter is back.", up[0], gone)
	case o.Nodes <= 0:
		return fmt.Sprintf("If %s fails%s, changes and restarts wait until it is back; running VMs go on.", list(up, "or"), gone)
	case o.Nodes == 1:
		return fmt.Sprintf("Any 1 of %s can fail next without loss of service%s.", list(up, "and"), gone)
	}
	return fmt.Sprintf("Any %d of %s can fail next, at once or one after the other, without loss of service%s.", o.Nodes, list(up, "and"), gone)
}

// ofWitness is about the witness: what it adds, and what must not fail with it.
func ofWitness(v View, o Outlook, c config, up []string) string {
	w := v.Witness
	if o.Answer < o.Needed || !v.Leader {
		return ""
	}
	if w == nil {
		if o.Nodes < 2 && len(up) > 1 && WitnessVotes(len(up)) > 0 {
			return fmt.Sprintf("With a witness any %d could (`roseau witness add`).", len(up)-1)
		}
		return ""
	}
	i := slices.IndexFunc(c, func(m machine) bool { return m.witness })
	switch {
	case i < 0 && WitnessVotes(len(up)) == 0:
		return fmt.Sprintf("Witness %s has no vote: %d voters need none.", w.Name, len(up))
	case i < 0 && !w.Present:
		return fmt.Sprintf("Witness %s is away and has no vote.", w.Name)
	case i < 0:
		return fmt.Sprintf("Witness %s has no vote yet: it gets one when all voters are up and steady.", w.Name)
	case !c[i].alive && w.Leaving:
		return fmt.Sprintf("Witness %s is leaving.", w.Name)
	case !c[i].alive:
		return fmt.Sprintf("Witness %s does not answer: its votes go after 10 s.", w.Name)
	case !o.Witness:
		return fmt.Sprintf("Witness %s cannot fail: its votes are needed.", w.Name)
	}
	for j, m := range c {
		if m.alive && m.votes > 0 && j != i && !c.holds(1<<i|1<<j) {
			return fmt.Sprintf("So can witness %s, but not the witness and a node together.", w.Name)
		}
	}
	return fmt.Sprintf("So can witness %s.", w.Name)
}

// ofChange names what is under way.
func ofChange(v View) string {
	for _, m := range v.Members {
		if m.Learner && m.Slot == 0 {
			return fmt.Sprintf("%s is learning and will vote soon.", nameOf(v, m.Owner))
		}
	}
	for _, n := range v.Nodes {
		if n.Leaving {
			return fmt.Sprintf("%s is being removed.", n.Name)
		}
	}
	return ""
}
