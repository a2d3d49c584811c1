package vmguard

import (
	"errors"
	"testing"
	"time"
)

// The table "Live migration: who may run" of docs/design/ha.md. A test a row,
// a sub-test a cell, named by the phase: a before STOP, b STOP to CAS not sent,
// c CAS sent and its outcome unknown, d CAS known before cont, e after cont.

var (
	ownedHere  = OwnerRead{Owner: Owner{Epoch: 5, Node: here, Run: run1, Mine: true}}
	ownedThere = OwnerRead{Owner: Owner{Epoch: 6, Node: there, Run: run1}}
	noEtcd     = OwnerRead{Err: errors.New("no etcd")}
)

// precopy is a source in (a).
func precopy(t *testing.T) *rig {
	r := running(t)
	r.step(UserMigrate{Target: peer}).want(ConnectPeer{}).runs(true)
	return r.step(PeerAccepted{}).want(MigrateStart{}).runs(true)
}

// switching is a source at STOP, before migrate-continue.
func switching(t *testing.T) *rig {
	r := precopy(t)
	r.step(VCPUsStopped{}).wantNot(Cont{})
	r.step(StreamStatus{Status: "pre-switchover"}).want(Port{}, TellSwitch{}, Stall{}, ReadOwner{}).wantNot(MigrateGo{})
	return r.runs(false)
}

// streaming is a source in (b).
func streaming(t *testing.T) *rig {
	r := switching(t)
	r.step(StallDone{}).wantNot(MigrateGo{})
	return r.step(ownedHere).want(MigrateGo{}).runs(false)
}

// unknown is a source in (c).
func unknown(t *testing.T) *rig {
	return streaming(t).step(StreamStatus{Status: "completed"}, PeerLost{}).want(ReadOwner{}, AskPeer{}).runs(false)
}

// receiving is a destination in (a) and (b).
func receiving(t *testing.T) *rig {
	r := newRig(t).step(Receive{Run: run1, Source: there}).want(OpenVolumes{}).phase(Incoming)
	r.step(VolumesOpened{}).want(StartQEMU{})
	r.step(SourceHello{Epoch: 5, Run: run1}).want(TellRefuse{}) // not ready
	r.step(QEMUStarted{}, SourceHello{Epoch: 5, Run: run2}).want(TellRefuse{})
	r.step(SourceHello{Epoch: 5, Run: run1}).want(Prepare{}).wantNot(TellAccept{})
	r.step(Prepared{Reachable: true}).want(MigrateIncoming{}, TellAccept{})
	return r.step(SourceSwitch{}).want(LinkUp{}, Announce{}).wantNot(Port{}).runs(false)
}

// committing is a destination in (c).
func committing(t *testing.T) *rig {
	return receiving(t).step(StreamStatus{Status: "completed"}).want(Claim{}).wantNot(Activate{}, TellCommitted{})
}

// committed is a destination in (d).
func committed(t *testing.T) *rig {
	return committing(t).step(ClaimDone{Outcome: Made, Epoch: 6}).want(TellCommitted{}).wantNot(Cont{}, Activate{})
}

// arrived is a destination in (e).
func arrived(t *testing.T) *rig {
	r := committed(t).step(SourceReleased{}).want(Activate{}).wantNot(Cont{})
	r.step(r.lease())
	r.step(Taken{Epoch: 6})
	order(t, r.last, "Port", "Announce", "Cont")
	return r.phase(Running).runs(true)
}

func stays(t *testing.T, r *rig) {
	t.Helper()
	if r.c.mig != nil && r.c.mig.stage == Returning {
		r.step(StreamStatus{Status: "cancelled"})
	}
	r.runs(true).phase(Running)
	if !r.ever(Announce{}) || r.c.mig != nil {
		t.Fatal("the migration is not over")
	}
}

func TestMigrationCompletes(t *testing.T) {
	r := streaming(t).step(StreamStatus{Status: "completed"}).wantNot(Kill{}, Release{})
	r.step(PeerCommitted{}).want(Release{}).wantNot(Kill{})
	r.step(ReleaseDone{}).want(TellReleased{}, Kill{}).phase(Moved)
	r.step(QEMUExited{}).want(CloseVolumes{}).wantNot(Restart{})
	arrived(t)
}

func TestRowSourceGuard(t *testing.T) {
	t.Run("a: its successor cancels", func(t *testing.T) {
		r := newRig(t).step(Adopt{Saved: precopy(t).c.saved}, VolumesOpened{})
		r.step(r.lease(), Taken{Epoch: 5})
		r.step(QMPUp{Status: "running"}).want(MigrateStop{}).runs(true)
	})
	saved := streaming(t).c.saved
	successor := func(t *testing.T) *rig {
		r := newRig(t).step(Adopt{Saved: saved}).want(Freeze{})
		return r.step(VolumesOpened{}).want(ReadOwner{}, AskPeer{}).wantNot(Reopen{}, Thaw{})
	}
	t.Run("b: successor stays paused, never -> source", func(t *testing.T) {
		r := successor(t).step(noEtcd).runs(false)
		r.step(PeerNever{}).want(Reopen{}).wantNot(Thaw{})
		r.step(r.lease(), Taken{Epoch: 5}).want(Thaw{}, ConnectQMP{})
		r.step(QMPUp{Status: "postmigrate"}).runs(true)
	})
	t.Run("b: own is still ours: a take decides", func(t *testing.T) {
		r := successor(t).step(ownedHere).want(Take{})
		if got := r.last[len(r.last)-1]; got != (Take{ExpectRun: run1, ExpectEpoch: 5}) {
			t.Fatalf("the take is not bound to what was read: %+v", got)
		}
		r.step(r.lease(), Taken{Epoch: 6}).want(Thaw{})
		r.step(QMPUp{Status: "paused"}).runs(true)
	})
	t.Run("c, d: destination has it", func(t *testing.T) {
		successor(t).step(ownedThere).want(Kill{}).wantNot(Release{}).phase(Moved)
		successor(t).step(PeerCommitted{}).want(Kill{}).phase(Moved)
	})
	t.Run("b: at the destination a stream that is whole is committed", func(t *testing.T) {
		receiving(t).step(SourceLost{}, StreamStatus{Status: "completed"}).want(Claim{})
	})
	t.Run("d: no RELEASE comes", func(t *testing.T) {
		committed(t).step(SourceLost{}).want(Activate{})
		r := committed(t)
		r.after(releaseWait).step(Tick{}).want(Activate{})
	})
}

func TestRowSourceQEMU(t *testing.T) {
	t.Run("a: power-on, new run", func(t *testing.T) {
		r := precopy(t).step(QEMUExited{}).want(TellCancel{}, Release{})
		r.step(ReleaseDone{}).want(Restart{})
		receiving(t).step(SourceCancel{}).want(TellNever{}, Kill{}).phase(Lost)
	})
	t.Run("b: destination may commit", func(t *testing.T) {
		r := streaming(t).step(QEMUExited{}).want(TellCancel{}).wantNot(Release{}, Restart{})
		r.step(PeerCommitted{}, ReleaseDone{}).phase(Moved).wantNot(Restart{})
	})
	t.Run("b: never: power-on, new run", func(t *testing.T) {
		r := streaming(t).step(QEMUExited{}, PeerNever{}).want(Release{})
		r.step(ReleaseDone{}).want(Restart{})
	})
}

func TestRowDestinationGuard(t *testing.T) {
	t.Run("a: source", func(t *testing.T) {
		stays(t, precopy(t).step(PeerLost{}).want(MigrateStop{}))
	})
	t.Run("b: source by its own CAS", func(t *testing.T) {
		r := unknown(t).step(ownedHere).want(Reclaim{}).runs(false)
		stays(t, r.step(r.lease(), ClaimDone{Outcome: Made, Epoch: 6}))
	})
	t.Run("b: never from a successor guard", func(t *testing.T) {
		stays(t, unknown(t).step(PeerNever{}).want(Unstall{}))
		d := newRig(t).step(Adopt{Saved: receiving(t).c.saved}).want(TellNever{}, Kill{}).wantNot(OpenVolumes{}).phase(Lost)
		d.step(QEMUExited{}, SourceCancel{}).want(TellNever{})
	})
	t.Run("b: without etcd both paused", func(t *testing.T) {
		r := unknown(t).step(noEtcd).want(ReadOwner{})
		r.step(PeerLost{}).want(AskPeer{}).after(time.Second)
		r.step(r.lease(), Tick{}).runs(false)
	})
	saved := committing(t).c.saved
	t.Run("c: its successor reads own: mine", func(t *testing.T) {
		d := newRig(t).step(Adopt{Saved: saved}, VolumesOpened{}).want(ReadOwner{})
		d.step(OwnerRead{Owner: Owner{Epoch: 6, Node: here, Run: run1}}).want(Reopen{}, TellCommitted{})
		d.step(d.lease(), Taken{Epoch: 6}).want(Thaw{})
		d.step(QMPUp{Status: "paused"}).runs(true)
	})
	t.Run("c: its successor reads own: 5, may send again", func(t *testing.T) {
		d := newRig(t).step(Adopt{Saved: saved}, VolumesOpened{})
		d.step(OwnerRead{Owner: Owner{Epoch: 5, Node: there, Run: run1}}).want(Claim{})
	})
	t.Run("d: source gives it up", func(t *testing.T) {
		unknown(t).step(ownedThere).want(Release{}).wantNot(Unstall{}, Reclaim{})
	})
}

func TestRowDestinationQEMU(t *testing.T) {
	t.Run("a, b: never", func(t *testing.T) {
		receiving(t).step(QEMUExited{}).want(TellNever{}).wantNot(Restart{}).phase(Lost)
		receiving(t).step(StreamStatus{Status: "failed"}).want(TellNever{}, Kill{}).phase(Lost)
		stays(t, streaming(t).step(StreamStatus{Status: "failed"}).want(TellCancel{}).runs(false).step(PeerNever{}))
	})
	t.Run("b: QEMU's own resume is undone", func(t *testing.T) {
		streaming(t).step(VCPUsResumed{}).want(Stop{}).runs(false)
	})
	t.Run("c: made: power-on, the source never", func(t *testing.T) {
		d := committing(t).step(QEMUExited{}).wantNot(TellNever{})
		d.step(ClaimDone{Outcome: Made, Epoch: 6}).want(TellCommitted{}, Restart{})
	})
	t.Run("c: not made: source", func(t *testing.T) {
		committing(t).step(QEMUExited{}, ClaimDone{Outcome: NotMade}).want(TellNever{}).wantNot(Restart{})
	})
	t.Run("d, e: power-on", func(t *testing.T) {
		committed(t).step(QEMUExited{}).want(Restart{})
		arrived(t).step(QEMUExited{}).want(Release{})
	})
}

func TestRowLink(t *testing.T) {
	t.Run("a", func(t *testing.T) {
		stays(t, precopy(t).step(PeerLost{}))
		stays(t, switching(t).step(StallDone{}, PeerLost{}).want(Unstall{}))
		d := receiving(t).step(SourceLost{})
		d.after(linkWait).step(Tick{}).want(TellNever{}).phase(Lost)
	})
	t.Run("b: source by its own CAS, the destination's fails", func(t *testing.T) {
		stays(t, unknown(t).step(ownedHere, ClaimDone{Outcome: Made, Epoch: 6}))
		committing(t).step(SourceLost{}, ClaimDone{Outcome: NotMade}).want(Kill{}).phase(Lost)
	})
	t.Run("c: the CAS decides", func(t *testing.T) {
		r := unknown(t).step(ownedHere, ClaimDone{Outcome: NotMade}).want(ReadOwner{}).runs(false)
		r.step(ownedThere).want(Release{})
		committing(t).step(SourceLost{}, ClaimDone{Outcome: Made, Epoch: 6}).want(Activate{})
	})
	t.Run("d: by etcd or by OPEN(6)", func(t *testing.T) {
		r := unknown(t).step(Fenced{Node: there, Run: run1}).wantNot(Unstall{}, Cont{})
		r.step(Tick{}).phase(Moved)
	})
}

func TestRowEtcd(t *testing.T) {
	t.Run("a: pre-switchover is not passed", func(t *testing.T) {
		r := switching(t).step(noEtcd).want(TellCancel{}, MigrateStop{}).wantNot(MigrateGo{})
		r.step(StallDone{}).want(Unstall{})
		stays(t, r)
	})
	t.Run("b: never within 2 s -> source under 5", func(t *testing.T) {
		r := streaming(t).after(streamLimit)
		r.step(r.lease(), Tick{}).want(TellCancel{}).runs(false)
		stays(t, r.step(PeerNever{}).want(Unstall{}))
	})
	t.Run("c: both paused until etcd is back", func(t *testing.T) {
		d := committing(t).step(ClaimDone{Outcome: OutcomeUnknown}).want(ReadOwner{})
		d.step(noEtcd).want(ReadOwner{}).step(SourceCancel{}).wantNot(TellNever{}, TellCommitted{}).runs(false)
		d.step(OwnerRead{Owner: Owner{Epoch: 6, Node: here, Run: run1, Mine: true}}).want(TellCommitted{})
		r := streaming(t).after(streamLimit)
		r.step(r.lease(), Tick{}).after(answerLimit).step(Tick{}).want(ReadOwner{}, AskPeer{}).runs(false)
	})
}

func TestRowLease(t *testing.T) {
	t.Run("a: source, when it is back", func(t *testing.T) {
		r := precopy(t)
		r.after(leaseTime).step(Tick{}).want(MigrateStop{}, Stop{}).runs(false)
		r.step(VCPUsStopped{}, StreamStatus{Status: "cancelled"}).runs(false)
		r.step(r.lease()).runs(true)
	})
	t.Run("b: never, and lease back", func(t *testing.T) {
		r := streaming(t).after(leaseTime)
		r.step(Tick{}, StreamStatus{Status: "completed"}, PeerNever{}).runs(false)
		r.step(r.lease()).runs(true)
	})
	t.Run("b: HA took it", func(t *testing.T) {
		streaming(t).step(Fenced{Node: there, Run: run2}).want(Kill{}).phase(Lost)
	})
	t.Run("S3.4: lease back does not resume", func(t *testing.T) {
		r := streaming(t).after(leaseTime).step(Tick{})
		r.step(r.lease()).wantNot(Cont{}).runs(false)
	})
}

func TestUserPauseMigrates(t *testing.T) {
	d := receiving(t).step(SourceSwitch{Paused: true}, StreamStatus{Status: "completed"}, ClaimDone{Outcome: Made, Epoch: 6}, SourceReleased{})
	d.step(d.lease(), Taken{Epoch: 6}).wantNot(Cont{}).phase(Running).runs(false)
	d.step(UserResume{}).runs(true)
}

func TestUserCancels(t *testing.T) {
	stays(t, precopy(t).step(UserCancel{}).want(MigrateStop{}, TellCancel{}))
	stays(t, precopy(t).step(GaveUp{Text: "it does not converge"}).want(MigrateStop{}, TellCancel{}))
	streaming(t).step(GaveUp{Text: "too late"}).wantNot(MigrateStop{}, TellCancel{})
	r := streaming(t).step(UserCancel{}).want(TellCancel{}).runs(false)
	stays(t, r.step(PeerNever{}))
}
