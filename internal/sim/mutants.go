package sim

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Mutant is one rule broken on purpose.
type Mutant struct {
	Name string
	Rule string // what the engine does and the mutant does not
	Set  func(*Mutations)
	// Survives: no seed catches it yet; see docs/results/mutants.md.
	Survives bool
	Bias     *Bias // nil: the random profiles meet it often enough
}

// Mutants lists every switch that the simulator must catch.
var Mutants = []Mutant{
	{Name: "ack-before-cas", Rule: "acks wait until the CAS of a shrink is known", Set: func(m *Mutations) { m.Writer.AckBeforeShrinkKnown = true }, Bias: &Bias{Faults: []string{"partition", "etcd_down", "power_cut", "storage_kill"}, Every: time.Second, Unknown: 0.3}},
	{Name: "open-before-durable", Rule: "a promise is durable before OPEN's answer", Set: func(m *Mutations) { m.Replica.OpenBeforeDurable = true; m.Disk.AckPromiseNotDurable = true }, Survives: true},
	{Name: "ignore-cold", Rule: "a copy that rebooted says so, and is heard", Set: func(m *Mutations) { m.Writer.IgnoreCold = true; m.Replica.IgnoreCold = true }, Survives: true, Bias: &Bias{Faults: []string{"local_disk_hang", "power_cut_copies"}, Every: 3 * time.Second, Torn: 0.05}},
	{Name: "no-restart-wait", Rule: "a restarted storage process waits out the leases that it forgot", Set: func(m *Mutations) { m.Replica.NoRestartWait = true; m.Replica.UnknownAsLapsed = true }, Bias: &Bias{Faults: []string{"forgetful"}, Every: 2 * time.Second}},
	{Name: "skip-flush-sync", Rule: "FLUSH does an fdatasync", Set: func(m *Mutations) { m.Disk.SkipFlushSync = true }},
	{Name: "own-watermark", Rule: "takeover reconciles from the flush mark of the whole in-sync set", Set: func(m *Mutations) { m.Writer.OwnWatermark = true }, Survives: true},
	{Name: "truncate-log", Rule: "a durable part of the log is never dropped", Set: func(m *Mutations) { m.Disk.TruncateDamagedLog = true }, Bias: &Bias{Faults: []string{"bit_rot", "bit_rot", "bit_rot", "power_blip", "storage_kill"}, Every: 300 * time.Millisecond}},
	{Name: "apply-early", Rule: "a block is applied in place after its record is durable", Set: func(m *Mutations) { m.Disk.ApplyBeforeDurable = true }, Bias: &Bias{Faults: []string{"power_blip", "power_cut_all", "storage_kill"}, Every: time.Second, DiskHi: 20 * time.Millisecond, Torn: 0.5}},
	{Name: "grow-uncounted", Rule: "a joining disk's answers count before the CAS that takes it in", Set: func(m *Mutations) { m.Writer.GrowWithoutCount = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_cut", "partition", "power_blip"}, Every: time.Second, Unknown: 0.4}},
	{Name: "read-before-out", Rule: "no read is served before the missing members are out", Set: func(m *Mutations) { m.Writer.ReadBeforeOut = true }, Survives: true, Bias: &Bias{Faults: []string{"partition", "power_cut", "guard_kill", "forgetful"}, Every: 3 * time.Second, Unknown: 0.3}},
	{Name: "adopt-any-run", Rule: "a guest is adopted only if its run still owns the volumes", Set: func(m *Mutations) { m.Writer.AdoptWithoutRun = true }, Survives: true, Bias: &Bias{Faults: []string{"late_successor", "power_blip", "guard_kill"}, Every: 5 * time.Second}},
	{Name: "no-sync-lock", Rule: "resync reads its source under the interval lock", Set: func(m *Mutations) { m.Writer.NoSyncLock = true }, Survives: true, Bias: &Bias{Faults: []string{"local_disk_hang", "storage_kill"}, Every: 6 * time.Second, DiskHi: 8 * time.Millisecond, Think: time.Millisecond}},
	{Name: "release-before-config", Rule: "acks wait until the other members know who is out", Set: func(m *Mutations) { m.Writer.ReleaseBeforeConfig = true }, Survives: true, Bias: &Bias{Faults: []string{"storage_kill", "guard_kill", "etcd_down", "power_blip"}, Every: 700 * time.Millisecond, Unknown: 0.2}},
	{Name: "keep-winner", Rule: "the winner of a reconcile is rewritten on its holder too", Set: func(m *Mutations) { m.Writer.KeepWinnerOnHolder = true }},
	{Name: "tail-ignores-flush-mark", Rule: "the log keeps what is above the flush mark", Set: func(m *Mutations) { m.Disk.TailIgnoresFlushMark = true }},
	{Name: "snapshot-number-reused", Rule: "a snapshot number is reserved before it is used, and never used again", Set: func(m *Mutations) { m.Writer.SnapshotNumberReused = true }, Bias: &Bias{Faults: []string{"guard_kill", "etcd_down", "power_blip"}, Every: 500 * time.Millisecond, Unknown: 0.3, Snapshots: 200 * time.Millisecond}},
	{Name: "snapshot-without-own", Rule: "a snapshot's transaction compares own: a takeover makes a late one fail", Set: func(m *Mutations) { m.Writer.SnapshotWithoutOwn = true }, Bias: &Bias{Faults: []string{"guard_kill", "false_alarm", "power_blip"}, Every: 500 * time.Millisecond, Unknown: 0.5, Snapshots: 200 * time.Millisecond}},
	{Name: "snapshot-without-drain", Rule: "the boundary waits for writes under way, and a flush", Set: func(m *Mutations) { m.Writer.SnapshotWithoutDrain = true }, Bias: &Bias{Faults: []string{"power_cut_all", "power_blip"}, Every: time.Second, Torn: 0.1, Snapshots: 200 * time.Millisecond}},
	{Name: "live-set-by-block", Rule: "the live set of a sync tells objects apart", Set: func(m *Mutations) { m.Replica.LiveSetByBlock = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip"}, Every: 700 * time.Millisecond, Think: time.Millisecond, Snapshots: 150 * time.Millisecond}},
	{Name: "tombstone-wipes-live", Rule: "a synced tombstone never lands on a live write", Set: func(m *Mutations) { m.Replica.TombstoneWipesLive = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip"}, Every: 700 * time.Millisecond, Think: time.Millisecond, Snapshots: 150 * time.Millisecond}},
	{Name: "raw-list-from-base", Rule: "resync compares all objects of an extent, since copies merge by themselves", Set: func(m *Mutations) { m.Writer.RawListFromBase = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip"}, Every: 1500 * time.Millisecond, Snapshots: 200 * time.Millisecond}},
	{Name: "zero-above-absent", Rule: "a zero in a newer object hides the older ones", Set: func(m *Mutations) { m.Disk.ZeroAboveIsAbsent = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "free-before-copy", Rule: "an object is freed after what it had was copied", Set: func(m *Mutations) { m.Disk.FreeBeforeCopy = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "merge-ignores-told", Rule: "objects that a snapshot tells apart are not merged", Set: func(m *Mutations) { m.Disk.MergeIgnoresTold = true }, Bias: &Bias{Snapshots: 200 * time.Millisecond}},
	{Name: "forget-holes", Rule: "a tombstone above older objects is kept until an image has its holes", Set: func(m *Mutations) { m.Disk.ForgetHoles = true }, Bias: &Bias{Faults: []string{"storage_kill", "power_blip", "power_cut_all"}, Every: 500 * time.Millisecond, Snapshots: 300 * time.Millisecond}},
	{Name: "fresh-unverified", Rule: "recovery believes data in place by its checksum only", Set: func(m *Mutations) { m.Disk.FreshUnverified = true }, Survives: true, Bias: &Bias{Faults: []string{"power_blip", "power_cut_all", "storage_kill"}, Every: 500 * time.Millisecond, DiskHi: 20 * time.Millisecond, Torn: 0.5}},
	{Name: "fresh-over-present", Rule: "a write goes in place only where nothing is", Set: func(m *Mutations) { m.Disk.FreshOverPresent = true }, Survives: true, Bias: &Bias{Faults: []string{"power_blip", "power_cut_all", "storage_kill"}, Every: 500 * time.Millisecond, DiskHi: 20 * time.Millisecond, Torn: 0.5}},
	{Name: "epoch-unchecked", Rule: "the epoch is checked when a record is appended", Set: func(m *Mutations) { m.Disk.EpochUnchecked = true }, Survives: true},
}

// Caught is the outcome for one mutant.
type Caught struct {
	Mutant Mutant
	Seed   uint64 // that caught it
	Seeds  int    // run until then
	Err    error  // what the oracle said; nil = not caught
	Took   time.Duration
}

// RunMutant runs seeds until one fails, at most limit.
func RunMutant(ctx context.Context, m Mutant, first uint64, limit, ops int) Caught {
	b := Batch{First: first, Count: limit, Ops: ops, StopAfter: 1, Bias: m.Bias}
	m.Set(&b.Mutations)
	s := RunBatch(ctx, b)
	c := Caught{Mutant: m, Seeds: s.Seeds, Took: s.Took}
	if len(s.Failed) > 0 {
		c.Seed, c.Err = s.Failed[0].Seed, s.Failed[0].Err
	}
	return c
}

// WriteCaught prints the table of mutants.
func WriteCaught(w io.Writer, list []Caught) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MUTANT\tCAUGHT\tSEEDS\tRULE BROKEN")
	for _, c := range list {
		verdict := "no"
		if c.Err != nil {
			verdict = fmt.Sprintf("seed %d", c.Seed)
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\n", c.Mutant.Name, verdict, c.Seeds, c.Mutant.Rule)
	}
	return tw.Flush()
}
