// Package secret keeps the cluster's secrets in etcd, sealed for the nodes'
// certificates, and brings the seals up to date when nodes come and go. What a
// box is and what must be done to one, package secret of this module decides;
// docs/design/secrets.md describes both.
package secret

import (
	"context"
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/secret"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
)

// Keys of the records.
const (
	boxPrefix  = "/s/secret/"
	certPrefix = "/s/certificate/"
)

// round is how often the seals are compared with the nodes when nothing changes.
const round = 5 * time.Second

// certificate is /s/certificate/<node>.
type certificate struct {
	Name string `json:"name"` // of the node, for when it is gone
	Cert string `json:"cert"` // PEM
}

// Service is a node's way to the secrets.
type Service struct {
	env     *svc.Env
	id      *pki.Identity
	key     *ecdh.PrivateKey
	leading func() bool
	changed func() <-chan struct{} // of the nodes
}

// New returns the service of a node. leading tells whether this node's etcd
// member leads; changed is closed at each change of the nodes.
func New(env *svc.Env, id *pki.Identity, leading func() bool, changed func() <-chan struct{}) (*Service, error) {
	key, err := id.Key()
	if err != nil {
		return nil, err
	}
	return &Service{env: env, id: id, key: key, leading: leading, changed: changed}, nil
}

func boxKey(id secret.ID) string { return boxPrefix + id.String() }

// Put stores a secret for every node of the cluster, in place of what was there.
func (s *Service) Put(ctx context.Context, id secret.ID, content secret.Text) error {
	tx := store.NewTx()
	if err := s.TxPut(ctx, tx, id, content); err != nil {
		return err
	}
	if _, err := s.env.Store.Commit(ctx, tx); err != nil {
		return fmt.Errorf("store secret %s: %w", id, err)
	}
	return nil
}

// TxPut adds the storing of a secret to tx.
func (s *Service) TxPut(ctx context.Context, tx *store.Tx, id secret.ID, content secret.Text) error {
	members, _, err := s.members(ctx)
	if err != nil {
		return fmt.Errorf("store secret %s: %w", id, err)
	}
	readers := secret.Readers(members)
	if !slices.ContainsFunc(readers, func(r secret.Reader) bool { return r.Node == s.env.Node }) {
		readers = append(readers, secret.Reader{Node: s.env.Node, Key: s.key.PublicKey()}) // not published yet
	}
	box, err := secret.Seal(s.env.Cluster, id, content, readers, s.env.Clock.Wall().UTC())
	if err != nil {
		return err
	}
	if _, err := box.Open(s.env.Node, s.key); err != nil {
		return fmt.Errorf("store secret %s: it does not open again: %w", id, err)
	}
	tx.Put(boxKey(id), box)
	return nil
}

// TxDelete adds the removal of a secret to tx.
func (s *Service) TxDelete(tx *store.Tx, id secret.ID) { tx.Delete(boxKey(id)) }

// Get returns a secret.
func (s *Service) Get(ctx context.Context, id secret.ID) (secret.Text, error) {
	boxes, err := s.boxes(ctx, s.env.Store.Relaxed(), boxKey(id))
	if err != nil {
		return nil, err
	}
	for _, b := range boxes {
		if b.ID == id {
			return b.Open(s.env.Node, s.key)
		}
	}
	return nil, errs.New(errs.NotFound, "read secret %s: not found", id)
}

// sealed is a box with its revision.
type sealed struct {
	*secret.Box
	revision int64
}

func (s *Service) boxes(ctx context.Context, st *store.Store, prefix string) (out []sealed, err error) {
	recs, err := store.ListRecords[json.RawMessage](ctx, st, prefix)
	if err != nil {
		return nil, err
	}
	for key, r := range recs {
		b, err := secret.Decode(r.Value)
		if err == nil && boxKey(b.ID) != key {
			err = errs.New(errs.Corrupt, "it is secret %s", b.ID)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		out = append(out, sealed{b, r.Revision})
	}
	slices.SortFunc(out, func(a, b sealed) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return out, nil
}

// members lists the nodes with the keys of their certificates, and the names of
// all that ever published one.
func (s *Service) members(ctx context.Context) ([]secret.Member, map[ids.ID]string, error) {
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return nil, nil, err
	}
	certs, err := store.ListRecords[certificate](ctx, s.env.Store, certPrefix)
	if err != nil {
		return nil, nil, err
	}
	names := map[ids.ID]string{}
	for key, c := range certs {
		if id, err := ids.Parse(strings.TrimPrefix(key, certPrefix)); err == nil {
			names[id] = c.Value.Name
		}
	}
	var out []secret.Member
	for _, n := range nodes {
		m := secret.Member{ID: n.ID, Name: n.Name, Leaving: n.Deleting}
		if c := certs[certPrefix+n.ID.String()]; c.Revision > 0 {
			if m.Key, err = s.id.KeyOfNode([]byte(c.Value.Cert), n.ID); err != nil {
				s.env.Log.Warn("no secret is sealed for a node", "node", n.Name, "err", err)
				m.Key = nil
			}
		}
		out = append(out, m)
	}
	return out, names, nil
}

// Run publishes this node's certificate and, where etcd's leader is, keeps the
// seals up to date, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	return s.env.Loop(ctx, "secrets", round, func() []<-chan struct{} { return []<-chan struct{}{s.changed()} }, func(ctx context.Context) error {
		if err := s.publish(ctx); err != nil {
			return err
		}
		if !s.leading() {
			return nil
		}
		return s.Reseal(ctx)
	})
}

func (s *Service) publish(ctx context.Context) error {
	key := certPrefix + s.env.Node.String()
	want := certificate{Name: s.env.NodeName, Cert: string(s.id.CertPEM())}
	r, err := store.GetRecord[certificate](ctx, s.env.Store, key)
	if err != nil || r.Value == want {
		return err
	}
	_, err = s.env.Store.Commit(ctx, store.NewTx().If(key, r.Revision).Put(key, want))
	return err
}

// Reseal brings every box to what the nodes of the cluster are now. One that
// cannot be opened here does not keep the others from it.
func (s *Service) Reseal(ctx context.Context) error {
	members, names, err := s.members(ctx)
	if err != nil {
		return err
	}
	boxes, err := s.boxes(ctx, s.env.Store, boxPrefix)
	if err != nil {
		return err
	}
	var failed []error
	for _, b := range boxes {
		step := secret.Plan(b.Box, members)
		if step.Nothing() {
			continue
		}
		c, err := b.Apply(step, members, s.env.Node, s.key, names, s.env.Clock.Wall().UTC())
		if err == nil {
			_, err = s.env.Store.Commit(ctx, store.NewTx().If(boxKey(b.ID), b.revision).Put(boxKey(b.ID), c))
		}
		switch {
		case errors.Is(err, errs.Conflict): // set anew meanwhile: the next round looks at that
		case err != nil:
			failed = append(failed, err)
		case len(step.Gone) > 0:
			s.env.Events.Emit(event.Warn, "secret "+b.ID.String(), fmt.Sprintf("sealed anew; nodes that left knew it (%s): set it anew", strings.Join(c.Exposed, ", ")))
		default:
			s.env.Log.Info("secret sealed for more nodes", "secret", b.ID.String(), "nodes", len(step.Add))
		}
	}
	return errors.Join(failed...)
}

// Info is what the API says of a secret.
type Info struct {
	secret.ID
	Owned   string    `json:"owner_name,omitempty"`
	Set     time.Time `json:"set"`
	Sealed  time.Time `json:"sealed"`
	Readers []string  `json:"readers"`
	Missing []string  `json:"missing,omitempty" doc:"nodes that cannot read it yet"`
	Exposed []string  `json:"exposed,omitempty" doc:"nodes that have left and knew it: set it anew"`
}

// Routes adds the operations: a secret never comes out.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-secrets", "GET", "/v1/secrets", "List secrets: whose they are and who can read them, never what they say"),
		func(ctx context.Context, _ *struct{}) (*api.Body[[]Info], error) { return api.OK(s.list(ctx)) })
}

func (s *Service) list(ctx context.Context) ([]Info, error) {
	members, names, err := s.members(ctx)
	if err != nil {
		return nil, err
	}
	boxes, err := s.boxes(ctx, s.env.Store.Relaxed(), boxPrefix)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		names[m.ID] = m.Name
	}
	out := make([]Info, 0, len(boxes))
	for _, b := range boxes {
		i := Info{ID: b.ID, Set: b.Set, Sealed: b.Sealed, Readers: []string{}, Exposed: b.Exposed}
		if id, err := ids.Parse(b.ID.Owner); err == nil {
			i.Owned = names[id]
		}
		for _, w := range b.Wraps {
			i.Readers = append(i.Readers, names[w.Node])
		}
		for _, m := range members {
			if !m.Leaving && !slices.ContainsFunc(b.Wraps, func(w secret.Wrap) bool { return w.Node == m.ID }) {
				i.Missing = append(i.Missing, m.Name)
			}
		}
		slices.Sort(i.Readers)
		out = append(out, i)
	}
	return out, nil
}
