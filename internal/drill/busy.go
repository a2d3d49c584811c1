package drill

import (
	"context"
	"fmt"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

var busyMigration = Test{
	Name:    "busy-migration",
	Summary: "move a VM whose guest dirties memory twice as fast as may be sent",
	Method:  "the guest rewrites 16 MiB, about 32 MiB a second; a migration with 1 MiB/s must say why not and leave it, one with 16 MiB/s must get through",
	run:     runBusyMigration,
}

// At busyBandwidth one round over what the guest dirties takes a second: it gets
// through by being slowed down or, at the latest, by a downtime of 1.2 s. At
// starved it never does.
const (
	busyMiB       = 16
	busyRate      = 32 * size.MiB
	busyBandwidth = 16 * size.MiB
	starved       = size.MiB
	busyGiveUp    = 8 * time.Second
)

func runBusyMigration(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) error {
		before, vm, err := p.begin(ctx, 20*time.Millisecond)
		if err != nil {
			return err
		}
		rate, err := p.dirty(ctx)
		if err != nil {
			return err
		}
		f := e.report.Figures
		f["dirty_bytes_per_s"] = int64(rate)
		e.say("%s runs on %s and dirties %s a second", p.name, vm.Status.Node, rate)
		if err := e.mustGiveUp(ctx, p, vm); err != nil {
			return err
		}
		f["bandwidth_bytes_per_s"] = int64(busyBandwidth)
		e.say("once more with %s a second", busyBandwidth)
		began := time.Now()
		peak, err := e.watchMove(ctx, p, func() error { return e.Cluster.MigrateBounded(ctx, p.name, busyBandwidth, 0) })
		f["migration_ms"], f["throttle_percent"], f["rounds_seen"] = ms(time.Since(began)), peak.throttle, peak.seen
		if err != nil {
			return err
		}
		e.say("slowed down by %d %% at most; the time left was told %d times", peak.throttle, peak.remaining)
		if err := p.post(ctx, "/dirty?stop=1"); err != nil {
			return err
		}
		if _, _, err := e.moved(ctx, p, vm.Status.Node, before); err != nil {
			return err
		}
		_, _, err = p.audit(ctx)
		return err
	})
}

// dirty lets the guest begin, and returns how fast it is.
func (p *probeVM) dirty(ctx context.Context) (rate size.Bytes, err error) {
	if err := p.post(ctx, fmt.Sprintf("/dirty?mib=%d&rate=%d", busyMiB, int64(busyRate))); err != nil {
		return 0, err
	}
	return rate, waitUntil(ctx, time.Minute, 200*time.Millisecond, "the guest to dirty its memory", func() (bool, error) {
		st, err := p.status(ctx)
		rate = size.Bytes(st.DirtyRate)
		return err == nil && rate > 0, err
	})
}

// mustGiveUp demands that a migration with too little bandwidth ends with the
// reason, and that the VM runs on where it was.
func (e *Env) mustGiveUp(ctx context.Context, p *probeVM, was model.VM) error {
	e.say("moving it with %s a second, for %s at most", starved, busyGiveUp)
	began := time.Now()
	refusal := e.Cluster.MigrateBounded(ctx, p.name, starved, busyGiveUp)
	e.report.Figures["given_up_ms"] = ms(time.Since(began))
	if refusal == nil {
		return errs.New(errs.Conflict, "a migration with a fraction of what the guest dirties got through")
	}
	e.say("refused: %v", refusal)
	e.report.require(strings.Contains(refusal.Error(), "does not converge"), "a migration that does not converge ends with %v", refusal)
	return waitUntil(ctx, 30*time.Second, 100*time.Millisecond, "the VM to run on where it was", func() (bool, error) {
		vm, err := p.vmNode(ctx)
		return err == nil && vm.Status.State == model.VMRunning && vm.Status.Node == was.Status.Node && vm.Status.Run == was.Status.Run, err
	})
}

// peaks are what a migration's progress showed at most.
type peaks struct{ throttle, remaining, seen int }

// watchMove polls the VM's progress while move runs.
func (e *Env) watchMove(ctx context.Context, p *probeVM, move func() error) (peak peaks, err error) {
	done := make(chan error, 1)
	go func() { done <- move() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return peak, err
		case <-tick.C:
		}
		vm, err := p.vmNode(ctx)
		if err != nil || vm.Status.State != model.VMMigrating || vm.Status.Migration == nil {
			continue
		}
		m := vm.Status.Migration
		peak.seen++
		peak.throttle = max(peak.throttle, m.Throttle)
		if m.Remaining > 0 {
			peak.remaining++
		}
	}
}
