package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
	"roseau/internal/svc/voters"
)

// Limits.
const (
	DefaultTokenLife = time.Hour
	maxTokenLife     = 7 * 24 * time.Hour
	sweepEvery       = 30 * time.Second
	sweepGrace       = 10 * time.Minute // after the expiry of a token whose join broke
)

// Keys of the records.
const (
	clusterKey    = "/s/cluster"
	removedPrefix = "/s/removed/"
)

// Removed is /s/removed/<node>: proof that the node was taken out on purpose.
type Removed struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"`
}

// RemovedKey is where it stands that a node was removed.
func RemovedKey(node ids.ID) string { return removedPrefix + node.String() }

// Server is the cluster's side: tokens, joins, status, removal.
type Server struct {
	Config   nodeconf.Config
	Identity *pki.Identity
	Store    *store.Store
	Sessions *store.Sessions
	Tasks    *task.Runner
	Events   *event.Log
	Clock    clock.Clock
	Log      *slog.Logger
	Leading  func() bool // this node's etcd member leads
	Reader   voters.Reader
	Probe    *etcd.Probe
	Proxy    *api.Proxy // to other nodes

	join sync.Mutex // one join at a time on this node
}

// ReadCluster returns the cluster's record.
func ReadCluster(ctx context.Context, s *store.Store) (*model.Cluster, error) {
	r, err := store.GetRecord[model.Cluster](ctx, s, clusterKey)
	if err != nil {
		return nil, err
	}
	if r.Revision == 0 {
		return nil, errs.New(errs.Unavailable, "read cluster: it is still being made").WithHint("try again in a few seconds")
	}
	return &r.Value, nil
}

// CreateToken makes a token for one join. The text is returned once and kept
// nowhere.
// With witness it lets a witness join, and no node.
func (m *Server) CreateToken(ctx context.Context, life time.Duration, witness bool) (string, *model.Token, error) {
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < time.Minute || life > maxTokenLife {
		return "", nil, errs.New(errs.Invalid, "create token: life of %s: want 1m to %s", life, maxTokenLife)
	}
	addrs, err := m.joinAddresses(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("create token: %w", err)
	}
	secret := newSecret()
	id := ids.New()
	t := &model.Token{Meta: model.Meta{ID: id, Name: "join-" + id.Short()}, SecretSHA256: hashSecret(secret), Witness: witness, Expires: m.Clock.Wall().UTC().Add(life)}
	if t, err = store.Create(ctx, m.Store, t); err != nil {
		return "", nil, err
	}
	inv := Invitation{Cluster: m.Config.Cluster, Fingerprint: m.Identity.Fingerprint(), Addresses: addrs, Token: t.ID, Secret: secret, Witness: witness}
	return inv.String(), t, nil
}

// joinAddresses lists the API addresses of the voters, this node's first if it
// is one: only voters hold the authority's key.
func (m *Server) joinAddresses(ctx context.Context) ([]string, error) {
	nodes, err := store.List[model.Node](ctx, m.Store)
	if err != nil {
		return nil, err
	}
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return nil, err
	}
	votes := map[ids.ID]bool{}
	for _, mem := range members {
		votes[mem.Node] = votes[mem.Node] || !mem.Learner
	}
	slices.SortStableFunc(nodes, func(a, b *model.Node) int {
		return boolRank(b.ID == m.Config.Node) - boolRank(a.ID == m.Config.Node)
	})
	var out []string
	for _, n := range nodes {
		if votes[n.ID] {
			for _, a := range n.Spec.Addresses[model.RoleCluster] {
				out = append(out, net.JoinHostPort(a, strconv.Itoa(paths.PortAPI)))
			}
		}
	}
	return out, nil
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// JoinRequest is what a machine sends that wants to join.
type JoinRequest struct {
	Token  ids.ID `json:"token"`
	Secret string `json:"secret"`
	Node   ids.ID `json:"node"` // or the witness's id
	CSR    string `json:"csr"`  // PEM
	// WitnessPort is the first port of a witness; 0: a node joins.
	WitnessPort int `json:"witness_port,omitempty"`
	NodeRequest
}

// JoinAnswer is what it gets.
type JoinAnswer struct {
	Cluster     ids.ID   `json:"cluster"`
	ClusterName string   `json:"cluster_name"`
	CA          string   `json:"ca"`   // PEM
	Cert        string   `json:"cert"` // PEM
	Generation  uint32   `json:"generation"`
	Endpoints   []string `json:"endpoints"` // etcd client URLs of the voters
}

// Join is the cluster's half of a join. It may be repeated with the same token
// by the same machine until the join has ended. The machine becomes a client of
// etcd; whether it votes, the voters' manager decides when it lives.
func (m *Server) Join(ctx context.Context, req JoinRequest) (*JoinAnswer, error) {
	m.join.Lock()
	defer m.join.Unlock()
	what := "node"
	if req.WitnessPort != 0 {
		what = "witness"
	}
	fail := func(err error) (*JoinAnswer, error) { return nil, fmt.Errorf("join %s %q: %w", what, req.Name, err) }
	ca, err := pki.LoadCA(paths.PKI)
	if err != nil {
		return fail(errs.New(errs.Unavailable, "this node does not hold the authority's key: %w", err).WithHint("ask a voter"))
	}
	if err := req.check(nil); err != nil {
		return fail(err)
	}
	if req.Node.IsZero() {
		return fail(errs.New(errs.Invalid, "no %s id", what))
	}
	cluster, err := ReadCluster(ctx, m.Store)
	if err != nil {
		return fail(err)
	}
	// Everything that can be refused comes before the one transaction that admits
	// the machine: a refused join leaves nothing behind.
	sign, admit := ca.SignNode, txNode
	if req.WitnessPort != 0 {
		sign, admit = ca.SignWitness, txWitness
	}
	cert, err := sign([]byte(req.CSR), req.Node, req.ips(), m.Clock.Wall())
	if err != nil {
		return fail(err)
	}
	if err := m.admit(ctx, req, admit); err != nil {
		return fail(err)
	}
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return fail(err)
	}
	m.Log.Info(what+" is joining", "id", req.Node, "name", req.Name)
	return &JoinAnswer{Cluster: cluster.ID, ClusterName: cluster.Name, Generation: cluster.Generation, CA: string(ca.CertPEM()), Cert: string(cert), Endpoints: etcd.Endpoints(members)}, nil
}

const tokenHint = "make a new token on a node of the cluster: `roseau cluster token`"

// admit ties the token to the machine that shows it and makes its object, all in
// one transaction. Repeated by the same machine it changes nothing.
func (m *Server) admit(ctx context.Context, req JoinRequest, object func(context.Context, *store.Tx, *store.Store, JoinRequest) error) error {
	_, err := m.Store.Transact(ctx, "join", func(tx *store.Tx) error {
		if err := m.txToken(ctx, tx, req); err != nil {
			return err
		}
		if err := m.checkAddresses(ctx, req); err != nil {
			return err
		}
		return object(ctx, tx, m.Store, req)
	})
	return err
}

// txToken checks the token and adds its binding to tx.
func (m *Server) txToken(ctx context.Context, tx *store.Tx, req JoinRequest) error {
	t, err := store.GetID[model.Token](ctx, m.Store, req.Token)
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Denied, "the token is not one of this cluster, or was withdrawn").WithHint(tokenHint)
	}
	if err != nil {
		return err
	}
	if err := checkToken(t, req, m.Clock.Wall()); err != nil {
		return err
	}
	t.Node = req.Node
	return store.TxPut[model.Token](tx, t)
}

// checkToken says whether the machine of req may join with t now.
func checkToken(t *model.Token, req JoinRequest, now time.Time) error {
	switch {
	case !secretMatches(req.Secret, t.SecretSHA256):
		return errs.New(errs.Denied, "the token's secret is wrong").WithHint(tokenHint)
	case t.Witness && req.WitnessPort == 0:
		return errs.New(errs.Denied, "the token is for a witness").WithHint("use it with `roseau witness run`; for a node: `roseau cluster token`")
	case !t.Witness && req.WitnessPort != 0:
		return errs.New(errs.Denied, "the token is for a node").WithHint("use it with `roseau cluster join`; for a witness: `roseau witness add`")
	case !t.Used.IsZero():
		return errs.New(errs.Denied, "the token was used already, at %s", t.Used.Format(time.RFC3339)).WithHint(tokenHint)
	case !t.Node.IsZero() && t.Node != req.Node:
		return errs.New(errs.Denied, "the token is being used by another machine (node id %s)", t.Node).WithHint(tokenHint)
	case now.After(t.Expires):
		return errs.New(errs.Denied, "the token expired at %s", t.Expires.Format(time.RFC3339)).WithHint(tokenHint)
	}
	return nil
}

// checkAddresses refuses an address that another node has.
func (m *Server) checkAddresses(ctx context.Context, req JoinRequest) error {
	nodes, err := store.List[model.Node](ctx, m.Store)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.ID == req.Node {
			continue
		}
		for _, a := range nodeconf.AllAddresses(n.Spec.Addresses) {
			if slices.Contains(nodeconf.AllAddresses(req.Addresses), a) {
				return errs.New(errs.Conflict, "address %s is node %s's", a, n.Name)
			}
		}
	}
	return nil
}

// txNode adds to tx the making of the node's object, or bringing an existing one
// of the same machine up to date.
func txNode(ctx context.Context, tx *store.Tx, s *store.Store, req JoinRequest) error {
	id := req.Node
	spec := model.NodeSpec{Addresses: req.Addresses, Uplinks: req.Uplinks}
	n, err := store.GetID[model.Node](ctx, s, id)
	if err == nil {
		spec.Voter = n.Spec.Voter
		if n.Name != req.Name {
			return errs.New(errs.Conflict, "this machine began to join as %q", n.Name).WithHint("use that name, or remove the node first: `roseau node remove %s`", n.Name)
		}
		n.Spec = spec
		return store.TxPut[model.Node](tx, n)
	}
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	if _, err := store.Get[model.Node](ctx, s, req.Name); err == nil {
		return errs.New(errs.Conflict, "the name is taken by another node").WithHint("give another one with --name")
	} else if !errors.Is(err, errs.NotFound) {
		return err
	}
	return store.TxCreate[model.Node](tx, s, &model.Node{Meta: model.Meta{ID: id, Name: req.Name}, Spec: spec})
}
