package voters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/quorum"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
)

const (
	stepEvery   = 500 * time.Millisecond
	askEvery    = 300 * time.Millisecond
	answerFresh = 1500 * time.Millisecond // an answer counts for so long
	opTimeout   = 5 * time.Second
)

// Manager makes the steps.
type Manager struct {
	Reader
	Probe   *etcd.Probe
	Leading func() bool // this node's member leads
	Events  *event.Log
	Log     *slog.Logger
	Timers  quorum.Timers // zero: those that ship

	mem quorum.Memory // of Run's goroutine

	mu      sync.Mutex // protects the fields below
	members []etcd.Member
	heard   map[uint64]answer
}

type answer struct {
	etcd.Health
	at clock.Instant
}

// Run works until ctx ends, wherever the leader is: it looks at once when a
// session comes or goes.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	actx, stop := context.WithCancel(ctx)
	defer wg.Wait()
	defer stop()
	wg.Go(func() { m.ask(actx) })
	last := ""
	for {
		changed := m.Sessions.Changed()
		acted, err := m.once(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			m.Log.Warn("keep voters", "err", err)
		}
		if acted && err == nil {
			last = ""
			continue // what belongs together is done back to back
		}
		t := time.NewTimer(stepEvery)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// ask keeps asking the members how they are, while this node leads.
func (m *Manager) ask(ctx context.Context) {
	t := time.NewTicker(askEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.mu.Lock()
		members := m.members
		m.mu.Unlock()
		if !m.Leading() || len(members) == 0 {
			continue
		}
		got := m.Probe.All(ctx, members, askLimit)
		now := m.Clock.Now()
		m.mu.Lock()
		heard := map[uint64]answer{}
		for _, mem := range members {
			if h, ok := got[mem.ID]; ok {
				heard[mem.ID] = answer{h, now}
			} else if old, ok := m.heard[mem.ID]; ok {
				heard[mem.ID] = old
			}
		}
		m.heard = heard
		m.mu.Unlock()
	}
}

// once looks, and takes at most one action.
func (m *Manager) once(ctx context.Context) (acted bool, err error) {
	if !m.Leading() {
		m.mem = quorum.Memory{}
		m.forget()
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return false, err
	}
	v, err := m.Read(ctx, m.Store, members, m.note(members))
	if err != nil {
		return false, err
	}
	v.Leader, v.Timers = m.Leading(), m.Timers
	var a quorum.Action
	m.mem, a = quorum.Step(v, m.mem, m.Clock.Now())
	if a.Do == quorum.Nothing {
		return false, m.show(ctx, v)
	}
	m.Log.Info("voters", "do", a.Do.String(), "member", fmt.Sprintf("%x", a.Member), "why", a.Why)
	if err := m.do(ctx, v, a); err != nil {
		return false, fmt.Errorf("%s: %w", a.Why, err)
	}
	if a.Do != quorum.AddLearner && a.Do != quorum.SetPeers {
		m.Events.Emit(event.Info, "cluster", a.Why)
	}
	return true, nil
}

// note remembers whom to ask, and returns what was heard lately.
func (m *Manager) note(members []etcd.Member) map[uint64]etcd.Health {
	now := m.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members = members
	out := map[uint64]etcd.Health{}
	for id, a := range m.heard {
		if now.Sub(a.at) < answerFresh {
			out[id] = a.Health
		}
	}
	return out
}

func (m *Manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members, m.heard = nil, nil
}

// do carries an action out.
func (m *Manager) do(ctx context.Context, v quorum.View, a quorum.Action) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	cli := m.Store.Client()
	switch a.Do {
	case quorum.AddLearner:
		url, err := m.peerOf(ctx, a.Owner, a.Slot)
		if err != nil {
			return err
		}
		return etcd.AddLearner(ctx, cli, url)
	case quorum.Promote:
		if v.Witness != nil && a.Owner == v.Witness.ID && !v.Witness.Voted {
			// Known before it is so: a return takes longer than a first time.
			if err := UpdateWitness(ctx, m.Store, a.Owner, func(r *WitnessRecord) { r.Voted = true }); err != nil {
				return err
			}
		}
		return etcd.Promote(ctx, cli, a.Member)
	case quorum.Remove:
		return etcd.Remove(ctx, cli, a.Member)
	case quorum.SetPeers:
		return etcd.SetPeerURLs(ctx, cli, a.Member, a.Peers)
	}
	return nil
}

func (m *Manager) peerOf(ctx context.Context, owner ids.ID, slot int) (string, error) {
	if slot == 0 {
		n, err := store.GetID[model.Node](ctx, m.Store, owner)
		if err != nil {
			return "", err
		}
		return NodePeer(n), nil
	}
	w, err := store.GetID[model.Witness](ctx, m.Store, owner)
	if err != nil {
		return "", err
	}
	return WitnessPeer(w, slot), nil
}

// show writes into the nodes' objects which of them vote, for people and for
// join tokens.
func (m *Manager) show(ctx context.Context, v quorum.View) error {
	nodes, err := store.List[model.Node](ctx, m.Store)
	if err != nil {
		return err
	}
	votes := map[ids.ID]bool{}
	for _, mem := range v.Members {
		if !mem.Learner {
			votes[mem.Owner] = true
		}
	}
	for _, n := range nodes {
		if n.Spec.Voter == votes[n.ID] {
			continue
		}
		_, err := store.Update(ctx, m.Store, n.ID, func(o *model.Node) error {
			o.Spec.Voter = votes[o.ID]
			return nil
		})
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

// UpdateWitness changes the witness's record, on condition that nobody else
// changed it meanwhile; it tries again if somebody did.
func UpdateWitness(ctx context.Context, s *store.Store, id ids.ID, change func(*WitnessRecord)) error {
	key := WitnessKey(id)
	for range 10 {
		r, err := store.GetRecord[WitnessRecord](ctx, s, key)
		if err != nil {
			return err
		}
		next := r.Value
		change(&next)
		if next == r.Value && r.Revision != 0 {
			return nil
		}
		_, err = s.Commit(ctx, store.NewTx().If(key, r.Revision).Put(key, next))
		if err == nil || !errors.Is(err, errs.Conflict) && !errors.Is(err, store.ErrUnknown) {
			return err
		}
	}
	return errs.New(errs.Conflict, "write record of witness %s: changed by others again and again", id)
}
