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
)

// Limits.
const (
	DefaultTokenLife = time.Hour
	maxTokenLife     = 7 * 24 * time.Hour
	maxVoters        = 3
	sweepEvery       = 30 * time.Second
	sweepGrace       = 10 * time.Minute // after the expiry of a token whose join broke
)

// Keys of the records.
const (
	clusterKey    = "/s/cluster"
	votersKey     = "/s/voters"
	removedPrefix = "/s/removed/"
)

// voters is /s/voters: the nodes that were chosen to vote. Etcd's own list of
// members follows it; a node stands here before it is a learner.
type voters struct {
	Nodes []ids.ID `json:"nodes"`
}

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
func (m *Server) CreateToken(ctx context.Context, life time.Duration) (string, *model.Token, error) {
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
	t := &model.Token{Meta: model.Meta{ID: id, Name: "join-" + id.Short()}, SecretSHA256: hashSecret(secret), Expires: m.Clock.Wall().UTC().Add(life)}
	if t, err = store.Create(ctx, m.Store, t); err != nil {
		return "", nil, err
	}
	inv := Invitation{Cluster: m.Config.Cluster, Fingerprint: m.Identity.Fingerprint(), Addresses: addrs, Token: t.ID, Secret: secret}
	return inv.String(), t, nil
}

// joinAddresses lists the API addresses of the voters, this node's first if it
// is one: only voters hold the authority's key.
func (m *Server) joinAddresses(ctx context.Context) ([]string, error) {
	nodes, err := store.List[model.Node](ctx, m.Store)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(nodes, func(a, b *model.Node) int {
		return boolRank(b.ID == m.Config.Node) - boolRank(a.ID == m.Config.Node)
	})
	var out []string
	for _, n := range nodes {
		if n.Spec.Voter {
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
	Node   ids.ID `json:"node"`
	CSR    string `json:"csr"` // PEM
	NodeRequest
}

// JoinAnswer is what it gets.
type JoinAnswer struct {
	Cluster     ids.ID   `json:"cluster"`
	ClusterName string   `json:"cluster_name"`
	CA          string   `json:"ca"`               // PEM
	CAKey       string   `json:"ca_key,omitempty"` // PEM; voters only
	Cert        string   `json:"cert"`             // PEM
	Voter       bool     `json:"voter"`
	Endpoints   []string `json:"endpoints"` // etcd client URLs
}

// Join is the cluster's half of a join. It may be repeated with the same token
// by the same machine until the join has ended.
func (m *Server) Join(ctx context.Context, req JoinRequest) (*JoinAnswer, error) {
	m.join.Lock()
	defer m.join.Unlock()
	fail := func(err error) (*JoinAnswer, error) { return nil, fmt.Errorf("join node %q: %w", req.Name, err) }
	ca, err := pki.LoadCA(paths.PKI)
	if err != nil {
		return fail(errs.New(errs.Unavailable, "this node does not hold the authority's key: %w", err).WithHint("ask a voter"))
	}
	if err := req.check(nil); err != nil {
		return fail(err)
	}
	if req.Node.IsZero() {
		return fail(errs.New(errs.Invalid, "no node id"))
	}
	cluster, err := ReadCluster(ctx, m.Store)
	if err != nil {
		return fail(err)
	}
	// Everything that can be refused comes before the one transaction that admits
	// the node: a refused join leaves nothing behind.
	cert, err := ca.SignNode([]byte(req.CSR), req.Node, req.ips(), m.Clock.Wall())
	if err != nil {
		return fail(err)
	}
	voter, err := m.admit(ctx, req)
	if err != nil {
		return fail(err)
	}
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return fail(err)
	}
	ans := &JoinAnswer{Cluster: cluster.ID, ClusterName: cluster.Name, CA: string(ca.CertPEM()), Cert: string(cert), Voter: voter}
	for _, mem := range members {
		ans.Endpoints = append(ans.Endpoints, mem.ClientURLs...)
	}
	if voter {
		key, err := ca.KeyPEM()
		if err != nil {
			return fail(err)
		}
		ans.CAKey = string(key)
	}
	m.Log.Info("node is joining", "node", req.Node, "name", req.Name, "voter", voter)
	return ans, nil
}

const tokenHint = "make a new token on a node of the cluster: `roseau cluster token`"

// admit ties the token to the machine that shows it, gives it a seat among the
// voters if one is free (the first three nodes vote), and makes its object: all
// in one transaction, so that two joins at once do not get the last seat both.
// Repeated by the same machine it gives the same answer.
func (m *Server) admit(ctx context.Context, req JoinRequest) (voter bool, err error) {
	for range 10 {
		tx := store.NewTx()
		if err := m.txToken(ctx, tx, req); err != nil {
			return false, err
		}
		if err := m.checkAddresses(ctx, req); err != nil {
			return false, err
		}
		if voter, err = m.txSeat(ctx, tx, req.Node); err != nil {
			return false, err
		}
		if err := txNode(ctx, tx, m.Store, req.Node, req.NodeRequest, voter); err != nil {
			return false, err
		}
		if _, err = m.Store.Commit(ctx, tx); err == nil || !errors.Is(err, errs.Conflict) {
			return voter, err
		}
	}
	return false, errs.New(errs.Conflict, "changed by others again and again").WithHint("try again with the same token")
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

// txSeat decides whether the node votes, and adds that to tx.
func (m *Server) txSeat(ctx context.Context, tx *store.Tx, node ids.ID) (bool, error) {
	r, err := store.GetRecord[voters](ctx, m.Store, votersKey)
	if err != nil {
		return false, err
	}
	tx.If(votersKey, r.Revision)
	if slices.Contains(r.Value.Nodes, node) {
		return true, nil
	}
	if len(r.Value.Nodes) >= maxVoters {
		return false, nil
	}
	tx.Put(votersKey, voters{Nodes: append(r.Value.Nodes, node)})
	return true, nil
}

// txNode adds to tx the making of the node's object, or bringing an existing one
// of the same machine up to date.
func txNode(ctx context.Context, tx *store.Tx, s *store.Store, id ids.ID, req NodeRequest, voter bool) error {
	spec := model.NodeSpec{Addresses: req.Addresses, Uplinks: req.Uplinks, Voter: voter}
	n, err := store.GetID[model.Node](ctx, s, id)
	if err == nil {
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
