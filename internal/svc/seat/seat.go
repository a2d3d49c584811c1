// Package seat is one process's side of voting: it runs an etcd member as long
// as etcd's list of members names it, begins anew when the list names it under
// another id, and stops and clears its data when the list does not name it any
// more. Nodes have one seat, a witness two.
//
// Invariants: a member runs only under the id that was saved, durably, before
// its first start; data is cleared only on a list that was read with a quorum.
package seat

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/driver/etcd"
	"roseau/internal/nodeconf"
)

const (
	restartPause = time.Second
	leaderPoll   = 50 * time.Millisecond
	foundPoll    = 5 * time.Second
)

// Config says whose seat it is.
type Config struct {
	Etcd etcd.Config // but for InitialCluster, which comes from what was saved
	Peer string      // peer URL by which the list of members names this seat
	// Save makes the state durable. It is called before the state has effects.
	Save func(nodeconf.Seat) error
	// Enter is called before a seat begins anew, Leave after it was cleared; nil:
	// nothing.
	Enter func(context.Context) error
	Leave func() error
	Clock clock.Clock
	Log   *slog.Logger
}

// Seat is one seat. Run owns its member; the other methods may be called at any
// time.
type Seat struct {
	cfg  Config
	busy sync.Mutex // held while a member runs, and while its data are changed; before mu

	mu     sync.Mutex // protects the fields below
	saved  nodeconf.Seat
	wanted bool // false: stopped by hand
	alone  bool // the next start throws all other members out
	srv    *etcd.Server
	since  clock.Instant // since when it has seen the same leader; zero: none
	change chan struct{} // closed and replaced when what should run changes
}

// New returns a seat that goes on with what was saved.
func New(cfg Config, saved nodeconf.Seat) *Seat {
	return &Seat{cfg: cfg, saved: saved, wanted: true, change: make(chan struct{})}
}

// Alone makes the next start throw every other member out of the data: for a
// recovery, before Run.
func (s *Seat) Alone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = true
}

// Run runs the member while there should be one, until ctx ends.
func (s *Seat) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		run, change := s.state()
		if !run {
			select {
			case <-ctx.Done():
			case <-change:
			}
			continue
		}
		if err := s.once(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("etcd member stopped", "err", err)
			select {
			case <-ctx.Done():
			case <-change:
			case <-time.After(restartPause):
			}
		}
	}
	return ctx.Err()
}

func (s *Seat) state() (run bool, change <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted && s.saved.Seated, s.change
}

// once runs the member until it stops by itself, or something else should run.
func (s *Seat) once(ctx context.Context) error {
	s.busy.Lock()
	defer s.busy.Unlock()
	run, change := s.state()
	if !run {
		return nil
	}
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-change:
			cancel()
		case <-sctx.Done():
		}
	}()
	cfg := s.cfg.Etcd
	cfg.InitialCluster = s.Saved().Initial
	s.mu.Lock()
	cfg.ForceNew = s.alone
	s.mu.Unlock()
	srv, err := etcd.Start(sctx, cfg)
	if err != nil {
		if sctx.Err() != nil {
			return nil
		}
		return err
	}
	defer srv.Close()
	if err := s.started(srv); err != nil {
		return err
	}
	defer s.set(nil, 0)
	tick, found := time.NewTicker(leaderPoll), time.NewTicker(foundPoll)
	defer tick.Stop()
	defer found.Stop()
	var leader uint64
	for {
		select {
		case <-sctx.Done():
			return nil
		case <-srv.Done():
			return srv.Err()
		case <-found.C:
			if srv.Found() {
				s.cfg.Log.Info("an address of this machine is there by now: its etcd member starts anew to listen on it")
				return nil
			}
			continue
		case <-tick.C:
		}
		if now := srv.Leader(); now != leader {
			leader = now
			since := clock.Instant(0)
			if now != 0 {
				since = s.cfg.Clock.Now()
			}
			s.set(srv, since)
			s.cfg.Log.Info("etcd leader changed", "leader", fmt.Sprintf("%x", leader), "self", srv.IsLeader())
		}
	}
}

// started notes the running member. One that has just made the cluster learns
// its id here; any other must be the one that was saved.
func (s *Seat) started(srv *etcd.Server) error {
	saved := s.Saved()
	if saved.Member == 0 {
		saved.Member = srv.Member()
	}
	if saved.Member != srv.Member() {
		return fmt.Errorf("run etcd member: the data in %s are member %x's, this seat is %x's", s.cfg.Etcd.Dir, srv.Member(), saved.Member)
	}
	// From here on missing data are a loss, not a first start.
	if saved.Initial = nil; saved.Member != s.Saved().Member || s.Saved().Initial != nil {
		if err := s.save(saved); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.alone = false
	s.mu.Unlock()
	s.set(srv, 0)
	s.cfg.Log.Info("etcd member runs", "member", fmt.Sprintf("%x", srv.Member()))
	return nil
}

func (s *Seat) set(srv *etcd.Server, since clock.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.srv, s.since = srv, since
}

func (s *Seat) save(v nodeconf.Seat) error {
	if err := s.cfg.Save(v); err != nil {
		return fmt.Errorf("save seat: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = v
	return nil
}

// Saved returns what is durable.
func (s *Seat) Saved() nodeconf.Seat {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved
}

// Seated reports whether there is a seat.
func (s *Seat) Seated() bool { return s.Saved().Seated }

// Want stops or starts the member by hand; the seat stays.
func (s *Seat) Want(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted != on {
		s.wanted = on
		s.kickLocked()
	}
}

func (s *Seat) kickLocked() {
	close(s.change)
	s.change = make(chan struct{})
}

// Leading reports whether this member leads.
func (s *Seat) Leading() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv != nil && s.srv.IsLeader()
}

// LeaderSince returns since when the member has seen the same leader; zero: it
// sees none.
func (s *Seat) LeaderSince() clock.Instant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}

// HandOver gives the leadership, if this member has it, to another member.
func (s *Seat) HandOver(ctx context.Context, to uint64) error {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	if srv == nil || !srv.IsLeader() {
		return nil
	}
	return srv.MoveLeader(ctx, to)
}

// Follow brings the seat in line with a list of members that was read with a
// quorum.
func (s *Seat) Follow(ctx context.Context, members []etcd.Member) error {
	saved := s.Saved()
	i := slices.IndexFunc(members, func(m etcd.Member) bool { return slices.Contains(m.PeerURLs, s.cfg.Peer) })
	var found *etcd.Member
	if i >= 0 {
		found = &members[i]
	}
	switch v := judge(saved, found, s.hasData()); v {
	case stay:
		return nil
	case foreign:
		return fmt.Errorf("take etcd seat %s: member %x runs there already, and this machine is member %x", s.cfg.Peer, found.ID, saved.Member)
	case leave:
		s.cfg.Log.Warn("this machine votes no more: its etcd member was removed", "member", fmt.Sprintf("%x", saved.Member))
		return s.replace(nodeconf.Seat{}, s.cfg.Leave)
	case again:
		return s.renew(s.initial(members, found.ID))
	case begin:
		next := nodeconf.Seat{Seated: true, Member: found.ID, Initial: s.initial(members, found.ID)}
		if s.cfg.Enter != nil {
			if err := s.cfg.Enter(ctx); err != nil {
				return fmt.Errorf("take etcd seat: %w", err)
			}
		}
		s.cfg.Log.Info("this machine is to vote: its etcd member begins as a learner", "member", fmt.Sprintf("%x", found.ID))
		return s.replace(next, nil)
	}
	return nil
}

// renew takes a list that grew before the first start. A member that is being
// started is left alone, and so is one that has data by now: to clear them would
// be to forget under the same id what it has acknowledged.
func (s *Seat) renew(initial map[string]string) error {
	if !s.busy.TryLock() {
		return nil
	}
	defer s.busy.Unlock()
	next := s.Saved()
	if s.hasData() || maps.Equal(next.Initial, initial) {
		return nil
	}
	next.Initial = initial
	if err := s.save(next); err != nil {
		return err
	}
	s.mu.Lock()
	s.kickLocked()
	s.mu.Unlock()
	return nil
}

// replace ends what runs, clears the data and goes on with next.
func (s *Seat) replace(next nodeconf.Seat, then func() error) error {
	s.mu.Lock()
	s.saved.Seated = false // nothing starts until the end of this function
	s.kickLocked()
	s.mu.Unlock()
	s.busy.Lock() // the member has stopped
	defer s.busy.Unlock()
	if err := os.RemoveAll(s.cfg.Etcd.Dir); err != nil {
		return fmt.Errorf("clear etcd data: %w", err)
	}
	if err := s.save(next); err != nil {
		return err
	}
	s.mu.Lock()
	s.kickLocked()
	s.mu.Unlock()
	if then != nil {
		return then()
	}
	return nil
}

// hasData reports whether a member ran here: then its first start is over.
func (s *Seat) hasData() bool {
	wal, err := filepath.Glob(filepath.Join(s.cfg.Etcd.Dir, "member", "wal", "*.wal"))
	return err != nil || len(wal) > 0
}

// initial is the list as a new member must know it: etcd compares it with what
// the others say. A member that has not started has no name yet; any will do.
func (s *Seat) initial(members []etcd.Member, mine uint64) map[string]string {
	out := map[string]string{}
	for _, m := range members {
		name := m.Name
		switch {
		case m.ID == mine:
			name = s.cfg.Etcd.Name
		case name == "":
			name = fmt.Sprintf("unnamed-%x", m.ID)
		}
		if len(m.PeerURLs) > 0 {
			out[name] = strings.Join(m.PeerURLs, ",")
		}
	}
	return out
}

// verdict is what a list of members means for a seat.
type verdict int

const (
	stay    verdict = iota // all is as it should be
	leave                  // not named any more: stop, clear
	begin                  // named under a new id: clear, start
	again                  // not started yet: take the list as it is now
	foreign                // somebody else runs there
)

// judge compares what is saved with the list's entry of this seat; found nil:
// the list has none.
func judge(saved nodeconf.Seat, found *etcd.Member, hasData bool) verdict {
	switch {
	case found == nil && !saved.Seated:
		return stay
	case found == nil && saved.Member == 0:
		return stay // it makes the cluster: the list is not its own yet
	case found == nil:
		return leave
	case saved.Seated && (found.ID == saved.Member || saved.Member == 0):
		if found.Name == "" && !hasData && saved.Member != 0 {
			return again
		}
		return stay
	case found.Learner && found.Name == "":
		return begin
	}
	return foreign
}
