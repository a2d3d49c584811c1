package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

const pingInterval = 10 * time.Millisecond

var liveMigration = Test{
	Name:    "live-migration",
	Summary: "move a running VM to another node while it is pinged every 10 ms and writes to its disk",
	Method:  "pings every 10 ms from outside, flushed writes recorded outside; the guest's boot, uptime and memory pattern must go on",
	run:     runLiveMigration,
}

func runLiveMigration(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, probe.ImageBytes+256*size.MiB, func(ctx context.Context, p *probeVM) error {
		before, vm, err := p.begin(ctx, 5*time.Millisecond)
		if err != nil {
			return err
		}
		from := vm.Status.Node
		e.say("%s runs on %s (boot %s, up %s); moving it", p.name, from, before.Boot, before.Uptime.Round(time.Millisecond))
		pings, err := startPings(ctx, e.Vantage, p.addr, pingInterval)
		if err != nil {
			return err
		}
		took, err := migrateAndSettle(ctx, e, p, "")
		end := pings.stop(pingsStart(pings))
		if err != nil {
			return err
		}
		e.report.Figures["migration_ms"] = ms(took)
		return judgeMigration(ctx, e, p, from, before, end)
	})
}

func pingsStart(p *pinger) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 {
		return time.Now()
	}
	return p.sent[0]
}

// sayLost tells when the pings that were lost were sent, to be read beside the
// guards' logs.
func (e *Env) sayLost(f pingFigures) {
	const most = 10
	for _, at := range f.lostAt[:min(len(f.lostAt), most)] {
		e.say("lost: the ping sent at %s", at.UTC().Format("15:04:05.000"))
	}
}

// migrateAndSettle gives the pings a quiet time before and after the move, and
// returns how long the move took. to "": the scheduler chooses.
func migrateAndSettle(ctx context.Context, e *Env, p *probeVM, to string) (time.Duration, error) {
	settle := func() error {
		n := p.acks.count()
		return waitUntil(ctx, 30*time.Second, 50*time.Millisecond, "writes to go on", func() (bool, error) {
			return p.acks.count() > n+50, nil
		})
	}
	if err := settle(); err != nil {
		return 0, err
	}
	if err := p.post(ctx, "/reset"); err != nil {
		return 0, err
	}
	p.acks.watch()
	began := time.Now()
	if err := e.Cluster.Migrate(ctx, p.name, to); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, settle()
}

// mostLost is how many pings a single migration may lose to pass: the aim is
// none, which the test "migrations" demands of many; one loss on a busy machine
// is no reason to distrust a cluster.
const mostLost = 3

// moved ends the load of a VM that was moved away from a node, demands that its
// guest went on there, and notes where it is and how long it stood still.
func (e *Env) moved(ctx context.Context, p *probeVM, from string, before probe.Status) (after probe.Status, vm model.VM, err error) {
	if after, err = p.status(ctx); err != nil {
		return after, vm, err
	}
	if vm, err = p.settledVM(ctx, from); err != nil {
		return after, vm, err
	}
	if err := p.stopLoad(ctx); err != nil {
		return after, vm, err
	}
	r, f := e.report, e.report.Figures
	f["from"], f["to"], f["memory_bad"] = from, vm.Status.Node, after.MemoryBad
	if m := vm.Status.Migration; m != nil && m.Downtime > 0 {
		f["blackout_ms"] = ms(m.Downtime)
	}
	r.require(f["blackout_ms"] != nil, "QEMU's downtime was not reported")
	r.require(vm.Status.Node != from, "the VM is still on %s", from)
	r.require(after.Boot == before.Boot && after.Uptime > before.Uptime, "the guest rebooted: boot %s, was %s", after.Boot, before.Boot)
	r.require(after.MemoryBad == 0, "the guest's memory: %d places are not what it wrote", after.MemoryBad)
	r.require(after.IOErrors == 0, "I/O errors in the guest: %d (%s)", after.IOErrors, after.LastError)
	return after, vm, nil
}

func judgeMigration(ctx context.Context, e *Env, p *probeVM, from string, before probe.Status, pings pingFigures) error {
	after, vm, err := e.moved(ctx, p, from, before)
	if err != nil {
		return err
	}
	e.sayLost(pings)
	stall := p.acks.watched()
	acked, _, err := p.audit(ctx)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["pings_sent"], f["pings_lost"] = pings.sent, pings.lost
	f["longest_gap_ms"], f["rtt_median_ms"], f["rtt_max_ms"] = ms(pings.longestGap), ms(pings.rttMedian), ms(pings.rttMax)
	f["guest_gap_ms"], f["longest_write_gap_ms"] = ms(after.GuestGap), ms(stall)
	f["memory_rounds"] = after.MemoryRound - before.MemoryRound
	r.Series = append(r.Series, pings.series)
	if m := vm.Status.Migration; m != nil && m.Why != "" {
		e.say("%s", m.Why)
	}
	r.require(after.MemoryRound > before.MemoryRound, "the guest's memory pattern did not go on: round %d, was %d", after.MemoryRound, before.MemoryRound)
	r.require(pings.lost <= mostLost, "%d pings lost, at most %d allowed", pings.lost, mostLost)
	e.say("%d pings, %d lost, longest gap %.0f ms, guest stood still %.0f ms, %d writes acknowledged", pings.sent, pings.lost, ms(pings.longestGap), ms(after.GuestGap), acked)
	return nil
}

var nodeFailure = Test{
	Name:    "node-failure",
	Summary: "cut the power of the node that runs a VM",
	Method:  "power and cables cut, unflushed writes of its disks dropped; time to the restarted VM, its page, and every flushed write read back",
	run:     runNodeFailure,
}

// Limits of node-failure.
const restartLimit = 5 * time.Second

func runNodeFailure(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, probe.ImageBytes+256*size.MiB, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		node := vm.Status.Node
		if err := p.waitAcks(ctx, 300); err != nil {
			return err
		}
		e.say("%s runs on %s; cutting its power", p.name, node)
		cut, err := e.Faults.CutNode(ctx, node)
		if err != nil {
			return err
		}
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			err = errors.Join(err, restoreNode(back, e, p, node))
		}()
		e.report.Figures["node"] = node
		return watchFailover(ctx, e, p, cut, node, before)
	})
}

// watchFailover measures the restart and reads back.
func watchFailover(ctx context.Context, e *Env, p *probeVM, cut time.Time, node string, before probe.Status) error {
	return watchFailoverWithin(ctx, e, p, cut, node, before, restartLimit)
}

func watchFailoverWithin(ctx context.Context, e *Env, p *probeVM, cut time.Time, node string, before probe.Status, limit time.Duration) error {
	r, f := e.report, e.report.Figures
	var vm model.VM
	err := waitUntil(ctx, 60*time.Second, 20*time.Millisecond, "the VM to run on another node", func() (bool, error) {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		v, err := p.vmNode(try)
		if err == nil && v.Status.State == model.VMRunning && v.Status.Node != node && v.Status.Run != vm.Status.Run {
			vm = v
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return err
	}
	seen := time.Since(cut)
	// Running is reported by the guard when it holds every lease and the guest
	// goes on; until the report is read some time passes, which counts too.
	restarted := seen
	f["restarted_ms"], f["to"] = ms(restarted), vm.Status.Node
	if !vm.Status.Started.IsZero() {
		f["qemu_started_ms"] = ms(vm.Status.Started.Sub(cut))
	}
	e.say("running on %s after %s", vm.Status.Node, restarted.Round(time.Millisecond))
	twice := 0
	if err := p.waitForPage(ctx, 2*time.Minute); err != nil {
		return err
	}
	f["service_back_ms"] = ms(time.Since(cut))
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	if after.Boot == before.Boot {
		twice++
	}
	if at, ok := detectedAt(ctx, e, cut, p.name); ok {
		f["detected_ms"] = ms(at.Sub(cut))
	}
	acked, lost, err := p.audit(ctx)
	if err != nil {
		return err
	}
	// The new guest must be able to write, too.
	if err := p.startLoad(ctx, 2*time.Millisecond); err != nil {
		return err
	}
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	f["vms_run_twice"] = twice
	r.require(f["detected_ms"] != nil, "no event tells when the loss was detected")
	r.require(restarted > 0 && restarted <= limit, "restarted after %s, at most %s allowed", restarted.Round(time.Millisecond), limit)
	r.require(acked > 0, "no write was acknowledged before the cut")
	r.require(twice == 0, "the guest of before the cut still answers")
	e.say("service back after %.1f s, %d writes acknowledged, %d lost", ms(time.Since(cut))/1000, acked, lost)
	return nil
}

// detectedAt finds the event with which the recovery of the VM began.
func detectedAt(ctx context.Context, e *Env, cut time.Time, vm string) (time.Time, bool) {
	events, err := e.Cluster.Events(ctx, cut)
	if err != nil {
		return time.Time{}, false
	}
	slices.SortFunc(events, func(a, b model.Event) int { return a.Time.Compare(b.Time) })
	for _, ev := range events {
		if ev.Time.After(cut) && ev.Subject == "vm "+vm && strings.HasPrefix(ev.Text, "recovers from") {
			return ev.Time, true
		}
	}
	return time.Time{}, false
}

// restoreNode powers the node on again and waits until the pool is whole.
func restoreNode(ctx context.Context, e *Env, p *probeVM, node string) error {
	e.say("restoring %s", node)
	if err := e.Faults.RestoreNode(ctx, node); err != nil {
		return fmt.Errorf("restore node %s: %w", node, err)
	}
	began := time.Now()
	err := waitUntil(ctx, 2*time.Minute, 200*time.Millisecond, node+" to be ready and the probe's volume to have three copies", func() (bool, error) {
		nodes, err := e.Cluster.Nodes(ctx)
		if err != nil {
			return false, err
		}
		for _, n := range nodes {
			if n.Name == node && !n.Status.Ready {
				return false, nil
			}
		}
		vm, err := p.vmNode(ctx)
		if err != nil {
			return false, err
		}
		v, err := e.Cluster.Volume(ctx, vm.Spec.Disks[0].Volume)
		return err == nil && v.Status.Health == model.Healthy, err
	})
	if err == nil {
		e.report.Figures["resynced_ms"] = ms(time.Since(began))
	}
	return err
}
