package quorum

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// world is a cluster without etcd: its members change as actions say, and the
// machines live, die and return as a test says.
type world struct {
	now     clock.Instant
	mem     Memory
	nodes   []Node
	witness *Witness
	members []Member
	alive   map[ids.ID]bool
	nextID  uint64
	slow    map[uint64]bool // learners that never catch up
	// reach has the URLs at which a node's member listens; absent: it never said.
	reach   map[ids.ID][]string
	log     []string
	checked int
	fail    func(string) // a check that failed
}

// mutant is the rule that TestMutants breaks just now.
var mutant string

var witnessID = ids.ID{0: 0xff}

func newWorld(nodes int, fail func(string)) *world {
	w := &world{now: clock.Instant(time.Hour), alive: map[ids.ID]bool{}, nextID: 1, slow: map[uint64]bool{}, reach: map[ids.ID][]string{}, fail: fail}
	for i := range nodes {
		w.join(i)
		if i == 0 {
			w.members = append(w.members, Member{ID: w.next(), Owner: w.nodes[0].ID, Started: true, CaughtUp: true, Peers: []string{"cluster"}})
		}
	}
	return w
}

func nodeID(i int) ids.ID { return ids.ID{0: byte(i + 1)} }

func (w *world) join(i int) {
	n := Node{ID: nodeID(i), Name: string(rune('a' + i)), Order: int64(i)}
	w.nodes = append(w.nodes, n)
	w.alive[n.ID] = true
}

func (w *world) addWitness() {
	w.witness = &Witness{ID: witnessID, Name: "w"}
	w.alive[witnessID] = true
}

func (w *world) next() uint64 { w.nextID++; return w.nextID - 1 }

func (w *world) view() View {
	v := View{Leader: true, Members: slices.Clone(w.members), Broken: []string{mutant}}
	for _, n := range w.nodes {
		n.Alive = w.alive[n.ID]
		v.Nodes = append(v.Nodes, n)
	}
	if w.witness != nil {
		c := *w.witness
		c.Present = w.alive[witnessID]
		v.Witness = &c
	}
	for i := range v.Members {
		m := &v.Members[i]
		m.Answers = m.Started && w.alive[m.Owner]
		m.Reach = w.reach[m.Owner]
	}
	return v
}

// step looks once, and does what the action says. It reports whether there was
// one.
func (w *world) step() bool {
	v := w.view()
	var a Action
	w.mem, a = Step(v, w.mem, w.now)
	if a.Do == Nothing {
		return false
	}
	before := w.shape()
	check := w.oracle(v, a)
	switch a.Do {
	case AddLearner:
		w.members = append(w.members, Member{ID: w.next(), Owner: a.Owner, Slot: a.Slot, Learner: true, Peers: []string{"cluster"}})
	case SetPeers:
		i := slices.IndexFunc(w.members, func(m Member) bool { return m.ID == a.Member })
		w.members[i].Peers = a.Peers
	case Promote:
		i := slices.IndexFunc(w.members, func(m Member) bool { return m.ID == a.Member })
		w.members[i].Learner = false
		if w.members[i].Slot != 0 {
			w.witness.Voted = true
		}
	case Remove:
		w.members = slices.DeleteFunc(w.members, func(m Member) bool { return m.ID == a.Member })
	}
	w.log = append(w.log, fmt.Sprintf("%s -> %s: %s", before, w.shape(), a.Why))
	if bad := check(); bad != "" {
		w.fail(bad)
	}
	return true
}

// run lets d pass: seats start their members, learners catch up, steps are made.
func (w *world) run(d time.Duration) {
	// Coarser when much time passes: the rules know only thresholds.
	tick := max(500*time.Millisecond, d/60)
	for end := w.now.Add(d); w.now < end; w.now = w.now.Add(tick) {
		for i := range w.members {
			if m := &w.members[i]; w.alive[m.Owner] {
				m.CaughtUp = m.Started && !w.slow[m.ID]
				m.Started = true
			}
		}
		for i := 0; w.step(); i++ {
			if i > 20 {
				w.fail("actions without end")
				break
			}
		}
	}
}

// shape is "a b c- d? w2": - does not answer, ? learns, w and its votes.
func (w *world) shape() string {
	var parts []string
	votes, learns := 0, 0
	for _, m := range w.members {
		switch {
		case m.Slot != 0 && m.Learner:
			learns++
		case m.Slot != 0:
			votes++
		default:
			s := string(rune('a' + m.Owner[0] - 1))
			if !w.alive[m.Owner] {
				s += "-"
			}
			if m.Learner {
				s += "?"
			}
			parts = append(parts, s)
		}
	}
	slices.Sort(parts)
	if votes+learns > 0 {
		s := fmt.Sprintf("w%d", votes)
		if learns > 0 {
			s += fmt.Sprintf("?%d", learns)
		}
		if !w.alive[witnessID] {
			s += "-"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

// oracle judges an action by counting alone, in another way than the code: it
// lists which sets of living machines can fail before and after.
func (w *world) oracle(v View, a Action) func() string {
	going := v.Witness != nil && v.Witness.Leaving
	before := w.survivable(going)
	allUp := true
	for _, m := range w.members {
		allUp = allUp && (m.Learner || w.alive[m.Owner])
	}
	wVotes := w.votesOf(witnessID)
	return func() string {
		w.checked++
		after := w.survivable(going)
		if a.Do == SetPeers {
			return w.judgePeers(v, a)
		}
		if a.Do == AddLearner {
			return ""
		}
		quorum := w.survivable(false)
		isOrdered := slices.ContainsFunc(w.nodes, func(n Node) bool { return n.ID == a.Owner && n.Leaving })
		isRemoved := a.Owner != witnessID && !slices.ContainsFunc(w.nodes, func(n Node) bool { return n.ID == a.Owner })
		if _, ok := quorum[""]; !ok && !going {
			return "the action cost the majority: " + w.log[len(w.log)-1]
		}
		if isOrdered || isRemoved || going && a.Owner == witnessID {
			return ""
		}
		for set := range before {
			if after[set] {
				continue
			}
			if a.Do != Promote || !allUp {
				return fmt.Sprintf("{%s} could fail before, not after: %s", set, w.log[len(w.log)-1])
			}
			// Growth: sets of nodes that voted before, and each machine alone, stay.
			if set == "w" && wVotes > 0 {
				return fmt.Sprintf("the witness could fail before, not after: %s", w.log[len(w.log)-1])
			}
			if !strings.Contains(set, "w") && !strings.Contains(set, string(rune('a'+a.Owner[0]-1))) && len(before) > 1 && w.fewer(before, after) {
				return fmt.Sprintf("fewer nodes may fail after a promotion: %s", w.log[len(w.log)-1])
			}
		}
		if a.Do == Promote && a.Slot != 0 {
			// Half a pair is not left behind: the other one must be ready to follow.
			ready := 0
			for _, m := range w.members {
				if m.Slot != 0 && (!m.Learner || m.CaughtUp) {
					ready++
				}
			}
			if n := w.nodeVoters(); ready != WitnessVotes(n) {
				return fmt.Sprintf("one vote of a pair came alone: %s", w.log[len(w.log)-1])
			}
		}
		return ""
	}
}

// judgePeers: a member is moved only while it answers, to where it listens, and
// not away from every address that the others know.
func (w *world) judgePeers(v View, a Action) string {
	for _, m := range v.Members {
		if m.ID != a.Member {
			continue
		}
		kept := slices.ContainsFunc(a.Peers, func(u string) bool { return slices.Contains(m.Peers, u) })
		if m.Answers && kept && slices.Equal(a.Peers, w.reach[m.Owner]) {
			return ""
		}
	}
	return fmt.Sprintf("a member is lost to the others at %v: %s", a.Peers, w.log[len(w.log)-1])
}

// fewer compares how many nodes, whichever, may fail.
func (w *world) fewer(before, after map[string]bool) bool {
	return w.anyNodes(after) < w.anyNodes(before)
}

func (w *world) anyNodes(ok map[string]bool) int {
	living := 0
	for _, n := range w.nodes {
		if w.alive[n.ID] {
			living++
		}
	}
	for k := 1; k <= living; k++ {
		for _, set := range w.sets(false) {
			if len(set) == k && !ok[set] {
				return k - 1
			}
		}
	}
	return living
}

func (w *world) nodeVoters() int {
	n := 0
	for _, m := range w.members {
		if m.Slot == 0 && !m.Learner {
			n++
		}
	}
	return n
}

func (w *world) votesOf(id ids.ID) int {
	n := 0
	for _, m := range w.members {
		if m.Owner == id && !m.Learner {
			n++
		}
	}
	return n
}

// sets lists the sets of living machines, as names: "", "a", "ab", "abw".
func (w *world) sets(witness bool) []string {
	out := []string{""}
	add := func(name string) {
		for _, s := range slices.Clone(out) {
			out = append(out, s+name)
		}
	}
	for _, n := range w.nodes {
		if w.alive[n.ID] {
			add(n.Name)
		}
	}
	if witness && w.witness != nil && w.alive[witnessID] {
		add("w")
	}
	return out
}

// survivable lists the sets whose loss leaves a majority. going: the witness is
// counted as gone already.
func (w *world) survivable(going bool) map[string]bool {
	out := map[string]bool{}
	for _, set := range w.sets(true) {
		yes, all, node := 0, 0, false
		for _, m := range w.members {
			if m.Learner {
				continue
			}
			all++
			name := string(rune('a' + m.Owner[0] - 1))
			if m.Slot != 0 {
				name = "w"
			}
			if !w.alive[m.Owner] || strings.Contains(set, name) || going && name == "w" {
				continue
			}
			yes++
			node = node || name != "w"
		}
		if node && 2*yes > all {
			out[set] = true
		}
	}
	return out
}

// chaos plays random failures and returns at the end with everything up for
// long enough.
func chaos(seed uint64, fail func(string)) *world {
	rng := rand.New(rand.NewPCG(seed, 17))
	w := newWorld(1+rng.IntN(6), fail)
	if rng.IntN(4) > 0 {
		w.addWitness()
	}
	for range 40 {
		w.event(rng)
		d := time.Duration(rng.IntN(4)) * time.Second
		switch rng.IntN(6) {
		case 0:
			d = time.Duration(rng.IntN(100)) * time.Second
		case 1:
			d = time.Duration(rng.IntN(12)) * time.Minute
		}
		w.run(d)
	}
	for id := range w.alive {
		w.alive[id] = true
	}
	if w.witness != nil {
		w.witness.Leaving = false
	}
	w.slow = map[uint64]bool{}
	for _, n := range w.nodes {
		w.reach[n.ID] = []string{"cluster", "storage"}
	}
	w.run(15 * time.Minute)
	return w
}

// event is one thing that happens. At most so many machines are away that what
// was decided can be found again; that a majority gets lost is part of it.
func (w *world) event(rng *rand.Rand) {
	machine := func() ids.ID {
		i := rng.IntN(len(w.nodes) + 1)
		if i == len(w.nodes) {
			return witnessID
		}
		return w.nodes[i].ID
	}
	switch rng.IntN(10) {
	case 9:
		nets := [][]string{nil, {"cluster"}, {"cluster", "storage"}, {"storage"}, {"storage", "cluster"}}
		w.reach[machine()] = nets[rng.IntN(len(nets))]
	case 0, 1, 2:
		w.alive[machine()] = false
	case 3, 4, 5:
		w.alive[machine()] = true
	case 6:
		if w.witness != nil {
			w.witness.Leaving = !w.witness.Leaving
		}
	case 7:
		if len(w.members) > 0 {
			w.slow[w.members[rng.IntN(len(w.members))].ID] = rng.IntN(2) == 0
		}
	case 8:
		w.personRemoves(rng)
	}
}

// personRemoves begins the removal of a node, or finishes one whose member is
// out.
func (w *world) personRemoves(rng *rand.Rand) {
	for i, n := range w.nodes {
		if !n.Leaving {
			continue
		}
		if w.votesOf(n.ID) == 0 && !slices.ContainsFunc(w.members, func(m Member) bool { return m.Owner == n.ID }) {
			w.nodes = slices.Delete(w.nodes, i, i+1)
			delete(w.alive, n.ID)
		}
		return
	}
	if len(w.nodes) > 2 {
		w.nodes[rng.IntN(len(w.nodes))].Leaving = true
	}
}

func TestChaos(t *testing.T) {
	worlds := 300
	if testing.Short() {
		worlds = 100
	}
	if n, err := strconv.Atoi(os.Getenv("ROSEAU_QUORUM_WORLDS")); err == nil {
		worlds = n
	}
	checked := 0
	for seed := range uint64(worlds) {
		var bad string
		w := chaos(seed, func(s string) {
			if bad == "" {
				bad = s
			}
		})
		if bad == "" {
			bad = w.unfinished()
		}
		checked += w.checked
		if bad != "" {
			t.Fatalf("seed %d: %s\n%s", seed, bad, strings.Join(w.log, "\n"))
		}
	}
	if checked < worlds {
		t.Errorf("only %d actions were checked", checked)
	}
	t.Logf("%d worlds, %d actions checked", worlds, checked)
}

// unfinished says what is not as it should be when everything was up for long.
func (w *world) unfinished() string {
	staying := 0
	for _, n := range w.nodes {
		if !n.Leaving {
			staying++
		}
	}
	for _, m := range w.members {
		if m.Slot == 0 && !sameURLs(m.Peers, []string{"cluster", "storage"}) {
			return fmt.Sprintf("it ends as %q: a member is known at %v only", w.shape(), m.Peers)
		}
	}
	n, votes := w.nodeVoters(), w.votesOf(witnessID)
	want := 0
	if w.witness != nil {
		want = WitnessVotes(n)
	}
	if n != Voters(staying) || votes != want || len(w.members) != n+votes {
		return fmt.Sprintf("it ends as %q: %d voters, want %d; %d votes of the witness, want %d", w.shape(), n, Voters(staying), votes, want)
	}
	return ""
}

// TestMutants breaks one rule at a time: the checks must notice.
func TestMutants(t *testing.T) {
	defer func() { mutant = "" }()
	for _, m := range []string{"permit all", "newcomer first", "one vote at a time", "half stays", "dead learner stays", "unsteady", "new address only"} {
		mutant = m
		killed := ""
		for _, s := range scenarios {
			if play(t, s.script, func(string) {}) != strings.TrimSpace(s.want) {
				killed = s.says
				break
			}
		}
		for seed := uint64(0); seed < 300 && killed == ""; seed++ {
			w := chaos(seed, func(s string) {
				if killed == "" {
					killed = fmt.Sprintf("seed %d: %s", seed, s)
				}
			})
			if bad := w.unfinished(); bad != "" && killed == "" {
				killed = fmt.Sprintf("seed %d: %s", seed, bad)
			}
		}
		if killed == "" {
			t.Errorf("mutant %q lives", m)
		}
		t.Logf("mutant %q: %s", m, killed)
	}
}
