package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

var copiesCut = Test{
	Name:    "copies-cut",
	Summary: "cut the power of the nodes with copies under a guest on a fourth: of all but one, then of all (needs a fourth node)",
	Method: "written without a flush until the cut. One copy warm, but frozen until the others are back: it is waited for, the same guest goes on, all it wrote verifies. " +
		"None warm: the guest has seen what is lost, so it must never go on; restarted, every flushed write read back",
	rough: "freezes nodes",
	run:   runCopiesCut,
}

// cutChunks are written while the power is cut, with one flush behind the last.
const (
	cutChunks = 192
	cutDisk   = probe.FillOffset + cutChunks*probe.FillChunkBytes
	cutBack   = time.Minute
	coldHeld  = 6 * time.Second // the cold copies' nodes live alone for so long
)

func runCopiesCut(ctx context.Context, e *Env) error {
	// Without HA: with it the manager may rightly restart a guest that has stalled for
	// seconds, at the moment when its copy is back.
	return e.withProbeOf(ctx, VMRequest{Memory: probeMemory, DiskSize: cutDisk, NoHA: true}, func(ctx context.Context, p *probeVM) error {
		with, without, err := copiesOf(ctx, e, p)
		if err != nil {
			return err
		}
		vm, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		if vm.Status.Node != without {
			if err := e.Cluster.Migrate(ctx, p.name, without); err != nil {
				return err
			}
		}
		if err := p.runsOn(ctx, without, true, time.Minute); err != nil {
			return err
		}
		e.say("%s runs on %s, its copies are on %v", p.name, without, with)
		if err := waitWhole(ctx, e, p, without); err != nil {
			return err
		}
		if err := allButOne(ctx, e, p, with); err != nil {
			return fmt.Errorf("with one copy warm: %w", err)
		}
		if err := waitWhole(ctx, e, p, without); err != nil {
			return err
		}
		return allCopies(ctx, e, p, with)
	})
}

// copiesOf returns the nodes with a copy of the guest's disk, and one without.
func copiesOf(ctx context.Context, e *Env, p *probeVM) (with []string, without string, err error) {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return nil, "", err
	}
	placed, err := e.Cluster.VolumeDisks(ctx, vm.Spec.Disks[0].Volume)
	if err != nil {
		return nil, "", err
	}
	disks, err := e.Cluster.Disks(ctx)
	if err != nil {
		return nil, "", err
	}
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return nil, "", err
	}
	for _, n := range nodes {
		if slices.ContainsFunc(disks, func(d model.Disk) bool { return d.Spec.Node == n.ID && slices.Contains(placed, d.ID.String()) }) {
			with = append(with, n.Name)
		} else if n.Status.Ready {
			without = n.Name
		}
	}
	if without == "" || len(with) < 2 {
		return nil, "", errs.New(errs.Conflict, "run copies-cut: copies of the guest's disk are on %v of %d nodes: it needs two with one, and one without", with, len(nodes)).
			WithHint("on a lab: `roseau lab up --nodes 4`")
	}
	return with, without, nil
}

// beginUnflushed writes flushed blocks, then chunks without a flush, and returns while
// those are being written.
func (p *probeVM) beginUnflushed(ctx context.Context) (before probe.Status, vm model.VM, err error) {
	if before, vm, err = p.begin(ctx, 2*time.Millisecond); err != nil {
		return before, vm, err
	}
	if err := errors.Join(p.waitAcks(ctx, 200), p.stopLoad(ctx)); err != nil {
		return before, vm, err
	}
	if err := p.post(ctx, fmt.Sprintf("/fill?chunks=%d", cutChunks)); err != nil {
		return before, vm, err
	}
	return before, vm, waitUntil(ctx, time.Minute, 20*time.Millisecond, "chunks to be written", func() (bool, error) {
		st, err := p.status(ctx)
		if err == nil && !st.FillRunning && st.FillDone == cutChunks {
			return false, errs.New(errs.Conflict, "all %d chunks are flushed before the power is cut", cutChunks)
		}
		return err == nil && st.FillDone >= cutChunks/8, err
	})
}

// cutTogether cuts the power of nodes at once.
func cutTogether(ctx context.Context, e *Env, nodes []string) error {
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error { _, err := e.Faults.CutNode(ctx, n); return err })
	}
	return g.Wait()
}

// powerBack gives the nodes without power theirs, at once.
func powerBack(ctx context.Context, e *Env, nodes []string) error {
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error {
			if on, err := e.Faults.HasPower(ctx, n); on || err != nil {
				return err
			}
			return e.Faults.RestoreNode(ctx, n)
		})
	}
	return g.Wait()
}

// allButOne cuts the power of all copies but one, which is frozen until the others
// are back, so that it is the last to answer.
func allButOne(ctx context.Context, e *Env, p *probeVM, with []string) (err error) {
	before, vm, err := p.beginUnflushed(ctx)
	if err != nil {
		return err
	}
	warm, cold := with[0], with[1:]
	e.say("freezing %s, cutting the power of %v", warm, cold)
	frozen := false
	thaw := func() error {
		if !frozen {
			return nil
		}
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err := e.Rough.ThawNode(back, warm)
		frozen = err != nil
		return err
	}
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutBack)
		defer cancel()
		err = errors.Join(err, thaw(), powerBack(back, e, cold))
	}()
	if err := e.Rough.FreezeNode(ctx, warm); err != nil {
		return err
	}
	frozen = true
	cut := time.Now()
	if err := cutTogether(ctx, e, cold); err != nil {
		return err
	}
	if err := powerBack(ctx, e, cold); err != nil {
		return err
	}
	// What answers now is cold: to go on with it would lose what was not flushed.
	if err := waitReady(ctx, e, cold); err != nil {
		return err
	}
	if err := until(ctx, time.Now().Add(coldHeld)); err != nil {
		return err
	}
	thawed := time.Now()
	away := thawed.Sub(cut)
	e.say("%v have power again; thawing %s %s after the cut", cold, warm, away.Round(time.Millisecond))
	if err := thaw(); err != nil {
		return err
	}
	var after probe.Status
	if err := waitUntil(ctx, cutBack, 50*time.Millisecond, "the guest to finish its writes", func() (bool, error) {
		after, err = p.status(ctx)
		return err == nil && !after.FillRunning && (after.FillDone == cutChunks || after.Boot != before.Boot), err
	}); err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["warm_away_ms"], f["warm_longest_write_ms"] = ms(away), ms(after.LongestIO)
	r.require(after.Boot == before.Boot, "the guest was restarted although a copy was warm")
	bad, err := p.fill(ctx, cutChunks, true, cutBack)
	if err != nil {
		return err
	}
	f["warm_chunks_lost"] = bad
	early, err := putOut(ctx, e, p, cut, thawed)
	if err != nil {
		return err
	}
	all, err := putOut(ctx, e, p, cut, time.Now())
	if err != nil {
		return err
	}
	r.require(early < len(with), "every copy was put out before the warm one answered")
	r.require(all == len(cold), "%d copies were put out, but %d lost their cache", all, len(cold))
	r.require(bad == 0, "%d of %d chunks lost although a copy was warm", bad, cutChunks)
	now, err := p.settled(ctx)
	if err != nil {
		return err
	}
	r.require(now.Status.Run == vm.Status.Run, "the VM was restarted: run %s, was %s", now.Status.Run, vm.Status.Run)
	e.say("the guest goes on, %d of %d chunks lost", bad, cutChunks)
	return nil
}

// putOut counts the copies of the VM that were put out in a stretch of time.
func putOut(ctx context.Context, e *Env, p *probeVM, from, to time.Time) (n int, err error) {
	events, err := e.Cluster.Events(ctx, from)
	for _, ev := range events {
		if ev.Subject == "vm "+p.name && ev.Time.Before(to) && strings.Contains(ev.Text, "out of the in-sync set") {
			n++
		}
	}
	return n, err
}

// allCopies cuts the power of every copy while the guest writes without a flush.
func allCopies(ctx context.Context, e *Env, p *probeVM, with []string) (err error) {
	before, vm, err := p.beginUnflushed(ctx)
	if err != nil {
		return err
	}
	watch := watchBoots(p, before.Boot)
	defer watch.stop()
	e.say("cutting the power of %v", with)
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutBack)
		defer cancel()
		err = errors.Join(err, powerBack(back, e, with))
	}()
	cut := time.Now()
	if err := cutTogether(ctx, e, with); err != nil {
		return err
	}
	if err := powerBack(ctx, e, with); err != nil {
		return err
	}
	var after probe.Status
	if err := waitUntil(ctx, cutBack, 50*time.Millisecond, "another guest to answer", func() (bool, error) {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		after, err = p.status(try)
		return err == nil && after.Boot != before.Boot, err
	}); err != nil {
		return err
	}
	back := time.Since(cut)
	now, err := p.settled(ctx)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["cold_service_back_ms"] = ms(back)
	r.require(now.Status.Run != vm.Status.Run, "another guest has the run of the one before: %s", now.Status.Run)
	last := watch.lastOld()
	r.require(last.Before(now.Status.Started), "the old guest answered %s after the new one ran", last.Sub(now.Status.Started))
	e.say("another run on %s; service back after %s", now.Status.Node, back.Round(time.Millisecond))
	_, _, err = p.audit(ctx)
	return err
}
