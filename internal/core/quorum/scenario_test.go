package quorum

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// scenario is one sentence, a script of events, and every change that must come
// of it with the second at which it does.
type scenario struct {
	says, script, want string
}

var scenarios = []scenario{
	{"the first three nodes vote, a fourth does not", "nodes 4; run 5s", `
0.0 a -> a b?: node b is to vote: 1 of 3 voters
1.0 a b? -> a b: node b votes now
1.0 a b -> a b c?: node c is to vote: 2 of 3 voters
2.0 a b c? -> a b c: node c votes now`},
	{"five living nodes have five voters", "nodes 3; run 5s; join; run 1m; join; run 3s", `
0.0 a -> a b?: node b is to vote: 1 of 3 voters
1.0 a b? -> a b: node b votes now
1.0 a b -> a b c?: node c is to vote: 2 of 3 voters
2.0 a b c? -> a b c: node c votes now
65.0 a b c -> a b c d?: node d is to vote: 3 of 5 voters
66.0 a b c d? -> a b c d: node d votes now
66.0 a b c d -> a b c d e?: node e is to vote: 4 of 5 voters
67.0 a b c d e? -> a b c d e: node e votes now`},
	{"a witness brings two votes to three nodes, both or none", "voters 3; witness; run 10s", `
3.0 a b c -> a b c w0?1: witness w is steady: it learns before it votes
3.0 a b c w0?1 -> a b c w0?2: witness w is steady: it learns before it votes
4.0 a b c w0?2 -> a b c w1?1: witness w votes now
4.0 a b c w1?1 -> a b c w2: witness w votes now`},
	{"one vote to two nodes, none to one", "voters 2; witness; run 10s; leave b; run 5s", `
3.0 a b -> a b w0?1: witness w is steady: it learns before it votes
4.0 a b w0?1 -> a b w1: witness w votes now
10.0 a b w1 -> a w1: node b is being removed
10.0 a w1 -> a: 1 voters need 0 votes of witness w`},
	{"its votes go 10 s after it went, and return after 60 steady seconds with all voters up",
		"voters 3; witness; run 10s; quiet; down w; run 30s; up w; run 30s; down c; run 1s; up c; run 70s", `
20.0 a b c w2- -> a b c w1-: witness w is silent for 10s: its votes go until it is back and steady
20.0 a b c w1- -> a b c: witness w is silent for 10s: its votes go until it is back and steady
131.0 a b c -> a b c w0?1: witness w is steady: it learns before it votes
131.0 a b c w0?1 -> a b c w0?2: witness w is steady: it learns before it votes
132.0 a b c w0?2 -> a b c w1?1: witness w votes now
132.0 a b c w1?1 -> a b c w2: witness w votes now`},
	{"an orderly stop takes them at once", "voters 3; witness; run 10s; quiet; stop w; run 1s", `
10.0 a b c w2 -> a b c w1: witness w leaves: its votes go first
10.0 a b c w1 -> a b c: witness w leaves: its votes go first`},
	{"an orderly stop with one node away still leaves two of three", "voters 3; witness; run 10s; quiet; down c; run 5s; stop w; run 1s", `
15.0 a b c- w2 -> a b c- w1: witness w leaves: its votes go first
15.0 a b c- w1 -> a b c-: witness w leaves: its votes go first`},
	{"but votes that hold the majority stay", "voters 3; witness; run 10s; quiet; down b; down c; run 5s; stop w; run 1m", ``},
	{"any two nodes may fail one after the other; nothing is changed by it", "voters 3; witness; run 10s; quiet; down c; run 1m; down b; run 20m", ``},
	{"a dead voter is replaced after five minutes: learner first, the dead one out, the new one in",
		"voters 3; join; run 1s; quiet; down b; run 6m", `
301.0 a b- c -> a b- c d?: node d is to vote in place of b, which is dead
302.0 a b- c d? -> a c d?: voter b is dead: node d takes its place
302.0 a c d? -> a c d: node d votes now`},
	{"a voter that returns in time stays one", "voters 3; join; run 1s; quiet; down b; run 4m; up b; run 10m", ``},
	{"one that returns while its successor learns stays one, too", "voters 3; join; run 1s; quiet; down b; slow; run 301s; up b; run 2m", `
301.0 a b- c -> a b- c d?: node d is to vote in place of b, which is dead
302.0 a b c d? -> a b c: 3 voters are enough: node d need not vote`},
	{"a dead voter without a successor is not dropped", "voters 3; run 1s; quiet; down b; run 1h", ``},
	{"replaced under a witness, whose votes wait for the end of the change", "voters 3; witness; run 10s; join; quiet; down c; run 6m", `
310.0 a b c- w2 -> a b c- d? w2: node d is to vote in place of c, which is dead
311.0 a b c- d? w2 -> a b d? w2: voter c is dead: node d takes its place
311.0 a b d? w2 -> a b d w2: node d votes now`},
	{"a learner whose node goes silent is removed after 10 s", "voters 3; join; run 1s; quiet; slow; down b; run 301s; down d; run 20s", `
301.0 a b- c -> a b- c d?: node d is to vote in place of b, which is dead
312.0 a b- c d-? -> a b- c: node d went silent before it voted`},
	{"a learner that is never ready is removed after 60 s, and tried again", "voters 2; join; quiet; slow; run 61s", `
0.0 a b -> a b c?: node c is to vote: 2 of 3 voters
60.0 a b c? -> a b: node c was not ready to vote within 1m0s
60.0 a b -> a b c?: node c is to vote: 2 of 3 voters`},
	{"a third node beside two and a witness: the second vote follows", "voters 2; witness; run 10s; quiet; join; run 5s", `
10.0 a b w1 -> a b c? w1: node c is to vote: 2 of 3 voters
11.0 a b c? w1 -> a b c w1: node c votes now
11.0 a b c w1 -> a b c w1?1: witness w is steady: it learns before it votes
12.0 a b c w1?1 -> a b c w2: witness w votes now`},
	{"if it cannot follow within 30 s, the first goes", "voters 2; witness; run 10s; quiet; join; run 1500ms; slow; run 40s", `
10.0 a b w1 -> a b c? w1: node c is to vote: 2 of 3 voters
11.0 a b c? w1 -> a b c w1: node c votes now
11.0 a b c w1 -> a b c w1?1: witness w is steady: it learns before it votes
41.0 a b c w1?1 -> a b c w0?1: the second vote of witness w does not come: the first goes
41.0 a b c w0?1 -> a b c: not every voter is up, or witness w is not steady: its votes wait`},
	{"a node that dies between the two promotions: the second is made all the same", "voters 2; witness; run 10s; join; run 1500ms; quiet; down b; run 5s", `
12.0 a b- c w1?1 -> a b- c w2: witness w votes now`},
	{"the removal of a voter puts its successor in first", "voters 3; join; run 1s; quiet; leave b; run 3s", `
1.0 a b c -> a b c d?: node d is to vote: 2 of 3 voters
2.0 a b c d? -> a b c d: node d votes now
2.0 a b c d -> a c d: node b is being removed`},
	{"of a dead one, the dead one goes first", "voters 3; join; run 1s; quiet; down b; leave b; run 3s", `
1.0 a b- c -> a b- c d?: node d is to vote in place of b, which is dead
2.0 a b- c d? -> a c d?: voter b is dead: node d takes its place
2.0 a c d? -> a c d: node d votes now`},
	{"three voters become five without losing a witness too early", "voters 3; witness; run 10s; quiet; join; join; run 5s", `
10.0 a b c w2 -> a b c d? w2: node d is to vote: 3 of 5 voters
11.0 a b c d? w2 -> a b c d w2: node d votes now
11.0 a b c d w2 -> a b c d w1: 4 voters need 0 votes of witness w
11.0 a b c d w1 -> a b c d e? w1: node e is to vote: 4 of 5 voters
12.0 a b c d e? w1 -> a b c d e w1: node e votes now
12.0 a b c d e w1 -> a b c d e: 5 voters need 0 votes of witness w`},
	{"members that listen at a second address are told to the others, one a step and once", "voters 3; reach a cluster,storage; reach b cluster,storage; reach c cluster; run 5s; reach c storage,cluster; run 5s", `
0.0 a b c -> a b c: a is reached at cluster and storage
0.0 a b c -> a b c: b is reached at cluster and storage
5.0 a b c -> a b c: c is reached at storage and cluster`},
	{"one that is away, when it is back", "voters 3; down a; reach a cluster,storage; run 1m; up a; run 5s", `
60.0 a b c -> a b c: a is reached at cluster and storage`},
	{"one that lost an address keeps the other", "voters 3; reach a cluster,storage; run 5s; quiet; reach a storage; run 5s", `
5.0 a b c -> a b c: a is reached at storage`},
	{"never all addresses at once", "voters 3; reach a storage; run 1m", ``},
	{"not before a learner votes", "voters 2; reach a cluster,storage; join; reach c cluster,storage; run 3s", `
0.0 a b -> a b c?: node c is to vote: 2 of 3 voters
1.0 a b c? -> a b c: node c votes now
1.0 a b c -> a b c: a is reached at cluster and storage
1.0 a b c -> a b c: c is reached at cluster and storage`},
	{"what a removed machine left is cleared", "voters 3; run 1s; quiet; gone c; run 1s", `
1.0 a b c -> a b: its machine is no part of the cluster any more`},
}

// play runs a script and returns the timed log.
func play(t *testing.T, script string, fail func(string)) string {
	w := newWorld(0, fail)
	return playOn(t, w, script)
}

func playOn(t *testing.T, w *world, script string) string {
	fail := w.fail
	begin := w.now
	quiet, stamp := 0, []string{}
	note := func() {
		for len(stamp) < len(w.log) {
			stamp = append(stamp, fmt.Sprintf("%.1f", w.now.Sub(begin).Seconds()))
		}
	}
	id := func(name string) int { return int(name[0] - 'a') }
	slow := false
	for line := range strings.SplitSeq(script, ";") {
		cmd, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch cmd {
		case "nodes":
			w2 := newWorld(int(arg[0]-'0'), fail)
			w2.now = w.now
			*w = *w2
		case "voters":
			w2 := newWorld(int(arg[0]-'0'), fail)
			w2.now, w2.members = w.now, nil
			for _, n := range w2.nodes {
				w2.members = append(w2.members, Member{ID: w2.next(), Owner: n.ID, Started: true, CaughtUp: true, Peers: []string{"cluster"}})
			}
			*w = *w2
		case "join":
			w.join(len(w.nodes))
		case "witness":
			w.addWitness()
		case "down", "up":
			if arg == "w" {
				w.alive[witnessID] = cmd == "up"
			} else {
				w.alive[nodeID(id(arg))] = cmd == "up"
			}
		case "leave":
			w.nodes[id(arg)].Leaving = true
		case "gone":
			w.nodes = slices.Delete(w.nodes, id(arg), id(arg)+1)
		case "stop":
			w.witness.Leaving = true
		case "reach": // a node's member says where it listens
			name, nets, _ := strings.Cut(arg, " ")
			w.reach[nodeID(id(name))] = strings.Split(nets, ",")
		case "slow": // no learner catches up from now on
			slow = true
		case "quiet": // what came before is not of interest
			note()
			quiet = len(w.log)
		case "run":
			d, err := time.ParseDuration(arg)
			if err != nil {
				t.Fatal(err)
			}
			for end := w.now.Add(d); w.now < end; {
				for i := range w.members {
					if m := w.members[i]; slow && m.Learner {
						w.slow[m.ID] = true
					}
				}
				w.run(500 * time.Millisecond)
				w.now -= 1 // stamps show when the step was made
				for len(stamp) < len(w.log) {
					stamp = append(stamp, fmt.Sprintf("%.1f", (w.now+1).Sub(begin).Seconds()-0.5))
				}
				w.now++
			}
		default:
			t.Fatalf("script: %q", cmd)
		}
	}
	var out []string
	for i := quiet; i < len(w.log); i++ {
		out = append(out, stamp[i]+" "+w.log[i])
	}
	return strings.Join(out, "\n")
}

func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		got := play(t, s.script, func(bad string) { t.Errorf("%s: %s", s.says, bad) })
		if want := strings.TrimSpace(s.want); got != want {
			t.Errorf("%s\n got:\n%s\nwant:\n%s", s.says, got, want)
		}
	}
}

// looks has what Look says in words: - no answer, ? learns.
var looks = []struct{ says, script, want string }{
	{"one", "voters 1", "a votes alone: if it fails, no changes are possible until it is back; join more nodes."},
	{"two", "voters 2", "If a or b fails, changes and restarts wait until it is back; running VMs go on. With a witness any 1 could (`roseau witness add`)."},
	{"two and a witness", "voters 2; witness; run 10s", "Any 1 of a and b can fail next without loss of service. So can witness w, but not the witness and a node together."},
	{"one of two left with the witness", "voters 2; witness; run 10s; down b", "a is the last node that votes (no answer from b): if it fails, changes and restarts wait until a voter is back. Witness w cannot fail: its votes are needed."},
	{"three", "voters 3", "Any 1 of a, b and c can fail next without loss of service. With a witness any 2 could (`roseau witness add`)."},
	{"three, one away", "voters 3; down c", "If a or b fails (no answer from c), changes and restarts wait until it is back; running VMs go on. With a witness any 1 could (`roseau witness add`)."},
	{"three and a witness", "voters 3; witness; run 10s", "Any 2 of a, b and c can fail next, at once or one after the other, without loss of service. So can witness w, but not the witness and a node together."},
	{"its first seconds", "voters 3; witness; run 1s", "Any 1 of a, b and c can fail next without loss of service. Witness w has no vote yet: it gets one when all voters are up and steady."},
	{"three and a witness, one away", "voters 3; witness; run 10s; down c", "Any 1 of a and b can fail next without loss of service (no answer from c). Witness w cannot fail: its votes are needed."},
	{"three and a witness, two away", "voters 3; witness; run 10s; down b; down c", "a is the last node that votes (no answer from b and c): if it fails, changes and restarts wait until a voter is back. Witness w cannot fail: its votes are needed."},
	{"the witness just lost", "voters 3; witness; run 10s; down w", "If a, b or c fails (no answer from witness w), changes and restarts wait until it is back; running VMs go on. Witness w does not answer: its votes go after 10 s."},
	{"the witness long lost", "voters 3; witness; run 10s; down w; run 11s", "Any 1 of a, b and c can fail next without loss of service. Witness w is away and has no vote."},
	{"nobody decides", "voters 3; down a; down b", "No quorum: 1 of 3 votes answer (no answer from a and b), 2 needed: changes are refused; running VMs are not affected."},
	{"five", "nodes 5; run 10s", "Any 2 of a, b, c, d and e can fail next, at once or one after the other, without loss of service."},
	{"five need no witness", "nodes 5; run 10s; witness; run 10s", "Any 2 of a, b, c, d and e can fail next, at once or one after the other, without loss of service. Witness w has no vote: 5 voters need none."},
	{"one learns", "voters 2; join; slow; run 1s", "If a or b fails, changes and restarts wait until it is back; running VMs go on. With a witness any 1 could (`roseau witness add`). c is learning and will vote soon."},
}

func TestLook(t *testing.T) {
	for _, s := range looks {
		w := newWorld(0, func(bad string) { t.Error(bad) })
		playOn(t, w, s.script)
		if got := Look(w.view()).Text; got != s.want {
			t.Errorf("%s:\n got %s\nwant %s", s.says, got, s.want)
		}
	}
	w := newWorld(1, func(string) {})
	v := w.view()
	v.Leader = false
	if got := Look(v).Text; !strings.Contains(got, "a leader is being elected") {
		t.Errorf("without a leader: %s", got)
	}
	if got := Look(View{}).Text; !strings.Contains(got, "No voter answers") {
		t.Errorf("without anybody: %s", got)
	}
}
