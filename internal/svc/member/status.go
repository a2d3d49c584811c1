package member

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/quorum"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/voters"
)

const (
	memberAsk = 1 * time.Second // for the answer of each member
	listAsk   = 2 * time.Second
)

// Status is what `cluster status` shows.
type Status struct {
	Configured bool           `json:"configured"`
	Cluster    *model.Cluster `json:"cluster,omitempty"`
	Node       string         `json:"node,omitempty" doc:"the node that answers"`
	Nodes      []NodeState    `json:"nodes,omitempty"`
	Members    []MemberState  `json:"members,omitempty"`
	Witness    *WitnessState  `json:"witness,omitempty"`
	Quorum     Quorum         `json:"quorum"`
}

// NodeState is one node in Status.
type NodeState struct {
	Name    string `json:"name"`
	ID      ids.ID `json:"id"`
	Alive   bool   `json:"alive" doc:"it has a session"`
	Voter   bool   `json:"voter"`
	Address string `json:"address"`
	Beat    string `json:"beat,omitempty" doc:"age of the last direct beat"`
	// Silent are the networks of the answering node, by role, on which no beat of
	// this node comes in.
	Silent []model.NetworkRole `json:"silent,omitempty" doc:"networks on which no beat of it reaches the node that answers"`
}

// Heard is what the answering node hears of another one.
type Heard struct {
	Age    time.Duration       // of the last beat; negative: none yet
	Silent []model.NetworkRole // networks on which none comes in, in order
}

// MemberState is one etcd member in Status.
type MemberState struct {
	ID   string `json:"id"`
	Node string `json:"node"`
	// Addresses are where the other members reach it, by etcd's list.
	Addresses []string `json:"addresses,omitempty" doc:"where the other members reach it"`
	Answers   bool     `json:"answers"`
	Leader    bool     `json:"leader"`
	Learner   bool     `json:"learner"`
	Version   string   `json:"version,omitempty"`
	Error     string   `json:"error,omitempty"`
}

// Quorum says what etcd can stand, in numbers and in words. Votes of a witness
// count.
type Quorum struct {
	Voters  int    `json:"voters" doc:"votes"`
	Answer  int    `json:"answer" doc:"votes that answer"`
	Needed  int    `json:"needed"`
	Leader  string `json:"leader,omitempty"`
	Healthy bool   `json:"healthy" doc:"changes are possible"`
	Nodes   int    `json:"nodes" doc:"how many nodes, whichever, can fail next without loss of service; -1: no majority"`
	Text    string `json:"text" doc:"what can fail next without loss of service"`
}

// WitnessState is the witness in Status.
type WitnessState struct {
	Name    string `json:"name"`
	ID      ids.ID `json:"id"`
	Present bool   `json:"present" doc:"it has a session"`
	Address string `json:"address"`
	Port    int    `json:"port"`
	Votes   int    `json:"votes"`
	Starts  uint64 `json:"starts" doc:"how often it has started"`
	Leaving bool   `json:"leaving,omitempty"`
	Version string `json:"version,omitempty"`
}

// Status reports on the cluster; it works, with less to say, without a quorum.
// heard tells of the beats of a node; nil: unknown.
func (m *Server) Status(ctx context.Context, heard func(ids.ID) Heard) (*Status, error) {
	st := &Status{Configured: true, Node: m.Config.Name}
	relaxed := m.Store.Relaxed()
	v, members, err := m.look(ctx, relaxed)
	if err != nil {
		m.Log.Debug("list etcd members", "err", err) // the quorum's text says it
	}
	nodes, err := store.List[model.Node](ctx, relaxed)
	if err != nil {
		nodes = nil // the same
	}
	for _, n := range nodes {
		s := NodeState{Name: n.Name, ID: n.ID, Alive: m.Sessions.Alive(n.ID), Voter: n.Spec.Voter, Address: first(n.Spec.Addresses[model.RoleCluster])}
		if heard != nil {
			if h := heard(n.ID); h.Age >= 0 {
				s.Beat, s.Silent = h.Age.Round(10*time.Millisecond).String(), h.Silent
			}
		}
		st.Nodes = append(st.Nodes, s)
	}
	st.Members = members
	st.Quorum = quorumOf(v, members)
	if st.Witness, err = m.witnessState(ctx, relaxed, v); err != nil {
		st.Witness = nil
	}
	if r, err := store.GetRecord[model.Cluster](ctx, relaxed, clusterKey); err == nil && r.Revision != 0 {
		st.Cluster = &r.Value
	} else {
		st.Cluster = &model.Cluster{ID: m.Config.Cluster, Name: m.Config.ClusterName}
	}
	return st, nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// look sees the cluster as it is now, asking every member.
func (m *Server) look(ctx context.Context, s *store.Store) (quorum.View, []MemberState, error) {
	lctx, cancel := context.WithTimeout(ctx, listAsk)
	list, err := etcd.LocalMembers(lctx, m.Store.Client())
	cancel()
	if err != nil {
		return quorum.View{}, nil, err
	}
	health := m.Probe.All(ctx, list, memberAsk)
	v, err := m.Reader.Read(ctx, s, list, health)
	if err != nil {
		// The store is away: whose the members are, their names say.
		v.Members = voters.Members(list, health, nil, nil)
	}
	out := make([]MemberState, len(list))
	for i, mem := range list {
		h, ok := health[mem.ID]
		o := MemberState{ID: fmt.Sprintf("%x", mem.ID), Node: mem.Name, Addresses: mem.PeerHosts(), Learner: mem.Learner, Answers: ok, Version: h.Version, Leader: ok && h.Leader == mem.ID}
		switch {
		case mem.Name == "":
			o.Node, o.Error = "(joining)", "has not started yet"
		case !ok:
			o.Error = "no answer"
		}
		if w := v.Witness; w != nil && v.Members[i].Owner == w.ID {
			o.Node = fmt.Sprintf("%s/%d", w.Name, v.Members[i].Slot)
		}
		for _, n := range v.Nodes {
			if n.ID == v.Members[i].Owner {
				o.Node = n.Name
			}
		}
		v.Leader = v.Leader || o.Leader
		// For people a member that runs but follows nobody answers, too.
		v.Members[i].Answers = ok
		out[i] = o
	}
	slices.SortFunc(out, func(a, b MemberState) int { return strings.Compare(a.Node, b.Node) })
	return v, out, nil
}

// View is what this node sees of the votes now, without a majority too.
func (m *Server) View(ctx context.Context) (quorum.View, error) {
	v, _, err := m.look(ctx, m.Store.Relaxed())
	return v, err
}

func quorumOf(v quorum.View, members []MemberState) Quorum {
	o := quorum.Look(v)
	q := Quorum{Voters: o.Votes, Answer: o.Answer, Needed: o.Needed, Nodes: o.Nodes, Text: o.Text}
	q.Healthy = o.Votes > 0 && o.Answer >= o.Needed && v.Leader
	for _, m := range members {
		if m.Leader {
			q.Leader = m.Node
		}
	}
	return q
}

// witnessState describes the witness; nil: there is none.
func (m *Server) witnessState(ctx context.Context, s *store.Store, v quorum.View) (*WitnessState, error) {
	w, err := voters.ReadWitness(ctx, s)
	if err != nil || w == nil {
		return nil, err
	}
	rec, err := store.GetRecord[voters.WitnessRecord](ctx, s, voters.WitnessKey(w.ID))
	if err != nil {
		return nil, err
	}
	st := &WitnessState{Name: w.Name, ID: w.ID, Present: m.Sessions.Alive(w.ID), Address: w.Spec.Address, Port: w.Spec.Port,
		Starts: rec.Value.Starts, Leaving: rec.Value.Leaving || w.Deleting, Version: w.Spec.Version}
	for _, mem := range v.Members {
		if mem.Owner == w.ID && !mem.Learner {
			st.Votes++
		}
	}
	return st, nil
}
