package volume

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
)

const (
	nodePrefix = "/s/node/"
	aliveName  = "/alive"
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
				s.call(func() { s.recordsRead(writer.RecordsRead{Records: r, Cached: true}) })
				return
			}
			cached = true
		}
		if !sleep(ctx, retryDelay) {
			return
		}
	}
}

// runTxn answers writer.Commit.
func (s *Set) runTxn(ctx context.Context, c writer.Commit) {
	outcome, rev := s.commit(ctx, c.Txn)
	s.post(writer.TxnDone{ID: c.ID, Outcome: outcome, Revision: rev})
}

// watchNodes reports which nodes have a session, as long as the set lives. When
// etcd does not answer, what was known last stays: a hint, never a fence.
func (s *Set) watchNodes(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.watchNodesOnce(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("watch of node sessions ended", "cause", err)
		}
		if !sleep(ctx, retryDelay) {
			return
		}
	}
}

func (s *Set) watchNodesOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	get, cancelGet := context.WithTimeout(ctx, readTimeout)
	resp, err := s.cfg.Etcd.Get(get, nodePrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	cancelGet()
	if err != nil {
		return err
	}
	alive := map[ids.ID]bool{}
	for _, kv := range resp.Kvs {
		if id, ok := aliveNode(kv.Key); ok {
			alive[id] = true
		}
	}
	s.postLiveness(alive)
	for w := range s.cfg.Etcd.Watch(ctx, nodePrefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
		if err := w.Err(); err != nil {
			return err
		}
		changed := false
		for _, ev := range w.Events {
			if id, ok := aliveNode(ev.Kv.Key); ok {
				was := alive[id]
				if ev.Type == clientv3.EventTypePut {
					alive[id] = true
				} else {
					delete(alive, id)
				}
				changed = changed || was != alive[id]
			}
		}
		if changed {
			s.postLiveness(alive)
		}
	}
	return ctx.Err()
}

func (s *Set) postLiveness(alive map[ids.ID]bool) {
	l := make([]ids.ID, 0, len(alive))
	for id := range alive {
		l = append(l, id)
	}
	slices.SortFunc(l, ids.ID.Compare)
	s.post(writer.Liveness{Alive: l})
}

// aliveNode reads the node's id from /s/node/<id>/alive.
func aliveNode(key []byte) (ids.ID, bool) {
	name, ok := strings.CutPrefix(string(key), nodePrefix)
	if !ok {
		return ids.ID{}, false
	}
	if name, ok = strings.CutSuffix(name, aliveName); !ok {
		return ids.ID{}, false
	}
	id, err := ids.Parse(name)
	return id, err == nil
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
