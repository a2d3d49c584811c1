package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/guardctl"
)

// Bounds of what the guard asks of others. A claim whose answer does not come
// in time is of unknown outcome, and the core reads own again.
const (
	claimTimeout   = 2 * time.Second
	ownerTimeout   = 2 * time.Second
	stallTimeout   = 5 * time.Second
	releaseTimeout = 10 * time.Second
	takeRetry      = 500 * time.Millisecond
)

// carryOut does one action. It does not block.
func (g *guard) carryOut(ctx context.Context, a vmguard.Action) {
	switch a := a.(type) {
	case vmguard.Save:
		g.rec.Saved = a.Saved
		g.writeRecord()
	case vmguard.Report:
		g.report(a.Level, a.Text)
	case vmguard.Restart:
		g.restart(ctx, a.After)
	case vmguard.Exit:
		g.exit(errExit)
	case vmguard.Port:
		g.port(a)
	case vmguard.LinkUp:
		if err := g.linkUp(); err != nil {
			g.log.Error("bring ports up", "cause", err)
		}
	case vmguard.Announce:
		g.async(func() {
			if err := g.net.Announce(); err != nil {
				g.log.Warn("announce", "cause", err)
			}
			g.log.Debug("announced")
		})
	case vmguard.StartQEMU:
		g.startQEMU(ctx, a.Incoming)
	case vmguard.ConnectQMP:
		g.connectQMP(ctx)
	case vmguard.Stop:
		g.fire("stop", nil)
	case vmguard.Cont:
		g.fire("cont", nil)
	case vmguard.Reset:
		g.fire("system_reset", nil)
	case vmguard.PowerDown:
		g.fire("system_powerdown", nil)
	case vmguard.Freeze:
		freeze(g.proc, g.group, g.log)
	case vmguard.Thaw:
		thaw(g.proc, g.group, g.log)
	case vmguard.Kill:
		g.kill()
	default:
		if !g.carryOutVolumes(ctx, a) {
			g.carryOutMigration(ctx, a)
		}
	}
}

// carryOutVolumes handles what concerns the volumes; false: not of these.
func (g *guard) carryOutVolumes(ctx context.Context, a vmguard.Action) bool {
	h := g.vols
	switch a := a.(type) {
	case vmguard.OpenVolumes:
		g.openVolumes(ctx, a.Run)
		return true
	case vmguard.CloseVolumes:
		g.closeVolumes()
		return true
	case vmguard.Release:
		if h == nil {
			g.post(vmguard.ReleaseDone{})
			return true
		}
		g.volumeCall(releaseTimeout, 0, func(ctx context.Context) vmguard.Event {
			return vmguard.ReleaseDone{Err: h.Release(ctx)}
		})
		return true
	case vmguard.Prepare, vmguard.Take, vmguard.Reopen, vmguard.Claim, vmguard.Activate, vmguard.Stall, vmguard.Unstall,
		vmguard.Reclaim, vmguard.ReadOwner:
	default:
		return false
	}
	if h == nil {
		g.log.Error("no volumes for an action", "action", fmt.Sprintf("%T", a))
		return true
	}
	switch a := a.(type) {
	case vmguard.Prepare:
		g.volumeCall(0, a.After, func(ctx context.Context) vmguard.Event { return prepare(ctx, h) })
	case vmguard.Take:
		g.taking(!a.ExpectRun.IsZero(), func(ctx context.Context) error {
			return h.Take(ctx, volume.Claim{ExpectRun: a.ExpectRun, ExpectEpoch: a.ExpectEpoch, Placement: g.placement(g.core.Run())})
		})
	case vmguard.Reopen:
		pred := g.rec.Predecessor
		g.taking(true, func(ctx context.Context) error { return h.Reopen(ctx, pred) })
	case vmguard.Activate:
		g.taking(true, h.Activate)
	case vmguard.Claim:
		c := volume.Claim{ExpectRun: a.Run, ExpectEpoch: a.Epoch, Placement: g.placement(a.Run), Timeout: claimTimeout}
		g.volumeCall(0, 0, func(ctx context.Context) vmguard.Event { return claimed(h, h.Claim, c)(ctx) })
	case vmguard.Reclaim:
		c := volume.Claim{ExpectRun: a.Run, Placement: g.placement(a.Run), Timeout: claimTimeout}
		g.volumeCall(0, 0, func(ctx context.Context) vmguard.Event { return claimed(h, h.Reclaim, c)(ctx) })
	case vmguard.Stall:
		g.volumeCall(stallTimeout, 0, func(ctx context.Context) vmguard.Event { return vmguard.StallDone{Err: h.Stall(ctx)} })
	case vmguard.Unstall:
		if err := h.Resume(); err != nil {
			g.log.Error("let I/O go on", "cause", err)
		}
	case vmguard.ReadOwner:
		g.volumeCall(ownerTimeout, a.After, func(ctx context.Context) vmguard.Event {
			o, err := h.Owner(ctx)
			return vmguard.OwnerRead{Err: err, Owner: vmguard.Owner{Epoch: o.Epoch, Node: o.Node, Run: o.Run, Mine: o.Mine}}
		})
	}
	return true
}

// volumeCall asks the volumes beside the loop, after a while, for at most
// timeout (0: as long as the set is open), and posts the answer unless the set
// was closed meanwhile.
func (g *guard) volumeCall(timeout, after time.Duration, f func(context.Context) vmguard.Event) {
	set := g.volCtx
	g.async(func() {
		if clock.Sleep(set, after) != nil {
			return
		}
		ctx := set
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(set, timeout)
			defer cancel()
		}
		e := f(ctx)
		if set.Err() == nil {
			g.post(e)
		}
	})
}

func prepare(ctx context.Context, h volume.Handle) vmguard.Event {
	p, err := h.Prepare(ctx)
	if err != nil {
		return vmguard.Prepared{Text: err.Error()}
	}
	return vmguard.Prepared{Ready: p.Ready, Reachable: p.Reachable, Retry: p.Retry, Text: p.Text}
}

// taking posts Taken, with what a successor will have to name.
func (g *guard) taking(compares bool, f func(context.Context) error) {
	h, set := g.vols, g.volCtx
	g.volumeCall(0, 0, func(ctx context.Context) vmguard.Event {
		if err := f(ctx); err != nil {
			fenced := errors.Is(err, errs.Fenced)
			g.log.Warn("take the volumes", "cause", err, "compares", compares)
			if !fenced {
				clock.Sleep(ctx, takeRetry)
			}
			return vmguard.Taken{Fenced: fenced, Err: err}
		}
		st := h.Status()
		g.inLoop(func() {
			if set.Err() == nil && len(st.Volumes) > 0 {
				v := st.Volumes[0]
				g.rec.Predecessor = volume.Predecessor{Epoch: v.Epoch, Nonce: v.Nonce, Inc: v.Inc}
				g.writeRecord()
			}
		})
		return vmguard.Taken{Epoch: st.Epoch}
	})
}

func claimed(h volume.Handle, f func(context.Context, volume.Claim) (volume.Outcome, error), c volume.Claim) func(context.Context) vmguard.Event {
	return func(ctx context.Context) vmguard.Event {
		o, err := f(ctx, c)
		e := vmguard.ClaimDone{Outcome: vmguard.OutcomeUnknown, Err: err}
		switch o {
		case volume.Made:
			e.Outcome, e.Epoch = vmguard.Made, h.Status().Epoch
		case volume.NotMade:
			e.Outcome = vmguard.NotMade
		}
		return e
	}
}

// placement is what a take writes beside the own records.
func (g *guard) placement(run ids.ID) *repl.Placement {
	return &repl.Placement{Node: g.cfg.Node, Attempt: g.cfg.Attempt, State: "running", Run: run}
}

// port renews or shuts the ports. When the table is gone (somebody flushed the
// ruleset) it is made again first.
func (g *guard) port(a vmguard.Port) {
	if len(g.net.Ports) == 0 {
		return
	}
	d := time.Duration(0)
	if a.Until != 0 {
		d = a.Until.Sub(g.clock.Now())
	}
	err := g.net.Refresh(d)
	if errors.Is(err, unix.EMFILE) { // the kernel is asked through a new socket each time
		g.exit(brokenError{errs.New(errs.Exhausted, "renew the ports of vm %s: %w", g.cfg.VM, err)})
		return
	}
	if err != nil && d > 0 && g.proc != nil {
		g.log.Warn("the ports' table is gone: made again", "cause", err)
		if err = g.setNetwork(); err == nil {
			err = errors.Join(g.net.SetUp(true), g.net.Refresh(a.Until.Sub(g.clock.Now())))
		}
	}
	if err != nil && g.proc != nil {
		g.log.Error("renew ports", "cause", err)
	}
}

// restart begins again from power-on once the old set is closed.
func (g *guard) restart(ctx context.Context, after time.Duration) {
	closed := g.volDone
	g.async(func() {
		select {
		case <-closed:
		case <-ctx.Done():
			return
		}
		if clock.Sleep(ctx, after) == nil {
			g.post(vmguard.Start{Run: ids.New()})
		}
	})
}

func (g *guard) writeRecord() {
	if err := guardctl.WriteFileJSON(g.files.record(), g.rec); err != nil {
		g.log.Error("write the record for a successor", "cause", err)
	}
}

func (g *guard) report(level, text string) { g.reportCopy(level, text, ids.ID{}) }

// reportCopy reports what concerns the copy on a disk; zero: no copy.
func (g *guard) reportCopy(level, text string, disk ids.ID) {
	l := slog.LevelInfo
	switch level {
	case "warn":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	}
	g.log.Log(context.Background(), l, text, "run", g.core.Run().Short(), "epoch", g.core.Epoch())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.eventSeq++
	g.events = append(g.events, guardctl.Event{Seq: g.eventSeq, Time: g.clock.Wall(), Level: level, Text: text, Disk: disk})
	if len(g.events) > 64 {
		g.events = g.events[len(g.events)-64:]
	}
}

// leased is volume.Config.OnLease.
func (g *guard) leased(gen int, l volume.Lease) {
	bad := clock.Instant(0)
	if !l.Held {
		bad = g.clock.Now()
	}
	g.mu.Lock()
	if l.Held || g.badSince == 0 {
		g.badSince = bad
	}
	g.mu.Unlock()
	g.inLoop(func() {
		if gen == g.volGen {
			g.step(vmguard.LeaseChanged{Held: l.Held, Deadline: clock.Instant(l.Deadline)})
		}
	})
}
