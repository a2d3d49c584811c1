package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
)

// SessionTTLSeconds is the lease of a node's session. Etcd ends it 0.3 to 0.5 s
// later, and a new etcd leader begins it anew: a hint, never a fence.
const (
	SessionTTLSeconds = 2
	sessionTTL        = SessionTTLSeconds * time.Second
)

// Session is the value of a node's alive key.
type Session struct {
	Node    ids.ID    `json:"node"`
	Boot    string    `json:"boot"` // boot identity of the node
	Started time.Time `json:"started"`
	First   bool      `json:"first,omitempty"` // by the first daemon of this boot
}

// SessionKey is where a node's session stands.
func SessionKey(node ids.ID) string { return "/s/node/" + node.String() + "/alive" }

// KeepSession keeps the node's session until ctx ends, making a new one
// whenever it was lost, and takes it back at the end. It returns ctx's error.
func (s *Store) KeepSession(ctx context.Context, v Session) error {
	for {
		s.sessionOnce(ctx, v)
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// sessionOnce holds one lease until it is lost or ctx ends.
func (s *Store) sessionOnce(ctx context.Context, v Session) {
	gctx, cancel := context.WithTimeout(ctx, opTimeout)
	lease, err := s.cli.Grant(gctx, SessionTTLSeconds)
	cancel()
	if err != nil {
		return
	}
	if _, err := s.Commit(ctx, NewTx().PutLease(SessionKey(v.Node), v, lease.ID)); err != nil && !errors.Is(err, ErrUnknown) {
		return
	}
	<-etcd.KeepLease(ctx, s.cli, lease.ID, sessionTTL)
	if ctx.Err() == nil {
		return // the next lease takes the key over, without a gap if this one lives still
	}
	// An orderly stop says so at once; the context of the stop is over, so this
	// has a short one of its own. If it fails, the lease runs out by itself.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
	defer cancel()
	s.cli.Revoke(rctx, lease.ID)
}

// Sessions follows the sessions of all nodes. While etcd is away it keeps what
// it knew: losing the control plane makes nobody dead.
type Sessions struct {
	s       *Store
	clock   clock.Clock
	mu      sync.Mutex // protects the fields below
	alive   map[ids.ID]Session
	lost    map[ids.ID]clock.Instant // when an alive key was seen to go
	changed chan struct{}
}

// NewSessions returns an empty cache; Run fills it.
func NewSessions(s *Store) *Sessions {
	return &Sessions{s: s, clock: s.clock, alive: map[ids.ID]Session{}, lost: map[ids.ID]clock.Instant{}, changed: make(chan struct{})}
}

// Alive reports whether the node has a session.
func (c *Sessions) Alive(node ids.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.alive[node]
	return ok
}

// Session returns the session of a node, if it has one.
func (c *Sessions) Session(node ids.ID) (Session, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.alive[node]
	return v, ok
}

// LostAt tells when the node's session was seen to end; zero: never, or it is
// alive.
func (c *Sessions) LostAt(node ids.ID) clock.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[node]
}

// Changed returns a channel that is closed at the next change.
func (c *Sessions) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Run follows etcd until ctx ends.
func (c *Sessions) Run(ctx context.Context) error {
	return c.s.Follow(ctx, "/s/node/", func(kvs []KV) {
		now := map[ids.ID]Session{}
		for _, kv := range kvs {
			if id, ok := sessionNode(kv.Key); ok {
				if r, err := decodeRecord[Session](kv.Key, kv.Value, kv.Revision); err == nil {
					now[id] = r.Value
				}
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for id := range c.alive {
			if _, ok := now[id]; !ok {
				c.lost[id] = c.clock.Now()
			}
		}
		for id := range now {
			delete(c.lost, id)
		}
		c.alive = now
		c.signalLocked()
	}, c.one)
}

func (c *Sessions) one(kv KV) {
	id, ok := sessionNode(kv.Key)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if kv.Value == nil {
		delete(c.alive, id)
		c.lost[id] = c.clock.Now()
	} else if r, err := decodeRecord[Session](kv.Key, kv.Value, kv.Revision); err == nil {
		c.alive[id] = r.Value
		delete(c.lost, id)
	}
	c.signalLocked()
}

func (c *Sessions) signalLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func sessionNode(key string) (ids.ID, bool) {
	rest, ok := strings.CutSuffix(strings.TrimPrefix(key, "/s/node/"), "/alive")
	if !ok {
		return ids.ID{}, false
	}
	id, err := ids.Parse(rest)
	return id, err == nil
}

// AliveNodes reads which nodes have a session now.
func AliveNodes(ctx context.Context, s *Store) (map[ids.ID]Session, error) {
	recs, err := ListRecords[Session](ctx, s, "/s/node/")
	if err != nil {
		return nil, err
	}
	out := map[ids.ID]Session{}
	for key, r := range recs {
		if id, ok := sessionNode(key); ok {
			out[id] = r.Value
		}
	}
	return out, nil
}

// Elect campaigns for the named office until ctx ends, and calls run each time
// it is won with a context that ends when the office is lost. Two holders may
// overlap for a moment (a lease is not a fence): what run does must be safe
// then, by revisions.
func (s *Store) Elect(ctx context.Context, office string, me ids.ID, run func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := s.electOnce(ctx, "/s/office/"+office, me, run); err != nil && errs.Kind(etcd.Classify(err)) == nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
	return ctx.Err()
}

func (s *Store) electOnce(ctx context.Context, key string, me ids.ID, run func(context.Context) error) error {
	gctx, cancel := context.WithTimeout(ctx, opTimeout)
	lease, err := s.cli.Grant(gctx, SessionTTLSeconds)
	cancel()
	if err != nil {
		return etcd.Classify(err)
	}
	defer func() {
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer cancel()
		s.cli.Revoke(rctx, lease.ID)
	}()
	kctx, unkeep := context.WithCancel(ctx)
	defer unkeep()
	lost := etcd.KeepLease(kctx, s.cli, lease.ID, sessionTTL)
	if _, err := s.Commit(ctx, NewTx().If(key, 0).PutLease(key, me, lease.ID)); err != nil {
		if !errors.Is(err, errs.Conflict) {
			return err
		}
		return s.waitGone(ctx, key, lost)
	}
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(rctx) }()
	select {
	case err := <-done:
		return err
	case <-lost:
		stop()
		return <-done
	}
}

// waitGone returns when the holder's key has gone, the watch broke or the lease
// that would be used next was lost.
func (s *Store) waitGone(ctx context.Context, key string, lost <-chan struct{}) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	resp, err := s.get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return err
	}
	watch := s.cli.Watch(ctx, key, clientv3.WithRev(resp.Header.Revision+1))
	for {
		select {
		case wr, ok := <-watch:
			if !ok || wr.Err() != nil || len(wr.Events) > 0 {
				return nil
			}
		case <-lost:
			return nil
		}
	}
}
