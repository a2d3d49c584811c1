package member

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
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
}

// MemberState is one etcd member in Status.
type MemberState struct {
	ID      string `json:"id"`
	Node    string `json:"node"`
	Answers bool   `json:"answers"`
	Leader  bool   `json:"leader"`
	Learner bool   `json:"learner"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Quorum says what etcd can stand, in numbers and in words.
type Quorum struct {
	Voters  int    `json:"voters"`
	Answer  int    `json:"answer" doc:"voters that answer"`
	Needed  int    `json:"needed"`
	Leader  string `json:"leader,omitempty"`
	Healthy bool   `json:"healthy" doc:"changes are possible"`
	Text    string `json:"text" doc:"what can fail next without loss of service"`
}

// Status reports on the cluster; it works, with less to say, without a quorum.
// beatAge tells how long ago the last beat of a node came; nil or a negative
// age: unknown.
func (m *Server) Status(ctx context.Context, beatAge func(ids.ID) time.Duration) (*Status, error) {
	st := &Status{Configured: true, Node: m.Config.Name}
	relaxed := m.Store.Relaxed()
	members, leader := m.members(ctx)
	nodes, err := store.List[model.Node](ctx, relaxed)
	if err != nil {
		nodes = nil // the quorum's text says why
	}
	names := map[string]string{}
	for _, n := range nodes {
		names[n.ID.String()] = n.Name
		s := NodeState{Name: n.Name, ID: n.ID, Alive: m.Sessions.Alive(n.ID), Voter: n.Spec.Voter, Address: first(n.Spec.Addresses[model.RoleCluster])}
		if beatAge != nil {
			if age := beatAge(n.ID); age >= 0 {
				s.Beat = age.Round(10 * time.Millisecond).String()
			}
		}
		st.Nodes = append(st.Nodes, s)
	}
	for i := range members {
		if n, ok := names[members[i].Node]; ok {
			members[i].Node = n
		}
	}
	slices.SortFunc(members, func(a, b MemberState) int { return strings.Compare(a.Node, b.Node) })
	st.Members = members
	st.Quorum = quorumOf(members, leader)
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

// members lists the members and asks each how it is.
func (m *Server) members(ctx context.Context) (out []MemberState, leader bool) {
	cli := m.Store.Client()
	lctx, cancel := context.WithTimeout(ctx, listAsk)
	resp, err := cli.MemberList(lctx, clientv3.WithSerializable())
	cancel()
	if err != nil {
		return nil, false
	}
	var wg sync.WaitGroup
	out = make([]MemberState, len(resp.Members))
	for i, mem := range resp.Members {
		out[i] = MemberState{ID: fmt.Sprintf("%x", mem.ID), Node: mem.Name, Learner: mem.IsLearner}
		if mem.Name == "" {
			out[i].Node, out[i].Error = "(joining)", "has not started yet"
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			actx, cancel := context.WithTimeout(ctx, memberAsk)
			defer cancel()
			s, err := cli.Status(actx, first(mem.ClientURLs))
			if err != nil {
				out[i].Error = "no answer"
				return
			}
			out[i].Answers, out[i].Version = true, s.Version
			out[i].Leader = s.Leader != 0 && s.Leader == mem.ID
		}()
	}
	wg.Wait()
	for _, o := range out {
		leader = leader || o.Leader
	}
	return out, leader
}

// quorumOf puts the members into words.
func quorumOf(members []MemberState, leader bool) Quorum {
	var q Quorum
	var away []string
	for _, m := range members {
		if m.Learner {
			continue
		}
		q.Voters++
		if m.Answers {
			q.Answer++
		} else {
			away = append(away, m.Node)
		}
		if m.Leader {
			q.Leader = m.Node
		}
	}
	q.Needed = q.Voters/2 + 1
	q.Healthy = q.Voters > 0 && q.Answer >= q.Needed && leader
	spare := q.Answer - q.Needed
	gone := ""
	if len(away) > 0 {
		gone = fmt.Sprintf(" (no answer from %s)", strings.Join(away, ", "))
	}
	switch {
	case q.Voters == 0:
		q.Text = "no etcd member answers: changes are refused; running VMs are not affected"
	case q.Answer < q.Needed:
		q.Text = fmt.Sprintf("no quorum: %d of %d voters answer%s, %d needed: changes are refused; running VMs are not affected", q.Answer, q.Voters, gone, q.Needed)
	case !leader:
		q.Text = fmt.Sprintf("%d of %d voters answer%s; a leader is being elected: changes wait", q.Answer, q.Voters, gone)
	case q.Voters == 1:
		q.Text = "1 voter: if this node fails, no changes are possible until it is back; join more nodes"
	case spare == 0:
		q.Text = fmt.Sprintf("%d of %d voters answer%s: if one more fails, changes are refused until it is back; running VMs go on", q.Answer, q.Voters, gone)
	default:
		q.Text = fmt.Sprintf("%d of %d voters answer%s: any %d of them can fail next without loss of service", q.Answer, q.Voters, gone, spare)
	}
	return q
}
