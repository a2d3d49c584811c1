// Package event keeps what an operator wants to see on a timeline: the last
// 10,000 events of the cluster, in etcd, in the order of time.
//
// Emitting never blocks and never fails: events wait in memory while etcd is
// away, and the oldest are dropped, with a count, when too many wait.
package event

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/store"
)

const (
	prefix     = "/o/events/"
	keep       = 10_000
	slack      = 500 // so many above keep before a prune
	queueCount = 1024
	timeout    = 5 * time.Second
)

// The levels.
const (
	Info  = "info"
	Warn  = "warn"
	Error = "error"
)

// Log takes the events of one node and reads those of all.
type Log struct {
	s     *store.Store
	node  string
	clock clock.Clock
	log   *slog.Logger

	mu      sync.Mutex // protects the fields below
	queue   []model.Event
	dropped int
	wake    chan struct{} // capacity 1
}

// NewLog returns the event log of a node; Run sends what is emitted.
func NewLog(s *store.Store, node string, clk clock.Clock, log *slog.Logger) *Log {
	return &Log{s: s, node: node, clock: clk, log: log, wake: make(chan struct{}, 1)}
}

// Emit puts an event on the timeline: subject is "vm web" or "disk n1/d2", text
// one line, data pairs of key and value (a last key without value is ignored).
func (l *Log) Emit(level, subject, text string, data ...string) {
	e := model.Event{Time: l.clock.Wall().UTC(), Node: l.node, Level: level, Subject: subject, Text: text}
	for i := 0; i+1 < len(data); i += 2 {
		if e.Data == nil {
			e.Data = map[string]string{}
		}
		e.Data[data[i]] = data[i+1]
	}
	l.log.Info("event", "level", level, "subject", subject, "text", text, "data", e.Data)
	l.mu.Lock()
	if len(l.queue) == queueCount {
		l.queue = l.queue[1:]
		l.dropped++
	}
	l.queue = append(l.queue, e)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run sends events to etcd until ctx ends; what waits then is lost.
func (l *Log) Run(ctx context.Context) error {
	sent := 0
	for {
		e, ok := l.next()
		if !ok {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-l.wake:
			}
			continue
		}
		for l.send(ctx, e) != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			}
		}
		if sent++; sent%100 == 1 {
			if err := l.prune(ctx); err != nil {
				l.log.Debug("prune events", "err", err)
			}
		}
	}
}

func (l *Log) next() (model.Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 {
		n := l.dropped
		l.dropped = 0
		return model.Event{Time: l.clock.Wall().UTC(), Node: l.node, Level: Warn, Subject: "node " + l.node,
			Text: fmt.Sprintf("%d events were lost while etcd was away", n)}, true
	}
	if len(l.queue) == 0 {
		return model.Event{}, false
	}
	e := l.queue[0]
	l.queue = l.queue[1:]
	return e, true
}

// send stores an event. Repeating it after an unknown outcome may store it
// twice; the timeline is for people.
func (l *Log) send(ctx context.Context, e model.Event) error {
	key := fmt.Sprintf("%s%019d-%s", prefix, e.Time.UnixNano(), ids.New().Short())
	_, err := l.s.Commit(ctx, store.NewTx().Put(key, e))
	if errs.Kind(err) == nil && err != nil {
		l.log.Warn("store event", "err", err) // not a matter of time: give this one up
		return nil
	}
	return err
}

func (l *Log) prune(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cli := l.s.Client()
	count, err := cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return etcd.Classify(err)
	}
	if count.Count <= keep+slack {
		return nil
	}
	old, err := cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(count.Count-keep))
	if err != nil || len(old.Kvs) == 0 {
		return etcd.Classify(err)
	}
	end := string(old.Kvs[len(old.Kvs)-1].Key) + "\x00"
	_, err = cli.Delete(ctx, prefix, clientv3.WithRange(end))
	return etcd.Classify(err)
}

// List returns the newest limit events, oldest first, and the revision from
// which Watch goes on.
func (l *Log) List(ctx context.Context, limit int) ([]model.Event, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := l.s.Client().Get(ctx, prefix, clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, 0, fmt.Errorf("list events: %w", etcd.Classify(err))
	}
	out := make([]model.Event, 0, len(resp.Kvs))
	for i := len(resp.Kvs) - 1; i >= 0; i-- {
		var e model.Event
		if json.Unmarshal(resp.Kvs[i].Value, &e) == nil {
			out = append(out, e)
		}
	}
	return out, resp.Header.Revision, nil
}

// Watch calls fn with each event after revision until ctx ends or the watch
// breaks.
func (l *Log) Watch(ctx context.Context, revision int64, fn func(model.Event) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for wr := range l.s.Client().Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		if err := wr.Err(); err != nil {
			return fmt.Errorf("watch events: %w", etcd.Classify(err))
		}
		for _, ev := range wr.Events {
			var e model.Event
			if ev.Type != clientv3.EventTypePut || json.Unmarshal(ev.Kv.Value, &e) != nil {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// Subject builds the subject of an event: Subject("vm", "web") = "vm web".
func Subject(noun string, names ...string) string { return noun + " " + strings.Join(names, "/") }
