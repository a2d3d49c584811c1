package member

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/store"
	"roseau/internal/svc/event"
)

// firstGeneration is the cluster generation of a new cluster; `cluster recover`
// raises it.
const firstGeneration = 1

// Settle is the second half of an init or a join: each step may be repeated. It
// fails while there is no quorum; the daemon calls it until it succeeds.
func (m *Server) Settle(ctx context.Context, todo nodeconf.Settling) error {
	if todo.Init {
		return m.settleInit(ctx)
	}
	if todo.Token.IsZero() {
		return nil
	}
	_, err := store.Update(ctx, m.Store, todo.Token, func(t *model.Token) error {
		if t.Used.IsZero() {
			t.Node, t.Used = m.Config.Node, m.Clock.Wall().UTC()
		}
		return nil
	})
	if err != nil && !errors.Is(err, errs.NotFound) { // swept already: as good as used
		return fmt.Errorf("settle node %s: %w", m.Config.Name, err)
	}
	m.Events.Emit(event.Info, "node "+m.Config.Name, "joined the cluster")
	return nil
}

func (m *Server) settleInit(ctx context.Context) error {
	c := model.Cluster{ID: m.Config.Cluster, Name: m.Config.ClusterName, Generation: firstGeneration, Format: 1, Created: m.Clock.Wall().UTC()}
	tx := store.NewTx().If(clusterKey, 0).Put(clusterKey, c)
	if _, err := m.Store.Commit(ctx, tx); err != nil && !errors.Is(err, errs.Conflict) {
		return fmt.Errorf("init cluster: %w", err)
	}
	req := NodeRequest{Name: m.Config.Name, Addresses: m.Config.Addresses, Uplinks: m.Config.Uplinks}
	tx = store.NewTx()
	if err := txNode(ctx, tx, m.Store, JoinRequest{Node: m.Config.Node, NodeRequest: req}); err != nil {
		return fmt.Errorf("init cluster: %w", err)
	}
	if _, err := m.Store.Commit(ctx, tx); err != nil {
		return fmt.Errorf("init cluster: %w", err)
	}
	m.Events.Emit(event.Info, "cluster "+m.Config.ClusterName, "made by node "+m.Config.Name)
	return nil
}

// Sweep removes what joins left behind that will not go on: tokens long over,
// and the name of a node that never came. It runs until ctx
// ends and works where the etcd leader is.
func (m *Server) Sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if !m.Leading() {
			continue
		}
		if err := m.sweepOnce(ctx); err != nil {
			m.Log.Debug("sweep joins", "err", err)
		}
	}
}

func (m *Server) sweepOnce(ctx context.Context) error {
	tokens, err := store.List[model.Token](ctx, m.Store)
	if err != nil {
		return err
	}
	now := m.Clock.Wall()
	for _, t := range tokens {
		if now.Before(t.Expires.Add(sweepGrace)) {
			continue
		}
		if !t.Node.IsZero() && t.Used.IsZero() && !m.Sessions.Alive(t.Node) {
			if err := m.undoJoin(ctx, t.Node); err != nil {
				return err
			}
		}
		if err := store.Delete(ctx, m.Store, t); err != nil && errs.Kind(err) == errs.Unavailable {
			return err
		}
	}
	return nil
}

// undoJoin takes back a join whose machine never became a node.
func (m *Server) undoJoin(ctx context.Context, node ids.ID) error {
	n, err := store.GetID[model.Node](ctx, m.Store, node)
	if errors.Is(err, errs.NotFound) {
		w, err := store.GetID[model.Witness](ctx, m.Store, node)
		if err != nil || w.Spec.Version != "" {
			return nil // none, or one that came
		}
		m.Events.Emit(event.Warn, "witness "+w.Name, "its join was never finished and has been undone")
		return store.Delete(ctx, m.Store, w)
	}
	if err != nil || !n.Status.Reported.IsZero() || n.Spec.Voter {
		return err
	}
	m.Events.Emit(event.Warn, "node "+n.Name, "its join was never finished and has been undone")
	return m.forget(ctx, n)
}

// forget removes a node's object, and leaves the proof that it was removed on
// purpose.
func (m *Server) forget(ctx context.Context, n *model.Node) error {
	for range forgetTries {
		if err := m.forgetOnce(ctx, n); !errors.Is(err, errs.Conflict) && !errors.Is(err, store.ErrUnknown) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(forgetPause):
		}
	}
	return errs.New(errs.Conflict, "remove node %s: changed by others again and again", n.Name)
}

// The member that has just left may be asked once more before it is gone, and
// others may change the node at the same time.
const (
	forgetTries = 20
	forgetPause = 250 * time.Millisecond
)

func (m *Server) forgetOnce(ctx context.Context, n *model.Node) error {
	cur, err := store.GetID[model.Node](ctx, m.Store, n.ID)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	tx := store.NewTx().Put(RemovedKey(n.ID), Removed{Name: n.Name, Time: m.Clock.Wall().UTC()})
	store.TxDelete[model.Node](tx, cur)
	_, err = m.Store.Commit(ctx, tx)
	return err
}
