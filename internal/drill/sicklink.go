package drill

import (
	"context"
	"errors"
	"time"
)

var sickLink = Test{
	Name:    "sick-link",
	Summary: "cut the storage cable of the node that runs a VM, and its power while the writes go by the other network",
	Method:  "flushed writes must go on with two copies or more; then as node-failure: restarted elsewhere, every flushed write read back",
	run:     runSickLink,
}

func runSickLink(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		node := vm.Status.Node
		// A new volume is whole once; what counts is from here on.
		if err := waitWhole(ctx, e, p, node); err != nil {
			return err
		}
		copies := watchCopies(ctx, e, vm.Spec.Disks[0].Volume)
		p.acks.watch()
		e.say("%s runs on %s; cutting its storage cable", p.name, node)
		link, power := true, true
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			copies.stop()
			if !link {
				err = errors.Join(err, e.Faults.RestoreLink(back, node, "storage"))
			}
			if !power {
				err = errors.Join(err, restoreNode(back, e, p, node))
			}
		}()
		if _, err := e.Faults.CutLink(ctx, node, "storage"); err != nil {
			return err
		}
		link = false
		if err := p.waitAcks(ctx, 200); err != nil {
			return err
		}
		f := e.report.Figures
		f["node"], f["longest_stall_ms"], f["fewest_copies"] = node, ms(p.acks.watched()), copies.stop()
		e.report.require(copies.fewest >= 2, "the volume had %d copies in sync while two nodes answered", copies.fewest)
		e.say("writes go on after %.0f ms with %d copies; cutting its power", f["longest_stall_ms"], copies.fewest)
		cut, err := e.Faults.CutNode(ctx, node)
		if err != nil {
			return err
		}
		power = false
		// The manager may have begun to look for another node when the cable was cut, so
		// no event need tell of this loss.
		_, took, err := p.runsElsewhere(ctx, cut, []string{node}, vm.Status.Run.String())
		if err != nil {
			return err
		}
		f["restarted_ms"] = ms(took)
		e.say("running elsewhere after %s", took.Round(time.Millisecond))
		e.report.require(took <= restartLimit, "restarted after %s, at most %s allowed", took.Round(time.Millisecond), restartLimit)
		if err := p.waitForPage(ctx, 2*time.Minute); err != nil {
			return err
		}
		after, err := p.status(ctx)
		if err != nil {
			return err
		}
		e.report.require(after.Boot != before.Boot, "the guest of before the power cut still answers")
		acked, _, err := p.audit(ctx)
		e.report.require(acked > 0, "no write was acknowledged before the cut")
		return err
	})
}
