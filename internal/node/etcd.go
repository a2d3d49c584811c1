package node

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/driver/etcd"
)

const (
	etcdRestartPause = time.Second
	leaderPoll       = 100 * time.Millisecond
)

// voter runs this node's etcd member, starts it again when it stopped by itself,
// and stops and starts it on order.
type voter struct {
	cfg   etcd.Config
	clock clock.Clock
	log   *slog.Logger

	mu     sync.Mutex // protects the fields below
	wanted bool
	srv    *etcd.Server  // nil while it does not run
	since  clock.Instant // since when it has seen the same leader; zero: none
	change chan struct{} // closed and replaced when wanted changes
}

func newVoter(cfg etcd.Config, clk clock.Clock, log *slog.Logger) *voter {
	return &voter{cfg: cfg, clock: clk, log: log, wanted: true, change: make(chan struct{})}
}

// run is the member's owner until ctx ends.
func (v *voter) run(ctx context.Context) error {
	for ctx.Err() == nil {
		wanted, change := v.state()
		if !wanted {
			select {
			case <-ctx.Done():
			case <-change:
			}
			continue
		}
		if err := v.once(ctx, change); err != nil && ctx.Err() == nil {
			v.log.Error("etcd member stopped", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(etcdRestartPause):
			}
		}
	}
	return ctx.Err()
}

func (v *voter) state() (bool, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.wanted, v.change
}

// once runs the member until it stops by itself, or is to stop.
func (v *voter) once(ctx context.Context, change <-chan struct{}) error {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-change:
			cancel()
		case <-sctx.Done():
		}
	}()
	srv, err := etcd.Start(sctx, v.cfg)
	if err != nil {
		if sctx.Err() != nil {
			return nil
		}
		return err
	}
	v.log.Info("etcd member runs")
	v.set(srv, 0)
	defer v.set(nil, 0)
	defer srv.Close()
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	var leader uint64
	for {
		select {
		case <-sctx.Done():
			return nil
		case <-srv.Done():
			return srv.Err()
		case <-tick.C:
		}
		if now := srv.Leader(); now != leader {
			leader = now
			since := clock.Instant(0)
			if now != 0 {
				since = v.clock.Now()
			}
			v.set(srv, since)
			v.log.Info("etcd leader changed", "leader", leader, "self", srv.IsLeader())
		}
	}
}

func (v *voter) set(srv *etcd.Server, since clock.Instant) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.srv, v.since = srv, since
}

// want stops or starts the member.
func (v *voter) want(on bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.wanted != on {
		v.wanted = on
		close(v.change)
		v.change = make(chan struct{})
	}
}

// leading reports whether this member leads.
func (v *voter) leading() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.srv != nil && v.srv.IsLeader()
}

func (v *voter) leaderSince() clock.Instant {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.since
}
