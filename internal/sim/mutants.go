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
	Bias *Bias // nil: the random profiles meet it often enough
}

// Mutants lists every switch that the simulator must catch.
var Mutants = []Mutant{
	{"ack-before-cas", "acks wait until the CAS of a shrink is known", func(m *Mutations) { m.Writer.AckBeforeShrinkKnown = true }, &Bias{Faults: []string{"partition", "etcd_down", "power_cut", "storage_kill"}, Every: time.Second, Unknown: 0.3}},
	{"open-before-durable", "a promise is durable before OPEN's answer", func(m *Mutations) { m.Replica.OpenBeforeDurable = true; m.Disk.AckPromiseNotDurable = true }, nil},
	{"ignore-cold", "a copy that rebooted says so, and is heard", func(m *Mutations) { m.Writer.IgnoreCold = true; m.Replica.IgnoreCold = true }, &Bias{Faults: []string{"local_disk_hang", "power_cut_copies"}, Every: 3 * time.Second, Torn: 0.05}},
	{"no-restart-wait", "a restarted storage process waits out the leases that it forgot", func(m *Mutations) { m.Replica.NoRestartWait = true; m.Replica.UnknownAsLapsed = true }, &Bias{Faults: []string{"forgetful"}, Every: 2 * time.Second}},
	{"skip-flush-sync", "FLUSH does an fdatasync", func(m *Mutations) { m.Disk.SkipFlushSync = true }, nil},
	{"own-watermark", "takeover reconciles from the flush mark of the whole in-sync set", func(m *Mutations) { m.Writer.OwnWatermark = true }, nil},
	{"truncate-log", "a durable part of the log is never dropped", func(m *Mutations) { m.Disk.TruncateDamagedLog = true }, &Bias{Faults: []string{"bit_rot", "bit_rot", "bit_rot", "power_blip", "storage_kill"}, Every: 300 * time.Millisecond}},
	{"apply-early", "a block is applied in place after its record is durable", func(m *Mutations) { m.Disk.ApplyBeforeDurable = true }, &Bias{Faults: []string{"power_blip", "power_cut_all", "storage_kill"}, Every: time.Second, DiskHi: 20 * time.Millisecond, Torn: 0.5}},
	{"grow-uncounted", "a joining disk's answers count before the CAS that takes it in", func(m *Mutations) { m.Writer.GrowWithoutCount = true }, &Bias{Faults: []string{"storage_kill", "power_cut", "partition", "power_blip"}, Every: time.Second, Unknown: 0.4}},
	{"read-before-out", "no read is served before the missing members are out", func(m *Mutations) { m.Writer.ReadBeforeOut = true }, &Bias{Faults: []string{"partition", "power_cut", "guard_kill", "forgetful"}, Every: 3 * time.Second, Unknown: 0.3}},
	{"adopt-any-run", "a guest is adopted only if its run still owns the volumes", func(m *Mutations) { m.Writer.AdoptWithoutRun = true }, &Bias{Faults: []string{"late_successor", "power_blip", "guard_kill"}, Every: 5 * time.Second}},
	{"no-sync-lock", "resync reads its source under the interval lock", func(m *Mutations) { m.Writer.NoSyncLock = true }, &Bias{Faults: []string{"local_disk_hang", "storage_kill"}, Every: 6 * time.Second, DiskHi: 8 * time.Millisecond, Think: time.Millisecond}},
	{"release-before-config", "acks wait until the other members know who is out", func(m *Mutations) { m.Writer.ReleaseBeforeConfig = true }, &Bias{Faults: []string{"storage_kill", "guard_kill", "etcd_down", "power_blip"}, Every: 700 * time.Millisecond, Unknown: 0.2}},
	{"keep-winner", "the winner of a reconcile is rewritten on its holder too", func(m *Mutations) { m.Writer.KeepWinnerOnHolder = true }, nil},
	{"tail-ignores-flush-mark", "the log keeps what is above the flush mark", func(m *Mutations) { m.Disk.TailIgnoresFlushMark = true }, nil},
	{"epoch-unchecked", "the epoch is checked when a record is appended", func(m *Mutations) { m.Disk.EpochUnchecked = true }, nil},
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
