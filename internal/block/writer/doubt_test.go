package writer

import (
	"slices"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
)

// A copy that lost a durable part of its log is the only one that answers: the volume
// waits, says for what, and goes on when an operator accepts it.
func TestTailWaitsForAnOperator(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	w.kill(g)
	w.run(4 * time.Second)
	w.replica(0).damaged = true
	w.place(w.nodes[0])
	s := w.newGuard(w.nodes[0], w.newID(), false, Mutations{})
	w.isolate(s, 1, 2)
	s.step(Liveness{Alive: []ids.ID{w.nodes[0].id}})
	s.take = true
	s.command(Command{Kind: Prepare})
	w.run(time.Minute)
	if s.core.State() != Opening {
		t.Fatalf("state %v: it must wait", s.core.State())
	}
	d := s.core.Health().Volumes[0].Doubts
	if len(d) != 1 || d[0].Disk != w.nodes[0].disks[0].id || !d[0].Damaged || len(d[0].Missing) != 2 || d[0].Segments != len(s.core.vols[0].segs) {
		t.Errorf("doubts: %+v", d)
	}
	said := 0
	for _, r := range s.reports {
		if r.Kind == ReportWaiting && strings.Contains(r.Text, "accept-tail") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times: %+v", said, s.reports)
	}
	s.command(Command{Kind: AcceptUnverified, Volume: 1}) // no such volume
	w.run(time.Second)
	if s.core.State() != Opening {
		t.Errorf("state %v: the word was for another volume", s.core.State())
	}
	s.command(Command{Kind: AcceptUnverified})
	w.run(2 * time.Second)
	if s.core.State() != Serving || len(w.own().Out) != 2 {
		t.Errorf("state %v, %d out", s.core.State(), len(w.own().Out))
	}
	if d := s.core.Health().Volumes[0].Doubts; len(d) != 0 {
		t.Errorf("accepted, and still in doubt: %+v", d)
	}
}

// While another copy may answer, and when nothing is wrong, there is nothing to accept.
func TestNothingToAccept(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	if d := g.core.Health().Volumes[0].Doubts; len(d) != 0 {
		t.Errorf("a volume that is served: %+v", d)
	}
	w.kill(g)
	w.run(4 * time.Second)
	w.replica(0).damaged = true
	w.place(w.nodes[0])
	s := w.newGuard(w.nodes[0], w.newID(), false, Mutations{})
	s.take = true
	s.command(Command{Kind: Prepare})
	w.run(5 * time.Second)
	if s.core.State() != Serving || slices.ContainsFunc(s.reports, func(r Report) bool { return r.Kind == ReportWaiting }) {
		t.Errorf("state %v, reports %+v", s.core.State(), s.reports)
	}
}
