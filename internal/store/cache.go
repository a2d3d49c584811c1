package store

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
)

// watchRetry is the pause after a watch that broke.
const watchRetry = 300 * time.Millisecond

// Cache follows all objects of a kind: a list, then a watch from its revision.
// What it returns is shared and must not be changed. While etcd is away it
// keeps what it had.
type Cache[T any, P model.Object[T]] struct {
	s       *Store
	mu      sync.Mutex // protects the fields below
	objs    map[ids.ID]*T
	synced  bool
	changed chan struct{} // closed and replaced at every change
}

// NewCache returns an empty cache; Run fills it.
func NewCache[T any, P model.Object[T]](s *Store) *Cache[T, P] {
	return &Cache[T, P]{s: s, objs: map[ids.ID]*T{}, changed: make(chan struct{})}
}

// Synced reports whether the first list was read.
func (c *Cache[T, P]) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// List returns the objects sorted by name.
func (c *Cache[T, P]) List() []*T {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*T, 0, len(c.objs))
	for _, o := range c.objs {
		out = append(out, o)
	}
	slices.SortFunc(out, byName[T, P])
	return out
}

// Get returns the object with the id, or nil.
func (c *Cache[T, P]) Get(id ids.ID) *T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objs[id]
}

// ByName returns the object with the name, or nil.
func (c *Cache[T, P]) ByName(name string) *T {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.objs {
		if P(o).Head().Name == name {
			return o
		}
	}
	return nil
}

// Changed returns a channel that is closed at the next change. Take it before
// reading, so that no change falls between.
func (c *Cache[T, P]) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Run follows etcd until ctx ends; it returns ctx's error only.
func (c *Cache[T, P]) Run(ctx context.Context) error {
	prefix := "/o/" + string(P(nil).Kind()) + "/"
	return c.s.Follow(ctx, prefix, func(kvs []KV) {
		objs := make(map[ids.ID]*T, len(kvs))
		for _, kv := range kvs {
			if o, err := decode[T, P](kv.Value, kv.Revision); err == nil {
				objs[P(o).Head().ID] = o
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.objs, c.synced = objs, true
		c.signalLocked()
	}, func(kv KV) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if kv.Value == nil {
			if id, err := ids.Parse(strings.TrimPrefix(kv.Key, prefix)); err == nil {
				delete(c.objs, id)
			}
		} else if o, err := decode[T, P](kv.Value, kv.Revision); err == nil {
			c.objs[P(o).Head().ID] = o
		}
		c.signalLocked()
	})
}

func (c *Cache[T, P]) signalLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// KV is a key as a watch saw it; Value nil: it was deleted.
type KV struct {
	Key      string
	Value    []byte
	Revision int64
}

// Follow calls all with everything below prefix, then one with each change in
// order, and all again whenever the watch broke (etcd away, compaction). It
// returns when ctx ends, with ctx's error.
func (s *Store) Follow(ctx context.Context, prefix string, all func([]KV), one func(KV)) error {
	for {
		s.followOnce(ctx, prefix, all, one)
		t := time.NewTimer(watchRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

func (s *Store) followOnce(ctx context.Context, prefix string, all func([]KV), one func(KV)) {
	// The context ends the watch; WithRequireLeader ends it when the member it
	// hangs on is cut off, instead of staying silent for ever.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	resp, err := s.get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return
	}
	kvs := make([]KV, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		kvs = append(kvs, KV{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
	}
	all(kvs)
	for wr := range s.cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
		if etcd.Classify(wr.Err()) != nil {
			return
		}
		for _, ev := range wr.Events {
			kv := KV{Key: string(ev.Kv.Key), Revision: ev.Kv.ModRevision}
			if ev.Type == clientv3.EventTypePut {
				kv.Value = ev.Kv.Value
				if kv.Value == nil {
					kv.Value = []byte{}
				}
			}
			one(kv)
		}
	}
}

// FollowOne calls seen with the object as it is and after each change, and gone
// when it was deleted, until ctx ends.
func FollowOne[T any, P model.Object[T]](ctx context.Context, s *Store, id ids.ID, seen func(*T), gone func()) error {
	show := func(kv KV) {
		if kv.Value == nil {
			gone()
		} else if o, err := decode[T, P](kv.Value, kv.Revision); err == nil {
			seen(o)
		}
	}
	return s.Follow(ctx, objectKey(P(nil).Kind(), id), func(kvs []KV) {
		if len(kvs) == 0 {
			gone()
		}
		for _, kv := range kvs {
			show(kv)
		}
	}, show)
}
