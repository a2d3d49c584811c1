package quorum

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// Step is one look at the members: it returns what the observer remembers now
// and the one action to take, which may be Nothing. After an action the members
// are read again before the next step. It does not change mem.
func Step(v View, mem Memory, now clock.Instant) (Memory, Action) {
	s := newStep(v, mem, now)
	if !v.Leader || !stands(v, 0) {
		// What was seen without a majority says nothing about who is dead.
		return Memory{}, Action{}
	}
	s.observe()
	for _, rule := range []func() (Action, bool){s.strays, s.witnessAway, s.learner, s.witnessVotes, s.voters, s.peers} {
		a, wait := rule()
		if a.Do != Nothing && Permits(v, a) {
			return s.mem, a
		}
		if wait {
			break
		}
	}
	return s.mem, Action{}
}

// step is the scratch of one iteration.
type step struct {
	v      View
	t      Timers
	now    clock.Instant
	mem    Memory
	nodes  []Node            // in order of joining
	voter  map[ids.ID]Member // of nodes
	lern   map[ids.ID]Member // of nodes
	wVotes []Member          // of the witness
	wLern  []Member          // of the witness
	stray  []Member
}

func newStep(v View, mem Memory, now clock.Instant) *step {
	s := &step{v: v, t: v.Timers.filled(), now: now, mem: mem, nodes: slices.Clone(v.Nodes), voter: map[ids.ID]Member{}, lern: map[ids.ID]Member{}}
	slices.SortFunc(s.nodes, func(a, b Node) int {
		if a.Order != b.Order {
			return int(max(min(a.Order-b.Order, 1), -1))
		}
		return a.ID.Compare(b.ID)
	})
	for _, m := range v.Members {
		isNode := slices.ContainsFunc(s.nodes, func(n Node) bool { return n.ID == m.Owner })
		switch {
		case v.Witness != nil && m.Owner == v.Witness.ID && m.Learner:
			s.wLern = append(s.wLern, m)
		case v.Witness != nil && m.Owner == v.Witness.ID:
			s.wVotes = append(s.wVotes, m)
		case !isNode:
			s.stray = append(s.stray, m)
		case m.Learner:
			s.lern[m.Owner] = m
		default:
			s.voter[m.Owner] = m
		}
	}
	return s
}

// since remembers when something began, and forgets it when it is over.
func since(at clock.Instant, is bool, now clock.Instant) clock.Instant {
	switch {
	case !is:
		return 0
	case at == 0:
		return now
	}
	return at
}

// observe brings the memory up to date.
func (s *step) observe() {
	s.mem.Silent, s.mem.Learner = maps.Clone(s.mem.Silent), maps.Clone(s.mem.Learner)
	silent, learner := map[ids.ID]clock.Instant{}, map[uint64]clock.Instant{}
	note := func(id ids.ID, is bool) {
		if at := since(s.mem.Silent[id], is, s.now); at != 0 {
			silent[id] = at
		}
	}
	steady := s.v.Witness != nil && s.v.Witness.Present && !s.v.Witness.Leaving
	for _, n := range s.nodes {
		m, votes := s.voter[n.ID]
		note(n.ID, !n.Alive && !(votes && m.Answers))
		steady = steady && (!votes || m.Answers && n.Alive)
	}
	if w := s.v.Witness; w != nil {
		note(w.ID, !s.witnessUp())
		steady = steady && s.witnessUp()
	}
	for _, m := range s.v.Members {
		if m.Learner {
			learner[m.ID] = since(s.mem.Learner[m.ID], true, s.now)
		}
	}
	s.mem.Silent, s.mem.Learner = silent, learner
	s.mem.Steady = since(s.mem.Steady, steady, s.now)
	s.mem.Half = since(s.mem.Half, len(s.wVotes) > 0 && len(s.wVotes) < WitnessVotes(len(s.voter)), s.now)
}

// witnessUp: its votes answer, or it has none and is there.
func (s *step) witnessUp() bool {
	for _, m := range s.wVotes {
		if !m.Answers {
			return false
		}
	}
	return len(s.wVotes) > 0 || s.v.Witness.Present
}

// silentFor reports that a machine has given no sign of life for so long.
func (s *step) silentFor(id ids.ID, d time.Duration) bool {
	at, ok := s.mem.Silent[id]
	return ok && s.now.Sub(at) >= d
}

// remove makes the action that takes a member out.
func (s *step) remove(m Member, format string, args ...any) Action {
	return Action{Do: Remove, Member: m.ID, Owner: m.Owner, Slot: m.Slot, Why: fmt.Sprintf(format, args...)}
}

// strays: members of nobody. A member that a step of ours has just announced has
// an owner already: addresses tell.
func (s *step) strays() (Action, bool) {
	for _, m := range s.stray {
		if a := s.remove(m, "its machine is no part of the cluster any more"); Permits(s.v, a) {
			return a, true
		}
	}
	return Action{}, false
}

// witnessAway takes the votes of a witness that has gone or is going.
func (s *step) witnessAway() (Action, bool) {
	w := s.v.Witness
	if w == nil || !w.Leaving && !s.silentFor(w.ID, s.t.WitnessGone) {
		return Action{}, false
	}
	why := fmt.Sprintf("witness %s is silent for %s: its votes go until it is back and steady", w.Name, s.t.WitnessGone)
	if w.Leaving {
		why = fmt.Sprintf("witness %s leaves: its votes go first", w.Name)
	}
	for _, m := range append(slices.Clone(s.wVotes), s.wLern...) {
		if a := s.remove(m, "%s", why); Permits(s.v, a) {
			return a, true
		}
	}
	return Action{}, false
}

// target is how many nodes should vote: of five only if five can.
func (s *step) target() int {
	all, living := 0, 0
	for _, n := range s.nodes {
		if n.Leaving {
			continue
		}
		all++
		_, votes := s.voter[n.ID]
		if _, learns := s.lern[n.ID]; votes || learns || n.Alive {
			living++
		}
	}
	return min(Voters(all), Voters(living))
}

// staying counts the voters that are neither leaving nor dead.
func (s *step) staying() int {
	n := 0
	for _, o := range s.nodes {
		if _, votes := s.voter[o.ID]; votes && !o.Leaving && !s.silentFor(o.ID, s.t.VoterDead) {
			n++
		}
	}
	return n
}

// dead returns a voter that is dead: silent for long, or by order.
func (s *step) dead() (Node, Member, bool) {
	for _, n := range slices.Backward(s.nodes) {
		m, votes := s.voter[n.ID]
		if votes && !m.Answers && !n.Alive && (n.Leaving || s.silentFor(n.ID, s.t.VoterDead)) {
			return n, m, true
		}
	}
	return Node{}, Member{}, false
}

// learner finishes or undoes what is half done with a node; nothing else
// happens until then.
func (s *step) learner() (Action, bool) {
	for _, n := range s.nodes {
		m, ok := s.lern[n.ID]
		if !ok {
			continue
		}
		ready := m.Started && m.Answers && m.CaughtUp
		switch {
		case n.Leaving:
			return s.remove(m, "node %s is being removed: it will not vote", n.Name), true
		case s.staying() >= s.target():
			return s.remove(m, "%d voters are enough: node %s need not vote", s.target(), n.Name), true
		case s.silentFor(n.ID, s.t.LearnerGone) && !s.v.broken("dead learner stays"):
			return s.remove(m, "node %s went silent before it voted", n.Name), true
		case !ready && s.now.Sub(s.mem.Learner[m.ID]) >= s.t.LearnerSlow:
			return s.remove(m, "node %s was not ready to vote within %s", n.Name, s.t.LearnerSlow), true
		case !ready:
			return Action{}, true
		}
		if d, dm, ok := s.dead(); ok && !s.v.broken("newcomer first") {
			return s.remove(dm, "voter %s is dead: node %s takes its place", d.Name, n.Name), true
		}
		return Action{Do: Promote, Member: m.ID, Owner: n.ID, Why: fmt.Sprintf("node %s votes now", n.Name)}, true
	}
	return Action{}, false
}

// witnessVotes brings the witness's votes to what the voters ask for.
func (s *step) witnessVotes() (Action, bool) {
	w := s.v.Witness
	if w == nil {
		return Action{}, false
	}
	want := WitnessVotes(len(s.voter))
	switch {
	case len(s.wVotes) > want:
		a := s.remove(s.wVotes[len(s.wVotes)-1], "%d voters need %d votes of witness %s", len(s.voter), want, w.Name)
		return a, Permits(s.v, a)
	case len(s.wVotes)+len(s.wLern) > want && len(s.wLern) > 0:
		return s.remove(s.wLern[0], "%d voters need %d votes of witness %s", len(s.voter), want, w.Name), true
	case len(s.wVotes) == want:
		return Action{}, false
	case len(s.wVotes) > 0:
		return s.complete(want)
	}
	first := s.t.WitnessSteady
	if !w.Voted {
		first = s.t.WitnessFirst
	}
	if !s.v.broken("unsteady") && s.mem.Steady == 0 || s.now.Sub(s.mem.Steady) < first {
		if len(s.wLern) > 0 {
			return s.remove(s.wLern[0], "not every voter is up, or witness %s is not steady: its votes wait", w.Name), true
		}
		return Action{}, false
	}
	return s.pair(want)
}

// pair adds the learners that are missing, and promotes the first when all are
// ready: the rest follows at once, by complete.
func (s *step) pair(want int) (Action, bool) {
	slots := map[int]bool{}
	ready := true
	for _, m := range append(slices.Clone(s.wVotes), s.wLern...) {
		slots[m.Slot] = true
		ready = ready && m.Started && m.Answers && (m.CaughtUp || !m.Learner)
	}
	for slot := 1; slot <= want; slot++ {
		if s.v.broken("one vote at a time") && len(s.wLern) > 0 && s.wLern[0].CaughtUp {
			break
		}
		if !slots[slot] {
			return Action{Do: AddLearner, Owner: s.v.Witness.ID, Slot: slot,
				Why: fmt.Sprintf("witness %s is steady: it learns before it votes", s.v.Witness.Name)}, true
		}
	}
	if !ready {
		if m := s.wLern[0]; s.now.Sub(s.mem.Learner[m.ID]) >= s.t.LearnerSlow {
			return s.remove(m, "witness %s was not ready to vote within %s", s.v.Witness.Name, s.t.LearnerSlow), true
		}
		return Action{}, false
	}
	m := slices.MinFunc(s.wLern, func(a, b Member) int { return a.Slot - b.Slot })
	return Action{Do: Promote, Member: m.ID, Owner: m.Owner, Slot: m.Slot, Why: fmt.Sprintf("witness %s votes now", s.v.Witness.Name)}, true
}

// complete finishes a pair of votes of which one is missing, or undoes it when
// that takes too long. A third node that joined two with a witness makes such a
// half, too.
func (s *step) complete(want int) (Action, bool) {
	a, wait := s.pair(want)
	if a.Do == Promote && !Permits(s.v, a) || a.Do == Nothing {
		if s.now.Sub(s.mem.Half) >= s.t.PairUndone && !s.v.broken("half stays") {
			return s.remove(s.wVotes[0], "the second vote of witness %s does not come: the first goes", s.v.Witness.Name), true
		}
		return Action{}, true
	}
	return a, wait
}

// voters replaces, fills and trims the nodes' votes.
func (s *step) voters() (Action, bool) {
	target, staying := s.target(), s.staying()
	spare := slices.IndexFunc(s.nodes, func(n Node) bool {
		_, votes := s.voter[n.ID]
		return !votes && n.Alive && !n.Leaving
	})
	if staying < target && spare >= 0 {
		n := s.nodes[spare]
		why := fmt.Sprintf("node %s is to vote: %d of %d voters", n.Name, staying, target)
		if d, _, ok := s.dead(); ok {
			why = fmt.Sprintf("node %s is to vote in place of %s, which is dead", n.Name, d.Name)
		}
		return Action{Do: AddLearner, Owner: n.ID, Why: why}, true
	}
	for _, n := range slices.Backward(s.nodes) {
		if m, votes := s.voter[n.ID]; votes && n.Leaving {
			return s.remove(m, "node %s is being removed", n.Name), true
		}
	}
	if len(s.voter) <= target {
		return Action{}, false
	}
	if d, m, ok := s.dead(); ok {
		return s.remove(m, "voter %s is dead, and %d voters are enough", d.Name, target), true
	}
	for _, n := range slices.Backward(s.nodes) {
		if m, votes := s.voter[n.ID]; votes && staying > target {
			return s.remove(m, "%d voters are enough: node %s need not vote", target, n.Name), true
		}
	}
	return Action{}, false
}

// peers gives each member in the list the URLs at which it is reached, one member
// a step. One of those that it has stays, whatever else is said: a wrong address
// must not cut a voter off.
func (s *step) peers() (Action, bool) {
	for _, m := range s.v.Members {
		if m.Learner || !m.Answers || len(m.Reach) == 0 || sameURLs(m.Peers, m.Reach) {
			continue
		}
		if !s.v.broken("new address only") && !slices.ContainsFunc(m.Reach, func(u string) bool { return slices.Contains(m.Peers, u) }) {
			continue
		}
		return Action{Do: SetPeers, Member: m.ID, Owner: m.Owner, Slot: m.Slot, Peers: m.Reach,
			Why: fmt.Sprintf("%s is reached at %s", nameOf(s.v, m.Owner), list(m.Reach, "and"))}, true
	}
	return Action{}, false
}

// sameURLs compares without regard to order: etcd sorts some of its lists.
func sameURLs(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}
