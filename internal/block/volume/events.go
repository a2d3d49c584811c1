package volume

import (
	"errors"
	"fmt"
	"sync"

	"roseau/internal/base/clock"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

var errIO = errors.New("every in-sync copy is unreadable")

// eventQueue is an unbounded queue in front of a channel, so that a turn never
// waits for whoever reads events. Health events that nobody reads are dropped.
type eventQueue struct {
	out  chan Event
	wake chan struct{}
	done chan struct{}
	gone chan struct{}
	mu   sync.Mutex
	list []Event
}

const healthBacklog = 1024

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), wake: make(chan struct{}, 1), done: make(chan struct{}), gone: make(chan struct{})}
	go q.run()
	return q
}

func (q *eventQueue) add(e Event) {
	q.mu.Lock()
	if e.Kind != EventHealth || len(q.list) < healthBacklog {
		q.list = append(q.list, e)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) run() {
	defer close(q.gone)
	defer close(q.out)
	for {
		q.mu.Lock()
		list := q.list
		q.list = nil
		q.mu.Unlock()
		for _, e := range list {
			select {
			case q.out <- e:
			case <-q.done:
				return
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.done:
			return
		}
	}
}

// close ends the queue; idempotent for one caller at a time.
func (q *eventQueue) close() {
	q.mu.Lock()
	select {
	case <-q.done:
	default:
		close(q.done)
	}
	q.mu.Unlock()
	<-q.gone
}

// Events is closed by Close.
func (s *Set) Events() <-chan Event { return s.events.out }

func (s *Set) emit(e Event) {
	e.At = s.clock.Now()
	s.log.Info("volume "+string(e.Kind), "vol", e.Volume, "disk", e.Disk, "text", e.Text)
	s.events.add(e)
}

// Lease is the present right to run.
func (s *Set) Lease() Lease {
	d := clock.Instant(s.deadline.Load())
	return Lease{Held: d != 0 && s.serving.Load() && s.clock.Now().Before(d), Deadline: d}
}

func (s *Set) leaseChanged(deadline clock.Instant) {
	s.deadline.Store(int64(deadline))
	if s.cfg.OnLease != nil {
		s.cfg.OnLease(s.Lease())
	}
	if s.Lease().Held && !s.leaseUp {
		s.leaseUp = true
		s.emit(Event{Kind: EventLeaseBack})
	} else {
		s.leaseLapsed(s.clock.Now())
	}
}

// leaseLapsed notices a lease that ran out without a word.
func (s *Set) leaseLapsed(now clock.Instant) {
	if !s.leaseUp || s.Lease().Held {
		return
	}
	s.leaseUp = false
	if s.cfg.OnLease != nil {
		s.cfg.OnLease(s.Lease())
	}
	s.emit(Event{Kind: EventLeaseLost, Text: "storage nodes did not renew the lease"})
}

// report turns the core's news into events.
func (s *Set) report(e writer.Effect) {
	switch e := e.(type) {
	case writer.Fenced:
		s.emit(Event{Kind: EventFenced, By: e.By, Text: fmt.Sprintf("epoch %d of node %s has it (status %d)", e.By.Epoch, e.By.Node, e.What)})
	case writer.GuestInvalid:
		s.emit(Event{Kind: EventGuestInvalid, Text: e.Text})
	case writer.AskMove:
		k := EventAskMove
		if e.Over {
			k = EventMoveOver
		}
		s.emit(Event{Kind: k, Text: e.Text})
	case writer.Evidence:
		s.keepEvidence(e)
	case writer.Report:
		s.emit(Event{Kind: EventKind(e.Kind), Volume: e.Volume, Disk: e.Disk, Text: e.Text})
		if e.Kind == writer.ReportHealth || e.Kind == writer.ReportForeign {
			s.publish()
		}
	default:
		panic(fmt.Sprintf("volume: unknown effect %T", e))
	}
}

// publish renews the snapshot that Status returns.
func (s *Set) publish() {
	h := s.core.Health()
	now := s.clock.Now()
	st := &Status{Phase: s.phase(), Lease: h.Lease != 0 && now.Before(h.Lease), Run: s.cfg.Run}
	for i, v := range h.Volumes {
		d := s.vols[i]
		vs := VolumeStatus{Volume: v.Volume, SizeBytes: v.SizeBytes, Epoch: v.Own.Epoch, Inc: v.Own.Inc, Nonce: v.Own.Nonce,
			Healthy: true, Stalled: v.Stalled, Waiting: v.Inflight, Healing: v.Healing, Lost: v.Lost, Rollback: v.Rollback, RollbackProgress: Progress(v.RollbackProgress),
			Parent: v.Parent, Flatten: Progress(v.Flatten), Scrub: ScrubStatus(v.Scrub), Reads: d.reads.Load(), Writes: d.writes.Load(),
			Flushes: d.flushes.Load(), ReadBytes: d.readBytes.Load(), WriteBytes: d.writeBytes.Load(),
			Hedged: v.Hedged, HedgesWon: v.HedgesWon}
		for _, m := range v.Members {
			vs.Disks = append(vs.Disks, DiskStatus{Disk: m.Disk, Node: m.Node, InSync: m.InSync, Connected: m.Connected,
				Reason: string(m.Reason), Foreign: m.Foreign, Syncing: m.Syncing, SyncDone: m.SyncDone, SyncTotal: m.SyncTotal, SyncBytes: m.SyncBytes, SyncLeft: m.SyncLeft})
			vs.Healthy = vs.Healthy && m.InSync
		}
		if i < len(s.recs.Volumes) {
			vs.Copies, vs.CopiesInSync = worstSegment(s.recs.Volumes[i], v.Own)
		}
		st.Epoch = max(st.Epoch, v.Own.Epoch)
		st.Volumes = append(st.Volumes, vs)
	}
	s.status.Store(st)
}

// Status is a snapshot, at most a quarter of a second old.
func (s *Set) Status() Status { return *s.status.Load() }

func (s *Set) phase() Phase {
	switch s.state {
	case writer.Idle, writer.Claiming:
		return PhaseOpen
	case writer.Owned, writer.Opening, writer.Reconciling:
		return PhaseClaimed
	case writer.Serving, writer.Stalling, writer.Releasing:
		return PhaseServing
	case writer.Stalled:
		return PhaseStalled
	case writer.ReleasedState:
		return PhaseReleased
	case writer.FencedState:
		return PhaseFenced
	case writer.InvalidState:
		return PhaseInvalid
	}
	return PhaseStopped
}

// worstSegment counts the copies that are wanted, and those in sync of the
// segment that has the fewest.
func worstSegment(r repl.VolumeRecord, own repl.Own) (want, have int) {
	r.Own = own
	have = r.Cfg.Copies
	for k := range r.Seg.Map {
		have = min(have, len(r.ISR(k)))
	}
	return r.Cfg.Copies, have
}
