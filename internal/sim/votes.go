package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/quorum"
)

// votes is the world of etcd's members: nodes and a witness that live and die, and
// the production's quorum core, which changes the members one action at a time.
// After a removal or a promotion a majority must answer, else nothing can be
// changed any more (and no VM restarted).
type votes struct {
	timeline
	broken  []string
	mem     quorum.Memory
	alive   map[ids.ID]bool
	nodes   []quorum.Node
	witness *quorum.Witness
	members []quorum.Member
	next    uint64
	joined  map[uint64]clock.Instant // of a learner
}

func playVotes(opt Options) Result {
	v := &votes{timeline: newTimeline(opt), broken: opt.Mutations.Votes, alive: map[ids.ID]bool{}, joined: map[uint64]clock.Instant{}}
	v.look()
	v.follow(opt.Scenario, v.words(), func() bool { return false })
	return Result{Seed: opt.Seed, Err: v.err, Counts: v.counts, Took: time.Duration(v.now)}
}

// view is what the observer sees.
func (v *votes) view() quorum.View {
	out := quorum.View{Leader: true, Members: slices.Clone(v.members), Broken: v.broken}
	for _, n := range v.nodes {
		n.Alive = v.alive[n.ID]
		out.Nodes = append(out.Nodes, n)
	}
	if v.witness != nil {
		w := *v.witness
		w.Present = v.alive[w.ID]
		out.Witness = &w
	}
	for i := range out.Members {
		m := &out.Members[i]
		m.Answers = m.Started && v.alive[m.Owner]
	}
	return out
}

// majority reports whether a majority of the votes answers.
func (v *votes) majority() bool {
	yes, all := 0, 0
	for _, m := range v.members {
		if !m.Learner {
			all++
			if v.alive[m.Owner] {
				yes++
			}
		}
	}
	return yes >= quorum.Majority(all)
}

// look is one look of the observer, every half second.
func (v *votes) look() {
	v.after(500*time.Millisecond, v.look)
	for i := range v.members {
		m := &v.members[i]
		if v.alive[m.Owner] && v.now >= v.joined[m.ID] {
			m.Started, m.CaughtUp = true, true
		}
	}
	for range 20 {
		if !v.majority() {
			return
		}
		var a quorum.Action
		v.mem, a = quorum.Step(v.view(), v.mem, v.now)
		if a.Do == quorum.Nothing {
			return
		}
		v.tracef("%s: %s", a.Do, a.Why)
		v.note(fmt.Sprint(a.Do))
		switch a.Do {
		case quorum.AddLearner:
			v.next++
			v.members = append(v.members, quorum.Member{ID: v.next, Owner: a.Owner, Slot: a.Slot, Learner: true})
			v.joined[v.next] = v.now.Add(v.between(100*time.Millisecond, 3*time.Second))
		case quorum.Promote:
			i := slices.IndexFunc(v.members, func(m quorum.Member) bool { return m.ID == a.Member })
			v.members[i].Learner = false
			if v.members[i].Slot != 0 {
				v.witness.Voted = true
			}
		case quorum.Remove:
			v.members = slices.DeleteFunc(v.members, func(m quorum.Member) bool { return m.ID == a.Member })
		}
		if !v.majority() {
			v.failf("the majority is gone by %s: %s", a.Do, a.Why)
			return
		}
		if a.Do == quorum.Promote && v.split(a) {
			return // the next action comes with the next look
		}
	}
}

// split: now and then the machine of the observer is slow between two actions.
func (v *votes) split(a quorum.Action) bool { return a.Slot != 0 && v.chance(0.2) }

func (v *votes) words() map[string]func(a []string) error {
	find := func(name string) (ids.ID, error) {
		if name == "witness" && v.witness != nil {
			return v.witness.ID, nil
		}
		for _, n := range v.nodes {
			if n.Name == name {
				return n.ID, nil
			}
		}
		return ids.ID{}, fmt.Errorf("%q is no machine", name)
	}
	set := func(up bool) func(a []string) error {
		return func(a []string) error {
			for _, name := range a {
				id, err := find(name)
				if err != nil {
					return err
				}
				v.alive[id] = up
			}
			return nil
		}
	}
	return map[string]func(a []string) error{
		"votes": func([]string) error { return nil },
		"nodes": func(a []string) error {
			n, err := strconv.Atoi(a[0])
			for i := range n {
				id := v.newID()
				v.nodes = append(v.nodes, quorum.Node{ID: id, Name: fmt.Sprintf("n%d", i+1), Order: int64(i)})
				v.alive[id] = true
				if i == 0 {
					v.next++
					v.members = append(v.members, quorum.Member{ID: v.next, Owner: id, Started: true, CaughtUp: true})
				}
			}
			return err
		},
		"witness": func([]string) error {
			v.witness = &quorum.Witness{ID: v.newID(), Name: "w"}
			v.alive[v.witness.ID] = true
			return nil
		},
		"down": set(false),
		"up":   set(true),
		"wait": func(a []string) error {
			d, err := v.duration(a[0])
			end := v.now.Add(d)
			v.after(d, func() {})
			v.run(end, func() bool { return false })
			return err
		},
		"until": func(a []string) error { return v.votesOf(a, false) },
		"promise": func(a []string) error {
			if a[0] != "majority" {
				return v.votesOf(a, true)
			}
			if !v.majority() {
				v.failf("no majority answers: %+v", v.members)
			}
			return nil
		},
	}
}

// votesOf waits for `votes N [of the witness: W]` within a minute or two.
func (v *votes) votesOf(a []string, must bool) error {
	if len(a) != 3 || a[0] != "votes" {
		return errors.New("want votes NODES WITNESS, or majority")
	}
	nodes, err := strconv.Atoi(a[1])
	if err != nil {
		return err
	}
	of, err := strconv.Atoi(a[2])
	if err != nil {
		return err
	}
	limit := v.now.Add(3 * time.Minute)
	ok := v.run(limit, func() bool {
		n, w := 0, 0
		for _, m := range v.members {
			switch {
			case m.Learner:
			case m.Slot != 0:
				w++
			default:
				n++
			}
		}
		return n == nodes && w == of
	})
	switch {
	case ok || v.err != nil:
	case must:
		v.failf("the votes never become %d and %d: %+v", nodes, of, v.members)
	default:
		return fmt.Errorf("the votes do not become %d and %d: %+v", nodes, of, v.members)
	}
	return nil
}
