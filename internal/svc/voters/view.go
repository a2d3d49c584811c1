package voters

import (
	"context"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/quorum"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/store"
	"roseau/internal/svc/beat"
)

// WitnessRecord is /s/witness/<id>: what the witness says of itself, and what
// the cluster has to remember of it.
type WitnessRecord struct {
	// Starts and Ticks count the witness's starts, and each 10 s of its running.
	// Its own file is always a step ahead: a file that is behind was rolled back.
	Starts uint64 `json:"starts"`
	Ticks  uint64 `json:"ticks"`
	// Leaving: its votes are to go, because it stops or because its log has
	// forgotten what it had promised.
	Leaving bool `json:"leaving,omitempty"`
	Voted   bool `json:"voted,omitempty"` // it had votes before
}

// WitnessKey is where the record stands.
func WitnessKey(id ids.ID) string { return "/s/witness/" + id.String() }

// Reader sees the cluster as core/quorum needs it.
type Reader struct {
	Store    *store.Store
	Sessions *store.Sessions
	Beat     func(ids.ID) clock.Instant // when the last beat of a node came; nil: not known here
	Clock    clock.Clock
}

// Read makes a view of a list of members and of what each answered. The store
// may be relaxed: then the view is for people. Leader is left to the caller.
func (r *Reader) Read(ctx context.Context, s *store.Store, members []etcd.Member, answers map[uint64]etcd.Health) (quorum.View, error) {
	var v quorum.View
	nodes, err := store.List[model.Node](ctx, s)
	if err != nil {
		return v, err
	}
	for _, n := range nodes {
		v.Nodes = append(v.Nodes, quorum.Node{ID: n.ID, Name: n.Name, Order: n.Created.UnixNano(), Alive: r.alive(n.ID), Leaving: n.Deleting})
	}
	witness, err := ReadWitness(ctx, s)
	if err != nil {
		return v, err
	}
	if witness != nil {
		rec, err := store.GetRecord[WitnessRecord](ctx, s, WitnessKey(witness.ID))
		if err != nil {
			return v, err
		}
		v.Witness = &quorum.Witness{ID: witness.ID, Name: witness.Name, Present: r.Sessions.Alive(witness.ID),
			Leaving: rec.Value.Leaving || witness.Deleting, Voted: rec.Value.Voted}
	}
	v.Members = Members(members, answers, nodes, witness)
	return v, nil
}

// alive: a session, or a beat just now.
func (r *Reader) alive(node ids.ID) bool {
	if r.Sessions.Alive(node) {
		return true
	}
	if r.Beat == nil {
		return false
	}
	at := r.Beat(node)
	return at != 0 && r.Clock.Now().Sub(at) < beat.LostAfter
}

// ReadWitness returns the cluster's witness, nil if it has none.
func ReadWitness(ctx context.Context, s *store.Store) (*model.Witness, error) {
	ws, err := store.List[model.Witness](ctx, s)
	if err != nil || len(ws) == 0 {
		return nil, err
	}
	return ws[0], nil
}

// readyLag is how many entries a learner may be behind the leader when it is
// promoted: a moment's worth.
const readyLag = 500

// Members says whose each member is: by its name, and before it has one by its
// address.
func Members(list []etcd.Member, answers map[uint64]etcd.Health, nodes []*model.Node, witness *model.Witness) []quorum.Member {
	applied := uint64(0)
	for _, h := range answers {
		applied = max(applied, h.Applied)
	}
	var out []quorum.Member
	for _, m := range list {
		h, ok := answers[m.ID]
		q := quorum.Member{ID: m.ID, Learner: m.Learner, Started: m.Name != "", Answers: ok && h.Leader != 0}
		q.CaughtUp = q.Answers && h.Applied+readyLag >= applied && h.Applied*10 >= applied*9
		switch {
		case !m.Node.IsZero():
			q.Owner = m.Node
		case !m.Witness.IsZero():
			q.Owner, q.Slot = m.Witness, m.Slot
		default:
			q.Owner, q.Slot = ownerOf(m, nodes, witness)
		}
		q.Peers = m.PeerURLs
		if i := slices.IndexFunc(nodes, func(n *model.Node) bool { return n.ID == q.Owner }); i >= 0 {
			q.Reach = reach(m, nodes[i])
		}
		out = append(out, q)
	}
	return out
}

// reach returns the peer URLs of a node's member: at each control address of the
// node at which the member has told clients that it listens. An older build
// listens, and tells of, the cluster's only.
func reach(m etcd.Member, n *model.Node) []string {
	var out []string
	for _, a := range nodeconf.ControlAddresses(n.Spec.Addresses) {
		if slices.Contains(m.ClientURLs, etcd.ClientURL(a)) {
			out = append(out, etcd.PeerURL(a))
		}
	}
	return out
}

func ownerOf(m etcd.Member, nodes []*model.Node, witness *model.Witness) (ids.ID, int) {
	for _, n := range nodes {
		if slices.Contains(m.PeerURLs, NodePeer(n)) {
			return n.ID, 0
		}
	}
	if witness != nil {
		for slot := 1; slot <= 2; slot++ {
			if slices.Contains(m.PeerURLs, WitnessPeer(witness, slot)) {
				return witness.ID, slot
			}
		}
	}
	return ids.ID{}, 0
}

// NodePeer is the peer URL by which the list of members knows a node's seat, ""
// without an address. Further ones may stand beside it.
func NodePeer(n *model.Node) string {
	if a := n.Spec.Addresses[model.RoleCluster]; len(a) > 0 {
		return etcd.PeerURL(a[0])
	}
	return ""
}

// slotStep is between the ports of a witness's two members.
const slotStep = 10

// WitnessPorts are those of one of a witness's members; port is the first of
// its range.
func WitnessPorts(port, slot int) etcd.Ports {
	at := port + (slot-1)*slotStep
	return etcd.Ports{Client: at, Peer: at + 1, HTTP: at + 2}
}

// WitnessPeer is the peer URL of one of a witness's members.
func WitnessPeer(w *model.Witness, slot int) string {
	return etcd.URL(w.Spec.Address, WitnessPorts(w.Spec.Port, slot).Peer)
}

// askLimit is how long a member has to answer.
const askLimit = 800 * time.Millisecond
