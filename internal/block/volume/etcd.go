package volume

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
)

const (
	nodePrefix = "/s/node/"
	aliveName  = "/alive"
	// reportPrefix is where nodes say whether their storage process answers
	// (records.NodeReport).
	reportPrefix = "/r/node/"
)

// readRecords answers writer.ReadRecords: it repeats until etcd answers, or the
// set ends; the cache stands in after a while, once.
func (s *Set) readRecords(ctx context.Context) {
	begun := s.clock.Now()
	cached := false
	for {
		r, err := s.records(ctx)
		if err == nil {
			s.call(func() { s.recordsRead(writer.RecordsRead{Records: r}) })
			return
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Corrupt) || errors.Is(err, errs.Invalid) {
			// Nothing is deduced from a missing key; a person must look.
			s.call(func() { s.fail(err) })
		}
		if !cached && s.clock.Now().Sub(begun) >= cachePatient {
			if r, ok := s.loadCache(); ok {
				// The core goes on without etcd, and wants its records as soon as it answers.
				s.call(func() { s.recordsRead(writer.RecordsRead{Records: r, Cached: true}) })
			}
			cached = true
		}
		if clock.Sleep(ctx, retryDelay) != nil {
			return
		}
	}
}

// runTxn answers writer.Commit.
func (s *Set) runTxn(ctx context.Context, c writer.Commit) {
	outcome, rev := s.commit(ctx, c.Txn)
	s.post(writer.TxnDone{ID: c.ID, Outcome: outcome, Revision: rev})
}

// watchNodes reports which nodes have a session, and which of them say that their
// storage process is dead, as long as the set lives. When etcd does not answer,
// what was known last stays: a hint, never a fence.
func (s *Set) watchNodes(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.watchNodesOnce(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("watch of node sessions ended", "cause", err)
		}
		if clock.Sleep(ctx, retryDelay) != nil {
			return
		}
	}
}

func (s *Set) watchNodesOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	get, cancelGet := context.WithTimeout(ctx, readTimeout)
	resp, err := s.cfg.Etcd.Txn(get).Then(clientv3.OpGet(nodePrefix, clientv3.WithPrefix()), clientv3.OpGet(reportPrefix, clientv3.WithPrefix())).Commit()
	cancelGet()
	if err != nil {
		return err
	}
	h := nodeHints{alive: map[ids.ID]bool{}, broken: map[ids.ID]bool{}}
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			h.set(string(kv.Key), kv.Value)
		}
	}
	s.post(h.liveness())
	from := clientv3.WithRev(resp.Header.Revision + 1)
	sessions := s.cfg.Etcd.Watch(ctx, nodePrefix, clientv3.WithPrefix(), from)
	reports := s.cfg.Etcd.Watch(ctx, reportPrefix, clientv3.WithPrefix(), from)
	for {
		var w clientv3.WatchResponse
		open := false
		select {
		case w, open = <-sessions:
		case w, open = <-reports:
		}
		if !open {
			return ctx.Err()
		}
		if err := w.Err(); err != nil {
			return err
		}
		changed := false
		for _, ev := range w.Events {
			value := ev.Kv.Value
			if ev.Type != clientv3.EventTypePut {
				value = nil
			}
			changed = h.set(string(ev.Kv.Key), value) || changed
		}
		if changed {
			s.post(h.liveness())
		}
	}
}

// nodeHints is what etcd says of the nodes.
type nodeHints struct {
	alive  map[ids.ID]bool // with a session
	broken map[ids.ID]bool // who say that their storage process does not answer
}

// set takes a key's value, nil if it is gone, and reports whether that changes
// anything. A report that cannot be read says nothing.
func (h *nodeHints) set(key string, value []byte) bool {
	set, on := h.alive, value != nil
	id, ok := nodeKey(key, nodePrefix, aliveName)
	if !ok {
		if id, ok = nodeKey(key, reportPrefix, ""); !ok {
			return false
		}
		var r struct {
			Storage *bool `json:"storage"`
		}
		set, on = h.broken, value != nil && json.Unmarshal(value, &r) == nil && r.Storage != nil && !*r.Storage
	}
	if set[id] == on {
		return false
	}
	if on {
		set[id] = true
	} else {
		delete(set, id)
	}
	return true
}

func (h *nodeHints) liveness() writer.Liveness {
	sorted := func(set map[ids.ID]bool) []ids.ID { return slices.SortedFunc(maps.Keys(set), ids.ID.Compare) }
	return writer.Liveness{Alive: sorted(h.alive), Broken: sorted(h.broken)}
}

// nodeKey reads the node's id between prefix and suffix.
func nodeKey(key, prefix, suffix string) (ids.ID, bool) {
	name, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return ids.ID{}, false
	}
	if name, ok = strings.CutSuffix(name, suffix); !ok {
		return ids.ID{}, false
	}
	id, err := ids.Parse(name)
	return id, err == nil
}
