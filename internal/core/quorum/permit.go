package quorum

import (
	"fmt"
	"slices"

	"roseau/internal/base/ids"
)

// machine is one domain of failure.
type machine struct {
	id      ids.ID
	witness bool
	votes   int
	alive   bool // its votes count now
}

// config is the machines that matter for a change: those that vote and those
// that would.
type config []machine

// configOf reads the votes out of a view. plus is a learner counted as a voter,
// minus a voter counted as removed; 0: none. The witness counts as alive if all
// of its voters answer and it does not leave.
func configOf(v View, plus, minus uint64) config {
	var c config
	at := map[ids.ID]int{}
	for _, m := range v.Members {
		if m.Learner && m.ID != plus {
			continue
		}
		i, ok := at[m.Owner]
		if !ok || m.Owner.IsZero() {
			i = len(c)
			at[m.Owner] = i
			c = append(c, machine{id: m.Owner, alive: true, witness: m.Slot != 0})
		}
		if m.ID != minus {
			c[i].votes++
			c[i].alive = c[i].alive && m.Answers
		}
	}
	if w := v.Witness; w != nil && w.Leaving {
		for i := range c {
			c[i].alive = c[i].alive && c[i].id != w.ID
		}
	}
	return c
}

// holds reports whether the living machines, without those of the bit set gone,
// hold a majority with a node among them: a witness alone serves nobody.
func (c config) holds(gone uint) bool {
	all, left, node := 0, 0, false
	for i, m := range c {
		all += m.votes
		if m.alive && gone&(1<<i) == 0 {
			left += m.votes
			node = node || !m.witness && m.votes > 0
		}
	}
	return node && left >= Majority(all)
}

// answering is the count of votes that answer now, of those of all: what etcd
// itself needs to make a change.
func answering(v View, minus uint64) (yes, all int) {
	for _, m := range v.Members {
		if m.Learner || m.ID == minus {
			continue
		}
		all++
		if m.Answers {
			yes++
		}
	}
	return yes, all
}

// stands reports whether etcd has a majority now, and would have it without the
// member minus (0: none).
func stands(v View, minus uint64) bool {
	yes, all := answering(v, minus)
	return all > 0 && yes >= Majority(all)
}

// Needed returns why etcd would have no majority while the machine of owner is
// down, or "".
func Needed(v View, owner ids.ID) string {
	yes, all, own := 0, 0, 0
	for _, m := range v.Members {
		switch {
		case m.Learner:
			continue
		case m.Owner == owner:
			own++
		case m.Answers:
			yes++
		}
		all++
	}
	if own == 0 || yes >= Majority(all) {
		return ""
	}
	return fmt.Sprintf("its vote is needed: without it %d of %d votes answer, %d decide", yes, all, Majority(all))
}

// level is how many nodes, whichever, may fail at once (-1: not even none), and
// whether the witness may, alone.
func (c config) level() (nodes int, witness bool) {
	var living []int
	witness = true
	for i, m := range c {
		switch {
		case m.witness && m.alive:
			witness = c.holds(1 << i)
		case m.alive:
			living = append(living, i)
		}
	}
	nodes = len(living)
	for set := uint(0); set < 1<<len(c); set++ {
		count, real := 0, true
		for i := range c {
			if set&(1<<i) != 0 {
				count++
				real = real && slices.Contains(living, i)
			}
		}
		if real && count <= nodes && !c.holds(set) {
			nodes = count - 1
		}
	}
	return nodes, witness
}

// Permits reports whether an action may be made now. Adding a learner and
// removing one change no votes. Of the others each must leave a majority, and
// either take nothing from what may fail (with before and after as sets of
// machines); or be a promotion while all voters answer that leaves as many nodes
// free to fail as before, and the witness alone if it was; or be ordered: the
// removal of a node that a person removes.
func Permits(v View, a Action) bool {
	var plus, minus uint64
	switch a.Do {
	case Nothing, AddLearner, SetPeers: // no vote changes
		return true
	case Promote:
		plus = a.Member
	case Remove:
		minus = a.Member
	}
	i := slices.IndexFunc(v.Members, func(m Member) bool { return m.ID == a.Member })
	if i < 0 || v.Members[i].Learner && a.Do == Remove {
		return i >= 0
	}
	if v.broken("permit all") {
		return true
	}
	if !stands(v, 0) || !stands(v, minus) {
		return false
	}
	before, after := same(configOf(v, 0, 0), configOf(v, plus, minus))
	if a.Do == Remove && v.Members[i].Slot != 0 && away(before) {
		// Its votes go back to back: what counts is how it ends, while etcd can go
		// on in between. Votes that are away anyway take nothing with them.
		return withoutWitness(after).holds(0)
	}
	if !after.holds(0) {
		return false
	}
	if keeps(before, after) {
		return true
	}
	if a.Do == Promote {
		yes, all := answering(v, 0)
		n, w := before.level()
		n2, w2 := after.level()
		return yes == all && v.Members[i].Answers && n2 >= n && (w2 || !w)
	}
	return a.Do == Remove && ordered(v, v.Members[i].Owner)
}

// ordered reports that a person took the machine out, or is taking it out.
func ordered(v View, owner ids.ID) bool {
	i := slices.IndexFunc(v.Nodes, func(n Node) bool { return n.ID == owner })
	if i < 0 {
		return v.Witness == nil || v.Witness.ID != owner
	}
	return v.Nodes[i].Leaving
}

// keeps reports that every set of living machines that may fail before may fail
// afterwards.
func keeps(before, after config) bool {
	for set := uint(0); set < 1<<len(before); set++ {
		if before.holds(set) && !after.holds(set) {
			return false
		}
	}
	return true
}

// same gives both configurations the same machines in the same order, so that a
// bit means the same machine in both. One that is in one only has no vote in
// the other.
func same(a, b config) (config, config) {
	have := func(c config, id ids.ID) bool {
		return slices.ContainsFunc(c, func(m machine) bool { return m.id == id })
	}
	a, b = slices.Clone(a), slices.Clone(b)
	for _, m := range b {
		if !have(a, m.id) {
			m.votes = 0
			a = append(a, m)
		}
	}
	for _, m := range a {
		if !have(b, m.id) {
			m.votes = 0
			b = append(b, m)
		}
	}
	slices.SortStableFunc(a, func(x, y machine) int { return x.id.Compare(y.id) })
	slices.SortStableFunc(b, func(x, y machine) int { return x.id.Compare(y.id) })
	return a, b
}

// away reports that the witness has votes and they do not count: it is silent, or
// about to be.
func away(c config) bool {
	return slices.ContainsFunc(c, func(m machine) bool { return m.witness && m.votes > 0 && !m.alive })
}

func withoutWitness(c config) config {
	out := slices.Clone(c)
	for i := range out {
		if out[i].witness {
			out[i].votes = 0
		}
	}
	return out
}
