package sim

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"roseau/internal/base/errs"
)

// Mutant is one rule broken on purpose.
type Mutant struct {
	Name string
	Rule string // what the engine does and the mutant does not
	And  string // the second rule that closes the same sequence, broken as well
	Set  func(*Mutations)
	// Scenario that catches it; "": random seeds do.
	Scenario string
	Within   int   // seeds that are allowed; 0 = 40 of a scenario, 150 random ones
	Bias     *Bias // of random seeds
}

// Allowed returns within how many seeds it must be caught.
func (m Mutant) Allowed() int {
	switch {
	case m.Within > 0:
		return m.Within
	case m.Scenario != "":
		return 40
	}
	return 150
}

// Mutants lists every switch that the simulator must catch. Some rules are kept
// twice in the engine: such a mutant breaks both, and says so in And.
var Mutants = []Mutant{
	{Name: "ack-before-cas", Rule: "acks wait until the CAS of a shrink is known", Set: func(m *Mutations) { m.Writer.AckBeforeShrinkKnown = true }, Scenario: "ack-before-cas"},
	{Name: "open-before-durable", Rule: "a promise is durable before OPEN's answer", Set: func(m *Mutations) {
		m.Replica.OpenBeforeDurable, m.Disk.AckPromiseNotDurable, m.Writer.ServeBeforeConfig = true, true, true
	}, And: "a takeover serves only when its CONFIG, which stands behind the promise in the log, is durable", Scenario: "promise-durable"},
	{Name: "ignore-cold", Rule: "a copy that rebooted says so, and is heard [S6]", Set: func(m *Mutations) { m.Writer.IgnoreCold, m.Replica.IgnoreCold = true, true }, Scenario: "all-cold"},
	{Name: "no-restart-wait", Rule: "a restarted storage process waits out the leases that it forgot [S9]", Set: func(m *Mutations) { m.Replica.NoRestartWait, m.Replica.UnknownAsLapsed = true, true }, Scenario: "restart-wait"},
	{Name: "skip-flush-sync", Rule: "FLUSH does an fdatasync", Set: func(m *Mutations) { m.Disk.SkipFlushSync = true }, Scenario: "unflushed-power-cut"},
	{Name: "own-watermark", Rule: "takeover reconciles from the flush mark of the whole in-sync set", Set: func(m *Mutations) { m.Writer.OwnWatermark = true }, Scenario: "split-flush"},
	{Name: "truncate-log", Rule: "a durable part of the log is never dropped", Set: func(m *Mutations) { m.Disk.TruncateDamagedLog = true }, Scenario: "rotten-log"},
	{Name: "apply-early", Rule: "a block is applied in place after its record is durable (I7b)", Set: func(m *Mutations) { m.Disk.ApplyBeforeDurable = true }, Scenario: "early-apply", Within: 80},
	{Name: "grow-uncounted", Rule: "a joining disk's answers count before the CAS that takes it in [S4]", Set: func(m *Mutations) { m.Writer.GrowWithoutCount = true }, Scenario: "grow-uncounted"},
	{Name: "read-before-out", Rule: "no read is served before the missing members are out [S5]", Set: func(m *Mutations) { m.Writer.ReadBeforeOut = true }, Scenario: "read-before-out"},
	{Name: "adopt-any-run", Rule: "a guest is adopted only if its run still owns the volumes [S1]", Set: func(m *Mutations) { m.Writer.AdoptWithoutRun = true }, Scenario: "stale-adoption"},
	{Name: "no-sync-lock", Rule: "resync reads its source under the interval lock", Set: func(m *Mutations) { m.Writer.NoSyncLock, m.Replica.NoLiveSet = true, true },
		And: "the joining disk drops sync data of blocks that live writes have changed", Scenario: "join-under-load"},

	{Name: "absence-wipes-live", Rule: "a synced absence never wipes a live block [S19]", Set: func(m *Mutations) { m.Replica.AbsenceWipesLive = true }, Scenario: "join-under-discards"},
	{Name: "keep-winner", Rule: "the winner of a reconcile is rewritten on its holder too [S19]", Set: func(m *Mutations) { m.Writer.KeepWinnerOnHolder = true }, Scenario: "plain"},
	{Name: "unreadable-run-left", Rule: "of a winner that is unreadable in part the rest is rewritten, and the version before kept of what is not", Set: func(m *Mutations) { m.Writer.LeaveUnreadableRun = true }, Scenario: "unreadable-winner"},
	{Name: "reads-pass-writes", Rule: "a read waits for the writes to its blocks that are under way (C3)", Set: func(m *Mutations) { m.Writer.ReadsPassWrites = true }, Scenario: "read-under-write"},
	{Name: "fill-counts", Rule: "a copy of a segment counts when it is complete, not when the move begins", Set: func(m *Mutations) { m.Writer.FillCounts = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip"}, Every: time.Second, Moves: 100 * time.Millisecond}},
	{Name: "source-not-restored", Rule: "what one source of a join cannot read is taken from others, and the join goes on with it", Set: func(m *Mutations) { m.Writer.SourceNotRestored = true }, Scenario: "join-over-rot"},
	{Name: "fresh-over-present", Rule: "a write goes in place at once only where nothing stands yet", Set: func(m *Mutations) { m.Disk.FreshOverPresent = true }, Bias: tornBias("power_blip", "power_cut_all"), Within: 40},
	{Name: "fresh-unverified", Rule: "recovery verifies what went in place at once by its checksum", Set: func(m *Mutations) { m.Disk.FreshUnverified = true }, Bias: tornBias("power_blip", "power_cut_all", "power_cut"), Within: 40},
	{Name: "tail-ignores-flush-mark", Rule: "the log keeps what is above the flush mark (I7)", Set: func(m *Mutations) { m.Disk.TailIgnoresFlushMark = true }, Scenario: "tail-moved"},
	{Name: "epoch-unchecked", Rule: "the epoch is checked when a record is appended [S20]", Set: func(m *Mutations) { m.Disk.EpochUnchecked, m.Replica.KeepOldHandles = true, true },
		And: "a promise ends all older handles of the volume", Scenario: "frozen-writer"},
	{Name: "trust-etcd", Rule: "a writer stops when the replicas know more than etcd [S7]", Set: func(m *Mutations) { m.Writer.TrustEtcd = true }, Scenario: "etcd-restored"},
	{Name: "trust-damaged", Rule: "a copy that lost a durable part of its log leaves the in-sync set", Set: func(m *Mutations) { m.Writer.TrustDamaged = true }, Scenario: "rotten-log"},
	{Name: "trust-lost-tail", Rule: "a dropped tail of the log below the flush mark is damage", Set: func(m *Mutations) { m.Writer.TrustLostTail = true }, Scenario: "rotten-tail"},
	{Name: "keep-sync-on-replace", Rule: "a disk that is given more segments joins anew", Set: func(m *Mutations) { m.Writer.KeepSyncOnReplace = true }, Scenario: "replace-while-joining"},
	{Name: "prepare-never-longer", Rule: "a round of PREPARE grows with the network's delay", Set: func(m *Mutations) { m.Writer.PrepareNeverLonger = true }, Scenario: "slow-prepare"},
	{Name: "lost-as-absent", Rule: "a block that no copy can read is an error on the copy that joins", Set: func(m *Mutations) { m.Writer.LostAsAbsent = true }, Scenario: "lost-block"},
	{Name: "early-flush-mark", Rule: "the flush mark stands still until a takeover is complete", Set: func(m *Mutations) { m.Writer.FlushWhileReconciling = true }, Scenario: "early-flush-mark"},

	{Name: "resync-own-mark", Rule: "a join lists what is newer than the mark written at the exclusion, too (2.7)", Set: func(m *Mutations) { m.Writer.ResyncFromOwnMark = true }, Scenario: "divergent-return"},
	{Name: "barrier-before-count", Rule: "grow's barrier comes after the disk's answers count [S4]", Set: func(m *Mutations) { m.Writer.BarrierBeforeCount = true }, Scenario: "grow-uncounted"},
	{Name: "wait-for-dead", Rule: "a takeover does not wait for members whose nodes are silent [S12]", Set: func(m *Mutations) { m.Writer.WaitForDead = true }, Scenario: "dead-node"},
	{Name: "lone-copy-volatile", Rule: "a lone copy is written through (C7)", Set: func(m *Mutations) { m.Writer.LoneCopyVolatile = true }, Scenario: "lone-copy"},
	{Name: "no-sole-keep", Rule: "the sole member is opened again under the same promise [S22]", Set: func(m *Mutations) { m.Writer.NoSoleKeep = true }, Scenario: "sole-restart"},
	{Name: "answer-below-min", Rule: "nothing is answered with fewer in-sync copies than min_isr", Set: func(m *Mutations) { m.Writer.AnswerBelowMin = true }, Scenario: "min-isr-restarts"},
	{Name: "keep-cold-for-min", Rule: "a cold copy is brought up to date, also if min_isr needs it", Set: func(m *Mutations) { m.Writer.KeepColdForMinISR = true }, Scenario: "min-isr-restarts"},
	{Name: "no-mending", Rule: "min_isr does not hold back who can be brought up to date", Set: func(m *Mutations) { m.Writer.NoMending = true }, Scenario: "min-isr-restarts"},
	{Name: "never-hedge", Rule: "a read that its copy leaves unanswered is asked of another one", Set: func(m *Mutations) { m.Writer.NeverHedge = true }, Scenario: "hung-read"},
	{Name: "import-all", Rule: "copies that an operator gave up are left alone when they return", Set: func(m *Mutations) { m.Writer.ImportAll = true }, Scenario: "forced"},
	{Name: "no-pending", Rule: "CONFIG names the disk of a grow under way [S4][S16]", Set: func(m *Mutations) { m.Writer.NoPending = true }, Scenario: "late-grow"},
	{Name: "grow-taken-back", Rule: "a grow whose CAS was sent is not taken back before its outcome is known [S16]", Set: func(m *Mutations) { m.Writer.TakeSentGrowBack = true }, Scenario: "grow-taken-back"},
	{Name: "ignore-session", Rule: "a new storage process does not count as the old one (2.4)", Set: func(m *Mutations) { m.Writer.IgnoreSession = true }, Scenario: "fast-reboot"},
	{Name: "lease-from-receipt", Rule: "a lease runs from when the question was sent", Set: func(m *Mutations) { m.Writer.LeaseFromReceipt = true }, Scenario: "late-answer"},
	{Name: "read-any-member", Rule: "a copy outside the in-sync set is never read (C6)", Set: func(m *Mutations) { m.Writer.ReadAnyMember = true }, Scenario: "join-under-load"},
	{Name: "quorum-ack", Rule: "a write is acknowledged when every in-sync copy has it (C1)", Set: func(m *Mutations) { m.Writer.QuorumAck = true }, Scenario: "ack-before-cas"},
	{Name: "flush-one-member", Rule: "a flush is answered when every in-sync copy has done it (C2)", Set: func(m *Mutations) { m.Writer.FlushOneMember = true }, Scenario: "half-flush"},
	{Name: "given-up-alone", Rule: "what a disk alone was told is below the flush mark before it counts again", Set: func(m *Mutations) { m.Writer.GivenUpAlone = true }, Scenario: "moved-back"},
	{Name: "silent-go", Rule: "a silent copy goes only when one that stays is known to have outlived it [S6]", Set: func(m *Mutations) { m.Writer.SilentGo = true }, Scenario: "silent-warm"},
	{Name: "trust-staying", Rule: "who stays was heard of after the silent copy was given up [S6]", Set: func(m *Mutations) { m.Writer.TrustStaying = true }, Scenario: "silent-warm"},
	{Name: "keep-cold", Rule: "a living writer gives its guest up when only cold copies are left [S6]", Set: func(m *Mutations) { m.Writer.KeepCold = true }, Scenario: "all-cold"},
	{Name: "adopt-cold", Rule: "a successor adopts no guest when only cold copies answer [S6]", Set: func(m *Mutations) { m.Writer.AdoptCold = true }, Scenario: "all-cold-adopted"},
	{Name: "boot-at-every-open", Rule: "the boot identity of a run is renewed only when the copy is complete [S6]", Set: func(m *Mutations) { m.Replica.BootAtEveryOpen = true }, Scenario: "all-cold-adopted"},
	{Name: "renew-after-open", Rule: "renewals of an epoch end when a higher one is opened [S9]", Set: func(m *Mutations) { m.Replica.RenewAfterOpen = true }, Scenario: "endless-renewal"},
	{Name: "stalled-vetoes", Rule: "a stalled writer has no veto [S9]", Set: func(m *Mutations) { m.Replica.StalledVetoes = true }, Scenario: "stalled-writer"},
	{Name: "nonce-unchecked", Rule: "two epochs of one number are told apart by the nonce [S7]", Set: func(m *Mutations) {
		m.Writer.TrustEtcd, m.Replica.NonceUnchecked, m.Disk.NonceUnchecked = true, true, true
	}, And: "a writer stops when the replicas know more than etcd", Scenario: "two-histories"},
	{Name: "claim-without-prepare", Rule: "no CAS without PREPARE [S9]", Set: func(m *Mutations) { m.Writer.ClaimWithoutPrepare = true }, Scenario: "false-alarm"},
	{Name: "no-trailing", Rule: "a copy that comes back while its exclusion is under way is written at once, whatever etcd does [S16]", Set: func(m *Mutations) { m.Writer.NoTrailing = true }, Scenario: "shrink-unanswered"},
	{Name: "absent-is-lost", Rule: "a disk that its node says it does not have is not waited for as behind a sick link", Set: func(m *Mutations) { m.Writer.AbsentIsLost = true }, Scenario: "swapped-disks"},
	{Name: "opening-is-absent", Rule: "a node that still opens a disk does not say that it lacks it", Set: func(m *Mutations) { m.Replica.OpeningIsAbsent = true }, Scenario: "slow-opening"},
	{Name: "shrink-to-one", Rule: "nobody shrinks to one copy for lost connections while the nodes live [S13]", Set: func(m *Mutations) { m.Writer.ShrinkToOneForLostLink = true }, Scenario: "sick-link"},
	{Name: "no-duplicates", Rule: "what is sent again after a reconnect is taken once [S16]", Set: func(m *Mutations) { m.Disk.NoDuplicates = true }, Scenario: "resumed-session"},
	{Name: "no-own-compare", Rule: "every transaction compares the revision of own [S8]", Set: func(m *Mutations) { m.NoOwnCompare = true }, Scenario: "late-shrink"},
	{Name: "no-margin", Rule: "a grant binds a tenth longer than it was given, for clocks that run apart", Set: func(m *Mutations) { m.Replica.NoMargin = true }, Scenario: "clock-drift"},
	{Name: "stopped-clock", Rule: "the clock of leases goes on while a node is suspended (BOOTTIME)", Set: func(m *Mutations) { m.StoppedClock = true }, Scenario: "suspended-node"},
	{Name: "no-space-is-failure", Rule: "a copy without space is waited for, and never put out", Set: func(m *Mutations) { m.Writer.NoSpaceIsFailure = true }, Scenario: "full-disk"},
	{Name: "guests-use-reserve", Rule: "guests leave the reserve of a disk to repairs", Set: func(m *Mutations) { m.Disk.NoLimit = true }, Scenario: "full-rebuild"},
	{Name: "no-reserve", Rule: "what repairs may use the reserve", Set: func(m *Mutations) { m.Writer.NoReserve = true }, Scenario: "full-takeover"},
	{Name: "full-for-discards", Rule: "what needs no slot passes on a full disk: overwrites, zeros, discards", Set: func(m *Mutations) { m.Disk.FullForAll = true }, Scenario: "full-discard"},
	{Name: "pass-the-refused", Rule: "after a refused write none of its extent is taken before it", Set: func(m *Mutations) { m.Disk.PassRefused = true }, Scenario: "full-disk"},
	{Name: "join-waits-for-space", Rule: "a join does not wait for writes that wait for space", Set: func(m *Mutations) { m.Writer.JoinWaitsForSpace = true }, Scenario: "full-rebuild"},
	{Name: "join-passes-refused", Rule: "a copy that joins is given the writes that wait for space on others", Set: func(m *Mutations) { m.Writer.JoinPassesRefused = true }, Scenario: "full-join"},
	{Name: "snapshot-number-reused", Rule: "a snapshot number is reserved before it is used, and never used again", Set: func(m *Mutations) { m.Writer.SnapshotNumberReused = true }, Bias: &Bias{Faults: []string{"guard_kill", "etcd_down", "power_blip"}, Every: 500 * time.Millisecond, Unknown: 0.3, Snapshots: 200 * time.Millisecond}},
	{Name: "snapshot-without-own", Rule: "a snapshot's transaction compares own: a takeover makes a late one fail", Set: func(m *Mutations) { m.Writer.SnapshotWithoutOwn = true }, Scenario: "late-snapshot"},
	{Name: "snapshot-without-drain", Rule: "the boundary waits for writes under way, and a flush", Set: func(m *Mutations) { m.Writer.SnapshotWithoutDrain = true }, Scenario: "snapshot-boundary"},
	{Name: "live-set-by-block", Rule: "the live set of a sync tells objects apart", Set: func(m *Mutations) { m.Replica.LiveSetByBlock = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip"}, Every: 700 * time.Millisecond, Think: time.Millisecond, Snapshots: 150 * time.Millisecond}},
	{Name: "mixed-sources", Rule: "with snapshots a join takes all objects of an extent from the copy that listed them", Set: func(m *Mutations) { m.Writer.ResyncMixedSources = true }, Scenario: "join-two-tables"},
	{Name: "raw-list-from-base", Rule: "with snapshots a join compares all objects of an extent that has one above BASE", Set: func(m *Mutations) { m.Writer.RawListFromBase = true }, Scenario: "join-one-table"},
	{Name: "lost-without-asking", Rule: "a join gives a block up only when every in-sync copy was asked", Set: func(m *Mutations) { m.Writer.LostWithoutAsking = true }, Scenario: "unasked-copy"},
	{Name: "lost-to-its-lister", Rule: "with snapshots a join gives a block up only when no other in-sync copy, which may have it in another object, lists the extent better", Set: func(m *Mutations) { m.Writer.LostToItsLister = true }, Scenario: "join-rot-two-tables"},
	{Name: "no-janitor", Rule: "a copy that no segment names any more is freed, with the damage that nobody repairs there", Set: func(m *Mutations) { m.NoJanitor = true }, Scenario: "stray-damage"},
	{Name: "free-open-strays", Rule: "a copy that left its segments is kept until its writer knows that it did", Set: func(m *Mutations) { m.Replica.FreeOpenStrays = true }, Scenario: "stray-unknown"},
	{Name: "scrub-outlives-disk", Rule: "the pass over a disk ends when the disk dies", Set: func(m *Mutations) { m.Replica.ScrubOutlivesDisk = true }, Scenario: "scrub-dead-disk"},
	{Name: "scrub-known-snapshots", Rule: "a pass reads every object of a copy that joins, also those of snapshots of which it was not told yet", Set: func(m *Mutations) { m.Replica.ScrubKnownSnapshots = true }, Scenario: "scrub-joining"},
	{Name: "scrub-head-images", Rule: "a pass reads both images of every object of an extent, and what is bad is written again before the other one rots", Set: func(m *Mutations) { m.Replica.ScrubHeadImages = true }, Scenario: "scrub-older-images"},
	{Name: "zero-above-absent", Rule: "a zero in a newer object hides the older ones", Set: func(m *Mutations) { m.Disk.ZeroAboveIsAbsent = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "free-before-copy", Rule: "an object is freed after what it had was copied", Set: func(m *Mutations) { m.Disk.FreeBeforeCopy = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "merge-ignores-told", Rule: "objects that a snapshot tells apart are not merged", Set: func(m *Mutations) { m.Disk.MergeIgnoresTold = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "no-idle-merge", Rule: "a writer of its own lets the merges of a volume go on whose VM does not run", Set: func(m *Mutations) { m.NoMaintenance = true }, Scenario: "idle-merge"},
	{Name: "rollback-serves-early", Rule: "nobody is served before a rollback is over", Set: func(m *Mutations) { m.Writer.RollbackServesEarly = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond, Rollbacks: true}},
	{Name: "rollback-without-flush", Rule: "a rollback is durable before the store says that it is over", Set: func(m *Mutations) { m.Writer.RollbackWithoutFlush = true }, Scenario: "rollback-not-durable"},
	{Name: "rollback-keeps-epoch", Rule: "the resolution of a rollback ends the epoch: a writer that lives cannot take it for a transaction of its own", Set: func(m *Mutations) { m.RollbackKeepsEpoch = true }, Scenario: "rollback-unseen"},
	{Name: "flatten-over", Rule: "a clone's parent is copied below everything that was written to the clone", Set: func(m *Mutations) { m.Writer.FlattenOver = true }, Bias: &Bias{Clones: true, Flatten: 100 * time.Millisecond, Think: time.Millisecond, Snapshots: 200 * time.Millisecond}},
	{Name: "flatten-head-only", Rule: "flattening copies what the oldest snapshot lacks", Set: func(m *Mutations) { m.Writer.FlattenHeadOnly = true }, Scenario: "clone-snapshot"},
	{Name: "flatten-without-flush", Rule: "a clone is flattened durably before it says that it needs no parent", Set: func(m *Mutations) { m.Writer.FlattenWithoutFlush = true }, Scenario: "flatten-not-durable"},
	{Name: "discard-snapshots", Rule: "a copy that leaves a segment keeps what its snapshots show", Set: func(m *Mutations) { m.Writer.DiscardSnapshots, m.Replica.ShowToOldReaders = true, true }, And: "a copy that knows a newer record shows nothing to the reader of an older one", Scenario: "clone-moved"},
	{Name: "show-during-sync", Rule: "a copy that is being synced shows no snapshot to a clone", Set: func(m *Mutations) { m.Replica.ShowDuringSync = true }, Scenario: "clone-shown-early"},
	{Name: "clone-forgets-holes", Rule: "copies of a clone keep the holes that hide its parent", Set: func(m *Mutations) { m.Writer.CloneWhole, m.Replica.ForgetInClone = true, true }, Bias: &Bias{Clones: true, Flatten: 2 * time.Second, Snapshots: 200 * time.Millisecond}},
	{Name: "direct-untouched", Rule: "a block that was written since its map is not read past the storage process", Set: func(m *Mutations) { m.Writer.DirectUntouched = true }},
	{Name: "forget-holes", Rule: "a tombstone above older objects is kept until an image has its holes", Set: func(m *Mutations) { m.Disk.ForgetHoles = true }, Scenario: "discard-above-snapshot"},

	{Name: "window-pins-tail", Rule: "a volume without a writer does not stop the log's tail (I17)", Set: func(m *Mutations) { m.Disk.WindowPinsTail = true }, Scenario: "dead-volume"},
	{Name: "relist-once", Rule: "what only the flush mark holds is re-appended each time the log goes round (I7)", Set: func(m *Mutations) { m.Disk.RelistOnce = true }, Scenario: "dead-volume"},
	{Name: "tail-before-notes", Rule: "the tail moves when what was re-appended is durable (I7)", Set: func(m *Mutations) { m.Disk.TailBeforeNotes = true }, Scenario: "dead-volume"},
	{Name: "flush-mark-of-all", Rule: "a flush mark is one volume's", Set: func(m *Mutations) { m.Disk.FlushMarkOfAll = true }, Scenario: "dead-volume"},
	{Name: "free-slot-early", Rule: "a slot is used again when a checkpoint has freed it durably (I8)", Set: func(m *Mutations) { m.Disk.FreeSlotEarly = true }, Scenario: "slot-reused"},
	{Name: "open-stops-all", Rule: "OPEN of one volume ends no renewal of another (I17)", Set: func(m *Mutations) { m.Replica.OpenStopsAll = true }, Scenario: "takeover-beside"},
	{Name: "heartbeat-grants-all", Rule: "a guard's heartbeat grants the leases of its own volumes alone", Set: func(m *Mutations) { m.Replica.HeartbeatGrantsAll = true }, Scenario: "takeover-beside"},

	{Name: "port-without-timer", Rule: "a port is open to the lease's end less 0.5 s, by the kernel's timer [S2]", Set: func(m *Mutations) { m.Machines.Guard.PortWithoutTimer = true }, Scenario: "dead-guard"},
	{Name: "stop-before-port", Rule: "the port is shut before QEMU is asked to stop, and nobody waits for its answer [S2]", Set: func(m *Mutations) {
		m.Machines.Guard.StopBeforePort, m.Machines.Guard.PortWithoutTimer = true, true
	}, And: "the kernel's timer shuts the port by itself", Scenario: "dead-monitor"},
	{Name: "resume-on-unknown", Rule: "a source that does not know the outcome stays silent [S3]", Set: func(m *Mutations) { m.Machines.Guard.ResumeOnUnknown = true }, Scenario: "handover-unanswered"},
	{Name: "unknown-is-made", Rule: "a destination goes on only after its claim is known to be made [S3]", Set: func(m *Mutations) { m.Machines.Guard.UnknownIsMade = true }, Scenario: "handover-lost"},
	{Name: "release-before-commit", Rule: "the source releases after the destination's claim is known [S3]", Set: func(m *Mutations) { m.Machines.Guard.ReleaseBeforeCommit = true }, Scenario: "handover-refused"},
	{Name: "take-one-by-one", Rule: "all volumes of a VM are taken in one transaction [S10]", Set: func(m *Mutations) { m.Machines.TakeOneByOne = true }, Scenario: "rival-takers"},
	{Name: "only-session", Rule: "a stall is a hint, too [S11]", Set: func(m *Mutations) { m.Machines.OnlySession = true }, Scenario: "storage-cut"},
	{Name: "only-session-absent", Rule: "an absent guard is a hint, too [S11]", Set: func(m *Mutations) { m.Machines.OnlySession = true }, Scenario: "absent-guard"},
	{Name: "own-run-kills", Rule: "a guard that its own successor fenced exits and leaves QEMU alone [S18]", Set: func(m *Mutations) {
		m.Machines.Guard.OwnRunKills, m.Machines.NoLock = true, true
	}, And: "a successor waits for the lock of its predecessor", Scenario: "second-guard"},
	{Name: "resume-ignores-reasons", Rule: "a guest runs when no reason to pause is left [S21]", Set: func(m *Mutations) { m.Machines.Guard.ResumeIgnoresReasons = true }, Scenario: "paused-twice"},
	{Name: "no-maintenance", Rule: "a writer of its own repairs a volume whose VM does not run [S14]", Set: func(m *Mutations) { m.NoMaintenance = true }, Scenario: "idle-repair"},
	{Name: "no-yield", Rule: "a maintenance writer releases at once when a VM is to start [S14]", Set: func(m *Mutations) { m.NoYield = true }, Scenario: "idle-yield"},
	{Name: "kernel-boot-id", Rule: "the boot identity is new at each power-on, in a lab too [S23]", Set: func(m *Mutations) { m.KernelBootID = true }, Scenario: "lab-reboot"},
	{Name: "bmc-ends-lease", Rule: "leases are waited out, whatever a BMC says [S24]", Set: func(m *Mutations) { m.Replica.DeadEndsLease = true }, Scenario: "bmc-lies"},
	{Name: "witness-unsteady", Rule: "the witness gets its votes when every voter is up [S17]", Set: func(m *Mutations) { m.Votes = []string{"unsteady", "permit all"} },
		And: "no change of the members may cost what can fail now", Scenario: "witness-return"},
}

// tornBias is power cuts under load, with half of the sectors kept and snapshots,
// so that much goes to places that are new.
func tornBias(faults ...string) *Bias {
	return &Bias{Faults: faults, Every: 400 * time.Millisecond, Torn: 0.5, Think: time.Millisecond, DiskHi: 10 * time.Millisecond, Snapshots: 200 * time.Millisecond}
}

// FindMutant returns a mutant by name.
func FindMutant(name string) (Mutant, error) {
	for _, m := range Mutants {
		if m.Name == name {
			return m, nil
		}
	}
	return Mutant{}, errs.New(errs.NotFound, "mutant %s: none is known by that name", name).WithHint("`roseau sim mutants` alone runs and lists all")
}

// Caught is the outcome for one mutant.
type Caught struct {
	Mutant Mutant
	Seed   uint64 // that caught it
	Seeds  int    // run until then
	Err    error  // what the oracle said; nil = not caught
	Took   time.Duration
}

// RunMutant runs seeds until one fails that the correct engine passes. A script
// that cannot be followed catches nothing.
func RunMutant(ctx context.Context, m Mutant) (Caught, error) {
	began := time.Now()
	c := Caught{Mutant: m}
	o := Options{Ops: 300, Bias: m.Bias}
	if m.Scenario != "" {
		s, err := FindScenario(m.Scenario)
		if err != nil {
			return c, err
		}
		o.Scenario = &s
	}
	for c.Seeds < m.Allowed() && ctx.Err() == nil && c.Err == nil {
		c.Seeds++
		o.Seed = uint64(c.Seeds)
		broken := o
		m.Set(&broken.Mutations)
		r := runRecovered(broken)
		if r.Err == nil || ScriptFailed(r.Err) {
			continue
		}
		if good := runRecovered(o); good.Err != nil {
			return c, fmt.Errorf("seed %d of mutant %s: the correct engine fails it too: %w", o.Seed, m.Name, good.Err)
		}
		c.Seed, c.Err = o.Seed, r.Err
	}
	c.Took = time.Since(began)
	return c, context.Cause(ctx)
}

// WriteCaught prints the table of mutants.
func WriteCaught(w io.Writer, list []Caught) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MUTANT\tCAUGHT BY\tSEED\tALLOWED\tRULE BROKEN")
	for _, c := range list {
		by, seed := c.Mutant.Scenario, fmt.Sprint(c.Seed)
		if by == "" {
			by = "random faults"
		}
		if c.Err == nil {
			by, seed = "NOTHING", "-"
		}
		rule := c.Mutant.Rule
		if c.Mutant.And != "" {
			rule += "; and " + c.Mutant.And
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\n", c.Mutant.Name, by, seed, c.Mutant.Allowed(), rule)
	}
	return tw.Flush()
}
