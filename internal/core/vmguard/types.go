package vmguard

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// PortMargin is how long before the lease's end the ports shut.
const PortMargin = 500 * time.Millisecond

// StopProof is how long the core waits for the event STOP before it has the
// process frozen.
const StopProof = 300 * time.Millisecond

// Mutations break one rule each, to prove that the simulator sees it. The zero
// value keeps them all.
type Mutations struct {
	PortWithoutTimer     bool // a port stays open until the guard shuts it [S2]
	StopBeforePort       bool // the guard waits for STOP before it shuts the port [S2]
	ResumeOnUnknown      bool // a source that hears nothing goes on [S3]
	UnknownIsMade        bool // a destination takes an unanswered claim for made [S3]
	ReleaseBeforeCommit  bool // a source releases before the destination's claim is known [S3]
	OwnRunKills          bool // a guard that its own successor fenced kills QEMU [S18]
	ResumeIgnoresReasons bool // a guest runs when its lease does, whatever else holds it [S21]
}

// Phase is where the guard stands. The final ones end everything but answers.
type Phase string

// The phases, in the words of guardctl.
const (
	Starting  Phase = "starting"
	Preparing Phase = "preparing"
	Taking    Phase = "taking"
	Running   Phase = "running"
	Incoming  Phase = "incoming"
	Stopping  Phase = "stopping"
	Stopped   Phase = "stopped"
	Moved     Phase = "moved"
	Lost      Phase = "lost"
	Failed    Phase = "failed"
)

// Final reports whether nothing more will happen under this attempt.
func (p Phase) Final() bool { return p == Stopped || p == Moved || p == Lost || p == Failed }

// Reason is why a guest is paused. It runs when no reason is left.
type Reason string

// The reasons.
const (
	PauseUser      Reason = "user"
	PauseLease     Reason = "lease"
	PauseSpace     Reason = "space"
	PauseError     Reason = "error"
	PauseMigration Reason = "migration"
	PauseBackup    Reason = "backup"
)

// Stage is where a migration stands, on either side.
type Stage string

// The stages. In the letters of ha.md's table: (a) until Switching, (b)
// Switching and Streaming, (c) Unknown and Committing, (d) GivenUp and
// Committed.
const (
	// Source.
	Connecting Stage = "connecting" // to the destination's guard
	Precopy    Stage = "precopy"
	Switching  Stage = "switching" // guest stopped; drain, flush, stall; etcd is asked
	Streaming  Stage = "streaming" // migrate-continue was sent: the destination may commit
	Unknown    Stage = "unknown"   // the destination is silent: own decides
	GivenUp    Stage = "given-up"  // the destination's CAS is known
	Returning  Stage = "returning" // it stays here; QEMU must come out of its migration
	// Destination.
	Waiting    Stage = "waiting" // for the source
	Receiving  Stage = "receiving"
	Committing Stage = "committing" // the CAS may have been sent
	Committed  Stage = "committed"
	Never      Stage = "never" // binding: no CAS was sent, none will be
)

// Saved is what a successor must know. The shell writes it durably (for the
// life of the machine) when Save says so, before it does anything that follows.
type Saved struct {
	Run    ids.ID `json:"run"`
	User   bool   `json:"user_pause,omitempty"`
	Ending bool   `json:"ending,omitempty"` // a power-off was asked for
	// Incoming: it is a destination whose CAS was not sent.
	Incoming bool            `json:"incoming,omitempty"`
	Move     *SavedMigration `json:"migration,omitempty"`
}

// SavedMigration is a migration past the point where it can simply be dropped.
type SavedMigration struct {
	Stage Stage  `json:"stage"` // Streaming (source) or Committing (destination)
	Peer  Peer   `json:"peer"`
	Epoch uint64 `json:"epoch"` // of the source
}

// Peer is the guard at the other end.
type Peer struct {
	Node      ids.ID   `json:"node"`
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Port      int      `json:"port,omitempty"`
}

// Owner is a volume's own record as read linearizably.
type Owner struct {
	Epoch uint64
	Node  ids.ID
	Run   ids.ID
	Mine  bool // carries the nonce of this guard's volume set
}

// Outcome is what is known of a CAS.
type Outcome string

// The outcomes.
const (
	Made           Outcome = "made"
	NotMade        Outcome = "not made"
	OutcomeUnknown Outcome = "unknown"
)

// Event is one of the types below.
type Event interface{ isEvent() }

// Events.
type (
	// Start begins from power-on with a run drawn for it.
	Start struct{ Run ids.ID }
	// Adopt takes over a living QEMU from a guard that is certainly gone.
	Adopt struct{ Saved Saved }
	// Receive begins as the destination of a migration.
	Receive struct {
		Run    ids.ID
		Source ids.ID
	}

	// Ended: a predecessor under this attempt came to a final phase.
	Ended struct {
		Phase  Phase
		Reason string
	}

	// VolumesOpened: records read, NBD served (requests wait). Err is final only
	// for a kind that trying again cannot heal; the shell repeats otherwise.
	VolumesOpened struct{ Err error }
	// QEMUStarted: QEMU runs and answers QMP, or could not be started.
	QEMUStarted struct{ Err error }
	// QMPUp: the monitor of an adopted QEMU answered. Status is QEMU's run state.
	QMPUp struct{ Status string }
	// QEMUExited: the process is gone.
	QEMUExited struct{}

	// Prepared is the outcome of a PREPARE.
	Prepared struct {
		Ready, Reachable bool
		Retry            time.Duration
		Text             string
	}
	// Taken: the volumes are ours and serve; or Err: Fenced means that another
	// run has them. Epoch is the one served.
	Taken struct {
		Epoch  uint64
		Fenced bool
		Err    error
	}
	// LeaseChanged: granted, renewed or lost.
	LeaseChanged struct {
		Held     bool
		Deadline clock.Instant
	}
	// Fenced: another promise ended our epoch.
	Fenced struct{ Node, Run ids.ID }
	// GuestInvalid: acked writes may be lost under the living guest.
	GuestInvalid struct{}

	// VCPUsStopped and VCPUsResumed are QEMU's STOP and RESUME.
	VCPUsStopped struct{}
	VCPUsResumed struct{}
	// GuestOff: the guest powered itself off.
	GuestOff struct{}
	// IOError: QEMU stopped the guest on an I/O error.
	IOError struct{ NoSpace bool }
	// SpaceWaits: writes of the guest wait for space in the pool, or no longer.
	SpaceWaits struct{ On bool }

	// User requests.
	UserPause  struct{}
	UserResume struct{}
	UserReset  struct{}
	UserStop   struct {
		Force   bool
		Timeout time.Duration
	}
	UserMigrate struct {
		Target        Peer
		DowntimeLimit time.Duration
	}
	UserCancel struct{}
	// GaveUp: the stream will not converge. Before pre-switchover only.
	GaveUp struct{ Text string }

	// Tick: the time that Next named has come (or any other).
	Tick struct{}

	// Migration, source side.
	PeerAccepted  struct{}
	PeerRefused   struct{ Text string }
	PeerLost      struct{}
	PeerNever     struct{}
	PeerCommitted struct{}
	// StreamStatus is the status in QEMU's MIGRATION event, either side.
	StreamStatus struct{ Status, Error string }
	StallDone    struct{ Err error }
	// OwnerRead answers ReadOwner. Err: etcd did not answer.
	OwnerRead struct {
		Owner Owner
		Err   error
	}
	// ClaimDone answers Claim and Reclaim.
	ClaimDone struct {
		Outcome Outcome
		Epoch   uint64
		Err     error
	}
	ReleaseDone struct{ Err error }

	// Migration, destination side.
	SourceHello struct {
		Epoch uint64
		Run   ids.ID
	}
	SourceSwitch   struct{ Paused bool } // the guest is stopped there; Paused: by its user
	SourceCancel   struct{}
	SourceReleased struct{}
	SourceLost     struct{}
)

// Action is one of the types below.
type Action interface{ isAction() }

// Actions. Those that answer name the event.
type (
	// OpenVolumes opens the set and serves NBD; VolumesOpened answers.
	OpenVolumes struct{ Run ids.ID }
	// CloseVolumes drops the set without release.
	CloseVolumes struct{}
	// StartQEMU starts it with -S, ports attached, down and shut; QEMUStarted.
	StartQEMU struct{ Incoming bool }
	// ConnectQMP connects to an adopted QEMU, without time limit; QMPUp.
	ConnectQMP struct{}
	// Prepare after a delay; Prepared.
	Prepare struct{ After time.Duration }
	// Take claims (comparing the run and the epoch, if not zero) and activates;
	// Taken. A hand-over keeps the run, so what a guard has read of own binds it
	// only together with the epoch.
	Take struct {
		ExpectRun   ids.ID
		ExpectEpoch uint64
	}
	// Reopen takes up after the predecessor; Taken.
	Reopen struct{}
	// Claim is the destination's one CAS; ClaimDone.
	Claim struct {
		Run   ids.ID
		Epoch uint64
	}
	// Activate opens what was claimed; Taken.
	Activate struct{}
	// Stall drains, flushes, stalls; StallDone.
	Stall struct{}
	// Unstall lets I/O go on under the same epoch.
	Unstall struct{}
	// Reclaim is the source's own CAS; ClaimDone. After Made I/O goes on.
	Reclaim struct{ Run ids.ID }
	// ReadOwner after a delay; OwnerRead.
	ReadOwner struct{ After time.Duration }
	// Release drains, flushes, releases; ReleaseDone.
	Release struct{}

	// Port lets the guest's frames pass until then; zero shuts at once.
	Port struct{ Until clock.Instant }
	// LinkUp lets frames toward the guest collect in its tap.
	LinkUp   struct{}
	Announce struct{}

	// Stop and Cont are sent to QMP without waiting.
	Stop struct{}
	Cont struct{}
	// Freeze and Thaw are SIGSTOP and SIGCONT.
	Freeze struct{}
	Thaw   struct{}
	// Kill ends QEMU by pidfd; QEMUExited follows.
	Kill      struct{}
	PowerDown struct{} // the ACPI button
	Reset     struct{}

	// Migration, source: connect to the peer's guard (PeerAccepted or
	// PeerRefused); start, continue, cancel the stream; set the downtime limit.
	ConnectPeer    struct{ Peer Peer }
	MigrateStart   struct{ Downtime time.Duration }
	MigrateGo      struct{}
	MigrateStop    struct{}
	MigrateRelax   struct{ Downtime time.Duration }
	TellSwitch     struct{}
	TellCancel     struct{}
	TellReleased   struct{}
	AskPeer        struct{ After time.Duration } // PeerNever, PeerCommitted or PeerLost
	DisconnectPeer struct{}
	// Migration, destination.
	MigrateIncoming struct{}
	TellAccept      struct{}
	TellRefuse      struct{ Text string }
	TellNever       struct{}
	TellCommitted   struct{}

	// Save writes the state for a successor, before anything that follows.
	Save struct{ Saved Saved }
	// Restart asks for Start with a new run, after a delay, once QEMU and the
	// volumes are gone.
	Restart struct{ After time.Duration }
	// Exit ends the guard at once and touches nothing: a successor has it all.
	Exit struct{}
	// Report is for the timeline.
	Report struct{ Level, Text string }
)

func (Start) isEvent()          {}
func (Adopt) isEvent()          {}
func (Receive) isEvent()        {}
func (Ended) isEvent()          {}
func (VolumesOpened) isEvent()  {}
func (QEMUStarted) isEvent()    {}
func (QMPUp) isEvent()          {}
func (QEMUExited) isEvent()     {}
func (Prepared) isEvent()       {}
func (Taken) isEvent()          {}
func (LeaseChanged) isEvent()   {}
func (Fenced) isEvent()         {}
func (GuestInvalid) isEvent()   {}
func (VCPUsStopped) isEvent()   {}
func (VCPUsResumed) isEvent()   {}
func (GuestOff) isEvent()       {}
func (IOError) isEvent()        {}
func (SpaceWaits) isEvent()     {}
func (UserPause) isEvent()      {}
func (UserResume) isEvent()     {}
func (UserReset) isEvent()      {}
func (UserStop) isEvent()       {}
func (UserMigrate) isEvent()    {}
func (UserCancel) isEvent()     {}
func (GaveUp) isEvent()         {}
func (Tick) isEvent()           {}
func (PeerAccepted) isEvent()   {}
func (PeerRefused) isEvent()    {}
func (PeerLost) isEvent()       {}
func (PeerNever) isEvent()      {}
func (PeerCommitted) isEvent()  {}
func (StreamStatus) isEvent()   {}
func (StallDone) isEvent()      {}
func (OwnerRead) isEvent()      {}
func (ClaimDone) isEvent()      {}
func (ReleaseDone) isEvent()    {}
func (SourceHello) isEvent()    {}
func (SourceSwitch) isEvent()   {}
func (SourceCancel) isEvent()   {}
func (SourceReleased) isEvent() {}
func (SourceLost) isEvent()     {}

func (OpenVolumes) isAction()     {}
func (CloseVolumes) isAction()    {}
func (StartQEMU) isAction()       {}
func (ConnectQMP) isAction()      {}
func (Prepare) isAction()         {}
func (Take) isAction()            {}
func (Reopen) isAction()          {}
func (Claim) isAction()           {}
func (Activate) isAction()        {}
func (Stall) isAction()           {}
func (Unstall) isAction()         {}
func (Reclaim) isAction()         {}
func (ReadOwner) isAction()       {}
func (Release) isAction()         {}
func (Port) isAction()            {}
func (LinkUp) isAction()          {}
func (Announce) isAction()        {}
func (Stop) isAction()            {}
func (Cont) isAction()            {}
func (Freeze) isAction()          {}
func (Thaw) isAction()            {}
func (Kill) isAction()            {}
func (PowerDown) isAction()       {}
func (Reset) isAction()           {}
func (ConnectPeer) isAction()     {}
func (MigrateStart) isAction()    {}
func (MigrateGo) isAction()       {}
func (MigrateStop) isAction()     {}
func (MigrateRelax) isAction()    {}
func (TellSwitch) isAction()      {}
func (TellCancel) isAction()      {}
func (TellReleased) isAction()    {}
func (AskPeer) isAction()         {}
func (DisconnectPeer) isAction()  {}
func (MigrateIncoming) isAction() {}
func (TellAccept) isAction()      {}
func (TellRefuse) isAction()      {}
func (TellNever) isAction()       {}
func (TellCommitted) isAction()   {}
func (Save) isAction()            {}
func (Restart) isAction()         {}
func (Exit) isAction()            {}
func (Report) isAction()          {}
