package volume

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
)

// waiter is a command that waits for an effect of the core. match runs in the
// loop after each effect that it may care for; it returns true to end the wait.
type waiter struct {
	on   signalKind
	done chan error
	// decide is called with the state as it is; ok ends the wait with err.
	decide func() (err error, ok bool)
}

type signalKind uint8

const (
	onState signalKind = iota + 1
	onPrepared
	onClaimed
	onDrained
	onReplaced
	onSnapshotted
)

// notify lets waiters look.
func (s *Set) notify(k signalKind) {
	keep := s.waiters[:0]
	for _, w := range s.waiters {
		err, ok := error(nil), false
		if w.on == k {
			err, ok = w.decide()
		}
		if over := s.final(); !ok && over != nil { // a final state ends every wait
			err, ok = over, true
		}
		if ok {
			w.done <- err // capacity 1
		} else {
			keep = append(keep, w)
		}
	}
	clear(s.waiters[len(keep):])
	s.waiters = keep
}

// final returns why the set will never serve again, or nil.
func (s *Set) final() error {
	switch s.state {
	case writer.FencedState:
		return errs.New(errs.Fenced, "the volumes were taken over: %s", s.reason)
	case writer.InvalidState:
		return errs.New(errs.Fenced, "the guest's memory is invalid: %s", s.reason)
	case writer.StoppedState:
		return errs.New(errs.Unavailable, "the writer stopped: %s", s.reason)
	case writer.ReleasedState:
		return errs.New(errs.Conflict, "the volumes are released")
	}
	return nil
}

// command runs start in a turn and waits until decide says so, at effects of
// kind k. decide is asked once right after start, too, if now.
func (s *Set) command(ctx context.Context, k signalKind, now bool, start func(), decide func() (error, bool)) error {
	w := &waiter{on: k, done: make(chan error, 1), decide: decide}
	s.call(func() {
		if err := s.final(); err != nil && k != onState {
			w.done <- err
			return
		}
		if now {
			if err, ok := decide(); ok {
				w.done <- err
				return
			}
		}
		s.waiters = append(s.waiters, w)
		if start != nil {
			start()
		}
	})
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	s.call(func() {
		for i, x := range s.waiters {
			if x == w {
				s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
				return
			}
		}
	})
	select {
	case err := <-w.done: // it was decided at the same moment
		return err
	default:
	}
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return errs.New(errs.Unavailable, "wait for storage: %w", context.Cause(ctx))
}

func (s *Set) do(c writer.Command) func() { return func() { s.step(c) } }

func (s *Set) stateChanged(e writer.StateChanged) {
	before := s.state
	s.state, s.reason = e.State, e.Text
	s.log.Debug("writer state", "from", before, "to", e.State, "text", e.Text)
	s.serving.Store(e.State == writer.Serving || e.State == writer.Stalling || e.State == writer.Stalled || e.State == writer.Releasing)
	if e.State == writer.Serving && before != writer.Stalled && before != writer.Stalling {
		s.emit(Event{Kind: EventTaken, Text: e.Text})
	}
	s.leaseChanged(clock.Instant(s.deadline.Load()))
	s.publish()
	s.newState = true // told when the lease that comes with it is known, too
}

func (s *Set) preparedRound(e writer.Prepared) {
	s.prepared = Prepared{Ready: e.Ready, Reachable: e.Reachable, Live: e.Live, Retry: e.Retry, Text: e.Text}
	for _, m := range e.Waiting {
		s.prepared.Waiting = append(s.prepared.Waiting, Missing(m))
	}
	s.notify(onPrepared)
}

// Prepare asks every member once.
func (s *Set) Prepare(ctx context.Context) (Prepared, error) {
	var p Prepared
	err := s.command(ctx, onPrepared, false, s.do(writer.Command{Kind: writer.Prepare}), func() (error, bool) {
		p = s.prepared
		return nil, true
	})
	return p, err
}

// claimState is what is known of the last claim.
type claimState struct {
	sent    bool
	outcome Outcome // "" until the core said something
	text    string
}

func (s *Set) claimKnown(e writer.Claimed) {
	s.claimed.text = e.Text
	switch e.Outcome {
	case writer.Made:
		s.claimed.outcome = Made
	case writer.NotMade:
		s.claimed.outcome, s.claimed.sent = NotMade, false
	default:
		s.claimed.outcome = Unknown
	}
	s.log.Info("claim", "outcome", s.claimed.outcome, "text", e.Text)
	s.notify(onClaimed)
}

// Claim makes the CAS.
func (s *Set) Claim(ctx context.Context, c Claim) (Outcome, error) {
	return s.claim(ctx, writer.DoClaim, c)
}

// Reclaim is the migration source's own CAS.
func (s *Set) Reclaim(ctx context.Context, c Claim) (Outcome, error) {
	o, err := s.claim(ctx, writer.Reclaim, c)
	if o != Made {
		return o, err
	}
	return o, s.serve(ctx)
}

func (s *Set) claim(ctx context.Context, kind writer.CommandKind, c Claim) (Outcome, error) {
	wait := ctx
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	var out claimState
	send := func() {
		if s.claimed.sent && s.claimed.outcome != Made {
			return // the core goes on with the one that is under way
		}
		s.claimed = claimState{sent: true}
		s.step(writer.Command{Kind: kind, Claim: writer.Claim{ExpectRun: c.ExpectRun, ExpectEpoch: c.ExpectEpoch, Placement: c.Placement}})
	}
	err := s.command(wait, onClaimed, false, send, func() (error, bool) {
		out = s.claimed
		return nil, out.outcome == Made || out.outcome == NotMade
	})
	switch {
	case err != nil && errs.Kind(err) == errs.Unavailable && s.ctx.Err() == nil && ctx.Err() == nil:
		return Unknown, nil // only c.Timeout ended
	case err != nil:
		return Unknown, err
	case out.outcome == NotMade:
		return NotMade, errs.New(errs.Conflict, "claim volumes: %s", out.text)
	}
	return Made, nil
}

// Abort ends Prepare. The outcome NotMade binds: no CAS was sent and none ever
// will be.
func (s *Set) Abort(ctx context.Context) (Outcome, error) {
	var out claimState
	err := s.command(ctx, onClaimed, false, s.do(writer.Command{Kind: writer.Abort}), func() (error, bool) {
		out = s.claimed
		return nil, true
	})
	if err != nil {
		return Unknown, err
	}
	return out.outcome, nil
}

// serve waits until the set serves.
func (s *Set) serve(ctx context.Context) error {
	return s.command(ctx, onState, true, nil, s.servingOrOver)
}

func (s *Set) servingOrOver() (error, bool) {
	switch {
	case s.final() != nil:
		return s.final(), true
	case s.state == writer.Serving:
		return nil, true
	}
	return nil, false
}

// Activate opens the members under the claimed epoch and returns when the set
// serves.
func (s *Set) Activate(ctx context.Context) error {
	err := s.command(ctx, onState, true, s.do(writer.Command{Kind: writer.Activate}), s.servingOrOver)
	if err != nil {
		return fmt.Errorf("activate volumes: %w", err)
	}
	return nil
}

// Take is Claim and Activate.
func (s *Set) Take(ctx context.Context, c Claim) error {
	for {
		o, err := s.Claim(ctx, c)
		if err != nil {
			return fmt.Errorf("take volumes: %w", err)
		}
		if o == Made {
			return s.Activate(ctx)
		}
	}
}

// Reopen takes up after a predecessor that is certainly gone.
func (s *Set) Reopen(ctx context.Context, p Predecessor) error {
	pred := wire.PredecessorID{Epoch: p.Epoch, Nonce: p.Nonce, Inc: p.Inc}
	begun := false
	again := fmt.Errorf("not under the same epoch")
	err := s.command(ctx, onState, false, func() {
		begun = true
		s.step(writer.Command{Kind: writer.Reopen, Predecessor: pred})
	}, func() (error, bool) {
		if begun && s.state == writer.Idle {
			return again, true
		}
		return s.servingOrOver()
	})
	if err != again {
		if err != nil {
			return fmt.Errorf("reopen volumes: %w", err)
		}
		return nil
	}
	s.log.Info("reopen needs a new epoch")
	for {
		r, err := s.Prepare(ctx)
		if err != nil {
			return fmt.Errorf("reopen volumes: %w", err)
		}
		if !r.Ready {
			continue // the core repeats the rounds at its own pace
		}
		err = s.Take(ctx, Claim{ExpectRun: s.cfg.Run})
		if errs.Kind(err) == errs.Conflict && ctx.Err() == nil {
			if o, oerr := s.Owner(ctx); oerr == nil && o.Run != s.cfg.Run {
				return errs.New(errs.Fenced, "reopen volumes: run %s has them on node %s", o.Run, o.Node)
			}
			continue
		}
		return err
	}
}

// Owner reads own of the first volume linearizably.
func (s *Set) Owner(ctx context.Context) (Owner, error) {
	key := repl.Key{Kind: repl.KeyOwn, ID: s.cfg.Volumes[0]}.Path()
	for {
		get, cancel := context.WithTimeout(ctx, readTimeout)
		resp, err := s.cfg.Etcd.Get(get, key)
		cancel()
		if err == nil && len(resp.Kvs) == 1 {
			return decodeOwner(resp, s.cfg.nonce)
		}
		if err == nil {
			return Owner{}, errs.New(errs.NotFound, "read owner of volume %s: no record", s.cfg.Volumes[0])
		}
		if clock.Sleep(ctx, retryDelay) != nil {
			return Owner{}, errs.New(errs.Unavailable, "read owner of volume %s: %w", s.cfg.Volumes[0], err)
		}
	}
}

func decodeOwner(resp *clientv3.GetResponse, nonce ids.ID) (Owner, error) {
	var own repl.Own
	if err := decodeRecord(string(resp.Kvs[0].Key), resp.Kvs[0].Value, &own); err != nil {
		return Owner{}, err
	}
	return Owner{Epoch: own.Epoch, Inc: own.Inc, Node: own.Node, Run: own.Run, Nonce: own.Nonce, Purpose: own.Purpose,
		Mine: own.Nonce == nonce}, nil
}

func (s *Set) drained() { s.notify(onDrained) }

// Drain waits until every request received so far is answered, then flushes.
func (s *Set) Drain(ctx context.Context) error {
	err := s.command(ctx, onDrained, false, s.do(writer.Command{Kind: writer.Drain}), func() (error, bool) { return nil, true })
	if err != nil {
		return fmt.Errorf("drain volumes: %w", err)
	}
	return nil
}

// Stall drains, flushes, and lets reads and writes wait from then on.
func (s *Set) Stall(ctx context.Context) error {
	err := s.command(ctx, onState, true, s.do(writer.Command{Kind: writer.Stall}), func() (error, bool) {
		if err := s.final(); err != nil {
			return err, true
		}
		return nil, s.state == writer.Stalled
	})
	if err != nil {
		s.Resume()
		return fmt.Errorf("stall volumes: %w", err)
	}
	return nil
}

// Resume ends Stall under the same epoch.
func (s *Set) Resume() error {
	return s.order(writer.Command{Kind: writer.Resume})
}

// order gives a command that has no answer.
func (s *Set) order(c writer.Command) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	s.call(s.do(c))
	return nil
}

// MoveRefused ends the wait that EventAskMove announced.
func (s *Set) MoveRefused() error { return s.order(writer.Command{Kind: writer.MoveRefused}) }

// AcceptTail is an operator's word; see Handle.
func (s *Set) AcceptTail(vol ids.ID, accept bool) (volumectl.Tail, error) {
	type answer struct {
		t   volumectl.Tail
		err error
	}
	done := make(chan answer, 1)
	s.call(func() {
		t, err := s.acceptTail(vol, accept)
		done <- answer{t, err}
	})
	select {
	case a := <-done:
		return a.t, a.err
	case <-s.ctx.Done():
		return volumectl.Tail{}, errs.New(errs.Unavailable, "accept the tail of volume %s: its writer is closed", vol)
	}
}

// acceptTail runs in the turn.
func (s *Set) acceptTail(vol ids.ID, accept bool) (volumectl.Tail, error) {
	t := volumectl.Tail{Doubts: []volumectl.Doubt{}}
	health := s.core.Health().Volumes
	i := slices.IndexFunc(health, func(v writer.VolumeHealth) bool { return v.Volume == vol })
	if i < 0 {
		return t, errs.New(errs.NotFound, "accept the tail of volume %s: it is not open here", vol)
	}
	for _, d := range health[i].Doubts {
		t.Doubts = append(t.Doubts, volumectl.Doubt(d))
	}
	switch {
	case len(t.Doubts) == 0:
		return t, errs.New(errs.Conflict, "accept the tail of volume %s: it waits for no such word", vol).
			WithHint("it is served, or waits for copies that must answer: `roseau volume show`, `roseau events`")
	case accept:
		s.step(writer.Command{Kind: writer.AcceptUnverified, Volume: i})
	}
	return t, nil
}

// Release ends the epoch for good.
func (s *Set) Release(ctx context.Context) error {
	err := s.command(ctx, onState, true, s.do(writer.Command{Kind: writer.Release}), func() (error, bool) {
		if s.state == writer.ReleasedState {
			return nil, true
		}
		return s.final(), s.final() != nil
	})
	if err != nil {
		return fmt.Errorf("release volumes: %w", err)
	}
	return nil
}

// ReplaceDisk gives a disk segments of another one.
func (s *Set) ReplaceDisk(ctx context.Context, r Replace) error {
	index := -1
	for _, d := range s.vols {
		if d.id == r.Volume {
			index = d.index
		}
	}
	if index < 0 {
		return errs.New(errs.NotFound, "replace disk of volume %s: it is not in this set", r.Volume)
	}
	for {
		busy, err := s.replaceOnce(ctx, writer.Replace{ID: s.replaces.Add(1), Volume: index, Old: r.Old, New: r.New, NewNode: r.Node, Segments: r.Segments, Live: r.Live})
		if err == nil {
			return nil
		}
		if busy {
			select {
			case <-ctx.Done():
			case <-time.After(replaceAgain):
				continue
			}
		}
		return fmt.Errorf("replace disk %s of volume %s: %w", r.Old, r.Volume, err)
	}
}

// replaceAgain is the pause before a change is asked for again that met another
// one under way.
const replaceAgain = 50 * time.Millisecond

func (s *Set) replaceOnce(ctx context.Context, want writer.Replace) (busy bool, err error) {
	err = s.command(ctx, onReplaced, false, s.do(writer.Command{Kind: writer.ReplaceDisk, Replace: want}), func() (error, bool) {
		e := s.lastReplaced
		if e.Replace.ID != want.ID {
			return nil, false
		}
		if !e.OK {
			busy = e.Busy
			return errs.New(errs.Conflict, "%s", e.Text), true
		}
		return nil, true
	})
	return busy, err
}

func (s *Set) replaced(e writer.Replaced) {
	s.lastReplaced = e
	s.notify(onReplaced)
}

// Snapshot takes or deletes a snapshot.
func (s *Set) Snapshot(ctx context.Context, o repl.SnapshotOrder) error {
	want := writer.SnapshotOrder{Delete: o.Delete, ID: o.Snapshot.ID, Name: o.Snapshot.Name, CreatedUnix: o.Snapshot.CreatedUnix, Group: o.Snapshot.Group}
	if want.ID.IsZero() {
		want.ID = ids.New() // the answer is told by it
	}
	for _, d := range s.vols {
		if o.Volume.IsZero() || d.id == o.Volume {
			want.Volumes = append(want.Volumes, d.index)
		}
	}
	if len(want.Volumes) == 0 {
		return errs.New(errs.NotFound, "snapshot volume %s: it is not in this set", o.Volume)
	}
	if err := s.serve(ctx); err != nil { // a VM that has just been started is being opened
		return err
	}
	return s.command(ctx, onSnapshotted, false, s.do(writer.Command{Kind: writer.Snapshot, Snapshot: want}), func() (error, bool) {
		e := s.lastSnapshot
		switch {
		case e.Order.ID != want.ID:
			return nil, false
		case !e.OK:
			return errs.New(errs.Conflict, "%s", e.Text), true
		}
		return nil, true
	})
}

func (s *Set) snapshotted(e writer.Snapshotted) {
	s.lastSnapshot = e
	s.notify(onSnapshotted)
}

// Ping returns when a turn was taken.
func (s *Set) Ping(ctx context.Context) error {
	return s.command(ctx, onState, true, nil, func() (error, bool) { return nil, true })
}
