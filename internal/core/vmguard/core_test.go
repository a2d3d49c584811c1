package vmguard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

var (
	here  = ids.MustParse("00000000-0000-4000-8000-00000000000a")
	there = ids.MustParse("00000000-0000-4000-8000-00000000000b")
	run1  = ids.MustParse("10000000-0000-4000-8000-000000000001")
	run2  = ids.MustParse("10000000-0000-4000-8000-000000000002")
	peer  = Peer{Node: there, Name: "b"}
)

const leaseTime = 3 * time.Second

// rig drives a core and checks the invariants G1 to G4 after each step.
type rig struct {
	t      *testing.T
	c      *Core
	now    clock.Instant
	asked  []Action // all so far
	last   []Action // of the last step
	goSent bool     // migrate-continue was sent, undecided
	port   clock.Instant
	halted bool // `stop` was asked for after the last `cont`
	made   bool // destination: its CAS is known to be made
	never  bool
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, c: New(here), now: clock.Instant(time.Hour), halted: true}
}

func (r *rig) step(events ...Event) *rig {
	r.t.Helper()
	for _, e := range events {
		switch e := e.(type) {
		case PeerNever, PeerCommitted:
			r.goSent = false
		case ClaimDone:
			if e.Outcome == Made {
				r.goSent, r.made = false, true
			}
		case Taken, OwnerRead, QEMUExited:
		}
		r.last = r.c.Step(r.now, e)
		for _, a := range r.last {
			r.check(e, a)
		}
		r.asked = append(r.asked, r.last...)
	}
	return r
}

func (r *rig) check(e Event, a Action) {
	r.t.Helper()
	c := r.c
	switch a := a.(type) {
	case Thaw:
		r.halted = false // it goes on as it was
	case Cont:
		if !c.mayRun() {
			r.t.Fatalf("G1: cont after %T in phase %s, pauses %v, migration %q", e, c.phase, c.Pauses(), c.Migration())
		}
		if r.goSent {
			r.t.Fatalf("G3: cont after %T without a decision", e)
		}
		r.halted = false
	case Port:
		if a.Until != 0 && (!c.held || a.Until > c.deadline.Add(-PortMargin)) {
			r.t.Fatalf("G2: port open beyond the lease after %T", e)
		}
		r.port = a.Until
	case Stop, Freeze:
		if r.port != 0 {
			r.t.Fatalf("G2: %T before the port was shut, after %T", a, e)
		}
		r.halted = true
	case MigrateGo:
		r.goSent = true
	case Unstall:
		if r.goSent {
			r.t.Fatalf("G3: I/O goes on after %T without a decision", e)
		}
	case Activate:
		if !r.made {
			r.t.Fatalf("G4: activated after %T without a CAS", e)
		}
	case TellNever:
		r.never = true
	case Claim:
		if r.never {
			r.t.Fatalf("G4: a CAS after never, after %T", e)
		}
	}
}

// did reports whether an action like a (by type) was asked for by the last step.
func (r *rig) did(a Action) bool { return count(r.last, a) > 0 }
func (r *rig) ever(a Action) bool {
	return count(r.asked, a) > 0
}

func count(list []Action, a Action) int {
	n := 0
	for _, b := range list {
		if fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b) {
			n++
		}
	}
	return n
}

func (r *rig) want(actions ...Action) *rig {
	r.t.Helper()
	for _, a := range actions {
		if !r.did(a) {
			r.t.Fatalf("no %T in %s", a, list(r.last))
		}
	}
	return r
}

func (r *rig) wantNot(actions ...Action) *rig {
	r.t.Helper()
	for _, a := range actions {
		if r.did(a) {
			r.t.Fatalf("%T in %s", a, list(r.last))
		}
	}
	return r
}

func (r *rig) phase(p Phase) *rig {
	r.t.Helper()
	if r.c.phase != p {
		r.t.Fatalf("phase %s, want %s (%s)", r.c.phase, p, r.c.reason)
	}
	return r
}

// runs says whether the guest runs here.
func (r *rig) runs(want bool) *rig {
	r.t.Helper()
	if got := r.c.GuestRuns() && !r.halted; got != want {
		r.t.Fatalf("the guest runs: %v, want %v (phase %s, pauses %v, migration %q)", got, want, r.c.phase, r.c.Pauses(), r.c.Migration())
	}
	return r
}

func list(as []Action) string {
	var b strings.Builder
	for _, a := range as {
		fmt.Fprintf(&b, "%T%+v ", a, a)
	}
	return b.String()
}

func (r *rig) after(d time.Duration) *rig { r.now = r.now.Add(d); return r }

func (r *rig) lease() LeaseChanged { return LeaseChanged{Held: true, Deadline: r.now.Add(leaseTime)} }

// running is a VM that runs, epoch 5.
func running(t *testing.T) *rig {
	r := newRig(t)
	r.step(Start{Run: run1}).want(OpenVolumes{})
	r.step(VolumesOpened{}).want(StartQEMU{}, Prepare{})
	r.step(QEMUStarted{}, Prepared{Text: "the old lease runs", Retry: 200 * time.Millisecond}).want(Prepare{}).wantNot(Take{})
	r.step(Prepared{Ready: true}).want(Take{}).wantNot(Cont{}, Port{})
	r.step(r.lease()).wantNot(Cont{})
	r.step(Taken{Epoch: 5}).want(Port{}, Announce{}, Cont{})
	return r.step(VCPUsResumed{}).phase(Running).runs(true)
}

func order(t *testing.T, as []Action, want ...string) {
	t.Helper()
	i := 0
	for _, a := range as {
		if i < len(want) && fmt.Sprintf("%T", a) == "vmguard."+want[i] {
			i++
		}
	}
	if i < len(want) {
		t.Fatalf("order %v not in %s", want, list(as))
	}
}

func TestStartOrder(t *testing.T) {
	r := running(t)
	order(t, r.asked, "OpenVolumes", "StartQEMU", "Take", "LinkUp", "Port", "Announce", "Cont")
}

// S2: at the deadline the port first, then stop without waiting, then, without
// proof, the process.
func TestLeaseLapses(t *testing.T) {
	r := running(t)
	r.after(leaseTime - 100*time.Millisecond).step(Tick{}).runs(true)
	r.after(100 * time.Millisecond).step(Tick{})
	order(t, r.last, "Port", "Stop")
	r.runs(false)
	r.after(StopProof).step(Tick{}).want(Freeze{})
	r.step(r.lease()).want(Thaw{}, Cont{}, Port{}).runs(true)
	// With proof nothing is frozen.
	r.after(leaseTime).step(Tick{}).want(Stop{})
	r.step(VCPUsStopped{}).after(time.Second).step(Tick{}).wantNot(Freeze{})
}

// S21: a lease that comes back does not end other pauses.
func TestPauseReasons(t *testing.T) {
	r := running(t)
	r.step(UserPause{}).want(Stop{}).runs(false)
	r.step(VCPUsStopped{})
	r.after(leaseTime).step(Tick{})
	if p := r.c.Pauses(); len(p) != 2 || p[0] != PauseLease || p[1] != PauseUser {
		t.Fatalf("pauses %v", p)
	}
	r.step(r.lease()).wantNot(Cont{}).runs(false)
	r.step(UserResume{}).want(Cont{}).runs(true)
	r.step(VCPUsStopped{}, IOError{NoSpace: true}).runs(false)
	r.after(5*time.Second).step(r.lease(), Tick{}).wantNot(Cont{})
	r.step(UserResume{}).want(Cont{})
}

// A full pool pauses the guest; it goes on by itself when there is space, unless
// there is another reason to stay paused.
func TestSpacePause(t *testing.T) {
	r := running(t)
	r.step(SpaceWaits{On: true}).want(Stop{}).runs(false)
	r.step(VCPUsStopped{}, SpaceWaits{}).want(Cont{}).runs(true)
	r.step(VCPUsResumed{}, SpaceWaits{On: true}).want(Stop{})
	r.step(VCPUsStopped{}, UserPause{}, SpaceWaits{}).wantNot(Cont{}).runs(false)
	r.step(UserResume{}).want(Cont{}).runs(true)
}

// A STOP without a cause is not answered at once: a migration's comes first.
func TestUnaskedStop(t *testing.T) {
	r := running(t)
	r.step(VCPUsStopped{}).wantNot(Cont{})
	r.after(time.Second).step(Tick{}).wantNot(Cont{})
	r.after(time.Second).step(r.lease(), Tick{}).want(Cont{})
}

// The table of STALE_EPOCH.
func TestFenced(t *testing.T) {
	running(t).step(Fenced{Node: here, Run: run1}).want(Exit{}).wantNot(Kill{})
	r := running(t).step(Fenced{Node: there, Run: run2}).want(Port{}, Kill{}).phase(Lost)
	order(t, r.last, "Port", "Kill")
	r.step(QEMUExited{}).want(CloseVolumes{}).wantNot(Restart{}, Release{})
	// Same run, another node, no migration known: own decides; never cont.
	r = running(t).step(Fenced{Node: there, Run: run1}).want(ReadOwner{}).wantNot(Kill{}).runs(false)
	r.step(OwnerRead{Err: errors.New("no etcd")}).want(ReadOwner{})
	r.step(OwnerRead{Owner: Owner{Epoch: 6, Node: there, Run: run1}})
	r.after(killLimit).step(Tick{}).want(Kill{}).phase(Moved)
}

// S6: acked writes may be lost under the guest: power-on, new run.
func TestGuestInvalid(t *testing.T) {
	r := running(t).step(GuestInvalid{}).want(Port{}, Kill{})
	r.step(QEMUExited{}).want(Release{})
	r.step(ReleaseDone{}).want(CloseVolumes{}, Restart{})
	r.step(Start{Run: run2}).want(OpenVolumes{})
	if r.c.Run() != run2 || r.c.Restarts() != 1 {
		t.Fatalf("run %s, %d restarts", r.c.Run(), r.c.Restarts())
	}
}

func TestStop(t *testing.T) {
	r := running(t).step(UserStop{Timeout: 30 * time.Second}).want(PowerDown{}).wantNot(Kill{}).runs(true)
	r.after(pressAgain).step(r.lease(), Tick{}).want(PowerDown{})
	r.step(GuestOff{}).want(Port{}, Kill{})
	r.step(QEMUExited{}).want(Release{})
	r.step(ReleaseDone{}).want(CloseVolumes{}).phase(Stopped)

	r = running(t).step(UserStop{Timeout: time.Second})
	r.after(time.Second).step(r.lease(), Tick{}).want(Kill{})

	r = running(t).step(UserStop{Force: true}).want(Kill{}).wantNot(PowerDown{})
	r.step(QEMUExited{}, ReleaseDone{Err: errors.New("a copy is away")}).phase(Stopped)

	// Before anything was taken.
	r = newRig(t).step(Start{Run: run1}, VolumesOpened{}, QEMUStarted{}, UserStop{}).want(Kill{})
	r.step(QEMUExited{}).want(CloseVolumes{}).phase(Stopped)
}

func TestQEMUNeverStarts(t *testing.T) {
	r := newRig(t)
	for range startTries - 1 {
		r.step(Start{Run: run1}, VolumesOpened{}, QEMUStarted{Err: errors.New("bad option")}).want(Restart{})
	}
	r.step(Start{Run: run1}, VolumesOpened{}, QEMUStarted{Err: errors.New("bad option")}).want(CloseVolumes{}).phase(Failed)
}

// Adoption: NBD and the volumes first, QMP afterwards; frozen until then.
func TestAdopt(t *testing.T) {
	r := newRig(t).step(Adopt{Saved: Saved{Run: run1}}).want(OpenVolumes{}, Freeze{}).wantNot(ConnectQMP{})
	r.step(VolumesOpened{}).want(Reopen{}).wantNot(Thaw{}, ConnectQMP{})
	r.step(r.lease())
	r.step(Taken{Epoch: 5}).want(Thaw{}, ConnectQMP{}).wantNot(Cont{}, Kill{})
	r.step(QMPUp{Status: "paused"}).want(Cont{}).runs(true)
	// S1: own names another run.
	r = newRig(t).step(Adopt{Saved: Saved{Run: run1}}, VolumesOpened{}, Taken{Fenced: true}).want(Kill{}).wantNot(Thaw{}).phase(Lost)
	// The guest powered off while nobody looked; the user's pause is kept.
	r = newRig(t).step(Adopt{Saved: Saved{Run: run1}}, VolumesOpened{}, r.lease(), Taken{Epoch: 5}, QMPUp{Status: "shutdown"}).want(Kill{})
	r = newRig(t).step(Adopt{Saved: Saved{Run: run1, User: true}}, VolumesOpened{}, r.lease(), Taken{Epoch: 5})
	r.step(QMPUp{Status: "running"}).runs(false)
}

// The state for a successor is written before what it speaks of.
func TestSavedFirst(t *testing.T) {
	r := streaming(t)
	if _, ok := r.last[0].(Save); !ok || !r.did(MigrateGo{}) {
		t.Fatalf("migrate-continue without a record: %s", list(r.last))
	}
	d := receiving(t).step(StreamStatus{Status: "completed"})
	if s, ok := d.last[0].(Save); !ok || s.Saved.Move.Stage != Committing || !d.did(Claim{}) {
		t.Fatalf("a CAS without a record: %s", list(d.last))
	}
}
