package secret

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd/etcdtest"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/secret"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
)

// identity makes a node's certificate.
func identity(t *testing.T, ca *pki.CA, node ids.ID) *pki.Identity {
	t.Helper()
	key, csr, err := pki.NewRequest("t")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, node, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.FromFiles(pki.Files{CA: ca.CertPEM(), Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSecretsFollowTheNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts etcd")
	}
	m := etcdtest.New(t, 7)
	ctx, cluster := t.Context(), ids.New()
	st := store.New(m.Client, clock.System{})
	ca, err := pki.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	node := func(name string) (*Service, *model.Node) {
		n, err := store.Create(ctx, st, &model.Node{Meta: model.Meta{Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		env := &svc.Env{Store: st, Events: event.NewLog(st, name, clock.System{}, log), Cluster: cluster, Node: n.ID, NodeName: name, Clock: clock.System{}, Log: log}
		s, err := New(env, identity(t, ca, n.ID), func() bool { return true }, func() <-chan struct{} { return make(chan struct{}) })
		if err != nil {
			t.Fatal(err)
		}
		return s, n
	}
	a, _ := node("a")
	b, nb := node("b")
	c, _ := node("c")
	for _, s := range []*Service{a, b} {
		if err := s.publish(ctx); err != nil {
			t.Fatal(err)
		}
	}
	id := secret.ID{Kind: "bmc", Owner: "x"}
	if err := a.Put(ctx, id, secret.Text("correct horse")); err != nil {
		t.Fatal(err)
	}
	expect := func(s *Service, want string, kind error) {
		t.Helper()
		got, err := s.Get(ctx, id)
		if string(got) != want || !errors.Is(err, kind) {
			t.Errorf("node %s reads %q, %v", s.env.NodeName, string(got), err)
		}
	}
	expect(b, "correct horse", nil)
	expect(c, "", errs.Denied) // its certificate was not there
	if err := c.publish(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Reseal(ctx); err != nil {
		t.Fatal(err)
	}
	expect(c, "correct horse", nil)

	// A certificate of another authority is nobody's.
	other, err := pki.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	evil, _ := node("evil")
	evil.id = identity(t, other, evil.env.Node)
	evil.key, _ = evil.id.Key()
	if err := evil.publish(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Reseal(ctx); err != nil {
		t.Fatal(err)
	}
	expect(evil, "", errs.Denied)

	// b leaves: sealed anew without it, and the list says that it knew.
	if err := store.Delete(ctx, st, mustGet(ctx, t, st, nb.ID)); err != nil {
		t.Fatal(err)
	}
	if err := c.Reseal(ctx); err != nil {
		t.Fatal(err)
	}
	expect(b, "", errs.Denied)
	expect(a, "correct horse", nil)
	list, err := a.list(ctx)
	if err != nil || len(list) != 1 || len(list[0].Exposed) != 1 || list[0].Exposed[0] != "b" || len(list[0].Readers) != 2 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := a.Put(ctx, id, secret.Text("new one")); err != nil {
		t.Fatal(err)
	}
	expect(c, "new one", nil)
	if list, _ := a.list(ctx); len(list) != 1 || len(list[0].Exposed) != 0 {
		t.Errorf("set anew, and still exposed: %+v", list)
	}
	raw, err := m.Client.Get(ctx, boxKey(id))
	if err != nil || len(raw.Kvs) != 1 || bytes.Contains(raw.Kvs[0].Value, []byte("new one")) {
		t.Errorf("what stands in etcd: %v", err)
	}
	if _, err := a.Get(ctx, secret.ID{Kind: "bmc", Owner: "y"}); !errors.Is(err, errs.NotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}
}

func mustGet(ctx context.Context, t *testing.T, st *store.Store, id ids.ID) *model.Node {
	t.Helper()
	n, err := store.GetID[model.Node](ctx, st, id)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
